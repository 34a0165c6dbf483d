//! Two nodes with a stack between them: what netfilter does to routed packets, seen from both sides.

use crate::World;
use crate::netfilter::{ROUTER_MAC, Side, elsewhere, node, router};
use crate::wire::{self, Frame, Ip, L4, Net, TcpSegment, flags};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use hibernet_netstack::admin::Recheck;
use hibernet_netstack::config::LinkNet;
use hibernet_netstack::conntrack::{Conn, ConnId};
use hibernet_netstack::edge::{LinkId, LinkInfo, RxChecksum};
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::wire::Mac;
use hibernet_netstack::{Config, DropReason};

/// A client behind `tap0`, a server behind `tap1`, IPv4 or IPv6. Names of addresses in rules: `{c}` and `{s}` the two nodes,
/// `{rc}` and `{rs}` the router's address on either side, `{e}` one that nobody has, `{icmp}` the family's ICMP.
#[derive(Debug)]
pub struct Pair {
    /// Stack, edge and time. What came out at the client is in its `inbox`, at the server in `far`.
    pub w: World,
    /// IPv6.
    pub v6: bool,
}

/// A packet that says little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A datagram: source and destination port.
    Udp(u16, u16),
    /// A SYN: source and destination port.
    Tcp(u16, u16),
    /// An echo request with this identifier.
    Ping(u16),
}

impl Probe {
    /// Protocol number and bytes.
    pub fn l4(self, src: IpAddr, dst: IpAddr) -> (u8, Vec<u8>) {
        match self {
            Probe::Udp(a, b) => (17, wire::udp(src, dst, a, b, b"probe")),
            Probe::Tcp(a, b) => {
                let syn =
                    TcpSegment { src_port: a, dst_port: b, seq: 1000, flags: flags::SYN, window: 4096, ..TcpSegment::default() };
                (6, syn.bytes(src, dst))
            }
            Probe::Ping(id) => (if src.is_ipv4() { 1 } else { 58 }, wire::echo(src, dst, id, 1, b"probe")),
        }
    }

    /// The answer of who got a packet of this kind from `to`: as [`Probe::l4`].
    pub fn answer(got: &L4, src: IpAddr, dst: IpAddr) -> (u8, Vec<u8>) {
        match got {
            L4::Udp { src_port, dst_port, .. } => (17, wire::udp(src, dst, *dst_port, *src_port, b"answer")),
            L4::Tcp(t) => {
                let ack = t.seq.wrapping_add(1);
                let (flags, window) = (flags::SYN | flags::ACK, 4096);
                let s = TcpSegment {
                    src_port: t.dst_port,
                    dst_port: t.src_port,
                    seq: 7000,
                    ack,
                    flags,
                    window,
                    ..TcpSegment::default()
                };
                (6, s.bytes(src, dst))
            }
            L4::Icmp { rest, data, .. } if src.is_ipv4() => (1, wire::icmp(src, dst, 0, 0, *rest, data)),
            L4::Icmp { rest, data, .. } => (58, wire::icmp(src, dst, 129, 0, *rest, data)),
            L4::Other(..) => panic!("no answer to that"),
        }
    }
}

/// A packet that came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Transport.
    pub l4: L4,
}

impl Out {
    /// Ports, or twice the identifier.
    pub fn ports(&self) -> (u16, u16) {
        match &self.l4 {
            L4::Tcp(t) => (t.src_port, t.dst_port),
            L4::Udp { src_port, dst_port, .. } => (*src_port, *dst_port),
            L4::Icmp { rest, .. } => ((rest >> 16) as u16, (rest >> 16) as u16),
            L4::Other(..) => (0, 0),
        }
    }
}

const fn v4(a: IpAddr) -> Ipv4Addr {
    match a {
        IpAddr::V4(a) => a,
        IpAddr::V6(_) => panic!("not IPv4"),
    }
}

const fn v6(a: IpAddr) -> Ipv6Addr {
    match a {
        IpAddr::V6(a) => a,
        IpAddr::V4(_) => panic!("not IPv6"),
    }
}

impl Pair {
    /// With these rules.
    pub fn new(v6: bool, rules: &str) -> Self {
        Pair::with(Config::default(), v6, rules)
    }

    /// Without rules.
    pub fn bare(cfg: Config, is_v6: bool) -> Self {
        let link = |side: Side| {
            let info = LinkInfo { guest_mac: Some(Mac(side.mac())), ..World::plain_link() };
            let net = LinkNet { v4: Some((v4(router(side, false)), 24)), v6: Some((v6(router(side, true)), 64)) };
            (info, net)
        };
        let cfg = Config { gateway_mac: Mac(ROUTER_MAC), ..cfg };
        Pair { w: World::routed(cfg, Side::BOTH.map(link)), v6: is_v6 }
    }

    /// With these rules and settings.
    pub fn with(cfg: Config, v6: bool, rules: &str) -> Self {
        let mut p = Pair::bare(cfg, v6);
        p.load(rules);
        p
    }

    /// Both families in turn.
    pub fn each(rules: &str, mut f: impl FnMut(Pair)) {
        for v6 in [false, true] {
            f(Pair::new(v6, rules));
        }
    }

    /// Replaces the rules.
    ///
    /// # Panics
    /// If they are refused.
    pub fn load(&mut self, rules: &str) {
        let rules = self.text(rules);
        let family = if self.v6 { Family::V6 } else { Family::V4 };
        let parsed = text::parse(family, &rules).unwrap_or_else(|e| panic!("{e}\n{rules}"));
        let now = self.w.now();
        let done = self.w.stack.set_rules(now, parsed, Recheck::Keep, &mut self.w.edge);
        done.unwrap_or_else(|e| panic!("{e}\n{rules}"));
        self.w.settle();
    }

