//! Rules and tracking in the way of flows: what an operator's ruleset does to a sandbox.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::admin::{Recheck, RulesReport};
use hibernet_netstack::config::Publish;
use hibernet_netstack::conntrack::tcp::TcpState;
use hibernet_netstack::conntrack::{ConnId, Proto};
use hibernet_netstack::iptables::{Family, TableName, Target, text};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::wire::{self, Ip};
use hibernet_tests::{TcpGuest, World};

const UDP: u8 = 17;
const HOST: [&str; 2] = ["203.0.113.9", "2001:db8::5"];
/// Default-deny egress but for established connections and one port.
const DENY: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -p tcp -m tcp --dport 443 -j ACCEPT\n\
    -A FORWARD -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset\n\
    -A FORWARD -p udp -j LOG --log-prefix \"denied \"\n\
    -A FORWARD -p udp -j REJECT\nCOMMIT\n";

fn at(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

fn world(cfg: Config) -> World {
    let mut w = World::new(cfg);
    w.stack.set_host_addresses(HOST.map(|a| a.parse().unwrap()).into());
    w
}

fn published() -> Config {
    let publish = vec![Publish { proto: 6, addr: None, host_ports: (8080, 8080), guest_port: 80 }];
    Config { publish, ..Config::default() }
}

fn set(w: &mut World, family: Family, rules: &str, recheck: Recheck) -> RulesReport {
    let rules = text::parse(family, rules).unwrap_or_else(|e| panic!("{e}"));
    let now = w.now();
    let report = w.stack.set_rules(now, rules, recheck, &mut w.edge).unwrap_or_else(|e| panic!("{e}"));
    w.settle();
    report
}

fn v4(w: &mut World, rules: &str) -> RulesReport {
    set(w, Family::V4, rules, Recheck::Keep)
}

fn udp_out(w: &mut World, port: u16, to: Endpoint, data: &[u8]) {
    let guest = w.guest_addr(to.addr);
    w.inject_ip(&Ip::new(guest, to.addr), UDP, &wire::udp(guest, to.addr, port, to.port, data));
}

fn connections(w: &World) -> Vec<ConnId> {
    let mut ids = Vec::new();
    let mut from = Some(0);
    while let Some(at) = from {
        from = w.stack.conntrack().dump(w.now(), at, 1024, |id, _| ids.push(id));
    }
    ids
}

/// Packets that a rule of a chain has counted.
fn counted(w: &World, table: TableName, chain: &str, rule: usize) -> u64 {
    let rules = w.stack.rules(Family::V4);
    let table = rules.tables.iter().find(|t| t.name == table).expect("no such table");
    let chain = table.chains.iter().find(|c| c.name == chain).expect("no such chain");
    chain.rules[rule].counters.packets
}

#[test]
fn denied_egress_is_dropped_or_refused_and_allowed_egress_passes() {
    let mut w = world(Config::default());
    assert!(v4(&mut w, DENY).other_family_closed);
    let mut ok = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 443));
    ok.send(&mut w, b"hello");
    let sock = w.edge.host.last();
    assert_eq!(w.edge.host.peer(sock).take_received(), b"hello");
    w.edge.host.peer(sock).send(b"welcome");
    w.settle();
    ok.expect_data(&mut w, b"welcome");

    let mut silent = TcpGuest::new(&w, 5001, at("198.51.100.1", 80));
    silent.syn(&mut w);
    silent.expect_nothing(&mut w);
    assert_eq!(w.dropped(DropReason::Policy), 1);

    let mut refused = TcpGuest::new(&w, 5002, at("198.51.100.1", 25));
    refused.syn(&mut w);
    let rst = refused.expect_rst(&mut w);
    assert_eq!(rst.ack, refused.iss.wrapping_add(1));

    udp_out(&mut w, 5003, at("198.51.100.1", 53), b"query");
    let (from, ty, code, ..) = w.take_icmp().expect("an ICMP error");
    assert_eq!((from, ty, code), ("10.0.2.2".parse::<IpAddr>().unwrap(), 3, 3));
    assert_eq!(w.dropped(DropReason::Rejected), 2);
    let (log, lost) = w.stack.take_log();
    assert_eq!(lost, 0);
    assert_eq!(log.len(), 1);
    for part in ["denied ", "IN=tap0", "OUT=host0", "SRC=10.0.2.15", "DST=198.51.100.1", "PROTO=UDP", "SPT=5003", "DPT=53"] {
        assert!(log[0].contains(part), "{part} is not in {:?}", log[0]);
    }
    assert_eq!(w.edge.host.open_sockets(), 1, "a socket for a connection that was denied");
    assert_eq!(connections(&w).len(), 1, "an entry of a connection that was denied");
}

