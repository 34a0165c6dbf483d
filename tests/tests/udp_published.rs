//! Published UDP ports: clients outside, the server in the guest.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{Egress, Limits, Publish, Reach};
use hibernet_netstack::edge::SockId;
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::IcmpQuote;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::host::{Incoming, Report};
use hibernet_tests::wire::{self, Ip};
use std::collections::BTreeSet;

const UDP: u8 = 17;
/// Addresses of the host, one per family: those that clients use.
const HOST: [&str; 2] = ["203.0.113.9", "2001:db8::5"];
const CLIENTS: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
const GATEWAYS: [&str; 2] = ["10.0.2.2", "fd68:6962:6e65:7400::2"];

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

fn end(a: &str, port: u16) -> Endpoint {
    Endpoint::new(ip(a), port)
}

fn config(first: u16, last: u16, guest_port: u16) -> Config {
    let publish = vec![Publish { proto: UDP, addr: None, host_ports: (first, last), guest_port }];
    Config { publish, ..Config::default() }
}

/// Host port 8053 to guest port 53.
fn world() -> (World, SockId) {
    with(config(8053, 8053, 53))
}

fn with(cfg: Config) -> (World, SockId) {
    let mut w = World::new(cfg);
    w.stack.set_host_addresses(HOST.map(ip).into());
    let sock = w.listen_udp(end("::", 8053));
    (w, sock)
}

fn arrives(w: &mut World, sock: SockId, from: Endpoint, to: &str, data: &[u8]) {
    w.edge.host.udp_arrives(sock, Incoming { data: data.to_vec(), from, to: Some(ip(to)), segment: None, hop_limit: Some(60) });
    w.settle();
}

fn answers(w: &mut World, from: u16, to: Endpoint, data: &[u8]) {
    let guest = w.guest_addr(to.addr);
    w.inject_ip(&Ip::new(guest, to.addr), UDP, &wire::udp(guest, to.addr, from, to.port, data));
}

#[test]
fn the_guest_sees_the_client_and_the_answer_leaves_from_where_the_client_had_asked() {
    let (mut w, sock) = world();
    for (client, host) in CLIENTS.into_iter().zip(HOST) {
        arrives(&mut w, sock, end(client, 4000), host, b"query");
        assert_eq!(w.take_udp(53), Some((end(client, 4000), b"query".to_vec())));
        answers(&mut w, 53, end(client, 4000), b"answer");
        let sent = w.edge.host.udp(sock).sent.pop().expect("no answer");
        assert_eq!(sent.data, b"answer");
        assert_eq!((sent.opts.to, sent.opts.from), (Some(end(client, 4000)), Some(ip(host))));
        assert_eq!(sent.opts.hop_limit, 63);
    }
    assert_eq!(w.edge.host.udp_sockets(), [sock], "a socket beside the listener's was opened");
    assert_eq!((w.dropped_total(), w.stack.flow_counts().1), (0, 2));
    w.run(Duration::from_secs(181));
    assert_eq!(w.stack.flow_counts().1, 0);
    assert!(w.edge.host.is_open(sock), "the listener went with its clients");
    arrives(&mut w, sock, end(CLIENTS[0], 4000), HOST[0], b"later");
    assert_eq!(w.take_udp(53).unwrap().1, b"later");
}

#[test]
fn a_range_of_ports_keeps_its_order() {
    let mut w = World::new(config(9000, 9010, 100));
    for port in [9000, 9003, 9010] {
        let sock = w.listen_udp(end("0.0.0.0", port));
        arrives(&mut w, sock, end(CLIENTS[0], 4000), HOST[0], b"x");
        assert!(w.take_udp(port - 8900).is_some(), "{port}");
    }
}

#[test]
fn clients_whose_address_means_nothing_to_the_guest_appear_as_the_gateway() {
    let clients = [
        ["127.0.0.1", HOST[0], "169.254.3.4", "10.0.2.15", "10.0.2.2", "10.0.2.3"],
        ["::1", HOST[1], "fe80::77", "fd68:6962:6e65:7400::15", "fd68:6962:6e65:7400::2", "fd68:6962:6e65:7400::3"],
    ];
    for (clients, gateway) in clients.into_iter().zip(GATEWAYS) {
        for client in clients {
            let (mut w, sock) = world();
            arrives(&mut w, sock, end(client, 4000), HOST[0], b"query");
            assert_eq!(w.take_udp(53), Some((end(gateway, 4000), b"query".to_vec())), "{client}");
            answers(&mut w, 53, end(gateway, 4000), b"answer");
            let sent = w.edge.host.udp(sock).sent.pop().expect("no answer");
            assert_eq!((sent.opts.to, sent.data), (Some(end(client, 4000)), b"answer".to_vec()), "{client}");
            assert_eq!(w.dropped_total(), 0);
        }
    }
}

