//! A hostile guest, and hostile clients of published ports: floods at ten times what fits. Memory stays bounded, who is established
//! stays so and is served meanwhile, and counters say what happened.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use hibernet_netstack::config::{Limits, Publish};
use hibernet_netstack::edge::{LinkId, RxChecksum, SockId};
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::host::Incoming;
use hibernet_tests::netfilter::{ROUTER_MAC, Side};
use hibernet_tests::wire::{self, Ip};
use hibernet_tests::{ConnectPlan, Pair, Probe, TcpGuest, World};

const RULES: &str = "*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
const HOST: &str = "203.0.113.9";

fn at(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

/// Caps on everything, so low that a test reaches them soon.
fn small() -> Config {
    let limits = Limits { tcp_flows: 48, tcp_half_open: 16, udp_flows: 32, icmp_flows: 16, ..Limits::default() };
    let publish = vec![
        Publish { proto: 6, addr: None, host_ports: (8080, 8080), guest_port: 80 },
        Publish { proto: 17, addr: None, host_ports: (8053, 8053), guest_port: 53 },
    ];
    let mut cfg = Config { limits, publish, ..Config::default() };
    cfg.conntrack.max = 128;
    cfg
}

/// A stack and those who are established in it: eight connections each way, one stream of datagrams each way.
struct Siege {
    w: World,
    tcp: Vec<(TcpGuest, SockId)>,
    /// The guest's datagrams to a server, and a client's to the guest.
    udp: (SockId, SockId),
    rounds: u32,
}

const SERVER: &str = "198.51.100.1";
const CLIENT: &str = "198.51.100.9";

impl Siege {
    fn new(cfg: Config) -> Siege {
        let mut w = World::new(cfg);
        w.stack.set_host_addresses(vec![HOST.parse().unwrap()]);
        let now = w.now();
        w.stack.set_rules(now, text::parse(Family::V4, RULES).unwrap(), Default::default(), &mut w.edge).unwrap();
        let mut tcp = Vec::new();
        for n in 0..8 {
            let g = TcpGuest::connect(&mut w, 100 + n, at(SERVER, 443));
            tcp.push((g, w.edge.host.last()));
            let client = at(CLIENT, 100 + n);
            let sock = w.accept(client, at(HOST, 8080));
            let mut g = TcpGuest::expect_syn(&mut w, 80, client);
            g.complete(&mut w);
            tcp.push((g, sock));
        }
        let listener = w.listen_udp(at("0.0.0.0", 8053));
        let mut s = Siege { w, tcp, udp: (listener, listener), rounds: 0 };
        s.guest_udp(100, at(SERVER, 53), b"first");
        s.udp.0 = s.w.edge.host.last();
        // A conversation, and therefore assured, is what goes both ways for longer than two seconds.
        for _ in 0..3 {
            s.serve();
            s.w.run(Duration::from_millis(1500));
        }
        s
    }

    fn guest_udp(&mut self, port: u16, to: Endpoint, data: &[u8]) {
        let guest = self.w.guest_addr(to.addr);
        self.w.inject_ip(&Ip::new(guest, to.addr), 17, &wire::udp(guest, to.addr, port, to.port, data));
    }

    fn client_udp(&mut self, from: Endpoint, data: &[u8]) {
        let to = Some(HOST.parse().unwrap());
        let d = Incoming { data: data.to_vec(), from, to, segment: None, hop_limit: Some(60) };
        self.w.edge.host.udp_arrives(self.udp.1, d);
        self.w.settle();
    }

    /// Everybody who is established says something and hears something.
    #[track_caller]
    fn serve(&mut self) {
        self.rounds += 1;
        let said = format!("round {}", self.rounds).into_bytes();
        let w = &mut self.w;
        for (g, sock) in &mut self.tcp {
            g.send(w, &said);
            assert_eq!(w.edge.host.peer(*sock).take_received(), said);
            w.edge.host.peer(*sock).send(&said);
            w.settle();
            g.expect_data(w, &said);
            g.ack(w);
        }
        self.guest_udp(100, at(SERVER, 53), &said);
        let sent = self.w.edge.host.udp(self.udp.0).sent.pop().expect("the guest's stream is cut");
        assert_eq!(sent.data, said);
        self.w.edge.host.udp_reply(self.udp.0, &said);
        self.w.settle();
        assert_eq!(self.w.take_udp(100), Some((at(SERVER, 53), said.clone())));
        self.client_udp(at(CLIENT, 100), &said);
        assert!(self.w.take(|f| answer_port(f, 53, &said)).is_some(), "the client's stream is cut");
        self.guest_udp(53, at(CLIENT, 100), &said);
        let sent = self.w.edge.host.udp(self.udp.1).sent.pop().expect("the answer to the client is lost");
        assert_eq!((sent.data, sent.opts.to), (said, Some(at(CLIENT, 100))));
    }

    /// What we hold stays within the caps.
    #[track_caller]
    fn check(&mut self) {
        let limits = self.w.stack.config().limits;
        let (tcp, udp, icmp) = self.w.stack.flow_counts();
        assert!(tcp <= limits.tcp_flows as usize, "{tcp} TCP flows");
        assert!(udp <= limits.udp_flows as usize, "{udp} UDP flows");
        assert!(icmp <= limits.icmp_flows as usize, "{icmp} ICMP flows");
        assert!(self.w.edge.host.open_sockets() <= tcp + udp + icmp + 1, "sockets without flows");
        let tracked = self.w.stack.conntrack().len();
        assert!(tracked <= self.w.stack.config().conntrack.max as usize, "{tracked} connections");
        self.w.inbox.clear();
        self.w.edge.host.udp(self.udp.1).sent.clear();
    }

    /// When it is over, only those are left who were there before, and new ones get in.
    fn aftermath(&mut self) {
        self.serve();
        for _ in 0..8 {
            self.w.run(Duration::from_secs(50));
            self.serve();
        }
        self.w.inbox.clear();
        assert_eq!(self.w.stack.flow_counts(), (16, 2, 0));
        assert_eq!(self.w.stack.conntrack().len(), 18);
        self.w.edge.host.default_plan = ConnectPlan::default();
        TcpGuest::connect(&mut self.w, 99, at(SERVER, 443));
    }
}

fn answer_port(f: &wire::Frame, port: u16, said: &[u8]) -> Option<()> {
    match &f.net {
        wire::Net::Ip { l4: wire::L4::Udp { dst_port, data, .. }, .. } if *dst_port == port && data == said => Some(()),
        _ => None,
    }
}

/// One of many addresses outside.
fn outside(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0xc633_6500 + n / 50_000).into()
}

