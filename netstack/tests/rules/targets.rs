//! Each target: what it does to a packet, and where the packet goes then.

use crate::kit::*;
use hibernet_netstack::DropReason;
use hibernet_netstack::conntrack::{Conn, CtInfo, CtTuple, Proto, Status, Track};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};
use hibernet_netstack::nat::NatRange;
use hibernet_netstack::skb::Skb;
use hibernet_netstack::time::Time;

/// Runs one rule with this target; the next one counts whether it is reached.
fn run(table: TableName, hook: Hook, target: Target, skb: &mut Skb<'_>) -> (Outcome, bool, Bench) {
    let family = if skb.is_v6() { V6 } else { V4 };
    let proto = is(skb.protocol);
    let rules = vec![Rule { proto, ..rule(target) }, rule(Target::None)];
    let mut b = Bench::new(&ruleset(family, table, vec![chain(hook.chain(), rules)]));
    let o = b.run(table, hook, skb);
    let counts = b.counts(hook.chain());
    assert_eq!(counts[0], 1, "the rule itself counts");
    (o, counts[1] == 1, b)
}

fn conn(skb: &Skb<'_>) -> Conn {
    let orig = CtTuple {
        src: skb.src.into(),
        dst: skb.dst.into(),
        sport: skb.sport,
        dport: skb.dport,
        zone: 0,
        proto: skb.protocol,
        v6: skb.is_v6(),
    };
    let reply = CtTuple { src: orig.dst, dst: orig.src, sport: orig.dport, dport: orig.sport, ..orig };
    Conn { tuples: [orig, reply], status: Status::default(), mark: 0, expires: Time::NEVER, proto: Proto::Generic, flow: None }
}

fn fresh(skb: &mut Skb<'_>) {
    skb.track = Track::Fresh { conn: conn(skb), related: false, len: 0 };
}

fn conn_of(skb: &Skb<'_>) -> Conn {
    let Track::Fresh { conn, .. } = skb.track else { panic!("{:?}", skb.track) };
    conn
}

#[test]
fn accept_drop_and_return_end_the_table() {
    for v6 in [false, true] {
        for (target, outcome) in [
            (Target::Accept, Outcome::Accept),
            (Target::Drop, Outcome::Drop(DropReason::Rule)),
            (Target::Return, Outcome::Accept),
        ] {
            let (o, next, _) = run(Filter, Input, target, &mut udp(v6, 1, 2));
            assert_eq!((o, next), (outcome, false));
        }
    }
}

#[test]
fn reject_says_how() {
    for code in [0, 1, 2, 3, 9, 10, 13] {
        let (o, next, _) = run(Filter, Forward, Target::Reject(RejectWith::Icmp(code)), &mut udp(false, 1, 2));
        assert_eq!((o, next), (Outcome::Reject(RejectWith::Icmp(code)), false));
    }
    for code in [0, 1, 3, 4, 5, 6] {
        let (o, ..) = run(Filter, Output, Target::Reject(RejectWith::Icmp6(code)), &mut udp(true, 1, 2));
        assert_eq!(o, Outcome::Reject(RejectWith::Icmp6(code)));
    }
    for v6 in [false, true] {
        let (o, ..) = run(Filter, Input, Target::Reject(RejectWith::TcpReset), &mut tcp(v6, 1, 2, 2));
        assert_eq!(o, Outcome::Reject(RejectWith::TcpReset));
    }
}

#[test]
fn mark_clears_and_flips() {
    for (before, value, mask, after) in [
        (0, 5, u32::MAX, 5),
        (0xff, 0x10, 0xf0, 0x1f),
        // Bits outside of the mask are flipped.
        (0xff, 0x01, 0xf0, 0x0e),
        (0x1234_5678, 0, 0, 0x1234_5678),
        (u32::MAX, u32::MAX, 0, 0),
    ] {
        let mut skb = udp(false, 1, 2);
        skb.mark = before;
        let (o, next, _) = run(Mangle, PreRouting, Target::Mark { value, mask }, &mut skb);
        assert_eq!((o, next, skb.mark), (Outcome::Accept, true, after));
    }
}

