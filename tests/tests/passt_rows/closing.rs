//! Ends.

use crate::{SECOND, at, inbound, ms, published, remote, remotes};
use core::time::Duration;
use hibernet_netstack::config::Config;
use hibernet_tests::wire::TcpSegment;
use hibernet_tests::wire::flags::{ACK, FIN, RST};
use hibernet_tests::{Ended, TcpGuest, World, stream};

#[test]
fn row_22_a_download_that_ends_with_a_fin_is_whole() {
    for to in remotes() {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::new(&w, 1000, to);
        (g.scale, g.window) = (None, 65_535);
        g.handshake(&mut w);
        let sock = w.edge.host.last();
        let data = stream::bytes(22, 0, 5 << 20);
        w.edge.host.peer(sock).send(&data).fin();
        w.settle();
        assert!(g.read(&mut w, data.len(), SECOND * 60) == data);
        g.expect_fin(&mut w);
        g.ack(&mut w);
        g.drain(&mut w);
        g.fin(&mut w);
        w.run(ms(1));
        w.assert_clean();
    }
}

#[test]
fn row_22_the_fin_comes_once_however_often_the_socket_reports_it() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).fin();
    w.settle();
    g.expect_fin(&mut w);
    g.ack(&mut w);
    for _ in 0..5 {
        w.edge.host.notify(sock);
        w.settle();
    }
    w.run(SECOND * 5);
    g.expect_nothing(&mut w);
}

#[test]
fn row_23_lost_fins_are_repaired_within_two_time_outs() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"bye").fin();
    w.settle();
    let lost = g.drain(&mut w);
    assert_eq!(lost.last().unwrap().flags & FIN, FIN);
    // Both data and FIN were lost; they come again, and the FIN has its own number.
    let start = w.now();
    assert_eq!(g.read(&mut w, 3, SECOND * 5), b"bye");
    if g.next(&mut w).is_none_or(|s| s.flags & FIN == 0) {
        g.expect_within(&mut w, SECOND * 5);
    }
    g.rcv_nxt = g.rcv_nxt.wrapping_add(1);
    g.ack(&mut w);
    // The guest's own FIN is lost on the way (it is not injected), and sent again.
    g.fin(&mut w);
    w.run(ms(1));
    assert!(w.now().since(start) < SECOND * 2, "{:?}", w.now().since(start));
    assert!(w.edge.host.tcp(sock).eof_seen());
    w.assert_clean();
}

#[test]
fn row_23_a_lost_fin_alone_is_sent_again_until_it_is_acknowledged() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).fin();
    w.settle();
    let fin = g.expect(&mut w);
    for _ in 0..3 {
        let again = g.expect_within(&mut w, SECOND * 10);
        assert_eq!((again.flags & FIN, again.seq), (FIN, fin.seq));
    }
    g.rcv_nxt = fin.seq.wrapping_add(1);
    g.ack(&mut w);
    w.run(SECOND * 30);
    g.expect_nothing(&mut w);
}

#[test]
fn row_23_the_guests_fin_is_counted_acknowledged_and_acknowledged_again() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    g.fin(&mut w);
    g.expect_ack(&mut w);
    assert!(w.edge.host.tcp(sock).shutdown);
    // Our acknowledgement was lost; the guest repeats its FIN.
    let again = TcpSegment { seq: g.snd_nxt.wrapping_sub(1), ..g.segment(ACK | FIN, &[]) };
    g.inject(&mut w, &again);
    g.expect_ack(&mut w);
    w.edge.host.peer(sock).fin();
    w.settle();
    g.expect_fin(&mut w);
    g.ack(&mut w);
    w.assert_clean();
}

#[test]
fn row_24_after_the_guests_half_close_the_answer_still_comes() {
    for to in remotes() {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::connect(&mut w, 1000, to);
        let sock = w.edge.host.last();
        // As `printf request | nc -N` does it.
        let s = TcpSegment { flags: ACK | FIN, ..g.segment(ACK, b"request") };
        g.snd_nxt = g.snd_nxt.wrapping_add(8);
        g.inject(&mut w, &s);
        g.expect_ack(&mut w);
        assert!(w.edge.host.tcp(sock).eof_seen());
        w.run(SECOND * 100);
        let answer = stream::bytes(24, 0, 300_000);
        w.edge.host.peer(sock).send(&answer).fin();
        w.settle();
        assert!(g.read(&mut w, answer.len(), SECOND * 5) == answer);
        g.expect_fin(&mut w);
        g.ack(&mut w);
        assert_eq!(w.edge.host.tcp(sock).ended, Some(Ended::Fin));
        w.assert_clean();
    }
}