/// One of many packets of the guest's; `n` below 50,000 for each address.
fn frame(w: &World, probe: Probe, n: u32) -> Vec<u8> {
    let (src, dst) = (w.guest_addr(outside(0)), outside(n));
    let (protocol, l4) = probe.l4(src, dst);
    Ip::new(src, dst).frame(w.gateway_mac(), wire::GUEST_MAC, protocol, &l4)
}

fn probe(kind: u32, n: u32) -> Probe {
    let id = 1000 + (n % 50_000) as u16;
    match kind {
        0 => Probe::Tcp(id, 80),
        1 => Probe::Udp(id, 80),
        _ => Probe::Ping(id),
    }
}

#[test]
fn the_guest_floods() {
    for (what, kinds) in [("SYN", &[0][..]), ("UDP", &[1]), ("ICMP", &[2]), ("all", &[0, 1, 2])] {
        for plan in [ConnectPlan::Blackhole, ConnectPlan::Accept(Duration::ZERO)] {
            let mut s = Siege::new(small());
            s.w.edge.host.default_plan = plan;
            let flood = 10 * s.w.stack.config().conntrack.max;
            let before = s.w.stack.stats().clone();
            for n in 0..flood {
                for &kind in kinds {
                    let f = frame(&s.w, probe(kind, n), n);
                    s.w.inject(&f);
                    s.check();
                }
                if n % 100 == 0 {
                    s.serve();
                    s.w.run(Duration::from_millis(10));
                }
            }
            s.serve();
            let ct = s.w.stack.conntrack().counters();
            let stats = s.w.stack.stats();
            let limit = stats.dropped(DropReason::FlowLimit) + stats.dropped(DropReason::ConntrackFull);
            assert!(ct.early_drop > 0, "{what}: {ct:?}");
            if kinds == [0] {
                let opened = stats.tcp_out - before.tcp_out;
                assert!(limit + opened >= u64::from(flood), "{what}: {limit} dropped and {opened} opened of {flood}");
            }
            s.aftermath();
        }
    }
}

#[test]
fn clients_of_published_ports_flood() {
    for (tcp, udp) in [(true, false), (false, true), (true, true)] {
        let mut s = Siege::new(small());
        let flood = 10 * s.w.stack.config().conntrack.max;
        let (mut refused, before) = (0, s.w.stack.stats().tcp_in);
        for n in 0..flood {
            let from = Endpoint::new(outside(n), 1000 + n as u16);
            if tcp {
                // The guest never answers the SYN.
                let sock = s.w.accept(from, at(HOST, 8080));
                refused += u64::from(!s.w.edge.host.is_open(sock));
            }
            if udp {
                s.client_udp(from, b"query");
            }
            s.check();
            let half_open = s.w.stack.flow_counts().0 - s.tcp.len();
            assert!(half_open <= s.w.stack.config().limits.tcp_half_open as usize, "{half_open} half-open connections");
            if n % 100 == 0 {
                s.serve();
                s.w.run(Duration::from_millis(10));
            }
        }
        s.serve();
        if tcp {
            assert!(refused > u64::from(flood) / 2, "{refused}");
            let opened = s.w.stack.stats().tcp_in - before;
            assert!(refused + opened >= u64::from(flood), "{refused} refused and {opened} opened");
            assert!(s.w.dropped(DropReason::FlowLimit) + s.w.dropped(DropReason::ConntrackFull) > 0);
        }
        s.aftermath();
    }
}

