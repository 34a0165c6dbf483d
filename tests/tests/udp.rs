//! UDP: flows of the guest's, datagrams and errors both ways.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{Limits, Reach};
use hibernet_netstack::edge::{Gso, GsoKind, LinkInfo, Ready, RxChecksum, SockError, SockId};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::IcmpQuote;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::host::{Incoming, Report};
use hibernet_tests::wire::{self, GUEST_MAC, Ip, L4, Net};

const UDP: u8 = 17;
const REMOTES: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

fn world() -> World {
    World::new(Config::default())
}

fn send_with(w: &mut World, header: &Ip, from: u16, to: u16, data: &[u8]) {
    let datagram = wire::udp(header.src, header.dst, from, to, data);
    w.inject_ip(header, UDP, &datagram);
}

fn send(w: &mut World, from: u16, to: Endpoint, data: &[u8]) {
    let header = Ip::new(w.guest_addr(to.addr), to.addr);
    send_with(w, &header, from, to.port, data);
}

/// The socket of the flow that the last datagram opened.
fn open_flow(w: &mut World, from: u16, to: Endpoint) -> SockId {
    let before = w.edge.host.udp_sockets().len();
    send(w, from, to, b"first");
    let socks = w.edge.host.udp_sockets();
    assert_eq!(socks.len(), before + 1, "no new socket");
    *socks.last().unwrap()
}

#[test]
fn a_datagram_goes_out_as_it_came_and_so_does_the_answer() {
    for remote in REMOTES.map(ip) {
        let mut w = world();
        let guest = w.guest_addr(remote);
        let header = Ip { ttl: 37, tos: 0xb8, dont_fragment: true, ..Ip::new(guest, remote) };
        send_with(&mut w, &header, 5353, 9, b"to the host");
        let sock = w.edge.host.last();
        let u = w.edge.host.udp(sock);
        assert_eq!((u.to, u.wanted_port), (Some(Endpoint::new(remote, 9)), Some(5353)));
        let sent = u.sent.pop().unwrap();
        assert_eq!(sent.data, b"to the host");
        assert_eq!((sent.opts.hop_limit, sent.opts.tos, sent.opts.segment), (36, 0xb8, None));
        assert_eq!((sent.opts.to, sent.opts.from, sent.opts.dont_fragment), (None, None, true));
        let from = Endpoint::new(remote, 9);
        let answer = Incoming { data: b"to the guest".to_vec(), from, to: None, segment: None, hop_limit: Some(50) };
        w.edge.host.udp_arrives(sock, answer);
        w.settle();
        let frame = w.take(|f| Some(f.clone())).unwrap();
        assert_eq!(frame.dst_mac, GUEST_MAC);
        let Net::Ip { src, dst, ttl, fragment, l4, .. } = frame.net else { panic!("{frame:?}") };
        assert_eq!((src, dst, ttl, fragment), (remote, guest, 49, None));
        assert_eq!(l4, L4::Udp { src_port: 9, dst_port: 5353, data: b"to the guest".to_vec() });
        assert_eq!(w.dropped_total(), 0);
        assert_eq!((w.stack.stats().udp_to_host, w.stack.stats().udp_to_guest, w.stack.stats().udp_flows), (1, 1, 1));
        w.run(Duration::from_secs(31));
        w.assert_clean();
    }
}

#[test]
fn empty_datagrams_pass_both_ways() {
    for remote in REMOTES.map(ip) {
        let mut w = world();
        send(&mut w, 1000, Endpoint::new(remote, 2000), b"");
        let sock = w.edge.host.last();
        assert_eq!(w.edge.host.udp(sock).sent.pop().unwrap().data, b"");
        w.edge.host.udp_reply(sock, b"");
        w.settle();
        assert_eq!(w.take_udp(1000), Some((Endpoint::new(remote, 2000), vec![])));
    }
}

