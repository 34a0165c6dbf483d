//! Sources that rules of POSTROUTING demand of the host's sockets.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::admin::Recheck;
use hibernet_netstack::edge::{SockError, SockId, Source, SourcePort};
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::host::ConnectPlan;
use hibernet_tests::wire::{self, Ip};
use hibernet_tests::{TcpGuest, World};

const UDP: u8 = 17;
/// Of the host.
const HOST: [&str; 4] = ["192.0.2.10", "192.0.2.11", "2001:db8:ffff::10", "2001:db8:ffff::11"];
const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

/// A world whose nat table has this rule in POSTROUTING, the same for both families but for `ADDR`.
fn world(rule: &str) -> World {
    let mut w = World::new(Config::default());
    let host = HOST.map(ip);
    w.stack.set_host_addresses(host.to_vec());
    w.edge.host.addresses.extend(host);
    for (family, addr) in [(Family::V4, HOST[1]), (Family::V6, "[2001:db8:ffff::11]")] {
        let addr = if rule.contains("ADDR:") { addr } else { addr.trim_matches(['[', ']']) };
        let rules = format!("*nat\n-A POSTROUTING -o host0 {}\nCOMMIT\n", rule.replace("ADDR", addr));
        let rules = text::parse(family, &rules).unwrap();
        let now = w.now();
        w.stack.set_rules(now, rules, Recheck::Keep, &mut w.edge).unwrap();
    }
    w
}

/// A datagram of the guest's.
fn datagram(w: &mut World, port: u16, to: Endpoint) {
    let header = Ip::new(w.guest_addr(to.addr), to.addr);
    let datagram = wire::udp(header.src, header.dst, port, to.port, b"data");
    w.inject_ip(&header, UDP, &datagram);
}

/// An echo request of the guest's, over IPv4.
fn echo(w: &mut World, to: IpAddr) {
    let header = Ip::new(w.guest_addr(to), to);
    let message = wire::echo(header.src, header.dst, 7, 1, b"data");
    w.inject_ip(&header, 1, &message);
}

fn tcp_source(w: &mut World) -> Source {
    let sock: SockId = w.edge.host.last();
    w.edge.host.tcp(sock).source
}

fn udp_source(w: &mut World) -> Source {
    let sock = w.edge.host.last();
    w.edge.host.udp(sock).source
}

#[test]
fn nothing_is_demanded_without_ports() {
    for rule in ["-j ACCEPT", "-j MASQUERADE", "-j MASQUERADE --random"] {
        let mut w = world(rule);
        for server in SERVERS {
            let to = Endpoint::new(ip(server), 80);
            TcpGuest::connect(&mut w, 4000, to);
            assert_eq!(tcp_source(&mut w), Source::ANY, "{rule}");
            datagram(&mut w, 5353, to);
            let source = udp_source(&mut w);
            assert_eq!(source.addr, None);
            assert!(matches!(source.port, SourcePort::Wish(p) if p == 5353 || rule.ends_with("random")), "{rule}: {source:?}");
        }
        assert_eq!(w.dropped_total(), 0);
    }
}

#[test]
fn ports_of_a_rule_are_ports_of_the_host() {
    for (rule, addrs) in [
        ("-p tcp -j MASQUERADE --to-ports 40000-40003", [None, None]),
        ("-p tcp -j SNAT --to-source ADDR:40000-40003", [Some(ip(HOST[1])), Some(ip(HOST[3]))]),
    ] {
        for (server, addr) in SERVERS.into_iter().zip(addrs) {
            let mut w = world(rule);
            // Others have all ports but one.
            w.edge.host.taken_ports.extend([40_000, 40_001, 40_003]);
            let to = Endpoint::new(ip(server), 80);
            let mut guest = TcpGuest::connect(&mut w, 4000, to);
            assert_eq!(tcp_source(&mut w), Source { addr, port: SourcePort::Demand(40_002) }, "{rule}");
            // The guest knows nothing of it.
            let sock = w.edge.host.last();
            guest.send(&mut w, b"hello");
            w.run(Duration::from_millis(50));
            assert_eq!(w.edge.host.tcp(sock).received, b"hello");
            assert_eq!(w.stack.conntrack().len(), 1);

            // The port that is left is taken towards this server, and free towards others.
            let mut second = TcpGuest::new(&w, 4001, to);
            second.syn(&mut w);
            second.expect_nothing(&mut w);
            assert_eq!((w.dropped(DropReason::NatExhausted), w.stack.conntrack().len()), (1, 1));
            TcpGuest::connect(&mut w, 4001, Endpoint::new(ip(server), 81));
            assert_eq!(tcp_source(&mut w).port, SourcePort::Demand(40_002));

            // It is a drop, so the guest tries again; meanwhile somebody has gone.
            w.edge.host.taken_ports.remove(&40_000);
            w.run(Duration::from_secs(1));
            second.handshake(&mut w);
            assert_eq!(tcp_source(&mut w).port, SourcePort::Demand(40_000));
        }
    }
}