#[test]
fn a_family_without_rules_is_closed_once_the_other_has_some() {
    let mut w = world(Config::default());
    v4(&mut w, DENY);
    let mut g = TcpGuest::new(&w, 5000, at("2001:db8::99", 443));
    g.syn(&mut w);
    g.expect_nothing(&mut w);
    assert!(w.dropped(DropReason::NoRules) > 0);
    assert!(!set(&mut w, Family::V6, "*filter\nCOMMIT\n", Recheck::Keep).other_family_closed);
    TcpGuest::connect(&mut w, 5001, at("2001:db8::99", 443));
}

#[test]
fn destinations_are_translated_before_the_host_is_asked_and_answers_come_from_where_the_guest_called() {
    let mut w = world(Config::default());
    v4(
        &mut w,
        "*nat\n-A PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.7:8080\n\
         -A PREROUTING -p udp -m udp --dport 53 -j DNAT --to-destination 192.0.2.53\nCOMMIT\n",
    );
    let mut g = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 80));
    let sock = w.edge.host.last();
    assert_eq!(w.edge.host.tcp(sock).remote, at("192.0.2.7", 8080));
    w.edge.host.peer(sock).send(b"from afar");
    w.settle();
    g.expect_data(&mut w, b"from afar");
    udp_out(&mut w, 5001, at("8.8.8.8", 53), b"query");
    let dns = w.edge.host.last();
    assert_eq!(w.edge.host.udp(dns).to, Some(at("192.0.2.53", 53)));
    w.edge.host.udp_reply(dns, b"answer");
    w.settle();
    assert_eq!(w.take_udp(5001), Some((at("8.8.8.8", 53), b"answer".to_vec())));
    let (packets, conns) = (counted(&w, TableName::Nat, "PREROUTING", 0), connections(&w).len());
    assert_eq!((packets, conns), (1, 2));
}

#[test]
fn translated_sources_are_known_again_when_answers_come() {
    let mut w = world(Config::default());
    v4(&mut w, "*nat\n-A POSTROUTING -o host0 -j MASQUERADE\nCOMMIT\n");
    let mut g = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 80));
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"answer");
    w.settle();
    g.expect_data(&mut w, b"answer");
    g.send(&mut w, b"more");
    assert_eq!(w.edge.host.peer(sock).take_received(), b"more");
    let conn = w.stack.conntrack().get(connections(&w)[0]).unwrap();
    assert_eq!(conn.tuples[1].dst_ip(), HOST[0].parse::<IpAddr>().unwrap());
}

#[test]
fn connections_that_are_older_than_the_rules_go_on_as_established() {
    let mut w = world(Config::default());
    let mut g = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 80));
    let sock = w.edge.host.last();
    udp_out(&mut w, 5001, at("198.51.100.2", 9), b"one");
    let udp = w.edge.host.last();
    v4(&mut w, DENY);
    assert_eq!(connections(&w).len(), 2);
    g.send(&mut w, b"still here");
    assert_eq!(w.edge.host.peer(sock).take_received(), b"still here");
    w.edge.host.peer(sock).send(b"me too");
    w.edge.host.udp_reply(udp, b"late");
    w.settle();
    g.expect_data(&mut w, b"me too");
    assert_eq!(w.take_udp(5001), Some((at("198.51.100.2", 9), b"late".to_vec())));
    assert_eq!(w.dropped_total(), 0);
}

