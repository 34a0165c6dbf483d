//! The stack: where calls from outside come in and are handed on.

use crate::config::{Behind, Config, LinkNet};
use crate::edge::{Edge, LinkId, LinkInfo, Ready, RxFrame, SockId, Token, TokenKind};
use crate::gateway::Gateway;
use crate::iptables::Iface;
use crate::packet::{L4, Packet};
use crate::rng::Rng;
use crate::router::{Attach, Router};
use crate::skb::{Cast, Skb};
use crate::stats::Stats;
use crate::time::Time;
use crate::translate::Translator;
use crate::translate::fragments::Reassembly;
use crate::tuple::{Endpoint, proto};
use crate::verdict::DropReason;
use crate::wire::icmp::IcmpError;
use crate::wire::{EtherType, Mac, ethernet, ip, ipv6};
use crate::workers::{AsFrame, LEADER, Whose};
use core::net::IpAddr;
use core::time::Duration;

/// A network stack. See the crate's documentation.
#[derive(Debug)]
pub struct Stack {
    pub(crate) router: Router,
    pub(crate) gateway: Gateway,
    reassembly: Reassembly,
    pub(crate) translator: Translator,
}

impl Stack {
    /// A stack without links. `seed` must be secret and never used twice.
    pub fn new(cfg: Config, seed: [u8; 16]) -> Self {
        let mut stack = Stack::without_rules(cfg, seed);
        stack.router.load_own_rules();
        stack
    }

    /// A stack that has not even our own rules yet.
    pub(crate) fn without_rules(cfg: Config, seed: [u8; 16]) -> Self {
        let mut rng = Rng::new(seed);
        let translator = Translator::new(&cfg.limits, &mut rng);
        let gateway = Gateway::new(&cfg);
        let reassembly = Reassembly::new(&cfg.limits, &mut rng);
        Stack { router: Router::new(cfg, rng), gateway, reassembly, translator }
    }

    /// Adds a guest link; links are numbered from 0 in the order of their adding.
    pub fn add_link(&mut self, info: LinkInfo) -> LinkId {
        self.add_named_link(info, Behind::Configured, String::new())
    }

    /// Adds a guest link that has a network of its own. Links with and without one route among each other.
    pub fn add_link_with(&mut self, info: LinkInfo, net: LinkNet) -> LinkId {
        self.add_named_link(info, Behind::Net(net), String::new())
    }

    /// Adds a guest link under the first number that is free. Guests find each other by their names over DNS.
    pub fn add_named_link(&mut self, info: LinkInfo, behind: Behind, name: String) -> LinkId {
        self.router.add_link(info, behind, name)
    }

    /// Whether the guest of the configuration, whose published ports are, is behind a link.
    pub fn is_configured_guest_on(&self, link: LinkId) -> bool {
        self.router.links.get(usize::from(link.0)).is_some_and(|l| l.behind == Behind::Configured)
    }

    /// Removes a guest link: its flows are reset, its tracked connections forgotten, and its number is free.
    pub fn remove_link<E: Edge>(&mut self, now: Time, link: LinkId, edge: &mut E) {
        self.router.now = now;
        for token in self.translator.behind(link) {
            self.translator.reset(&mut self.router, token, edge);
        }
        self.reassembly.forget(&mut self.router, link);
        self.gateway.link_down(&mut self.router, link);
        self.router.forget_connections(link);
        self.router.remove_link(link);
    }

    /// Tells the stack the addresses of the host's interfaces (loopback need not be among them). To be called at start
    /// and whenever they change.
    pub fn set_host_addresses(&mut self, mut addrs: Vec<IpAddr>) {
        addrs.iter_mut().for_each(|a| *a = a.to_canonical());
        addrs.sort_unstable();
        addrs.dedup();
        self.router.host_addrs = addrs;
        self.router.forget_verdicts();
    }

    /// Tells the stack that a link can do other things than it could, as when a guest's driver has come or gone. Ignored for a link that is not there.
    pub fn set_link_info(&mut self, link: LinkId, info: LinkInfo) {
        if let Some(l) = self.router.links.get_mut(usize::from(link.0)) {
            l.info = LinkInfo { guest_mac: info.guest_mac.or(l.info.guest_mac), ..info };
        }
    }

    /// Tells the stack what the wall clock says: time since 1970. Rules that ask for the time of day go by it; to be called again when clocks drift
    /// apart, and after a restore.
    pub fn set_wall_clock(&mut self, now: Time, since_1970: Duration) {
        self.router.wall = Some(since_1970.saturating_sub(Duration::from_nanos(now.as_nanos())));
    }

