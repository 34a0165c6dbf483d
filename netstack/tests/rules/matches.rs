//! Each match: what fits, what does not, inverted, and at the edges.

use crate::kit::*;
use core::time::Duration;
use hibernet_netstack::DropReason;
use hibernet_netstack::conntrack::{Conn, ConnId, CtInfo, CtTuple, Proto, Status, Track};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};
use hibernet_netstack::packet::L4;
use hibernet_netstack::skb::{Owner, Skb};
use hibernet_netstack::time::Time;

/// Whether a packet meets a rule, in FORWARD of mangle, or in OUTPUT where the rule can be only there.
fn fits(r: Rule, skb: &Skb<'_>) -> bool {
    let family = if skb.is_v6() { V6 } else { V4 };
    let hook = if r.matches.iter().any(|m| matches!(m, Match::Owner { .. })) { Output } else { Forward };
    // The rule in a user's chain, where every test may be.
    let chains = vec![chain(hook.chain(), vec![rule(jump("U"))]), chain("U", vec![Rule { target: Target::None, ..r }])];
    let mut b = Bench::new(&ruleset(family, Mangle, chains));
    b.run(Mangle, hook, &mut skb.clone());
    b.counts("U")[0] == 1
}

fn with(proto: u8, m: Match) -> Rule {
    Rule { proto: is(proto), matches: vec![m], ..Rule::default() }
}

fn plain(m: Match) -> Rule {
    Rule { matches: vec![m], ..Rule::default() }
}

/// The test and its inversion say the contrary of each other.
fn both<T: Copy>(expected: bool, skb: &Skb<'_>, value: T, r: impl Fn(Inv<T>) -> Rule) {
    for not in [false, true] {
        let r = r(Inv { not, value });
        assert_eq!(fits(r.clone(), skb), expected != not, "{r:?} for {skb:?}");
    }
}

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

#[test]
fn ports() {
    for v6 in [false, true] {
        for (range, port, expected) in [
            ((80, 80), 80, true),
            ((80, 80), 81, false),
            ((80, 90), 80, true),
            ((80, 90), 90, true),
            ((80, 90), 79, false),
            ((80, 90), 91, false),
            ((0, 65535), 0, true),
            ((0, 65535), 65535, true),
            ((0, 0), 0, true),
            ((65535, 65535), 65535, true),
            ((65535, 65535), 0, false),
            ((90, 80), 85, false),
        ] {
            let tcp_s = |p| with(6, Match::Tcp { sport: Some(p), dport: None, flags: None, option: None });
            let tcp_d = |p| with(6, Match::Tcp { sport: None, dport: Some(p), flags: None, option: None });
            both(expected, &tcp(v6, port, 7, 2), range, tcp_s);
            both(expected, &tcp(v6, 7, port, 2), range, tcp_d);
            both(expected, &udp(v6, port, 7), range, |p| with(17, Match::Udp { sport: Some(p), dport: None }));
            both(expected, &udp(v6, 7, port), range, |p| with(17, Match::Udp { sport: None, dport: Some(p) }));
        }
        // Both inverted; and the ports as they are translated so far.
        let neither = with(6, Match::Tcp { sport: not((1, 1)), dport: not((2, 2)), flags: None, option: None });
        let mut skb = tcp(v6, 3, 4, 2);
        assert!(fits(neither.clone(), &skb));
        skb.dport = 2;
        assert!(!fits(neither, &skb));
    }
}

#[test]
fn a_second_block_of_the_same_match_counts_too() {
    let block = |r: Inv<PortRange>| Match::Tcp { sport: None, dport: Some(r), flags: None, option: None };
    for (first, second, expected) in [
        (Inv { not: false, value: (1, 10) }, Inv { not: false, value: (5, 20) }, [false, true, true, false]),
        (Inv { not: false, value: (1, 10) }, Inv { not: true, value: (5, 20) }, [true, false, false, false]),
        (Inv { not: true, value: (1, 5) }, Inv { not: true, value: (10, 20) }, [false, false, false, true]),
    ] {
        for (port, expected) in [4, 5, 10, 21].into_iter().zip(expected) {
            let r = Rule { proto: is(6), matches: vec![block(first), block(second)], ..Rule::default() };
            assert_eq!(fits(r, &tcp(false, 1, port, 2)), expected, "{first:?} {second:?} {port}");
        }
    }
}

