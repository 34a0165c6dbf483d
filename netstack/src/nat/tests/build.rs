//! Packets built from scratch, with whole checksums.

use crate::conntrack::{Conn, Proto, Status, tuple};
use crate::packet::L4;
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::proto;
use crate::wire::{EtherType, icmp, ip, tcp, udp};
use core::net::IpAddr;

/// One's-complement sum, the plain way.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total >> 16 != 0 {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// What a packet is made of.
#[derive(Clone, Debug)]
pub struct Build {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    /// Ports; the identifier of ICMP messages that have one stands in `sport`.
    pub sport: u16,
    pub dport: u16,
    /// Type and code of ICMP messages.
    pub ty: (u8, u8),
    /// Control bits, sequence number and acknowledgement of TCP.
    pub tcp: (u8, u32, u32),
    pub data: Vec<u8>,
    /// IPv4 options, a multiple of four bytes; of IPv6 the number of eights of destination options.
    pub options: usize,
    pub hop_limit: u8,
    pub tos: u8,
    /// UDP without checksum.
    pub no_checksum: bool,
}

impl Build {
    pub fn new(proto: u8, src: (&str, u16), dst: (&str, u16)) -> Build {
        Build {
            src: src.0.parse().unwrap(),
            dst: dst.0.parse().unwrap(),
            proto,
            sport: src.1,
            dport: dst.1,
            ty: (if proto == proto::ICMPV6 { 128 } else { 8 }, 0),
            tcp: (2, 1, 0),
            data: b"data".to_vec(),
            options: 0,
            hop_limit: 64,
            tos: 0,
            no_checksum: false,
        }
    }

    pub fn is_error(&self) -> bool {
        match self.proto {
            proto::ICMP => matches!(self.ty.0, 3 | 4 | 5 | 11 | 12),
            proto::ICMPV6 => self.ty.0 < 128,
            _ => false,
        }
    }

    pub fn header_len(&self) -> usize {
        if self.src.is_ipv4() { 20 + self.options * 4 } else { 40 + self.options * 8 }
    }

    pub fn pseudo(&self, len: usize) -> Vec<u8> {
        let mut b = [octets(self.src), octets(self.dst)].concat();
        b.extend((len as u32).to_be_bytes());
        b.extend([0, self.proto]);
        b
    }

    /// Where the transport checksum stands.
    pub fn checksum_at(&self) -> Option<usize> {
        let at = match self.proto {
            proto::TCP => 16,
            proto::UDP => 6,
            proto::ICMP | proto::ICMPV6 => 2,
            136 => 6,
            _ => return None,
        };
        Some(self.header_len() + at)
    }

