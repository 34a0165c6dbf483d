//! Data in both directions, lost and late.

use crate::{SECOND, inbound, ms, published, remote, remotes};
use core::time::Duration;
use hibernet_netstack::config::Config;
use hibernet_tests::wire::TcpSegment;
use hibernet_tests::wire::flags::ACK;
use hibernet_tests::{Drain, TcpGuest, World, stream};

#[test]
fn row_08_an_upload_into_a_slow_socket_with_a_fin_at_its_end_is_whole() {
    for (size, sndbuf) in [(10 << 20, 4 << 10), (1 << 20, 1000)] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::connect(&mut w, 1000, remote());
        let sock = w.edge.host.last();
        w.edge.host.peer(sock).tune(|t| {
            t.sndbuf = sndbuf;
            t.max_write = 1200;
            t.drain = Drain { bytes: 3000, every: Duration::from_micros(100) };
        });
        let data = stream::bytes(8, 0, size);
        g.write(&mut w, &data[..size - 1000], 1460, Duration::from_secs(600));
        let last = TcpSegment { flags: ACK | hibernet_tests::wire::flags::FIN, ..g.segment(ACK, &data[size - 1000..]) };
        g.snd_nxt = g.snd_nxt.wrapping_add(1001);
        g.inject(&mut w, &last);
        w.run(SECOND * 20);
        assert!(w.edge.host.tcp(sock).received == data, "{} of {size} bytes", w.edge.host.tcp(sock).received.len());
        assert!(w.edge.host.tcp(sock).eof_seen());
    }
}

#[test]
fn row_14_the_tail_of_an_answer_longer_than_the_window_comes() {
    for to in remotes() {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::new(&w, 1000, to);
        (g.scale, g.window) = (None, 16_384);
        g.handshake(&mut w);
        let sock = w.edge.host.last();
        let data = stream::bytes(14, 0, 1 << 20);
        w.edge.host.peer(sock).send(&data);
        let start = w.now();
        assert!(g.read(&mut w, data.len(), SECOND * 60) == data);
        assert!(w.now().since(start) < ms(100), "every acknowledgement brings more: {:?}", w.now().since(start));
    }
}

#[test]
fn row_15_a_window_smaller_than_a_segment_is_used() {
    for window in [500, 100, 1] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::new(&w, 1000, remote());
        (g.scale, g.window) = (None, window);
        g.handshake(&mut w);
        let sock = w.edge.host.last();
        let data = stream::bytes(15, 0, 20_000);
        w.edge.host.peer(sock).send(&data);
        let start = w.now();
        assert!(g.read(&mut w, data.len(), SECOND * 60) == data, "window {window}");
        assert!(w.now().since(start) < SECOND, "window {window}: {:?}", w.now().since(start));
    }
}

#[test]
fn row_19_a_lost_segment_to_the_guest_is_back_within_a_round_trip() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    let data = stream::bytes(19, 0, 10 * 1460);
    w.edge.host.peer(sock).send(&data);
    w.settle();
    let sent = g.drain(&mut w);
    assert_eq!(sent.len(), 10);
    g.rcv_nxt = sent[3].seq;
    g.ack(&mut w);
    // The fourth was lost: each of the later ones makes the guest say so again.
    for _ in 4..10 {
        g.ack(&mut w);
    }
    w.run(ms(50));
    let again = g.drain(&mut w);
    assert!(again.iter().any(|s| s.seq == sent[3].seq && s.data == sent[3].data), "not sent again: {} segments", again.len());
    assert_eq!(w.stack.stats().tcp_fast_retransmit, 1);
    assert_eq!(w.stack.stats().tcp_rto, 0);
    g.rcv_nxt = g.irs.wrapping_add(1 + data.len() as u32);
    g.ack(&mut w);
    w.run(SECOND * 5);
    g.expect_nothing(&mut w);
}

/// Only what RFC 5681 section 2 calls a duplicate counts as one.
#[test]
fn row_19_window_updates_and_data_are_no_duplicate_acknowledgements() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(&[1; 5000]);
    w.settle();
    g.drain(&mut w);
    for n in 0..10 {
        g.window = 5000 + n;
        g.ack(&mut w);
    }
    for _ in 0..10 {
        g.send(&mut w, b"data");
    }
    assert_eq!(w.stack.stats().tcp_fast_retransmit, 0);
    assert!(g.drain(&mut w).iter().all(|s| s.data.is_empty()));
}

