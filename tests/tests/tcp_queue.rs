//! What stays in a host socket's receive queue after the guest has acknowledged it.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::tuple::Endpoint;
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
