//! What TCP makes of a link: how much may be on its way, and segments that overtake each other.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::edge::{LinkId, LinkInfo, TxError};
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::flags::{ACK, FIN, PSH};
use hibernet_tests::{TcpGuest, World};

fn remote() -> Endpoint {
    Endpoint::new("198.51.100.9".parse().unwrap(), 80)
}

#[test]
fn the_window_is_no_larger_than_what_the_link_holds() {
    for (in_flight, most) in [(100_000, 100_000), (0, 65_535)] {
        let mut w = World::with_link(Config::default(), LinkInfo { in_flight, ..World::plain_link() });
        let mut g = TcpGuest::connect(&mut w, 40_000, remote());
        let sock = w.edge.host.last();
        let mut total = 0;
        for _ in 0..200 {
            g.send_all(&mut w, &[7; 14_000], 1400);
            total += 14_000;
            w.run(Duration::from_millis(50));
            g.drain(&mut w);
            // The field is rounded up to the window scale.
            assert!(g.their_window <= most + 128, "{} bytes offered", g.their_window);
        }
        assert!(g.their_window >= most - 2 * 1460, "{} bytes offered of {most}", g.their_window);
        assert_eq!(w.edge.host.peer(sock).take_received().len(), total);
    }
}

#[test]
fn a_fin_that_overtook_its_data_need_not_come_again() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    let start = g.snd_nxt;
    g.snd_nxt = start.wrapping_add(5);
    let last = g.segment(ACK | FIN, b"world");
    g.inject(&mut w, &last);
    g.drain(&mut w);
    assert!(!w.edge.host.tcp(sock).shutdown);
    g.send_at(&mut w, 0, b"hello");
    w.settle();
    assert_eq!(w.edge.host.peer(sock).take_received(), b"helloworld");
    assert!(w.edge.host.tcp(sock).shutdown, "the FIN was kept");
    g.snd_nxt = start.wrapping_add(11);
    let acks = g.drain(&mut w);
    assert_eq!(acks.last().unwrap().ack, g.snd_nxt);
}

/// A connection that has sent three segments, of which the guest lacks the first.
fn with_a_hole(w: &mut World) -> (TcpGuest, u32) {
    let mut g = TcpGuest::connect(w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(&[7; 1460 * 3]);
    w.settle();
    let first = g.expect(w).seq;
    g.drain(w);
    (g, first)
}

#[test]
fn a_link_that_is_full_for_a_moment_does_not_cost_a_fast_retransmission() {
    let mut w = World::new(Config::default());
    let (mut g, first) = with_a_hole(&mut w);
    w.edge.links[0].fail.push_back(TxError::Full);
    for _ in 0..3 {
        g.ack(&mut w);
    }
    assert_eq!((w.edge.links[0].refused, g.next(&mut w)), (1, None));
    w.run(Duration::from_millis(10));
    assert_eq!(g.expect(&mut w).seq, first);
    g.expect_nothing(&mut w);
}

#[test]
fn a_link_that_is_full_for_a_moment_does_not_double_a_time_out() {
    let mut w = World::new(Config::default());
    let (mut g, first) = with_a_hole(&mut w);
    w.edge.links[0].fail.push_back(TxError::Full);
    w.run_until(Duration::from_secs(5), |w| w.edge.links[0].refused == 1).unwrap();
    w.run(Duration::from_millis(10));
    assert_eq!(g.expect(&mut w).seq, first);
    g.expect_nothing(&mut w);
}

#[test]
fn a_full_link_does_not_hold_up_what_fills_the_next_hole() {
    let mut w = World::new(Config::default());
    let (mut g, first) = with_a_hole(&mut w);
    w.run_until(Duration::from_secs(5), |w| g.next(w).is_some_and(|s| s.seq == first)).unwrap();
    // The first arrived, the second is missing too.
    w.edge.links[0].fail.push_back(TxError::Full);
    g.ack_at(&mut w, 1460);
    assert_eq!(w.edge.links[0].refused, 1);
    w.run(Duration::from_millis(10));
    assert_eq!(g.expect(&mut w).seq, first.wrapping_add(1460));
}

/// A link that does not cut segments itself: what the host has is read for many of them at once.
#[test]
fn segments_that_the_link_does_not_cut_are_read_together() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    // The guest's window is 64 KiB.
    let data: Vec<u8> = (0..20 * 1460 + 700u32).map(|n| (n % 251) as u8).collect();
    w.edge.host.peer(sock).send(&data);
    let before = w.edge.host.tcp(sock).peeks;
    w.settle();
    let segments = g.drain(&mut w);
    assert_eq!(segments.iter().map(|s| s.data.len()).collect::<Vec<_>>(), [&[1460; 20][..], &[700]].concat());
    assert_eq!(segments.iter().flat_map(|s| s.data.clone()).collect::<Vec<u8>>(), data);
    assert!(segments[..20].iter().all(|s| s.flags & PSH == 0) && segments[20].flags & PSH != 0);
    assert_eq!(w.edge.host.tcp(sock).peeks - before, 1);
    w.edge.pool.assert_empty();
}

#[test]
fn a_link_that_fills_up_gets_the_rest_as_soon_as_it_has_room() {
    let mut w = World::new(Config::default());
    let mut connect = |n: u16| (TcpGuest::connect(&mut w, 40_000 + n, remote()), w.edge.host.last());
    let (mut guests, socks): (Vec<_>, Vec<_>) = (0..40).map(&mut connect).unzip();
    let data: Vec<u8> = (0..10 * 1460u32).map(|n| (n % 251) as u8).collect();
    for sock in &socks {
        w.edge.host.peer(*sock).send(&data);
    }
    w.edge.links[0].capacity = 7;
    let began = w.now();
    let mut arrived = vec![Vec::new(); guests.len()];
    for _ in 0..200 {
        w.settle();
        for (g, arrived) in guests.iter_mut().zip(&mut arrived) {
            arrived.extend(g.drain(&mut w).into_iter().flat_map(|s| s.data));
        }
        // It takes as many again; nobody has to wait for a deadline.
        assert_eq!(w.stack.waits_for_link(), w.stack.link_has_room(w.now(), LinkId(0), &mut w.edge));
    }
    assert_eq!(w.now(), began);
    assert!(arrived.iter().all(|a| *a == data), "{:?}", arrived.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(w.edge.links[0].refused > 0);
    w.edge.pool.assert_empty();
}

/// While nobody is at the link's other end, flows do not look for it all the time; when it is back they go on at once.
#[test]
fn a_link_that_is_away_costs_little_and_flows_go_on_when_it_is_back() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.links[0].down = true;
    w.edge.host.peer(sock).send(&[7; 5000]);
    w.run(Duration::from_secs(10));
    assert!(w.edge.links[0].refused <= 110, "{} times in 10 s", w.edge.links[0].refused);
    w.edge.links[0].down = false;
    w.stack.link_back(w.now(), LinkId(0), Some(Duration::from_secs(10)), &mut w.edge);
    w.stack.link_has_room(w.now(), LinkId(0), &mut w.edge);
    w.settle();
    assert_eq!(g.drain(&mut w).iter().map(|s| s.data.len()).sum::<usize>(), 5000);
}