    /// A text with addresses in place of their names.
    pub fn text(&self, s: &str) -> String {
        let all = [
            ("{c}", self.node(Side::Client)),
            ("{s}", self.node(Side::Server)),
            ("{rc}", self.router(Side::Client)),
            ("{rs}", self.router(Side::Server)),
            ("{e}", self.elsewhere()),
        ];
        let s = all.iter().fold(s.to_owned(), |s, (name, a)| s.replace(name, &a.to_string()));
        s.replace("{icmp}", if self.v6 { "ipv6-icmp" } else { "icmp" })
    }

    /// Address of a node.
    pub fn node(&self, side: Side) -> IpAddr {
        node(side, self.v6)
    }

    /// The router's address on a side.
    pub fn router(&self, side: Side) -> IpAddr {
        router(side, self.v6)
    }

    /// An address that only translation makes something of.
    pub fn elsewhere(&self) -> IpAddr {
        elsewhere(1, self.v6)
    }

    /// A packet of whoever is behind a side's link.
    pub fn send(&mut self, from: Side, ip: &Ip, protocol: u8, l4: &[u8]) {
        self.send_packet(from, ip.ethertype(), &ip.packet(protocol, l4));
    }

    /// The same, as bytes.
    pub fn send_packet(&mut self, from: Side, ethertype: u16, packet: &[u8]) {
        let frame = wire::ethernet(ROUTER_MAC, from.mac(), ethertype, packet);
        self.w.receive_on(LinkId(from.index() as u8), &frame, RxChecksum::Unverified, None);
        self.w.settle();
    }

    /// A probe of a side's node. The IP packet as it was sent.
    pub fn probe(&mut self, from: Side, to: IpAddr, probe: Probe) -> Vec<u8> {
        let src = self.node(from);
        let (protocol, l4) = probe.l4(src, to);
        let ip = Ip::new(src, to);
        self.send(from, &ip, protocol, &l4);
        ip.packet(protocol, &l4)
    }

    /// Answers a packet that came out at a side.
    pub fn answer(&mut self, at: Side, got: &Out) {
        let (protocol, l4) = Probe::answer(&got.l4, got.dst, got.src);
        self.send(at, &Ip::new(got.dst, got.src), protocol, &l4);
    }

    /// The next packet that came out at a side.
    ///
    /// # Panics
    /// If it is malformed, or not for the node there.
    pub fn next(&mut self, at: Side) -> Option<Out> {
        let bytes = self.next_bytes(at)?;
        let Frame { dst_mac, src_mac, net } = wire::parse(&bytes).unwrap_or_else(|e| panic!("{}: {bytes:02x?}", e.0));
        assert_eq!((dst_mac, src_mac), (at.mac(), ROUTER_MAC));
        match net {
            Net::Ip { src, dst, ttl, l4, .. } => Some(Out { src, dst, ttl, l4 }),
            Net::Arp(_) => panic!("ARP"),
        }
    }

    /// The next frame that came out at a side.
    pub fn next_bytes(&mut self, at: Side) -> Option<Vec<u8>> {
        let inbox = match at {
            Side::Client => &mut self.w.inbox,
            Side::Server => &mut self.w.far,
        };
        inbox.pop_front().map(|(_, f)| f)
    }

    /// The next packet that came out at a side.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn expect(&mut self, at: Side) -> Out {
        self.next(at).unwrap_or_else(|| {
            panic!("nothing came out at the {at:?}; drops: {:?}, connections: {:?}", self.drops(), self.connections())
        })
    }

    /// Nothing waits on either side.
    ///
    /// # Panics
    /// If something does.
    #[track_caller]
    pub fn silent(&mut self) {
        for side in Side::BOTH {
            let out = self.next(side);
            assert_eq!(out, None, "at the {side:?}");
        }
    }

    /// Whether a probe to the other node gets there, as it was sent but for its hop limit.
    pub fn forwards(&mut self, from: Side, probe: Probe) -> bool {
        let (src, dst) = (self.node(from), self.node(from.other()));
        self.probe(from, dst, probe);
        let out = self.next(from.other());
        self.silent();
        let Some(out) = out else { return false };
        assert_eq!((out.src, out.dst, out.ttl), (src, dst, 63));
        true
    }

    /// Whether the router answers a probe to its address on that side: echo, reset or port unreachable.
    pub fn answers(&mut self, from: Side, probe: Probe) -> bool {
        let (src, dst) = (self.node(from), self.router(from));
        self.probe(from, dst, probe);
        let out = self.next(from);
        self.silent();
        let Some(out) = out else { return false };
        assert_eq!((out.src, out.dst), (dst, src));
        true
    }

    /// Lets time pass.
    pub fn run(&mut self, d: Duration) {
        self.w.run(d);
    }

    /// Tracked connections.
    pub fn connections(&self) -> Vec<(ConnId, Conn)> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.w.stack.conntrack().dump(self.w.now(), at, 4096, |id, c| all.push((id, *c)));
        }
        all
    }

    /// The only tracked connection.
    ///
    /// # Panics
    /// If there are none or more.
    #[track_caller]
    pub fn connection(&self) -> Conn {
        let all = self.connections();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].1
    }

    /// What was dropped, by reason.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        self.w.stack.stats().drops().filter(|d| d.1 > 0).collect()
    }

    /// Whether the rules, as iptables-save prints them with counters, have this line.
    pub fn counted(&self, line: &str) -> bool {
        let family = if self.v6 { Family::V6 } else { Family::V4 };
        let printed = text::print(&self.w.stack.rules(family), text::PrintOptions { counters: true, date: None });
        printed.lines().any(|l| l == self.text(line))
    }
}