    /// Tells the stack the host's resolvers, at start by configuration and whenever they change.
    pub fn set_resolvers(&mut self, resolvers: Vec<IpAddr>) {
        self.router.cfg.resolvers = resolvers;
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.router.cfg
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.router.stats
    }

    /// Live flows: TCP, UDP, ICMP.
    pub fn flow_counts(&self) -> (usize, usize, usize) {
        self.translator.counts()
    }

    /// Actions to take when a link came up: the gateway makes itself known and asks for the guest.
    pub fn link_up<E: Edge>(&mut self, now: Time, link: LinkId, edge: &mut E) {
        self.router.now = now;
        self.gateway.link_up(&mut self.router, link, edge);
    }

    /// A link whose other end was away is up again: whoever is there now hears of the gateway. `away` is for how long flows went on without it, if there
    /// may be any; they try again at once. [`Stack::flush`] is to follow.
    pub fn link_back<E: Edge>(&mut self, now: Time, link: LinkId, away: Option<Duration>, edge: &mut E) {
        self.link_up(now, link, edge);
        if let Some(away) = away {
            self.translator.tcp.thaw(&mut self.router, away, edge);
        }
    }

    /// A link takes frames that it refused for want of room: flows that wait for it try again, a few at a time. Whether there were any; then [`Stack::flush`]
    /// is to follow, and this may be called again.
    pub fn link_has_room<E: Edge>(&mut self, now: Time, link: LinkId, edge: &mut E) -> bool {
        self.router.now = now;
        self.translator.tcp.link_has_room(&mut self.router, link, edge)
    }

    /// Whether flows wait for a link to take frames.
    pub fn waits_for_link(&self) -> bool {
        self.translator.tcp.waits_for_link()
    }

    /// A frame from a guest.
    pub fn receive<E: Edge>(&mut self, now: Time, frame: &RxFrame<'_>, edge: &mut E) {
        self.router.now = now;
        self.router.stats.rx_frames += 1;
        self.router.stats.rx_bytes += frame.frame.len() as u64;
        let done = self.ethernet(frame, false, edge);
        self.end_of_received(done);
    }

    /// A frame has gone, or is dropped.
    pub(crate) fn end_of_received(&mut self, done: Result<(), DropReason>) {
        self.router.trace_end_of_received(done);
        if let Err(why) = done {
            self.router.drop(why);
        }
    }

    /// Something happened at a host socket.
    pub fn socket_ready<E: Edge>(&mut self, now: Time, token: Token, ready: Ready, edge: &mut E) {
        self.router.now = now;
        match token.kind() {
            TokenKind::Dns => self.gateway.dns_ready(&mut self.router, token, ready, edge),
            _ => self.translator.socket_ready(&mut self.router, token, ready, edge),
        }
    }

    /// A connection was accepted at a published TCP port: `peer` is the client, `local` the address it connected to. Rules of
    /// the nat table lead it to the guest. The stack owns the socket from now on.
    pub fn accepted<E: Edge>(&mut self, now: Time, sock: SockId, peer: Endpoint, local: Endpoint, edge: &mut E) {
        self.router.now = now;
        self.translator.accepted(&mut self.router, sock, peer, local, edge);
    }

    /// A published UDP port's socket was opened: its datagrams are announced for `Token::new(TokenKind::UdpListener, n, 0)`,
    /// where `n` is the value returned.
    pub fn udp_listening(&mut self, sock: SockId, local: Endpoint) -> Token {
        self.translator.udp_listening(sock, local)
    }

    /// Deadlines passed.
    pub fn tick<E: Edge>(&mut self, now: Time, edge: &mut E) {
        self.router.now = now;
        while let Some((token, queued)) = self.router.timers.pop(now) {
            match token.kind() {
                TokenKind::Dns | TokenKind::Gateway => self.gateway.timer(&mut self.router, token, queued, edge),
                TokenKind::Ip => self.reassembly.timer(&mut self.router, token, queued, edge),
                TokenKind::Conntrack => self.router.reap(token, queued),
                _ => self.translator.timer(&mut self.router, token, queued, edge),
            }
        }
    }

    /// Ends a batch of calls: what was put off (acknowledgements, datagrams gathered for one call) is sent.
    /// Returns whether work is left that must not wait for an event; then the caller looks for events without waiting and calls again.
    pub fn flush<E: Edge>(&mut self, now: Time, edge: &mut E) -> bool {
        self.router.now = now;
        let more = self.translator.flush(&mut self.router, edge);
        self.close_untracked(edge);
        self.router.schedule_reaper();
        edge.flush();
        more
    }

