//! From one guest link to another, as a router forwards.

use super::{Attach, Outgoing, Router, SCRATCH};
use crate::edge::{Edge, Gso, LinkId, RxChecksum, TxChecksum};
use crate::iptables::Iface;
use crate::nat::{self, L4Checksum};
use crate::packet::{L4, Packet};
use crate::skb::Skb;
use crate::tuple::proto;
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::icmp::IcmpError;
use crate::wire::{EtherType, Mac, ethernet};
use core::net::IpAddr;

impl Router {
    /// Whether a packet would go back over the link that it came from, which only stations of one shared network ask for.
    pub(crate) fn is_hairpin(&self, from: LinkId, dst: IpAddr) -> bool {
        self.links[usize::from(from.0)].net().is_none() && self.route(dst) == Some(from)
    }

    /// Forwards a packet that has passed FORWARD; `skb` is what the hooks made of it.
    pub(crate) fn forward_to_link<E: Edge>(
        &mut self,
        edge: &mut E,
        p: &Packet<'_>,
        mut skb: Skb<'_>,
        link: LinkId,
    ) -> Result<(), DropReason> {
        let info = self.links[usize::from(link.0)].info;
        let segment = p.gso.map(|g| g.size);
        let len = segment.map_or(p.ip.total_len, |s| p.ip.total_len - p.payload.len + u32::from(s));
        let fits = len <= u32::from(info.mtu);
        if !fits && (p.ip.dont_fragment || segment.is_some()) {
            self.icmp_error_about(edge, p, IcmpError::TooBig(info.mtu), &skb);
            return Err(DropReason::TooBig);
        }
        let carries = match p.l4 {
            L4::Udp(_) => info.uso && info.checksum,
            _ => info.tso.carries(skb.dst.is_ipv6()) && info.checksum,
        };
        if segment.is_some() && !carries {
            return Err(DropReason::TooBig);
        }
        self.post_routing(&mut skb, &*edge).map_err(|stop| self.stopped(edge, p, &skb, stop))?;
        let Some(mac) = self.links[usize::from(link.0)].mac_of(skb.dst) else {
            self.ask_neighbour(edge, link, skb.dst);
            return Err(DropReason::Unresolved);
        };
        if fits { self.forward_whole(edge, p, &skb, link, mac) } else { self.forward_pieces(edge, p, &skb, link, mac) }
    }

    /// The packet with its own headers: one hop less, translated.
    fn forward_whole<E: Edge>(
        &mut self,
        edge: &mut E,
        p: &Packet<'_>,
        skb: &Skb<'_>,
        link: LinkId,
        mac: Mac,
    ) -> Result<(), DropReason> {
        let info = self.links[usize::from(link.0)].info;
        let ip_len = usize::from(p.ip.header_len);
        let own = p.head.len().min(ip_len + p.datagram.len());
        let more = if skb.altered.mss.is_some_and(|new| new.added) { nat::MSS_LEN } else { 0 };
        let n = ethernet::HEADER_LEN + own + more;
        if n > SCRATCH || own < ip_len {
            return Err(DropReason::TooBig);
        }
        let head = &mut self.scratch[..n];
        let ethertype = if skb.is_v6() { EtherType::Ipv6 } else { EtherType::Ipv4 };
        ethernet::Header { dst: mac, src: self.cfg.gateway_mac, ethertype }.emit(head);
        let ip = &mut head[ethernet::HEADER_LEN..];
        ip[..own].copy_from_slice(&p.head[..own]);
        // A checksum that nobody has verified may be one that was never completed: it is made anew.
        let fresh = p.checksum == RxChecksum::Trusted;
        let state = if fresh { L4Checksum::Later } else { L4Checksum::Complete };
        if more > 0 {
            nat::insert_mss(ip, ip_len, state)?;
        }
        if p.is_invalid() && skb.altered.mss.is_none() {
            // INVALID packets are not translated: nothing behind the IP header changes.
            nat::rewrite_ip(skb, ip, ip_len)?;
        } else {
            nat::rewrite(skb, ip, ip_len, state)?;
        }
        let body = p.datagram.slice(own - ip_len, p.datagram.len());
        let mut checksum = None;
        let at = match p.l4 {
            _ if p.is_invalid() => None,
            L4::Tcp(..) => Some(16),
            L4::Udp(h) if h.checksum != 0 => Some(6),
            _ => None,
        };
        if let Some(at) = at.filter(|_| fresh) {
            let pseudo = Sum::default().pseudo(skb.src, skb.dst, p.ip.protocol, skb.l4_len);
            let l4 = &mut ip[ip_len..];
            let value = if info.checksum && !(skb.altered.whole_checksum && p.gso.is_none()) {
                checksum = Some(TxChecksum { start: (ethernet::HEADER_LEN + ip_len) as u16, offset: at as u16 });
                pseudo.fold()
            } else {
                l4[at..at + 2].fill(0);
                // The head ends at an even byte, or there is no body.
                pseudo.bytes(l4).word(edge.checksum(body)).finish_for(p.ip.protocol)
            };
            l4[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        let gso = p.gso.map(|g| Gso { ..g });
        self.transmit(edge, link, n, body, true, checksum, gso)
    }

    /// The packet in fragments, under headers of our own.
    fn forward_pieces<E: Edge>(
        &mut self,
        edge: &mut E,
        p: &Packet<'_>,
        skb: &Skb<'_>,
        link: LinkId,
        mac: Mac,
    ) -> Result<(), DropReason> {
        let ip_len = usize::from(p.ip.header_len);
        let l4_len = (p.datagram.len() - p.payload.len()).min(p.head.len().saturating_sub(ip_len));
        let mut l4 = [0; 64];
        let l4 = l4.get_mut(..l4_len).ok_or(DropReason::TooBig)?;
        l4.copy_from_slice(&p.head[ip_len..ip_len + l4_len]);
        nat::rewrite_built(skb, l4)?;
        // It is computed anew.
        match p.ip.protocol {
            proto::UDP => l4[6..8].fill(0),
            proto::ICMP | proto::ICMPV6 => l4[2..4].fill(0),
            _ => {}
        }
        let out = Outgoing {
            input: Some(Iface::Link(p.link)),
            tuple: skb.tuple(),
            hop_limit: skb.hop_limit,
            tos: skb.tos,
            dont_fragment: false,
            l4,
            body: p.payload,
            keep_body: true,
            gso: None,
            attach: Attach::LookUp,
        };
        self.send_fragments(edge, link, mac, &out)
    }
}
