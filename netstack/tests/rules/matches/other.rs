//! Kinds of addresses, owners, rates, and what else there is.

use super::{both, fits, plain};
use crate::kit::*;
use core::time::Duration;
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};
use hibernet_netstack::skb::Owner;
use hibernet_netstack::time::Time;

#[test]
fn addrtype() {
    let t = |kinds: &[u16]| kinds.iter().fold(0, |all, k| all | 1 << k);
    const UNSPEC: u16 = 0;
    const UNICAST: u16 = 1;
    const LOCAL: u16 = 2;
    const BROADCAST: u16 = 3;
    const MULTICAST: u16 = 5;
    const UNREACHABLE: u16 = 7;
    const PROHIBIT: u16 = 8;
    let cases: Vec<(&str, u16, bool)> = vec![
        ("10.0.0.2", t(&[LOCAL]), true),
        ("10.0.0.2", t(&[UNICAST]), false),
        ("10.0.0.2", t(&[UNICAST, LOCAL]), true),
        ("10.0.0.7", t(&[UNICAST]), true),
        ("255.255.255.255", t(&[BROADCAST]), true),
        ("224.0.0.1", t(&[MULTICAST]), true),
        ("0.0.0.0", t(&[UNSPEC]), true),
        ("10.0.0.9", t(&[PROHIBIT]), true),
        ("10.0.0.9", t(&[UNREACHABLE]), false),
        // IPv6: every one of the first three must hold, then one of the others.
        ("fd00::2", t(&[LOCAL]), true),
        ("fd00::2", t(&[UNICAST]), true),
        ("fd00::2", t(&[UNICAST, LOCAL]), true),
        ("fd00::7", t(&[UNICAST, LOCAL]), false),
        ("fd00::7", t(&[UNICAST]), true),
        ("fd00::7", t(&[UNICAST, MULTICAST]), false),
        ("ff02::1", t(&[MULTICAST]), true),
        ("ff02::1", t(&[UNICAST]), false),
        ("::", t(&[UNSPEC]), true),
        ("::", t(&[UNICAST]), false),
        ("::ffff:1.2.3.4", t(&[UNICAST]), false),
        ("fd00::9", t(&[UNREACHABLE]), true),
        ("fd00::7", t(&[UNREACHABLE]), false),
    ];
    let m = |src, dst, limit_in, limit_out| plain(Match::Addrtype { src, dst, limit_in, limit_out });
    for (a, types, expected) in cases {
        let mut skb = udp(a.contains(':'), 1, 2);
        skb.dst = ip(a);
        both(expected, &skb, types, |t| m(None, Some(t), false, false));
        skb.src = ip(a);
        skb.dst = ip(if a.contains(':') { "fd00::77" } else { "10.0.0.77" });
        both(expected, &skb, types, |t| m(Some(t), None, false, false));
        both(expected, &skb, types, |s| m(Some(s), is(t(&[UNICAST])), false, false));
        assert!(!fits(m(is(types), is(t(&[LOCAL])), false, false), &skb));
    }
    // 10.0.0.3 and fd00::3 are host0's own.
    for v6 in [false, true] {
        let mut skb = udp(v6, 1, 2);
        skb.dst = ip(if v6 { "fd00::3" } else { "10.0.0.3" });
        skb.input = Some(Iface::Link(LinkId(0)));
        skb.output = Some(Iface::Host0);
        for (limit_in, limit_out, expected) in [(false, false, true), (true, false, false), (false, true, true)] {
            both(expected, &skb, t(&[LOCAL]), |t| m(None, Some(t), limit_in, limit_out));
        }
    }
}

#[test]
fn mac_source() {
    let m = |m| plain(Match::Mac(m));
    let mac = |s: &str| s.parse::<hibernet_netstack::wire::Mac>().unwrap();
    let mut skb = udp(false, 1, 2);
    for not in [false, true] {
        assert!(!fits(m(Inv { not, value: mac("02:00:00:00:00:01") }), &skb), "what did not come over a link has none");
    }
    skb.src_mac = Some(mac("02:00:00:00:00:01"));
    both(true, &skb, mac("02:00:00:00:00:01"), m);
    both(false, &skb, mac("02:00:00:00:00:02"), m);
}

