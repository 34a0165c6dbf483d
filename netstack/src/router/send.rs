//! The way of a packet to the guest: hooks, IP header, checksum, Ethernet header.

use super::{Attach, Router, SCRATCH};
use crate::conntrack::{ConnId, Dir, Track};
use crate::edge::{Edge, Gso, GsoKind, LinkId, Payload, TxChecksum, TxFrame};
use crate::iptables::{Bulk, Iface};
use crate::nat;
use crate::packet::L4;
use crate::skb::{Altered, Cast, NewMss, Skb};
use crate::tuple::{Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::{EtherType, Mac, ethernet, icmp, ipv4, ipv6, tcp, udp};
use core::net::IpAddr;

/// A packet for the guest, without its IP header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    /// Where it came from: `host0` if it was received there, `None` if we made it.
    pub(crate) input: Option<Iface>,
    /// Addresses and ports, as rules see them.
    pub(crate) tuple: Tuple,
    pub(crate) hop_limit: u8,
    pub(crate) tos: u8,
    pub(crate) dont_fragment: bool,
    /// Transport header, its checksum zero, and possibly data.
    pub(crate) l4: &'a [u8],
    /// Data that follow.
    pub(crate) body: Payload,
    /// The body belongs to a received frame: it is neither released nor given away.
    pub(crate) keep_body: bool,
    /// Bytes of data per segment, if the packet is a super-segment. The link must be able to cut it.
    pub(crate) gso: Option<u16>,
    /// How its tracked connection is found.
    pub(crate) attach: Attach<'a>,
}

/// A packet that may leave.
struct Passed<'a> {
    skb: Skb<'a>,
    link: LinkId,
    /// Its addresses, ports, quoted packet or segment size are no longer what they were.
    rewritten: bool,
}

impl<'a> Outgoing<'a> {
    /// The packet as tables and tracking see it; `len` is that of the IP packet.
    fn skb(&self, len: u32) -> Result<Skb<'a>, DropReason> {
        let l4_len = self.l4.len() + self.body.len();
        let (l4, query) = match self.tuple.proto {
            proto::TCP => {
                let h = tcp::Header::parse(self.l4, l4_len)?;
                (L4::Tcp(h, tcp::Options::parse(&self.l4[tcp::HEADER_LEN..usize::from(h.header_len)])), None)
            }
            proto::UDP => (L4::Udp(udp::Header::parse(self.l4, l4_len)?), None),
            proto::ICMP => {
                let h = icmp::Header::parse(self.l4)?;
                (L4::Icmp(h), Some(h.is_query(false)))
            }
            proto::ICMPV6 => {
                let h = icmp::Header::parse(self.l4)?;
                (L4::Icmpv6(h), Some(h.is_query(true)))
            }
            _ => (L4::Other, None),
        };
        let (sport, dport) = match (l4, query) {
            (L4::Icmp(h) | L4::Icmpv6(h), Some(true)) => (h.ident(), 0),
            (_, Some(false)) => (0, 0),
            _ => (self.tuple.src.port, self.tuple.dst.port),
        };
        Ok(Skb {
            input: self.input,
            output: None,
            src_mac: None,
            src: self.tuple.src.addr,
            dst: self.tuple.dst.addr,
            protocol: self.tuple.proto,
            sport,
            dport,
            l4,
            l4_bytes: self.l4,
            l4_len: l4_len as u32,
            len,
            tos: self.tos,
            hop_limit: self.hop_limit,
            mark: 0,
            zones: [0; 2],
            track: Track::None,
            quoted: None,
            owner: None,
            cast: Cast::Unicast,
            ip_bytes: &[],
            body: self.body,
            traced: false,
            altered: Altered::default(),
        })
    }
}

/// Where the checksum stands in a transport header.
const fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        proto::TCP => Some(16),
        proto::UDP => Some(6),
        proto::ICMP | proto::ICMPV6 => Some(2),
        _ => None,
    }
}

impl Router {
    /// Sends a packet to the guest. A drop is counted here; the body's handle is gone in either case unless `keep_body`.
    /// Returns the tracked connection that it belongs to, and its direction there.
    pub(crate) fn send<E: Edge>(&mut self, edge: &mut E, out: &Outgoing<'_>) -> Result<Option<(ConnId, Dir)>, DropReason> {
        let sent = self.try_send(edge, None, out);
        if let Err(why) = sent {
            self.drop(why);
        }
        sent
    }