#[test]
fn only_what_an_ethernet_link_would_carry_may_be_refused_as_too_long() {
    for (remote, headers) in REMOTES.map(ip).into_iter().zip([28, 48]) {
        for (len, want) in [(100, true), (1500, true), (1501, false), (60_000, false)] {
            let mut w = World::with_link(Config::default(), World::offload_link(65_520));
            send(&mut w, 1000, Endpoint::new(remote, 7), &vec![1; len - headers]);
            let sock = w.edge.host.last();
            assert_eq!(w.edge.host.udp(sock).sent[0].opts.dont_fragment, want, "{len} bytes");
            // Without don't-fragment there is nothing to refuse.
            if remote.is_ipv4() {
                let header = Ip { dont_fragment: false, ..Ip::new(w.guest_addr(remote), remote) };
                send_with(&mut w, &header, 1000, 7, &vec![1; len - headers]);
                assert!(!w.edge.host.udp(sock).sent[1].opts.dont_fragment);
            }
        }
    }
}

#[test]
fn a_tuple_keeps_its_socket_and_another_gets_another() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let first = open_flow(&mut w, 1000, to);
    for _ in 0..3 {
        send(&mut w, 1000, to, b"again");
    }
    assert_eq!(w.edge.host.udp(first).sent.len(), 4);
    let other_port = open_flow(&mut w, 1001, to);
    let other_remote = open_flow(&mut w, 1000, Endpoint::new(to.addr, 8));
    w.edge.host.udp_reply(other_port, b"1001");
    w.edge.host.udp_reply(first, b"1000");
    w.edge.host.udp_reply(other_remote, b"8");
    w.settle();
    assert_eq!(w.take_udp(1001), Some((to, b"1001".to_vec())));
    assert_eq!(w.take_udp(1000), Some((to, b"1000".to_vec())));
    assert_eq!(w.take_udp(1000), Some((Endpoint::new(to.addr, 8), b"8".to_vec())));
    assert_eq!(w.stack.flow_counts(), (0, 3, 0));
}

#[test]
fn a_source_port_that_is_taken_does_no_harm() {
    let mut w = world();
    w.edge.host.taken_ports.insert(1000);
    let sock = open_flow(&mut w, 1000, Endpoint::new(ip(REMOTES[0]), 7));
    assert_ne!(w.edge.host.udp(sock).port, 1000);
    w.edge.host.udp_reply(sock, b"here");
    w.settle();
    assert_eq!(w.take_udp(1000).unwrap().1, b"here");
}

#[test]
fn a_flow_lives_30_s_and_one_with_more_than_one_datagram_each_way_180_s() {
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    // Datagrams of the guest's and of the host's, and the seconds that the flow lives after them.
    for (out, back, secs) in [(1, 0, 30), (5, 0, 30), (1, 1, 30), (1, 5, 30), (5, 1, 30), (2, 2, 180)] {
        let mut w = world();
        let sock = open_flow(&mut w, 1000, to);
        for _ in 1..out {
            w.run(Duration::from_secs(20));
            send(&mut w, 1000, to, b"more");
        }
        for _ in 0..back {
            w.run(Duration::from_secs(20));
            w.edge.host.udp_reply(sock, b"reply");
        }
        w.settle();
        w.run(Duration::from_secs(secs) - Duration::from_millis(1));
        assert!(w.edge.host.is_open(sock), "{out} out, {back} back: closed too early");
        w.run(Duration::from_millis(1));
        assert!(!w.edge.host.is_open(sock), "{out} out, {back} back: still open");
        w.assert_clean();
        assert_eq!(w.next_deadline(), None, "something still waits");
    }
}

#[test]
fn a_busy_flow_wakes_us_no_more_than_its_time_out_does() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    let mut deadlines = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        send(&mut w, 1000, to, b"x");
        w.edge.host.udp_reply(sock, b"y");
        w.run(Duration::from_millis(10));
        deadlines.extend(w.next_deadline());
    }
    assert_eq!(deadlines.len(), 1, "deadlines move: {deadlines:?}");
}

