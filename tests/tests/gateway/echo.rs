//! Echo, and what has no service.

use crate::{gateway_link_local, guest_link_local, send_udp, send_udp_to_all, world};
use core::net::IpAddr;
use hibernet_netstack::DropReason;
use hibernet_tests::World;
use hibernet_tests::wire::{self, GUEST_MAC, Ip, L4, Net};

fn ours(w: &World) -> [IpAddr; 5] {
    let (v4, v6) = (w.stack.config().v4.unwrap(), w.stack.config().v6.unwrap());
    [v4.gateway.into(), v4.dns.into(), v6.gateway.into(), v6.dns.into(), gateway_link_local().into()]
}

fn reply_type(a: IpAddr) -> u8 {
    if a.is_ipv4() { 0 } else { 129 }
}

fn ping(w: &mut World, src: IpAddr, dst: IpAddr, data: &[u8]) {
    let request = wire::echo(src, dst, 0x1234, 7, data);
    w.inject_ip(&Ip::new(src, dst), if dst.is_ipv4() { 1 } else { 58 }, &request);
}

#[test]
fn all_our_addresses_answer_with_what_was_sent() {
    let mut w = world();
    for dst in ours(&w) {
        for len in [0, 1, 8, 200, 250, 1452] {
            let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let src = w.guest_addr(dst);
            ping(&mut w, src, dst, &data);
            assert_eq!(w.take_icmp(), Some((dst, reply_type(dst), 0, 0x1234_0007, data)), "{dst}, {len} bytes");
        }
    }
    assert_eq!(w.dropped_total(), 0);
    w.assert_clean();
}

#[test]
fn a_link_without_rest_answers_a_packet_larger_than_its_mtu_in_fragments() {
    for like in ["10.0.2.2", "fd00::"] {
        let mut w = World::with_link(crate::config(), World::plain_link());
        let like: IpAddr = like.parse().unwrap();
        let dst = ours(&w).into_iter().find(|a| a.is_ipv4() == like.is_ipv4()).unwrap();
        let src = w.guest_addr(dst);
        let data: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
        let protocol = if dst.is_ipv4() { 1 } else { 58 };
        // In one frame, as from a link whose guest side takes more than ours.
        let request = wire::echo(src, dst, 1, 2, &data);
        w.inject_ip(&Ip::new(src, dst), protocol, &request);
        let whole = join(&mut w);
        assert_eq!((whole[0], &whole[8..]), (reply_type(dst), &data[..]));
        assert_eq!(wire::transport_checksum(dst, src, protocol, &whole), 0);
        w.assert_clean();
    }
}

#[test]
fn an_echo_of_64_kib_in_fragments_comes_back_in_fragments() {
    let mut w = world();
    for dst in ours(&w) {
        let (src, protocol) = (w.guest_addr(dst), if dst.is_ipv4() { 1 } else { 58 });
        let data: Vec<u8> = (0..65_507u32).map(|i| (i * 3) as u8).collect();
        let ip = Ip { ident: 77, ..Ip::new(src, dst) };
        for packet in ip.fragments(protocol, &wire::echo(src, dst, 1, 2, &data), 1440) {
            w.inject(&wire::ethernet(w.gateway_mac(), GUEST_MAC, ip.ethertype(), &packet));
        }
        let whole = join(&mut w);
        assert_eq!((whole[0], whole[8..] == data[..]), (reply_type(dst), true), "{dst}");
        assert_eq!(wire::transport_checksum(dst, src, protocol, &whole), 0);
        w.assert_clean();
    }
}

/// Joins the fragments in the inbox, in any order.
///
/// # Panics
/// If some are missing.
fn join(w: &mut World) -> Vec<u8> {
    let (mut whole, mut filled, mut end) = (Vec::new(), 0, None);
    while let Some((offset, more, bytes)) = w.take(|f| match &f.net {
        Net::Ip { fragment: Some((offset, more, _)), l4: L4::Other(_, bytes), .. } => {
            Some((usize::from(*offset), *more, bytes.clone()))
        }
        _ => None,
    }) {
        let to = offset + bytes.len();
        whole.resize(whole.len().max(to), 0);
        whole[offset..to].copy_from_slice(&bytes);
        filled += bytes.len();
        end = if more { end } else { Some(to) };
    }
    assert!(w.inbox.is_empty(), "not all are fragments");
    assert_eq!((Some(filled), filled), (end, whole.len()));
    whole
}

#[test]
fn the_type_of_service_is_kept() {
    let mut w = world();
    for dst in ours(&w) {
        let src = w.guest_addr(dst);
        let ip = Ip { tos: 0xb8, ..Ip::new(src, dst) };
        w.inject_ip(&ip, if dst.is_ipv4() { 1 } else { 58 }, &wire::echo(src, dst, 1, 1, b"x"));
        let tos = w.take(|f| match &f.net {
            Net::Ip { tos, ttl: 64, .. } => Some(*tos),
            _ => None,
        });
        assert_eq!(tos, Some(0xb8), "{dst}");
    }
}

