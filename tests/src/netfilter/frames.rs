//! What is sent, said so that it can be sent to both routers though their answers may differ.

use super::{ROUTER_MAC, Side};
use crate::wire::{self, Ip, TcpSegment};
use core::net::IpAddr;

/// A packet to be sent. What refers to an earlier frame is filled in from what the router at hand made of that.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where it is sent from.
    pub from: Side,
    /// Addresses and ports.
    pub ends: Ends,
    /// Other fields of the IP header.
    pub ip: IpFields,
    /// What it carries.
    pub body: Body,
}

/// Between whom.
#[derive(Clone, Debug)]
pub enum Ends {
    /// As said: source and destination; ports are 0 for what has none.
    Said((IpAddr, u16), (IpAddr, u16)),
    /// Against the direction of the frame that came out at step `.0`.
    Answer(usize),
    /// As the frame sent at step `.0`.
    Again(usize),
    /// From this address to the source of the frame that came out at step `.0`, as errors go.
    From(IpAddr, usize),
}

/// IP header.
#[derive(Clone, Debug, Default)]
pub struct IpFields {
    /// Hop limit; 0 stands for 64.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// IPv4 options.
    pub options: Vec<u8>,
    /// IPv6 extension headers.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Sent in pieces of so many bytes.
    pub pieces: Option<usize>,
}

/// Content of a packet.
#[derive(Clone, Debug)]
pub enum Body {
    /// TCP.
    Tcp(Tcp),
    /// UDP with so many bytes.
    Udp(usize),
    /// UDP over IPv4 without a checksum.
    UdpUnsummed(usize),
    /// An ICMP message: type, code; the identifier is the source port of a query, the destination port of a reply.
    Icmp {
        /// Type.
        ty: u8,
        /// Code.
        code: u8,
        /// Sequence number.
        seq: u16,
        /// Number of bytes that follow.
        data: usize,
    },
    /// An ICMP error.
    Error {
        /// Type.
        ty: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: u32,
        /// What it is about.
        quote: Quote,
        /// How much of that, in bytes from the transport header on; `None` for all.
        len: Option<usize>,
    },
    /// Anything: protocol and bytes.
    Raw(u8, Vec<u8>),
    /// A body with a checksum that is off by so much.
    Broken(Box<Body>, u16),
    /// A body of which the last bytes are cut off.
    Cut(Box<Body>, usize),
}

/// What an ICMP error is about.
#[derive(Clone, Copy, Debug)]
pub enum Quote {
    /// What came out at a step.
    Seen(usize),
    /// What was sent at a step.
    Sent(usize),
}

/// A TCP segment without ports.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// See [`wire::flags`].
    pub flags: u8,
    /// Window as on the wire.
    pub window: u16,
    /// Options.
    pub options: Vec<u8>,
    /// Number of bytes of data.
    pub data: usize,
}

/// The four bytes after the checksum of a query or reply.
pub fn icmp_rest(id: u16, seq: u16) -> u32 {
    u32::from(id) << 16 | u32::from(seq)
}

/// What happened at a step, as the bytes of IP packets.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// What was sent (the whole datagram, if it went in pieces).
    pub sent: Option<(Side, Vec<u8>)>,
    /// What came out.
    pub out: Vec<(Side, Vec<u8>)>,
}

impl Packet {
    /// The IP packet as this router is to get it; `None` if what it refers to did not come out.
    pub(super) fn resolve(&self, step: usize, past: &[Exchange]) -> Option<(Side, Vec<u8>)> {
        let came = |n: usize| past.get(n)?.out.first();
        let (from, (src, sport), (dst, dport)) = match &self.ends {
            Ends::Said(src, dst) => (self.from, *src, *dst),
            Ends::Answer(n) => {
                let (side, p) = came(*n)?;
                let (src, dst) = ends(p)?;
                (*side, dst, src)
            }
            Ends::Again(n) => {
                let (side, p) = past.get(*n)?.sent.as_ref()?;
                let (src, dst) = ends(p)?;
                (*side, src, dst)
            }
            Ends::From(a, n) => {
                let (side, p) = came(*n)?;
                // Nobody else is behind that side.
                let here = [super::node(*side, a.is_ipv6()), super::beyond(*side, a.is_ipv6())].contains(a);
                let target = ends(p).filter(|_| here)?.0;
                (*side, (*a, 0), target)
            }
        };
        let (protocol, bytes) = self.body.bytes((src, sport), (dst, dport), past)?;
        let ip = Ip {
            ttl: if self.ip.ttl == 0 { 64 } else { self.ip.ttl },
            tos: self.ip.tos,
            // No two packets share one, and none is 0, as those are that the kernel makes.
            ident: step as u32 + 1,
            dont_fragment: self.ip.pieces.is_none(),
            options: self.ip.options.clone(),
            extensions: self.ip.extensions.clone(),
            ..Ip::new(src, dst)
        };
        Some((from, ip.packet(protocol, &bytes)))
    }