#[test]
fn rechecking_cuts_what_may_not_begin_any_more_and_only_that() {
    let mut w = world(Config::default());
    v4(&mut w, "*filter\nCOMMIT\n");
    let mut cut = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 80));
    let cut_sock = w.edge.host.last();
    let mut kept = TcpGuest::connect(&mut w, 5001, at("198.51.100.1", 443));
    let kept_sock = w.edge.host.last();
    let report = set(&mut w, Family::V4, DENY, Recheck::Cut);
    assert_eq!(report.cut, 1);
    cut.expect_rst(&mut w);
    assert!(!w.edge.host.is_open(cut_sock));
    assert!(w.edge.host.is_open(kept_sock));
    w.edge.host.peer(kept_sock).send(b"on");
    w.settle();
    kept.expect_data(&mut w, b"on");
}

#[test]
fn deleting_a_connection_resets_its_flow_on_both_sides() {
    let mut w = world(published());
    let mut out = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 80));
    let out_sock = w.edge.host.last();
    let client = at("198.51.100.9", 7000);
    let in_sock = w.accept(client, at(HOST[0], 8080));
    let mut inside = TcpGuest::expect_syn(&mut w, 80, client);
    inside.complete(&mut w);
    let ids = connections(&w);
    assert_eq!(ids.len(), 2);
    let now = w.now();
    assert_eq!(w.stack.delete_connections(now, &ids, &mut w.edge), 2);
    w.settle();
    out.expect_rst(&mut w);
    inside.expect_rst(&mut w);
    assert!(!w.edge.host.is_open(out_sock) && !w.edge.host.is_open(in_sock));
    assert!(connections(&w).is_empty());
    assert_eq!(w.stack.delete_connections(now, &ids, &mut w.edge), 0);
}

#[test]
fn published_ports_are_rules_that_can_be_seen_and_that_count() {
    let mut w = world(published());
    let client = at("198.51.100.9", 7000);
    w.accept(client, at(HOST[0], 8080));
    TcpGuest::expect_syn(&mut w, 80, client).complete(&mut w);
    assert_eq!(counted(&w, TableName::Nat, "HIBERNET-PUBLISH", 0), 1);
    // A ruleset of the user's keeps them, and may forbid what they lead to.
    v4(&mut w, "*nat\n-A PREROUTING -p tcp -m tcp --dport 1 -j RETURN\nCOMMIT\n");
    let rules = w.stack.rules(Family::V4);
    let nat = rules.tables.iter().find(|t| t.name == TableName::Nat).unwrap();
    let first = &nat.chains.iter().find(|c| c.name == "PREROUTING").unwrap().rules[0];
    assert_eq!(first.target, Target::Jump("HIBERNET-PUBLISH".to_owned()));
    let again = at("198.51.100.9", 7001);
    w.accept(again, at(HOST[0], 8080));
    TcpGuest::expect_syn(&mut w, 80, again);
    v4(&mut w, "*filter\n-A FORWARD -i host0 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j DROP\nCOMMIT\n");
    let denied = w.accept(at("198.51.100.9", 7002), at(HOST[0], 8080));
    assert!(!w.edge.host.is_open(denied), "a connection that a rule dropped is reset right after accept");
    assert_eq!(w.dropped(DropReason::Rule), 1);
    // And printing them gives what loads again.
    let printed = text::print(&w.stack.rules(Family::V4), text::PrintOptions::default());
    let read = text::parse(Family::V4, &printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(text::print(&read, text::PrintOptions::default()), printed);
}

#[test]
fn a_flow_of_datagrams_ends_with_its_connection() {
    let mut w = world(Config::default());
    v4(&mut w, "*filter\nCOMMIT\n");
    udp_out(&mut w, 5000, at("198.51.100.1", 9), b"one");
    let sock = w.edge.host.last();
    w.run(Duration::from_secs(20));
    udp_out(&mut w, 5000, at("198.51.100.1", 9), b"two");
    w.run(Duration::from_secs(29));
    assert!(w.edge.host.is_open(sock));
    w.run(Duration::from_secs(62));
    assert!(!w.edge.host.is_open(sock), "the flow outlived its connection");
    assert!(connections(&w).is_empty());
    // With traffic both ways it is a stream, and lives for two minutes.
    udp_out(&mut w, 5001, at("198.51.100.1", 9), b"one");
    let sock = w.edge.host.last();
    w.edge.host.udp_reply(sock, b"two");
    w.run(Duration::from_secs(3));
    for _ in 0..2 {
        udp_out(&mut w, 5001, at("198.51.100.1", 9), b"more");
        w.edge.host.udp_reply(sock, b"more");
        w.settle();
    }
    w.run(Duration::from_secs(110));
    assert!(w.edge.host.is_open(sock));
    w.run(Duration::from_secs(75));
    assert!(!w.edge.host.is_open(sock));
}

#[test]
fn a_live_connection_is_pinned_and_a_finished_one_ages() {
    let mut w = world(Config::default());
    v4(&mut w, "*filter\nCOMMIT\n");
    let mut g = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 80));
    let sock = w.edge.host.last();
    w.run(Duration::from_secs(600));
    assert_eq!(connections(&w).len(), 1);
    g.close(&mut w, sock);
    w.run(Duration::from_secs(60));
    assert_eq!(connections(&w).len(), 1, "TIME_WAIT");
    w.run(Duration::from_secs(130));
    assert!(connections(&w).is_empty());
}

