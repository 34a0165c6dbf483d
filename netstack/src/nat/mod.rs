//! Address translation.

use crate::iptables::Iface;
use core::net::IpAddr;

/// To what an address and port are to be translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatRange {
    /// First and last address; `None` to keep the address.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// First and last port (or ICMP identifier); `None` to keep the port where that can be.
    pub ports: Option<(u16, u16)>,
    /// The port that stands for the first of `ports`: the others follow it (`--to-destination :9000-9010/8000`).
    pub base: Option<u16>,
    /// `--random`.
    pub random: bool,
    /// `--random-fully`.
    pub random_fully: bool,
    /// `--persistent`: a client keeps its address.
    pub persistent: bool,
}

/// Which end of a packet is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manip {
    /// The source: SNAT, MASQUERADE.
    Source,
    /// The destination: DNAT, REDIRECT.
    Destination,
}

/// What address translation and `addrtype` ask about addresses. The router answers.
pub trait Addresses {
    /// Kind of an address, as a routing look-up would say. `on` limits the question to one interface's own addresses.
    fn kind(&self, addr: IpAddr, on: Option<Iface>) -> AddrType;

    /// The address that packets of this family get when they leave through `out` (MASQUERADE).
    fn primary(&self, out: Iface, v6: bool) -> Option<IpAddr>;

    /// Our address on the interface through which a packet came (REDIRECT).
    fn first(&self, input: Iface, v6: bool) -> Option<IpAddr>;
}

/// Kinds of addresses, numbered as Linux's `RTN_*` (`addrtype` tests sets of `1 << kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AddrType {
    /// UNSPEC: the unspecified address.
    Unspec = 0,
    /// UNICAST.
    Unicast = 1,
    /// LOCAL: one of ours, or of the host's.
    Local = 2,
    /// BROADCAST.
    Broadcast = 3,
    /// ANYCAST.
    Anycast = 4,
    /// MULTICAST.
    Multicast = 5,
    /// BLACKHOLE.
    Blackhole = 6,
    /// UNREACHABLE.
    Unreachable = 7,
    /// PROHIBIT.
    Prohibit = 8,
}