    /// When [`Stack::tick`] wants to be called at the latest; `None` if nothing waits.
    pub fn next_deadline(&self) -> Option<Time> {
        self.router.timers.next()
    }

    /// `handed`: another worker found that it is this one's.
    pub(crate) fn ethernet<E: Edge>(&mut self, frame: &RxFrame<'_>, handed: bool, edge: &mut E) -> Result<(), DropReason> {
        if self.router.reads_payload() && !edge.make_private(frame.frame) {
            return Err(DropReason::HostResources);
        }
        let eth = ethernet::Header::parse(frame.head)?;
        if eth.dst != self.router.cfg.gateway_mac && !eth.dst.is_multicast() {
            return Err(DropReason::NotOurMac);
        }
        let head = &frame.head[ethernet::HEADER_LEN..];
        let len = frame.frame.len() - ethernet::HEADER_LEN;
        let as_frame = AsFrame { head: &[], body: frame.frame };
        let leaders = self.router.place.me != LEADER;
        match eth.ethertype {
            EtherType::Arp if leaders => {
                return self.hand_over(LEADER, frame.link, as_frame, frame.checksum, frame.gso, edge);
            }
            EtherType::Arp => return self.gateway.arp(&mut self.router, frame.link, head, edge),
            EtherType::Ipv4 if self.router.cfg.v4.is_none() => return Err(DropReason::FamilyDisabled),
            EtherType::Ipv6 if self.router.cfg.v6.is_none() => return Err(DropReason::FamilyDisabled),
            EtherType::Ipv4 | EtherType::Ipv6 => {}
            EtherType::Other(_) => return Err(DropReason::UnknownEthertype),
        }
        let ip = ip::Header::parse(eth.ethertype, head, len)?;
        let datagram = frame.frame.slice(ethernet::HEADER_LEN + usize::from(ip.header_len), ip.payload_len() as usize);
        let cast = match eth.dst {
            Mac::BROADCAST => Cast::Broadcast,
            to if to.is_multicast() => Cast::Multicast,
            _ => Cast::Unicast,
        };
        if ip.fragment.is_some() {
            self.router.check_source(frame.link, &ip)?;
            if leaders {
                return self.hand_over(LEADER, frame.link, as_frame, frame.checksum, frame.gso, edge);
            }
            if let Some(whole) = self.reassembly.add(&mut self.router, frame.link, &ip, head, datagram, edge)? {
                let mut packet = Packet::parse(
                    frame.link,
                    eth.src,
                    whole.ip,
                    &whole.head,
                    whole.datagram,
                    crate::edge::RxChecksum::Unverified,
                    None,
                    edge,
                );
                packet.cast = cast;
                let mut start = [0; ethernet::HEADER_LEN + ipv6::HEADER_LEN];
                let n = ethernet::HEADER_LEN + usize::from(whole.ip.header_len);
                eth.emit(&mut start);
                start[ethernet::HEADER_LEN..n].copy_from_slice(&whole.head[..usize::from(whole.ip.header_len)]);
                let done = self.ip(&packet, AsFrame { head: &start[..n], body: whole.datagram }, false, edge);
                edge.release(whole.datagram);
                return done;
            }
            return Ok(());
        }
        let mut packet = Packet::parse(frame.link, eth.src, ip, head, datagram, frame.checksum, frame.gso, edge);
        packet.cast = cast;
        self.ip(&packet, as_frame, handed, edge)
    }

    fn ip<E: Edge>(&mut self, p: &Packet<'_>, frame: AsFrame<'_>, handed: bool, edge: &mut E) -> Result<(), DropReason> {
        match self.router.check_source(p.link, &p.ip) {
            Ok(()) => self.router.learn(p.link, p.ip.src, p.src_mac),
            // A guest that rebinds a lease of another network must hear that it is void: RFC 2131 section 4.3.2.
            Err(DropReason::SpoofedSource) if crate::gateway::is_dhcp_broadcast(p) => {}
            Err(why) => return Err(why),
        }
        if let Some(why) = p.fault.filter(|_| p.is_untestable()) {
            return Err(why);
        }
        let mut skb = p.skb();
        let (whose, attach) = self.router.whose(p, &skb);
        let whose = match whose {
            Whose::Of(worker) if !handed => return self.hand_over(worker, p.link, frame, p.checksum, p.gso, edge),
            // Its flow has gone while it was on its way.
            Whose::Of(_) => Whose::Nobodys,
            whose => whose,
        };
        self.router.netfilter.hear(p, self.router.cfg.gateway_mac);
        let attach = if p.is_invalid() { Attach::Invalid } else { attach };
        self.router.pre_routing(&mut skb, &attach, &*edge).map_err(|stop| self.router.stopped(edge, p, &skb, stop))?;
        self.route(p, skb, whose, edge)
    }