#[test]
fn bad_rules_change_nothing() {
    let mut w = world(Config::default());
    v4(&mut w, DENY);
    let before = w.stack.rules(Family::V4);
    let bad = text::parse(Family::V4, "*filter\n:LOOP - [0:0]\n-A LOOP -j LOOP\n-A FORWARD -j LOOP\nCOMMIT\n").unwrap();
    let now = w.now();
    assert!(w.stack.set_rules(now, bad, Recheck::Cut, &mut w.edge).is_err());
    assert_eq!(w.stack.rules(Family::V4), before);
}

#[test]
fn the_stacks_own_services_answer_under_input_and_output_rules() {
    let mut w = world(Config::default());
    v4(&mut w, "*filter\n:INPUT DROP [0:0]\n-A INPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT\nCOMMIT\n");
    let (guest, gateway): (IpAddr, IpAddr) = ("10.0.2.15".parse().unwrap(), "10.0.2.2".parse().unwrap());
    w.inject_ip(&Ip::new(guest, gateway), 1, &wire::icmp(guest, gateway, 8, 0, 7 << 16 | 1, b"ping"));
    assert_eq!(w.take_icmp().map(|(from, ty, ..)| (from, ty)), Some((gateway, 0)));
    let mut g = TcpGuest::new(&w, 5000, at("10.0.2.2", 80));
    g.syn(&mut w);
    g.expect_nothing(&mut w);
    v4(&mut w, "*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n");
    w.inject_ip(&Ip::new(guest, gateway), 1, &wire::icmp(guest, gateway, 8, 0, 8 << 16 | 1, b"ping"));
    assert_eq!(w.take_icmp(), None);
    assert_eq!(w.dropped(DropReason::Policy), 2);
}

#[test]
fn a_syn_that_is_late_does_not_end_a_connection_that_closes() {
    let mut w = world(Config::default());
    v4(
        &mut w,
        "*nat\n-A POSTROUTING -o host0 -j MASQUERADE --random\nCOMMIT\n*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n",
    );
    let mut g = TcpGuest::connect(&mut w, 5000, at("198.51.100.1", 80));
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"all there is").fin();
    w.settle();
    let late = g.syn_segment();
    g.send(&mut w, b"bye");
    g.fin(&mut w);
    w.run(Duration::from_millis(50));
    // Both have closed; the guest has acknowledged neither the data nor our FIN.
    let conn = w.stack.conntrack().get(connections(&w)[0]).unwrap();
    assert!(matches!(conn.proto, Proto::Tcp(t) if t.state == TcpState::TimeWait), "{conn:?}");
    g.inject(&mut w, &late);
    assert!(w.edge.host.is_open(sock), "the late SYN ended the connection");
    assert_eq!(w.edge.host.open_sockets(), 1, "the late SYN opened another connection");
    assert_eq!(w.edge.host.peer(sock).take_received(), b"bye");
    assert_eq!(w.stack.flow_counts().0, 1);
}
