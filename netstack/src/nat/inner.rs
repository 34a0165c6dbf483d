//! The packet that an ICMP error quotes.

use crate::packet::L4;
use crate::skb::Skb;
use crate::tuple::{Tuple, proto};
use crate::wire::checksum::Delta;
use crate::wire::{icmp, ipv4, ipv6};
use core::net::IpAddr;

/// How much of a transport header must be quoted so that the packet can be translated: RFC 792 promises it.
const L4_LEAST: usize = 8;
/// With so much quoted of a TCP header the checksum is corrected, too.
const TCP_LEAST: usize = 20;

/// UDP-Lite, RFC 3828.
pub(super) const UDP_LITE: u8 = 136;

/// Whether ICMP messages of this type have an identifier: queries and their replies.
pub(super) const fn type_has_ident(v6: bool, ty: u8) -> bool {
    if v6 {
        matches!(ty, icmp::v6::ECHO_REQUEST | icmp::v6::ECHO_REPLY)
    } else {
        matches!(ty, icmp::v4::ECHO_REPLY | icmp::v4::ECHO_REQUEST | 13..=18)
    }
}

/// Whether the packet is an ICMP message with an identifier.
pub(super) const fn has_ident(skb: &Skb<'_>) -> bool {
    match skb.l4 {
        L4::Icmp(h) => type_has_ident(false, h.ty),
        L4::Icmpv6(h) => type_has_ident(true, h.ty),
        _ => false,
    }
}

/// Whether enough of the packet is quoted to translate it.
pub(super) fn is_translatable(skb: &Skb<'_>) -> bool {
    let quote = skb.l4_bytes.get(icmp::HEADER_LEN..).unwrap_or_default();
    match locate(quote, skb.is_v6()) {
        Some(Place { l4: Some((at, proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6 | UDP_LITE)), .. }) => {
            quote.len() >= at + L4_LEAST
        }
        Some(_) => true,
        None => false,
    }
}

/// Where things stand in a quoted packet.
struct Place {
    /// Source and destination address.
    addrs: (usize, usize),
    /// IPv4 header checksum.
    checksum: Option<usize>,
    /// Transport header and its protocol; `None` for a later fragment, which has none, and where extension headers were cut off.
    l4: Option<(usize, u8)>,
}

/// `None` if not even the fixed header is there.
fn locate(quote: &[u8], v6: bool) -> Option<Place> {
    let first = *quote.first()?;
    if v6 {
        return (quote.len() >= ipv6::HEADER_LEN && first >> 4 == 6).then(|| Place {
            addrs: (8, 24),
            checksum: None,
            l4: ipv6::transport(quote),
        });
    }
    let header_len = usize::from(first & 0xf) * 4;
    if quote.len() < ipv4::HEADER_LEN || first >> 4 != 4 || header_len < ipv4::HEADER_LEN {
        return None;
    }
    let later = u16::from_be_bytes([quote[6], quote[7]]) & 0x1fff != 0;
    Some(Place { addrs: (12, 16), checksum: Some(10), l4: (!later).then_some((header_len, quote[9])) })
}

/// Makes a quoted packet one between the ends of `to`, with right checksums as far as they are quoted, and returns what
/// that does to the checksum over the quote. A quote may be cut off anywhere; what is not there is not changed.
pub(super) fn rewrite(to: &Tuple, quote: &mut [u8]) -> Delta {
    let mut total = Delta::default();
    let Some(place) = locate(quote, to.src.addr.is_ipv6()) else { return total };
    let mut addresses = Delta::default();
    for (at, addr) in [(place.addrs.0, to.src.addr), (place.addrs.1, to.dst.addr)] {
        match addr {
            IpAddr::V4(a) => addresses.put(quote, at, a.octets()),
            IpAddr::V6(a) => addresses.put(quote, at, a.octets()),
        }
    }
    total.add(addresses);
    if let Some(at) = place.checksum {
        total.add(addresses.correct(quote, at));
    }
    if let Some((at, protocol)) = place.l4.filter(|&(at, protocol)| at < quote.len() && protocol == to.proto) {
        total.add(rewrite_l4(to, protocol, &mut quote[at..], addresses));
    }
    total
}

/// `pseudo` is what became of the addresses.
fn rewrite_l4(to: &Tuple, protocol: u8, l4: &mut [u8], pseudo: Delta) -> Delta {
    let mut total = Delta::default();
    match protocol {
        proto::TCP | proto::UDP => {
            total.put(l4, 0, to.src.port.to_be_bytes());
            total.put(l4, 2, to.dst.port.to_be_bytes());
        }
        proto::ICMP | proto::ICMPV6 if l4.first().is_some_and(|&ty| type_has_ident(protocol == proto::ICMPV6, ty)) => {
            total.put(l4, 4, to.src.port.to_be_bytes());
        }
        _ => {}
    }
    let mut sum = total;
    if protocol != proto::ICMP {
        sum.add(pseudo);
    }
    let corrected = match protocol {
        proto::TCP if l4.len() >= TCP_LEAST => sum.correct(l4, 16),
        proto::UDP if l4.len() >= L4_LEAST => sum.correct_udp(l4, 6),
        proto::ICMP | proto::ICMPV6 if l4.len() >= L4_LEAST => sum.correct(l4, 2),
        UDP_LITE if l4.len() >= L4_LEAST => sum.correct(l4, 6),
        _ => Delta::default(),
    };
    total.add(corrected);
    total
}
