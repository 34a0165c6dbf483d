//! Small segments that come in one batch go to the host socket with one call.

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::edge::{Gso, GsoKind, RxChecksum};
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::wire::flags::{ACK, FIN, RST};
use hibernet_tests::{Drain, Ended, TcpGuest, World, stream};

const LIMIT: Duration = Duration::from_secs(1);

fn connected(w: &mut World, port: u16) -> (TcpGuest, hibernet_netstack::edge::SockId) {
    let g = TcpGuest::connect(w, port, Endpoint::new("198.51.100.9".parse().unwrap(), 80));
    let sock = w.edge.host.last();
    (g, sock)
}

/// A segment that is received and, for now, the last of nothing: more of its batch follow.
fn receive(w: &mut World, g: &mut TcpGuest, flags: u8, data: &[u8]) {
    let s = g.segment(flags, data);
    g.snd_nxt = g.snd_nxt.wrapping_add(data.len() as u32 + u32::from(flags & FIN != 0));
    let frame = g.frame(w, &s);
    w.receive(&frame);
}

#[test]
fn a_batch_is_one_call_for_each_flow() {
    let mut w = World::new(Config::default());
    let mut flows = [1000, 1001].map(|port| connected(&mut w, port));
    let data = stream::bytes(1, 0, 30 * 1000);
    for round in 1..=3 {
        for piece in data.chunks(1000) {
            for (g, _) in &mut flows {
                receive(&mut w, g, ACK, piece);
            }
        }
        w.settle();
        for (g, sock) in &mut flows {
            assert_eq!(w.edge.host.tcp(*sock).sends, (round, round), "round {round}");
            assert!(w.edge.host.peer(*sock).take_received() == data);
            g.expect_ack(&mut w);
        }
    }
    assert_eq!(w.stack.stats().tcp_held_bytes, 0, "the sockets took all that they were offered");
}

#[test]
fn what_is_large_goes_at_once_and_in_order() {
    let mut w = World::with_link(Config::default(), World::offload_link(1500));
    let (mut g, sock) = connected(&mut w, 1000);
    let data = stream::bytes(1, 0, 45_000);
    receive(&mut w, &mut g, ACK, &data[..1000]);
    let large = g.segment(ACK, &data[1000..40_000]);
    g.snd_nxt = g.snd_nxt.wrapping_add(39_000);
    let frame = g.frame(&w, &large);
    w.receive_as(&frame, RxChecksum::Trusted, Some(Gso { kind: GsoKind::Tcp4, size: 1460 }));
    assert_eq!(w.edge.host.tcp(sock).sends, (2, 2), "before the batch is over");
    for piece in data[40_000..].chunks(1000) {
        receive(&mut w, &mut g, ACK, piece);
    }
    w.settle();
    assert_eq!(w.edge.host.tcp(sock).sends, (3, 3));
    assert!(w.edge.host.peer(sock).take_received() == data);
    g.expect_ack(&mut w);
}

/// However long a batch is, little waits for its end.
#[test]
fn a_long_batch_is_several_calls() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w, 1000);
    // The window is larger once it is scaled.
    g.send(&mut w, b"first");
    g.expect_ack(&mut w);
    let data = stream::bytes(1, 0, 250_000);
    for piece in data.chunks(1250) {
        receive(&mut w, &mut g, ACK, piece);
    }
    assert_eq!(w.edge.host.tcp(sock).sends, (4, 4), "before the batch is over");
    w.settle();
    assert_eq!(w.edge.host.tcp(sock).sends, (5, 5));
    assert!(w.edge.host.peer(sock).take_received() == [b"first", &data[..]].concat());
}

#[test]
fn a_fin_or_a_reset_comes_after_what_came_before_it() {
    for (flag, ended) in [(FIN | ACK, None), (RST, Some(Ended::Reset))] {
        let mut w = World::new(Config::default());
        let (mut g, sock) = connected(&mut w, 1000);
        let data = stream::bytes(1, 0, 5000);
        for piece in data.chunks(1000) {
            receive(&mut w, &mut g, ACK, piece);
        }
        receive(&mut w, &mut g, flag, &[]);
        w.settle();
        let host = w.edge.host.tcp(sock);
        assert_eq!((host.sends, host.ended), ((1, 1), ended), "flags {flag:x}");
        if flag == FIN | ACK {
            w.run(LIMIT);
            assert!(w.edge.host.peer(sock).take_received() == data);
            assert!(w.edge.host.tcp(sock).eof_seen());
        }
    }
}

/// A flow that ended with a FIN behind a gap leaves nothing of it to one that gathers in the same memory.
#[test]
fn memory_that_is_used_again_has_forgotten() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w, 1001);
    let fin = g.segment(ACK | FIN, b"two");
    let behind = hibernet_tests::wire::TcpSegment { seq: g.snd_nxt.wrapping_add(3), ..fin };
    g.inject(&mut w, &behind);
    g.send(&mut w, b"one");
    w.run(LIMIT);
    assert_eq!(w.edge.host.peer(sock).take_received(), b"onetwo");
    assert!(w.edge.host.tcp(sock).eof_seen());
    let (mut next, sock) = connected(&mut w, 1000);
    // So that it comes to the number at which the other ended.
    let to = g.iss.wrapping_add(1 + 6).wrapping_sub(next.snd_nxt) as usize;
    let data = stream::bytes(2, 0, to + 100);
    receive(&mut w, &mut next, ACK, &data[..to]);
    receive(&mut w, &mut next, ACK, &data[to..]);
    w.run(LIMIT);
    assert!(w.edge.host.peer(sock).take_received() == data);
    assert!(!w.edge.host.tcp(sock).eof_seen());
}

/// What the socket does not take is held as ever, and nothing is asked of it again before it has room.
#[test]
fn what_the_socket_does_not_take_is_held() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w, 1000);
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 4000;
        t.drain = Drain { bytes: 4000, every: Duration::from_millis(10) };
    });
    let data = stream::bytes(1, 0, 20_000);
    for piece in data.chunks(1000) {
        receive(&mut w, &mut g, ACK, piece);
    }
    w.settle();
    assert_eq!(w.stack.stats().tcp_held_bytes, 16_000);
    let asked = w.edge.host.tcp(sock).sends.1;
    g.send(&mut w, b"more");
    assert_eq!(w.edge.host.tcp(sock).sends.1, asked);
    w.run(LIMIT);
    assert!(w.edge.host.peer(sock).take_received() == [&data[..], b"more"].concat());
    g.expect_ack(&mut w);
}