#[test]
fn ip_ranges() {
    for (v6, first, last, expected) in [
        (false, "10.0.0.1", "10.0.0.1", true),
        (false, "10.0.0.0", "10.0.0.5", true),
        (false, "10.0.0.2", "10.0.0.5", false),
        (false, "9.0.0.0", "10.0.0.0", false),
        (false, "10.0.0.5", "10.0.0.0", false),
        (true, "fd00::1", "fd00::1", true),
        (true, "fc00::", "fd00::1:0", true),
        (true, "fd00::2", "fd00::3", false),
    ] {
        let mut skb = udp(v6, 1, 2);
        let range = (ip(first), ip(last));
        both(expected, &skb, range, |r| plain(Match::Iprange { src: Some(r), dst: None }));
        core::mem::swap(&mut skb.src, &mut skb.dst);
        both(expected, &skb, range, |r| plain(Match::Iprange { src: None, dst: Some(r) }));
        both(expected, &skb, range, |r| plain(Match::Iprange { src: not((skb.dst, skb.dst)), dst: Some(r) }));
    }
}

#[test]
fn owners() {
    let m = |uid, gid, socket| plain(Match::Owner { uid, gid, socket });
    let mut skb = udp(false, 1, 2);
    skb.owner = Some(Owner { uid: 1000, gid: 100 });
    for (range, u, g) in
        [((1000, 1000), true, false), ((0, 999), false, true), ((1001, u32::MAX), false, false), ((100, 1000), true, true)]
    {
        both(u, &skb, range, |r| m(Some(r), None, None));
        both(g, &skb, range, |r| m(None, Some(r), None));
        both(u, &skb, range, |r| m(Some(r), is((100, 100)), Some(true)));
        assert!(!fits(m(is(range), not((100, 100)), None), &skb));
    }
    assert!(fits(m(None, None, Some(true)), &skb) && !fits(m(None, None, Some(false)), &skb));
    // Without a socket: every option must be inverted.
    skb.owner = None;
    let any = (0, u32::MAX);
    for (uid, gid, socket, expected) in [
        (is(any), None, None, false),
        (not(any), None, None, true),
        (None, not(any), None, true),
        (not(any), is(any), None, false),
        (not(any), not(any), Some(false), true),
        (not(any), None, Some(true), false),
        (None, None, Some(true), false),
        (None, None, Some(false), true),
    ] {
        assert_eq!(fits(m(uid, gid, socket), &skb), expected);
    }
}

/// Packets that a `limit` lets pass, one every `step` from `start` on.
fn passed(rate: u32, unit: RateUnit, burst: u32, start: Duration, step: Duration, n: usize) -> Vec<bool> {
    let mut b = Bench::new(&ruleset(
        V4,
        Filter,
        vec![chain("INPUT", vec![Rule { target: Target::Drop, ..plain(Match::Limit { rate, unit, burst }) }])],
    ));
    b.now = Time::ZERO + start;
    (0..n)
        .map(|_| {
            let o = b.run(Filter, Input, &mut udp(false, 1, 2));
            b.now = b.now + step;
            o != Outcome::Accept
        })
        .collect()
}

