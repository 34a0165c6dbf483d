//! Addresses, protocols, interfaces.

use super::{both, fits, with};
use crate::kit::*;
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};

#[test]
fn source_and_destination() {
    for (v6, cases) in [
        (
            false,
            [
                ("10.0.0.1", true),
                ("10.0.0.0/31", true),
                ("10.0.0.2/31", false),
                ("0.0.0.0/0", true),
                ("10.0.0.0/8", true),
                ("11.0.0.0/8", false),
                ("128.0.0.0/1", false),
                ("10.0.0.3", false),
            ],
        ),
        (
            true,
            [
                ("fd00::1", true),
                ("fd00::/127", true),
                ("fd00::2/127", false),
                ("::/0", true),
                ("fd00::/64", true),
                ("fd00:0:0:1::/64", false),
                ("8000::/1", true),
                ("fd00:8000::/17", false),
            ],
        ),
    ] {
        for (n, expected) in cases {
            let mut skb = udp(v6, 1, 2);
            both(expected, &skb, net(n), |n| Rule { src: Some(n), ..Rule::default() });
            core::mem::swap(&mut skb.src, &mut skb.dst);
            both(expected, &skb, net(n), |n| Rule { dst: Some(n), ..Rule::default() });
        }
    }
}

#[test]
fn masks_that_are_no_prefixes() {
    let masked = |addr, mask| Net { addr: ip(addr), mask: ip(mask) };
    for (v6, n, expected) in [
        (false, masked("10.0.0.1", "255.0.0.255"), true),
        (false, masked("10.0.0.2", "255.0.0.255"), false),
        (false, masked("0.0.0.1", "0.0.0.1"), true),
        (true, masked("fd00::1", "ff00::ffff"), true),
        (true, masked("fd00::2", "ff00::ffff"), false),
        (true, masked("::1", "::1"), true),
        (true, masked("::2", "::2"), false),
    ] {
        let mut skb = udp(v6, 1, 2);
        both(expected, &skb, n, |n| Rule { src: Some(n), ..Rule::default() });
        core::mem::swap(&mut skb.src, &mut skb.dst);
        both(expected, &skb, n, |n| Rule { dst: Some(n), ..Rule::default() });
    }
}

#[test]
fn both_addresses_and_both_ports_at_once() {
    for v6 in [false, true] {
        let n = |a: &str, b: &str| net(if v6 { b } else { a });
        let (one, two) = (n("10.0.0.1", "fd00::1"), n("10.0.0.2", "fd00::2"));
        let ports = |s, d| Match::Udp { sport: is((s, s)), dport: is((d, d)) };
        for (src, dst, s, d, expected) in [
            (one, two, 5, 6, true),
            (two, two, 5, 6, false),
            (one, one, 5, 6, false),
            (one, two, 6, 6, false),
            (one, two, 5, 5, false),
        ] {
            let r = Rule { src: is(src), dst: is(dst), ..with(17, ports(s, d)) };
            assert_eq!(fits(r, &udp(v6, 5, 6)), expected);
        }
    }
}

#[test]
fn protocols() {
    for v6 in [false, true] {
        let icmp_proto = if v6 { 58 } else { 1 };
        for (skb, proto) in [(tcp(v6, 1, 2, 2), 6), (udp(v6, 1, 2), 17), (icmp(v6, 8, 0), icmp_proto)] {
            for p in [6, 17, 1, 58, 47, 255] {
                both(p == proto, &skb, p, |p| Rule { proto: Some(p), ..Rule::default() });
            }
        }
    }
}

#[test]
fn fragments_never_come() {
    assert!(!fits(Rule { fragment: Some(true), ..Rule::default() }, &udp(false, 1, 2)));
    assert!(fits(Rule { fragment: Some(false), ..Rule::default() }, &udp(false, 1, 2)));
}

#[test]
fn interfaces() {
    let tap = |n| Some(Iface::Link(LinkId(n)));
    for (name, iface_, expected) in [
        ("tap0", tap(0), true),
        ("tap0", tap(1), false),
        ("tap0", Some(Iface::Host0), false),
        ("tap0", None, false),
        ("tap1", tap(10), false),
        ("tap1+", tap(1), true),
        ("tap1+", tap(10), true),
        ("tap1+", tap(199), true),
        ("tap1+", tap(2), false),
        ("tap255", tap(255), true),
        ("tap256", tap(0), false),
        ("tap00", tap(0), false),
        ("host0", Some(Iface::Host0), true),
        ("host0+", Some(Iface::Host0), true),
        ("h+", Some(Iface::Host0), true),
        ("h+", tap(0), false),
        ("t+", tap(77), true),
        ("t+", None, false),
        ("+", tap(3), true),
        ("+", None, true),
        ("eth0", tap(0), false),
        ("eth0", None, false),
    ] {
        let mut skb = udp(false, 1, 2);
        skb.input = iface_;
        for not in [false, true] {
            let r = Rule { input: Some(Inv { not, value: iface(name) }), ..Rule::default() };
            assert_eq!(fits(r, &skb), expected != not, "-i {name} for {iface_:?}");
        }
        core::mem::swap(&mut skb.input, &mut skb.output);
        for not in [false, true] {
            let r = Rule { output: Some(Inv { not, value: iface(name) }), ..Rule::default() };
            assert_eq!(fits(r, &skb), expected != not, "-o {name} for {iface_:?}");
        }
    }
}

/// More interfaces than header tests can tell apart.
#[test]
fn every_interface_by_its_name() {
    let named = |i| Rule { input: is(iface(&format!("tap{i}"))), output: not(iface(&format!("tap{i}"))), ..Rule::default() };
    let mut rules: Vec<_> = (0..=255).map(named).collect();
    rules.push(Rule { input: is(iface("host0")), ..Rule::default() });
    let mut b = Bench::new(&ruleset(V4, Filter, vec![chain("FORWARD", rules)]));
    for i in 0..=255 {
        let mut skb = udp(false, 1, 2);
        skb.input = Some(Iface::Link(LinkId(i)));
        skb.output = Some(if i % 2 == 0 { Iface::Host0 } else { Iface::Link(LinkId(i)) });
        b.run(Filter, Forward, &mut skb);
    }
    let counts = b.counts("FORWARD");
    for (i, n) in counts[..256].iter().enumerate() {
        assert_eq!(*n, u64::from(i % 2 == 0), "tap{i}");
    }
    assert_eq!(counts[256..], [0, 256]);
}
