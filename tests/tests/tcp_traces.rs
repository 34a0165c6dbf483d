//! Packet traces that the simulation found, or that changes of the code by chance got past, cut down to what matters.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::config::Limits;
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::TcpSegment;
use hibernet_tests::wire::flags::{ACK, FIN, RST};
use hibernet_tests::{Drain, Ended, TcpGuest, World, stream};

fn remote() -> Endpoint {
    Endpoint::new("198.51.100.9".parse().unwrap(), 80)
}

/// An old duplicate makes us acknowledge again to a guest that closed both directions and forgot the connection. Its RST
/// must not take with it what the peer has not got yet.
#[test]
fn a_reset_after_both_fins_does_not_cut_off_what_is_held_for_the_peer() {
    let mut w = World::new(Config::default());
    w.edge.host.tcp_defaults.sndbuf = 2000;
    w.edge.host.tcp_defaults.drain = Drain::STOPPED;
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).fin();
    w.settle();
    g.expect_fin(&mut w);
    g.ack(&mut w);
    let data = stream::bytes(1, 0, 7000);
    g.send_all(&mut w, &data, 1000);
    g.fin(&mut w);
    g.expect_ack(&mut w);
    g.send_at(&mut w, 0, &data[..1000]);
    g.expect_ack(&mut w);
    g.inject(&mut w, &g.segment(RST, &[]));
    w.edge.host.peer(sock).tune(|t| t.drain = Drain::FAST);
    w.run(Duration::from_secs(1));
    assert!(w.edge.host.tcp(sock).received == data && w.edge.host.tcp(sock).eof_seen());
    assert_eq!(w.edge.host.tcp(sock).ended, Some(Ended::Fin));
    w.assert_clean();
}

/// Where little or nothing may be held, the window is the socket's room, perhaps less than a segment. No event tells when
/// that grows, since the socket never had to refuse anything; the guest must hear of it all the same.
#[test]
fn a_window_smaller_than_a_segment_opens_again_and_again() {
    for (hold, total) in [(1000, 64 << 20), (512 << 10, 0), (3000, 3000)] {
        for mtu in [1500, 65_520] {
            let limits = Limits { tcp_hold: hold, tcp_hold_total: total, ..Limits::default() };
            let mut w = World::with_link(Config { limits, ..Config::default() }, World::offload_link(mtu));
            w.edge.host.tcp_defaults.sndbuf = 4000;
            w.edge.host.tcp_defaults.drain = Drain { bytes: 2000, every: Duration::from_millis(1) };
            let mut g = TcpGuest::connect(&mut w, 40_000, remote());
            let data = stream::bytes(1, 0, 100_000);
            let again = g.write(&mut w, &data, usize::from(mtu) - 40, Duration::from_secs(2));
            assert_eq!(again, 0, "hold {hold}, total {total}, MTU {mtu}: segments had to be sent again");
            w.run(Duration::from_secs(1));
            assert!(w.edge.host.tcp(w.edge.host.last()).received == data);
        }
    }
}

/// Waiting for a peer that takes nothing costs little.
#[test]
fn a_closed_window_without_a_hold_is_watched_seldom() {
    let limits = Limits { tcp_hold_total: 0, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    w.edge.host.tcp_defaults.sndbuf = 4000;
    w.edge.host.tcp_defaults.drain = Drain::STOPPED;
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    g.send_all(&mut w, &[1; 4000], 1000);
    w.run(Duration::from_secs(1));
    let steps = w.steps;
    w.run(Duration::from_secs(60));
    assert!(w.steps - steps < 1500, "{} calls in a minute", w.steps - steps);
    g.drain(&mut w);
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| t.drain = Drain::FAST);
    let update = g.expect_within(&mut w, Duration::from_millis(200));
    assert!(update.window > 0);
}

/// Rounding may promise a little beyond the window's edge. While bytes of that are missing the window must not say zero:
/// there are stacks that never send again what is in flight when a window closes.
#[test]
fn a_window_does_not_close_over_what_it_promised() {
    for extra in (0..256).step_by(5) {
        let limits = Limits { tcp_hold: 5000 + extra, ..Limits::default() };
        let mut w = World::new(Config { limits, ..Config::default() });
        w.edge.host.tcp_defaults.sndbuf = 3000;
        w.edge.host.tcp_defaults.drain = Drain::STOPPED;
        let mut g = TcpGuest::connect(&mut w, 40_000, remote());
        g.drain(&mut w);
        g.send(&mut w, b"x");
        w.run(Duration::from_secs(1));
        g.send_at(&mut w, 0, b"x");
        g.expect_ack(&mut w);
        let promised = g.their_window as usize;
        let data = stream::bytes(1, 0, promised);
        // All that was promised but its last byte.
        for piece in data[..promised - 1].chunks(997) {
            g.send(&mut w, piece);
        }
        // An old byte asks for an acknowledgement of all of it.
        g.send_at(&mut w, 0, b"x");
        let last = g.drain(&mut w).pop().expect("an acknowledgement");
        assert_eq!(last.ack, g.snd_nxt, "hold {}: the promise is kept", limits.tcp_hold);
        assert!(last.window > 0, "hold {}: closed with a byte in flight", limits.tcp_hold);
        g.send(&mut w, &data[promised - 1..]);
        g.send_at(&mut w, 0, b"x");
        g.expect_ack(&mut w);
        // And it does close: a byte at a time opens nothing for ever.
        let mut taken = 0;
        for _ in 0..1000 {
            let before = g.snd_nxt;
            g.send(&mut w, b"y");
            g.send_at(&mut w, 0, b"x");
            let ack = g.drain(&mut w).pop().map_or(before, |s| s.ack);
            taken += ack.wrapping_sub(before);
            g.snd_nxt = ack;
        }
        assert!(taken < 300, "{taken} bytes beyond the promise");
    }
}

