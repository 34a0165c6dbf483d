//! Defects of the table that this one starts from, by the rows of `gvisor.md` section 3: each test fails on what its row describes.

use super::kit::*;
use crate::conntrack::{CtInfo, Dir, Status, Track};
use crate::edge::{Token, TokenKind};
use crate::tuple::Endpoint;
use crate::verdict::DropReason;
use crate::wire::tcp::Flags;
use core::time::Duration;

/// Buckets of a packet's tuple and of its reply's.
fn buckets(ct: &crate::conntrack::Conntrack, skb: &crate::skb::Skb<'_>) -> [u32; 2] {
    let t = crate::conntrack::tuple::of(skb).unwrap();
    let r = crate::conntrack::tuple::invert(&t).unwrap();
    [t, r].map(|t| ct.bucket_of(ct.hash(&t) as u32))
}

/// Row 3: a look-up removes what timed out, and goes on behind it.
#[test]
fn row_03_a_live_connection_behind_an_expired_one_is_found() {
    let ct = table(2);
    let mut shared = 0;
    for n in 0..64 {
        let (old, new) = (datagram(client(n), server()), datagram(client(n + 100), server()));
        // One bucket has the expired connection's tuple and, behind it, that of the live one's replies.
        let at = n as u64 * 1000;
        known(&ct, secs(at), old.clone());
        let gateway = Endpoint::new(server().addr, 40_000);
        let mut nated = translated(&ct, secs(at + 20), new.clone(), |c| {
            (c.tuples[1].dst, c.tuples[1].dport) = (gateway.addr.into(), gateway.port);
            c.status.set(Status::SRC_NAT);
        });
        let reply = datagram(server(), gateway);
        shared += u32::from(buckets(&ct, &old).contains(&buckets(&ct, &reply)[0]));
        ct.confirm(secs(at + 20), &mut nated).unwrap();
        let now = secs(at + 31);
        assert!(conn_of(&ct, now, &old).is_none());
        assert_eq!(known(&ct, now, reply).1, CtInfo::EstablishedReply);
        ct.flush();
    }
    assert!(shared > 16, "{shared}");
}

/// Row 4: one pass of the reaper takes all that timed out, neighbours in a bucket and both tuples of one connection in the same bucket included.
#[test]
fn row_04_one_turn_reaps_everything_that_timed_out() {
    let ct = table(64);
    for n in 0..64 {
        known(&ct, secs(0), datagram(client(n), server()));
    }
    assert_eq!(ct.len(), 64);
    reap_until(&ct, secs(30 + 61));
    assert_eq!((ct.len(), ct.counters().expired), (0, 64));
    assert_eq!(entries(&ct), 0);
}

/// Row 5: the predicate that look-ups use is the one of inserts: a tuple of an expired connection is free, in whichever order its buckets are.
#[test]
fn row_05_an_expired_connection_never_blocks_a_new_one() {
    let (mut forward, mut backward) = (0, 0);
    for n in 0..64 {
        let ct = table(64);
        let first = datagram(client(n), server());
        let [a, b] = buckets(&ct, &first);
        forward += u32::from(a < b);
        backward += u32::from(a > b);
        let (old, _) = known(&ct, secs(0), first.clone());
        // Both ways: the tuple looked for before it is inserted, and inserted as it is.
        let mut late = first.clone();
        ct.track(secs(31), &mut late).unwrap();
        assert!(matches!(late.track, Track::Fresh { .. }));
        ct.confirm(secs(31), &mut late).unwrap();
        let (conn, dir) = conn_of(&ct, secs(31), &first).unwrap();
        assert_eq!((dir, conn.expires, ct.len()), (Dir::Original, secs(61), 1));
        assert!(ct.get(old).is_none());
        // A connection that was prepared while the other was alive, and is confirmed when that has timed out.
        let mut early = datagram(client(n + 100), server());
        ct.track(secs(31), &mut early).unwrap();
        known(&ct, secs(31), datagram(client(n + 100), server()));
        ct.confirm(secs(62), &mut early).unwrap();
        assert_eq!(ct.counters().expired, 2);
    }
    assert!(forward > 16 && backward > 16);
}