/// The next rule sees it.
#[test]
fn a_mark_is_tested_by_later_rules() {
    let marked = |m| Rule { matches: vec![Match::Mark(Inv { not: false, value: (m, u32::MAX) })], ..rule(Target::Drop) };
    let rules = vec![marked(7), rule(Target::Mark { value: 7, mask: u32::MAX }), marked(7)];
    let mut b = Bench::new(&ruleset(V6, Mangle, vec![chain("INPUT", rules)]));
    assert_eq!(b.run(Mangle, Input, &mut udp(true, 1, 2)), Outcome::Drop(DropReason::Rule));
    assert_eq!(b.counts("INPUT"), [0, 1, 1, 0]);
}

#[test]
fn connmark_carries_marks_between_packet_and_connection() {
    // Mark of the packet and the connection, before and after.
    let cases = [
        (Connmark::Set { value: 5, mask: u32::MAX }, (1, 2), (1, 5)),
        (Connmark::Set { value: 0x01, mask: 0xf0 }, (1, 0xff), (1, 0x0e)),
        (Connmark::Save { nfmask: u32::MAX, ctmask: u32::MAX }, (1, 2), (1, 1)),
        (Connmark::Save { nfmask: 0x0f, ctmask: 0xf0 }, (0xab, 0xcd), (0xab, 0x0d ^ 0x0b)),
        (Connmark::Restore { nfmask: u32::MAX, ctmask: u32::MAX }, (1, 2), (2, 2)),
        (Connmark::Restore { nfmask: 0x0f, ctmask: 0xf0 }, (0xab, 0xcd), (0xa0 ^ 0xc0, 0xcd)),
    ];
    for (what, (packet, connection), after) in cases {
        let mut skb = tcp(false, 1, 2, 2);
        skb.mark = packet;
        fresh(&mut skb);
        let Track::Fresh { conn: c, .. } = &mut skb.track else { unreachable!() };
        c.mark = connection;
        let confirmed = *c;
        let (o, next, _) = run(Mangle, Forward, Target::Connmark(what), &mut skb);
        assert_eq!((o, next, (skb.mark, conn_of(&skb).mark)), (Outcome::Accept, true, after), "{what:?}");

        // The same for a connection in the table, and a later rule of the same table sees it.
        let sees =
            |mark| Rule { matches: vec![Match::Connmark(Inv { not: false, value: (mark, u32::MAX) })], ..rule(Target::None) };
        let rules = vec![sees(connection), rule(Target::Connmark(what)), sees(after.1)];
        let mut b = Bench::new(&ruleset(V4, Mangle, vec![chain("FORWARD", rules)]));
        let id = b.confirm(confirmed);
        let mut skb = tcp(false, 1, 2, 2);
        skb.mark = packet;
        skb.track = Track::Known { id, info: CtInfo::Established, status: Status::CONFIRMED };
        b.run(Mangle, Forward, &mut skb);
        assert_eq!((skb.mark, b.ct.get(id).unwrap().mark), after, "{what:?}");
        assert_eq!(b.counts("FORWARD"), [1, 1, 1, 1]);
    }
    // Without a connection nothing happens.
    for track in [Track::None, Track::Untracked] {
        let mut skb = udp(false, 1, 2);
        (skb.mark, skb.track) = (9, track);
        let (o, next, _) =
            run(Mangle, Forward, Target::Connmark(Connmark::Restore { nfmask: u32::MAX, ctmask: u32::MAX }), &mut skb);
        assert_eq!((o, next, skb.mark, skb.track), (Outcome::Accept, true, 9, track));
    }
}

fn ct(notrack: bool, zone: Option<(u16, ZoneDir)>) -> Target {
    Target::Ct(CtTarget { notrack, zone, ..CtTarget::default() })
}

#[test]
fn ct_exempts_from_tracking_or_sets_zones() {
    for hook in [PreRouting, Output] {
        let mut skb = udp(false, 1, 2);
        assert!(run(Raw, hook, ct(true, None), &mut skb).1);
        assert_eq!(skb.track, Track::Untracked);
        for (dir, zones) in [(ZoneDir::Both, [7, 7]), (ZoneDir::Original, [7, 0]), (ZoneDir::Reply, [0, 7])] {
            let mut skb = udp(true, 1, 2);
            assert!(run(Raw, hook, ct(false, Some((7, dir))), &mut skb).1);
            assert_eq!((skb.track, skb.zones), (Track::None, zones));
        }
    }
}

