//! What stays in a host socket's receive queue after the guest has acknowledged it.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::flags::ACK;
use hibernet_tests::{SplitMix, TcpGuest, World, stream};

/// The kernel frees its receive queue buffer by buffer. A few acknowledged bytes at the end of a large buffer that are not
/// taken out hold all of it, and can keep the window to the peer closed for ever.
#[test]
fn nothing_stays_behind_after_bulk() {
    for size in [20_000, 65_536, 122_814, 200_001] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::connect(&mut w, 1000, Endpoint::new("198.51.100.9".parse().unwrap(), 80));
        let sock = w.edge.host.last();
        let data = stream::bytes(1, 0, size);
        w.edge.host.peer(sock).send(&data);
        w.settle();
        assert!(g.read(&mut w, size, Duration::from_secs(5)) == data);
        w.settle();
        assert_eq!(w.edge.host.tcp(sock).unconsumed(), 0, "after {size} bytes");
    }
}

/// Exchanges of single bytes pin little memory however many there are.
#[test]
fn small_exchanges_do_not_pile_up() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, Endpoint::new("198.51.100.9".parse().unwrap(), 80));
    let sock = w.edge.host.last();
    for n in 0..1000u32 {
        w.edge.host.peer(sock).send(&[n as u8]);
        w.settle();
        assert_eq!(g.read(&mut w, 1, Duration::from_secs(1)), [n as u8]);
        assert!(w.edge.host.tcp(sock).unconsumed() < 64, "{n} exchanges");
    }
}

/// Bytes may come after the last look at the queue and before what was found there is consumed. They share the kernel's last
/// buffer, so that all of it is still there: however few they are, they must be consumed as soon as the guest has them.
#[test]
fn what_comes_while_bulk_is_consumed_does_not_hold_its_buffer() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, Endpoint::new("198.51.100.9".parse().unwrap(), 80));
    let sock = w.edge.host.last();
    let data = stream::bytes(1, 0, 65_536 + 5000);
    w.edge.host.peer(sock).send(&data[..65_536]);
    w.settle();
    g.rcv_nxt = g.rcv_nxt.wrapping_add(65_536);
    assert_eq!(g.drain(&mut w).iter().map(|s| s.data.len()).sum::<usize>(), 65_536);
    // The guest's acknowledgement and the rest come in one wake-up, the event after the frame.
    w.receive(&g.frame(&w, &g.segment(ACK, &[])));
    w.edge.host.peer(sock).send(&data[65_536..]);
    let now = w.now();
    w.stack.flush(now, &mut w.edge);
    assert_eq!(w.edge.host.tcp(sock).unconsumed(), 5000);
    w.settle();
    assert!(g.read(&mut w, 5000, Duration::ZERO) == data[65_536..]);
    w.settle();
    assert_eq!((w.edge.host.tcp(sock).unconsumed(), w.now()), (0, now));
}

/// The receive buffer may be smaller than what is left in it for a while, and what closed its window is no event: after that while
/// it is consumed, and then nothing is left to do.
#[test]
fn nothing_stays_for_long() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, Endpoint::new("198.51.100.9".parse().unwrap(), 80));
    let sock = w.edge.host.last();
    for n in 0..3 {
        w.edge.host.peer(sock).send(b"few");
        w.settle();
        assert_eq!(g.read(&mut w, 3, Duration::ZERO), b"few");
        assert_eq!(w.edge.host.tcp(sock).unconsumed(), 3, "{n}");
        w.run(Duration::from_millis(300));
        assert_eq!(w.edge.host.tcp(sock).unconsumed(), 0, "{n}");
    }
    let idle = w.now() + Duration::from_secs(3600);
    assert!(w.next_deadline().is_none_or(|d| d > idle), "{:?}", w.next_deadline());
}

/// A receive buffer of the host's, as connections begin with.
const RCVBUF: usize = 128 << 10;
/// The kernel offers no less than this.
const LEAST_WINDOW: usize = 4096;

/// A peer that sends what the host's receive buffer leaves room for, and wake-ups of the worker in every order. The window must
/// open again by itself, at once: when it is closed, no event will come.
fn bulk_through_a_window(seed: u64) {
    const BYTES: usize = 2 << 20;
    let mut rng = SplitMix::new(seed);
    let mut w = World::with_link(Config::default(), World::offload_link(65_520));
    let mut g = TcpGuest::connect(&mut w, 1000, Endpoint::new("198.51.100.9".parse().unwrap(), 80));
    let (sock, start) = (w.edge.host.last(), w.now());
    let (mut sent, mut got) = (0, 0);
    while got < BYTES {
        let (sent_before, got_before) = (sent, got);
        for _ in 0..rng.range(1, 4) {
            let room = Some(RCVBUF.saturating_sub(w.edge.host.tcp(sock).receive_memory())).filter(|r| *r >= LEAST_WINDOW);
            let n = room.unwrap_or(0).min(rng.range(1000, 40_000) as usize).min(BYTES - sent);
            if n > 0 {
                w.edge.host.peer(sock).send(&stream::bytes(1, sent as u64, n));
                sent += n;
            }
        }
        // The link's wake-up comes before the socket's, or the socket's alone.
        let link_first = rng.chance(50);
        if link_first {
            w.flush();
        }
        if !link_first || rng.chance(50) {
            w.settle();
        }
        w.collect();
        for s in g.drain(&mut w) {
            assert_eq!(s.seq, g.rcv_nxt);
            assert!(s.data == stream::bytes(1, got as u64, s.data.len()));
            g.rcv_nxt = g.rcv_nxt.wrapping_add(s.data.len() as u32);
            got += s.data.len();
        }
        if rng.chance(70) {
            w.receive(&g.frame(&w, &g.segment(ACK, &[])));
        }
        if (sent, got) == (sent_before, got_before) {
            g.ack(&mut w);
            let socket = w.edge.host.tcp(sock);
            let closed = socket.receive_memory() + LEAST_WINDOW > RCVBUF;
            let (kept, memory) = (socket.unconsumed(), socket.receive_memory());
            assert!(!closed || !w.inbox.is_empty(), "seed {seed}: closed at {got}: {kept} bytes are kept, in {memory} of memory");
        }
    }
    assert_eq!(w.now(), start);
}

#[test]
fn bulk_never_waits_for_a_window_that_stays_closed_for_bytes_that_the_guest_has() {
    (0..24).for_each(bulk_through_a_window);
}
