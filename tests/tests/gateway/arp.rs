//! ARP.

use crate::{BROADCAST_MAC, next_frame, world};
use core::time::Duration;
use hibernet_netstack::config::Publish;
use hibernet_netstack::edge::LinkInfo;
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::World;
use hibernet_tests::wire::{self, Arp, GUEST_MAC, Net};

const GUEST: [u8; 4] = [10, 0, 2, 15];

fn ask(w: &mut World, sender: [u8; 4], target: [u8; 4]) -> Option<(Arp, [u8; 6])> {
    let request = wire::arp(Arp { op: 1, sender: (GUEST_MAC, sender), target: ([0; 6], target) });
    w.inject(&wire::ethernet(BROADCAST_MAC, GUEST_MAC, wire::ethertype::ARP, &request));
    let f = next_frame(w)?;
    match f.net {
        Net::Arp(a) => Some((a, f.dst_mac)),
        n => panic!("answered with {n:?}"),
    }
}

#[test]
fn the_gateway_the_resolver_and_absent_hosts_of_the_subnet_answer() {
    let mut w = world();
    for last in [2, 3, 1, 77, 254] {
        let target = [10, 0, 2, last];
        let expected = Arp { op: 2, sender: (w.gateway_mac(), target), target: (GUEST_MAC, GUEST) };
        assert_eq!(ask(&mut w, GUEST, target), Some((expected, GUEST_MAC)), "10.0.2.{last}");
    }
    assert_eq!(w.dropped_total(), 0);
}

#[test]
fn a_guest_that_looks_for_duplicates_of_its_address_hears_nothing() {
    let mut w = world();
    assert_eq!(ask(&mut w, [0; 4], GUEST), None);
    assert_eq!(ask(&mut w, GUEST, GUEST), None, "gratuitous");
    assert_eq!(ask(&mut w, [10, 0, 2, 77], [10, 0, 2, 77]), None, "gratuitous, of another address");
    assert_eq!(w.dropped_total(), 0);
    // An address that is not its own is taken.
    let expected = Arp { op: 2, sender: (w.gateway_mac(), [10, 0, 2, 16]), target: (GUEST_MAC, [0; 4]) };
    assert_eq!(ask(&mut w, [0; 4], [10, 0, 2, 16]), Some((expected, GUEST_MAC)));
}

#[test]
fn what_is_not_on_the_link_is_not_answered_for() {
    let mut w = world();
    for target in [[10, 0, 3, 1], [10, 0, 2, 0], [10, 0, 2, 255], [8, 8, 8, 8]] {
        assert_eq!(ask(&mut w, GUEST, target), None, "{target:?}");
    }
    assert_eq!(w.dropped(DropReason::NoRoute), 4);
}

#[test]
fn bad_packets_are_counted() {
    let mut w = world();
    let good = wire::arp(Arp { op: 1, sender: (GUEST_MAC, GUEST), target: ([0; 6], [10, 0, 2, 2]) });
    for (at, value) in [(1, 6), (2, 9), (4, 8), (5, 16), (7, 3), (8, 0x53)] {
        let mut bad = good.clone();
        bad[at] = value;
        let before = w.dropped(DropReason::Malformed);
        w.inject(&wire::ethernet(BROADCAST_MAC, GUEST_MAC, wire::ethertype::ARP, &bad));
        assert_eq!(w.dropped(DropReason::Malformed), before + 1, "byte {at} = {value}");
    }
    let mut short = wire::ethernet(BROADCAST_MAC, GUEST_MAC, wire::ethertype::ARP, &good);
    short.truncate(14 + 27);
    w.inject(&short);
    assert_eq!(w.dropped(DropReason::Truncated), 1);
    let ours = wire::arp(Arp { op: 1, sender: (GUEST_MAC, [10, 0, 2, 2]), target: ([0; 6], [10, 0, 2, 3]) });
    w.inject(&wire::ethernet(BROADCAST_MAC, GUEST_MAC, wire::ethertype::ARP, &ours));
    assert_eq!(w.dropped(DropReason::SpoofedSource), 1);
    assert!(w.inbox.is_empty());
}

