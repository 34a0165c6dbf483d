//! A received IP packet: parsed headers and an opaque payload.

use crate::conntrack::{ConnId, CtInfo, Track};
use crate::edge::{Gso, LinkId, Payload, PayloadStore, RxChecksum};
use crate::iptables::Iface;
use crate::skb::{Altered, Cast, Skb};
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::{Mac, WireError, icmp, ip, tcp, udp};
use core::net::IpAddr;

/// Transport header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// TCP, with the options of its header.
    Tcp(tcp::Header, tcp::Options),
    /// UDP.
    Udp(udp::Header),
    /// ICMP over IPv4.
    Icmp(icmp::Header),
    /// ICMP over IPv6.
    Icmpv6(icmp::Header),
    /// A protocol that the stack does not know.
    Other,
}

/// A packet from the guest whose IP header was found right.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The link it came from.
    pub link: LinkId,
    /// The sender's MAC address.
    pub src_mac: Mac,
    /// To how many stations the frame was addressed.
    pub cast: Cast,
    /// IP header.
    pub ip: ip::Header,
    /// Transport header.
    pub l4: L4,
    /// The packet's bytes from the IP header on, as far as they were copied for parsing. At least all headers.
    pub head: &'a [u8],
    /// Everything behind the IP header.
    pub datagram: Payload,
    /// What follows the transport header (all of `datagram` for an unknown protocol).
    pub payload: Payload,
    /// Segmentation left undone.
    pub gso: Option<Gso>,
    /// What the link says of the transport checksum.
    pub checksum: RxChecksum,
    /// Source and destination as received; those of `ip` may have been translated since.
    pub received: (IpAddr, IpAddr),
    /// Its tracked connection, and how it belongs to it.
    pub conn: Option<(ConnId, CtInfo)>,
    /// What is wrong with its transport header or checksum. Such a packet is INVALID for tracking and may be forwarded, as Linux
    /// does; whoever looks into it drops it for this reason.
    pub fault: Option<DropReason>,
}

