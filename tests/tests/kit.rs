//! The kit itself: its host behaves like Linux, its wire code agrees with itself, its checks fire.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::edge::*;
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason, Time};
use hibernet_tests::wire::flags::{ACK, FIN, PSH};
use hibernet_tests::wire::{self, Frame, GUEST_MAC, Ip, L4, Net, TcpSegment};
use hibernet_tests::{Captured, ConnectPlan, Drain, Ended, FakeEdge, FakeHost, SlotKind, World};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn remote() -> Endpoint {
    Endpoint::new("198.51.100.9".parse().unwrap(), 80)
}

fn token() -> Token {
    Token::new(TokenKind::Tcp, 3, 1)
}

fn connected() -> (FakeEdge, SockId) {
    let mut e = FakeEdge::default();
    let s = e.tcp_connect(token(), remote(), Source::ANY).unwrap();
    e.host.advance(Time::ZERO);
    assert!(e.host.next_event().unwrap().1.writable);
    (e, s)
}

fn panics(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

fn peek(e: &mut FakeEdge, s: SockId, offset: u32, max: u32) -> Vec<u8> {
    match e.tcp_peek(s, offset, max).unwrap() {
        Peek::Data(p) => {
            let bytes = e.pool.bytes(p).to_vec();
            e.release(p);
            bytes
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn peeked_data_stay_until_consumed_and_fin_comes_after_them() {
    let (mut e, s) = connected();
    assert_eq!(e.tcp_peek(s, 0, 10), Ok(Peek::Empty));
    e.host.peer(s).send(b"abcdef").fin();
    assert_eq!(e.host.next_event().unwrap().1, Ready { readable: true, writable: true, peer_closed: true, error: false });
    assert_eq!(peek(&mut e, s, 0, 4), b"abcd");
    assert_eq!(peek(&mut e, s, 2, 100), b"cdef");
    e.tcp_consume(s, 3).unwrap();
    assert_eq!(peek(&mut e, s, 0, 100), b"def");
    assert_eq!(e.tcp_peek(s, 3, 1), Ok(Peek::Eof));
    assert!(panics(|| _ = e.tcp_peek(s, 4, 1)), "beyond what came");
    assert!(panics(|| _ = e.tcp_consume(s, 4)), "more than peeked");
}

#[test]
fn a_full_buffer_blocks_and_reports_room_once_a_third_is_free() {
    let (mut e, s) = connected();
    e.host.peer(s).tune(|t| {
        t.sndbuf = 90;
        t.drain = Drain { bytes: 10, every: Duration::from_millis(1) };
    });
    let data = e.stash(&[7; 100]).unwrap();
    assert_eq!(e.tcp_send(s, data), Ok(90));
    assert_eq!(e.tcp_send(s, data.slice(90, 10)), Ok(0));
    assert_eq!((e.tcp_space(s), e.tcp_unacked(s)), (0, 90));
    e.host.advance(Time::from_millis(2));
    assert_eq!((e.host.next_event(), e.host.tcp(s).queued()), (None, 70));
    e.host.advance(Time::from_millis(3));
    assert!(e.host.next_event().unwrap().1.writable);
    assert_eq!(e.host.next_event(), None, "edges come once");
    e.release(data);
    e.tcp_shutdown(s).unwrap();
    assert!(!e.host.tcp(s).eof_seen(), "FIN goes after the data");
    e.host.advance(Time::from_millis(100));
    assert!(e.host.tcp(s).eof_seen() && e.host.tcp(s).received == [7; 90]);
    assert!(panics(|| _ = e.tcp_send_bytes(s, b"x")), "send after shutdown");
}

#[test]
fn a_reset_lets_queued_data_be_read_then_fails_once() {
    let (mut e, s) = connected();
    e.host.peer(s).send(b"last words").reset();
    assert!(e.host.next_event().unwrap().1.error);
    assert_eq!(peek(&mut e, s, 0, 100), b"last words");
    e.tcp_consume(s, 10).unwrap();
    assert_eq!(e.tcp_peek(s, 0, 1), Err(SockError::Reset));
    assert_eq!(e.tcp_peek(s, 0, 1), Ok(Peek::Eof));
    e.close(s, Close::Graceful);
    assert_eq!(e.host.tcp(s).ended, Some(Ended::Dead));
    assert!(panics(|| _ = e.take_error(s)), "use after close");
    assert!(panics(|| e.close(s, Close::Reset)), "double close");
}

#[test]
fn connects_end_as_planned() {
    let mut h = FakeHost::default();
    let ms = Duration::from_millis;
    let to = |port| Endpoint::new(remote().addr, port);
    h.plan(to(1), ConnectPlan::Accept(ms(10)));
    h.plan(to(2), ConnectPlan::Fail(ms(20), SockError::HostUnreachable));
    h.plan(to(3), ConnectPlan::FailNow(SockError::NetUnreachable));
    h.plan(to(4), ConnectPlan::Blackhole);
    let mut e = FakeEdge { host: h, ..FakeEdge::default() };
    let socks: Vec<_> = (1..=4).map(|p| e.tcp_connect(token(), to(p), Source::ANY)).collect();
    assert_eq!(socks[2], Err(SockError::NetUnreachable));
    e.host.advance(Time::from_millis(9));
    assert_eq!(e.host.next_event(), None);
    e.host.advance(Time::from_millis(10));
    assert!(e.tcp_status(socks[0].unwrap()).established);
    assert!(!e.host.next_event().unwrap().1.error);
    e.host.advance(Time::from_millis(20));
    assert!(e.host.next_event().unwrap().1.error);
    assert_eq!(e.take_error(socks[1].unwrap()), Some(SockError::HostUnreachable));
    assert_eq!(e.host.next_deadline(), None);
    e.close(socks[3].unwrap(), Close::Reset);
    assert_eq!(e.host.tcp(socks[3].unwrap()).ended, Some(Ended::Abandoned));
    assert_eq!(e.host.open_sockets(), 2);
    assert!(panics(|| e.host.assert_all_closed()));
}

#[test]
fn unread_data_turn_a_close_into_a_reset() {
    let (mut e, s) = connected();
    e.host.peer(s).send(b"unread");
    e.close(s, Close::Graceful);
    assert_eq!(e.host.tcp(s).ended, Some(Ended::Reset));
}

#[test]
fn leaked_and_doubly_released_payload_is_found() {
    let mut e = FakeEdge::default();
    let p = e.pool.put(SlotKind::Socket, vec![1, 2, 3]);
    assert!(panics(|| e.pool.assert_balanced()));
    e.release(p.slice(1, 1));
    e.pool.assert_balanced();
    assert!(panics(|| e.release(p)));
    let f = e.pool.put(SlotKind::Frame, vec![0]);
    assert!(panics(|| e.release(f)), "a frame is not the stack's to release");
    assert!(panics(|| _ = e.checksum(p)), "use after release");
}

fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    match v6 {
        false => ("192.0.2.1".parse().unwrap(), "198.51.100.2".parse().unwrap()),
        true => ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()),
    }
}

fn segment(data: &[u8]) -> TcpSegment {
    TcpSegment {
        src_port: 1,
        dst_port: 2,
        seq: u32::MAX - 5,
        ack: 9,
        flags: ACK | PSH,
        window: 77,
        urgent: 0,
        options: vec![2, 4, 5, 0xb4],
        data: data.to_vec(),
    }
}

#[test]
fn what_is_built_parses_back_and_the_stack_reads_the_same() {
    for v6 in [false, true] {
        let (src, dst) = addresses(v6);
        let t = segment(b"odd");
        let ip = Ip::new(src, dst);
        let frame = ip.frame([2; 6], [4; 6], 6, &t.bytes(src, dst));
        let Frame { net: Net::Ip { src: s, dst: d, l4, .. }, .. } = wire::parse(&frame).unwrap() else { panic!() };
        assert_eq!((s, d, l4), (src, dst, L4::Tcp(t.clone())));
        let eth = hibernet_netstack::wire::ethernet::Header::parse(&frame).unwrap();
        let header = hibernet_netstack::wire::ip::Header::parse(eth.ethertype, &frame[14..], frame.len() - 14).unwrap();
        assert_eq!((header.src, header.dst, header.payload_len() as usize), (src, dst, 24 + 3));
        let mut bad = frame.clone();
        let last = if v6 { bad.len() - 1 } else { 14 + 20 + 24 };
        bad[last] ^= 1;
        assert!(wire::parse(&bad).is_err(), "a flipped bit in the data");
    }
}

#[test]
fn a_super_segment_is_cut_as_a_kernel_cuts_it() {
    for v6 in [false, true] {
        let (src, dst) = addresses(v6);
        let mut t = segment(&[0x5a; 2500]);
        t.flags |= FIN;
        let mut frame = Ip::new(src, dst).frame([2; 6], [4; 6], 6, &t.bytes(src, dst));
        let l4 = if v6 { 54 } else { 34 };
        // The partial checksum: the pseudo-header's folded sum, by way of the difference to the whole one.
        let rest = wire::internet_checksum(&[&{
            let mut z = frame[l4..].to_vec();
            z[16..18].fill(0);
            z
        }]);
        let whole = u16::from_be_bytes([frame[l4 + 16], frame[l4 + 17]]);
        let pseudo = wire::internet_checksum(&[&(!rest).to_be_bytes(), &whole.to_be_bytes()]);
        frame[l4 + 16..l4 + 18].copy_from_slice(&pseudo.to_be_bytes());
        let kind = if v6 { GsoKind::Tcp6 } else { GsoKind::Tcp4 };
        let checksum = Some(TxChecksum { start: l4 as u16, offset: 16 });
        let c = Captured { at: Time::ZERO, bytes: frame, checksum, gso: Some(Gso { kind, size: 1000 }) };
        let pieces: Vec<TcpSegment> = wire::complete(&c)
            .iter()
            .map(|f| match wire::parse(f).unwrap().net {
                Net::Ip { l4: L4::Tcp(t), .. } => t,
                n => panic!("{n:?}"),
            })
            .collect();
        let shape: Vec<_> = pieces.iter().map(|p| (p.seq.wrapping_sub(t.seq), p.data.len(), p.flags)).collect();
        assert_eq!(shape, [(0, 1000, ACK), (1000, 1000, ACK), (2000, 500, ACK | PSH | FIN)]);
    }
}

#[test]
fn the_world_carries_an_expired_packet_to_the_stack_and_its_answer_back() {
    for v6 in [false, true] {
        let mut w = World::new(Config::default());
        let dst: IpAddr = if v6 { "2001:db8::9".parse().unwrap() } else { remote().addr };
        let src = w.guest_addr(dst);
        let ip = Ip { ttl: 1, ..Ip::new(src, dst) };
        w.inject_ip(&ip, 17, &wire::udp(src, dst, 5, 33_434, b"probe"));
        let (_, ty, code, _, quoted) = w.take_icmp().expect("time exceeded");
        assert_eq!((ty, code), if v6 { (3, 0) } else { (11, 0) });
        assert!(quoted.ends_with(b"probe"), "the datagram is quoted");
        assert_eq!(w.dropped(DropReason::TtlExceeded), 1);
        w.assert_clean();
    }
}

#[test]
fn a_frame_for_another_station_is_dropped_with_its_reason() {
    let mut w = World::new(Config::default());
    let (src, dst) = (w.guest_addr(remote().addr), remote().addr);
    let frame = Ip::new(src, dst).frame([2; 6], GUEST_MAC, 17, &wire::udp(src, dst, 1, 2, b""));
    w.inject(&frame);
    assert_eq!((w.dropped(DropReason::NotOurMac), w.dropped_total()), (1, 1));
}