    fn l4(&self) -> Vec<u8> {
        let mut b = vec![];
        let ports = [self.sport.to_be_bytes(), self.dport.to_be_bytes()].concat();
        match self.proto {
            proto::TCP => {
                b.extend(ports);
                b.extend(self.tcp.1.to_be_bytes());
                b.extend(self.tcp.2.to_be_bytes());
                b.extend([0x50, self.tcp.0, 0x10, 0, 0, 0, 0, 0]);
            }
            proto::UDP => {
                b.extend(ports);
                b.extend((8 + self.data.len() as u16).to_be_bytes());
                b.extend([0, 0]);
            }
            proto::ICMP | proto::ICMPV6 => {
                b.extend([self.ty.0, self.ty.1, 0, 0]);
                b.extend(if self.is_error() { [0; 2] } else { self.sport.to_be_bytes() });
                b.extend([0, 7]);
            }
            // UDP-Lite: its ports are not translated.
            136 => b.extend([0, 1, 0, 2, 0, 0, 0, 0]),
            _ => {}
        }
        b.extend(&self.data);
        let pseudo = if self.proto == proto::ICMP { vec![] } else { self.pseudo(b.len()) };
        let checksum = !sum(&[&pseudo, &b]);
        match self.proto {
            proto::TCP => b[16..18].copy_from_slice(&checksum.to_be_bytes()),
            proto::UDP if self.no_checksum => {}
            proto::UDP => b[6..8].copy_from_slice(&(if checksum == 0 { 0xffff } else { checksum }).to_be_bytes()),
            proto::ICMP | proto::ICMPV6 => b[2..4].copy_from_slice(&checksum.to_be_bytes()),
            136 => b[6..8].copy_from_slice(&checksum.to_be_bytes()),
            _ => {}
        }
        b
    }

    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        let l4 = self.l4();
        let mut b = vec![];
        match self.src {
            IpAddr::V4(_) => {
                let n = self.header_len();
                b.extend([0x40 | (n / 4) as u8, self.tos]);
                b.extend(((n + l4.len()) as u16).to_be_bytes());
                b.extend([0x12, 0x34, 0x40, 0, self.hop_limit, self.proto, 0, 0]);
                b.extend(octets(self.src));
                b.extend(octets(self.dst));
                b.extend(vec![1; self.options * 4]);
                let checksum = !sum(&[&b]);
                b[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            IpAddr::V6(_) => {
                b.extend((6 << 28 | u32::from(self.tos) << 20 | 0xabcde).to_be_bytes());
                b.extend(((self.options * 8 + l4.len()) as u16).to_be_bytes());
                b.extend([if self.options > 0 { 60 } else { self.proto }, self.hop_limit]);
                b.extend(octets(self.src));
                b.extend(octets(self.dst));
                for i in 1..=self.options {
                    b.extend([if i < self.options { 60 } else { self.proto }, 0, 1, 4, 0, 0, 0, 0]);
                }
            }
        }
        b.extend(l4);
        b
    }
}

/// What the hooks see of a packet from the network.
pub fn skb_of(b: &[u8]) -> (Skb<'_>, usize) {
    let ethertype = if b[0] >> 4 == 4 { EtherType::Ipv4 } else { EtherType::Ipv6 };
    let h = ip::Header::parse(ethertype, b, b.len()).unwrap();
    let l4_bytes = &b[usize::from(h.header_len)..h.total_len as usize];
    let v6 = h.src.is_ipv6();
    let (l4, sport, dport) = match h.protocol {
        proto::TCP => {
            let t = tcp::Header::parse(l4_bytes, l4_bytes.len()).unwrap();
            (L4::Tcp(t, tcp::Options::parse(&l4_bytes[20..usize::from(t.header_len)])), t.src_port, t.dst_port)
        }
        proto::UDP => {
            let u = udp::Header::parse(l4_bytes, l4_bytes.len()).unwrap();
            (L4::Udp(u), u.src_port, u.dst_port)
        }
        proto::ICMP | proto::ICMPV6 => {
            let i = icmp::Header::parse(l4_bytes).unwrap();
            let query = matches!((v6, i.ty), (false, 0 | 8 | 13..=18) | (true, 128 | 129));
            (if v6 { L4::Icmpv6(i) } else { L4::Icmp(i) }, if query { i.ident() } else { 0 }, 0)
        }
        _ => (L4::Other, 0, 0),
    };
    let skb = Skb {
        input: None,
        output: None,
        src_mac: None,
        src: h.src,
        dst: h.dst,
        protocol: h.protocol,
        sport,
        dport,
        l4,
        l4_bytes,
        l4_len: h.payload_len(),
        len: h.total_len,
        tos: h.tos,
        hop_limit: h.hop_limit,
        mark: 0,
        zones: [0; 2],
        track: Default::default(),
        quoted: None,
        owner: None,
        cast: Default::default(),
        ip_bytes: &[],
        body: crate::edge::Payload::EMPTY,
        traced: false,
        altered: Default::default(),
    };
    (skb, usize::from(h.header_len))
}

/// The connection that a packet begins, of no protocol in particular.
pub fn conn_of(skb: &Skb<'_>) -> Conn {
    let original = tuple::of(skb).unwrap();
    Conn {
        tuples: [original, tuple::invert(&original).unwrap()],
        status: Status::default(),
        mark: 0,
        expires: Time::NEVER,
        proto: Proto::Generic,
        flow: None,
    }
}