#[test]
fn the_first_ct_rule_wins() {
    let first = |a: Target, b: Target| {
        let mut bench = Bench::new(&ruleset(V4, Raw, vec![chain("PREROUTING", vec![rule(a), rule(b)])]));
        let mut skb = udp(false, 1, 2);
        bench.run(Raw, PreRouting, &mut skb);
        (skb.track, skb.zones)
    };
    let zone = |z| ct(false, Some((z, ZoneDir::Both)));
    assert_eq!(first(zone(1), zone(2)), (Track::None, [1; 2]));
    assert_eq!(first(zone(1), ct(true, None)), (Track::None, [1; 2]));
    assert_eq!(first(ct(true, None), zone(1)), (Track::Untracked, [0; 2]));
    // Even if it says nothing in particular.
    assert_eq!(first(ct(false, None), ct(true, None)), (Track::None, [0; 2]));
}

#[test]
fn an_exempted_packet_is_untracked_for_later_rules() {
    let state = |s| Rule { matches: vec![Match::State(Inv { not: false, value: s })], ..rule(Target::None) };
    let rules = vec![state(ctstate::INVALID), rule(ct(true, None)), state(ctstate::INVALID), state(ctstate::UNTRACKED)];
    let mut b = Bench::new(&ruleset(V4, Raw, vec![chain("OUTPUT", rules)]));
    b.run(Raw, Output, &mut udp(false, 1, 2));
    assert_eq!(b.counts("OUTPUT"), [1, 1, 0, 1, 1]);
}

#[test]
fn translation_ends_the_table_and_is_noted_in_the_connection() {
    for v6 in [false, true] {
        let new = ip(if v6 { "fd00::77" } else { "192.0.2.77" });
        let range = NatRange { addrs: Some((new, new)), ports: Some((7777, 7777)), ..NatRange::default() };
        let setup = || {
            let mut skb = tcp(v6, 4000, 80, 2);
            skb.input = Some(Iface::Link(LinkId(0)));
            skb.output = Some(Iface::Host0);
            fresh(&mut skb);
            skb
        };
        for (hook, target, dst, to) in [
            (PreRouting, Target::Dnat(range), true, (new, 7777)),
            (Output, Target::Dnat(range), true, (new, 7777)),
            (PostRouting, Target::Snat(range), false, (new, 7777)),
            (Input, Target::Snat(range), false, (new, 7777)),
            (PostRouting, Target::Masquerade(NatRange::default()), false, (ip(if v6 { "fd00::fe" } else { "192.0.2.1" }), 4000)),
            (
                PreRouting,
                Target::Redirect(NatRange { ports: range.ports, ..NatRange::default() }),
                true,
                (ip(if v6 { "fd00::2" } else { "10.0.0.2" }), 7777),
            ),
            (Output, Target::Redirect(NatRange::default()), true, (ip(if v6 { "::1" } else { "127.0.0.1" }), 80)),
            (
                PreRouting,
                Target::Netmap(net(if v6 { "fd00:7::/64" } else { "172.16.0.0/12" })),
                true,
                (ip(if v6 { "fd00:7::2" } else { "172.16.0.2" }), 80),
            ),
            (
                PostRouting,
                Target::Netmap(net(if v6 { "fd00:7::/64" } else { "172.16.0.0/12" })),
                false,
                (ip(if v6 { "fd00:7::1" } else { "172.16.0.1" }), 4000),
            ),
        ] {
            let mut skb = setup();
            let (o, next, _) = run(Nat, hook, target.clone(), &mut skb);
            assert_eq!((o, next), (Outcome::Accept, false), "{target:?}");
            let reply = conn_of(&skb).tuples[1];
            let got = if dst { (reply.src_ip(), reply.sport) } else { (reply.dst_ip(), reply.dport) };
            assert_eq!(got, to, "{target:?} at {hook:?}");
        }
    }
}

#[test]
fn log_goes_on() {
    let log = LogTarget { level: 4, prefix: "x ".into(), flags: 0 };
    let (o, next, b) = run(Filter, Input, Target::Log(Box::new(log)), &mut udp(false, 1, 2));
    assert_eq!((o, next, b.log.0.len()), (Outcome::Accept, true, 1));
    assert!(b.log.0[0].starts_with("x IN= OUT= SRC=10.0.0.1 DST=10.0.0.2 LEN=100 "), "{:?}", b.log.0);
}
