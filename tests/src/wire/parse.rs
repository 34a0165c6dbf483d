//! Frames taken apart, everything checked.

use super::build::{Arp, TcpSegment};
use super::{checksum, ethertype};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is wrong with a frame, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError(pub String);

/// A frame, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Receiver.
    pub dst_mac: [u8; 6],
    /// Sender.
    pub src_mac: [u8; 6],
    /// Content.
    pub net: Net,
}

/// Content of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// ARP.
    Arp(Arp),
    /// IPv4 or IPv6.
    Ip {
        /// Source.
        src: IpAddr,
        /// Destination.
        dst: IpAddr,
        /// TTL or hop limit.
        ttl: u8,
        /// Type of service or traffic class.
        tos: u8,
        /// Don't fragment; `true` for IPv6.
        dont_fragment: bool,
        /// Offset in bytes, more fragments, identification; `None` if the packet is whole.
        fragment: Option<(u16, bool, u32)>,
        /// Transport.
        l4: L4,
    },
}

/// Content of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp(TcpSegment),
    /// UDP.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Data.
        data: Vec<u8>,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        ty: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: u32,
        /// What follows.
        data: Vec<u8>,
    },
    /// Another protocol, or (a piece of) a fragment.
    Other(u8, Vec<u8>),
}

fn fail<T>(what: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError(what.into()))
}

fn b16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

fn b32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Takes a finished frame apart (see [`super::complete`]); every length and checksum must be right.
pub fn parse(frame: &[u8]) -> Result<Frame, ParseError> {
    if frame.len() < 14 {
        return fail("shorter than an Ethernet header");
    }
    let mac = |at: usize| core::array::from_fn(|i| frame[at + i]);
    let body = &frame[14..];
    let net = match b16(frame, 12) {
        ethertype::ARP => Net::Arp(parse_arp(body)?),
        ethertype::IPV4 => parse_v4(body)?,
        ethertype::IPV6 => parse_v6(body)?,
        n => return fail(format!("EtherType {n:#06x}")),
    };
    Ok(Frame { dst_mac: mac(0), src_mac: mac(6), net })
}

fn parse_arp(b: &[u8]) -> Result<Arp, ParseError> {
    if b.len() < 28 || b[..6] != [0, 1, 8, 0, 6, 4] {
        return fail("no ARP for IPv4 over Ethernet");
    }
    let mac = |at: usize| core::array::from_fn(|i| b[at + i]);
    let ip = |at: usize| core::array::from_fn(|i| b[at + i]);
    Ok(Arp { op: b16(b, 6), sender: (mac(8), ip(14)), target: (mac(18), ip(24)) })
}

fn parse_v4(b: &[u8]) -> Result<Net, ParseError> {
    if b.len() < 20 || b[0] >> 4 != 4 {
        return fail("no IPv4 header");
    }
    let ihl = usize::from(b[0] & 15) * 4;
    let total = usize::from(b16(b, 2));
    if ihl < 20 || total < ihl || b.len() < total {
        return fail(format!("IPv4 lengths: header {ihl}, total {total}, frame {}", b.len()));
    }
    if checksum::internet_checksum(&[&b[..ihl]]) != 0 {
        return fail("IPv4 header checksum");
    }
    let src = IpAddr::V4(Ipv4Addr::from_bits(b32(b, 12)));
    let dst = IpAddr::V4(Ipv4Addr::from_bits(b32(b, 16)));
    let frag = b16(b, 6);
    let (offset, more) = ((frag & 0x1fff) * 8, frag & 0x2000 != 0);
    let fragment = (offset != 0 || more).then_some((offset, more, u32::from(b16(b, 4))));
    let l4 = parse_l4(src, dst, b[9], &b[ihl..total], fragment.is_some())?;
    Ok(Net::Ip { src, dst, ttl: b[8], tos: b[1], dont_fragment: frag & 0x4000 != 0, fragment, l4 })
}

fn parse_v6(b: &[u8]) -> Result<Net, ParseError> {
    if b.len() < 40 || b[0] >> 4 != 6 {
        return fail("no IPv6 header");
    }
    let len = usize::from(b16(b, 4));
    if b.len() < 40 + len {
        return fail(format!("IPv6 payload of {len} bytes in a frame of {}", b.len()));
    }
    let addr = |at: usize| IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&b[at..at + 16]).expect("16 bytes")));
    let (src, dst) = (addr(8), addr(24));
    let (mut next, mut rest, mut fragment) = (b[6], &b[40..40 + len], None);
    if next == 44 {
        if rest.len() < 8 {
            return fail("fragment header cut short");
        }
        let o = b16(rest, 2);
        fragment = Some((o & !7, o & 1 != 0, b32(rest, 4)));
        next = rest[0];
        rest = &rest[8..];
    }
    let l4 = parse_l4(src, dst, next, rest, fragment.is_some())?;
    let tos = (b16(b, 0) >> 4) as u8;
    Ok(Net::Ip { src, dst, ttl: b[7], tos, dont_fragment: true, fragment, l4 })
}

fn parse_l4(src: IpAddr, dst: IpAddr, protocol: u8, b: &[u8], piece: bool) -> Result<L4, ParseError> {
    if piece {
        return Ok(L4::Other(protocol, b.to_vec()));
    }
    let sum = |what: &str| match checksum::transport_checksum(src, dst, protocol, b) {
        0 => Ok(()),
        s => fail(format!("{what} checksum is off by {s:#06x}")),
    };
    match protocol {
        6 => {
            if b.len() < 20 {
                return fail("TCP header cut short");
            }
            let doff = usize::from(b[12] >> 4) * 4;
            if doff < 20 || doff > b.len() {
                return fail(format!("TCP header of {doff} bytes in {}", b.len()));
            }
            sum("TCP")?;
            Ok(L4::Tcp(TcpSegment {
                src_port: b16(b, 0),
                dst_port: b16(b, 2),
                seq: b32(b, 4),
                ack: b32(b, 8),
                flags: b[13],
                window: b16(b, 14),
                urgent: b16(b, 18),
                options: b[20..doff].to_vec(),
                data: b[doff..].to_vec(),
            }))
        }
        17 => {
            if b.len() < 8 || usize::from(b16(b, 4)) != b.len() {
                return fail("UDP length");
            }
            match (b16(b, 6), src.is_ipv4()) {
                (0, true) => {}
                (0, false) => return fail("UDP over IPv6 without checksum"),
                _ => sum("UDP")?,
            }
            Ok(L4::Udp { src_port: b16(b, 0), dst_port: b16(b, 2), data: b[8..].to_vec() })
        }
        1 | 58 => {
            if b.len() < 8 {
                return fail("ICMP header cut short");
            }
            sum("ICMP")?;
            Ok(L4::Icmp { ty: b[0], code: b[1], rest: b32(b, 4), data: b[8..].to_vec() })
        }
        n => Ok(L4::Other(n, b.to_vec())),
    }
}