#[test]
fn a_super_datagram_goes_to_the_host_in_one_call() {
    for remote in REMOTES.map(ip) {
        let mut w = World::with_link(Config::default(), World::offload_link(1500));
        let (guest, data) = (w.guest_addr(remote), (0..10_000u32).map(|i| i as u8).collect::<Vec<_>>());
        let frame = Ip::new(guest, remote).frame(w.gateway_mac(), GUEST_MAC, UDP, &wire::udp(guest, remote, 1, 2, &data));
        let gso = Some(Gso { kind: GsoKind::Udp, size: 1200 });
        w.receive_as(&frame, RxChecksum::Trusted, gso);
        let sock = w.edge.host.last();
        let sent = core::mem::take(&mut w.edge.host.udp(sock).sent);
        assert_eq!(sent.len(), 1);
        assert_eq!((&sent[0].data, sent[0].opts.segment, sent[0].opts.dont_fragment), (&data, Some(1200), true));
        assert_eq!(w.stack.stats().udp_to_host, 9);
        // More pieces than the host cuts in one call; then one that is no super-datagram after all.
        let gso = Some(Gso { kind: GsoKind::Udp, size: 100 });
        w.receive_as(&frame, RxChecksum::Trusted, gso);
        let sent = core::mem::take(&mut w.edge.host.udp(sock).sent);
        assert!(sent.iter().all(|s| s.data.len() <= 6400 && s.opts.segment == Some(100)));
        assert_eq!(sent.into_iter().flat_map(|s| s.data).collect::<Vec<_>>(), data);
        w.receive_as(&frame, RxChecksum::Trusted, Some(Gso { kind: GsoKind::Udp, size: 10_000 }));
        assert_eq!(w.edge.host.udp(sock).sent.pop().unwrap().opts.segment, None);
        // One datagram is left for the last call.
        w.receive_as(&frame, RxChecksum::Trusted, Some(Gso { kind: GsoKind::Udp, size: 156 }));
        let sent = core::mem::take(&mut w.edge.host.udp(sock).sent);
        assert_eq!((sent.len(), sent[1].data.len(), sent[1].opts.segment), (2, 16, None));
    }
}

#[test]
fn merged_datagrams_reach_the_guest_one_by_one() {
    let offloads = [World::plain_link(), World::offload_link(1500)];
    for (remote, link) in REMOTES.map(ip).into_iter().flat_map(|r| offloads.map(|l| (r, l))) {
        // The second size needs fragments.
        for size in [1200, 2000] {
            let mut w = World::with_link(Config::default(), link);
            let from = Endpoint::new(remote, 7);
            let sock = open_flow(&mut w, 1000, from);
            let data: Vec<u8> = (0..7000u32).map(|i| (i / 7) as u8).collect();
            let merged = Incoming { data: data.clone(), from, to: None, segment: Some(size), hop_limit: None };
            w.edge.host.udp_arrives(sock, merged);
            w.edge.host.advance(w.now());
            let (token, ready) = w.edge.host.next_event().unwrap();
            w.stack.socket_ready(w.now(), token, ready, &mut w.edge);
            let frames = w.edge.links[0].sent.len();
            w.settle();
            assert_eq!(w.dropped_total(), 0);
            assert_eq!(w.stack.stats().udp_to_guest, 7000u64.div_ceil(size.into()));
            if size == 1200 {
                assert_eq!(frames, if link.uso { 1 } else { 6 });
                let got: Vec<Vec<u8>> = core::iter::from_fn(|| w.take_udp(1000).map(|(_, d)| d)).collect();
                assert_eq!(got, data.chunks(1200).map(<[u8]>::to_vec).collect::<Vec<_>>());
            } else {
                assert_eq!(frames, 7, "three datagrams in two fragments each, one in one");
            }
        }
    }
}

