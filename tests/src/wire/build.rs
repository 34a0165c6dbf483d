//! Frames from their fields.

use super::{checksum, ethertype};
use core::net::IpAddr;

/// An Ethernet frame, padded to the 60 bytes that a wire would carry at least.
pub fn ethernet(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat();
    if f.len() < 60 {
        f.resize(60, 0);
    }
    f
}

/// An IP header to be; its fields can be set to anything.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Identification (IPv4, and of fragments of either).
    pub ident: u32,
    /// Don't fragment (IPv4).
    pub dont_fragment: bool,
    /// IPv4 options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number and bytes of each, the first byte (next header) is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Added to the IPv4 header checksum; not 0: it is wrong.
    pub checksum_error: u16,
}

impl Ip {
    /// A plain header.
    pub fn new(src: IpAddr, dst: IpAddr) -> Self {
        Ip {
            src,
            dst,
            ttl: 64,
            tos: 0,
            ident: 1,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            checksum_error: 0,
        }
    }

    /// The EtherType of the packet.
    pub fn ethertype(&self) -> u16 {
        if self.src.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 }
    }

    /// The packet with `payload`.
    pub fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.with_fragment(protocol, payload, None)
    }

    /// The packet in a frame.
    pub fn frame(&self, dst_mac: [u8; 6], src_mac: [u8; 6], protocol: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(dst_mac, src_mac, self.ethertype(), &self.packet(protocol, payload))
    }

    /// A fragment: `payload` at byte `offset` (a multiple of eight).
    pub fn fragment(&self, protocol: u8, payload: &[u8], offset: u16, more: bool) -> Vec<u8> {
        self.with_fragment(protocol, payload, Some((offset, more)))
    }

    /// The packet in fragments of at most `size` payload bytes (a multiple of eight).
    pub fn fragments(&self, protocol: u8, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(size);
        let piece = |(i, c): (usize, &[u8])| self.fragment(protocol, c, (i * size) as u16, i + 1 < count);
        payload.chunks(size).enumerate().map(piece).collect()
    }

    fn with_fragment(&self, protocol: u8, payload: &[u8], fragment: Option<(u16, bool)>) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let ihl = 20 + self.options.len();
                let total = (ihl + payload.len()) as u16;
                let (offset, more) = fragment.unwrap_or((0, false));
                let df = self.dont_fragment && fragment.is_none();
                let frag = (offset / 8) | (u16::from(more) << 13) | (u16::from(df) << 14);
                let mut h = vec![0x40 | (ihl / 4) as u8, self.tos];
                h.extend(total.to_be_bytes());
                h.extend((self.ident as u16).to_be_bytes());
                h.extend(frag.to_be_bytes());
                h.extend([self.ttl, protocol, 0, 0]);
                h.extend(src.octets());
                h.extend(dst.octets());
                h.extend(&self.options);
                let sum = checksum::internet_checksum(&[&h]).wrapping_add(self.checksum_error);
                h[10..12].copy_from_slice(&sum.to_be_bytes());
                h.extend(payload);
                h
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut chain = self.extensions.clone();
                if let Some((offset, more)) = fragment {
                    let mut f = vec![0, 0];
                    f.extend((offset | u16::from(more)).to_be_bytes());
                    f.extend(self.ident.to_be_bytes());
                    chain.push((44, f));
                }
                let mut h = (6u32 << 28 | u32::from(self.tos) << 20).to_be_bytes().to_vec();
                let len = chain.iter().map(|(_, b)| b.len()).sum::<usize>() + payload.len();
                h.extend((len as u16).to_be_bytes());
                h.push(chain.first().map_or(protocol, |(n, _)| *n));
                h.push(self.ttl);
                h.extend(src.octets());
                h.extend(dst.octets());
                for i in 0..chain.len() {
                    let at = h.len();
                    h.extend(&chain[i].1);
                    h[at] = chain.get(i + 1).map_or(protocol, |(n, _)| *n);
                }
                h.extend(payload);
                h
            }
            _ => panic!("addresses of two families"),
        }
    }
}

/// A TCP segment to be; its fields can be set to anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpSegment {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Control bits, see [`super::flags`].
    pub flags: u8,
    /// Window as on the wire.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; padded to a multiple of four bytes with zeroes.
    pub options: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
}

impl TcpSegment {
    /// The segment with a right checksum.
    pub fn bytes(&self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut b = Vec::with_capacity(20 + options.len() + self.data.len());
        b.extend(self.src_port.to_be_bytes());
        b.extend(self.dst_port.to_be_bytes());
        b.extend(self.seq.to_be_bytes());
        b.extend(self.ack.to_be_bytes());
        b.push((((20 + options.len()) / 4) << 4) as u8);
        b.push(self.flags);
        b.extend(self.window.to_be_bytes());
        b.extend([0, 0]);
        b.extend(self.urgent.to_be_bytes());
        b.extend(&options);
        b.extend(&self.data);
        let sum = checksum::transport_checksum(src, dst, 6, &b);
        b[16..18].copy_from_slice(&sum.to_be_bytes());
        b
    }
}

/// A UDP datagram with a right checksum.
pub fn udp(src: IpAddr, dst: IpAddr, src_port: u16, dst_port: u16, data: &[u8]) -> Vec<u8> {
    let mut b = Vec::with_capacity(8 + data.len());
    b.extend(src_port.to_be_bytes());
    b.extend(dst_port.to_be_bytes());
    b.extend(((8 + data.len()) as u16).to_be_bytes());
    b.extend([0, 0]);
    b.extend(data);
    let sum = match checksum::transport_checksum(src, dst, 17, &b) {
        0 => 0xffff,
        s => s,
    };
    b[6..8].copy_from_slice(&sum.to_be_bytes());
    b
}

/// An ICMP or ICMPv6 message with a right checksum; the addresses are needed for the latter.
pub fn icmp(src: IpAddr, dst: IpAddr, ty: u8, code: u8, rest: u32, data: &[u8]) -> Vec<u8> {
    let mut b = vec![ty, code, 0, 0];
    b.extend(rest.to_be_bytes());
    b.extend(data);
    let protocol = if src.is_ipv4() { 1 } else { 58 };
    let sum = checksum::transport_checksum(src, dst, protocol, &b);
    b[2..4].copy_from_slice(&sum.to_be_bytes());
    b
}

/// An echo request of the family of the addresses.
pub fn echo(src: IpAddr, dst: IpAddr, ident: u16, seq: u16, data: &[u8]) -> Vec<u8> {
    let ty = if src.is_ipv4() { 8 } else { 128 };
    icmp(src, dst, ty, 0, u32::from(ident) << 16 | u32::from(seq), data)
}

/// The fields of an ARP packet (Ethernet, IPv4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub op: u16,
    /// Sender: MAC and address.
    pub sender: ([u8; 6], [u8; 4]),
    /// Target: MAC and address.
    pub target: ([u8; 6], [u8; 4]),
}

/// An ARP packet.
pub fn arp(a: Arp) -> Vec<u8> {
    let mut b = vec![0, 1, 8, 0, 6, 4];
    b.extend(a.op.to_be_bytes());
    b.extend(a.sender.0);
    b.extend(a.sender.1);
    b.extend(a.target.0);
    b.extend(a.target.1);
    b
}
