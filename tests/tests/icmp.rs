//! ICMP and ICMPv6 echo from the guest, over ping sockets of the host.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{Limits, Reach};
use hibernet_netstack::edge::{SockError, SockId};
use hibernet_netstack::wire::IcmpQuote;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::host::Report;
use hibernet_tests::wire::{self, Ip, L4, Net};

const REMOTES: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];

fn ip(a: &str) -> IpAddr {
    a.parse().unwrap()
}

fn world() -> World {
    World::new(Config::default())
}

fn protocol(like: IpAddr) -> u8 {
    if like.is_ipv4() { 1 } else { 58 }
}

fn ping_with(w: &mut World, header: &Ip, ident: u16, seq: u16, data: &[u8]) {
    let message = wire::echo(header.src, header.dst, ident, seq, data);
    w.inject_ip(header, protocol(header.src), &message);
}

fn ping(w: &mut World, to: IpAddr, ident: u16, seq: u16, data: &[u8]) {
    let header = Ip::new(w.guest_addr(to), to);
    ping_with(w, &header, ident, seq, data);
}

/// The next reply: sender, identifier, sequence number, data.
fn reply(w: &mut World) -> Option<(IpAddr, u16, u16, Vec<u8>)> {
    let (src, ty, code, rest, data) = w.take_icmp()?;
    assert_eq!((ty, code), (if src.is_ipv4() { 0 } else { 129 }, 0));
    Some((src, (rest >> 16) as u16, rest as u16, data))
}

#[test]
fn an_echo_comes_back_as_it_went() {
    for remote in REMOTES.map(ip) {
        let mut w = world();
        let header = Ip { ttl: 9, tos: 0x10, ..Ip::new(w.guest_addr(remote), remote) };
        let data: Vec<u8> = (0..=255).collect();
        ping_with(&mut w, &header, 0xbeef, 0xff01, &data);
        let sock = w.edge.host.last();
        let p = w.edge.host.ping(sock);
        assert_eq!((p.to, p.ident), (remote, 0xbeef));
        let sent = p.sent.pop().unwrap();
        assert_eq!((sent.seq, &sent.sent.data), (0xff01, &data));
        assert_eq!((sent.sent.opts.hop_limit, sent.sent.opts.tos), (8, 0x10));
        // The host's identifier is its own affair.
        w.edge.host.ping(sock).ident = 7;
        w.edge.host.ping_reply(sock, 0xff01, &data);
        w.settle();
        let ttl = w.inbox.front().map(|(_, f)| wire::parse(f).unwrap().net);
        let Some(Net::Ip { ttl, dst, .. }) = ttl else { panic!("{ttl:?}") };
        assert_eq!((ttl, dst), (63, header.src));
        assert_eq!(reply(&mut w), Some((remote, 0xbeef, 0xff01, data)));
        assert_eq!((w.dropped_total(), w.stack.stats().icmp_flows), (0, 1));
    }
}

#[test]
fn echoes_of_every_length_pass_and_long_ones_in_fragments() {
    for remote in REMOTES.map(ip) {
        for len in [0, 1, 2, 7, 1472, 1473, 4000, 65_000] {
            let mut w = world();
            let data: Vec<u8> = (0..len).map(|i: u32| (i * 7) as u8).collect();
            let header = Ip::new(w.guest_addr(remote), remote);
            let message = wire::echo(header.src, remote, 1, 2, &data);
            if len < 1400 {
                w.inject_ip(&header, protocol(remote), &message);
            } else {
                for f in header.fragments(protocol(remote), &message, 1400) {
                    let frame = wire::ethernet(w.gateway_mac(), wire::GUEST_MAC, header.ethertype(), &f);
                    w.inject(&frame);
                }
            }
            let sock = w.edge.host.last();
            assert_eq!(w.edge.host.ping(sock).sent.pop().unwrap().sent.data, data);
            w.edge.host.ping_reply(sock, 2, &data);
            w.settle();
            let mut got = Vec::new();
            while let Some(piece) = w.take(|f| match &f.net {
                Net::Ip { l4: L4::Icmp { data, .. }, .. } => Some(data.clone()),
                Net::Ip { l4: L4::Other(_, b), fragment: Some((at, ..)), .. } => Some(b[if *at == 0 { 8 } else { 0 }..].to_vec()),
                _ => None,
            }) {
                got.extend(piece);
            }
            assert!(got == data, "{len} bytes came back as {}", got.len());
            assert_eq!(w.dropped_total(), 0);
        }
    }
}