/// The acknowledgement of our FIN was lost and the guest's TIME-WAIT is over: its RST says that it had everything.
#[test]
fn a_reset_in_answer_to_the_last_fin_is_no_reset_for_the_peer() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    g.fin(&mut w);
    g.expect_ack(&mut w);
    w.edge.host.peer(sock).send(b"last").fin();
    w.settle();
    let got: Vec<u8> = g.drain(&mut w).into_iter().flat_map(|s| s.data).collect();
    assert_eq!(got, b"last");
    g.ack_at(&mut w, 4);
    let fin = g.expect_within(&mut w, Duration::from_secs(2));
    assert_eq!(fin.flags & FIN, FIN);
    g.rst(&mut w);
    assert_eq!(w.edge.host.tcp(sock).ended, Some(Ended::Fin));
    w.assert_clean();
}

/// After a time-out some stacks number their pure acknowledgements from where they went back to. While we take nothing of
/// what they send (the peer is gone), these are below the last number seen; their window counts all the same.
#[test]
fn a_guest_that_went_back_can_open_its_window() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    g.send(&mut w, b"taken");
    g.drain(&mut w);
    let old = g.clone();
    g.window = 0;
    g.snd_nxt = g.snd_nxt.wrapping_add(3000);
    g.ack(&mut w);
    w.edge.host.peer(sock).send(b"the last words").reset();
    w.settle();
    g.drain(&mut w);
    let mut back = TcpGuest { window: 1000, ..old };
    back.ack(&mut w);
    assert_eq!(back.expect(&mut w).data, b"the last words");
    assert_eq!(back.expect(&mut w).flags & RST, RST);
    w.assert_clean();
}

/// A FIN behind bytes that did not fit is not the end of what fitted.
#[test]
fn a_fin_beyond_the_window_does_not_count() {
    let limits = Limits { tcp_hold: 3000, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    (w.edge.host.tcp_defaults.sndbuf, w.edge.host.tcp_defaults.drain) = (1000, Drain::STOPPED);
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    let data = stream::bytes(1, 0, 8000);
    let s = TcpSegment { flags: ACK | FIN, ..g.segment(ACK, &data) };
    g.inject(&mut w, &s);
    w.edge.host.peer(sock).tune(|t| t.drain = Drain::FAST);
    w.run(Duration::from_millis(100));
    assert!(!w.edge.host.tcp(sock).shutdown, "bytes before the FIN are missing");
    let taken = g.drain(&mut w).pop().expect("an acknowledgement").ack.wrapping_sub(g.snd_nxt) as usize;
    assert!((1000..8000).contains(&taken), "{taken} bytes");
    assert!(w.edge.host.tcp(sock).received == data[..taken]);
    g.snd_nxt = g.snd_nxt.wrapping_add(taken as u32);
    g.write(&mut w, &data[taken..], 1460, Duration::from_secs(5));
    g.fin(&mut w);
    w.run(Duration::from_millis(100));
    assert!(w.edge.host.tcp(sock).received == data && w.edge.host.tcp(sock).eof_seen());
}

/// A FIN that overtook data counts when these come; the guest need not repeat it.
#[test]
fn a_fin_that_came_too_early_counts_when_its_turn_comes() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    let last = TcpSegment { seq: g.snd_nxt.wrapping_add(1000), flags: ACK | FIN, ..g.segment(ACK, b"tail") };
    g.inject(&mut w, &last);
    assert!(!w.edge.host.tcp(sock).shutdown);
    g.drain(&mut w);
    g.send(&mut w, &[5; 1000]);
    g.snd_nxt = g.snd_nxt.wrapping_add(5);
    w.run(Duration::from_millis(50));
    g.expect_ack(&mut w);
    assert!(w.edge.host.tcp(sock).eof_seen() && w.edge.host.tcp(sock).received.ends_with(b"tail"));
}

/// RFC 9293 section 3.8.6.2.1: with data in flight, a small opening of a window that was large is left alone.
#[test]
fn small_openings_of_a_large_window_are_not_filled_one_by_one() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::new(&w, 40_000, remote());
    (g.scale, g.window) = (None, 2000);
    g.handshake(&mut w);
    let sock = w.edge.host.last();
    // The window grows, and fills.
    g.window = 60_000;
    g.ack(&mut w);
    w.edge.host.peer(sock).send(&[3; 200_000]);
    w.settle();
    let sent: usize = g.drain(&mut w).iter().map(|s| s.data.len()).sum();
    assert!(sent > 58_000);
    // The guest reads slowly: each acknowledgement opens a little more.
    let mut acked = 1460;
    for n in 0..10 {
        g.window = (sent + 1100 + n * 20 - acked) as u16;
        g.ack_at(&mut w, acked as u32);
        acked += 1460;
    }
    assert!(g.drain(&mut w).iter().all(|s| s.data.is_empty()), "a segment of little");
}

/// SND.WL1: a segment that was overtaken says nothing about the window any more.
#[test]
fn the_window_of_an_overtaken_segment_is_old() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    let first = TcpSegment { window: 20, ..g.segment(ACK, b"first") };
    let second = TcpSegment { seq: g.snd_nxt.wrapping_add(5), window: 400, ..g.segment(ACK, b"second") };
    g.inject(&mut w, &second);
    g.inject(&mut w, &first);
    g.snd_nxt = g.snd_nxt.wrapping_add(11);
    g.drain(&mut w);
    w.edge.host.peer(sock).send(&[3; 100_000]);
    w.settle();
    let sent: usize = g.drain(&mut w).iter().map(|s| s.data.len()).sum();
    assert!((45_000..=400 * 128).contains(&sent), "{sent} bytes into a window of {}", 400 * 128);
}
