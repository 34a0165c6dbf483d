//! Defects that the relative shipped and mended over the years, each as a packet trace (or datagram exchange) that fails
//! on the described behaviour.
//!
//! Some have nothing to stand on here: pipes between sockets that never see the guest (there are none); the padding of
//! short frames to the guest, which is the link's; datagrams that came in between bind and connect, which the edge
//! keeps back (both in `runtime`).

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{Config, Limits, Publish};
use hibernet_netstack::edge::{LinkInfo, SockError, SockId};
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_tests::host::Incoming;
use hibernet_tests::wire::flags::{ACK, FIN, PSH, RST, SYN};
use hibernet_tests::wire::{self, GUEST_MAC, Ip, L4, Net, TcpSegment};
use hibernet_tests::{ConnectPlan, Drain, Ended, TcpGuest, World, stream};

const SECOND: Duration = Duration::from_secs(1);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn at(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

fn remote() -> Endpoint {
    at("198.51.100.9", 80)
}

fn published(proto: u8) -> Config {
    Config { publish: vec![Publish { proto, addr: None, host_ports: (8080, 8080), guest_port: 80 }], ..Config::default() }
}

/// A connection of the guest's, and its socket.
fn connected(w: &mut World) -> (TcpGuest, SockId) {
    let g = TcpGuest::connect(w, 1000, remote());
    (g, w.edge.host.last())
}

#[test]
fn fin_with_a_mismatching_sequence_number_ends_nothing() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    let fin = |g: &TcpGuest, w: &mut World, ahead: u32, data: &[u8]| {
        g.inject(w, &TcpSegment { seq: g.snd_nxt.wrapping_add(ahead), ..g.segment(ACK | FIN, data) });
    };
    fin(&g, &mut w, 100, b"");
    fin(&g, &mut w, 5, b"late");
    fin(&g, &mut w, u32::MAX, b"");
    fin(&g, &mut w, 1 << 31, b"");
    assert!(!w.edge.host.tcp(sock).shutdown);
    g.drain(&mut w);
    // What was missing comes, and the FIN again.
    g.send(&mut w, b"early");
    fin(&g, &mut w, 0, b"late");
    g.snd_nxt = g.snd_nxt.wrapping_add(5);
    g.expect_ack(&mut w);
    assert_eq!(w.edge.host.tcp(sock).received, b"earlylate");
    assert!(w.edge.host.tcp(sock).eof_seen());
}

#[test]
fn partial_send_is_acknowledged_at_once_and_no_further_than_it_went() {
    let limits = Limits { tcp_hold: 3000, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    (w.edge.host.tcp_defaults.sndbuf, w.edge.host.tcp_defaults.drain) = (2000, Drain::STOPPED);
    let (mut g, sock) = connected(&mut w);
    let data = stream::bytes(1, 0, 9000);
    g.send_all(&mut w, &data, 1500);
    let last = g.drain(&mut w).pop().expect("an acknowledgement without waiting");
    let taken = last.ack.wrapping_sub(g.iss.wrapping_add(1)) as usize;
    assert!((5000..5300).contains(&taken), "{taken} bytes acknowledged; socket and hold have room for 5000");
    w.edge.host.peer(sock).tune(|t| t.drain = Drain::FAST);
    w.run(ms(10));
    assert!(w.edge.host.tcp(sock).received == data[..taken]);
    g.snd_nxt = last.ack;
    g.next(&mut w).expect("the window opens");
    g.write(&mut w, &data[taken..], 1460, SECOND * 10);
    assert!(w.edge.host.tcp(sock).received == data);
}

#[test]
fn fin_lost_behind_data_that_arrived_is_sent_again() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    w.edge.host.peer(sock).send(b"data").fin();
    w.settle();
    let all = g.drain(&mut w);
    assert_eq!(all.last().unwrap().flags & FIN, FIN);
    // Only the data arrived.
    g.ack_at(&mut w, 4);
    let again = g.expect_within(&mut w, SECOND * 3);
    assert_eq!((again.flags & FIN, again.data.len()), (FIN, 0));
    assert_eq!(again.seq, g.irs.wrapping_add(5));
    // Lost once more, and asked for with duplicate acknowledgements.
    for _ in 0..3 {
        g.ack_at(&mut w, 4);
    }
    g.expect_within(&mut w, SECOND * 3);
    g.rcv_nxt = g.irs.wrapping_add(6);
    g.ack(&mut w);
    g.fin(&mut w);
    w.run(ms(1));
    w.assert_clean();
}