#[test]
fn clients_that_appear_alike_get_ports_of_their_own() {
    let (mut w, sock) = world();
    let clients = ["127.0.0.1", "127.0.0.2", HOST[0], "169.254.3.4"];
    let mut seen = Vec::new();
    for client in clients {
        arrives(&mut w, sock, end(client, 4000), HOST[0], client.as_bytes());
        seen.push(w.take_udp(53).unwrap());
    }
    assert_eq!(seen[0].0, end(GATEWAYS[0], 4000));
    assert_eq!(seen.iter().map(|s| s.0).collect::<BTreeSet<_>>().len(), clients.len(), "{seen:?}");
    for (client, (from, _)) in clients.into_iter().zip(seen) {
        assert_eq!(from.addr, ip(GATEWAYS[0]));
        answers(&mut w, 53, from, client.as_bytes());
        let sent = w.edge.host.udp(sock).sent.pop().unwrap();
        assert_eq!((sent.opts.to, &sent.data[..]), (Some(end(client, 4000)), client.as_bytes()));
        // And stays who it is.
        arrives(&mut w, sock, end(client, 4000), HOST[0], b"again");
        assert_eq!(w.take_udp(53).unwrap().0, from);
    }
}

#[test]
fn one_client_port_at_several_addresses_and_ports_of_ours_is_as_many_conversations() {
    for (client, hosts) in CLIENTS.into_iter().zip([[HOST[0], "203.0.113.10"], [HOST[1], "2001:db8::6"]]) {
        let publish = vec![
            Publish { proto: UDP, addr: None, host_ports: (8053, 8053), guest_port: 53 },
            Publish { proto: UDP, addr: None, host_ports: (8054, 8054), guest_port: 53 },
        ];
        let mut w = World::new(Config { publish, ..Config::default() });
        w.stack.set_host_addresses(HOST.map(ip).into());
        let socks = [w.listen_udp(end("::", 8053)), w.listen_udp(end("::", 8054))];
        let client = end(client, 4000);
        let ways: Vec<_> = socks.into_iter().flat_map(|s| hosts.map(|h| (s, h))).collect();
        let mut seen = Vec::new();
        for (sock, host) in &ways {
            arrives(&mut w, *sock, client, host, b"query");
            seen.push(w.take_udp(53).unwrap().0);
        }
        assert_eq!(seen[0], client);
        assert!(seen.iter().all(|s| s.addr == client.addr));
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 4, "{seen:?}");
        for ((sock, host), seen) in ways.into_iter().zip(seen).rev() {
            answers(&mut w, 53, seen, host.as_bytes());
            let sent = w.edge.host.udp(sock).sent.pop().expect("no answer");
            assert_eq!((sent.opts.to, sent.opts.from, &sent.data[..]), (Some(client), Some(ip(host)), host.as_bytes()));
            arrives(&mut w, sock, client, host, b"again");
            assert_eq!(w.take_udp(53).unwrap().0, seen);
        }
        assert_eq!((w.dropped_total(), w.stack.flow_counts().1), (0, 4));
        // An error about the client concerns its conversations at that socket.
        let icmp =
            if client.addr.is_ipv4() { IcmpQuote { ty: 3, code: 3, rest: 0 } } else { IcmpQuote { ty: 1, code: 4, rest: 0 } };
        w.edge.host.report(socks[0], Report { icmp, offender: None, destination: Some(client), payload: vec![] });
        w.settle();
        assert_eq!(core::iter::from_fn(|| w.take_icmp()).count(), 2);
        w.run(Duration::from_secs(31));
        assert_eq!(w.stack.flow_counts().1, 0);
    }
}

#[test]
fn what_else_the_guest_sends_to_the_gateway_is_still_the_gateways() {
    let (mut w, sock) = world();
    arrives(&mut w, sock, end("127.0.0.1", 4000), HOST[0], b"query");
    for (from, to) in [(53, 4001), (54, 4000)] {
        answers(&mut w, from, end(GATEWAYS[0], to), b"stray");
    }
    assert!(w.edge.host.udp(sock).sent.is_empty());
    assert_eq!(w.dropped(DropReason::NoService), 2);
}

