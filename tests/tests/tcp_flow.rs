//! A TCP flow's life, both ways.

use core::time::Duration;
use hibernet_netstack::config::Publish;
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_netstack::{Config, Time};
use hibernet_tests::wire::flags::{ACK, RST};
use hibernet_tests::{ConnectPlan, Drain, TcpGuest, World};

const LIMIT: Duration = Duration::from_secs(5);

fn remote() -> Endpoint {
    Endpoint::new("198.51.100.9".parse().unwrap(), 80)
}

fn remote6() -> Endpoint {
    Endpoint::new("2001:db8::9".parse().unwrap(), 80)
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn published() -> Config {
    let publish = Publish { proto: proto::TCP, addr: None, host_ports: (8080, 8089), guest_port: 80 };
    Config { publish: vec![publish], ..Config::default() }
}

#[test]
fn guest_connects_exchanges_data_and_closes_first() {
    for to in [remote(), remote6()] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::connect(&mut w, 40_000, to);
        let sock = w.edge.host.last();
        g.send(&mut w, b"GET /");
        w.edge.host.peer(sock).send(b"hello");
        w.settle();
        let data = g.expect_data(&mut w, b"hello");
        assert_eq!(data.last().unwrap().ack, g.snd_nxt, "the answer carries the acknowledgement");
        assert_eq!(w.edge.host.peer(sock).take_received(), b"GET /");
        g.ack(&mut w);
        g.close(&mut w, sock);
        w.assert_clean();
    }
}

#[test]
fn peer_closes_first_and_the_guest_goes_on_sending() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"bye").fin();
    w.settle();
    assert_eq!(g.read(&mut w, 3, LIMIT), b"bye");
    g.expect_fin(&mut w);
    g.ack(&mut w);
    g.send_all(&mut w, &bytes(5000), 1000);
    w.run(LIMIT);
    assert_eq!(w.edge.host.peer(sock).take_received(), bytes(5000));
    g.drain(&mut w);
    g.fin(&mut w);
    g.expect_ack(&mut w);
    w.assert_clean();
}

#[test]
fn a_client_of_a_published_port_reaches_the_guest_under_its_own_address() {
    for client in ["203.0.113.5", "2001:db8::5"] {
        let client = Endpoint::new(client.parse().unwrap(), 5555);
        let mut w = World::new(published());
        let local = Endpoint::new(if client.addr.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap(), 8083);
        let sock = w.accept(client, local);
        let mut g = TcpGuest::expect_syn(&mut w, 83, client);
        w.edge.host.peer(sock).send(b"request");
        w.settle();
        g.expect_nothing(&mut w);
        g.synack(&mut w);
        g.expect_data(&mut w, b"request");
        g.ack(&mut w);
        g.send(&mut w, b"response");
        w.run(LIMIT);
        assert_eq!(w.edge.host.peer(sock).take_received(), b"response");
        g.expect_ack(&mut w);
        g.close(&mut w, sock);
        w.assert_clean();
    }
}

#[test]
fn a_small_segment_is_acknowledged_when_the_peer_has_it() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| t.drain = Drain { bytes: 1 << 20, every: Duration::from_millis(50) });
    g.send(&mut w, b"x");
    w.run(Duration::from_millis(40));
    g.expect_nothing(&mut w);
    w.run(Duration::from_millis(200));
    g.expect_ack(&mut w);
}

#[test]
fn a_slow_peer_closes_the_window_and_every_byte_arrives() {
    let mut w = World::with_link(Config::default(), World::offload_link(1500));
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 64 << 10;
        t.drain = Drain { bytes: 16 << 10, every: Duration::from_millis(10) };
    });
    let data = bytes(4 << 20);
    let start = g.snd_nxt;
    let mut right = g.their_window;
    while g.snd_nxt.wrapping_sub(start) < data.len() as u32 {
        let at = g.snd_nxt.wrapping_sub(start) as usize;
        let mut room = 0;
        for s in g.drain(&mut w) {
            let edge = s.ack.wrapping_sub(start) + (u32::from(s.window) << g.their_scale.unwrap_or(0));
            // RFC 7323 section 2.4: rounding may move the edge by less than one unit of the scale.
            assert!(edge + 128 > right, "the window shrank from {right} to {edge}");
            right = edge.max(right);
        }
        if right as usize > at {
            room = (right as usize - at).min(data.len() - at).min(1460);
            g.send(&mut w, &data[at..at + room]);
        }
        if room == 0 {
            w.run(Duration::from_millis(1));
        }
        assert!(w.now() < Time::from_millis(60_000), "stalled at {at}, window up to {right}");
    }
    w.run(LIMIT);
    g.expect_ack(&mut w);
    assert!(w.edge.host.peer(sock).take_received() == data);
}

