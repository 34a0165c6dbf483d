//! Packet traces that the simulation found, cut down to what matters.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::flags::RST;
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