    /// As [`Router::send`], to a given station (or group of stations) of a link: one that has no address yet, or many.
    pub(crate) fn send_on<E: Edge>(
        &mut self,
        edge: &mut E,
        link: LinkId,
        mac: Mac,
        out: &Outgoing<'_>,
    ) -> Result<(), DropReason> {
        let sent = self.try_send(edge, Some((link, mac)), out);
        if let Err(why) = sent {
            self.drop(why);
        }
        sent.map(|_| ())
    }

    fn try_send<E: Edge>(
        &mut self,
        edge: &mut E,
        to: Option<(LinkId, Mac)>,
        out: &Outgoing<'_>,
    ) -> Result<Option<(ConnId, Dir)>, DropReason> {
        let Passed { skb, link, rewritten } =
            self.pass_hooks(to.map(|(link, _)| link), out, &*edge).map_err(|why| give_up(edge, out, why))?;
        let conn = skb.track.known();
        let offload = !skb.altered.whole_checksum || out.gso.is_some();
        let out = Outgoing { tuple: skb.tuple(), hop_limit: skb.hop_limit, tos: skb.tos, ..*out };
        if !rewritten {
            return self.deliver(edge, to, link, &out, offload).map(|()| conn);
        }
        // Taken out for the time of the call, for its memory.
        let mut l4 = core::mem::take(&mut self.rewritten);
        l4.clear();
        l4.extend_from_slice(out.l4);
        if let Some(NewMss { added: true, .. }) = skb.altered.mss {
            nat::make_room_for_mss(&mut l4);
        }
        let sent = match nat::rewrite_built(&skb, &mut l4) {
            Ok(()) => self.deliver(edge, to, link, &Outgoing { l4: &l4, ..out }, offload),
            Err(why) => Err(give_up(edge, &out, why)),
        };
        self.rewritten = l4;
        sent.map(|()| conn)
    }

