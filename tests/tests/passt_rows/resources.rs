//! Look-ups, slots, limits, idleness, cost.

use crate::{at, inbound, ms, published, remote};
use core::time::Duration;
use hibernet_netstack::config::{Config, Limits};
use hibernet_netstack::edge::{Ready, SockError};
use hibernet_netstack::{DropReason, Time};
use hibernet_tests::wire::flags::{ACK, RST};
use hibernet_tests::{ConnectPlan, Ended, TcpGuest, World, stream};
use std::time::Instant;

#[test]
fn row_01_one_client_port_at_two_host_addresses_is_two_connections() {
    let mut w = World::new(published());
    let client = at("198.51.100.9", 5000);
    let a = w.accept(client, at("192.0.2.1", 8080));
    let mut ga = TcpGuest::expect_syn(&mut w, 80, client);
    ga.complete(&mut w);
    let b = w.accept(client, at("192.0.2.2", 8080));
    assert!(w.edge.host.is_open(a), "the first connection lives on");
    // The guest sees the client's address, and a port of its own.
    let syn = w.take(|f| match &f.net {
        hibernet_tests::wire::Net::Ip { src, l4: hibernet_tests::wire::L4::Tcp(t), .. } => Some((*src, t.clone())),
        _ => None,
    });
    let (src, syn) = syn.expect("a SYN for the second connection");
    assert_eq!(src, client.addr);
    assert_ne!(syn.src_port, client.port);
    let mut gb = TcpGuest::new(&w, 80, at("198.51.100.9", syn.src_port));
    gb.iss = 77;
    (gb.irs, gb.rcv_nxt) = (syn.seq, syn.seq.wrapping_add(1));
    gb.complete(&mut w);
    w.edge.host.peer(a).send(b"for a");
    w.edge.host.peer(b).send(b"for b");
    w.settle();
    ga.expect_data(&mut w, b"for a");
    gb.expect_data(&mut w, b"for b");
    ga.send(&mut w, b"from a");
    gb.send(&mut w, b"from b");
    w.settle();
    assert_eq!(w.edge.host.tcp(a).received, b"from a");
    assert_eq!(w.edge.host.tcp(b).received, b"from b");
}

/// The same ends again can only mean that the kernel has forgotten the first connection.
#[test]
fn row_01_the_same_ends_again_replace_a_dead_connection() {
    let mut w = World::new(published());
    let client = at("198.51.100.9", 5000);
    let (_, old) = inbound(&mut w, client);
    let (mut g, new) = {
        let sock = w.accept(client, at("192.0.2.1", 8080));
        w.take_tcp(client, at("10.0.2.15", 80)).filter(|s| s.flags & RST != 0).expect("the guest hears of the old one's end");
        let mut g = TcpGuest::expect_syn(&mut w, 80, client);
        g.complete(&mut w);
        (g, sock)
    };
    assert!(!w.edge.host.is_open(old));
    w.edge.host.peer(new).send(b"new");
    w.settle();
    g.expect_data(&mut w, b"new");
}

/// Time per segment of one flow among `others`.
fn cost_among(others: u32) -> Duration {
    let mut w = World::new(Config::default());
    for n in 0..others {
        let mut g = TcpGuest::new(&w, 1024 + (n % 60_000) as u16, at("198.51.100.9", 1 + (n / 60_000) as u16));
        g.syn(&mut w);
        g.expect_synack(&mut w);
        g.ack(&mut w);
    }
    let g = TcpGuest::connect(&mut w, 500, remote());
    let frame = g.frame(&w, &g.segment(ACK, &[]));
    let round = |w: &mut World| {
        let start = Instant::now();
        (0..500).for_each(|_| w.receive(&frame));
        start.elapsed()
    };
    (0..20).map(|_| round(&mut w)).min().unwrap()
}

#[test]
fn row_01_a_segment_costs_the_same_among_many_flows() {
    let (few, many) = (cost_among(1), cost_among(20_000));
    // A linear scan would cost thousands of times as much; caches account for less than this.
    assert!(many < few * 20, "{few:?} with one other flow, {many:?} with 20,000");
}