#[test]
fn answers_reach_clients_that_the_guest_could_not_have_called() {
    for (egress, client) in [(Egress::Public, "192.168.7.7"), (Egress::None, "198.51.100.7"), (Egress::None, "2001:db8:7::7")] {
        let reach = Reach { egress, ..Reach::default() };
        let (mut w, sock) = with(Config { reach, ..config(8053, 8053, 53) });
        let client = end(client, 4000);
        answers(&mut w, 53, client, b"unasked");
        assert_eq!(w.dropped(DropReason::ReachDenied), 1);
        arrives(&mut w, sock, client, HOST[0], b"query");
        assert!(w.take_udp(53).is_some());
        answers(&mut w, 53, client, b"answer");
        assert_eq!(w.edge.host.udp(sock).sent.pop().unwrap().data, b"answer");
        // Nothing but the answers of that very port.
        answers(&mut w, 54, client, b"unasked");
        assert_eq!(w.dropped(DropReason::ReachDenied), 2);
        assert_eq!(w.edge.host.udp_sockets(), [sock]);
    }
}

#[test]
fn a_flow_of_the_guests_and_a_client_at_its_other_end_are_two_connections() {
    let (mut w, sock) = world();
    let client = end(CLIENTS[0], 4000);
    answers(&mut w, 53, client, b"first");
    let own = w.edge.host.last();
    arrives(&mut w, sock, client, HOST[0], b"query");
    assert!(w.edge.host.is_open(own));
    // As Linux translates it: the client has another port, so that answers to it are told from the guest's own datagrams.
    let (seen, data) = w.take_udp(53).expect("the query");
    assert_eq!((seen.addr, data), (client.addr, b"query".to_vec()));
    assert_ne!(seen.port, client.port);
    answers(&mut w, 53, seen, b"answer");
    let sent = w.edge.host.udp(sock).sent.pop().expect("the answer");
    assert_eq!((sent.opts.to, sent.data), (Some(client), b"answer".to_vec()));
    answers(&mut w, 53, client, b"second");
    assert_eq!(w.edge.host.udp(own).sent.len(), 2);
    assert_eq!(w.stack.flow_counts().1, 2);
}

#[test]
fn an_error_at_the_listener_is_told_about_the_client_that_it_is_about() {
    let (mut w, sock) = world();
    let clients = [end(CLIENTS[0], 4000), end("127.0.0.1", 4000), end(CLIENTS[0], 4001)];
    for client in clients {
        arrives(&mut w, sock, client, HOST[0], b"query");
        w.take_udp(53).unwrap();
    }
    for (client, seen) in [(clients[1], end(GATEWAYS[0], 4000)), (clients[2], clients[2])] {
        answers(&mut w, 53, seen, b"answer");
        let icmp = IcmpQuote { ty: 3, code: 3, rest: 0 };
        let (offender, destination) = (Some(client.addr), Some(client));
        w.edge.host.report(sock, Report { icmp, offender, destination, payload: b"answer".to_vec() });
        w.settle();
        let (src, ty, code, _, quoted) = w.take_icmp().unwrap();
        assert_eq!((src, ty, code), (seen.addr, 3, 3));
        assert_eq!(quoted[16..20], ip_bytes(seen.addr), "quotes another destination");
        assert_eq!(quoted[20..24], [[0, 53], seen.port.to_be_bytes()].concat()[..]);
        assert_eq!(quoted[28..], *b"answer");
    }
    // About nobody that we know.
    for destination in [None, Some(end(CLIENTS[0], 4999))] {
        let icmp = IcmpQuote { ty: 3, code: 3, rest: 0 };
        w.edge.host.report(sock, Report { icmp, offender: None, destination, payload: vec![] });
        w.settle();
        assert_eq!(w.take_icmp(), None);
    }
}

fn ip_bytes(a: IpAddr) -> [u8; 4] {
    match a {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(_) => panic!("{a} is no IPv4 address"),
    }
}

