//! The packet that an ICMP error quotes.

use super::gre;
use super::proto::Invalid;
use super::tuple::{self, CtTuple};
use crate::packet::L4;
use crate::skb::Skb;
use crate::tuple::proto;
use crate::wire::{be16, icmp, ipv4, ipv6};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Extension headers that can stand before the transport header, RFC 8200.
mod ext {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTH: u8 = 51;
    pub const NO_NEXT: u8 = 59;
    pub const DEST_OPTS: u8 = 60;
}

/// What is known of a quoted packet. As much of it may be missing as its sender's node saw fit: the transport header
/// up to the ports is there, the rest may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Tuple of the quoted packet, in the direction in which it went.
    pub tuple: CtTuple,
    /// Tuple by which its connection is found: of a packet that answers the quoted one, which is the direction of the
    /// error.
    pub expected: CtTuple,
    /// Where its transport header starts in [`Skb::l4_bytes`], or their length if nothing of it is there (which can be
    /// for protocols without ports only). Its IP header starts at 8.
    pub l4_at: usize,
}

impl Quote {
    /// Reads the packet that an ICMP error quotes. As Linux, it does not verify checksums of what is quoted (routers
    /// may have changed it), walks over any extension headers, and refuses fragments but the first.
    pub fn of(skb: &Skb<'_>) -> Result<Quote, Invalid> {
        let inner = skb.l4_bytes.get(icmp::HEADER_LEN..).ok_or(Invalid::Quote)?;
        let (src, dst, protocol, header_len) = match skb.l4 {
            L4::Icmp(_) => v4(inner),
            L4::Icmpv6(_) => v6(inner),
            _ => None,
        }
        .ok_or(Invalid::Quote)?;
        let header_len = header_len.min(inner.len());
        let l4 = &inner[header_len..];
        let (sport, dport) = match (protocol, skb.is_v6()) {
            (proto::TCP | proto::UDP, _) if l4.len() >= 4 => (be16(l4, 0), be16(l4, 2)),
            (proto::ICMP, false) | (proto::ICMPV6, true) if l4.len() >= icmp::HEADER_LEN => (be16(l4, 4), be16(l4, 0)),
            (proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6, _) => return Err(Invalid::Quote),
            (gre::PROTOCOL, _) => gre::keys(l4).ok_or(Invalid::Quote)?,
            _ => (0, 0),
        };
        let zone = skb.zones[0];
        let tuple = CtTuple { src: src.into(), dst: dst.into(), sport, dport, zone, proto: protocol, v6: skb.is_v6() };
        let expected = tuple::invert(&tuple).ok_or(Invalid::Quote)?;
        Ok(Quote { tuple, expected, l4_at: icmp::HEADER_LEN + header_len })
    }
}

/// Source, destination, protocol and header length of a quoted IPv4 packet.
fn v4(b: &[u8]) -> Option<(IpAddr, IpAddr, u8, usize)> {
    if b.len() < ipv4::HEADER_LEN || be16(b, 6) & 0x1fff != 0 {
        return None;
    }
    let addr = |at: usize| IpAddr::from(Ipv4Addr::new(b[at], b[at + 1], b[at + 2], b[at + 3]));
    let header_len = usize::from(b[0] & 0xf) * 4;
    (ipv4::HEADER_LEN..=b.len()).contains(&header_len).then(|| (addr(12), addr(16), b[9], header_len))
}

/// The same of a quoted IPv6 packet.
fn v6(b: &[u8]) -> Option<(IpAddr, IpAddr, u8, usize)> {
    if b.len() < ipv6::HEADER_LEN {
        return None;
    }
    let addr = |at: usize| <[u8; 16]>::try_from(&b[at..at + 16]).ok().map(|a| IpAddr::from(Ipv6Addr::from(a)));
    let (mut next, mut at) = (b[6], ipv6::HEADER_LEN);
    loop {
        let unit = match next {
            ext::HOP_BY_HOP | ext::ROUTING | ext::DEST_OPTS => 8,
            ext::AUTH => 4,
            ext::FRAGMENT => 0,
            ext::NO_NEXT => return None,
            _ => break,
        };
        let h = b.get(at..)?;
        let &[following, len, ..] = h else { return None };
        at += match unit {
            0 if h.len() < 4 || be16(h, 2) & 0xfff8 != 0 => return None,
            0 => ipv6::FRAGMENT_LEN,
            4 => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        next = following;
    }
    Some((addr(8)?, addr(24)?, next, at))
}
