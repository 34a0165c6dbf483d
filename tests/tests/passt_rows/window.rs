//! Windows, both ways.

use crate::{SECOND, at, ms, published, remote};
use core::time::Duration;
use hibernet_netstack::DropReason;
use hibernet_netstack::config::Config;
use hibernet_tests::wire::TcpSegment;
use hibernet_tests::wire::flags::{ACK, SYN};
use hibernet_tests::{Drain, TcpGuest, World, stream};

#[test]
fn row_16_after_a_closed_window_the_scale_is_what_it_was() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::new(&w, 1000, remote());
    g.scale = Some(7);
    g.handshake(&mut w);
    let sock = w.edge.host.last();
    g.window = 0;
    g.ack(&mut w);
    let data = stream::bytes(16, 0, 200_000);
    w.edge.host.peer(sock).send(&data);
    w.settle();
    g.expect_nothing(&mut w);
    // 512 on the wire are 64 KiB.
    g.window = 512;
    g.ack(&mut w);
    let got: usize = g.drain(&mut w).iter().map(|s| s.data.len()).sum();
    assert!((60_000..=65_536).contains(&got), "{got} bytes without a further acknowledgement");
    assert!(g.read(&mut w, data.len(), SECOND * 5) == data);
}

#[test]
fn row_17_without_the_guests_scale_no_window_is_scaled() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::new(&w, 1000, remote());
    g.scale = None;
    g.window = 10_000;
    g.syn(&mut w);
    g.expect_synack(&mut w);
    assert_eq!(g.their_scale, None, "RFC 7323 section 1.3: only in answer to the option");
    g.ack(&mut w);
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(&[1; 50_000]);
    w.settle();
    let got: usize = g.drain(&mut w).iter().map(|s| s.data.len()).sum();
    // No small segment for the rest of it: RFC 9293 section 3.8.6.2.1.
    assert!((10_000 - 1460..=10_000).contains(&got), "the guest's window is what it says: {got}");
    // And ours means what it says: all of it is taken.
    g.ack(&mut w);
    let offer = g.their_window as usize;
    assert!(offer > 1460 && offer <= 65_535);
    g.send_all(&mut w, &vec![2; offer], 1460);
    assert_eq!(w.dropped_total(), 0);
}

#[test]
fn row_17_the_window_of_a_syn_is_not_scaled() {
    let mut w = World::new(published());
    let client = at("203.0.113.5", 555);
    let sock = w.accept(client, at("192.0.2.1", 8080));
    w.edge.host.peer(sock).send(&[1; 50_000]);
    let mut g = TcpGuest::expect_syn(&mut w, 80, client);
    g.window = 1000;
    g.synack(&mut w);
    let got: usize = g.drain(&mut w).iter().map(|s| s.data.len()).sum();
    assert_eq!(got, 1000, "sent on the window of the guest's SYN-ACK");
    g.rcv_nxt = g.irs.wrapping_add(1001);
    g.ack(&mut w);
    let got: usize = g.drain(&mut w).iter().map(|s| s.data.len()).sum();
    assert_eq!(got, 49_000, "the next one is scaled");
}

#[test]
fn row_17_a_closed_window_is_probed_until_it_opens() {
    for lost in [0, 3] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::connect(&mut w, 1000, remote());
        let sock = w.edge.host.last();
        g.window = 0;
        g.ack(&mut w);
        w.edge.host.peer(sock).send(b"waiting");
        w.settle();
        g.expect_nothing(&mut w);
        // The guest opens its window, but the update is lost. What we ask it brings that out.
        for _ in 0..lost {
            g.expect_within(&mut w, SECOND * 10);
        }
        g.expect_within(&mut w, SECOND * 20);
        g.window = 500;
        g.ack(&mut w);
        w.run(ms(1));
        let got: Vec<u8> = g.drain(&mut w).into_iter().flat_map(|s| s.data).collect();
        assert!(got == b"waiting", "after {lost} lost probes: {got:?}");
    }
}