#[test]
fn datagrams_in_a_row_that_look_like_segments_go_to_the_guest_as_such() {
    // Lengths, and the frames that they take on a link that cuts super-datagrams.
    let rows: [(&[usize], usize); 10] = [
        (&[1000, 1000, 1000], 1),
        (&[1000, 1000, 400], 1),
        (&[1000, 400, 1000, 1000], 2),
        (&[400, 1000, 1000], 2),
        (&[0, 0, 5, 5, 0], 4),
        (&[1], 1),
        (&[1, 1], 1),
        // No more than an IP packet holds.
        (&[8000; 9], 2),
        // What does not fit the link is not made longer.
        (&[9000, 9000], 4),
        (&[1, 2, 3, 4], 4),
    ];
    for remote in REMOTES.map(ip) {
        for (lens, frames) in rows {
            for (uso, can_append) in [(true, true), (true, false), (false, true)] {
                let link = LinkInfo { uso, ..World::offload_link(8100) };
                let mut w = World::with_link(Config::default(), link);
                w.edge.pool.no_append = !can_append;
                let from = Endpoint::new(remote, 7);
                let sock = open_flow(&mut w, 1000, from);
                let data: Vec<Vec<u8>> = lens.iter().enumerate().map(|(i, &n)| vec![i as u8 + 1; n]).collect();
                data.iter().for_each(|d| w.edge.host.udp_reply(sock, d));
                w.edge.host.advance(w.now());
                let (token, ready) = w.edge.host.next_event().unwrap();
                w.stack.socket_ready(w.now(), token, ready, &mut w.edge);
                let plain: usize = lens.iter().map(|&n| if n > 8100 { 2 } else { 1 }).sum();
                let want = if uso && can_append { frames } else { plain };
                assert_eq!(w.edge.links[0].sent.len(), want, "{lens:?}, {uso}, {can_append}");
                w.settle();
                let got: Vec<Vec<u8>> = core::iter::from_fn(|| w.take_udp(1000).map(|(_, d)| d)).collect();
                if plain == lens.len() {
                    assert_eq!(got, data);
                }
                assert_eq!((w.stack.stats().udp_to_guest, w.dropped_total()), (lens.len() as u64, 0));
            }
        }
    }
    // Those that came another way are told apart.
    let mut w = World::with_link(Config::default(), World::offload_link(1500));
    let from = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, from);
    for hop_limit in [Some(64), Some(63), Some(63), None] {
        w.edge.host.udp_arrives(sock, Incoming { data: vec![1; 100], from, to: None, segment: None, hop_limit });
    }
    let (token, ready) = w.edge.host.next_event().unwrap();
    w.stack.socket_ready(w.now(), token, ready, &mut w.edge);
    assert_eq!(w.edge.links[0].sent.len(), 3);
}

#[test]
fn many_datagrams_come_in_order_and_no_call_takes_them_all() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    for i in 0..1000u32 {
        w.edge.host.udp_reply(sock, &i.to_be_bytes());
    }
    let (token, ready) = w.edge.host.next_event().unwrap();
    w.stack.socket_ready(w.now(), token, ready, &mut w.edge);
    assert_eq!(w.edge.links[0].sent.len(), 32);
    assert!(w.stack.flush(w.now(), &mut w.edge), "it must ask to be called again");
    assert_eq!(w.edge.links[0].sent.len(), 64);
    // A second event for a socket that waits its turn changes nothing.
    w.stack.socket_ready(w.now(), token, ready, &mut w.edge);
    assert_eq!(w.edge.links[0].sent.len(), 64);
    w.settle();
    for i in 0..1000u32 {
        assert_eq!(w.take_udp(1000).unwrap().1, i.to_be_bytes());
    }
    assert!(!w.stack.flush(w.now(), &mut w.edge));
    w.edge.host.udp_reply(sock, b"and another");
    w.settle();
    assert_eq!(w.take_udp(1000).unwrap().1, b"and another");
}

#[test]
fn a_flow_that_ended_while_it_waited_is_not_served() {
    let mut w = world();
    let sock = open_flow(&mut w, 1000, Endpoint::new(ip(REMOTES[0]), 7));
    for _ in 0..100 {
        w.edge.host.udp_reply(sock, b"late");
    }
    let (token, ready) = w.edge.host.next_event().unwrap();
    w.stack.socket_ready(w.now(), token, ready, &mut w.edge);
    let later = w.now() + Duration::from_secs(31);
    w.stack.tick(later, &mut w.edge);
    assert!(!w.edge.host.is_open(sock));
    // The kit panics if the closed socket is used.
    assert!(!w.stack.flush(later, &mut w.edge));
    w.stack.socket_ready(later, token, Ready { readable: true, error: true, ..Ready::default() }, &mut w.edge);
    w.assert_clean();
}

/// Quoted IP and UDP header and data of an ICMP error.
#[derive(Debug, PartialEq)]
struct Quote {
    src: Endpoint,
    dst: Endpoint,
    ttl: u8,
    len: u16,
    checksum: u16,
    data: Vec<u8>,
}

