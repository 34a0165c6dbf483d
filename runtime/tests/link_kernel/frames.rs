//! Frames by hand: built and taken apart independently of the code under test.

use hibernet_netstack::wire::Mac;
use std::net::IpAddr;

/// MAC address of our side.
pub const OURS: Mac = Mac([0x52, 0x55, 0x0a, 0, 2, 2]);

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// One's-complement sum of big-endian words.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut s: u64 = 0;
    for c in bytes.chunks(2) {
        s += u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0));
    }
    while s >> 16 != 0 {
        s = (s >> 16) + (s & 0xffff);
    }
    s as u16
}

fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Sum over the pseudo-header.
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u16 {
    sum(&[&octets(src), &octets(dst), &(len as u32).to_be_bytes(), &[0, proto]])
}

/// Ethernet and IP headers for a transport packet of `len` bytes.
pub fn headers(guest: Mac, src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut f = [&guest.0[..], &OURS.0[..]].concat();
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            f.extend(0x0800u16.to_be_bytes());
            let mut h = vec![0x45, 0];
            h.extend(((len + 20) as u16).to_be_bytes());
            h.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
            h.extend(s.octets());
            h.extend(d.octets());
            let c = !sum(&[&h]);
            h[10..12].copy_from_slice(&c.to_be_bytes());
            f.extend(h);
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            f.extend(0x86ddu16.to_be_bytes());
            f.extend([0x60, 0, 0, 0]);
            f.extend((len as u16).to_be_bytes());
            f.extend([proto, 64]);
            f.extend(s.octets());
            f.extend(d.octets());
        }
        _ => unreachable!("mixed families"),
    }
    f
}

/// An IP packet taken apart.
#[derive(Clone, Debug)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    /// Transport header and data.
    pub l4: Vec<u8>,
}

/// Takes a frame apart; `None` if it is no plain IP packet.
pub fn parse(frame: &[u8]) -> Option<Ip> {
    let addr4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
    let addr6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    match frame.get(12..14)? {
        [8, 0] => {
            let l4_at = 14 + usize::from(frame[14] & 15) * 4;
            let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            Some(Ip { src: addr4(26), dst: addr4(30), proto: frame[23], l4: frame[l4_at..end].to_vec() })
        }
        [0x86, 0xdd] => {
            let end = 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            Some(Ip { src: addr6(22), dst: addr6(38), proto: frame[20], l4: frame[54..end].to_vec() })
        }
        _ => None,
    }
}

impl Ip {
    /// Whether the transport checksum is whole and right.
    pub fn checksum_is_right(&self) -> bool {
        sum(&[&self.l4, &pseudo(self.src, self.dst, self.proto, self.l4.len()).to_be_bytes()[..]][..]) == 0xffff
            || self.l4.len() % 2 == 1 && {
                let padded = [&self.l4[..], &[0]].concat();
                sum(&[&padded, &pseudo(self.src, self.dst, self.proto, self.l4.len()).to_be_bytes()]) == 0xffff
            }
    }
}

/// The bytes of a stream that starts with `seed`.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