fn strange_world() -> World {
    World::with_link(Config { v6: None, ..Config::default() }, LinkInfo { guest_mac: None, ..World::plain_link() })
}

#[test]
fn a_link_that_comes_up_hears_of_us_and_is_asked_for_an_unknown_guest() {
    let mut w = strange_world();
    w.link_up();
    let us = w.gateway_mac();
    let sent: Vec<_> = std::iter::from_fn(|| next_frame(&mut w)).map(|f| (f.dst_mac, f.net)).collect();
    let request = |sender, target| (BROADCAST_MAC, Net::Arp(Arp { op: 1, sender: (us, sender), target: ([0; 6], target) }));
    let (gateway, dns) = ([10, 0, 2, 2], [10, 0, 2, 3]);
    assert_eq!(sent, [request(gateway, gateway), request(dns, dns), request(gateway, GUEST)]);
    // The guest's answer is learned from, and suffices.
    let reply = wire::arp(Arp { op: 2, sender: (GUEST_MAC, GUEST), target: (us, gateway) });
    w.inject(&wire::ethernet(us, GUEST_MAC, wire::ethertype::ARP, &reply));
    w.link_up();
    assert_eq!(std::iter::from_fn(|| next_frame(&mut w)).count(), 2);
    assert_eq!((w.stack.next_deadline(), w.dropped_total()), (None, 0));
}

#[test]
fn a_foreign_sender_is_answered_but_not_learned() {
    let mut w = strange_world();
    let request = wire::arp(Arp { op: 1, sender: (GUEST_MAC, [10, 0, 2, 99]), target: ([0; 6], [10, 0, 2, 2]) });
    w.inject(&wire::ethernet(BROADCAST_MAC, GUEST_MAC, wire::ethertype::ARP, &request));
    assert!(next_frame(&mut w).is_some());
    w.link_up();
    assert_eq!(std::iter::from_fn(|| next_frame(&mut w)).count(), 3, "the guest is still asked for");
}

#[test]
fn switched_off_with_its_family() {
    let mut w = World::new(Config { v4: None, ..Config::default() });
    assert_eq!(ask(&mut w, GUEST, [10, 0, 2, 2]), None);
    assert_eq!(w.dropped(DropReason::FamilyDisabled), 1);
}

#[test]
fn an_unknown_guest_is_asked_for_when_something_is_for_it_and_not_too_often() {
    let publish = Publish { proto: 6, addr: None, host_ports: (8080, 8080), guest_port: 80 };
    let cfg = Config { publish: vec![publish], ..Config::default() };
    let mut w = World::with_link(cfg, LinkInfo { guest_mac: None, ..World::plain_link() });
    let at = |last, port| Endpoint::new([192, 0, 2, last].into(), port);
    w.accept(at(9, 5000), at(1, 8080));
    let question = Arp { op: 1, sender: (w.gateway_mac(), [10, 0, 2, 2]), target: ([0; 6], GUEST) };
    assert_eq!(next_frame(&mut w).map(|f| (f.dst_mac, f.net)), Some((BROADCAST_MAC, Net::Arp(question))));
    assert!(w.dropped(DropReason::Unresolved) > 0 && w.inbox.is_empty());
    for port in 5001..5020 {
        w.accept(at(9, port), at(1, 8080));
    }
    assert_eq!(w.inbox.len(), 2, "a burst of three");
    let reply = wire::arp(Arp { op: 2, sender: (GUEST_MAC, GUEST), target: (w.gateway_mac(), [10, 0, 2, 2]) });
    w.inject(&wire::ethernet(w.gateway_mac(), GUEST_MAC, wire::ethertype::ARP, &reply));
    w.inbox.clear();
    w.run(Duration::from_secs(3));
    assert!(w.take(|f| (f.dst_mac == GUEST_MAC).then_some(())).is_some(), "the SYN goes out again, now to the guest");
}