#[test]
fn row_24_after_the_peers_half_close_the_upload_still_goes() {
    let mut w = World::new(published());
    let (mut g, sock) = inbound(&mut w, at("203.0.113.5", 555));
    w.edge.host.peer(sock).send(b"request").fin();
    w.settle();
    assert_eq!(g.read(&mut w, 7, SECOND), b"request");
    g.expect_fin(&mut w);
    g.ack(&mut w);
    w.run(SECOND * 100);
    let answer = stream::bytes(24, 0, 300_000);
    g.write(&mut w, &answer, 1460, SECOND * 10);
    assert!(w.edge.host.tcp(sock).received == answer);
    g.fin(&mut w);
    g.expect_ack(&mut w);
    w.run(ms(1));
    assert!(w.edge.host.tcp(sock).eof_seen());
    w.assert_clean();
}

#[test]
fn row_24_fins_that_cross_close_at_once() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).fin();
    w.settle();
    // The guest has not seen our FIN when it sends its own.
    let start = w.now();
    g.fin(&mut w);
    g.rcv_nxt = g.rcv_nxt.wrapping_add(1);
    g.ack(&mut w);
    let all = g.drain(&mut w);
    assert_eq!(all.last().unwrap().ack, g.snd_nxt);
    assert!(w.now().since(start) < ms(50));
    w.run(ms(1));
    assert!(w.edge.host.tcp(sock).eof_seen());
    w.assert_clean();
}

#[test]
fn row_25_the_guest_closes_first_and_nobody_is_reset() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    g.send(&mut w, b"QUIT");
    g.fin(&mut w);
    g.expect_ack(&mut w);
    w.edge.host.peer(sock).send(b"221 bye").fin();
    w.settle();
    assert_eq!(g.read(&mut w, 7, SECOND), b"221 bye");
    let fin = g.expect_fin(&mut w);
    assert_eq!(fin.flags & RST, 0);
    g.ack(&mut w);
    w.run(Duration::from_secs(60));
    g.expect_nothing(&mut w);
    assert_eq!(w.edge.host.tcp(sock).ended, Some(Ended::Fin));
    assert_eq!(w.edge.host.tcp(sock).unconsumed(), 0);
    w.assert_clean();
}

#[test]
fn row_31_the_guests_reset_reaches_the_peer_as_one() {
    for with_data in [false, true] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::connect(&mut w, 1000, remote());
        let sock = w.edge.host.last();
        if with_data {
            g.send(&mut w, b"half a thought");
        }
        g.rst(&mut w);
        assert_eq!(w.edge.host.tcp(sock).ended, Some(Ended::Reset));
        w.assert_clean();
    }
}

#[test]
fn row_31_the_peers_reset_reaches_the_guest_as_one() {
    let mut w = World::new(published());
    let (mut g, sock) = inbound(&mut w, at("203.0.113.5", 555));
    w.edge.host.peer(sock).reset();
    w.settle();
    g.expect_rst(&mut w);
    w.assert_clean();
}

/// RFC 5961 section 3: a reset must hit the very next number; one elsewhere in the window is challenged, others ignored.
#[test]
fn row_31_a_guessed_reset_does_not_reset() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    g.inject(&mut w, &TcpSegment { seq: g.snd_nxt.wrapping_add(100), ..g.segment(RST, &[]) });
    g.expect_ack(&mut w);
    g.inject(&mut w, &TcpSegment { seq: g.snd_nxt.wrapping_add(1 << 30), ..g.segment(RST, &[]) });
    g.inject(&mut w, &TcpSegment { seq: g.snd_nxt.wrapping_sub(100), ..g.segment(RST, &[]) });
    g.expect_nothing(&mut w);
    assert!(w.edge.host.is_open(sock));
}