fn quote(q: &[u8]) -> Quote {
    let (src, dst, ttl, l4): (IpAddr, IpAddr, u8, &[u8]) = match q[0] >> 4 {
        4 => {
            assert_eq!((q[0], q[9], wire::internet_checksum(&[&q[..20]])), (0x45, UDP, 0));
            let a = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&q[at..at + 4]).unwrap());
            assert_eq!(usize::from(u16::from_be_bytes([q[2], q[3]])) - 20, usize::from(u16::from_be_bytes([q[24], q[25]])));
            (a(12), a(16), q[8], &q[20..])
        }
        _ => {
            let a = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&q[at..at + 16]).unwrap());
            assert_eq!((q[6], q[4..6].to_vec()), (UDP, q[44..46].to_vec()));
            (a(8), a(24), q[7], &q[40..])
        }
    };
    let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
    let (src, dst) = (Endpoint::new(src, port(0)), Endpoint::new(dst, port(2)));
    Quote { src, dst, ttl, len: port(4), checksum: port(6), data: l4[8..].to_vec() }
}

#[test]
fn reports_of_the_error_queue_become_icmp_errors_about_the_guests_datagram() {
    let routers = ["192.0.2.1", "2001:db8::1"].map(ip);
    for (i, remote) in REMOTES.map(ip).into_iter().enumerate() {
        let to = Endpoint::new(remote, 33434);
        let v6 = i == 1;
        // What arrives, from whom, and from whom the guest must see it.
        let port = if v6 { (1, 4, 0) } else { (3, 3, 0) };
        let ttl = if v6 { (3, 0, 0) } else { (11, 0, 0) };
        let mtu = if v6 { (2, 0, 1400) } else { (3, 4, 1400) };
        let gateway = if v6 { ip("fd68:6962:6e65:7400::2") } else { ip("10.0.2.2") };
        let cases = [
            (port, Some(remote), remote),
            (ttl, Some(routers[i]), routers[i]),
            (mtu, Some(routers[i]), routers[i]),
            // The host's own errors, and those from addresses that mean somebody else to the guest.
            (mtu, None, gateway),
            (ttl, Some(if v6 { ip("::1") } else { ip("127.0.0.1") }), gateway),
            (ttl, Some(w_guest(remote)), gateway),
        ];
        for ((ty, code, rest), offender, seen) in cases {
            let mut w = world();
            let guest = w.guest_addr(remote);
            let header = Ip { ttl: 5, ..Ip::new(guest, remote) };
            send_with(&mut w, &header, 1000, to.port, b"probe 12");
            let sock = w.edge.host.last();
            let report =
                Report { icmp: IcmpQuote { ty, code, rest }, offender, destination: Some(to), payload: b"probe 12".to_vec() };
            w.edge.host.report(sock, report);
            w.settle();
            let (src, got_ty, got_code, got_rest, quoted) = w.take_icmp().expect("no ICMP error");
            assert_eq!((src, got_ty, got_code, got_rest), (seen, ty, code, rest));
            let sent = wire::udp(guest, remote, 1000, to.port, b"probe 12");
            let want = Quote {
                src: Endpoint::new(guest, 1000),
                dst: to,
                ttl: if (ty, code) == (ttl.0, ttl.1) { 1 } else { 5 },
                len: 16,
                checksum: u16::from_be_bytes([sent[6], sent[7]]),
                data: b"probe 12".to_vec(),
            };
            assert_eq!(quote(&quoted), want);
            assert_eq!((w.dropped_total(), w.stack.stats().icmp_errors), (0, 1));
        }
    }
}

fn w_guest(like: IpAddr) -> IpAddr {
    world().guest_addr(like)
}

#[test]
fn an_error_without_a_report_is_told_and_what_stands_behind_it_is_received() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    w.edge.host.udp(sock).fail_recv.extend([SockError::Refused, SockError::NoResources]);
    w.edge.host.udp_reply(sock, b"behind");
    w.settle();
    assert_eq!(w.take_udp(1000).unwrap().1, b"behind");
    let (src, ty, code, _, quoted) = w.take_icmp().unwrap();
    assert_eq!((src, ty, code), (ip("10.0.2.2"), 3, 3));
    assert_eq!((quote(&quoted).dst, quote(&quoted).data), (to, vec![]));
    assert_eq!(w.take_icmp(), None, "our lack of memory is no concern of the guest's");
    // One that does not go away does not keep us busy.
    w.edge.host.udp(sock).fail_recv.extend([SockError::Other(5); 100]);
    w.edge.host.notify(sock);
    w.settle();
    assert_eq!(w.edge.host.udp(sock).fail_recv.len(), 96);
}