#[test]
fn tcp_flags() {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    for v6 in [false, true] {
        for (mask, set, flags, expected) in [
            (0x17, SYN, SYN, true),
            (0x17, SYN, SYN | ACK, false),
            (0x17, SYN, SYN | 0x08, true),
            (0x3f, 0, 0, true),
            (0x3f, 0, ACK, false),
            (0x3f, 0x3f, 0x3f, true),
            (0x00, 0x00, ACK, true),
            (SYN, ACK, SYN | ACK, false),
            // ECE and CWR are bits of the byte as well.
            (0xc0, 0xc0, 0xc2, true),
            (0x3f, SYN, 0xc2, true),
        ] {
            both(expected, &tcp(v6, 1, 2, flags), (mask, set), |f| {
                with(6, Match::Tcp { sport: None, dport: None, flags: Some(f), option: None })
            });
        }
    }
}

#[test]
fn tcp_options() {
    let skb = |options: &[u8]| {
        let mut b = vec![0; 20];
        b[12] = ((20 + options.len()) as u8 / 4) << 4;
        b.extend(options);
        tcp_bytes(false, b)
    };
    for (options, kind, expected) in [
        (&[][..], 2, false),
        (&[2, 4, 5, 180], 2, true),
        (&[2, 4, 5, 180], 5, false),
        (&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], 8, true),
        (&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], 3, false),
        (&[1, 1, 1, 3], 1, true),
        // An end mark does not end the list, nor does a length of 0; one that leads behind the end does.
        (&[0, 2, 4, 5], 2, true),
        (&[9, 0, 2, 4], 2, true),
        (&[9, 200, 2, 4], 2, false),
        (&[1, 1, 1, 9], 2, false),
    ] {
        both(expected, &skb(options), kind, |o| with(6, Match::Tcp { sport: None, dport: None, flags: None, option: Some(o) }));
    }
    // Option 0 is no test (as in Linux).
    assert!(fits(with(6, Match::Tcp { sport: None, dport: None, flags: None, option: is(0) }), &skb(&[])));
}

#[test]
fn icmp_types_and_codes() {
    for (v6, ty, codes, of, expected) in [
        (false, 8, (0, 255), (8, 0), true),
        (false, 8, (0, 255), (0, 0), false),
        (false, 3, (3, 3), (3, 3), true),
        (false, 3, (3, 3), (3, 2), false),
        (false, 3, (1, 3), (3, 2), true),
        (false, 255, (0, 255), (13, 7), true),
        (true, 128, (0, 255), (128, 0), true),
        (true, 1, (4, 4), (1, 4), true),
        (true, 1, (4, 4), (1, 3), false),
        // 255 is a type like others in IPv6.
        (true, 255, (0, 255), (128, 0), false),
    ] {
        let proto = if v6 { 58 } else { 1 };
        both(expected, &icmp(v6, of.0, of.1), IcmpType { ty, codes }, |t| with(proto, Match::Icmp(Some(t))));
    }
    assert!(fits(with(1, Match::Icmp(None)), &icmp(false, 42, 1)));
}

#[test]
fn a_packet_that_cannot_be_tested_is_dropped() {
    let codes = Match::Icmp(is(IcmpType { ty: 8, codes: (1, 5) }));
    let mut b = Bench::new(&ruleset(V4, Filter, vec![chain("INPUT", vec![with(1, codes)])]));
    let mut broken = packet("10.0.0.1", "10.0.0.2", L4::Other, &[]);
    broken.protocol = 1;
    assert_eq!(b.run(Filter, Input, &mut broken), Outcome::Drop(DropReason::Malformed));
    let ports = Match::Multiport { which: Ports::Either, ports: Inv { not: false, value: vec![(1, 1)] } };
    let mut b = Bench::new(&ruleset(V4, Filter, vec![chain("INPUT", vec![with(132, ports)])]));
    let mut broken = packet("10.0.0.1", "10.0.0.2", L4::Other, &[0, 1, 0]);
    broken.protocol = 132;
    assert_eq!(b.run(Filter, Input, &mut broken), Outcome::Drop(DropReason::Malformed));
    assert_eq!(b.counts("INPUT"), [0, 0]);
}