impl<'a> Packet<'a> {
    /// Parses the transport header of an IP packet that is no fragment. `head` starts with the IP header, `datagram`
    /// is what follows it. Verifies the transport checksum unless the link vouches for it. What is wrong is said in
    /// [`Packet::fault`]; the header is there if its fixed part is.
    #[allow(clippy::too_many_arguments)]
    pub fn parse(
        link: LinkId,
        src_mac: Mac,
        ip: ip::Header,
        head: &'a [u8],
        datagram: Payload,
        trust: RxChecksum,
        gso: Option<Gso>,
        store: &impl PayloadStore,
    ) -> Packet<'a> {
        let l4_head = head.get(usize::from(ip.header_len)..).unwrap_or_default();
        let l4_head = &l4_head[..l4_head.len().min(datagram.len())];
        let mut fault = None;
        let mut wrong = |why: WireError| fault = Some(why.into());
        // Header, its length, the packet's length behind IP, whether there is a checksum.
        let all = datagram.len();
        let (l4, l4_len, len, checked) = match (ip.protocol, ip.src.is_ipv4()) {
            (proto::TCP, _) => match tcp::Header::parse(l4_head, all) {
                Ok(h) => {
                    let options = tcp::Options::parse(&l4_head[tcp::HEADER_LEN..usize::from(h.header_len)]);
                    (L4::Tcp(h, options), usize::from(h.header_len), all, true)
                }
                Err(why) => {
                    wrong(why);
                    let l4 = tcp::Header::read(l4_head).map_or(L4::Other, |h| L4::Tcp(h, tcp::Options::default()));
                    (l4, 0, all, false)
                }
            },
            (proto::UDP, v4) => match udp::Header::parse(l4_head, all) {
                Ok(h) => {
                    // RFC 8200 section 8.1: over IPv6 the checksum is not optional.
                    (L4::Udp(h), udp::HEADER_LEN, usize::from(h.len), h.checksum != 0 || !v4)
                }
                Err(why) => {
                    wrong(why);
                    (udp::Header::read(l4_head).map_or(L4::Other, L4::Udp), 0, all, false)
                }
            },
            (proto::ICMP, true) | (proto::ICMPV6, false) => match icmp::Header::parse(l4_head) {
                Ok(h) if ip.src.is_ipv4() => (L4::Icmp(h), icmp::HEADER_LEN, all, true),
                Ok(h) => (L4::Icmpv6(h), icmp::HEADER_LEN, all, true),
                Err(why) => {
                    wrong(why);
                    (L4::Other, 0, all, false)
                }
            },
            _ => (L4::Other, 0, all, false),
        };
        if checked && trust == RxChecksum::Unverified {
            let unsummed = matches!(l4, L4::Udp(udp::Header { checksum: 0, .. }));
            let sum = match l4 {
                L4::Icmp(_) => Sum::default(),
                _ => Sum::default().pseudo(ip.src, ip.dst, ip.protocol, len as u32),
            };
            if unsummed || sum.word(store.checksum(datagram.slice(0, len))).finish() != 0 {
                fault = Some(DropReason::BadL4Checksum);
            }
        }
        let payload = datagram.slice(l4_len, len - l4_len);
        let received = (ip.src, ip.dst);
        let cast = Cast::Unicast;
        Packet { link, src_mac, cast, ip, l4, head, datagram, payload, gso, checksum: trust, received, conn: None, fault }
    }

    /// Whether so little of the transport header is there that no rule could test it. (Linux drops such a packet at the first rule that
    /// asks for ports, flags or types.)
    pub fn is_untestable(&self) -> bool {
        self.fault.is_some() && matches!(self.l4, L4::Other)
    }

    /// Whether tracking finds it INVALID without a look at connections. A UDP packet without a checksum is not, even over IPv6.
    pub fn is_invalid(&self) -> bool {
        self.fault
            .is_some_and(|why| !(why == DropReason::BadL4Checksum && matches!(self.l4, L4::Udp(udp::Header { checksum: 0, .. }))))
    }

    /// Who talks to whom. The ports of an echo are its identifier (on the requester's side) and 0; those of an unknown protocol 0.
    pub fn tuple(&self) -> Tuple {
        let (sport, dport) = match self.l4 {
            L4::Tcp(h, _) => (h.src_port, h.dst_port),
            L4::Udp(h) => (h.src_port, h.dst_port),
            L4::Icmp(h) | L4::Icmpv6(h) => (h.ident(), 0),
            L4::Other => (0, 0),
        };
        Tuple { src: Endpoint::new(self.ip.src, sport), dst: Endpoint::new(self.ip.dst, dport), proto: self.ip.protocol }
    }

    /// The packet as tables and tracking see it.
    pub fn skb(&self) -> Skb<'a> {
        let (sport, dport) = match self.l4 {
            L4::Tcp(h, _) => (h.src_port, h.dst_port),
            L4::Udp(h) => (h.src_port, h.dst_port),
            L4::Icmp(h) | L4::Icmpv6(h) if h.is_query(self.ip.src.is_ipv6()) => (h.ident(), 0),
            _ => (0, 0),
        };
        let (ip_bytes, l4_bytes) = self.head.split_at(usize::from(self.ip.header_len).min(self.head.len()));
        let l4_bytes = &l4_bytes[..l4_bytes.len().min(self.datagram.len())];
        Skb {
            input: Some(Iface::Link(self.link)),
            output: None,
            src_mac: Some(self.src_mac),
            src: self.ip.src,
            dst: self.ip.dst,
            protocol: self.ip.protocol,
            sport,
            dport,
            l4: self.l4,
            l4_bytes,
            l4_len: self.datagram.len,
            len: self.ip.total_len,
            tos: self.ip.tos,
            hop_limit: self.ip.hop_limit,
            mark: 0,
            zones: [0; 2],
            track: Track::None,
            quoted: None,
            owner: None,
            cast: self.cast,
            ip_bytes,
            body: self.datagram.slice(l4_bytes.len(), self.datagram.len()),
            traced: false,
            altered: Altered::default(),
        }
    }

    /// The packet as the hooks made it: addresses, ports and identifier, type of service and segment size are those of `skb`, the hop limit is
    /// what it would have to be on arrival for the one of `skb` after `hops` of ours. Its bytes stay as received.
    #[must_use]
    pub fn passed(&self, skb: &Skb<'_>, hops: u8) -> Packet<'a> {
        let mut p = *self;
        (p.ip.src, p.ip.dst) = (skb.src, skb.dst);
        p.ip.tos = skb.tos;
        p.ip.hop_limit = skb.hop_limit.saturating_add(hops);
        match &mut p.l4 {
            L4::Tcp(h, options) => {
                (h.src_port, h.dst_port) = (skb.sport, skb.dport);
                options.mss = skb.altered.mss.map_or(options.mss, |new| Some(new.value));
            }
            L4::Udp(h) => (h.src_port, h.dst_port) = (skb.sport, skb.dport),
            L4::Icmp(h) | L4::Icmpv6(h) if h.is_query(self.ip.src.is_ipv6()) => {
                h.rest = u32::from(skb.sport) << 16 | h.rest & 0xffff;
            }
            _ => {}
        }
        if let Track::Known { id, info, .. } = skb.track {
            p.conn = Some((id, info));
        }
        p
    }
}
