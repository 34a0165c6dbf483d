//! What each target does, and its options.

use super::Build;
use super::flows::{V4, V6, answer, rule, to};
use super::world::*;
use crate::iptables::{Hook, Net};
use crate::nat::{Manip, NatRange, bind, masquerade, netmap, redirect};
use crate::tuple::proto;
use crate::verdict::DropReason;

#[test]
fn masquerade_needs_an_address() {
    let mut w = World::new();
    let rules: Rules<'_> = &|nat, skb, hook| rule("masquerade", &V4, nat, skb, hook);
    w.addrs.bare = true;
    let packet = Build::new(proto::UDP, (V4.client, 4000), (V4.server, 80));
    assert_eq!(w.send(&packet, FORWARD, rules), Err(DropReason::NatAddress));
    let asking = Build::new(proto::UDP, ("0.0.0.0", 68), (V4.server, 67));
    assert_eq!(w.send(&asking, FORWARD, rules).unwrap(), Ends::of(&asking.bytes()));
    let rules: Rules<'_> = &|nat, skb, hook| match hook {
        Hook::PreRouting => redirect(nat, skb, hook, &NatRange::default()),
        _ => Ok(()),
    };
    assert_eq!(w.send(&packet, INPUT, rules), Err(DropReason::NatAddress));
    assert_eq!(w.ct.len(), 1);
}

/// A range of the other family cannot come from a table; a caller's mistake is a drop.
#[test]
fn families_do_not_mix() {
    let mut w = World::new();
    let packet = Build::new(proto::UDP, (V4.client, 4000), (V4.server, 80));
    assert_eq!(w.send(&packet, FORWARD, &|nat, skb, _| bind(nat, skb, Manip::Source, &to(V6.out))), Err(DropReason::NatAddress));
}

#[test]
fn our_own_packets_are_redirected_to_loopback() {
    for f in [V4, V6] {
        let mut w = World::new();
        let packet = Build::new(proto::UDP, (f.out, 4000), (f.server, 80));
        let rules: Rules<'_> = &|nat, skb, hook| match hook {
            Hook::Output => redirect(nat, skb, hook, &NatRange { ports: Some((9000, 9000)), ..NatRange::default() }),
            _ => Ok(()),
        };
        assert_eq!(w.send(&packet, OUTPUT, rules).unwrap().dst, (f.loopback.parse().unwrap(), 9000));
    }
}

#[test]
fn netmap_keeps_host_bits_both_ways() {
    let net = |addr: &str, mask: &str| Net { addr: addr.parse().unwrap(), mask: mask.parse().unwrap() };
    for (f, source, destination, expected) in [
        (V4, net("172.16.7.64", "255.255.255.192"), net("10.9.0.0", "255.255.0.0"), ("172.16.7.79", "10.9.113.9")),
        (V6, net("2001:db8:aa::", "ffff:ffff:ffff::"), net("fd99::", "ffff::"), ("2001:db8:aa::15", "fd99:db8::9")),
    ] {
        let mut w = World::new();
        let packet = Build::new(proto::UDP, (f.client, 4000), (f.server, 80));
        let rules: Rules<'_> = &|nat, skb, hook| match hook {
            Hook::PreRouting => netmap(nat, skb, Manip::Destination, &destination),
            Hook::PostRouting => netmap(nat, skb, Manip::Source, &source),
            _ => Ok(()),
        };
        let left = w.send(&packet, FORWARD, rules).unwrap();
        assert_eq!(left, Ends::new((expected.0, 4000), (expected.1, 80)));
        let back = w.send(&answer(&packet, left), FORWARD, rules).unwrap();
        assert_eq!(back, Ends::new((f.server, 80), (f.client, 4000)));
    }
}

/// As seen on Linux 6.18 with `DNAT --to-destination 10.9.1.1:8000-8010/80`, and with other ranges.
#[test]
fn destination_ports() {
    let range = |ports, base| NatRange { ports: Some(ports), base, ..to("10.9.1.1") };
    for (range, ports, expected) in [
        (range((8000, 8010), Some(80)), vec![80, 85, 91, 100, 8003, 79], vec![8000, 8005, 8001, 8009, 8003, 8008]),
        (range((8000, 8010), None), vec![80, 81, 8003, 8004], vec![8000, 8001, 8003, 8004]),
        (range((8010, 8000), Some(80)), vec![80, 81], vec![8000, 8001]),
        (to("10.9.1.1"), vec![80, 81], vec![80, 81]),
    ] {
        let mut w = World::new();
        let rules: Rules<'_> = &|nat, skb, hook| match hook {
            Hook::PreRouting => bind(nat, skb, Manip::Destination, &range),
            _ => Ok(()),
        };
        for (port, expected) in ports.into_iter().zip(expected) {
            let left = w.send(&Build::new(proto::UDP, (V4.client, 4000), (V4.vip, port)), FORWARD, rules).unwrap();
            assert_eq!(left, Ends::new((V4.client, 4000), ("10.9.1.1", expected)));
        }
    }
}

/// `--random` and `--random-fully` change every source port, in its class or range. (Linux tries the old one in neither case.)
#[test]
fn random_ports() {
    for (random, random_fully) in [(true, false), (false, true)] {
        for (port, ports, class) in [
            (5000, None, 1024..=65_535),
            (700, None, 600..=1023),
            (100, None, 1..=511),
            (40_005, Some((40_000, 40_999)), 40_000..=40_999),
        ] {
            let mut w = World::new();
            let rules: Rules<'_> = &|nat, skb, hook| match hook {
                Hook::PostRouting => masquerade(nat, skb, &NatRange { ports, random, random_fully, ..NatRange::default() }),
                _ => Ok(()),
            };
            let mut seen: Vec<u16> = (0..64u8)
                .map(|i| {
                    w.send(&Build::new(proto::UDP, (V4.client, port), (&format!("203.0.113.{i}"), 80)), FORWARD, rules)
                        .unwrap()
                        .src
                        .1
                })
                .inspect(|p| assert!(class.contains(p), "{p}"))
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert!(seen.len() > 48, "{seen:?}");
        }
    }
}

/// Each end once: rules behind one that decided cannot decide again.
#[test]
fn each_end_once() {
    let mut w = World::new();
    let rules: Rules<'_> = &|nat, skb, hook| match hook {
        Hook::PreRouting => {
            bind(nat, skb, Manip::Destination, &to(V4.server))?;
            bind(nat, skb, Manip::Destination, &to(V4.other))
        }
        _ => Ok(()),
    };
    let packet = Build::new(proto::UDP, (V4.client, 4000), (V4.vip, 80));
    assert_eq!(w.send(&packet, FORWARD, rules).unwrap(), Ends::new((V4.client, 4000), (V4.server, 80)));
}