#[test]
fn multiport() {
    for v6 in [false, true] {
        let set = vec![(22, 22), (80, 90), (443, 443)];
        for (which, s, d, expected) in [
            (Ports::Source, 22, 1, true),
            (Ports::Source, 1, 22, false),
            (Ports::Source, 85, 1, true),
            (Ports::Destination, 1, 90, true),
            (Ports::Destination, 1, 91, false),
            (Ports::Destination, 443, 1, false),
            (Ports::Either, 443, 1, true),
            (Ports::Either, 1, 80, true),
            (Ports::Either, 1, 79, false),
        ] {
            for skb in [tcp(v6, s, d, 2), udp(v6, s, d)] {
                for not in [false, true] {
                    let m = Match::Multiport { which, ports: Inv { not, value: set.clone() } };
                    assert_eq!(fits(with(skb.protocol, m), &skb), expected != not, "{which:?} {s} {d}");
                }
            }
        }
    }
    // Protocols whose ports are in the bytes only.
    let mut sctp = packet("10.0.0.1", "10.0.0.2", L4::Other, &[0, 5, 0, 6, 0, 0, 0, 0]);
    sctp.protocol = 132;
    let m = |which, p| with(132, Match::Multiport { which, ports: Inv { not: false, value: vec![(p, p)] } });
    assert!(fits(m(Ports::Source, 5), &sctp) && fits(m(Ports::Destination, 6), &sctp) && !fits(m(Ports::Source, 6), &sctp));
}

#[test]
fn marks() {
    let mut skb = udp(false, 1, 2);
    for (mark, value, mask, expected) in [
        (0, 0, u32::MAX, true),
        (1, 1, u32::MAX, true),
        (0x11, 1, 0x0f, true),
        (0x11, 1, 0xff, false),
        // Bits outside of the mask cannot be there.
        (0x11, 0x11, 0x0f, false),
        (u32::MAX, u32::MAX, u32::MAX, true),
    ] {
        skb.mark = mark;
        both(expected, &skb, (value, mask), |m| plain(Match::Mark(m)));
        skb.mark = !mark;
        skb.track = fresh(|c| c.mark = mark);
        both(expected, &skb, (value, mask), |m| plain(Match::Connmark(m)));
    }
    // Without a connection, connmark does not fit, inverted or not.
    for track in [Track::None, Track::Untracked] {
        skb.track = track;
        for not in [false, true] {
            assert!(!fits(plain(Match::Connmark(Inv { not, value: (0, 0) })), &skb));
        }
    }
}

/// A new connection from 10.0.0.1:1000 to 10.0.0.2:80, whose replies come from 192.168.0.2:8080.
fn fresh(change: impl FnOnce(&mut Conn)) -> Track {
    let tuple = |src: &str, sport, dst: &str, dport| CtTuple {
        src: ip(src).into(),
        dst: ip(dst).into(),
        sport,
        dport,
        zone: 0,
        proto: 6,
        v6: false,
    };
    let mut conn = Conn {
        tuples: [tuple("10.0.0.1", 1000, "10.0.0.2", 80), tuple("192.168.0.2", 8080, "10.0.0.1", 1000)],
        status: Status::default(),
        mark: 0,
        expires: Time::ZERO + Duration::from_secs(120),
        proto: Proto::Generic,
        flow: None,
    };
    change(&mut conn);
    Track::Fresh { conn, related: false }
}

/// A packet of a connection in the table.
fn known(info: CtInfo, status: Status) -> (Track, Conn) {
    let Track::Fresh { mut conn, .. } = fresh(|_| {}) else { unreachable!() };
    conn.status = status;
    (Track::Known { id: ConnId { index: 0, generation: 0 }, info, status }, conn)
}