#[test]
fn zero_window_with_data_in_flight_brings_them_again() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    let data = stream::bytes(2, 0, 14_600);
    w.edge.host.peer(sock).send(&data);
    w.settle();
    g.drain(&mut w);
    // The guest took 2920 bytes and threw the rest away: it has no room.
    g.rcv_nxt = g.irs.wrapping_add(2921);
    g.window = 0;
    g.ack(&mut w);
    w.run(SECOND * 3);
    for probe in g.drain(&mut w) {
        assert!(probe.data.len() <= 1, "{} bytes into a closed window", probe.data.len());
        g.ack(&mut w);
    }
    g.window = 1000;
    g.ack(&mut w);
    let start = w.now();
    assert!(g.read(&mut w, data.len() - 2920, SECOND * 10) == data[2920..]);
    assert!(w.now().since(start) < SECOND * 3, "{:?}", w.now().since(start));
}

#[test]
fn zero_window_is_probed() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    g.window = 0;
    g.ack(&mut w);
    w.edge.host.peer(sock).send(b"waiting").fin();
    w.settle();
    for _ in 0..5 {
        let probe = g.expect_within(&mut w, SECOND * 61);
        assert!(probe.seq == g.rcv_nxt.wrapping_sub(1) || probe.data.len() == 1, "{probe:?} makes nobody answer");
        g.ack(&mut w);
    }
    // The window opens but the guest says so only when asked.
    g.window = 1;
    g.expect_within(&mut w, SECOND * 61);
    g.ack(&mut w);
    assert_eq!(g.read(&mut w, 7, SECOND), b"waiting");
}

/// Keep-alives of a guest with a closed window neither open it nor break the flow; what they say later is heard.
#[test]
fn zero_window_keep_alives_keep_what_is_known_of_the_window() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    let keep_alive = |g: &TcpGuest, w: &mut World| {
        g.inject(w, &TcpSegment { seq: g.snd_nxt.wrapping_sub(1), ..g.segment(ACK, &[]) });
    };
    g.window = 0;
    g.ack(&mut w);
    w.edge.host.peer(sock).send(b"waiting");
    w.settle();
    keep_alive(&g, &mut w);
    let answer = g.expect(&mut w);
    assert!(answer.data.is_empty() && answer.ack == g.snd_nxt, "{answer:?}");
    g.expect_nothing(&mut w);
    // The update is lost; a keep-alive and the answers to our probes carry it as well.
    g.window = 500;
    keep_alive(&g, &mut w);
    let mut got = Vec::new();
    w.run_until(SECOND * 5, |w| {
        for s in g.drain(w) {
            got.extend(s.data);
            g.ack(w);
        }
        !got.is_empty()
    });
    assert!(got.starts_with(b"waiting"), "{got:?}");
}

#[test]
fn syn_sent_again_while_the_host_connects_is_patience() {
    let mut w = World::new(Config::default());
    w.edge.host.default_plan = ConnectPlan::Accept(SECOND * 7);
    let mut g = TcpGuest::new(&w, 1000, remote());
    for _ in 0..3 {
        g.syn(&mut w);
        w.run(SECOND * 2);
        g.expect_nothing(&mut w);
    }
    w.run(SECOND);
    g.expect_synack(&mut w);
    g.ack(&mut w);
    assert_eq!(w.edge.host.all().count(), 1, "one connect");
    g.send(&mut w, b"x");
    w.run(ms(1));
    assert_eq!(w.edge.host.tcp(w.edge.host.last()).received, b"x");
}