    /// The frames in which an IP packet from [`Packet::resolve`] is sent.
    pub(super) fn frames(&self, side: Side, packet: &[u8]) -> Vec<Vec<u8>> {
        let v6 = packet[0] >> 4 == 6;
        let kind = if v6 { wire::ethertype::IPV6 } else { wire::ethertype::IPV4 };
        let frame = |p: &[u8]| [&ROUTER_MAC[..], &side.mac(), &kind.to_be_bytes(), p].concat();
        let Some(size) = self.ip.pieces else { return vec![frame(packet)] };
        let (head, protocol) = header(packet);
        let (src, dst) = addresses(packet);
        let ident = if v6 { 1 } else { u32::from(u16::from_be_bytes([packet[4], packet[5]])) };
        let (ttl, tos) = if v6 { (packet[7], packet[0] << 4 | packet[1] >> 4) } else { (packet[8], packet[1]) };
        let ip = Ip { ident, ttl, tos, ..Ip::new(src, dst) };
        ip.fragments(protocol, &packet[head..], size).iter().map(|p| frame(p)).collect()
    }
}

impl Body {
    fn bytes(&self, src: (IpAddr, u16), dst: (IpAddr, u16), past: &[Exchange]) -> Option<(u8, Vec<u8>)> {
        let v6 = src.0.is_ipv6();
        let icmp = if v6 { 58 } else { 1 };
        Some(match self {
            Body::Tcp(t) => {
                let segment = TcpSegment {
                    src_port: src.1,
                    dst_port: dst.1,
                    seq: t.seq,
                    ack: t.ack,
                    flags: t.flags,
                    window: t.window,
                    urgent: 0,
                    options: t.options.clone(),
                    data: fill(t.data),
                };
                (6, segment.bytes(src.0, dst.0))
            }
            Body::Udp(n) => (17, wire::udp(src.0, dst.0, src.1, dst.1, &fill(*n))),
            Body::UdpUnsummed(n) => {
                let mut b = wire::udp(src.0, dst.0, src.1, dst.1, &fill(*n));
                b[6..8].fill(0);
                (17, b)
            }
            Body::Icmp { ty, code, seq, data } => {
                let id = if src.1 != 0 { src.1 } else { dst.1 };
                (icmp, wire::icmp(src.0, dst.0, *ty, *code, icmp_rest(id, *seq), &fill(*data)))
            }
            Body::Error { ty, code, rest, quote, len } => {
                let about = match quote {
                    Quote::Seen(n) => &past.get(*n)?.out.first()?.1,
                    Quote::Sent(n) => &past.get(*n)?.sent.as_ref()?.1,
                };
                let end = len.map_or(about.len(), |n| about.len().min(header(about).0 + n)).min(if v6 { 1232 } else { 548 });
                (icmp, wire::icmp(src.0, dst.0, *ty, *code, *rest, &about[..end]))
            }
            Body::Raw(protocol, bytes) => (*protocol, bytes.clone()),
            Body::Broken(body, by) => {
                let (protocol, mut b) = body.bytes(src, dst, past)?;
                let at = match protocol {
                    6 => 16,
                    17 => 6,
                    _ => 2,
                };
                if let Some(&[high, low]) = b.get(at..at + 2) {
                    // In the checksum's own arithmetic, so that it is off by the same amount whatever it was.
                    let sum = u32::from(u16::from_be_bytes([high, low])) + u32::from(*by);
                    let sum = (sum + (sum >> 16)) as u16;
                    b[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                }
                (protocol, b)
            }
            Body::Cut(body, n) => {
                let (protocol, mut b) = body.bytes(src, dst, past)?;
                b.truncate(b.len().saturating_sub(*n));
                (protocol, b)
            }
        })
    }
}

/// Data of a packet.
fn fill(n: usize) -> Vec<u8> {
    (0..n).map(|i| b"0123456789abcdef"[i % 16]).collect()
}

/// Where the transport header begins and which it is; extension headers are passed over.
pub(super) fn header(p: &[u8]) -> (usize, u8) {
    if p[0] >> 4 == 4 {
        return (usize::from(p[0] & 15) * 4, p[9]);
    }
    let (mut at, mut next) = (40, p[6]);
    while matches!(next, 0 | 43 | 44 | 60 | 135) && p.len() >= at + 8 {
        let len = if next == 44 { 8 } else { (usize::from(p[at + 1]) + 1) * 8 };
        next = p[at];
        at += len;
    }
    (at.min(p.len()), next)
}

/// Source and destination of an IP packet.
pub(super) fn addresses(p: &[u8]) -> (IpAddr, IpAddr) {
    let a = |at: usize| -> IpAddr {
        if p[0] >> 4 == 4 {
            <[u8; 4]>::try_from(&p[at..at + 4]).expect("four bytes").into()
        } else {
            <[u8; 16]>::try_from(&p[at..at + 16]).expect("sixteen bytes").into()
        }
    };
    if p[0] >> 4 == 4 { (a(12), a(16)) } else { (a(8), a(24)) }
}

/// Ends of an IP packet: the identifier of an ICMP query stands as source port, that of a reply as destination port.
fn ends(p: &[u8]) -> Option<((IpAddr, u16), (IpAddr, u16))> {
    let (src, dst) = addresses(p);
    let (at, protocol) = header(p);
    let b = p.get(at..at + 8)?;
    let n = |i: usize| u16::from_be_bytes([b[i], b[i + 1]]);
    let (sport, dport) = match protocol {
        6 | 17 => (n(0), n(2)),
        1 | 58 => match b[0] {
            0 | 14 | 16 | 18 | 129 => (0, n(4)),
            _ => (n(4), 0),
        },
        _ => (0, 0),
    };
    Some(((src, sport), (dst, dport)))
}