#[test]
fn identifiers_do_not_mix() {
    for [near, far] in [["198.51.100.7", "198.51.100.8"], ["2001:db8:7::7", "2001:db8:7::8"]].map(|r| r.map(ip)) {
        let mut w = world();
        for (to, ident) in [(near, 1), (near, 2), (far, 1)] {
            ping(&mut w, to, ident, 5, b"x");
            ping(&mut w, to, ident, 6, b"x");
        }
        let socks = w.edge.host.ping_sockets();
        assert_eq!(socks.len(), 3);
        for (sock, want) in socks.into_iter().zip([(near, 1), (near, 2), (far, 1)]).rev() {
            // Twice: a network may double a reply, and ping says so to its user.
            for _ in 0..2 {
                w.edge.host.ping_reply(sock, 6, b"y");
                w.settle();
                assert_eq!(reply(&mut w), Some((want.0, want.1, 6, b"y".to_vec())));
            }
        }
    }
}

#[test]
fn a_flow_lives_60_s_after_its_last_message() {
    let mut w = world();
    let to = ip(REMOTES[0]);
    ping(&mut w, to, 1, 1, b"x");
    let sock = w.edge.host.last();
    w.run(Duration::from_secs(59));
    w.edge.host.ping_reply(sock, 1, b"x");
    w.run(Duration::from_secs(59));
    ping(&mut w, to, 1, 2, b"x");
    w.run(Duration::from_secs(60) - Duration::from_millis(1));
    assert!(w.edge.host.is_open(sock));
    w.run(Duration::from_millis(1));
    w.assert_clean();
    assert_eq!(w.next_deadline(), None);
}

/// An ICMP error about an echo request, as the host's error queue has it.
fn report(w: &mut World, sock: SockId, icmp: IcmpQuote, offender: Option<IpAddr>, payload: Vec<u8>) {
    w.edge.host.report(sock, Report { icmp, offender, destination: None, payload });
    w.settle();
}

#[test]
fn traceroute_by_echo_sees_the_routers() {
    for (remote, router, ttl) in [(REMOTES[0], "192.0.2.1", (11, 0)), (REMOTES[1], "2001:db8::1", (3, 0))] {
        let (remote, router) = (ip(remote), ip(router));
        let mut w = world();
        let guest = w.guest_addr(remote);
        for seq in 1..=3u16 {
            let header = Ip { ttl: seq as u8 + 1, ..Ip::new(guest, remote) };
            ping_with(&mut w, &header, 0xabcd, seq, b"probe");
            let sock = w.edge.host.last();
            assert_eq!(w.edge.host.ping(sock).sent.last().unwrap().sent.opts.hop_limit, seq as u8);
        }
        let sock = w.edge.host.last();
        // The routers quote what the host had sent, with its own identifier, whole or only its header; or not even that.
        let on_wire = wire::echo(guest, remote, 0x1111, 2, b"probe");
        let from_guest = wire::echo(guest, remote, 0xabcd, 2, b"probe");
        for len in [on_wire.len(), 8] {
            let icmp = IcmpQuote { ty: ttl.0, code: ttl.1, rest: 0 };
            report(&mut w, sock, icmp, Some(router), on_wire[..len].to_vec());
            let (src, ty, code, rest, quoted) = w.take_icmp().unwrap();
            assert_eq!((src, ty, code, rest), (router, ttl.0, ttl.1, 0));
            let at = if remote.is_ipv4() { 20 } else { 40 };
            assert_eq!(quoted[at..], from_guest[..len], "not the request that the guest had sent");
            assert_eq!(quoted[if remote.is_ipv4() { 8 } else { 7 }], 1, "TTL");
            assert_eq!(quoted[if remote.is_ipv4() { 9 } else { 6 }], protocol(remote));
        }
        report(&mut w, sock, IcmpQuote { ty: ttl.0, code: ttl.1, rest: 0 }, Some(router), vec![]);
        let quoted = w.take_icmp().unwrap().4;
        let at = if remote.is_ipv4() { 20 } else { 40 };
        assert_eq!(quoted[at + 4..], [0xab, 0xcd, 0, 3], "neither the guest's identifier nor its last sequence number");
        assert_eq!(w.dropped_total(), 0);
    }
}

