//! Address translation.
//!
//! What a connection is translated to is decided once, while its first packet is on its way ([`bind()`] and the targets on
//! top of it); it stands in the connection's tuples. Every packet, the first one included, is translated from those alone
//! ([`apply()`]), whatever became of the rules. [`rewrite()`] puts that into bytes.
//!
//! In a hook of the nat table: if [`asks`], ask its rules, which may bind; then [`settle`].

mod address;
mod apply;
mod bind;
mod inner;
mod mapping;
mod masquerade;
mod netmap;
mod ports;
mod redirect;
mod rewrite;
mod search;
mod table;
#[cfg(test)]
mod tests;

pub use apply::apply;
pub use bind::{bind, bind_null};
pub use masquerade::masquerade;
pub use netmap::netmap;
pub use redirect::redirect;
pub(crate) use rewrite::rewrite_ip;
pub use rewrite::{L4Checksum, MSS_LEN, insert_mss, make_room_for_mss, rewrite, rewrite_built};
pub use table::Table;

use crate::conntrack::{Conn, CtInfo, CtTuple, Status, Track};
use crate::iptables::{Hook, Iface};
use crate::packet::L4;
use crate::rng::Rng;
use crate::skb::Skb;
use crate::time::Time;
use crate::verdict::DropReason;
use core::net::IpAddr;

/// What translation of a new connection needs to know.
pub struct Nat<'a> {
    /// Stack time.
    pub now: Time,
    /// For random ports.
    pub rng: &'a mut Rng,
    /// The other connections.
    pub table: &'a dyn Table,
    /// The router's addresses.
    pub addrs: &'a dyn Addresses,
}

/// Whether the rules of the nat table at this hook are to be asked about the packet: it is new, and that end of its connection is undecided.
pub const fn asks(skb: &Skb<'_>, hook: Hook) -> bool {
    let Some(manip) = Manip::at(hook) else { return false };
    match &skb.track {
        Track::Fresh { conn, related: false, .. } => !conn.status.has(manip.done()),
        // A reset in place of a first segment: Linux asks the rules, though they decide about nothing any more.
        Track::Fresh { conn, related: true, .. } if matches!(skb.l4, L4::Tcp(..)) => !conn.status.has(manip.done()),
        Track::Known { info: CtInfo::New, status, .. } => !status.has(manip.done()),
        _ => false,
    }
}

/// Ends a hook of the nat table: an end about which no rule decided keeps its address; the packet is translated.
///
/// # Errors
/// Those of [`bind()`] and [`apply()`].
pub fn settle(nat: &mut Nat<'_>, skb: &mut Skb<'_>, hook: Hook) -> Result<(), DropReason> {
    let Some(manip) = Manip::at(hook) else { return Ok(()) };
    bind_null(nat, skb, manip)?;
    apply(nat.table, skb, hook)
}

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

impl Manip {
    /// What the nat table translates at a hook; `None` at FORWARD.
    pub const fn at(hook: Hook) -> Option<Manip> {
        match hook {
            Hook::PreRouting | Hook::Output => Some(Manip::Destination),
            Hook::Input | Hook::PostRouting => Some(Manip::Source),
            Hook::Forward => None,
        }
    }

    /// The status of a connection in which this end was decided.
    pub const fn done(self) -> Status {
        match self {
            Manip::Source => Status::SRC_NAT_DONE,
            Manip::Destination => Status::DST_NAT_DONE,
        }
    }

    /// The status of a connection in which this end is translated.
    pub const fn translated(self) -> Status {
        match self {
            Manip::Source => Status::SRC_NAT,
            Manip::Destination => Status::DST_NAT,
        }
    }
}

/// What address translation and `addrtype` ask about addresses. The router answers.
pub trait Addresses {
    /// Kind of an address, as a routing look-up would say. `on` limits the question to one interface's own addresses.
    fn kind(&self, addr: IpAddr, on: Option<Iface>) -> AddrType;

    /// The address that packets of this family get when they leave through `out` (MASQUERADE).
    fn primary(&self, out: Iface, v6: bool) -> Option<IpAddr>;

    /// Our address on the interface through which a packet came (REDIRECT).
    fn first(&self, input: Iface, v6: bool) -> Option<IpAddr>;

    /// The interface through which packets to an address leave.
    fn way(&self, to: IpAddr) -> Option<Iface> {
        let _ = to;
        None
    }

    /// The longest IP packet that an interface carries.
    fn mtu(&self, on: Iface) -> u32 {
        let _ = on;
        u32::from(u16::MAX)
    }

    /// Whether a new connection can have a source port that a rule names, given that no tracked connection has it: `reply` is what its replies would
    /// look like. Where the host's sockets carry it, the host must have the port, too.
    fn grants(&self, conn: &Conn, reply: &CtTuple) -> bool {
        let _ = (conn, reply);
        true
    }
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