#[test]
fn strangers_do_not_use_up_the_guests_flows() {
    let limits = Limits { udp_flows: 8, ..Limits::default() };
    let (mut w, sock) = with(Config { limits, ..config(8053, 8053, 53) });
    for port in 1..=100 {
        arrives(&mut w, sock, end(CLIENTS[0], port), HOST[0], b"flood");
        assert!(w.take_udp(53).is_some(), "a new client gives way to none");
    }
    assert_eq!(w.stack.flow_counts().1, 4);
    // Those that were answered stay.
    for port in 97..=100 {
        answers(&mut w, 53, end(CLIENTS[0], port), b"answer");
    }
    arrives(&mut w, sock, end(CLIENTS[0], 101), HOST[0], b"flood");
    assert_eq!((w.take_udp(53), w.dropped(DropReason::FlowLimit)), (None, 1));
    // And the guest has its own half.
    for port in 1..=4 {
        answers(&mut w, 1000, end(CLIENTS[0], port), b"own");
    }
    assert_eq!((w.stack.flow_counts().1, w.dropped_total()), (8, 1));
}

#[test]
fn the_guests_flows_come_before_those_of_strangers() {
    let limits = Limits { udp_flows: 4, ..Limits::default() };
    let (mut w, sock) = with(Config { limits, ..config(8053, 8053, 53) });
    for port in 1..=2 {
        answers(&mut w, 1000, end(CLIENTS[0], port), b"own");
        let own = w.edge.host.last();
        w.edge.host.udp_reply(own, b"reply");
        w.settle();
        arrives(&mut w, sock, end(CLIENTS[0], 100 + port), HOST[0], b"stranger");
    }
    answers(&mut w, 1000, end(CLIENTS[0], 3), b"own");
    assert_eq!((w.stack.flow_counts().1, w.dropped_total()), (4, 0));
    assert_eq!(w.edge.host.udp_sockets().len(), 4, "the guest's third flow was not opened");
    // The stranger idle longest gave way.
    answers(&mut w, 53, end(CLIENTS[0], 102), b"still there");
    assert_eq!(w.edge.host.udp(sock).sent.len(), 1);
}

#[test]
fn clients_that_cannot_be_are_dropped() {
    let (mut w, sock) = world();
    for (from, why) in [
        (end(CLIENTS[0], 0), DropReason::MartianSource),
        (end("0.0.0.0", 5), DropReason::MartianSource),
        (end("224.0.0.1", 5), DropReason::MartianSource),
        (end("255.255.255.255", 5), DropReason::MartianSource),
        (end("ff02::1", 5), DropReason::MartianSource),
    ] {
        let before = w.dropped(why);
        arrives(&mut w, sock, from, HOST[0], b"x");
        assert_eq!(w.dropped(why), before + 1, "{from}");
    }
    let (mut w, sock) = with(Config { v6: None, ..config(8053, 8053, 53) });
    arrives(&mut w, sock, end(CLIENTS[1], 4000), HOST[1], b"x");
    assert_eq!((w.dropped(DropReason::FamilyDisabled), w.take_udp(53)), (1, None));
}

#[test]
fn merged_datagrams_of_a_client_and_many_at_once_arrive() {
    let (mut w, sock) = world();
    let from = end(CLIENTS[0], 4000);
    let data: Vec<u8> = (0..=255).collect();
    let merged = Incoming { data: data.clone(), from, to: None, segment: Some(100), hop_limit: None };
    for _ in 0..50 {
        w.edge.host.udp_arrives(sock, merged.clone());
    }
    w.settle();
    for _ in 0..50 {
        let got: Vec<u8> = (0..3).flat_map(|_| w.take_udp(53).unwrap().1).collect();
        assert_eq!(got, data);
    }
    assert_eq!(w.take_udp(53), None);
    // Those of several clients keep their order and do not become one.
    let mut w = World::with_link(config(8053, 8053, 53), World::offload_link(1500));
    let sock = w.listen_udp(end("::", 8053));
    let ports = [1, 1, 2, 1, 2, 2];
    for (i, port) in ports.into_iter().enumerate() {
        let from = end(CLIENTS[0], port);
        let d = Incoming { data: vec![i as u8; 10], from, to: Some(ip(HOST[0])), segment: None, hop_limit: None };
        w.edge.host.udp_arrives(sock, d);
    }
    w.settle();
    for (i, port) in ports.into_iter().enumerate() {
        assert_eq!(w.take_udp(53), Some((end(CLIENTS[0], port), vec![i as u8; 10])));
    }
}
