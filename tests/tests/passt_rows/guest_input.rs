//! What a guest may send: options, sizes, order, strays.

use crate::{SECOND, at, inbound, ms, published, remote, remotes};
use hibernet_netstack::config::Config;
use hibernet_netstack::{DropReason, Time};
use hibernet_tests::wire::flags::{ACK, FIN, PSH, RST, SYN, URG};
use hibernet_tests::wire::{self, GUEST_MAC, Ip, TcpSegment};
use hibernet_tests::{SplitMix, TcpGuest, World, stream};

/// A handshake with these options in the SYN; the guest's view of it.
fn with_options(w: &mut World, port: u16, options: &[u8]) -> TcpGuest {
    let mut g = TcpGuest::new(w, port, remote());
    (g.mss, g.scale) = (None, None);
    g.snd_nxt = g.iss.wrapping_add(1);
    g.inject(w, &TcpSegment { options: options.to_vec(), ..g.syn_segment() });
    g.expect_synack(w);
    g.ack(w);
    g
}

#[test]
fn row_05_malformed_options_neither_hang_nor_reach_beyond_the_header() {
    let cases: &[&[u8]] = &[
        &[2, 0, 0, 0],
        &[2, 1, 0, 0],
        &[2, 255, 0, 0],
        &[2, 6, 0, 0, 5, 0xb4, 0, 0],
        &[1, 1, 1, 2],
        &[1, 1, 2, 4],
        &[3, 0, 0, 0],
        &[3, 255, 7, 0],
        &[8, 0, 1, 2],
        &[5, 255, 0, 0],
        &[255, 255, 255, 255],
        &[0, 2, 4, 5],
        &[1; 40],
    ];
    for (n, options) in cases.iter().enumerate() {
        let mut w = World::new(Config::default());
        let mut g = with_options(&mut w, 1000 + n as u16, options);
        assert_eq!(g.their_scale, None, "{options:?}: the guest offered no scale");
        let sock = w.edge.host.last();
        w.edge.host.peer(sock).send(&[9; 1000]);
        w.settle();
        let sizes: Vec<_> = g.expect_data(&mut w, &[9; 1000]).iter().map(|s| s.data.len()).collect();
        // RFC 9293 section 3.7.1: without a valid option, 536.
        assert_eq!(sizes, [536, 464], "{options:?}");
    }
}

/// Options of any bytes, in SYNs and in segments of a standing connection.
#[test]
fn row_05_options_of_any_bytes_do_no_harm() {
    let mut rng = SplitMix::new(5);
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 999, remote());
    for n in 0..2000 {
        let mut options = vec![0; 4 * rng.below(11) as usize];
        rng.fill(&mut options);
        if rng.chance(50) {
            options.iter_mut().for_each(|b| *b %= 12);
        }
        let other = TcpGuest::new(&w, 1000 + n, remote());
        other.inject(&mut w, &TcpSegment { options: options.clone(), ..other.syn_segment() });
        let s = TcpSegment { options, ..g.segment(ACK | PSH, b"x") };
        g.inject(&mut w, &s);
        g.snd_nxt = g.snd_nxt.wrapping_add(1);
    }
    w.run(ms(300));
    g.expect_ack(&mut w);
    assert_eq!(w.edge.host.tcp(w.edge.host.tcp_sockets()[0]).received, vec![b'x'; 2000]);
}

#[test]
fn row_06_any_mss_gives_segments_that_fit_and_progress() {
    let offers: [&[u8]; 4] = [&[2, 4, 0xff, 0xff], &[2, 4, 0, 0], &[2, 4, 0, 1], &[2, 6, 0xff, 0xff, 0xff, 0xff, 0, 0]];
    for link in [World::plain_link(), World::offload_link(65_520)] {
        for options in offers {
            let mut w = World::with_link(Config::default(), link);
            let mut g = with_options(&mut w, 1000, options);
            g.window = 65_535;
            let sock = w.edge.host.last();
            let data = stream::bytes(6, 0, 1 << 20);
            // The kit refuses frames longer than the link's MTU.
            w.edge.host.peer(sock).send(&data);
            w.settle();
            let start = w.now();
            assert!(g.read(&mut w, data.len(), SECOND * 10) == data, "{options:?}");
            assert!(w.now().since(start) < SECOND, "{options:?}");
        }
    }
}