/// However long the guest keeps it closed, as long as it answers.
#[test]
fn row_17_a_window_closed_for_an_hour_loses_nothing() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    let data = stream::bytes(17, 0, 10_000);
    g.window = 0;
    g.ack(&mut w);
    w.edge.host.peer(sock).send(&data);
    let end = w.now() + SECOND * 3600;
    let mut probes = 0;
    while w.now() < end {
        w.run(SECOND * 30);
        for _ in g.drain(&mut w) {
            probes += 1;
            g.ack(&mut w);
        }
    }
    assert!((50..400).contains(&probes), "{probes} probes in an hour");
    g.window = 1000;
    g.ack(&mut w);
    assert!(g.read(&mut w, data.len(), SECOND) == data);
}

#[test]
fn row_18_the_window_is_honest_about_the_room_in_the_socket() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 16 << 10;
        t.peer_window = Some(16 << 20);
        t.drain = Drain { bytes: 8 << 10, every: ms(1) };
    });
    let data = stream::bytes(18, 0, 4 << 20);
    let again = g.write(&mut w, &data, 1460, SECOND * 60);
    assert_eq!(again, 0, "segments had to be sent again");
    for why in [DropReason::TcpHoldLimit, DropReason::TcpUnacceptable, DropReason::TcpDuplicate] {
        assert_eq!(w.dropped(why), 0, "{why:?}");
    }
    w.run(SECOND);
    assert!(w.edge.host.tcp(sock).received == data);
}

/// A kernel too old to tell the peer's window.
#[test]
fn row_18_a_host_that_does_not_tell_the_peers_window_is_no_obstacle() {
    let mut w = World::new(Config::default());
    w.edge.host.tcp_defaults.peer_window = None;
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let data = stream::bytes(18, 0, 1 << 20);
    assert_eq!(g.write(&mut w, &data, 1460, SECOND * 10), 0);
    assert!(w.edge.host.tcp(w.edge.host.last()).received == data);
}

/// Bytes that we hold for a peer that reads nothing are bounded, whatever the guest sends.
#[test]
fn row_18_a_guest_that_ignores_the_window_does_not_fill_our_memory() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 10_000;
        t.drain = Drain::STOPPED;
    });
    let data = stream::bytes(18, 0, 8 << 20);
    g.send_all(&mut w, &data, 1460);
    let all = g.drain(&mut w);
    let last = all.last().expect("it is told");
    let taken = last.ack.wrapping_sub(g.iss.wrapping_add(1));
    assert!(taken < 2 << 20, "{taken} bytes taken for a peer that reads nothing");
    assert_eq!(u32::from(last.window), 0, "and the window is closed");
    // When the peer reads again, the guest hears of it without asking, and the stream goes on where it was cut.
    w.edge.host.peer(sock).tune(|t| t.drain = Drain::FAST);
    g.snd_nxt = last.ack;
    let update = g.expect_within(&mut w, SECOND);
    assert!(update.window > 0 && update.flags == ACK && update.flags & SYN == 0);
    g.write(&mut w, &data[taken as usize..3 << 20], 1460, Duration::from_secs(60));
    w.run(SECOND);
    assert!(w.edge.host.tcp(sock).received == data[..3 << 20]);
}

/// RFC 9293 section 3.8.6: what was promised is taken, also by a guest that learns late of a smaller window.
#[test]
fn row_18_a_promised_window_is_kept_when_the_peer_stops() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    g.send(&mut w, b"x");
    w.run(ms(300));
    g.expect_ack(&mut w);
    let promised = g.their_window as usize;
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 1;
        t.drain = Drain::STOPPED;
    });
    let data = stream::bytes(18, 0, promised.min(400 << 10));
    for c in data.chunks(1460) {
        let s: TcpSegment = g.segment(ACK, c);
        g.snd_nxt = g.snd_nxt.wrapping_add(c.len() as u32);
        g.inject(&mut w, &s);
    }
    assert_eq!(w.dropped(DropReason::TcpHoldLimit) + w.dropped(DropReason::TcpUnacceptable), 0);
    // The last of it may wait for the peer; a guest that asks again hears that it is here.
    let tail = TcpSegment { seq: g.snd_nxt.wrapping_sub(100), ..g.segment(ACK, &data[data.len() - 100..]) };
    g.inject(&mut w, &tail);
    g.expect_ack(&mut w);
}
