//! Tuples of tracked connections.

use crate::tuple::proto;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use serde::{Deserialize, Serialize};

/// An address of either family in 16 bytes; IPv4 in its mapped form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Addr(pub [u32; 4]);

impl From<IpAddr> for Addr {
    fn from(a: IpAddr) -> Self {
        let bits = match a {
            IpAddr::V4(a) => a.to_ipv6_mapped().to_bits(),
            IpAddr::V6(a) => a.to_bits(),
        };
        Addr([(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32])
    }
}

impl Addr {
    /// As an address of the family that the tuple says.
    pub const fn ip(self, v6: bool) -> IpAddr {
        let w = self.0;
        if v6 {
            let bits = (w[0] as u128) << 96 | (w[1] as u128) << 64 | (w[2] as u128) << 32 | w[3] as u128;
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(w[3]))
        }
    }
}

/// One direction of a tracked connection: what its packets look like, in its zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CtTuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port; the identifier for ICMP queries; 0 for other protocols.
    pub sport: u16,
    /// Destination port; type and code (`type << 8 | code`) for ICMP queries; 0 for other protocols.
    pub dport: u16,
    /// Zone that holds in this direction; 0 is the default one.
    pub zone: u16,
    /// IP protocol.
    pub proto: u8,
    /// IPv6.
    pub v6: bool,
}

impl CtTuple {
    /// Source address as an `IpAddr`.
    pub const fn src_ip(&self) -> IpAddr {
        self.src.ip(self.v6)
    }

    /// Destination address as an `IpAddr`.
    pub const fn dst_ip(&self) -> IpAddr {
        self.dst.ip(self.v6)
    }

    /// Whether the ports are ports (TCP, UDP).
    pub const fn has_ports(&self) -> bool {
        matches!(self.proto, proto::TCP | proto::UDP)
    }
}