/// Row 2: only the time that is handed in ages a connection; none passes between a freeze and the thaw, however long that takes.
#[test]
fn row_02_connections_age_by_stack_time_alone() {
    let ct = table(16);
    let (id, _) = known(&ct, secs(0), datagram(client(1), server()));
    ct.quiesce();
    ct.restart(secs(29));
    reap_until(&ct, secs(29));
    assert!(ct.find(secs(29), &ct.get(id).unwrap().tuples[0]).is_some());
    reap_until(&ct, secs(91));
    assert!(ct.get(id).is_none());
}

/// Row 6: the reply tuple of a translated connection is not the inverse of its original one; its removal touches the bucket where it is,
/// and nobody else there.
#[test]
fn row_06_a_translated_connection_leaves_the_right_buckets() {
    let ct = table(64);
    for n in 0..50 {
        known(&ct, secs(0), datagram(client(n), server()));
    }
    let gateway = |n: u16| Endpoint::new(server().addr, 50_000 + n);
    for n in 0..14_u16 {
        let mut skb = translated(&ct, secs(0), datagram(client(1000 + u32::from(n)), server()), |c| {
            (c.tuples[1].dst, c.tuples[1].dport) = (gateway(n).addr.into(), gateway(n).port);
            c.status.set(Status::SRC_NAT);
        });
        ct.confirm(secs(0), &mut skb).unwrap();
        assert_eq!(entries(&ct), 2 * ct.len() as u32);
    }
    for n in 0..50 {
        known(&ct, secs(20), datagram(client(n), server()));
    }
    // Half of the translated ones are removed, the others time out.
    for n in 0..7 {
        let (id, dir) = ct.find(secs(20), &crate::conntrack::tuple::of(&datagram(server(), gateway(n))).unwrap()).unwrap();
        assert_eq!(dir, Dir::Reply);
        ct.remove(id).unwrap();
        assert_eq!(entries(&ct), 2 * ct.len() as u32);
    }
    reap_until(&ct, secs(49));
    for n in 0..14 {
        assert!(conn_of(&ct, secs(49), &datagram(server(), gateway(n))).is_none());
    }
    assert_eq!((ct.len(), entries(&ct)), (50, 100));
    // Those that were renewed are all there, in both directions.
    for n in 0..50 {
        assert!(conn_of(&ct, secs(49), &datagram(client(n), server())).is_some());
        assert!(conn_of(&ct, secs(49), &datagram(server(), client(n))).is_some());
    }
    assert!(
        ct.source_mapping(secs(25), &crate::conntrack::tuple::of(&datagram(client(1000), server())).unwrap(), |_, _| true)
            .is_none()
    );
}

/// Entries in all buckets.
fn entries(ct: &crate::conntrack::Conntrack) -> u32 {
    let t = ct.tables().unwrap();
    (0..ct.buckets()).filter_map(|b| t.buckets.get(b)).map(|b| b.lock().len(&t.arena)).sum()
}

/// Rows 8, 9, 10: the reaper is quiesced and goes on any number of times, in any order, before it was ever needed and while it runs.
#[test]
fn rows_08_09_10_quiescing_is_repeatable_and_loses_nothing() {
    let ct = table(64);
    for _ in 0..3 {
        ct.quiesce();
        assert_eq!((ct.reap_due(), ct.reap(secs(0))), (None, None));
    }
    ct.restart(secs(0));
    ct.restart(secs(0));
    assert_eq!(ct.reap_due(), None, "nothing to reap yet");
    ct.quiesce();
    // The first connection while it is quiesced: it is not forgotten.
    known(&ct, secs(1), datagram(client(0), server()));
    assert_eq!(ct.reap_due(), None);
    ct.restart(secs(1));
    assert_eq!(ct.reap_due(), Some(secs(6)));
    for round in 0..3 {
        let now = secs(100 * (round + 1));
        for n in 0..32 {
            known(&ct, now, datagram(client(n), server()));
        }
        reap_until(&ct, now);
        let due = ct.reap_due();
        ct.quiesce();
        ct.quiesce();
        assert_eq!((ct.reap_due(), ct.reap(secs(1000))), (None, None));
        // Packets pass meanwhile.
        known(&ct, now, datagram(server(), client(3)));
        known(&ct, now, datagram(client(40), server()));
        ct.restart(now);
        assert_eq!(ct.reap_due(), due, "goes on where it stood");
        assert_eq!(ct.len(), 33);
        reap_until(&ct, secs(100 * (round + 1) + 95));
        assert_eq!(ct.len(), 0, "round {round}");
    }
}