#[test]
fn groups_of_ipv6_are_answered_for_and_broadcasts_of_ipv4_are_not() {
    let mut w = world();
    let gateway: IpAddr = w.stack.config().v6.unwrap().gateway.into();
    let guest: IpAddr = w.stack.config().v6.unwrap().guest.into();
    for (src, from) in [(guest, gateway), (guest_link_local().into(), gateway_link_local().into())] {
        for group in ["ff02::1", "ff02::2"] {
            let dst: IpAddr = group.parse().unwrap();
            let frame = Ip::new(src, dst).frame([0x33, 0x33, 0, 0, 0, 1], GUEST_MAC, 58, &wire::echo(src, dst, 1, 1, b"x"));
            w.inject(&frame);
            assert_eq!(w.take_icmp().map(|m| (m.0, m.1)), Some((from, 129)), "{group}");
        }
    }
    for dst in ["10.0.2.255", "255.255.255.255", "224.0.0.1"] {
        let (src, dst): (IpAddr, IpAddr) = ("10.0.2.15".parse().unwrap(), dst.parse().unwrap());
        w.inject(&Ip::new(src, dst).frame([0xff; 6], GUEST_MAC, 1, &wire::echo(src, dst, 1, 1, b"x")));
    }
    assert_eq!((w.take_icmp(), w.dropped(DropReason::IcmpUnhandled)), (None, 3));
}

#[test]
fn other_messages_to_us_are_counted_and_not_answered() {
    let mut w = world();
    // Echo reply, unreachable, an echo request with a code, timestamp; and their likes of ICMPv6.
    let v4 = [(0, 0), (3, 3), (8, 1), (13, 0)];
    let v6 = [(129, 0), (1, 4), (128, 1), (143, 0), (137, 0)];
    let all = v4.map(|m| ("10.0.2.2", m)).into_iter().chain(v6.map(|m| ("fd68:6962:6e65:7400::2", m)));
    for (n, (dst, (ty, code))) in all.enumerate() {
        let dst: IpAddr = dst.parse().unwrap();
        let src = w.guest_addr(dst);
        w.inject_ip(&Ip::new(src, dst), if dst.is_ipv4() { 1 } else { 58 }, &wire::icmp(src, dst, ty, code, 0, &[0x45; 40]));
        assert_eq!(w.dropped(DropReason::IcmpUnhandled), n as u64 + 1, "{dst}: {ty}/{code}");
    }
    assert!(w.inbox.is_empty());
}

#[test]
fn a_port_without_service_is_unreachable() {
    let mut w = world();
    for dst in ours(&w) {
        let src = w.guest_addr(dst);
        let before = w.dropped(DropReason::NoService);
        send_udp(&mut w, src, dst, 4000, 9, b"anybody?");
        let (from, ty, code, _, quote) = w.take_icmp().expect("port unreachable");
        let expected = if dst.is_ipv4() { (3, 3) } else { (1, 4) };
        assert_eq!((from, (ty, code)), (dst, expected));
        assert!(quote.ends_with(b"anybody?"));
        assert_eq!(w.dropped(DropReason::NoService), before + 1);
    }
    // Neither is DNS at the gateway, which is not where it is served, nor DHCP of the other family.
    for (dst, port) in [("10.0.2.2", 53), ("10.0.2.2", 547), ("fd68:6962:6e65:7400::2", 67)] {
        let dst = dst.parse().unwrap();
        let src = w.guest_addr(dst);
        send_udp(&mut w, src, dst, 4000, port, b"x");
        assert!(w.take_icmp().is_some(), "{dst} {port}");
    }
}

#[test]
fn what_nobody_listens_to_is_dropped_in_silence() {
    let mut w = world();
    for (n, dst) in ["10.0.2.255", "255.255.255.255", "224.0.0.251", "ff02::fb"].into_iter().enumerate() {
        let dst = dst.parse().unwrap();
        let src = w.guest_addr(dst);
        send_udp_to_all(&mut w, src, dst, 5353, 5353, b"mdns");
        assert_eq!((w.dropped(DropReason::NoService), w.inbox.len()), (n as u64 + 1, 0), "{dst}");
    }
    // IGMP.
    let (src, dst) = ("10.0.2.15".parse().unwrap(), "224.0.0.22".parse().unwrap());
    w.inject(&Ip::new(src, dst).frame([1, 0, 0x5e, 0, 0, 22], GUEST_MAC, 2, &[0x22, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!((w.dropped(DropReason::NoService), w.inbox.len()), (5, 0));
}

#[test]
fn a_protocol_without_service_is_unreachable() {
    let mut w = world();
    for (dst, expected) in [("10.0.2.2", (3, 2)), ("fd68:6962:6e65:7400::2", (4, 1))] {
        let dst: IpAddr = dst.parse().unwrap();
        let src = w.guest_addr(dst);
        w.inject_ip(&Ip::new(src, dst), 132, &[0; 16]);
        let (from, ty, code, _, _) = w.take_icmp().expect("protocol unreachable");
        assert_eq!((from, (ty, code)), (dst, expected));
    }
    assert_eq!(w.dropped(DropReason::UnknownProtocol), 2);
}
