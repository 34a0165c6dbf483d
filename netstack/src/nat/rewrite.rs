//! Putting a translation into the bytes of a packet.

use super::inner::{self, UDP_LITE};
use crate::skb::Skb;
use crate::tuple::proto;
use crate::verdict::DropReason;
use crate::wire::checksum::Delta;
use crate::wire::{icmp, ipv4, ipv6, tcp};
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

/// Makes the bytes of a packet say what `skb` says: addresses, hop limit, type of service, ports or identifier, segment size, and the
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
            if let (proto::TCP, Some(mss)) = (skb.protocol, skb.altered.mss) {
                put_mss(&mut sum, l4, mss.value);
            }
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

/// Length of the option that says the maximum segment size.
pub const MSS_LEN: usize = 4;

/// Puts a segment size into the option that says one.
fn put_mss(sum: &mut Delta, l4: &mut [u8], mss: u16) {
    let Some(at) = tcp::mss_option(l4) else { return };
    let [high, low] = mss.to_be_bytes();
    // Sums are of words at even places.
    match (at % 2, l4.get(at + 1), l4.get(at + 4)) {
        (0, _, _) => sum.put(l4, at + 2, [high, low]),
        (_, Some(&before), Some(&after)) => sum.put(l4, at + 1, [before, high, low, after]),
        _ => {}
    }
}

/// Gives a TCP header that we build, which has no option for the segment size, an empty one.
pub fn make_room_for_mss(l4: &mut Vec<u8>) {
    if l4.len() >= tcp::HEADER_LEN {
        l4.splice(tcp::HEADER_LEN..tcp::HEADER_LEN, [2, MSS_LEN as u8, 0, 0]);
        l4[12] = l4[12].wrapping_add(1 << 4);
    }
}

/// The same in the bytes of a packet: all but the last [`MSS_LEN`] of `packet` are the packet so far. Its lengths and checksums say so.
///
/// # Errors
/// [`DropReason::Truncated`] if the headers are not all there.
pub fn insert_mss(packet: &mut [u8], header_len: usize, checksum: L4Checksum) -> Result<(), DropReason> {
    let place = header_len + tcp::HEADER_LEN;
    let end = packet.len().checked_sub(MSS_LEN).filter(|end| *end >= place).ok_or(DropReason::Truncated)?;
    let v6 = packet[0] >> 4 == 6;
    let at = if v6 { 4 } else { 2 };
    let longer = |word: [u8; 2]| u16::from_be_bytes(word).wrapping_add(MSS_LEN as u16).to_be_bytes();
    let mut header = Delta::default();
    header.put(packet, at, longer([packet[at], packet[at + 1]]));
    if !v6 {
        header.correct(packet, 10);
    }
    packet.copy_within(place..end, place + MSS_LEN);
    let l4 = &mut packet[header_len..];
    l4[tcp::HEADER_LEN..tcp::HEADER_LEN + MSS_LEN].fill(0);
    let mut sum = Delta::default();
    sum.put(l4, tcp::HEADER_LEN, [2, MSS_LEN as u8]);
    sum.put(l4, 12, [l4[12].wrapping_add(1 << 4), l4[13]]);
    if checksum == L4Checksum::Complete {
        // The length of the pseudo-header.
        sum.put(&mut [0, 0], 0, (MSS_LEN as u16).to_be_bytes());
        sum.correct(l4, 16);
    }
    Ok(())
}