#[test]
fn udp_ports_of_a_rule_are_ports_of_the_host() {
    let mut w = world("-p udp -j MASQUERADE --to-ports 40000-40001");
    w.edge.host.taken_ports.insert(40_001);
    for server in SERVERS {
        let to = Endpoint::new(ip(server), 53);
        for (port, kept) in [(4000, false), (40_000, true)] {
            let sockets = w.edge.host.open_sockets();
            datagram(&mut w, port, to);
            if kept {
                assert_eq!(w.edge.host.open_sockets(), sockets, "the only port is taken by the first");
            } else {
                assert_eq!(udp_source(&mut w).port, SourcePort::Demand(40_000));
            }
        }
    }
    assert_eq!((w.dropped(DropReason::NatExhausted), w.dropped_total()), (2, 2));
}

#[test]
fn addresses_of_a_rule_are_addresses_of_the_host() {
    let mut w = world("-j SNAT --to-source ADDR");
    for (server, addr) in SERVERS.into_iter().zip([HOST[1], HOST[3]]) {
        let to = Endpoint::new(ip(server), 80);
        TcpGuest::connect(&mut w, 4000, to);
        assert_eq!(tcp_source(&mut w), Source { addr: Some(ip(addr)), port: SourcePort::Any });
        datagram(&mut w, 5353, to);
        assert_eq!(udp_source(&mut w), Source { addr: Some(ip(addr)), port: SourcePort::Wish(5353) });
    }
    echo(&mut w, ip(SERVERS[0]));
    let sock = w.edge.host.last();
    assert_eq!(w.edge.host.ping(sock).from, Some(ip(HOST[1])));
    assert_eq!(w.dropped_total(), 0);

    // The address goes away: nothing is sent from another one.
    let tracked = w.stack.conntrack().len();
    w.stack.set_host_addresses(vec![ip(HOST[0]), ip(HOST[2])]);
    let sockets = w.edge.host.open_sockets();
    for server in SERVERS {
        let to = Endpoint::new(ip(server), 81);
        let mut guest = TcpGuest::new(&w, 4001, to);
        guest.syn(&mut w);
        guest.expect_nothing(&mut w);
        datagram(&mut w, 5354, to);
    }
    echo(&mut w, ip("198.51.100.8"));
    assert_eq!((w.dropped(DropReason::NatAddress), w.dropped_total()), (5, 5));
    assert_eq!((w.edge.host.open_sockets(), w.stack.conntrack().len()), (sockets, tracked));
}

/// Between the question and the open somebody may be faster, and another process may have the same ends.
#[test]
fn a_source_that_is_gone_leaves_nothing_behind() {
    let mut w = world("-p tcp -j MASQUERADE --to-ports 40000-40003");
    let to = Endpoint::new(ip(SERVERS[0]), 80);
    w.edge.host.plan(to, ConnectPlan::FailNow(SockError::NotAvailable));
    let mut guest = TcpGuest::new(&w, 4000, to);
    guest.syn(&mut w);
    guest.expect_nothing(&mut w);
    assert_eq!((w.dropped(DropReason::NatExhausted), w.stack.conntrack().len()), (1, 0));
    assert_eq!(w.stack.flow_counts().0, 0);
    w.edge.host.plan(to, ConnectPlan::Accept(Duration::ZERO));
    guest.handshake(&mut w);
    assert!(matches!(tcp_source(&mut w).port, SourcePort::Demand(40_000..=40_003)));
}

/// REDIRECT leads to the router itself, and from there to a port of the host's loopback only if the router's address was mapped to it.
#[test]
fn redirected_to_the_host_only_where_that_was_mapped() {
    let cfg = Config::default();
    let gateways = [cfg.v4.unwrap().gateway.into(), cfg.v6.unwrap().gateway.into()];
    for mapped in [vec![], gateways.to_vec()] {
        let mut cfg = Config::default();
        cfg.reach.map_host_loopback = mapped.clone();
        let mut w = World::new(cfg);
        for (family, server, loopback) in [(Family::V4, SERVERS[0], "127.0.0.1"), (Family::V6, SERVERS[1], "::1")] {
            let rules = "*nat\n-A PREROUTING -i tap0 -p tcp --dport 80 -j REDIRECT --to-ports 3128\nCOMMIT\n";
            let now = w.now();
            w.stack.set_rules(now, text::parse(family, rules).unwrap(), Recheck::Keep, &mut w.edge).unwrap();
            let to = Endpoint::new(ip(server), 80);
            if mapped.is_empty() {
                let mut g = TcpGuest::new(&w, 4000, to);
                g.syn(&mut w);
                g.expect_rst(&mut w);
                assert_eq!(w.edge.host.open_sockets(), 0);
            } else {
                let mut g = TcpGuest::connect(&mut w, 4000, to);
                let sock = w.edge.host.last();
                assert_eq!(w.edge.host.tcp(sock).remote, Endpoint::new(ip(loopback), 3128));
                w.edge.host.peer(sock).send(b"from the proxy");
                w.settle();
                g.expect_data(&mut w, b"from the proxy");
            }
        }
    }
}
