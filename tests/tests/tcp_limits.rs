//! What flows may hold and occupy is bounded and shared, and goes back when they end, however they end.

use core::time::Duration;
use hibernet_netstack::DropReason;
use hibernet_netstack::config::{Config, Limits, Publish};
use hibernet_netstack::edge::{SockError, TxError};
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::TcpSegment;
use hibernet_tests::wire::flags::ACK;
use hibernet_tests::{ConnectPlan, Drain, Ended, TcpGuest, World};

fn remote() -> Endpoint {
    Endpoint::new("198.51.100.9".parse().unwrap(), 80)
}

/// A world in which all flows together may hold 100,000 bytes and sockets take next to nothing.
fn tight() -> World {
    let limits = Limits { tcp_hold: 100_000, tcp_hold_total: 100_000, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    w.edge.host.tcp_defaults.sndbuf = 2000;
    w.edge.host.tcp_defaults.drain = Drain::STOPPED;
    w
}

/// The window that a new connection gets beside what others hold.
fn window_of_a_new_one(w: &mut World, port: u16) -> u32 {
    let mut g = TcpGuest::connect(w, port, remote());
    g.send(w, b"x");
    g.send_at(w, 0, b"x");
    g.expect_ack(w);
    let window = g.their_window;
    g.rst(w);
    window
}

/// A connection that holds about 90,000 bytes for a peer that reads nothing.
fn hoarder(w: &mut World, port: u16) -> TcpGuest {
    let mut g = TcpGuest::connect(w, port, remote());
    g.send_all(w, &[7; 90_000], 1460);
    g.drain(w);
    assert!(window_of_a_new_one(w, port + 1) < 15_000, "the memory is shared");
    g
}

#[test]
fn what_a_flow_held_is_free_when_it_ended() {
    type End = fn(&mut World, &TcpGuest, hibernet_netstack::edge::SockId);
    let ends: [End; 3] = [
        |w, g, _| g.rst(w),
        |w, _, sock| {
            w.edge.host.peer(sock).reset();
        },
        |w, _, sock| {
            w.edge.host.peer(sock).tune(|t| t.drain = Drain::FAST);
        },
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let mut w = tight();
        let g = hoarder(&mut w, 1000);
        let sock = w.edge.host.tcp_sockets()[0];
        end(&mut w, &g, sock);
        w.run(Duration::from_millis(100));
        assert!(window_of_a_new_one(&mut w, 1100) > 90_000, "way {n} of ending");
    }
}

/// A reset by the peer frees what is held at once, also while the guest does not take the data before the reset.
#[test]
fn what_was_held_for_a_dead_peer_is_free_before_the_guest_hears_of_it() {
    let mut w = tight();
    let mut g = hoarder(&mut w, 1000);
    let sock = w.edge.host.tcp_sockets()[0];
    g.window = 0;
    g.ack(&mut w);
    w.edge.host.peer(sock).send(b"unread").reset();
    w.settle();
    assert!(w.edge.host.is_open(sock), "there is something left for the guest");
    assert!(window_of_a_new_one(&mut w, 1100) > 90_000);
}

#[test]
fn half_open_places_are_free_however_the_connects_ended() {
    let plans = [
        ConnectPlan::Blackhole,
        ConnectPlan::REFUSE,
        ConnectPlan::FailNow(SockError::NetUnreachable),
        ConnectPlan::Fail(Duration::from_secs(2), SockError::HostUnreachable),
        // Established on the host, but the guest never answers.
        ConnectPlan::Accept(Duration::ZERO),
    ];
    for plan in plans {
        let limits = Limits { tcp_half_open: 5, ..Limits::default() };
        let mut w = World::new(Config { limits, ..Config::default() });
        w.edge.host.default_plan = plan;
        for n in 0..20 {
            TcpGuest::new(&w, 1000 + n, remote()).syn(&mut w);
        }
        w.run(Duration::from_secs(300));
        w.assert_clean();
        w.inbox.clear();
        w.edge.host.default_plan = ConnectPlan::default();
        let mut guests: Vec<_> = (0..5).map(|n| TcpGuest::new(&w, 2000 + n, remote())).collect();
        guests.iter().for_each(|g| g.inject(&mut w, &g.syn_segment()));
        for g in &mut guests {
            g.snd_nxt = g.iss.wrapping_add(1);
            g.expect_synack(&mut w);
            g.ack(&mut w);
        }
        // And a standing connection does not count as half-open.
        TcpGuest::connect(&mut w, 3000, remote());
    }
}

#[test]
fn clients_that_the_guest_does_not_answer_are_limited_too() {
    let limits = Limits { tcp_half_open: 5, ..Limits::default() };
    let publish = vec![Publish { proto: 6, addr: None, host_ports: (8080, 8080), guest_port: 80 }];
    let mut w = World::new(Config { limits, publish, ..Config::default() });
    let local = Endpoint::new("192.0.2.1".parse().unwrap(), 8080);
    let socks: Vec<_> = (0..8).map(|n| w.accept(Endpoint::new("203.0.113.5".parse().unwrap(), 1000 + n), local)).collect();
    for (n, sock) in socks.into_iter().enumerate() {
        let ended = w.edge.host.tcp(sock).ended;
        assert_eq!(ended, if n < 5 { None } else { Some(Ended::Reset) }, "client {n}");
    }
    assert_eq!(w.dropped(DropReason::FlowLimit), 3);
}

/// A byte here and a byte there cost more than they say.
#[test]
fn pieces_behind_gaps_are_limited_in_number() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    for n in 0..500u32 {
        let s = TcpSegment { seq: g.snd_nxt.wrapping_add(2 + 2 * n), ..g.segment(ACK, b"x") };
        g.inject(&mut w, &s);
    }
    assert!(w.stack.stats().tcp_out_of_order <= 64);
    assert_eq!(w.dropped(DropReason::TcpReassemblyLimit) + w.stack.stats().tcp_out_of_order, 500);
    // What was refused is asked for, and the stream is whole in the end.
    g.drain(&mut w);
    let data = [b'x'; 1002];
    g.write(&mut w, &data, 300, Duration::from_secs(5));
    assert_eq!(w.edge.host.tcp(w.edge.host.last()).received, data);
}

