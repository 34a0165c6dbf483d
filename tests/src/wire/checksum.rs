//! The Internet checksum (RFC 1071), the slow way.

use core::net::IpAddr;

/// Checksum over a list of byte strings, each of which but the last must be of even length.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            sum += u32::from(word);
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
    }
    !(sum as u16)
}

/// Checksum of a transport segment with the pseudo-header of its family; without one for ICMP over IPv4.
/// Over a segment whose checksum is right the result is 0.
pub fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let len = segment.len() as u32;
    match (src, dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => internet_checksum(&[segment]),
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let tail = [0, protocol, (len >> 8) as u8, len as u8];
            internet_checksum(&[&s.octets(), &d.octets(), &tail, segment])
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            internet_checksum(&[&s.octets(), &d.octets(), &len.to_be_bytes(), &[0, 0, 0, protocol], segment])
        }
        _ => panic!("addresses of two families"),
    }
}
