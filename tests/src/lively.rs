//! A world in which there is something of everything that a state can have.

use crate::host::{ConnectPlan, Drain, Incoming};
use crate::wire::flags::{ACK, SYN};
use crate::wire::{self, Ip, TcpSegment};
use crate::{TcpGuest, World};
use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::admin::Recheck;
use hibernet_netstack::config::{Limits, Publish};
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::tuple::{Endpoint, proto};

/// The host's addresses.
pub const HOST: [&str; 2] = ["198.18.0.1", "fd99::1"];

const RULES: &str = "*nat\n\
    -A PREROUTING -i tap0 -p tcp --dport 7000 -j DNAT --to-destination :7001\n\
    -A POSTROUTING -o host0 -p udp -j MASQUERADE --to-ports 40000-41000 --random\n\
    -A POSTROUTING -o host0 -p tcp --dport 7100 -j MASQUERADE\nCOMMIT\n\
    *filter\n:FORWARD DROP [0:0]\n\
    -A FORWARD -m limit --limit 5/sec --limit-burst 3\n\
    -A FORWARD -m statistic --mode nth --every 5 --packet 0\n\
    -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
    -A FORWARD -j ACCEPT\nCOMMIT\n";

fn at(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().expect("an address"), port)
}

/// The world: flows of TCP as they open, move data, close and break; datagrams, echoes, a query for a name; rules that remember; tracked
/// connections, translated and not; of both families. Two links.
pub fn lively() -> World {
    let publish = [(proto::TCP, 8080, 80), (proto::UDP, 9000, 5500)];
    let cfg = Config {
        resolvers: vec!["9.9.9.9".parse().expect("an address")],
        search: vec!["example.net".into()],
        hostname: "guest".into(),
        publish: publish
            .map(|(proto, port, guest_port)| Publish { proto, addr: None, host_ports: (port, port), guest_port })
            .into(),
        limits: Limits { tcp_flows: 64, udp_flows: 64, icmp_flows: 16, dns_queries: 8, ..Limits::default() },
        ..Config::default()
    };
    let mut w =
        World::new(Config { conntrack: hibernet_netstack::conntrack::CtConfig { max: 256, ..cfg.conntrack.clone() }, ..cfg });
    let host = HOST.map(|a| a.parse().expect("an address"));
    w.stack.set_host_addresses(host.into());
    w.edge.host.addresses.extend(host);
    w.link_up();
    for family in [Family::V4, Family::V6] {
        let rules = text::parse(family, RULES).unwrap_or_else(|e| panic!("{e}"));
        let now = w.now();
        w.stack.set_rules(now, rules, Recheck::Keep, &mut w.edge).unwrap_or_else(|e| panic!("{e}"));
    }
    for (n, addr) in ["203.0.113.9", "2600:1f::9"].into_iter().enumerate() {
        outbound(&mut w, addr, 10_000 + 100 * n as u16);
        inbound(&mut w, addr, n);
        datagrams(&mut w, addr);
        w.run(Duration::from_millis(50));
    }
    w.inbox.clear();
    w
}

fn outbound(w: &mut World, addr: &str, port: u16) {
    // The peer has sent what the guest has not acknowledged, and the guest what the peer does not take, with a gap.
    let mut g = TcpGuest::connect(w, port, at(addr, 80));
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| (t.sndbuf, t.drain) = (40, Drain::STOPPED));
    w.edge.host.peer(sock).send(&[3; 5000]);
    g.send(w, &[4; 30]);
    g.send(w, &[5; 60]);
    g.send_at(w, 120, &[6; 30]);
    g.send_at(w, 200, &[6; 20]);
    // Half-closed by the guest, by the peer; broken off by the peer with data before it; in translation.
    let mut g = TcpGuest::connect(w, port + 1, at(addr, 7000));
    g.fin(w);
    TcpGuest::connect(w, port + 2, at(addr, 7100));
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"the end");
    w.edge.host.peer(sock).fin();
    w.settle();
    let mut g = TcpGuest::connect(w, port + 3, at(addr, 81));
    let sock = w.edge.host.last();
    g.window = 0;
    g.ack(w);
    w.edge.host.peer(sock).send(&[7; 3000]);
    w.settle();
    w.edge.host.peer(sock).reset();
    w.settle();
    // Connecting.
    w.edge.host.plan(at(addr, 82), ConnectPlan::Blackhole);
    TcpGuest::new(w, port + 4, at(addr, 82)).syn(w);
    // Connected, and the guest has not heard.
    TcpGuest::new(w, port + 5, at(addr, 83)).syn(w);
    // Over.
    TcpGuest::connect(w, port + 6, at(addr, 84)).rst(w);
    w.settle();
}

fn inbound(w: &mut World, addr: &str, family: usize) {
    let local = at(HOST[family], 8080);
    w.accept(at(addr, 1000), local);
    let guest = w.guest_addr(local.addr);
    let synack = TcpSegment { src_port: 80, dst_port: 1000, flags: SYN | ACK, seq: 1, window: 100, ..TcpSegment::default() };
    // The guest answers the first, not the second.
    if let Some(syn) = w.take_tcp(at(addr, 1000), Endpoint::new(guest, 80)) {
        let s = TcpSegment { ack: syn.seq.wrapping_add(1), ..synack };
        w.inject_ip(&Ip::new(guest, at(addr, 0).addr), 6, &s.bytes(guest, at(addr, 0).addr));
    }
    w.accept(at(addr, 1001), local);
}

fn datagrams(w: &mut World, addr: &str) {
    let dst = at(addr, 0).addr;
    let src = w.guest_addr(dst);
    for (port, replies) in [(5000, 0), (5001, 1), (5002, 3)] {
        for _ in 0..replies.max(1) {
            w.inject_ip(&Ip::new(src, dst), 17, &wire::udp(src, dst, port, 53, b"question"));
            if replies > 0 {
                let sock = w.edge.host.last();
                w.edge.host.udp_reply(sock, b"answer");
                w.settle();
            }
        }
    }
    let protocol = if dst.is_ipv4() { 1 } else { 58 };
    for ident in [1, 2] {
        w.inject_ip(&Ip::new(src, dst), protocol, &wire::echo(src, dst, ident, 7, b"hello?"));
    }
    let sock = *w.edge.host.ping_sockets().last().expect("a ping socket");
    w.edge.host.ping_reply(sock, 7, b"hello?");
    w.settle();
    let dns = match dst.is_ipv4() {
        true => w.stack.config().v4.expect("IPv4 is on").dns.into(),
        false => w.stack.config().v6.expect("IPv6 is on").dns.into(),
    };
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03net\0\0\x01\0\x01";
    w.inject_ip(&Ip::new(src, dns), 17, &wire::udp(src, dns, 5100, 53, query));
    if dst.is_ipv4() {
        let listener = w.listen_udp(at("0.0.0.0", 9000));
        let to = Some(at(HOST[0], 0).addr);
        let d = Incoming { data: b"from outside".to_vec(), from: at(addr, 2000), to, segment: None, hop_limit: Some(60) };
        w.edge.host.udp_arrives(listener, d);
        w.settle();
    }
}