#[test]
fn a_report_that_is_no_error_to_a_guest_is_passed_over() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    for ty in [0, 4, 5, 8, 255] {
        let icmp = IcmpQuote { ty, code: 0, rest: 0 };
        w.edge.host.report(sock, Report { icmp, offender: None, destination: Some(to), payload: vec![1] });
    }
    w.settle();
    assert_eq!(w.take_icmp(), None);
}

#[test]
fn an_error_of_an_earlier_datagram_does_not_cost_the_next_one() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    w.edge.host.udp(sock).fail_send.push_back(SockError::Refused);
    let icmp = IcmpQuote { ty: 3, code: 3, rest: 0 };
    w.edge.host.report(sock, Report { icmp, offender: Some(to.addr), destination: Some(to), payload: b"first".to_vec() });
    let header = Ip::new(w.guest_addr(to.addr), to.addr);
    let frame = header.frame(w.gateway_mac(), GUEST_MAC, UDP, &wire::udp(header.src, header.dst, 1000, to.port, b"second"));
    w.receive(&frame);
    w.settle();
    let sent: Vec<_> = w.edge.host.udp(sock).sent.iter().map(|s| s.data.clone()).collect();
    assert_eq!(sent, [b"first".to_vec(), b"second".to_vec()]);
    assert_eq!(quote(&w.take_icmp().unwrap().4).data, b"first");
    assert_eq!((w.take_icmp(), w.dropped_total()), (None, 0));
}

#[test]
fn a_datagram_whose_error_is_reported_too_is_told_once() {
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let (too_big, refused) = (IcmpQuote { ty: 3, code: 4, rest: 1400 }, IcmpQuote { ty: 3, code: 3, rest: 0 });
    // The call fails and its report says why; the same when it is repeated, once the reports of the past are taken.
    let rows = [(SockError::TooBig(None), too_big, 2, 1), (SockError::Refused, refused, 70, 2)];
    for (error, icmp, reports, told) in rows {
        let mut w = world();
        let sock = open_flow(&mut w, 1000, to);
        w.edge.host.udp(sock).fail_send.extend([error; 2]);
        let report = Report { icmp, offender: None, destination: Some(to), payload: vec![] };
        for _ in 0..reports {
            w.edge.host.report(sock, report.clone());
        }
        let header = Ip::new(w.guest_addr(to.addr), to.addr);
        let frame = header.frame(w.gateway_mac(), GUEST_MAC, UDP, &wire::udp(header.src, header.dst, 1000, 7, b"long"));
        w.receive(&frame);
        w.collect();
        let got: Vec<_> = core::iter::from_fn(|| w.take_icmp().map(|(_, ty, code, rest, _)| (ty, code, rest))).collect();
        assert_eq!(got, vec![(icmp.ty, icmp.code, icmp.rest); told], "{error:?}");
        assert_eq!((w.dropped(DropReason::HostRefused), w.dropped_total()), (1, 1));
        assert_eq!(w.edge.host.udp(sock).sent.len(), 1);
    }
}

#[test]
fn reports_of_routers_are_told_one_by_one() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    let icmp = IcmpQuote { ty: 11, code: 0, rest: 0 };
    for _ in 0..3 {
        let report = Report { icmp, offender: Some(ip("192.0.2.1")), destination: Some(to), payload: b"probe".to_vec() };
        w.edge.host.report(sock, report);
    }
    w.settle();
    assert_eq!(core::iter::from_fn(|| w.take_icmp()).count(), 3);
}