#[test]
fn states() {
    use ctstate::*;
    let mut skb = tcp(false, 1000, 80, 2);
    let status = Status(Status::SRC_NAT.0 | Status::CONFIRMED.0);
    let cases = [
        (Track::None, INVALID),
        (Track::Untracked, UNTRACKED),
        (fresh(|_| {}), NEW),
        (fresh(|c| c.status.set(Status::DST_NAT)), NEW | DNAT),
        (Track::Fresh { conn: known(CtInfo::New, status).1, related: true }, RELATED | SNAT),
        (known(CtInfo::New, Status::CONFIRMED).0, NEW),
        (known(CtInfo::Established, Status::CONFIRMED).0, ESTABLISHED),
        (known(CtInfo::EstablishedReply, status).0, ESTABLISHED | SNAT),
        (known(CtInfo::Related, Status::CONFIRMED).0, RELATED),
        (known(CtInfo::RelatedReply, Status(Status::DST_NAT.0 | Status::SRC_NAT.0)).0, RELATED | SNAT | DNAT),
    ];
    for (track, bits) in cases {
        skb.track = track;
        for set in
            [INVALID, ESTABLISHED, RELATED, NEW, UNTRACKED, SNAT, DNAT, NEW | RELATED, ESTABLISHED | DNAT, INVALID | UNTRACKED, 0]
        {
            let state = |s| plain(Match::Conntrack(Box::new(CtMatch { state: Some(s), ..CtMatch::default() })));
            both(bits & set != 0, &skb, set, state);
            both(bits & set != 0, &skb, set, |s| plain(Match::State(s)));
            // Both blocks must fit.
            let two =
                |s| Rule { matches: vec![Match::State(s), Match::State(Inv { not: !s.not, value: set })], ..Rule::default() };
            assert!(!fits(two(Inv { not: false, value: set }), &skb));
        }
    }
}

#[test]
fn conntrack_without_a_connection_is_decided_by_states_alone() {
    let mut skb = tcp(false, 1000, 80, 2);
    let with_state = |state| CtMatch { state, proto: is(6), orig_dport: not((80, 80)), reply: Some(true), ..CtMatch::default() };
    for (track, bit) in [(Track::None, ctstate::INVALID), (Track::Untracked, ctstate::UNTRACKED)] {
        skb.track = track;
        assert!(fits(plain(Match::Conntrack(Box::new(with_state(is(bit))))), &skb));
        assert!(!fits(plain(Match::Conntrack(Box::new(with_state(not(bit))))), &skb));
        assert!(!fits(plain(Match::Conntrack(Box::new(with_state(None)))), &skb));
        assert!(!fits(plain(Match::Conntrack(Box::default())), &skb));
    }
    skb.track = fresh(|_| {});
    assert!(fits(plain(Match::Conntrack(Box::default())), &skb));
}