/// A flow with a large window and much to send does not keep others waiting.
#[test]
fn flows_take_turns() {
    let mut w = World::new(Config::default());
    let guests: Vec<_> = (0..3).map(|n| TcpGuest::connect(&mut w, 1000 + n, remote())).collect();
    for sock in w.edge.host.tcp_sockets() {
        w.edge.host.peer(sock).send(&[9; 400_000]);
    }
    w.settle();
    let order: Vec<u16> = w.inbox.iter().map(|(_, f)| u16::from_be_bytes([f[36], f[37]])).collect();
    for g in &guests {
        let first = order.iter().position(|p| *p == g.local.port).expect("it sent something");
        assert!(first < 150, "port {} had to wait for {first} frames of others", g.local.port);
    }
}

/// A link whose queue is full for a moment delays a handshake by as much, not by a time-out; one that is full for long
/// does not use up the attempts.
#[test]
fn a_full_link_does_not_cost_a_handshake_a_time_out() {
    for (refusals, within) in [(1, 20), (3, 50), (200, 2000)] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::new(&w, 1000, remote());
        w.edge.links[0].fail.extend(vec![TxError::Full; refusals]);
        g.syn(&mut w);
        w.run(Duration::from_millis(within));
        g.expect_synack(&mut w);
        g.ack(&mut w);
        g.send(&mut w, b"x");
        assert_eq!(w.edge.host.tcp(w.edge.host.last()).queued() + w.edge.host.tcp(w.edge.host.last()).received.len(), 1);
        assert_eq!(w.dropped(DropReason::LinkFull), refusals as u64);
    }
}
