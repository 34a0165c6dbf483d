//! Putting a translation into the bytes of a packet.

use super::inner::{self, UDP_LITE};
use crate::skb::Skb;
use crate::tuple::proto;
use crate::verdict::DropReason;
use crate::wire::checksum::Delta;
use crate::wire::{icmp, ipv4, ipv6};
use core::net::IpAddr;

/// What stands in the checksum field of a transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Checksum {
    /// The checksum of the whole packet.
    Complete,
    /// The sum of the pseudo-header, to which the link adds the rest (offloaded segments).
    Partial,
    /// Nothing yet: whoever sends the packet computes it.
    Later,
}

/// Makes the bytes of a packet say what `skb` says: addresses, hop limit, type of service, ports or identifier, and the
/// packet that an ICMP error quotes. Checksums are corrected for what changed (RFC 1624), so a wrong one stays wrong; a UDP
/// checksum of zero ("none") stays zero. `packet` starts with the IP header, which is `header_len` bytes long with
/// options and extension headers, and contains the transport header.
///
/// # Errors
/// [`DropReason::Truncated`] if the headers are not all there.
pub fn rewrite(skb: &Skb<'_>, packet: &mut [u8], header_len: usize, checksum: L4Checksum) -> Result<(), DropReason> {
    let addresses = rewrite_ip(skb, packet, header_len)?;
    rewrite_l4(skb, &mut packet[header_len..], addresses, checksum)
}

/// As [`rewrite`], for the IP header only. Returns what became of the addresses.
pub(crate) fn rewrite_ip(skb: &Skb<'_>, packet: &mut [u8], header_len: usize) -> Result<Delta, DropReason> {
    let v6 = skb.is_v6();
    let least = if v6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
    if header_len < least || packet.len() < header_len {
        return Err(DropReason::Truncated);
    }
    let ip = &mut packet[..header_len];
    let mut addresses = Delta::default();
    match (skb.src, skb.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            addresses.put(ip, 12, src.octets());
            addresses.put(ip, 16, dst.octets());
            let mut header = addresses;
            header.put(ip, 0, [ip[0], skb.tos]);
            header.put(ip, 8, [skb.hop_limit, ip[9]]);
            header.correct(ip, 10);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            addresses.put(ip, 8, src.octets());
            addresses.put(ip, 24, dst.octets());
            ip[0] = ip[0] & 0xf0 | skb.tos >> 4;
            ip[1] = ip[1] & 0xf | skb.tos << 4;
            ip[7] = skb.hop_limit;
        }
        _ => return Err(DropReason::Malformed),
    }
    Ok(addresses)
}

/// As [`rewrite`] for a packet that we build: `l4` is its transport header, and what an ICMP error quotes. Its own checksum is
/// computed when it is sent.
///
/// # Errors
/// [`DropReason::Truncated`] if the header is not all there.
pub fn rewrite_built(skb: &Skb<'_>, l4: &mut [u8]) -> Result<(), DropReason> {
    rewrite_l4(skb, l4, Delta::default(), L4Checksum::Later)
}

/// `addresses` is what became of the pseudo-header.
fn rewrite_l4(skb: &Skb<'_>, l4: &mut [u8], addresses: Delta, checksum: L4Checksum) -> Result<(), DropReason> {
    let v6 = skb.is_v6();
    let (least, at, pseudo) = match skb.protocol {
        proto::TCP => (20, 16, true),
        proto::UDP => (8, 6, true),
        proto::ICMP if !v6 => (icmp::HEADER_LEN, 2, false),
        proto::ICMPV6 if v6 => (icmp::HEADER_LEN, 2, true),
        // Its checksum covers the addresses, too. Its ports are not tracked.
        UDP_LITE if l4.len() >= 8 => (8, 6, true),
        _ => return Ok(()),
    };
    if l4.len() < least {
        return Err(DropReason::Truncated);
    }
    let mut sum = Delta::default();
    match skb.protocol {
        proto::TCP | proto::UDP => {
            sum.put(l4, 0, skb.sport.to_be_bytes());
            sum.put(l4, 2, skb.dport.to_be_bytes());
        }
        UDP_LITE => {}
        _ if inner::type_has_ident(v6, l4[0]) => sum.put(l4, 4, skb.sport.to_be_bytes()),
        _ => {
            if let Some(to) = &skb.quoted {
                sum.add(inner::rewrite(to, &mut l4[icmp::HEADER_LEN..]));
            }
        }
    }
    match checksum {
        L4Checksum::Later => {}
        L4Checksum::Partial => {
            if pseudo {
                addresses.correct_partial(l4, at);
            }
        }
        L4Checksum::Complete => {
            if pseudo {
                sum.add(addresses);
            }
            if skb.protocol == proto::UDP {
                sum.correct_udp(l4, at);
            } else {
                sum.correct(l4, at);
            }
        }
    }
    Ok(())
}