/// A guest that completes handshakes and holds all connections open: new ones are refused when the places are taken, the old ones live.
#[test]
fn a_guest_that_keeps_all_it_opens() {
    let mut s = Siege::new(small());
    let mut refused = 0;
    for n in 0..480_u16 {
        let mut g = TcpGuest::new(&s.w, 2000 + n, at("198.51.100.77", 80));
        g.syn(&mut s.w);
        match g.next(&mut s.w) {
            Some(answer) if answer.flags & wire::flags::RST == 0 => {
                g.rcv_nxt = answer.seq.wrapping_add(1);
                g.ack(&mut s.w);
            }
            _ => refused += 1,
        }
        s.check();
    }
    assert_eq!(refused, 480 - 32);
    s.serve();
}

/// As many as are really allowed, ten times over: on their way between two links, and onto host sockets.
#[test]
fn ten_times_the_real_caps() {
    let mut p = Pair::with(Config::default(), false, RULES);
    let max = p.w.stack.config().conntrack.max;
    let (src, dst) = (p.node(Side::Client), p.node(Side::Server));
    let mut kept = Vec::new();
    for port in 1..=100 {
        p.probe(Side::Client, dst, Probe::Tcp(port, 443));
        let syn = p.expect(Side::Server);
        p.answer(Side::Server, &syn);
        p.expect(Side::Client);
        kept.push(port);
        say(&mut p, port);
    }
    for n in 0..10 * max {
        let dst = IpAddr::from(Ipv4Addr::new(10, 0, 3, 20 + (n / 50_000) as u8));
        let (protocol, l4) = probe(n % 3, n).l4(src, dst);
        let frame = Ip::new(src, dst).frame(ROUTER_MAC, Side::Client.mac(), protocol, &l4);
        p.w.receive_on(LinkId(0), &frame, RxChecksum::Unverified, None);
        if n % 4096 == 0 {
            p.w.settle();
            assert!(p.w.stack.conntrack().len() <= max as usize);
            p.w.edge.links.iter_mut().for_each(|l| l.sent.clear());
            p.w.far.clear();
            p.w.inbox.clear();
        }
    }
    p.w.settle();
    p.w.far.clear();
    let ct = p.w.stack.conntrack().counters();
    let len = p.w.stack.conntrack().len();
    assert!(len <= max as usize && len > max as usize / 10 * 9, "{len}");
    let lost = p.w.dropped(DropReason::ConntrackFull);
    assert_eq!(ct.insert + lost, u64::from(10 * max) + 100, "{ct:?}");
    assert_eq!(ct.insert, len as u64 + ct.early_drop, "{ct:?}");
    kept.into_iter().for_each(|port| say(&mut p, port));
    p.run(Duration::from_secs(120 + 61));
    assert_eq!(p.w.stack.conntrack().len(), 100);
}

/// Data of an established connection pass.
#[track_caller]
fn say(p: &mut Pair, port: u16) {
    let (src, dst) = (p.node(Side::Client), p.node(Side::Server));
    let flags = wire::flags::ACK;
    let s = wire::TcpSegment { src_port: port, dst_port: 443, seq: 1001, ack: 7001, flags, window: 4096, ..Default::default() };
    p.send(Side::Client, &Ip::new(src, dst), 6, &s.bytes(src, dst));
    assert_eq!(p.expect(Side::Server).ports(), (port, 443));
}

/// The same onto host sockets: the real limits of flows.
#[test]
fn ten_times_the_real_limits_of_flows() {
    let cfg = Config { publish: small().publish, ..Config::default() };
    let mut s = Siege::new(cfg);
    let limits = s.w.stack.config().limits;
    s.w.edge.host.default_plan = ConnectPlan::Blackhole;
    for (kind, cap) in [(0, limits.tcp_half_open), (1, limits.udp_flows), (2, limits.icmp_flows)] {
        for n in 0..10 * cap {
            let f = frame(&s.w, probe(kind, n), n);
            s.w.receive(&f);
            if n % 256 == 0 {
                s.w.settle();
                s.check();
            }
        }
        s.w.settle();
        s.check();
        s.serve();
    }
    let (tcp, udp, icmp) = s.w.stack.flow_counts();
    assert_eq!((tcp as u32, udp as u32, icmp as u32), (16 + limits.tcp_half_open, limits.udp_flows, limits.icmp_flows));
    assert_eq!(s.w.dropped(DropReason::FlowLimit), u64::from(9 * limits.tcp_half_open));
}
