//! Neighbour discovery and router advertisements.

use crate::{config, gateway_link_local, guest_link_local, in_prefix, next_frame, send_udp, world};
use core::net::{IpAddr, Ipv6Addr};
use core::time::Duration;
use hibernet_netstack::edge::LinkInfo;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::wire::{self, Frame, GUEST_MAC, Ip, L4, Net};

const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const UNSPECIFIED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn all_nodes() -> Ipv6Addr {
    "ff02::1".parse().unwrap()
}

fn group_of(target: Ipv6Addr) -> Ipv6Addr {
    let s = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | s[6] & 0xff, s[7])
}

/// An ICMPv6 message of the guest's, with this hop limit.
#[allow(clippy::too_many_arguments)]
fn send(w: &mut World, src: Ipv6Addr, dst: Ipv6Addr, hops: u8, ty: u8, code: u8, rest: u32, data: &[u8]) {
    let (src, dst) = (IpAddr::V6(src), IpAddr::V6(dst));
    let ip = Ip { ttl: hops, ..Ip::new(src, dst) };
    w.inject(&ip.frame([0x33, 0x33, 0xff, 0, 0, 2], GUEST_MAC, 58, &wire::icmp(src, dst, ty, code, rest, data)));
}

fn lladdr(kind: u8) -> Vec<u8> {
    [&[kind, 1][..], &GUEST_MAC].concat()
}

fn solicit(w: &mut World, src: Ipv6Addr, target: Ipv6Addr) {
    let option = if src.is_unspecified() { Vec::new() } else { lladdr(1) };
    let data = [&target.octets()[..], &option].concat();
    send(w, src, group_of(target), 255, 135, 0, 0, &data);
}

/// A message of ours: destination MAC and address, source, type, word, data.
type Message = ([u8; 6], IpAddr, IpAddr, u8, u32, Vec<u8>);

fn message(f: &Frame) -> Option<Message> {
    match &f.net {
        Net::Ip { src, dst, ttl, l4: L4::Icmp { ty, code, rest, data }, .. } => {
            assert_eq!((*ttl, *code), (255, 0), "hop limit and code of neighbour discovery");
            Some((f.dst_mac, *dst, *src, *ty, *rest, data.clone()))
        }
        _ => None,
    }
}

fn take(w: &mut World) -> Option<Message> {
    w.take(message)
}

fn advert(w: &World, mac: [u8; 6], to: Ipv6Addr, target: Ipv6Addr, flags: u32) -> Option<Message> {
    let data = [&target.octets()[..], &[2, 1], &w.gateway_mac()].concat();
    Some((mac, to.into(), target.into(), 136, flags, data))
}

#[test]
fn our_addresses_answer_and_override() {
    let mut w = world();
    let v6 = config().v6.unwrap();
    for src in [v6.guest, guest_link_local()] {
        for target in [v6.gateway, v6.dns, gateway_link_local()] {
            solicit(&mut w, src, target);
            let expected = advert(&w, GUEST_MAC, src, target, 0xe000_0000);
            assert_eq!(take(&mut w), expected, "{target}");
        }
    }
    // Whoever wants such an address hears that it is taken.
    solicit(&mut w, UNSPECIFIED, v6.gateway);
    let expected = advert(&w, ALL_NODES_MAC, all_nodes(), v6.gateway, 0xa000_0000);
    assert_eq!(take(&mut w), expected);
    assert_eq!(w.dropped_total(), 0);
}

#[test]
fn absent_hosts_of_the_prefix_are_answered_for_without_overriding() {
    let mut w = world();
    let guest = config().v6.unwrap().guest;
    solicit(&mut w, guest, in_prefix(0x77));
    let expected = advert(&w, GUEST_MAC, guest, in_prefix(0x77), 0xc000_0000);
    assert_eq!(take(&mut w), expected);
    // Not for the guest's addresses: the configured one, nor one that it was seen to use.
    solicit(&mut w, guest_link_local(), guest);
    send_udp(&mut w, in_prefix(0x99).into(), config().v6.unwrap().gateway.into(), 1, 9, b"");
    w.inbox.clear();
    solicit(&mut w, guest, in_prefix(0x99));
    // Nor for what is not of the prefix.
    solicit(&mut w, guest, "fd00::1".parse().unwrap());
    solicit(&mut w, guest, "fe80::1".parse().unwrap());
    assert_eq!(take(&mut w), None);
}