    /// A packet that has passed PREROUTING, as `p` was received and as `skb` it was translated: for us, for another link, or for
    /// the host.
    fn route<E: Edge>(&mut self, p: &Packet<'_>, mut skb: Skb<'_>, whose: Whose, edge: &mut E) -> Result<(), DropReason> {
        let r = &mut self.router;
        let dst = skb.dst;
        // Answers to clients on the host itself, which have our address to the guest.
        let to_client =
            skb.track.is_reply_to_translated() && r.hides(dst) && (r.route(dst).is_none() || r.is_hairpin(p.link, dst));
        if r.is_local(dst) || to_client {
            r.trace_route(&skb, None);
            r.input(&mut skb, &*edge).map_err(|stop| r.stopped(edge, p, &skb, stop))?;
            return match p.fault {
                Some(why) => Err(why),
                None => self.local(&p.passed(&skb, 0), edge),
            };
        }
        if skb.hop_limit <= 1 {
            r.icmp_error_about(edge, p, IcmpError::TimeExceeded, &skb);
            return Err(DropReason::TtlExceeded);
        }
        let link = r.route(dst).filter(|_| !r.is_hairpin(p.link, dst));
        skb.output = Some(link.map_or(Iface::Host0, Iface::Link));
        r.trace_route(&skb, skb.output);
        // As Linux: rules of FORWARD see one hop less.
        skb.hop_limit -= 1;
        r.forward(&mut skb, &*edge).map_err(|stop| r.stopped(edge, p, &skb, stop))?;
        if let Some(link) = link {
            return r.forward_to_link(edge, p, skb, link);
        }
        if let Some(why) = p.fault {
            return Err(why);
        }
        let to = match r.host_destination(dst, skb.dport) {
            Ok(to) => to,
            // Answers to clients of published ports go wherever those are.
            Err(_) if skb.track.is_reply() => dst,
            Err(why) => {
                if why == DropReason::ReachDenied {
                    r.icmp_error_about(edge, p, IcmpError::Prohibited, &skb);
                }
                return Err(why);
            }
        };
        r.post_routing_to_host(&mut skb, to, edge).map_err(|stop| r.stopped(edge, p, &skb, stop))?;
        let claim = r.claim(whose, p, &skb)?;
        let done = self.translator.forward(r, &p.passed(&skb, 1), to, edge);
        r.end_claim(claim);
        done
    }

    /// A packet for one of our own addresses.
    fn local<E: Edge>(&mut self, p: &Packet<'_>, edge: &mut E) -> Result<(), DropReason> {
        let tuple = p.tuple();
        // One of our own addresses may stand for the host's loopback, beside the services that it has.
        let loopback = self.router.mapped_loopback(p.ip.dst).filter(|_| !self.router.serves(&tuple));
        match p.l4 {
            // TCP to our DNS address goes on to the resolver itself.
            L4::Tcp(..) if tuple.dst.port == 53 && self.router.is_dns(p.ip.dst) => match self.router.cfg.resolvers.first() {
                Some(&resolver) => self.translator.forward(&mut self.router, p, resolver, edge),
                None => self.translator.refuse_tcp(&mut self.router, p, edge),
            },
            // Answers of the guest to clients that appear under our address.
            L4::Tcp(..) if self.translator.knows(&tuple) => self.translator.forward(&mut self.router, p, p.ip.dst, edge),
            L4::Udp(_) if self.translator.knows(&tuple) => self.translator.forward(&mut self.router, p, p.ip.dst, edge),
            L4::Tcp(..) | L4::Udp(_) if loopback.is_some() => {
                self.translator.forward(&mut self.router, p, loopback.unwrap_or(p.ip.dst), edge)
            }
            L4::Tcp(..) => self.translator.refuse_tcp(&mut self.router, p, edge),
            _ => {
                debug_assert!(tuple.proto != proto::TCP);
                self.gateway.input(&mut self.router, p, edge)
            }
        }
    }
}