#[test]
fn row_20_old_acknowledgements_are_ignored_and_false_ones_challenged() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    let data = stream::bytes(20, 0, 20_000);
    w.edge.host.peer(sock).send(&data[..10_000]);
    w.settle();
    g.expect_data(&mut w, &data[..10_000]);
    g.ack_at(&mut w, 10_000);
    // Two acknowledgements that changed places, one from long ago.
    g.ack_at(&mut w, 4000);
    g.ack_at(&mut w, 0);
    g.expect_nothing(&mut w);
    // One of bytes that were never sent: RFC 9293 section 3.10.7.4 wants an acknowledgement, and no more.
    g.ack_at(&mut w, 10_001);
    g.expect_ack(&mut w);
    g.ack_at(&mut w, 1 << 30);
    g.expect_ack(&mut w);
    assert!(w.edge.host.is_open(sock));
    w.edge.host.peer(sock).send(&data[10_000..]);
    w.settle();
    g.expect_data(&mut w, &data[10_000..]);
    g.ack(&mut w);
    w.run(SECOND);
    assert!(w.edge.host.tcp(sock).unconsumed() < 5000, "what was acknowledged leaves the socket");
}

/// A connection whose numbers are about to wrap in both directions.
fn near_the_wrap(w: &mut World) -> TcpGuest {
    let mut g = TcpGuest::new(w, 1000, remote());
    g.syn(w);
    let first = g.expect_synack(w).seq;
    g.ack(w);
    g.rst(w);
    // Our number goes up by one every 256 ns: wait until it stands just before the wrap.
    let ahead = u64::from(u32::MAX - first) - 5000;
    w.run(Duration::from_nanos(ahead * 256));
    let mut g = TcpGuest::new(w, 1000, remote());
    g.iss = u32::MAX - 1000;
    g.handshake(w);
    assert!(g.irs > u32::MAX - 10_000, "{:#x} is not near the wrap", g.irs);
    g
}

#[test]
fn row_21_sequence_numbers_wrap_in_both_directions() {
    let mut w = World::new(Config::default());
    let mut g = near_the_wrap(&mut w);
    let sock = w.edge.host.last();
    let (up, down) = (stream::bytes(21, 0, 40_000), stream::bytes(22, 0, 40_000));
    // Out of order over the wrap.
    g.send_at(&mut w, 500, &up[500..1500]);
    g.send_at(&mut w, 0, &up[..500]);
    g.drain(&mut w);
    g.snd_nxt = g.snd_nxt.wrapping_add(1500);
    assert_eq!(g.write(&mut w, &up[1500..], 1460, SECOND * 10), 0);
    assert!(w.edge.host.tcp(sock).received == up);
    w.edge.host.peer(sock).send(&down);
    w.settle();
    // The first flight is lost: the time-out works across the wrap too.
    g.drain(&mut w);
    assert!(g.read(&mut w, down.len(), SECOND * 10) == down);
    w.run(SECOND);
    assert!(w.edge.host.tcp(sock).unconsumed() < 5000);
    g.drain(&mut w);
    g.close(&mut w, sock);
    w.assert_clean();
}

#[test]
fn row_08_held_bytes_survive_any_split_of_reads_and_writes() {
    let mut w = World::new(published());
    let (mut g, sock) = inbound(&mut w, crate::at("203.0.113.5", 555));
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 5000;
        t.max_write = 7;
        t.max_peek = 11;
        t.drain = Drain { bytes: 100, every: Duration::from_micros(50) };
    });
    let (up, down) = (stream::bytes(1, 0, 30_000), stream::bytes(2, 0, 30_000));
    w.edge.host.peer(sock).send(&down);
    w.settle();
    assert!(g.read(&mut w, down.len(), SECOND * 10) == down);
    g.write(&mut w, &up, 1460, SECOND * 60);
    w.run(SECOND);
    assert!(w.edge.host.tcp(sock).received == up);
}