#[test]
fn a_guest_that_looks_for_duplicates_hears_nothing() {
    let mut w = world();
    for target in [config().v6.unwrap().guest, in_prefix(0x5054), guest_link_local()] {
        solicit(&mut w, UNSPECIFIED, target);
    }
    assert_eq!((take(&mut w), w.dropped_total()), (None, 0));
}

#[test]
fn invalid_solicitations_are_counted() {
    let mut w = world();
    let (guest, gateway) = (config().v6.unwrap().guest, config().v6.unwrap().gateway);
    let good = [&gateway.octets()[..], &lladdr(1)].concat();
    let zero_option = [&gateway.octets()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let group = group_of(gateway);
    let mut expect = |what: &str, why, src, dst, hops, code, data: &[u8]| {
        let before = w.dropped(why);
        send(&mut w, src, dst, hops, 135, code, 0, data);
        assert_eq!((w.dropped(why), take(&mut w)), (before + 1, None), "{what}");
    };
    expect("hop limit", DropReason::Malformed, guest, group, 254, 0, &good);
    expect("code", DropReason::Malformed, guest, group, 255, 1, &good);
    expect("short", DropReason::Truncated, guest, group, 255, 0, &good[..15]);
    expect("option cut", DropReason::Truncated, guest, group, 255, 0, &good[..20]);
    expect("option of length 0", DropReason::Malformed, guest, group, 255, 0, &zero_option);
    expect("multicast target", DropReason::Malformed, guest, group, 255, 0, &all_nodes().octets());
    expect("DAD with an option", DropReason::Malformed, UNSPECIFIED, group, 255, 0, &good);
    expect("DAD to another group", DropReason::Malformed, UNSPECIFIED, all_nodes(), 255, 0, &good[..16]);
    expect("too long", DropReason::Malformed, guest, group, 255, 0, &[&good[..16], &lladdr(1).repeat(160)].concat());
}

/// A world whose guest has an unknown MAC address.
fn strange_world() -> World {
    World::with_link(Config { v4: None, ..config() }, LinkInfo { guest_mac: None, ..World::plain_link() })
}

#[test]
fn a_link_that_comes_up_hears_of_us_and_is_asked_for_an_unknown_guest() {
    let mut w = strange_world();
    w.link_up();
    let v6 = config().v6.unwrap();
    for target in [gateway_link_local(), v6.gateway, v6.dns] {
        let expected = advert(&w, ALL_NODES_MAC, all_nodes(), target, 0xa000_0000);
        assert_eq!(take(&mut w), expected);
    }
    let data = [&v6.guest.octets()[..], &[1, 1], &w.gateway_mac()].concat();
    let question = ([0x33, 0x33, 0xff, 0, 0, 0x15], group_of(v6.guest).into(), gateway_link_local().into(), 135, 0, data);
    assert_eq!(take(&mut w), Some(question));
    assert!(w.inbox.is_empty());
    // The answer is learned from.
    let reply = [&v6.guest.octets()[..], &lladdr(2)].concat();
    send(&mut w, v6.guest, gateway_link_local(), 255, 136, 0, 0x6000_0000, &reply);
    w.link_up();
    assert_eq!(std::iter::from_fn(|| next_frame(&mut w)).count(), 3);
    assert_eq!((w.stack.next_deadline(), w.dropped_total()), (None, 0));
}

#[test]
fn advertisements_of_others_addresses_and_invalid_ones_are_counted() {
    let mut w = world();
    let v6 = config().v6.unwrap();
    let ours = [&v6.gateway.octets()[..], &lladdr(2)].concat();
    send(&mut w, v6.guest, all_nodes(), 255, 136, 0, 0x2000_0000, &ours);
    assert_eq!(w.dropped(DropReason::SpoofedSource), 1);
    let own = [&v6.guest.octets()[..], &lladdr(2)].concat();
    send(&mut w, v6.guest, all_nodes(), 255, 136, 0, 0x6000_0000, &own);
    assert_eq!(w.dropped(DropReason::Malformed), 1, "solicited, but to all");
    send(&mut w, v6.guest, all_nodes(), 255, 134, 0, 0, &[0; 8]);
    assert_eq!(w.dropped(DropReason::IcmpUnhandled), 1, "a router advertisement");
    assert!(w.inbox.is_empty());
}

fn all_routers() -> Ipv6Addr {
    "ff02::2".parse().unwrap()
}

/// Checks a router advertisement: destination as expected, content complete.
fn assert_router_advert(w: &mut World, mac: [u8; 6], to: Ipv6Addr, mtu: u32) {
    let (dst_mac, dst, src, ty, word, data) = take(w).expect("a router advertisement");
    assert_eq!((dst_mac, dst, src, ty), (mac, to.into(), gateway_link_local().into(), 134));
    // Hop limit 64, M and O, 9000 s.
    assert_eq!(word, 64 << 24 | 0xc0 << 16 | 9000);
    let v6 = config().v6.unwrap();
    let mut expected = vec![0; 8];
    expected.extend([&[1, 1][..], &w.gateway_mac()].concat());
    expected.extend([&[5, 1, 0, 0][..], &mtu.to_be_bytes()].concat());
    expected.extend([3, 4, 64, 0xc0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]);
    expected.extend(in_prefix(0).octets());
    expected.extend([&[25, 3, 0, 0, 0, 0, 0x23, 0x28][..], &v6.dns.octets()].concat());
    expected.extend([31, 3, 0, 0, 0, 0, 0x23, 0x28]);
    expected.extend(b"\x07example\x03org\0\0\0\0");
    assert_eq!(data, expected);
}

#[test]
fn a_solicitation_is_answered_to_who_asked() {
    let mut w = world();
    send(&mut w, UNSPECIFIED, all_routers(), 255, 133, 0, 0, &[]);
    assert_router_advert(&mut w, GUEST_MAC, all_nodes(), 1500);
    send(&mut w, guest_link_local(), all_routers(), 255, 133, 0, 0, &lladdr(1));
    assert_router_advert(&mut w, GUEST_MAC, guest_link_local(), 1500);
    let mut w = World::with_link(config(), World::offload_link(65_520));
    send(&mut w, guest_link_local(), all_routers(), 255, 133, 0, 0, &[]);
    assert_router_advert(&mut w, GUEST_MAC, guest_link_local(), 65_520);
}

#[test]
fn invalid_router_solicitations_are_counted() {
    let mut w = world();
    send(&mut w, guest_link_local(), all_routers(), 254, 133, 0, 0, &lladdr(1));
    send(&mut w, guest_link_local(), all_routers(), 255, 133, 1, 0, &lladdr(1));
    send(&mut w, UNSPECIFIED, all_routers(), 255, 133, 0, 0, &lladdr(1));
    send(&mut w, guest_link_local(), all_routers(), 255, 133, 0, 0, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((w.dropped(DropReason::Malformed), w.inbox.len()), (4, 0));
    assert_eq!(w.stack.next_deadline(), None);
}

#[test]
fn advertisements_go_on_by_themselves_only_once_somebody_asked() {
    let mut w = world();
    w.link_up();
    let guest = config().v6.unwrap().guest;
    solicit(&mut w, guest, config().v6.unwrap().gateway);
    assert_eq!(w.stack.next_deadline(), None, "a guest that was configured otherwise is left alone");
    w.inbox.clear();
    send(&mut w, guest_link_local(), all_routers(), 255, 133, 0, 0, &lladdr(1));
    assert_router_advert(&mut w, GUEST_MAC, guest_link_local(), 1500);
    let mut last = w.now();
    for _ in 0..5 {
        let asked = w.steps;
        w.run_until(Duration::from_secs(1800), |w| !w.inbox.is_empty()).expect("one within 1800 s");
        assert!(w.steps - asked < 10, "woken for nothing");
        let waited = w.now().since(last);
        assert!((1200..=1800).contains(&waited.as_secs()), "{waited:?}");
        assert_router_advert(&mut w, ALL_NODES_MAC, all_nodes(), 1500);
        last = w.now();
    }
    // And at once when the link comes up again.
    w.link_up();
    assert!(w.take(|f| message(f).filter(|m| m.3 == 134)).is_some());
}

#[test]
fn a_guest_with_an_address_of_its_own_making_is_served() {
    let mut w = world();
    // EUI-64 of the guest's MAC address under the advertised prefix.
    let mut own = in_prefix(0).segments();
    own[4..].copy_from_slice(&guest_link_local().segments()[4..]);
    let own = Ipv6Addr::from(own);
    solicit(&mut w, UNSPECIFIED, own);
    assert_eq!(take(&mut w), None, "duplicate address detection succeeds");
    let gateway = config().v6.unwrap().gateway;
    solicit(&mut w, own, gateway);
    let expected = advert(&w, GUEST_MAC, own, gateway, 0xe000_0000);
    assert_eq!(take(&mut w), expected);
    let (src, dst) = (IpAddr::V6(own), IpAddr::V6(gateway));
    w.inject_ip(&Ip::new(src, dst), 58, &wire::echo(src, dst, 1, 1, b"hello"));
    assert!(w.take_icmp().is_some_and(|m| m.4 == b"hello"));
}