#[test]
fn row_02_a_full_flow_table_refuses_and_harms_nobody() {
    let limits = Limits { tcp_flows: 3, ..Limits::default() };
    let mut w = World::new(Config { limits, ..published() });
    let mut guests: Vec<_> = (0..2).map(|n| TcpGuest::connect(&mut w, 1000 + n, remote())).collect();
    let (g, _) = inbound(&mut w, at("203.0.113.5", 5));
    guests.push(g);
    let mut extra = TcpGuest::new(&w, 2000, remote());
    extra.syn(&mut w);
    extra.expect_rst(&mut w);
    let refused = w.accept(at("203.0.113.5", 6), at("192.0.2.1", 8080));
    assert_eq!(w.edge.host.tcp(refused).ended, Some(Ended::Reset));
    assert_eq!(w.dropped(DropReason::FlowLimit), 2);
    for g in &mut guests {
        g.send(&mut w, b"alive");
        w.run(ms(300));
        g.expect_ack(&mut w);
    }
    // A place that becomes free is given out again.
    guests[0].rst(&mut w);
    TcpGuest::connect(&mut w, 2001, remote());
}

#[test]
fn row_02_no_descriptor_left_on_the_host_refuses_and_harms_nobody() {
    let mut w = World::new(published());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    w.edge.host.fail_open.extend([SockError::NoResources, SockError::NoResources]);
    let mut extra = TcpGuest::new(&w, 2000, remote());
    extra.syn(&mut w);
    extra.expect_rst(&mut w);
    let sock = w.accept(at("203.0.113.5", 6), at("192.0.2.1", 8080));
    assert!(!w.edge.host.is_open(sock));
    assert_eq!(w.dropped(DropReason::HostResources), 2);
    g.send(&mut w, b"alive");
    w.run(ms(300));
    g.expect_ack(&mut w);
}