/// Row 12: after a restart nothing runs that was not needed before.
#[test]
fn row_12_restarting_does_not_start_a_reaper_that_was_never_needed() {
    let ct = table(64);
    ct.restart(secs(5));
    assert_eq!((ct.reap_due(), ct.reap(secs(500))), (None, None));
    let mut skb = datagram(client(0), server());
    ct.track(secs(6), &mut skb).unwrap();
    assert_eq!(ct.reap_due(), None, "not confirmed yet");
    ct.confirm(secs(6), &mut skb).unwrap();
    assert_eq!(ct.reap_due(), Some(secs(11)));
}

/// Row 13: whoever loses the race for a connection gets the winner's.
#[test]
fn row_13_the_second_of_two_first_packets_joins_the_first() {
    for tcp in [false, true] {
        let ct = table(64);
        let syn = || match tcp {
            true => segment(client(1), server(), Flags::SYN, 1, 0, 0),
            false => datagram(client(1), server()),
        };
        let nat = |c: &mut crate::conntrack::Conn| {
            c.tuples[1].sport = 8080;
            c.status.set(Status::DST_NAT);
        };
        let (mut a, mut b) = (translated(&ct, secs(0), syn(), nat), translated(&ct, secs(0), syn(), nat));
        ct.confirm(secs(0), &mut a).unwrap();
        ct.confirm(secs(0), &mut b).unwrap();
        assert!(matches!(a.track, Track::Known { info: CtInfo::New, .. }));
        assert_eq!(a.track, b.track);
        assert_eq!((ct.len(), ct.counters().clash_resolve, entries(&ct)), (1, 1, 2));
    }
}

/// Row 13, the other way round: two that talk to each other at once have one connection.
#[test]
fn row_13_a_packet_against_the_first_one_joins_it() {
    let ct = table(64);
    let (mut a, mut b) = (datagram(client(1), server()), datagram(server(), client(1)));
    ct.track(secs(0), &mut a).unwrap();
    ct.track(secs(0), &mut b).unwrap();
    ct.confirm(secs(0), &mut a).unwrap();
    ct.confirm(secs(0), &mut b).unwrap();
    assert_eq!(b.track.info(), Some(CtInfo::EstablishedReply));
    assert_eq!((ct.len(), entries(&ct)), (1, 2));
    assert_eq!(known(&ct, secs(0), datagram(client(1), server())).1, CtInfo::Established);
}

/// Rows 14, 30: no two connections have the same reply tuple, nor the same original one with two translations.
#[test]
fn rows_14_30_both_tuples_are_unique() {
    let ct = table(64);
    let gateway = Endpoint::new(server().addr, 40_000);
    let snat = |c: &mut crate::conntrack::Conn| {
        (c.tuples[1].dst, c.tuples[1].dport) = (gateway.addr.into(), gateway.port);
        c.status.set(Status::SRC_NAT);
    };
    let mut a = translated(&ct, secs(0), datagram(client(1), server()), snat);
    let mut b = translated(&ct, secs(0), datagram(client(2), server()), snat);
    ct.confirm(secs(0), &mut a).unwrap();
    assert_eq!(ct.confirm(secs(0), &mut b), Err(DropReason::ConntrackClash));
    assert_eq!((ct.len(), ct.counters().insert_failed, entries(&ct)), (1, 1, 2));
    let (conn, _) = conn_of(&ct, secs(0), &datagram(server(), gateway)).unwrap();
    assert_eq!(conn.tuples[0].sport, client(1).port, "replies go to the first");

    let syn = || segment(client(3), server(), Flags::SYN, 1, 0, 0);
    let mut c = translated(&ct, secs(0), syn(), |c| c.tuples[1].sport = 8080);
    let mut d = translated(&ct, secs(0), syn(), |c| c.tuples[1].sport = 9090);
    ct.confirm(secs(0), &mut c).unwrap();
    assert_eq!(ct.confirm(secs(0), &mut d), Err(DropReason::ConntrackClash));
    assert_eq!((ct.len(), entries(&ct)), (2, 4));
}

