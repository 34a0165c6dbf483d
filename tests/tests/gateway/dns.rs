//! The DNS forwarder.

use crate::{config, send_udp, world};
use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::Limits;
use hibernet_netstack::edge::{Gso, GsoKind, RxChecksum, SockError, SockId};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::IcmpQuote;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::host::{Incoming, Report};
use hibernet_tests::wire::{self, GUEST_MAC, Ip};

const A: &[u8] = b"\x07example\x03org\0\0\x01\0\x01";
const AAAA: &[u8] = b"\x07example\x03org\0\0\x1c\0\x01";
const EDNS: &[u8] = &[0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0];
const ERROR: IcmpQuote = IcmpQuote { ty: 3, code: 3, rest: 0 };

fn resolver(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn world_with(resolvers: &[IpAddr]) -> World {
    let mut w = world();
    w.stack.set_resolvers(resolvers.to_vec());
    w
}

/// A message with one question and `rest` behind it; an EDNS record is counted.
fn message(id: u16, flags: u16, question: &[u8], rest: &[u8]) -> Vec<u8> {
    let edns = u16::from(rest.starts_with(&EDNS[..3]));
    let words = [id, flags, 1, 0, 0, edns];
    [&words.map(u16::to_be_bytes).concat(), question, rest].concat()
}

fn query(id: u16) -> Vec<u8> {
    message(id, 0x0100, A, b"")
}

/// The guest's resolver asks over IPv4.
fn ask(w: &mut World, port: u16, data: &[u8]) {
    send_udp(w, "10.0.2.15".parse().unwrap(), "10.0.2.3".parse().unwrap(), port, 53, data);
}

fn open_sockets(w: &World) -> Vec<SockId> {
    w.edge.host.all().filter(|s| w.edge.host.is_open(*s)).collect()
}

/// The only open socket, whom it asks, and what was sent there last.
fn asked(w: &mut World) -> (SockId, Endpoint, Vec<u8>) {
    let open = open_sockets(w);
    assert_eq!(open.len(), 1, "sockets open: {open:?}");
    let u = w.edge.host.udp(open[0]);
    assert_eq!(u.wanted_port, None, "the source port is the host's choice");
    (open[0], u.to.unwrap(), u.sent.last().expect("a query").data.clone())
}

/// Identifier towards the resolver.
fn id_of(data: &[u8]) -> u16 {
    u16::from_be_bytes([data[0], data[1]])
}

/// The socket's resolver answers with these flags and this behind the question.
fn reply(w: &mut World, sock: SockId, id: u16, flags: u16, question: &[u8], rest: &[u8]) {
    w.edge.host.udp_reply(sock, &message(id, flags, question, rest));
    w.settle();
}

fn servfail(id: u16) -> Vec<u8> {
    message(id, 0x8182, A, b"")
}

#[test]
fn a_query_goes_out_under_another_identifier_and_its_answer_back_under_the_guests() {
    let server: IpAddr = "127.0.0.53".parse().unwrap();
    for (src, dst) in [("10.0.2.15", "10.0.2.3"), ("fd68:6962:6e65:7400::15", "fd68:6962:6e65:7400::3")] {
        let mut w = world_with(&[server]);
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        send_udp(&mut w, src, dst, 40_001, 53, &message(0x1234, 0x0120, A, EDNS));
        let (sock, to, data) = asked(&mut w);
        assert_eq!(to, Endpoint::new(server, 53));
        let id = id_of(&data);
        assert_ne!(id, 0x1234);
        assert_eq!(data, message(id, 0x0120, A, EDNS), "EDNS and flags pass untouched");
        let rest: Vec<u8> = (0..1100u32).map(|i| i as u8).collect();
        reply(&mut w, sock, id, 0x8180, A, &rest);
        let expected = (Endpoint::new(dst, 53), message(0x1234, 0x8180, A, &rest));
        assert_eq!(w.take_udp(40_001), Some(expected));
        assert_eq!((w.stack.stats().dns_queries, w.stack.stats().dns_answers, w.dropped_total()), (1, 1, 0));
        w.assert_clean();
        // What is left of the deadline wakes nobody up twice.
        w.run(Duration::from_secs(60));
        assert!(w.inbox.is_empty() && w.stack.next_deadline().is_none());
    }
}

#[test]
fn identifiers_and_sockets_are_not_shared() {
    let mut w = world_with(&[resolver(1)]);
    let mut seen = std::collections::BTreeSet::new();
    for port in 0..64 {
        ask(&mut w, 40_000 + port, &query(7));
    }
    for sock in open_sockets(&w) {
        seen.insert(id_of(&w.edge.host.udp(sock).sent[0].data));
    }
    assert_eq!(open_sockets(&w).len(), 64);
    assert!(seen.len() > 60, "identifiers are random: {seen:?}");
}

#[test]
fn a_query_that_is_asked_again_is_not_forwarded_again() {
    let mut w = world_with(&[resolver(1)]);
    ask(&mut w, 40_001, &query(1));
    ask(&mut w, 40_001, &query(1));
    assert_eq!((w.edge.host.all().count(), w.dropped(DropReason::DnsDuplicate)), (1, 1));
    // Another question, identifier or port is another query.
    ask(&mut w, 40_001, &message(1, 0x0100, AAAA, b""));
    ask(&mut w, 40_001, &query(2));
    ask(&mut w, 40_002, &query(1));
    assert_eq!((w.edge.host.all().count(), w.stack.stats().dns_queries), (4, 4));
}

#[test]
fn what_is_not_the_answer_is_counted_and_the_answer_still_counts() {
    let mut w = world_with(&[resolver(1)]);
    ask(&mut w, 40_001, &query(1));
    let (sock, to, data) = asked(&mut w);
    let id = id_of(&data);
    let from = |from: Endpoint, data: Vec<u8>| Incoming { data, from, to: None, segment: None, hop_limit: None };
    let good = message(id, 0x8180, A, b"\xc0\x0c");
    for wrong in [
        from(Endpoint::new(resolver(2), 53), good.clone()),
        from(Endpoint::new(resolver(1), 54), good.clone()),
        from(to, message(id ^ 1, 0x8180, A, b"")),
        from(to, message(id, 0x0100, A, b"")),
        from(to, message(id, 0x8180, AAAA, b"")),
        from(to, good[..20].to_vec()),
        from(to, Vec::new()),
    ] {
        let before = w.dropped(DropReason::BadDns);
        w.edge.host.udp_arrives(sock, wrong.clone());
        w.settle();
        assert_eq!((w.dropped(DropReason::BadDns), w.inbox.len()), (before + 1, 0), "{wrong:?}");
    }
    // Two at once, the second of which is it; then one too many.
    w.edge.host.udp_arrives(sock, from(to, message(id ^ 1, 0x8180, A, b"")));
    w.edge.host.udp_arrives(sock, from(to, good.clone()));
    w.edge.host.udp_arrives(sock, from(to, good.clone()));
    w.settle();
    assert_eq!(w.take_udp(40_001).unwrap().1, message(1, 0x8180, A, b"\xc0\x0c"));
    assert!(w.inbox.is_empty());
    w.assert_clean();
}

#[test]
fn merged_datagrams_are_looked_at_one_by_one() {
    let mut w = world_with(&[resolver(1)]);
    ask(&mut w, 40_001, &query(1));
    let (sock, from, data) = asked(&mut w);
    let (wrong, good) = (message(id_of(&data) ^ 1, 0x8180, A, b""), message(id_of(&data), 0x8180, A, b""));
    let segment = Some(good.len() as u16);
    w.edge.host.udp_arrives(sock, Incoming { data: [wrong, good].concat(), from, to: None, segment, hop_limit: None });
    w.settle();
    assert_eq!(w.take_udp(40_001).unwrap().1, message(1, 0x8180, A, b""));
    w.assert_clean();
}

#[test]
fn silent_resolvers_are_asked_in_turn_and_then_the_guest_is_told() {
    let mut w = world_with(&[resolver(1), resolver(2), resolver(3)]);
    ask(&mut w, 40_001, &message(9, 0x0120, A, EDNS));
    for n in [1, 2, 3, 1] {
        assert_eq!(asked(&mut w).1, Endpoint::new(resolver(n), 53));
        assert!(w.inbox.is_empty());
        w.run(Duration::from_millis(1999));
        assert_eq!(asked(&mut w).1, Endpoint::new(resolver(n), 53));
        w.run(Duration::from_millis(1));
    }
    let edns = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
    assert_eq!(w.take_udp(40_001).unwrap().1, message(9, 0x8182, A, &edns));
    w.assert_clean();
}

#[test]
fn a_late_answer_of_a_single_resolver_counts() {
    let mut w = world_with(&[resolver(1)]);
    ask(&mut w, 40_001, &query(9));
    let (sock, _, first) = asked(&mut w);
    w.run(Duration::from_secs(3));
    let (again, _, second) = asked(&mut w);
    assert_eq!((again, second, w.edge.host.udp(sock).sent.len()), (sock, first.clone(), 2));
    reply(&mut w, sock, id_of(&first), 0x8180, A, b"");
    assert_eq!(w.take_udp(40_001).unwrap().1, message(9, 0x8180, A, b""));
    w.assert_clean();
}

#[test]
fn errors_go_to_the_next_resolver_at_once() {
    let mut w = world_with(&[resolver(1), resolver(2), resolver(3)]);
    let start = w.now();
    // The first socket cannot be opened, the second reports an ICMP error, the third refuses to send.
    w.edge.host.fail_open.push_back(SockError::NotAvailable);
    ask(&mut w, 40_001, &query(5));
    let (sock, to, _) = asked(&mut w);
    assert_eq!(to.addr, resolver(2));
    w.edge.host.report(sock, Report { icmp: ERROR, offender: None, destination: None, payload: vec![1, 2, 3] });
    w.settle();
    let (sock, to, data) = asked(&mut w);
    assert_eq!((to.addr, w.now()), (resolver(3), start));
    reply(&mut w, sock, id_of(&data), 0x8180, A, b"");
    assert_eq!(w.take_udp(40_001).unwrap().1, message(5, 0x8180, A, b""));
    w.assert_clean();
}

#[test]
fn when_all_resolvers_refuse_the_guest_is_told_at_once() {
    let mut w = world_with(&[resolver(1), resolver(2)]);
    let start = w.now();
    ask(&mut w, 40_001, &query(5));
    for _ in 0..2 {
        let (sock, _, _) = asked(&mut w);
        w.edge.host.report(sock, Report { icmp: ERROR, offender: None, destination: None, payload: Vec::new() });
        w.settle();
    }
    assert_eq!(w.take_udp(40_001).unwrap().1, servfail(5));
    assert_eq!((w.now(), w.edge.host.all().count()), (start, 2));
    w.assert_clean();
}

#[test]
fn without_resolver_the_guest_is_told_at_once_and_a_new_one_is_used() {
    let mut w = world_with(&[]);
    ask(&mut w, 40_001, &query(5));
    assert_eq!(w.take_udp(40_001).unwrap().1, servfail(5));
    w.assert_clean();
    w.stack.set_resolvers(vec![resolver(1)]);
    ask(&mut w, 40_001, &query(6));
    assert_eq!(asked(&mut w).1.addr, resolver(1));
    // Another network, while the query is in flight.
    w.stack.set_resolvers(vec![resolver(9)]);
    w.run(Duration::from_secs(2));
    assert_eq!(asked(&mut w).1.addr, resolver(9));
    w.stack.set_resolvers(Vec::new());
    w.run(Duration::from_secs(2));
    assert_eq!(w.take_udp(40_001).unwrap().1, servfail(6));
    w.assert_clean();
}

#[test]
fn without_sockets_or_memory_the_guest_is_told() {
    let mut w = world_with(&[resolver(1)]);
    w.edge.host.max_sockets = Some(0);
    ask(&mut w, 40_001, &query(5));
    assert_eq!(w.take_udp(40_001).unwrap().1, servfail(5));
    w.edge.host.max_sockets = None;
    w.edge.pool.stash_limit = Some(0);
    ask(&mut w, 40_001, &query(5));
    assert_eq!(w.take_udp(40_001).unwrap().1, servfail(5));
    w.assert_clean();
}

#[test]
fn no_more_queries_than_allowed_are_in_flight() {
    let limits = Limits { dns_queries: 3, ..Limits::default() };
    let mut w = World::new(Config { limits, resolvers: vec![resolver(1)], ..config() });
    for port in 1..=5 {
        ask(&mut w, port, &query(port));
    }
    assert_eq!((open_sockets(&w).len(), w.dropped(DropReason::DnsLimit)), (3, 2));
    let sock = open_sockets(&w)[1];
    let id = id_of(&w.edge.host.udp(sock).sent[0].data);
    reply(&mut w, sock, id, 0x8180, A, b"");
    ask(&mut w, 5, &query(5));
    assert_eq!(open_sockets(&w).len(), 3);
    w.run(Duration::from_secs(10));
    w.assert_clean();
}

#[test]
fn bad_messages_are_counted_and_bad_queries_answered() {
    let mut w = world_with(&[resolver(1)]);
    let mut two = query(5);
    two[5] = 2;
    for (data, answer) in [
        (b"".to_vec(), None),
        (query(5)[..11].to_vec(), None),
        (message(5, 0x8180, A, b""), None),
        (query(5)[..28].to_vec(), Some(b"\0\x05\x81\x81\0\0\0\0\0\0\0\0".to_vec())),
        (two, Some(b"\0\x05\x81\x81\0\0\0\0\0\0\0\0".to_vec())),
        (vec![1; 1400], Some(b"\x01\x01\x81\x81\0\0\0\0\0\0\0\0".to_vec())),
    ] {
        let before = w.dropped(DropReason::BadDns);
        ask(&mut w, 40_001, &data);
        assert_eq!(w.take_udp(40_001).map(|a| a.1), answer, "{data:02x?}");
        assert_eq!(w.dropped(DropReason::BadDns), before + 1);
    }
    send_udp(&mut w, "0.0.0.0".parse().unwrap(), "10.0.2.3".parse().unwrap(), 40_001, 53, &query(5));
    assert_eq!((w.dropped(DropReason::MartianSource), w.inbox.len()), (1, 0), "nobody asks");
    assert_eq!(w.edge.host.all().count(), 0);
}

#[test]
fn a_super_segment_of_queries_is_as_many_queries() {
    let mut w = World::with_link(Config { resolvers: vec![resolver(1)], ..config() }, World::offload_link(1500));
    let (src, dst): (IpAddr, IpAddr) = ("10.0.2.15".parse().unwrap(), "10.0.2.3".parse().unwrap());
    let all = [query(1), query(2), query(3)].concat();
    let frame = Ip::new(src, dst).frame(w.gateway_mac(), GUEST_MAC, 17, &wire::udp(src, dst, 4000, 53, &all));
    let gso = Gso { kind: GsoKind::Udp, size: query(1).len() as u16 };
    w.receive_as(&frame, RxChecksum::Trusted, Some(gso));
    w.settle();
    assert_eq!((open_sockets(&w).len(), w.stack.stats().dns_queries), (3, 3));
    w.run(Duration::from_secs(10));
    w.assert_clean();
}

#[test]
fn an_answer_larger_than_the_mtu_comes_in_fragments() {
    let mut w = world_with(&[resolver(1)]);
    ask(&mut w, 40_001, &query(1));
    let (sock, _, data) = asked(&mut w);
    reply(&mut w, sock, id_of(&data), 0x8180, A, &[7; 4000]);
    assert_eq!((w.inbox.len(), w.take_udp(40_001)), (3, None));
    w.assert_clean();
}

#[test]
fn an_event_for_a_query_that_is_over_is_ignored() {
    let mut w = world_with(&[resolver(1)]);
    ask(&mut w, 40_001, &query(1));
    let (sock, _, data) = asked(&mut w);
    let stale = w.edge.host.token(sock).unwrap();
    reply(&mut w, sock, id_of(&data), 0x8180, A, b"");
    ask(&mut w, 40_001, &query(2));
    let all = hibernet_netstack::edge::Ready { readable: true, writable: true, peer_closed: true, error: true };
    let now = w.now();
    w.stack.socket_ready(now, stale, all, &mut w.edge);
    w.settle();
    assert_eq!(w.edge.host.all().count(), 2, "the new query is not disturbed");
}