#[test]
fn syn_for_a_guest_that_is_not_up_yet_is_sent_when_it_is() {
    let unknown = LinkInfo { guest_mac: None, ..World::plain_link() };
    let mut w = World::with_link(published(proto::TCP), unknown);
    let client = at("203.0.113.5", 555);
    let sock = w.accept(client, at("192.0.2.1", 8080));
    w.run(SECOND * 4);
    assert!(w.take_tcp(client, at("10.0.2.15", 80)).is_none(), "to whom?");
    assert!(w.edge.host.is_open(sock), "the client waits");
    // The guest boots and asks for its router.
    let ask = wire::Arp { op: 1, sender: (GUEST_MAC, [10, 0, 2, 15]), target: ([0; 6], [10, 0, 2, 2]) };
    let frame = wire::ethernet([0xff; 6], GUEST_MAC, wire::ethertype::ARP, &wire::arp(ask));
    w.inject(&frame);
    w.take(|f| matches!(f.net, Net::Arp(_)).then_some(()));
    let mut g = TcpGuest::new(&w, 80, client);
    let syn = g.expect_within(&mut w, SECOND * 10);
    assert_eq!(syn.flags, SYN);
    (g.irs, g.rcv_nxt) = (syn.seq, syn.seq.wrapping_add(1));
    g.complete(&mut w);
    w.edge.host.peer(sock).send(b"x");
    w.settle();
    g.expect_data(&mut w, b"x");
}

#[test]
fn rst_in_answer_to_a_syn_has_ack() {
    let mut w = World::new(Config::default());
    w.edge.host.default_plan = ConnectPlan::REFUSE;
    let mut g = TcpGuest::new(&w, 1000, remote());
    g.syn(&mut w);
    let s = g.expect_rst(&mut w);
    assert_eq!((s.flags & ACK, s.ack), (ACK, g.iss.wrapping_add(1)));
    // Also when the peer resets between our SYN-ACK and the guest's answer.
    w.edge.host.default_plan = ConnectPlan::default();
    let mut g = TcpGuest::new(&w, 1001, remote());
    g.syn(&mut w);
    let synack = g.expect_synack(&mut w);
    let sock = w.edge.host.last();
    w.edge.host.peer(sock).reset();
    w.settle();
    let s = g.expect_rst(&mut w);
    assert_eq!((s.flags & ACK, s.seq), (ACK, synack.seq.wrapping_add(1)));
    w.assert_clean();
}

#[test]
fn rst_of_the_guest_reaches_the_peer_as_one_also_with_data_queued() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 1000;
        t.drain = Drain::STOPPED;
    });
    w.edge.host.peer(sock).send(b"unread");
    w.settle();
    g.expect_data(&mut w, b"unread");
    g.send(&mut w, &[1; 1400]);
    g.drain(&mut w);
    g.rst(&mut w);
    assert_eq!(w.edge.host.tcp(sock).ended, Some(Ended::Reset));
    w.assert_clean();
}

#[test]
fn rst_answers_a_segment_of_an_unknown_flow() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    w.edge.host.peer(sock).fail(SockError::TimedOut);
    w.settle();
    g.expect_rst(&mut w);
    w.assert_clean();
    // The guest did not get that, and goes on.
    g.send(&mut w, b"still there?");
    let s = g.expect_rst(&mut w);
    assert_eq!((s.seq, s.flags), (g.rcv_nxt, RST));
}

#[test]
fn ack_of_everything_before_the_fin_and_of_the_fin_does_not_wait_for_the_peer() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    w.edge.host.peer(sock).tune(|t| t.drain = Drain::STOPPED);
    g.send(&mut w, b"a");
    g.send(&mut w, b"b");
    g.fin(&mut w);
    g.expect_ack(&mut w);
    // And it never moves back.
    w.edge.host.peer(sock).send(b"c");
    w.settle();
    assert_eq!(g.expect(&mut w).ack, g.snd_nxt);
}