#[test]
fn unreachable_and_too_big_are_told() {
    for (remote, icmp) in
        [(REMOTES[0], (3, 4, 1280)), (REMOTES[0], (3, 1, 0)), (REMOTES[1], (2, 0, 1280)), (REMOTES[1], (1, 3, 0))]
    {
        let mut w = world();
        ping(&mut w, ip(remote), 1, 1, b"x");
        let sock = w.edge.host.last();
        let icmp = IcmpQuote { ty: icmp.0, code: icmp.1, rest: icmp.2 };
        report(&mut w, sock, icmp, None, vec![]);
        let (src, ty, code, rest, _) = w.take_icmp().unwrap();
        assert_eq!((ty, code, rest), (icmp.ty, icmp.code, icmp.rest));
        assert_eq!(src, ip(if ip(remote).is_ipv4() { "10.0.2.2" } else { "fd68:6962:6e65:7400::2" }));
    }
}

#[test]
fn an_error_of_an_earlier_request_does_not_cost_the_next_one() {
    let mut w = world();
    let to = ip(REMOTES[0]);
    ping(&mut w, to, 1, 1, b"x");
    let sock = w.edge.host.last();
    w.edge.host.ping(sock).fail_send.push_back(SockError::HostUnreachable);
    let payload = wire::echo(w.guest_addr(to), to, 9, 1, b"x");
    let icmp = IcmpQuote { ty: 3, code: 1, rest: 0 };
    w.edge.host.report(sock, Report { icmp, offender: None, destination: None, payload });
    let header = Ip::new(w.guest_addr(to), to);
    let frame = header.frame(w.gateway_mac(), wire::GUEST_MAC, 1, &wire::echo(header.src, to, 1, 2, b"x"));
    w.receive(&frame);
    w.settle();
    assert_eq!(w.edge.host.ping(sock).sent.iter().map(|s| s.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((w.take_icmp().unwrap().1, w.take_icmp(), w.dropped_total()), (3, None, 0));
}

#[test]
fn an_error_without_a_report_is_told_and_what_stands_behind_it_is_received() {
    let mut w = world();
    let to = ip(REMOTES[1]);
    ping(&mut w, to, 7, 1, b"x");
    let sock = w.edge.host.last();
    w.edge.host.ping(sock).fail_recv.push_back(SockError::HostUnreachable);
    w.edge.host.ping_reply(sock, 1, b"x");
    w.settle();
    let mut got: Vec<_> = core::iter::from_fn(|| w.take_icmp()).map(|(_, ty, code, ..)| (ty, code)).collect();
    got.sort_unstable();
    assert_eq!(got, [(1, 3), (129, 0)]);
}

#[test]
fn without_ping_sockets_the_guest_is_told_that_it_is_prohibited() {
    for (remote, want) in [(REMOTES[0], (3, 13)), (REMOTES[1], (1, 1))] {
        let mut w = world();
        w.edge.host.fail_open.push_back(SockError::Prohibited);
        ping(&mut w, ip(remote), 1, 1, b"x");
        let (_, ty, code, ..) = w.take_icmp().unwrap();
        assert_eq!((ty, code), want);
        assert_eq!((w.dropped(DropReason::HostRefused), w.dropped_total()), (1, 1));
        assert_eq!(w.stack.flow_counts(), (0, 0, 0));
        w.edge.host.fail_open.push_back(SockError::NoResources);
        ping(&mut w, ip(remote), 1, 2, b"x");
        assert_eq!((w.dropped(DropReason::HostResources), w.take_icmp()), (1, None));
    }
}

#[test]
fn a_full_table_gives_up_the_longest_unanswered_flow() {
    let mut w = World::new(Config { limits: Limits { icmp_flows: 2, ..Limits::default() }, ..Config::default() });
    let to = ip(REMOTES[0]);
    ping(&mut w, to, 1, 1, b"x");
    let answered = w.edge.host.last();
    w.edge.host.ping_reply(answered, 1, b"x");
    w.settle();
    ping(&mut w, to, 2, 1, b"x");
    let unanswered = w.edge.host.last();
    ping(&mut w, to, 3, 1, b"x");
    let next = w.edge.host.last();
    assert!(w.edge.host.is_open(answered) && !w.edge.host.is_open(unanswered));
    w.edge.host.ping_reply(next, 1, b"x");
    w.settle();
    ping(&mut w, to, 4, 1, b"x");
    assert_eq!((w.dropped(DropReason::FlowLimit), w.stack.flow_counts().2), (1, 2));
}

#[test]
fn many_replies_come_in_order_and_no_call_takes_them_all() {
    let mut w = world();
    ping(&mut w, ip(REMOTES[0]), 1, 1, b"x");
    let sock = w.edge.host.last();
    for seq in 0..300 {
        w.edge.host.ping_reply(sock, seq, b"x");
    }
    let (token, ready) = w.edge.host.next_event().unwrap();
    w.stack.socket_ready(w.now(), token, ready, &mut w.edge);
    assert_eq!(w.edge.links[0].sent.len(), 32);
    assert!(w.stack.flush(w.now(), &mut w.edge));
    w.settle();
    for seq in 0..300 {
        assert_eq!(reply(&mut w).unwrap().2, seq);
    }
    w.edge.host.ping_reply(sock, 1000, b"x");
    w.settle();
    assert_eq!(reply(&mut w).unwrap().2, 1000);
}

#[test]
fn a_mapped_address_is_pinged_at_the_hosts_loopback() {
    for (mapped, loopback) in [("10.0.2.77", "127.0.0.1"), ("2001:db8:ffff::1", "::1")] {
        let (mapped, loopback) = (ip(mapped), ip(loopback));
        let reach = Reach { map_host_loopback: vec![mapped], ..Reach::default() };
        let mut w = World::new(Config { reach, ..Config::default() });
        ping(&mut w, mapped, 1, 1, b"x");
        let sock = w.edge.host.last();
        assert_eq!(w.edge.host.ping(sock).to, loopback);
        w.edge.host.ping_reply(sock, 1, b"x");
        w.settle();
        assert_eq!(reply(&mut w), Some((mapped, 1, 1, b"x".to_vec())));
    }
}

#[test]
fn what_is_no_echo_request_is_counted_and_goes_nowhere() {
    for (remote, types) in [(REMOTES[0], [0u8, 3, 5, 11, 13, 17]), (REMOTES[1], [1, 2, 3, 129, 137, 200])] {
        let remote = ip(remote);
        for ty in types {
            let mut w = world();
            let guest = w.guest_addr(remote);
            w.inject_ip(&Ip::new(guest, remote), protocol(remote), &wire::icmp(guest, remote, ty, 0, 0, b"whatever this is"));
            assert_eq!((w.dropped(DropReason::IcmpUnhandled), w.dropped_total()), (1, 1), "type {ty}");
            assert_eq!((w.take_icmp(), w.edge.host.open_sockets()), (None, 0));
        }
    }
}
