//! Tuples of tracked connections.

use super::gre;
use crate::packet::L4;
use crate::skb::Skb;
use crate::tuple::proto;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use serde::{Deserialize, Serialize};

/// An address of either family in 16 bytes; IPv4 in its mapped form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Addr(pub [u32; 4]);

impl From<IpAddr> for Addr {
    #[inline]
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
    /// Source port; the identifier for ICMP queries; the source key for GRE; 0 for other protocols.
    pub sport: u16,
    /// Destination port; type and code (`type << 8 | code`) for ICMP queries; the destination key for GRE; 0 for other protocols.
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

    /// Type and code of an ICMP query.
    pub const fn icmp_type_code(&self) -> (u8, u8) {
        ((self.dport >> 8) as u8, self.dport as u8)
    }
}

/// The tuple under which a packet is tracked, in the zone that holds for the original direction; `None` if it has none
/// (then it is INVALID): a transport header that is cut off, or ICMP over IPv6 and ICMPv6 over IPv4.
#[inline]
pub fn of(skb: &Skb<'_>) -> Option<CtTuple> {
    let (sport, dport) = match (skb.protocol, skb.is_v6(), &skb.l4) {
        (proto::TCP, _, L4::Tcp(..)) | (proto::UDP, _, L4::Udp(_)) => (skb.sport, skb.dport),
        (proto::ICMP, false, L4::Icmp(h)) | (proto::ICMPV6, true, L4::Icmpv6(h)) => {
            (skb.sport, u16::from(h.ty) << 8 | u16::from(h.code))
        }
        (proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6, ..) => return None,
        (gre::PROTOCOL, ..) => gre::keys(skb.l4_bytes)?,
        _ => (0, 0),
    };
    Some(CtTuple {
        src: skb.src.into(),
        dst: skb.dst.into(),
        sport,
        dport,
        zone: skb.zones[0],
        proto: skb.protocol,
        v6: skb.is_v6(),
    })
}

/// The tuple of what answers; the zone stays. `None` for ICMP messages that nothing answers.
pub const fn invert(t: &CtTuple) -> Option<CtTuple> {
    let (sport, dport) = match (t.proto, t.v6) {
        (proto::ICMP, false) | (proto::ICMPV6, true) => {
            let (ty, code) = t.icmp_type_code();
            match super::icmp::counterpart(ty, t.v6) {
                Some(ty) => (t.sport, (ty as u16) << 8 | code as u16),
                None => return None,
            }
        }
        _ => (t.dport, t.sport),
    };
    Some(CtTuple { src: t.dst, dst: t.src, sport, dport, zone: t.zone, proto: t.proto, v6: t.v6 })
}