#[test]
fn window_updates_after_the_guests_fin_still_bring_data() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::new(&w, 1000, remote());
    (g.scale, g.window) = (None, 2000);
    g.handshake(&mut w);
    let sock = w.edge.host.last();
    g.fin(&mut w);
    g.expect_ack(&mut w);
    let data = stream::bytes(3, 0, 100_000);
    w.edge.host.peer(sock).send(&data).fin();
    w.settle();
    let mut rest = g.read(&mut w, 4000, SECOND).len();
    // Closed and open again, each with nothing else in the segment.
    g.window = 0;
    g.ack(&mut w);
    w.run(ms(10));
    rest += g.drain(&mut w).iter().map(|s| s.data.len()).sum::<usize>();
    assert!((4000..10_000).contains(&rest));
    g.rcv_nxt = g.irs.wrapping_add(1 + rest as u32);
    g.ack(&mut w);
    g.window = 30_000;
    g.ack(&mut w);
    assert!(g.read(&mut w, data.len() - rest, SECOND * 5) == data[rest..]);
    g.expect_fin(&mut w);
    g.ack(&mut w);
    w.assert_clean();
}

#[test]
fn fin_of_the_guest_waits_for_the_data_before_it() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 1000;
        t.drain = Drain { bytes: 300, every: ms(3) };
    });
    let data = stream::bytes(4, 0, 10_000);
    g.send_all(&mut w, &data, 1000);
    g.fin(&mut w);
    assert!(!w.edge.host.tcp(sock).shutdown, "data are pending");
    w.run(SECOND * 3);
    assert!(w.edge.host.tcp(sock).received == data && w.edge.host.tcp(sock).eof_seen());
}

#[test]
fn padding_of_short_frames_is_no_data() {
    for to in [remote(), at("2001:db8::9", 80)] {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::connect(&mut w, 1000, to);
        let sock = w.edge.host.last();
        for data in [&b""[..], b"x", b"yz"] {
            let s = g.segment(ACK | PSH, data);
            g.snd_nxt = g.snd_nxt.wrapping_add(data.len() as u32);
            let mut frame = g.frame(&w, &s);
            frame.resize(frame.len().max(60) + 40, 0xee);
            w.inject(&frame);
        }
        w.run(ms(300));
        g.expect_ack(&mut w);
        assert_eq!(w.edge.host.tcp(sock).received, b"xyz");
    }
    // UDP has a length of its own.
    let mut w = World::new(Config::default());
    let (src, dst) = (w.guest_addr(remote().addr), remote().addr);
    let mut frame = Ip::new(src, dst).frame(w.gateway_mac(), GUEST_MAC, 17, &wire::udp(src, dst, 5, 7, b"q"));
    frame.resize(90, 0xee);
    w.inject(&frame);
    let sock = w.edge.host.last();
    assert_eq!(w.edge.host.udp(sock).sent[0].data, b"q");
}

/// A DHCP message whose options have padding between them and no end.
#[test]
fn dhcp_options_0_and_255_are_what_the_rfc_says() {
    for end in [&[][..], &[255], &[255, 53, 1, 7], &[0, 0, 0]] {
        let mut w = World::new(Config::default());
        let mut m = vec![0; 236];
        (m[0], m[1], m[2]) = (1, 1, 6);
        m[4..8].copy_from_slice(&[1, 2, 3, 4]);
        m[28..34].copy_from_slice(&GUEST_MAC);
        m.extend([99, 130, 83, 99]);
        m.extend([0, 0, 53, 1, 1, 0, 0, 0, 55, 2, 1, 3]);
        m.extend(end);
        let (src, dst) = (IpAddr::from([0, 0, 0, 0]), IpAddr::from([255; 4]));
        let frame = Ip::new(src, dst).frame([0xff; 6], GUEST_MAC, 17, &wire::udp(src, dst, 68, 67, &m));
        w.inject(&frame);
        let (_, offer) = w.take_udp(68).unwrap_or_else(|| panic!("no offer to options that end in {end:?}"));
        assert_eq!((offer[0], &offer[4..8]), (2, &[1, 2, 3, 4][..]));
        assert_eq!(offer[240..243], [53, 1, 2]);
    }
}

