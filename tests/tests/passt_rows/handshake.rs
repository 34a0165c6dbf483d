//! Beginnings.

use crate::{SECOND, at, inbound, ms, published, remote, remotes};
use core::time::Duration;
use hibernet_netstack::config::Config;
use hibernet_netstack::edge::SockError;
use hibernet_tests::wire::flags::{ACK, PSH, RST, SYN};
use hibernet_tests::{ConnectPlan, TcpGuest, World, stream};
use std::collections::BTreeSet;

/// Our initial sequence number for a connection of its own in a world of its own.
fn isn(seed: u64, port: u16) -> u32 {
    let mut w = World::seeded(Config::default(), World::plain_link(), seed);
    let mut g = TcpGuest::new(&w, port, remote());
    g.syn(&mut w);
    g.expect_synack(&mut w).seq
}

#[test]
fn row_12_initial_sequence_numbers_are_unlike_each_other() {
    let by_seed: BTreeSet<u32> = (0..200).map(|seed| isn(seed, 1000)).collect();
    let by_tuple: BTreeSet<u32> = (0..200).map(|n| isn(1, 1000 + n)).collect();
    for set in [&by_seed, &by_tuple] {
        assert_eq!(set.len(), 200, "equal numbers");
        assert!(!set.contains(&0));
        // Spread over the whole space: each sixteenth is met.
        let sixteenths: BTreeSet<u32> = set.iter().map(|n| n >> 28).collect();
        assert_eq!(sixteenths.len(), 16);
    }
}

#[test]
fn row_12_one_tuple_again_starts_later_and_works_at_once() {
    let mut w = World::new(Config::default());
    let mut last: Option<u32> = None;
    for n in 0..20u8 {
        let mut g = TcpGuest::connect(&mut w, 1000, remote());
        let sock = w.edge.host.last();
        if let Some(last) = last {
            let ahead = g.irs.wrapping_sub(last);
            assert!(ahead > 0 && ahead < 1 << 31, "RFC 6528: the number goes up with the clock: {last} then {}", g.irs);
        }
        last = Some(g.irs);
        g.send(&mut w, &[n]);
        g.drain(&mut w);
        g.close(&mut w, sock);
        assert_eq!(w.edge.host.tcp(sock).received, [n]);
        w.run(ms(1 + u64::from(n) * 200));
        w.assert_clean();
    }
}

#[test]
fn row_11_the_first_byte_of_an_inbound_stream_arrives() {
    let mut w = World::new(published());
    let (mut g, sock) = inbound(&mut w, at("203.0.113.5", 555));
    w.edge.host.peer(sock).send(b"GET /");
    w.settle();
    let first = g.expect(&mut w);
    assert_eq!((first.seq, &first.data[..]), (g.irs.wrapping_add(1), &b"GET /"[..]));
}

#[test]
fn row_10_the_last_byte_of_an_inbound_connections_answer_is_acknowledged() {
    let mut w = World::new(published());
    let (mut g, sock) = inbound(&mut w, at("203.0.113.5", 555));
    for n in [1usize, 2, 1459, 5000] {
        let data = stream::bytes(10, 0, n);
        g.send_all(&mut w, &data, 1460);
        w.run(ms(300));
        g.expect_ack(&mut w);
        assert!(w.edge.host.peer(sock).take_received() == data);
    }
}

#[test]
fn row_13_who_speaks_first_is_heard_however_late_the_other_comes() {
    // A server that speaks first, and a guest whose last acknowledgement is late.
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::new(&w, 1000, remote());
    g.syn(&mut w);
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"SSH-2.0");
    w.run(ms(1));
    g.expect_synack(&mut w);
    w.run(ms(100));
    g.expect_nothing(&mut w);
    g.ack(&mut w);
    g.expect_data(&mut w, b"SSH-2.0");
    // A server that speaks before its connection is known here.
    w.edge.host.default_plan = ConnectPlan::Accept(ms(50));
    let mut g = TcpGuest::new(&w, 1001, remote());
    g.syn(&mut w);
    let sock = w.edge.host.last();
    w.run(ms(50));
    w.edge.host.peer(sock).send(b"early").fin();
    g.expect_synack(&mut w);
    g.ack(&mut w);
    assert_eq!(g.read(&mut w, 5, SECOND), b"early");
    g.expect_fin(&mut w);
    // A client that speaks before the guest has answered, and a guest that takes its time.
    let mut w = World::new(published());
    let client = at("203.0.113.5", 555);
    let sock = w.accept(client, at("192.0.2.1", 8080));
    w.edge.host.peer(sock).send(b"GET /").fin();
    w.run(ms(100));
    let mut g = TcpGuest::expect_syn(&mut w, 80, client);
    g.synack(&mut w);
    assert_eq!(g.read(&mut w, 5, SECOND), b"GET /");
    g.expect_fin(&mut w);
    // A guest that speaks first to a client.
    let (mut g, sock) = inbound(&mut w, at("203.0.113.6", 555));
    g.send(&mut w, b"220 ready");
    w.run(ms(1));
    assert_eq!(w.edge.host.tcp(sock).received, b"220 ready");
}