/// Rows 14, 30, UDP: the second datagram of a resolver's two, sent to another server by the rules, gets its answer, and its connection
/// is gone a second later; nobody but its replies finds it.
#[test]
fn rows_14_30_a_clash_of_datagrams_lasts_a_second() {
    let ct = table(64);
    let query = || datagram(client(1), server());
    let mut a = translated(&ct, secs(0), query(), |c| c.tuples[1].sport = 1053);
    let mut b = translated(&ct, secs(0), query(), |c| c.tuples[1].sport = 2053);
    ct.confirm(secs(0), &mut a).unwrap();
    ct.confirm(secs(0), &mut b).unwrap();
    let (Track::Known { id: first, .. }, Track::Known { id: second, status, .. }) = (a.track, b.track) else { panic!() };
    assert!(first != second && status.has(Status::NAT_CLASH));
    assert_eq!(known(&ct, secs(0), query()).0, first);
    let answer = datagram(Endpoint::new(server().addr, 2053), client(1));
    assert_eq!(known(&ct, secs(0), answer.clone()), (second, CtInfo::EstablishedReply));
    let mut listed = Vec::new();
    assert_eq!(ct.dump(secs(0), 0, u32::MAX, |id, _| listed.push(id)), None);
    assert_eq!(listed, [first]);
    assert!(conn_of(&ct, secs(1), &answer).is_none(), "nothing renews it");
    assert_eq!((ct.len(), entries(&ct)), (1, 2));
}

/// Row 16: the direction of a packet is that of its tuple, wherever it comes in: a forwarded connection is established and stays.
#[test]
fn row_16_forwarded_connections_are_established() {
    let ct = table(64);
    let id = establish(&ct, secs(0), client(1), server());
    reap_until(&ct, secs(400));
    assert_eq!(
        known(&ct, secs(400), segment(client(1), server(), Flags::ACK | Flags::PSH, 101, 501, 10)),
        (id, CtInfo::Established)
    );
    assert_eq!(known(&ct, secs(400), segment(server(), client(1), Flags::ACK, 501, 111, 0)), (id, CtInfo::EstablishedReply));
}

/// Row 22: a reset connection stays reset whatever comes later, and is soon gone; its tuple begins anew with a SYN.
#[test]
fn row_22_a_reset_connection_neither_lives_on_nor_blocks_its_tuple() {
    let ct = table(64);
    let id = establish(&ct, secs(0), client(1), server());
    known(&ct, secs(1), segment(server(), client(1), Flags::RST, 501, 0, 0));
    let _ = pass(&ct, secs(2), segment(client(1), server(), Flags::ACK, 101, 501, 0));
    reap_until(&ct, secs(2 + 10 + 61));
    assert!(ct.get(id).is_none());

    let id = establish(&ct, secs(100), client(1), server());
    known(&ct, secs(101), segment(client(1), server(), Flags::RST, 101, 0, 0));
    let (new, info) = known(&ct, secs(102), segment(client(1), server(), Flags::SYN, 9000, 0, 0));
    assert!(new != id && info == CtInfo::New && ct.get(id).is_none());
}

/// Rows 23, 24: the hash has a secret key, and its bucket always exists.
#[test]
fn rows_23_24_buckets_are_keyed_and_in_range() {
    use crate::rng::Key;
    let spread = |key: Key| -> Vec<u32> {
        let ct = crate::conntrack::Conntrack::new(crate::conntrack::CtConfig { max: 1 << 16, ..Default::default() }, key);
        (0..256).map(|n| buckets(&ct, &datagram(client(n), server()))[0]).collect()
    };
    let (a, b) = (spread(Key(1, 2)), spread(Key(1, 3)));
    assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < 8);
    for max in [1, 2, 3, 64, 65, 262_144, 1 << 20, u32::MAX] {
        let ct = table(max);
        for hash in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            assert!(ct.bucket_of(hash) < ct.buckets());
        }
        assert!(ct.buckets() >= max.min(1 << 29));
    }
}

/// Row 26: tables smaller than the number of runs in a turn are reaped as well.
#[test]
fn row_26_small_tables_are_reaped() {
    for max in [1, 2, 64] {
        let ct = table(max);
        for n in 0..max {
            known(&ct, secs(0), datagram(client(n), server()));
        }
        reap_until(&ct, secs(30 + 61));
        assert_eq!(ct.len(), 0, "{max}");
    }
}