/// A datagram to a group reaches the guest's published port; the answer comes from an address that can be a source.
#[test]
fn inbound_multicast_is_answered_from_no_group() {
    let mut w = World::new(published(proto::UDP));
    let sock = w.listen_udp(at("0.0.0.0", 8080));
    let client = at("203.0.113.5", 555);
    for to in ["239.1.2.3", "255.255.255.255"] {
        let to = Some(to.parse().unwrap());
        w.edge.host.udp_arrives(sock, Incoming { data: b"who?".to_vec(), from: client, to, segment: None, hop_limit: Some(1) });
        w.settle();
        let Some((from, _)) = w.take_udp(80) else { continue };
        let src = w.guest_addr(client.addr);
        w.inject_ip(&Ip::new(src, from.addr), 17, &wire::udp(src, from.addr, 80, from.port, b"me"));
        let sent = w.edge.host.udp(sock).sent.last().expect("the answer").clone();
        assert_eq!((sent.opts.to, &sent.data[..]), (Some(client), &b"me"[..]));
        let bad = |a: IpAddr| a.is_multicast() || a == IpAddr::from([255; 4]);
        assert!(!sent.opts.from.is_some_and(bad), "the kernel refuses to send from {:?}", sent.opts.from);
    }
}

/// The end of the stream comes through a guest that took its time, however often it stalled.
#[test]
fn eof_after_stalls_comes_through() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    let data = stream::bytes(5, 0, 50_000);
    w.edge.host.peer(sock).send(&data).fin();
    w.settle();
    let mut got = Vec::new();
    for n in 0..10 {
        g.window = 40;
        got.extend(g.read(&mut w, 5000, SECOND * 3));
        g.window = 0;
        g.ack(&mut w);
        w.run(ms(50 * n));
        for s in g.drain(&mut w) {
            // What was in flight when the window closed.
            if s.seq == g.rcv_nxt {
                g.rcv_nxt = g.rcv_nxt.wrapping_add(s.data.len() as u32);
                got.extend(s.data);
            }
        }
        if got.len() == data.len() {
            break;
        }
        g.window = 40;
        g.ack(&mut w);
    }
    assert!(got == data);
    g.window = 1000;
    g.ack(&mut w);
    let fin = w.run_until(SECOND * 70, |w| {
        let end = g.irs.wrapping_add(1 + 50_000);
        g.drain(w).iter().any(|s| s.flags & FIN != 0 && s.seq.wrapping_add(s.data.len() as u32) == end)
    });
    assert!(fin.is_some() || w.edge.host.tcp(sock).unconsumed() == 0, "the FIN does not come");
}

/// Events that cannot be worked off now do not come again and again.
#[test]
fn nothing_spins_while_a_flow_is_stalled() {
    let mut w = World::new(Config::default());
    let (mut g, sock) = connected(&mut w);
    g.window = 0;
    g.ack(&mut w);
    w.edge.host.peer(sock).tune(|t| {
        t.sndbuf = 1000;
        t.drain = Drain::STOPPED;
    });
    w.edge.host.peer(sock).send(&[1; 10_000]).fin();
    g.send_all(&mut w, &[2; 5000], 1000);
    w.run(SECOND);
    let (steps, peeks, sends) = (w.steps, w.edge.host.tcp(sock).peeks, w.edge.host.tcp(sock).sends.1);
    for _ in 0..60 {
        w.run(SECOND);
        g.drain(&mut w);
        g.ack(&mut w);
    }
    let t = w.edge.host.tcp(sock);
    assert!(w.steps - steps < 1500, "{} calls in a stalled minute", w.steps - steps);
    assert!(t.peeks - peeks < 200 && t.sends.1 - sends < 200, "{} reads, {} writes", t.peeks - peeks, t.sends.1 - sends);
}

#[test]
fn a_guests_datagram_to_a_group_opens_nothing() {
    let mut w = World::new(Config::default());
    let dst: IpAddr = "239.255.255.250".parse().unwrap();
    let src = w.guest_addr(dst);
    w.inject_ip(&Ip::new(src, dst), 17, &wire::udp(src, dst, 5, 1900, b"M-SEARCH"));
    assert_eq!(w.edge.host.all().count(), 0);
    assert_eq!(w.dropped_total(), 1);
    assert!(w.take(|f| matches!(f.net, Net::Ip { l4: L4::Icmp { .. }, .. }).then_some(())).is_none());
}