#[test]
fn failed_connects_are_reported_at_once() {
    use hibernet_netstack::edge::SockError;
    let cases = [
        (SockError::Refused, None),
        (SockError::NetUnreachable, Some(0)),
        (SockError::HostUnreachable, Some(1)),
        (SockError::TimedOut, Some(1)),
        (SockError::Prohibited, Some(13)),
    ];
    for (error, code) in cases {
        let mut w = World::new(Config::default());
        w.edge.host.default_plan = ConnectPlan::Fail(Duration::from_millis(1), error);
        let mut g = TcpGuest::new(&w, 40_000, remote());
        g.syn(&mut w);
        w.run(Duration::from_millis(2));
        match code {
            None => {
                let s = g.expect_rst(&mut w);
                assert_eq!((s.flags & (RST | ACK), s.ack), (RST | ACK, g.snd_nxt));
            }
            Some(code) => {
                let (_, ty, got, _, quoted) = w.take_icmp().expect("an ICMP error");
                assert_eq!((ty, got), (3, code));
                // Linux finds the socket by the ports and checks the sequence number.
                assert_eq!(quoted[20..22], 40_000u16.to_be_bytes());
                assert_eq!(quoted[24..28], g.iss.to_be_bytes());
            }
        }
        w.assert_clean();
    }
}

#[test]
fn a_reset_by_the_peer_comes_after_the_data_before_it() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"last words").reset();
    w.settle();
    let all = g.drain(&mut w);
    assert_eq!(all[0].data, b"last words");
    assert_eq!((all.len(), all[1].flags & RST, all[1].seq), (2, RST, all[0].seq.wrapping_add(10)));
    g.expect_nothing(&mut w);
    w.assert_clean();
}

#[test]
fn a_guest_that_is_away_for_four_minutes_loses_nothing() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    let data = bytes(300_000);
    w.edge.host.peer(sock).send(&data);
    w.run(Duration::from_secs(240));
    let before = w.now();
    w.inbox.clear();
    // Back again: the first thing it sends brings the rest, without waiting for the long time-out.
    g.ack(&mut w);
    assert!(g.read(&mut w, data.len(), LIMIT) == data);
    assert!(w.now().since(before) < Duration::from_secs(2), "{:?}", w.now().since(before));
}

#[test]
fn a_process_that_was_stopped_for_an_hour_does_not_blame_the_guest() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    let mut idle = TcpGuest::connect(&mut w, 40_001, remote());
    let sock = w.edge.host.tcp_sockets()[0];
    w.edge.host.peer(sock).send(b"in flight");
    w.settle();
    w.inbox.clear();
    w.freeze(Duration::from_secs(3 * 3600));
    assert_eq!(g.read(&mut w, 9, LIMIT), b"in flight");
    idle.drain(&mut w);
    idle.send(&mut w, b"still here");
    w.run(LIMIT);
    idle.expect_ack(&mut w);
}

#[test]
fn a_guest_that_vanished_is_given_up_after_a_quarter_of_an_hour() {
    let mut w = World::new(Config::default());
    TcpGuest::connect(&mut w, 40_000, remote());
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).send(b"anybody there?");
    w.run(Duration::from_secs(15 * 60 - 1));
    assert_eq!(w.stack.flow_counts().0, 1);
    w.run(Duration::from_secs(10 * 60));
    w.assert_clean();
}

#[test]
fn an_idle_guest_that_vanished_is_found_by_keep_alives() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 40_000, remote());
    w.run(Duration::from_secs(7300));
    let probe = g.expect(&mut w);
    assert_eq!((probe.seq, probe.data.len()), (g.rcv_nxt.wrapping_sub(1), 0));
    g.ack(&mut w);
    w.run(Duration::from_secs(7100));
    assert_eq!(w.stack.flow_counts().0, 1, "it answered");
    w.run(Duration::from_secs(1000));
    w.assert_clean();
}

#[test]
fn a_guest_that_waits_for_room_for_a_whole_segment_hears_of_it() {
    let mut w = World::with_link(Config::default(), World::offload_link(65_520));
    let mut g = TcpGuest::new(&w, 40_000, remote());
    g.mss = Some(65_480);
    g.handshake(&mut w);
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 1 << 20;
        t.drain = Drain { bytes: 1 << 20, every: Duration::from_millis(50) };
    });
    let mut edge = g.snd_nxt.wrapping_add(g.their_window);
    let start = w.now();
    while edge.wrapping_sub(g.snd_nxt) as i32 >= 65_480 {
        g.send(&mut w, &bytes(65_480));
        for s in g.drain(&mut w) {
            edge = s.ack.wrapping_add(u32::from(s.window) << g.their_scale.unwrap_or(0));
        }
        assert_eq!(w.now(), start, "the window does not close");
    }
    w.run(Duration::from_millis(60));
    let s = g.expect(&mut w);
    assert!(u32::from(s.window) << g.their_scale.unwrap_or(0) > 65_480 * 2, "{s:?}");
}