#[test]
fn what_the_host_refuses_is_told_and_counted() {
    let rows = [
        (SockError::Refused, (3, 3, 0), (1, 4, 0)),
        (SockError::NetUnreachable, (3, 0, 0), (1, 0, 0)),
        (SockError::NotAvailable, (3, 0, 0), (1, 0, 0)),
        (SockError::HostUnreachable, (3, 1, 0), (1, 3, 0)),
        (SockError::TimedOut, (3, 1, 0), (1, 3, 0)),
        (SockError::Prohibited, (3, 13, 0), (1, 1, 0)),
        (SockError::TooBig(Some(1400)), (3, 4, 1400), (2, 0, 1400)),
        (SockError::TooBig(None), (3, 4, 576), (2, 0, 1280)),
        (SockError::Other(95), (3, 1, 0), (1, 3, 0)),
    ];
    for (error, v4, v6) in rows {
        for (remote, want) in REMOTES.map(ip).into_iter().zip([v4, v6]) {
            for at_open in [true, false] {
                let mut w = world();
                let to = Endpoint::new(remote, 7);
                if at_open {
                    w.edge.host.fail_open.push_back(error);
                } else {
                    let sock = open_flow(&mut w, 1000, to);
                    w.edge.host.udp(sock).fail_send.push_back(error);
                }
                send(&mut w, 1000, to, b"refused");
                let (_, ty, code, rest, quoted) = w.take_icmp().unwrap_or_else(|| panic!("{error:?}: the guest was not told"));
                assert_eq!((ty, code, rest), want, "{error:?}");
                assert_eq!(quote(&quoted).data, b"refused");
                assert_eq!((w.dropped(DropReason::HostRefused), w.dropped_total()), (1, 1));
                // The next one is not held back.
                send(&mut w, 1000, to, b"taken");
                let sock = w.edge.host.last();
                assert_eq!(w.edge.host.udp(sock).sent.pop().unwrap().data, b"taken");
            }
        }
    }
}

#[test]
fn without_host_sockets_the_longest_unanswered_flow_makes_room() {
    let mut w = world();
    w.edge.host.max_sockets = Some(2);
    let to = |port| Endpoint::new(ip(REMOTES[0]), port);
    let answered = open_flow(&mut w, 1000, to(1));
    w.edge.host.udp_reply(answered, b"answer");
    w.settle();
    let unanswered = open_flow(&mut w, 1000, to(2));
    let next = open_flow(&mut w, 1000, to(3));
    assert!(!w.edge.host.is_open(unanswered));
    assert!(w.edge.host.is_open(answered) && w.edge.host.is_open(next));
    w.edge.host.udp_reply(next, b"answer");
    w.settle();
    send(&mut w, 1000, to(4), b"one too many");
    assert_eq!((w.dropped(DropReason::HostResources), w.dropped_total()), (1, 1));
    assert_eq!(w.take_icmp(), None);
}

#[test]
fn a_full_table_gives_up_the_longest_idle_unanswered_flow_and_no_other() {
    let limits = Limits { udp_flows: 3, ..Limits::default() };
    let mut w = World::new(Config { limits, ..Config::default() });
    let to = |port| Endpoint::new(ip(REMOTES[0]), port);
    let socks: Vec<_> = (1..=3).map(|port| open_flow(&mut w, 1000, to(port))).collect();
    // The first is used again, so the second is idle longest.
    send(&mut w, 1000, to(1), b"again");
    w.edge.host.udp_reply(socks[2], b"answer");
    w.settle();
    let open = |w: &World| socks.iter().map(|&s| w.edge.host.is_open(s)).collect::<Vec<_>>();
    let fourth = open_flow(&mut w, 1000, to(4));
    assert_eq!(open(&w), [true, false, true]);
    let fifth = open_flow(&mut w, 1000, to(5));
    assert_eq!(open(&w), [false, false, true]);
    for sock in [fourth, fifth] {
        w.edge.host.udp_reply(sock, b"answer");
    }
    w.settle();
    send(&mut w, 1000, to(6), b"none to give up");
    assert_eq!((w.dropped(DropReason::FlowLimit), w.dropped_total()), (1, 1));
    assert_eq!(w.stack.flow_counts().1, 3);
    w.run(Duration::from_secs(30));
    open_flow(&mut w, 1000, to(6));
}