/// Row 27: half expired is enough for a run in 10 ms; what was not removed does not count as expired; else intervals grow by 10 ms, up to a
/// turn of a minute.
#[test]
fn row_27_the_pace_follows_what_was_found() {
    let ct = table(1024);
    for n in 0..1024 {
        known(&ct, secs(0), datagram(client(n), server()));
    }
    let run = ct.tables().unwrap().arena.used().div_ceil(128);
    let first = secs(5);
    assert_eq!(ct.reap_due(), Some(first));
    let most = Duration::from_secs(60) / 128;
    // Nothing expired: the longest interval stays the longest.
    assert_eq!(ct.reap(first), Some(first + most));

    // Of the next run's connections exactly half have timed out.
    let now = first + most;
    let slots = |from: u32| {
        let mut ids = Vec::new();
        ct.dump(now, from, run, |id, _| ids.push(id));
        if ids.len() % 2 == 1 {
            ct.remove(ids.pop().unwrap());
        }
        ids
    };
    let ids = slots(run);
    assert!(ids.len() >= 2);
    ids.iter().step_by(2).for_each(|&id| ct.modify(id, |c| c.expires = now).unwrap());
    assert_eq!(ct.reap(now), Some(now + Duration::from_millis(10)), "half of {}", ids.len());
    assert_eq!(ids.iter().filter(|&&id| ct.get(id).is_some()).count(), ids.len() / 2);

    // One less than half: 10 ms more than the last time. Those that a flow pins are not expired.
    let now = now + Duration::from_millis(10);
    let ids = slots(2 * run);
    for (n, &id) in ids.iter().enumerate() {
        ct.modify(id, |c| c.expires = if n < ids.len() / 2 - 1 || n == ids.len() - 1 { now } else { secs(100) }).unwrap();
    }
    assert!(ct.pin(ids[ids.len() - 1], Token::new(TokenKind::Tcp, 1, 1)));
    let mut due = ct.reap(now).unwrap();
    assert_eq!(due, now + Duration::from_millis(20));

    // Nothing at all, in runs that follow: one step each to the longest interval.
    let mut last = Duration::from_millis(20);
    while due < secs(25) {
        let next = ct.reap(due).unwrap();
        let interval = next.since(due);
        assert_eq!(interval, (last + Duration::from_millis(10)).min(most));
        (due, last) = (next, interval);
    }
    assert_eq!(last, most);
}

/// Row 28: asking for an original destination before anything is tracked, and for what is not translated.
#[test]
fn row_28_original_destinations() {
    use crate::conntrack::OriginalDstError::{NotConnected, NotTranslated};
    let ct = table(64);
    let t = |skb: &crate::skb::Skb<'_>| crate::conntrack::tuple::of(skb).unwrap();
    let first = datagram(client(1), server());
    assert_eq!(ct.original_dst(secs(0), &t(&first)), Err(NotConnected));
    known(&ct, secs(0), first.clone());
    assert_eq!(ct.original_dst(secs(0), &t(&first)), Err(NotTranslated));
    assert_eq!(ct.original_dst(secs(30), &t(&first)), Err(NotConnected));
    let proxy = Endpoint::new(client(0).addr, 3128);
    let mut redirected = translated(&ct, secs(40), datagram(client(2), server()), |c| {
        (c.tuples[1].src, c.tuples[1].sport) = (proxy.addr.into(), proxy.port);
        c.status.set(Status::DST_NAT);
    });
    ct.confirm(secs(40), &mut redirected).unwrap();
    assert_eq!(ct.original_dst(secs(40), &t(&datagram(proxy, client(2)))), Ok(server()));
}

/// Row 31: a first packet that is dropped leaves nothing behind.
#[test]
fn row_31_dropped_first_packets_leave_nothing() {
    let ct = table(4);
    for n in 0..100 {
        let mut skb = datagram(client(n), server());
        ct.track(secs(0), &mut skb).unwrap();
    }
    assert!(ct.is_empty() && ct.tables().is_none());
}

/// Row 32: packets renew connections that are not translated.
#[test]
fn row_32_untranslated_connections_are_renewed() {
    let ct = table(4);
    let (id, _) = known(&ct, secs(0), datagram(client(1), server()));
    for n in 1..20 {
        reap_until(&ct, secs(20 * n));
        assert_eq!(known(&ct, secs(20 * n), datagram(client(1), server())).0, id);
    }
}