#[test]
fn row_07_retransmitted_and_reordered_segments_reach_the_peer_once() {
    for to in remotes() {
        let mut w = World::new(Config::default());
        let g = TcpGuest::connect(&mut w, 1000, to);
        let sock = w.edge.host.last();
        let data = stream::bytes(7, 0, 60_000);
        let mut rng = SplitMix::new(7);
        // Pieces of any size and place, over and over, until all was there at least once.
        let mut order: Vec<usize> = (0..600).map(|n| n * 100).collect();
        for _ in 0..3 {
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i as u64 + 1) as usize);
            }
            for &from in &order {
                let upto = (from + 100 + rng.below(1300) as usize).min(data.len());
                if !rng.chance(5) {
                    g.send_at(&mut w, from as u32, &data[from..upto]);
                }
            }
        }
        for from in (0..data.len()).step_by(1000) {
            g.send_at(&mut w, from as u32, &data[from..from + 1000]);
        }
        w.run(ms(10));
        assert!(w.edge.host.tcp(sock).received == data);
    }
}

#[test]
fn row_07_a_keep_alive_writes_nothing_and_is_answered() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    g.send(&mut w, b"data");
    w.run(ms(300));
    g.expect_ack(&mut w);
    for garbage in [&b""[..], b"!"] {
        let s = TcpSegment { seq: g.snd_nxt.wrapping_sub(1), ..g.segment(ACK, garbage) };
        g.inject(&mut w, &s);
        g.expect_ack(&mut w);
    }
    // A pure acknowledgement with an older number does not move anything backwards.
    let s = TcpSegment { seq: g.snd_nxt.wrapping_sub(3), ..g.segment(ACK, b"") };
    g.inject(&mut w, &s);
    g.send(&mut w, b" more");
    w.run(ms(300));
    g.expect_ack(&mut w);
    assert_eq!(w.edge.host.tcp(sock).received, b"data more");
}

#[test]
fn row_09_a_byte_without_push_goes_out_at_once() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    for n in 0..100u8 {
        let s = g.segment(ACK, &[n]);
        g.snd_nxt = g.snd_nxt.wrapping_add(1);
        g.inject(&mut w, &s);
        assert_eq!(w.edge.host.tcp(sock).received.len(), usize::from(n) + 1, "no wait for more");
    }
}

/// Urgent data is ordinary data (RFC 6093): it arrives once and in its place.
#[test]
fn row_07_urgent_data_arrives_once_in_its_place() {
    let mut w = World::new(Config::default());
    let mut g = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    let s = TcpSegment { urgent: 3, ..g.segment(ACK | PSH | URG, b"ab!cd") };
    g.inject(&mut w, &s);
    g.snd_nxt = g.snd_nxt.wrapping_add(5);
    g.send(&mut w, b"ef");
    w.run(ms(300));
    g.expect_ack(&mut w);
    assert_eq!(w.edge.host.tcp(sock).received, b"ab!cdef");
}

