//! Connections: states, fields, marks.

use super::{both, fits, plain};
use crate::kit::*;
use core::time::Duration;
use hibernet_netstack::conntrack::{Conn, ConnId, CtInfo, CtTuple, Proto, Status, Track};
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};
use hibernet_netstack::time::Time;

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
    Track::Fresh { conn, related: false, len: 0 }
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
        (Track::Fresh { conn: known(CtInfo::New, status).1, related: true, len: 0 }, RELATED | SNAT),
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