#[test]
fn limit_is_a_token_bucket() {
    let ms = Duration::from_millis;
    for start in [Duration::ZERO, ms(777), Duration::from_secs(1_000_000_000)] {
        // The burst at once, then one a second; a token must be whole.
        assert_eq!(passed(1, RateUnit::Second, 5, start, ms(0), 8), [true, true, true, true, true, false, false, false]);
        let p = passed(1, RateUnit::Second, 2, start, ms(400), 11);
        assert_eq!(p.iter().filter(|p| **p).count(), 6, "2 at the start, one for each of 4 seconds: {p:?}");
        let slow = passed(3, RateUnit::Minute, 1, start, Duration::from_secs(1), 61);
        let at: Vec<_> = (0..61).filter(|i| slow[*i]).collect();
        assert_eq!(at, [0, 20, 40, 60]);
    }
    // What is not used does not pile up above the burst.
    let mut b = Bench::new(&ruleset(
        V4,
        Filter,
        vec![chain("INPUT", vec![plain(Match::Limit { rate: 10, unit: RateUnit::Second, burst: 3 })])],
    ));
    b.now = Time::ZERO + Duration::from_secs(400_000_000);
    (0..10).for_each(|_| assert_eq!(b.run(Filter, Input, &mut udp(false, 1, 2)), Outcome::Accept));
    assert_eq!(b.counts("INPUT"), [3, 10]);
    // The burst that Linux makes of 100 an hour, in 32 bits.
    assert_eq!(passed(1, RateUnit::Hour, 100, Duration::ZERO, ms(0), 200).iter().filter(|p| **p).count(), 25);
    assert_eq!(passed(10_000, RateUnit::Second, 1, Duration::ZERO, ms(4), 10), [true; 10]);
    assert_eq!(passed(2, RateUnit::Day, 1, Duration::ZERO, Duration::from_secs(21_600), 5), [true, false, true, false, true]);
}

/// Only packets that come so far in the rule take a token.
#[test]
fn what_stands_before_a_limit_is_asked_before() {
    let limit = || Match::Limit { rate: 1, unit: RateUnit::Day, burst: 1 };
    let port = || Match::Udp { sport: None, dport: is((53, 53)) };
    for (matches, expected) in [(vec![port(), limit()], [0, 1, 0]), (vec![limit(), port()], [0, 0, 0])] {
        let r = Rule { proto: is(17), matches, ..Rule::default() };
        let mut b = Bench::new(&ruleset(V4, Filter, vec![chain("INPUT", vec![r])]));
        for (dport, expected) in [80, 53, 53].into_iter().zip(expected) {
            let before = b.counts("INPUT")[0];
            b.run(Filter, Input, &mut udp(false, 1, dport));
            assert_eq!(b.counts("INPUT")[0] - before, expected);
        }
    }
}

#[test]
fn statistic_nth() {
    for (every, packet, expected) in [
        (1, 0, vec![0, 1, 2, 3, 4, 5]),
        (2, 0, vec![0, 2, 4]),
        (2, 1, vec![1, 3, 5]),
        (3, 0, vec![0, 3]),
        (3, 1, vec![1, 4]),
        (3, 2, vec![2, 5]),
    ] {
        for not in [false, true] {
            let m = Match::Statistic(Statistic::Nth { every, packet, not });
            let mut b = Bench::new(&ruleset(V6, Filter, vec![chain("INPUT", vec![Rule { target: Target::Drop, ..plain(m) }])]));
            let got: Vec<_> = (0..6).filter(|_| b.run(Filter, Input, &mut udp(true, 1, 2)) != Outcome::Accept).collect();
            let wanted: Vec<_> = (0..6).filter(|i| expected.contains(i) != not).collect();
            assert_eq!(got, wanted, "every {every} packet {packet} not {not}");
        }
    }
}

#[test]
fn statistic_random() {
    const N: u64 = 20_000;
    for (p, at_least, at_most) in
        [(0, 0, 0), (1 << 31, N, N), (1 << 30, N / 2 - 400, N / 2 + 400), ((1 << 31) / 10, N / 10 - 250, N / 10 + 250)]
    {
        for not in [false, true] {
            let m = Match::Statistic(Statistic::Random(Inv { not, value: p }));
            let mut b = Bench::new(&ruleset(V4, Filter, vec![chain("INPUT", vec![plain(m)])]));
            (0..N).for_each(|_| _ = b.run(Filter, Input, &mut udp(false, 1, 2)));
            let n = b.counts("INPUT")[0];
            let n = if not { N - n } else { n };
            assert!((at_least..=at_most).contains(&n), "{p}: {n}");
        }
    }
}

#[test]
fn comments_say_nothing() {
    assert!(fits(plain(Match::Comment("x".into())), &udp(false, 1, 2)));
}
