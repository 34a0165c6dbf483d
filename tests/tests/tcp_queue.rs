//! What stays in a host socket's receive queue after the guest has acknowledged it.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::flags::ACK;
use hibernet_tests::{TcpGuest, World, stream};

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