#[test]
fn row_26_a_lost_syn_ack_is_sent_again_as_it_was() {
    for to in remotes() {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::new(&w, 1000, to);
        g.syn(&mut w);
        let lost = g.expect_synack(&mut w);
        // The guest asks again: the same answer, at once, and no second socket.
        g.syn(&mut w);
        let again = g.expect_synack(&mut w);
        assert_eq!((again.seq, again.ack, &again.options), (lost.seq, lost.ack, &lost.options));
        assert_eq!(w.edge.host.all().count(), 1);
        // And by itself, too, as often as is needed.
        for _ in 0..3 {
            let by_itself = g.expect_within(&mut w, Duration::from_secs(9));
            assert_eq!((by_itself.flags, by_itself.seq), (SYN | ACK, lost.seq), "the number does not move");
        }
        g.ack(&mut w);
        g.send(&mut w, b"x");
        w.run(ms(5));
        assert_eq!(w.edge.host.tcp(w.edge.host.last()).received, b"x");
    }
}

#[test]
fn row_26_a_lost_syn_to_the_guest_is_sent_again_as_it_was() {
    let mut w = World::new(published());
    let client = at("203.0.113.5", 555);
    let sock = w.accept(client, at("192.0.2.1", 8080));
    let first = TcpGuest::expect_syn(&mut w, 80, client);
    let mut g = first.clone();
    for _ in 0..3 {
        let again = g.expect_within(&mut w, Duration::from_secs(9));
        assert_eq!((again.flags, again.seq), (SYN, first.irs));
    }
    g.complete(&mut w);
    w.edge.host.peer(sock).send(b"x");
    w.settle();
    g.expect_data(&mut w, b"x");
}

#[test]
fn row_26_a_guest_that_never_answers_ends_the_clients_connection() {
    let mut w = World::new(published());
    w.accept(at("203.0.113.5", 555), at("192.0.2.1", 8080));
    w.run(Duration::from_secs(200));
    w.assert_clean();
}

#[test]
fn row_26_data_on_the_last_acknowledgement_of_the_handshake_count() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::new(&w, 1000, remote());
    g.syn(&mut w);
    g.expect_synack(&mut w);
    g.send(&mut w, b"GET /");
    w.run(ms(300));
    g.expect_ack(&mut w);
    assert_eq!(w.edge.host.tcp(w.edge.host.last()).received, b"GET /");
}

#[test]
fn row_27_a_refused_connect_is_refused_to_the_guest_at_once() {
    for to in remotes() {
        let mut w = World::new(Config::default());
        w.edge.host.default_plan = ConnectPlan::Fail(ms(20), SockError::Refused);
        let mut g = TcpGuest::new(&w, 1000, to);
        g.syn(&mut w);
        let start = w.now();
        let s = g.expect_within(&mut w, ms(100));
        // RFC 9293 section 3.10.7.3: in SYN-SENT only a reset that acknowledges the SYN is heard.
        assert_eq!((s.flags, s.ack, s.seq), (RST | ACK, g.iss.wrapping_add(1), 0));
        assert!(w.now().since(start) <= ms(21));
        w.assert_clean();
        // Refused by the call itself.
        w.edge.host.default_plan = ConnectPlan::FailNow(SockError::Refused);
        let mut g = TcpGuest::new(&w, 1001, to);
        g.syn(&mut w);
        g.expect_rst(&mut w);
        w.assert_clean();
    }
}

/// Not a row of its own: larger scales than RFC 7323 allows are taken as 14, not as a reason to do without or to reset.
#[test]
fn row_17_a_window_scale_beyond_the_limit_is_clamped() {
    for scale in [14, 15, 255] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::new(&w, 1000, remote());
        g.scale = Some(scale);
        g.handshake(&mut w);
        assert!(g.their_scale.is_some());
        let sock = w.edge.host.last();
        let data = stream::bytes(17, 0, 200_000);
        // A window of 8, scaled by 14, is 128 KiB: so much comes without a further acknowledgement.
        g.window = 8;
        g.ack(&mut w);
        w.edge.host.peer(sock).send(&data);
        w.settle();
        let got: usize = g.drain(&mut w).iter().map(|s| s.data.len()).sum();
        assert!((100_000..=131_072).contains(&got), "scale {scale}: {got} bytes");
    }
}

#[test]
fn row_26_a_syn_within_a_standing_connection_is_challenged() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    // RFC 5961 section 4.
    g.inject(&mut w, &g.segment(SYN, &[]));
    g.expect_ack(&mut w);
    g.inject(&mut w, &g.syn_segment());
    g.expect_ack(&mut w);
    let s = g.segment(ACK | PSH, b"x");
    g.snd_nxt = g.snd_nxt.wrapping_add(1);
    g.inject(&mut w, &s);
    w.run(ms(300));
    g.expect_ack(&mut w);
}