#[test]
fn row_28_segments_of_no_connection_are_answered_and_open_nothing() {
    for to in remotes() {
        let mut w = World::new(Config::default());
        let mut g = TcpGuest::new(&w, 1000, to);
        (g.rcv_nxt, g.snd_nxt) = (5000, 7000);
        let expect = |w: &mut World, flags: u8, data: &[u8], want: Option<(u32, u32, u8)>| {
            let s = TcpSegment { ack: 5000, ..g.segment(flags, data) };
            g.inject(w, &s);
            let got = w.take_tcp(g.remote, g.local).map(|s| (s.seq, s.ack, s.flags));
            assert_eq!(got, want, "flags {flags:#x}");
        };
        // RFC 9293 section 3.10.7.1.
        expect(&mut w, ACK, b"", Some((5000, 0, RST)));
        expect(&mut w, ACK | PSH, b"abc", Some((5000, 0, RST)));
        expect(&mut w, SYN | ACK, b"", Some((5000, 0, RST)));
        expect(&mut w, FIN | ACK, b"", Some((5000, 0, RST)));
        expect(&mut w, SYN | FIN, b"", Some((0, 7002, RST | ACK)));
        expect(&mut w, FIN, b"", Some((0, 7001, RST | ACK)));
        expect(&mut w, 0, b"abc", Some((0, 7003, RST | ACK)));
        expect(&mut w, RST, b"", None);
        expect(&mut w, RST | ACK, b"", None);
        expect(&mut w, SYN | RST, b"", None);
        assert_eq!(w.edge.host.all().count(), 0, "nothing was opened");
        assert_eq!(w.dropped(DropReason::TcpUnacceptable), 10);
        w.assert_clean();
    }
}

#[test]
fn row_34_a_mapped_address_is_not_its_ipv4_twin() {
    let mut w = World::new(Config::default());
    let mut twin = TcpGuest::connect(&mut w, 1000, remote());
    let sock = w.edge.host.last();
    let mapped = at("::ffff:198.51.100.9", 80);
    let src = w.guest_addr(mapped.addr);
    for flags in [SYN, ACK | PSH] {
        let s = TcpSegment {
            src_port: 1000,
            dst_port: 80,
            seq: twin.snd_nxt,
            ack: twin.rcv_nxt,
            flags,
            window: 100,
            data: b"!".to_vec(),
            ..TcpSegment::default()
        };
        let frame = Ip::new(src, mapped.addr).frame(w.gateway_mac(), GUEST_MAC, 6, &s.bytes(src, mapped.addr));
        w.inject(&frame);
    }
    assert_eq!(w.edge.host.all().count(), 1, "no socket for the mapped address");
    assert_eq!(w.dropped(DropReason::ReachDenied), 2);
    // The same with UDP, and from a mapped source.
    w.inject_ip(&Ip::new(src, mapped.addr), 17, &wire::udp(src, mapped.addr, 5, 53, b"q"));
    let mapped_src = at("::ffff:10.0.2.15", 0).addr;
    let dst = at("2001:db8::9", 0).addr;
    w.inject_ip(&Ip::new(mapped_src, dst), 17, &wire::udp(mapped_src, dst, 5, 53, b"q"));
    assert_eq!((w.dropped(DropReason::ReachDenied), w.dropped(DropReason::SpoofedSource)), (3, 1));
    w.inbox.clear();
    twin.send(&mut w, b"mine");
    w.run(ms(5));
    assert_eq!(w.edge.host.tcp(sock).received, b"mine");
}

#[test]
fn row_34_link_local_peers_are_out_of_reach_and_clients_appear_as_the_gateway() {
    let mut w = World::new(published());
    let mut g = TcpGuest::new(&w, 1000, at("fe80::1234", 80));
    g.syn(&mut w);
    let (_, ty, code, _, _) = w.take_icmp().expect("an answer");
    assert_eq!((ty, code), (1, 1), "administratively prohibited");
    assert_eq!(w.edge.host.all().count(), 0);
    let gateway = w.stack.config().v6.unwrap().gateway;
    let sock = w.accept(at("fe80::5", 555), at("2001:db8::1", 8080));
    let mut g = TcpGuest::expect_syn(&mut w, 80, at(&gateway.to_string(), 555));
    g.complete(&mut w);
    g.send(&mut w, b"hello");
    w.run(ms(5));
    assert_eq!(w.edge.host.tcp(sock).received, b"hello");
    assert!(w.now() > Time::ZERO);
    let (mut other, _) = inbound(&mut w, at("203.0.113.5", 555));
    other.expect_nothing(&mut w);
}