    /// The hooks on a packet's way.
    fn pass_hooks<'a>(&mut self, to: Option<LinkId>, out: &Outgoing<'a>, bulk: &dyn Bulk) -> Result<Passed<'a>, DropReason> {
        let len = self.ip_header_len(out) + out.l4.len() + out.body.len();
        let mut skb = out.skb(len as u32)?;
        let before = skb.tuple();
        let passed = self.pass_hooks_with(&mut skb, to, out, bulk);
        self.trace_end(&skb, passed.map(drop));
        let link = passed?;
        let rewritten = skb.tuple() != before || skb.quoted.is_some() || skb.altered.mss.is_some();
        Ok(Passed { skb, link, rewritten })
    }

    fn pass_hooks_with(
        &mut self,
        skb: &mut Skb<'_>,
        to: Option<LinkId>,
        out: &Outgoing<'_>,
        bulk: &dyn Bulk,
    ) -> Result<LinkId, DropReason> {
        match out.input {
            Some(_) => self.pre_routing(skb, &out.attach, bulk)?,
            None => self.output(skb, &out.attach, bulk)?,
        }
        let Some(link) = to.or_else(|| self.route(skb.dst)) else {
            // For the router or the host itself: no rule led it to a guest, and nobody waits for it here.
            if self.addrs().way_to(skb.dst) == Some(Iface::Lo) {
                self.trace_route(skb, skb.output);
                self.loop_back(skb, &out.attach, bulk)?;
            } else {
                self.trace_route(skb, None);
                self.input(skb, bulk)?;
            }
            return Err(DropReason::NoService);
        };
        skb.output = Some(Iface::Link(link));
        self.trace_route(skb, skb.output);
        if out.input.is_some() {
            self.forward(skb, bulk)?;
        }
        self.post_routing(skb, bulk)?;
        Ok(link)
    }

    /// Sends a packet that passed the hooks, to a station of `link` if that is known. `offload`: the link may complete its checksum.
    fn deliver<E: Edge>(
        &mut self,
        edge: &mut E,
        to: Option<(LinkId, Mac)>,
        link: LinkId,
        out: &Outgoing<'_>,
        offload: bool,
    ) -> Result<(), DropReason> {
        let mac = to.map(|(_, mac)| mac).or_else(|| self.links[usize::from(link.0)].mac_of(out.tuple.dst.addr));
        let Some(mac) = mac else {
            let why = give_up(edge, out, DropReason::Unresolved);
            self.ask_neighbour(edge, link, out.tuple.dst.addr);
            return Err(why);
        };
        let ip_len = self.ip_header_len(out) + out.l4.len() + out.body.len();
        if out.gso.is_none() && ip_len > usize::from(self.links[usize::from(link.0)].info.mtu) {
            return self.send_fragments(edge, link, mac, out);
        }
        self.send_whole(edge, link, mac, out, offload)
    }

    fn ip_header_len(&self, out: &Outgoing<'_>) -> usize {
        if out.tuple.dst.addr.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
    }

    /// An identification for a packet that may be fragmented.
    pub(super) fn next_ident(&mut self) -> u32 {
        self.ident = self.ident.wrapping_add(1);
        self.ident
    }

    fn send_whole<E: Edge>(
        &mut self,
        edge: &mut E,
        link: LinkId,
        mac: Mac,
        out: &Outgoing<'_>,
        offload: bool,
    ) -> Result<(), DropReason> {
        let ip_len = self.ip_header_len(out);
        let l4_at = ethernet::HEADER_LEN + ip_len;
        let head_len = l4_at + out.l4.len();
        if head_len > SCRATCH {
            return Err(give_up(edge, out, DropReason::TooBig));
        }
        let ident = if out.dont_fragment { 0 } else { self.next_ident() as u16 };
        let info = self.links[usize::from(link.0)].info;
        let l4_len = out.l4.len() + out.body.len();
        let head = &mut self.scratch[..head_len];
        emit_ethernet(head, mac, self.cfg.gateway_mac, out.tuple.dst.addr);
        emit_ip(&mut head[ethernet::HEADER_LEN..], out, l4_len, ident);
        head[l4_at..].copy_from_slice(out.l4);
        let mut checksum = None;
        if let Some(at) = checksum_at(out.tuple.proto) {
            let pseudo = pseudo(out, l4_len);
            let offload = offload && info.checksum && matches!(out.tuple.proto, proto::TCP | proto::UDP);
            let value = if offload {
                checksum = Some(TxChecksum { start: l4_at as u16, offset: at as u16 });
                pseudo.fold()
            } else {
                pseudo.bytes(out.l4).word(edge.checksum(out.body)).finish_for(out.tuple.proto)
            };
            head[l4_at + at..l4_at + at + 2].copy_from_slice(&value.to_be_bytes());
        }
        let gso = out.gso.map(|size| Gso { kind: gso_kind(out), size });
        self.transmit(edge, link, head_len, out.body, out.keep_body, checksum, gso)
    }

    /// Hands the frame whose head stands in the scratch buffer to the link.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn transmit<E: Edge>(
        &mut self,
        edge: &mut E,
        link: LinkId,
        head_len: usize,
        body: Payload,
        keep_body: bool,
        checksum: Option<TxChecksum>,
        gso: Option<Gso>,
    ) -> Result<(), DropReason> {
        edge.transmit(link, TxFrame { head: &self.scratch[..head_len], body, keep_body, checksum, gso })?;
        self.stats.tx_frames += 1;
        self.stats.tx_bytes += (head_len + body.len()) as u64;
        Ok(())
    }

    /// Sends a frame that is no IP packet of the router's (ARP).
    pub(crate) fn send_raw<E: Edge>(&mut self, edge: &mut E, link: LinkId, dst: Mac, ethertype: EtherType, data: &[u8]) {
        let n = ethernet::HEADER_LEN + data.len();
        if n > SCRATCH {
            self.drop(DropReason::TooBig);
            return;
        }
        ethernet::Header { dst, src: self.cfg.gateway_mac, ethertype }.emit(&mut self.scratch[..]);
        self.scratch[ethernet::HEADER_LEN..n].copy_from_slice(data);
        if let Err(why) = self.transmit(edge, link, n, Payload::EMPTY, false, None, None) {
            self.drop(why);
        }
    }

    /// Sends a datagram in fragments: RFC 791 section 3.2, RFC 8200 section 4.5. The transport checksum is whole.
    pub(super) fn send_fragments<E: Edge>(
        &mut self,
        edge: &mut E,
        link: LinkId,
        mac: Mac,
        out: &Outgoing<'_>,
    ) -> Result<(), DropReason> {
        let v6 = !out.tuple.dst.addr.is_ipv4();
        let l4_len = out.l4.len() + out.body.len();
        let mtu = usize::from(self.links[usize::from(link.0)].info.mtu);
        let ip_len = self.ip_header_len(out) + if v6 { ipv6::FRAGMENT_LEN } else { 0 };
        let l4_at = ethernet::HEADER_LEN + ip_len;
        let room = mtu.saturating_sub(ip_len) & !7;
        if out.tuple.proto == proto::TCP || l4_len > 65_535 || room <= out.l4.len() || l4_at + out.l4.len() > SCRATCH {
            return Err(give_up(edge, out, DropReason::TooBig));
        }
        let ident = self.next_ident();
        let sum = pseudo(out, l4_len).bytes(out.l4).word(edge.checksum(out.body)).finish_for(out.tuple.proto);
        let mut sent = Ok(());
        let (mut at, mut first) = (0, true);
        while at < l4_len && sent.is_ok() {
            let n = room.min(l4_len - at);
            let more = at + n < l4_len;
            let head_extra = if first { out.l4.len() } else { 0 };
            let head_len = l4_at + head_extra;
            let body = out.body.slice((at + head_extra).saturating_sub(out.l4.len()), n - head_extra);
            let head = &mut self.scratch[..head_len];
            emit_ethernet(head, mac, self.cfg.gateway_mac, out.tuple.dst.addr);
            let ip = &mut head[ethernet::HEADER_LEN..];
            match (out.tuple.src.addr, out.tuple.dst.addr) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4::Header {
                    header_len: ipv4::HEADER_LEN as u8,
                    tos: out.tos,
                    total_len: (ipv4::HEADER_LEN + n) as u16,
                    ident: ident as u16,
                    dont_fragment: false,
                    more_fragments: more,
                    fragment_offset: at as u16,
                    ttl: out.hop_limit,
                    protocol: out.tuple.proto,
                    src,
                    dst,
                }
                .emit(ip),
                _ => {
                    emit_v6(ip, out, ipv6::FRAGMENT_LEN + n, ipv6::FRAGMENT);
                    ipv6::emit_fragment(&mut ip[ipv6::HEADER_LEN..], out.tuple.proto, at as u16, more, ident);
                }
            }
            if first {
                head[l4_at..].copy_from_slice(out.l4);
                if let Some(c) = checksum_at(out.tuple.proto) {
                    head[l4_at + c..l4_at + c + 2].copy_from_slice(&sum.to_be_bytes());
                }
            }
            let keep = out.keep_body || more;
            sent = self.transmit(edge, link, head_len, body, keep, None, None);
            if sent.is_err() && more && !out.keep_body {
                edge.release(out.body);
            }
            at += n;
            first = false;
        }
        sent
    }
}