#[test]
fn ports_of_zero() {
    let mut w = world();
    send(&mut w, 1000, Endpoint::new(ip(REMOTES[0]), 0), b"nowhere");
    assert_eq!((w.dropped(DropReason::Malformed), w.stack.flow_counts().1), (1, 0));
    // RFC 768: zero says that no answer is expected.
    let sock = open_flow(&mut w, 0, Endpoint::new(ip(REMOTES[0]), 7));
    assert_eq!(w.edge.host.udp(sock).wanted_port, None);
}

#[test]
fn a_mapped_address_leads_to_the_hosts_loopback_and_answers_come_from_it() {
    for (mapped, loopback) in
        [("10.0.2.2", "127.0.0.1"), ("10.0.2.77", "127.0.0.1"), ("fd68:6962:6e65:7400::2", "::1"), ("2001:db8:ffff::1", "::1")]
    {
        let (mapped, loopback) = (ip(mapped), ip(loopback));
        let reach = Reach { map_host_loopback: vec![mapped], ..Reach::default() };
        let mut w = World::new(Config { reach, ..Config::default() });
        let to = Endpoint::new(mapped, 8125);
        let sock = open_flow(&mut w, 1000, to);
        assert_eq!(w.edge.host.udp(sock).to, Some(Endpoint::new(loopback, 8125)));
        send(&mut w, 1000, to, b"again");
        assert_eq!(w.edge.host.udp(sock).sent.len(), 2);
        w.edge.host.udp_reply(sock, b"from loopback");
        w.settle();
        assert_eq!(w.take_udp(1000), Some((to, b"from loopback".to_vec())));
        // A closed port there is seen as one at the mapped address.
        let icmp = if mapped.is_ipv4() { IcmpQuote { ty: 3, code: 3, rest: 0 } } else { IcmpQuote { ty: 1, code: 4, rest: 0 } };
        let destination = Some(Endpoint::new(loopback, 8125));
        w.edge.host.report(sock, Report { icmp, offender: Some(loopback), destination, payload: b"first".to_vec() });
        w.settle();
        let (src, .., quoted) = w.take_icmp().unwrap();
        assert_eq!((src, quote(&quoted).dst), (mapped, to));
    }
}

#[test]
fn a_mapped_address_of_ours_keeps_its_services() {
    let reach = Reach { map_host_loopback: ["10.0.2.2", "10.0.2.3"].map(ip).into(), ..Reach::default() };
    let mut w = World::new(Config { reach, ..Config::default() });
    for (a, port, forwarded) in
        [("10.0.2.2", 67, false), ("10.0.2.3", 53, false), ("10.0.2.2", 53, true), ("10.0.2.3", 54, true), ("10.0.2.2", 68, true)]
    {
        let before = w.stack.stats().udp_to_host;
        send(&mut w, 1000, Endpoint::new(ip(a), port), b"for whom?");
        assert_eq!(w.stack.stats().udp_to_host - before, u64::from(forwarded), "{a} port {port}");
    }
    // A guest that has no address yet has no flows either.
    let header = Ip::new(ip("0.0.0.0"), ip("10.0.2.2"));
    send_with(&mut w, &header, 68, 1234, b"nobody");
    assert_eq!(w.stack.stats().udp_to_host, 3);
}

#[test]
fn a_flow_ends_where_the_hosts_own_addresses_begin() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    w.stack.set_host_addresses(vec![to.addr]);
    send(&mut w, 1000, to, b"more");
    assert_eq!((w.dropped(DropReason::ReachDenied), w.edge.host.udp(sock).sent.len()), (1, 1));
}

#[test]
fn a_link_that_is_full_costs_datagrams_and_nothing_else() {
    let mut w = world();
    let to = Endpoint::new(ip(REMOTES[0]), 7);
    let sock = open_flow(&mut w, 1000, to);
    w.edge.links[0].capacity = 10;
    for i in 0..50u8 {
        w.edge.host.udp_reply(sock, &[i]);
    }
    w.settle();
    w.edge.links[0].capacity = usize::MAX;
    let got = core::iter::from_fn(|| w.take_udp(1000)).count() as u64;
    assert_eq!(got + w.dropped(DropReason::LinkFull), 50);
    assert_eq!(w.stack.stats().udp_to_guest, got);
    w.run(Duration::from_secs(31));
    w.assert_clean();
}
