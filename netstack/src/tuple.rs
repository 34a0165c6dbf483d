//! Addresses of flows and connections.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use serde::{Deserialize, Serialize};

/// IP protocol numbers that the stack knows.
pub mod proto {
    /// ICMP, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
}

/// An address and a port (or the identifier of an ICMP echo).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address; an IPv4 address is never held in its IPv6-mapped form.
    pub addr: IpAddr,
    /// Port or identifier, host order.
    pub port: u16,
}

impl Endpoint {
    /// From its parts.
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        Endpoint { addr, port }
    }
}

impl From<SocketAddr> for Endpoint {
    /// A mapped IPv4 address, as dual-stack sockets report it, becomes plain IPv4.
    fn from(a: SocketAddr) -> Self {
        Endpoint::new(a.ip().to_canonical(), a.port())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(e: Endpoint) -> Self {
        SocketAddr::new(e.addr, e.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who talks to whom over what: one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Sender.
    pub src: Endpoint,
    /// Receiver.
    pub dst: Endpoint,
    /// IP protocol number.
    pub proto: u8,
}

impl Tuple {
    /// The tuple of packets that go the other way.
    pub const fn reversed(self) -> Self {
        Tuple { src: self.dst, dst: self.src, proto: self.proto }
    }
}