/// Releases what will not be sent.
fn give_up<E: Edge>(edge: &mut E, out: &Outgoing<'_>, why: DropReason) -> DropReason {
    if !out.keep_body {
        edge.release(out.body);
    }
    why
}

fn emit_ethernet(head: &mut [u8], dst: Mac, src: Mac, to: IpAddr) {
    let ethertype = if to.is_ipv4() { EtherType::Ipv4 } else { EtherType::Ipv6 };
    ethernet::Header { dst, src, ethertype }.emit(head);
}

fn emit_ip(b: &mut [u8], out: &Outgoing<'_>, l4_len: usize, ident: u16) {
    match (out.tuple.src.addr, out.tuple.dst.addr) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4::Header {
            header_len: ipv4::HEADER_LEN as u8,
            tos: out.tos,
            total_len: (ipv4::HEADER_LEN + l4_len).min(65_535) as u16,
            ident,
            dont_fragment: out.dont_fragment,
            more_fragments: false,
            fragment_offset: 0,
            ttl: out.hop_limit,
            protocol: out.tuple.proto,
            src,
            dst,
        }
        .emit(b),
        _ => emit_v6(b, out, l4_len, out.tuple.proto),
    }
}

fn emit_v6(b: &mut [u8], out: &Outgoing<'_>, payload_len: usize, protocol: u8) {
    if let (IpAddr::V6(src), IpAddr::V6(dst)) = (out.tuple.src.addr, out.tuple.dst.addr) {
        ipv6::Header {
            header_len: ipv6::HEADER_LEN as u16,
            traffic_class: out.tos,
            flow_label: 0,
            payload_len: payload_len.min(65_535) as u16,
            hop_limit: out.hop_limit,
            protocol,
            src,
            dst,
            fragment: None,
        }
        .emit(b);
    }
}

fn pseudo(out: &Outgoing<'_>, l4_len: usize) -> Sum {
    match out.tuple.proto {
        proto::ICMP => Sum::default(),
        p => Sum::default().pseudo(out.tuple.src.addr, out.tuple.dst.addr, p, l4_len as u32),
    }
}

fn gso_kind(out: &Outgoing<'_>) -> GsoKind {
    match (out.tuple.proto, out.tuple.dst.addr) {
        (proto::TCP, IpAddr::V4(_)) => GsoKind::Tcp4,
        (proto::TCP, IpAddr::V6(_)) => GsoKind::Tcp6,
        _ => GsoKind::Udp,
    }
}