#[test]
fn conntrack_fields() {
    let mut skb = tcp(false, 1000, 80, 2);
    skb.track = fresh(|c| c.status.set(Status::SEEN_REPLY));
    let ct = |f: &dyn Fn(&mut CtMatch)| {
        let mut m = CtMatch::default();
        f(&mut m);
        plain(Match::Conntrack(Box::new(m)))
    };
    for (a, expected) in [("10.0.0.1", true), ("10.0.0.0/24", true), ("10.0.0.2", false)] {
        both(expected, &skb, net(a), |n| ct(&|m| m.orig_src = Some(n)));
        both(expected, &skb, net(a), |n| ct(&|m| m.repl_dst = Some(n)));
    }
    for (a, orig, repl) in [("10.0.0.2", true, false), ("192.168.0.2", false, true), ("0.0.0.0/0", true, true)] {
        both(orig, &skb, net(a), |n| ct(&|m| m.orig_dst = Some(n)));
        both(repl, &skb, net(a), |n| ct(&|m| m.repl_src = Some(n)));
    }
    for (range, expected) in
        [((1000, 1000), true), ((0, 65535), true), ((999, 1001), true), ((1001, 2000), false), ((80, 80), false)]
    {
        both(expected, &skb, range, |p| ct(&|m| m.orig_sport = Some(p)));
        both(expected, &skb, range, |p| ct(&|m| m.repl_dport = Some(p)));
    }
    for (range, orig, repl) in
        [((80, 80), true, false), ((8080, 8080), false, true), ((80, 8080), true, true), ((81, 8079), false, false)]
    {
        both(orig, &skb, range, |p| ct(&|m| m.orig_dport = Some(p)));
        both(repl, &skb, range, |p| ct(&|m| m.repl_sport = Some(p)));
    }
    for (p, expected) in [(6, true), (17, false)] {
        both(expected, &skb, p, |p| ct(&|m| m.proto = Some(p)));
    }
    use ctstatus::*;
    for (s, expected) in
        [(SEEN_REPLY, true), (SEEN_REPLY | ASSURED, true), (ASSURED, false), (EXPECTED | CONFIRMED, false), (0, false)]
    {
        both(expected, &skb, s, |s| ct(&|m| m.status = Some(s)));
    }
    // Several must all fit.
    assert!(fits(ct(&|m| (m.orig_src, m.repl_sport) = (is(net("10.0.0.1")), is((8080, 8080)))), &skb));
    assert!(!fits(ct(&|m| (m.orig_src, m.repl_sport) = (is(net("10.0.0.1")), is((80, 80)))), &skb));
    for (info, reply) in [
        (CtInfo::New, false),
        (CtInfo::Established, false),
        (CtInfo::Related, false),
        (CtInfo::EstablishedReply, true),
        (CtInfo::RelatedReply, true),
    ] {
        skb.track = known(info, Status::CONFIRMED).0;
        assert!(fits(ct(&|m| m.reply = Some(reply)), &skb) && !fits(ct(&|m| m.reply = Some(!reply)), &skb));
    }
}

#[test]
fn conntrack_fields_of_a_connection_in_the_table() {
    let (_, conn) = known(CtInfo::Established, Status::default());
    let ct = |m: CtMatch| chain("FORWARD", vec![plain(Match::Conntrack(Box::new(m)))]);
    let run = |m, at: u64, there: bool| {
        let mut b = Bench::new(&ruleset(V4, Filter, vec![ct(m)]));
        b.now = Time::ZERO + Duration::from_millis(at);
        let id = b.confirm(conn);
        if !there {
            b.ct.remove(id);
        }
        let mut skb = tcp(false, 1000, 80, 2);
        skb.track = Track::Known { id, info: CtInfo::Established, status: Status::CONFIRMED };
        b.run(Filter, Forward, &mut skb);
        b.counts("FORWARD")[0] == 1
    };
    let expire = |range| CtMatch { expire: is(range), ..CtMatch::default() };
    // It expires at 120 s; seconds are rounded down.
    for (range, at, expected) in [
        ((120, 120), 0, true),
        ((119, 119), 1, true),
        ((120, 120), 1, false),
        ((100, 200), 10_000, true),
        ((0, 0), 119_001, true),
        ((0, 0), 119_000, false),
        ((0, 0), 500_000, true),
        ((0, u32::MAX), 5, true),
    ] {
        assert_eq!(run(expire(range), at, true), expected, "{range:?} at {at} ms");
        let inverted = CtMatch { expire: not(range), ..CtMatch::default() };
        assert_eq!(run(inverted, at, true), !expected, "! {range:?} at {at} ms");
    }
    assert!(run(CtMatch { proto: is(6), ..CtMatch::default() }, 0, true));
    // Gone since the packet was tracked: only what the packet itself knows can be told.
    assert!(!run(CtMatch { proto: is(6), ..CtMatch::default() }, 0, false));
    assert!(run(CtMatch { state: is(ctstate::ESTABLISHED), reply: Some(false), ..CtMatch::default() }, 0, false));
    // The time-out of a connection that is not in the table does not run yet: Linux reads it as 0.
    let mut skb = tcp(false, 1000, 80, 2);
    skb.track = fresh(|_| {});
    assert!(fits(plain(Match::Conntrack(Box::new(expire((0, 0))))), &skb));
}

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
        (2, 0, vec![1, 3, 5]),
        (2, 1, vec![0, 2, 4]),
        (3, 0, vec![2, 5]),
        (3, 1, vec![1, 4]),
        (3, 2, vec![0, 3]),
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