#[test]
fn row_02_half_open_connections_have_a_limit_of_their_own() {
    let limits = Limits { tcp_half_open: 10, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    w.edge.host.default_plan = ConnectPlan::Blackhole;
    for n in 0..50 {
        TcpGuest::new(&w, 2000 + n, remote()).syn(&mut w);
    }
    assert_eq!(w.edge.host.open_sockets(), 11);
    assert_eq!(w.dropped(DropReason::FlowLimit), 40);
    g.send(&mut w, b"alive");
    w.run(ms(300));
    g.expect_ack(&mut w);
}

/// Everything that a flow remembers must be forgotten when its slot is given to the next one.
#[test]
fn row_03_a_thousand_connections_in_one_slot_do_not_see_each_other() {
    let limits = Limits { tcp_flows: 1, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    let mut rng = hibernet_tests::SplitMix::new(3);
    for n in 0..1000u64 {
        let mut g = TcpGuest::new(&w, 1000 + n as u16, remote());
        // Every third guest without window scaling, with a window of another size.
        g.scale = (n % 3 != 0).then_some((n % 15) as u8);
        g.window = [65_535, 20_000, 3000][n as usize % 3];
        g.handshake(&mut w);
        let sock = w.edge.host.last();
        let up = stream::bytes(n, 0, rng.below(3000) as usize);
        let down = stream::bytes(!n, 0, rng.below(3000) as usize);
        w.edge.host.peer(sock).send(&down);
        w.settle();
        assert!(g.read(&mut w, down.len(), crate::SECOND) == down, "connection {n}");
        g.send_all(&mut w, &up, 1460);
        w.run(ms(5));
        assert!(w.edge.host.tcp(sock).received == up, "connection {n}");
        g.drain(&mut w);
        if n % 2 == 0 {
            g.close(&mut w, sock);
        } else {
            g.rst(&mut w);
            w.edge.host.notify(sock);
        }
        w.assert_clean();
        w.inbox.clear();
    }
}

#[test]
fn row_04_after_a_reset_the_old_tuple_and_the_old_socket_are_nobody() {
    let limits = Limits { tcp_flows: 1, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    let mut old = TcpGuest::connect(&mut w, 1000, remote());
    let old_token = w.edge.host.token(w.edge.host.last()).unwrap();
    old.rst(&mut w);
    let mut new = TcpGuest::connect(&mut w, 1001, remote());
    let sock = w.edge.host.last();
    assert_ne!(w.edge.host.token(sock), Some(old_token), "the slot has another generation");
    old.send(&mut w, b"injected");
    let rst = old.expect_rst(&mut w);
    assert_eq!(rst.flags & ACK, 0, "RFC 9293 section 3.10.7.1: to a segment with ACK");
    // An event that was on its way for the old socket.
    let everything = Ready { readable: true, writable: true, peer_closed: true, error: true };
    let now = w.now();
    w.stack.socket_ready(now, old_token, everything, &mut w.edge);
    new.send(&mut w, b"mine");
    w.run(ms(5));
    new.expect_ack(&mut w);
    assert_eq!(w.edge.host.tcp(sock).received, b"mine");
    assert!(w.edge.host.is_open(sock));
}

#[test]
fn row_29_connects_into_a_black_hole_end_and_leave_nothing() {
    let mut w = World::new(Config::default());
    w.edge.host.default_plan = ConnectPlan::Blackhole;
    for n in 0..1000 {
        TcpGuest::new(&w, 1024 + n, remote()).syn(&mut w);
    }
    assert_eq!(w.stack.flow_counts().0, 1000);
    w.run(Duration::from_secs(300));
    w.assert_clean();
    assert_eq!(w.next_deadline(), None);
}

#[test]
fn row_29_nothing_wakes_us_when_connections_are_closed_and_little_when_they_are_idle() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    g.send(&mut w, b"x");
    w.edge.host.peer(sock).send(b"y");
    w.settle();
    assert_eq!(g.read(&mut w, 1, crate::SECOND), b"y");
    w.run(Duration::from_secs(5));
    let steps = w.steps;
    w.run(Duration::from_secs(3600));
    assert!(w.steps - steps < 20, "{} calls in an idle hour", w.steps - steps);
    g.drain(&mut w);
    g.close(&mut w, sock);
    let at_rest = w.next_deadline();
    w.run(Duration::from_secs(3 * 3600));
    assert!(w.next_deadline().is_none(), "a deadline without a flow: {at_rest:?}");
    w.assert_clean();
}

/// The first version kept its timers in bitmaps that it read as words: with the wrong one the wrong connection's turn came.
#[test]
fn row_30_each_of_many_connections_gets_its_own_timer() {
    let mut w = World::new(Config::default());
    let mut guests: Vec<_> = (0..200).map(|n| TcpGuest::connect(&mut w, 1000 + n, remote())).collect();
    let socks = w.edge.host.tcp_sockets();
    for (n, sock) in socks.iter().enumerate() {
        w.edge.host.peer(*sock).send(&stream::bytes(n as u64, 0, 100));
    }
    w.settle();
    for (n, g) in guests.iter_mut().enumerate() {
        let first = g.expect(&mut w);
        assert!(first.data == stream::bytes(n as u64, 0, 100));
        if n % 7 != 3 {
            g.rcv_nxt = g.rcv_nxt.wrapping_add(100);
            g.ack(&mut w);
        }
    }
    w.run(Duration::from_millis(1500));
    for (n, g) in guests.iter_mut().enumerate() {
        let again = g.drain(&mut w);
        assert_eq!(!again.is_empty(), n % 7 == 3, "connection {n}: {} segments", again.len());
        assert!(again.iter().all(|s| s.data == stream::bytes(n as u64, 0, 100)));
    }
}

#[test]
fn row_32_by_default_nothing_listens() {
    let mut w = World::new(Config::default());
    w.link_up();
    w.run(Duration::from_secs(60));
    assert_eq!(w.edge.host.all().count(), 0, "no socket without a flow or an option");
}

/// Calls at the host's sockets for `mib` MiB to the guest over a link with offloads.
fn peeks_for(mib: usize) -> u64 {
    let mut w = World::with_link(Config::default(), World::offload_link(1500));
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    for _ in 0..mib {
        let data = stream::bytes(1, 0, 1 << 20);
        w.edge.host.peer(sock).send(&data);
        w.settle();
        assert!(g.read(&mut w, data.len(), crate::SECOND) == data);
    }
    w.edge.host.tcp(sock).peeks
}

#[test]
fn row_33_the_cost_of_a_transfer_is_linear_and_small() {
    let (one, eight) = (peeks_for(1), peeks_for(8));
    assert!(one <= 40, "{one} reads for 1 MiB");
    assert!(eight <= 8 * one + 8, "{one} reads for 1 MiB, {eight} for 8");
    // Upwards: a super-segment is one call.
    let mut w = World::with_link(Config::default(), World::offload_link(1500));
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| t.sndbuf = 4 << 20);
    let gso = hibernet_netstack::edge::Gso { kind: hibernet_netstack::edge::GsoKind::Tcp4, size: 1460 };
    let data = stream::bytes(2, 0, 1 << 20);
    for piece in data.chunks(62_780) {
        g.send_gso(&mut w, piece, gso);
        w.run(ms(1));
    }
    assert!(w.edge.host.tcp(sock).received == data);
    let (_, sends) = w.edge.host.tcp(sock).sends;
    assert!(sends <= 20, "{sends} writes for 1 MiB");
    assert!(w.now() < Time::from_millis(10_000));
}
