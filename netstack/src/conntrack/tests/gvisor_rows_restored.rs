//! Rows of `gvisor.md` section 3 that are about saving and restoring: each test fails on what its row describes.

use super::kit::*;
use crate::conntrack::image::{Capture, Family, Head};
use crate::conntrack::{Conntrack, CtConfig, CtInfo, Status};
use crate::rng::Key;
use crate::time::Time;
use crate::tuple::Endpoint;
use crate::wire::tcp::Flags;

/// A table of the image of another, under another key, at a time.
fn restored(ct: &Conntrack, now: Time) -> Conntrack {
    let image = ct.save();
    let (v4, v6) = (image.records(Family::V4).to_vec(), image.records(Family::V6).to_vec());
    Conntrack::load(ct.config().clone(), Key(77, 78), now, image.head().clone(), &v4, &v6).unwrap()
}

fn entries(ct: &Conntrack) -> u32 {
    let t = ct.tables().unwrap();
    (0..ct.buckets()).filter_map(|b| t.buckets.get(b)).map(|b| b.lock().len(&t.arena)).sum()
}

/// Row 1: times come back as they were; an idle connection is gone when its time is up, not decades later.
#[test]
fn row_01_times_survive_and_idle_connections_expire() {
    for at in [0, 1, 999, 1_700_000_000, 8_000_000_000] {
        let ct = table(64);
        let now = secs(at);
        let (idle, _) = known(&ct, now, datagram(client(1), server()));
        let tcp = establish(&ct, now, client(2), server());
        let ct2 = restored(&ct, now);
        for id in [idle, tcp] {
            assert_eq!(ct2.get(id), ct.get(id));
        }
        assert!(ct2.find(secs(at + 29), &ct.get(idle).unwrap().tuples[0]).is_some());
        reap_until(&ct2, secs(at + 121));
        assert!(ct2.get(idle).is_none() && ct2.get(tcp).is_some());
    }
}

/// Row 2: a restored connection has as long to live as it had at the freeze, however long the image lay about: only stack time counts.
#[test]
fn row_02_sleep_does_not_age() {
    let ct = table(64);
    let (id, _) = known(&ct, secs(100), datagram(client(1), server()));
    let ct = restored(&restored(&ct, secs(120)), secs(120));
    assert_eq!(ct.get(id).unwrap().expires.since(secs(120)).as_secs(), 10);
    assert_eq!(known(&ct, secs(129), datagram(client(1), server())), (id, CtInfo::New));
}

/// Row 4: what timed out before the freeze goes after it, in one turn.
#[test]
fn row_04_one_turn_after_a_restore_reaps_everything() {
    let ct = table(64);
    for n in 0..64 {
        known(&ct, secs(0), datagram(client(n), server()));
    }
    let ct = restored(&ct, secs(50));
    assert_eq!(entries(&ct), 128);
    reap_until(&ct, secs(50 + 61));
    assert_eq!((ct.len(), ct.counters().expired, entries(&ct)), (0, 64, 0));
}

/// Row 6: a translated connection is restored into the buckets of both its tuples, and leaves those alone.
#[test]
fn row_06_restored_translations_stand_in_the_right_buckets() {
    let ct = table(64);
    let gateway = |n: u16| Endpoint::new(server().addr, 50_000 + n);
    for n in 0..14_u16 {
        let mut skb = translated(&ct, secs(0), datagram(client(n.into()), server()), |c| {
            (c.tuples[1].dst, c.tuples[1].dport) = (gateway(n).addr.into(), gateway(n).port);
            c.status.set(Status::SRC_NAT);
            c.status.set(Status::SRC_NAT_DONE);
        });
        ct.confirm(secs(0), &mut skb).unwrap();
        known(&ct, secs(0), datagram(client(100 + u32::from(n)), server()));
    }
    let ct = restored(&ct, secs(1));
    assert_eq!((ct.len(), entries(&ct)), (28, 56));
    for n in 0..14 {
        let (id, info) = known(&ct, secs(1), datagram(server(), gateway(n)));
        assert_eq!(info, CtInfo::EstablishedReply);
        let source = crate::conntrack::tuple::of(&datagram(client(n.into()), server())).unwrap();
        assert_eq!(ct.source_mapping(secs(1), &source, |_, _| true), Some((gateway(n).addr.into(), gateway(n).port)));
        ct.remove(id).unwrap();
        assert!(ct.source_mapping(secs(1), &source, |_, _| true).is_none());
        assert_eq!(entries(&ct), 2 * ct.len() as u32);
    }
    (0..14).for_each(|n| assert!(conn_of(&ct, secs(1), &datagram(server(), client(100 + n))).is_some()));
}

/// Rows 8, 9, 10: a table is saved any number of times, before the reaper ran, while it is in the middle of a run, and quiesced; each time it goes on
/// as if nothing had happened, and so does what was saved.
#[test]
fn rows_08_09_10_saving_changes_nothing() {
    let ct = Conntrack::new(CtConfig { max: 100_000, ..CtConfig::default() }, Key(1, 2));
    (0..10).for_each(|_| assert_eq!(*ct.save().head(), Head::default()));
    for n in 0..90_000 {
        known(&ct, secs(1), datagram(client(n), server()));
    }
    let mut now = secs(32);
    let mut in_progress = 0;
    for round in 0..10 {
        let due = ct.reap_due();
        let before = (ct.len(), ct.counters());
        let image = ct.save();
        in_progress += u32::from(image.head().reaper.left > 0);
        assert_eq!((ct.len(), ct.counters(), ct.reap_due()), (before.0, before.1, due), "round {round}");
        let other = restored(&ct, now);
        assert_eq!((other.len(), other.counters(), other.reap_due()), (before.0, before.1, due));
        // Both take the same steps at the same times.
        if round % 3 == 2 {
            ct.quiesce();
            assert_eq!(ct.save().head(), image.head());
            ct.restart(now);
        }
        let mut due = ct.reap(now);
        let mut other_due = other.reap(now);
        for _ in 0..4 {
            assert_eq!((due, ct.len()), (other_due, other.len()));
            now = now.max(due.unwrap());
            (due, other_due) = (ct.reap(now), other.reap(now));
        }
        now = now.max(due.unwrap());
    }
    assert!(in_progress > 0, "never in the middle of a run");
    reap_until(&ct, now.max(secs(32 + 120)));
    assert_eq!((ct.len(), entries(&ct)), (0, 0));
}

/// Rows 7, 9: packets and the reaper go on between the steps of a capture, and after one that came to nothing.
#[test]
fn rows_07_09_a_capture_stands_in_nobodys_way() {
    let ct = table(256);
    for round in 0..10_u32 {
        let mut capture = Capture::begin(&ct);
        for n in 0..50 {
            let now = secs(u64::from(round) * 10 + 1);
            known(&ct, now, datagram(client(n), server()));
            capture.step(&ct, 3).unwrap();
            ct.reap(now);
        }
        if round % 2 == 0 {
            assert_eq!(capture.finish(&ct).unwrap().head().v4, 50);
        }
    }
    reap_until(&ct, secs(91 + 121));
    assert_eq!(ct.len(), 0);
}

/// Row 11: a restored TCP connection makes its next step, by its own windows.
#[test]
fn row_11_the_next_segment_moves_a_restored_machine() {
    let ct = table(64);
    let id = establish(&ct, secs(0), client(1), server());
    let ct = restored(&ct, secs(1));
    assert_eq!(
        known(&ct, secs(1), segment(client(1), server(), Flags::ACK | Flags::PSH, 101, 501, 10)),
        (id, CtInfo::Established)
    );
    let invalid = ct.counters().invalid;
    pass(&ct, secs(1), segment(client(1), server(), Flags::ACK, 0x4000_0000, 501, 0)).unwrap();
    assert_eq!(ct.counters().invalid, invalid + 1, "the window is known");
    known(&ct, secs(1), segment(client(1), server(), Flags::FIN | Flags::ACK, 111, 501, 0));
    let ct = restored(&ct, secs(2));
    known(&ct, secs(2), segment(server(), client(1), Flags::FIN | Flags::ACK, 501, 112, 0));
    known(&ct, secs(2), segment(client(1), server(), Flags::ACK, 112, 502, 0));
    assert_eq!(ct.get(id).unwrap().expires, secs(2 + 120), "TIME_WAIT");
}

/// Row 12: restoring a table that was never used starts no reaper; one that ran goes on where it stood, not at the first slot.
#[test]
fn row_12_a_restored_reaper_stands_where_it_stood() {
    let unused = restored(&table(64), secs(1));
    assert_eq!((unused.reap_due(), unused.reap(secs(500))), (None, None));
    known(&unused, secs(6), datagram(client(0), server()));
    assert_eq!(unused.reap_due(), Some(secs(11)));

    let ct = table(1024);
    for n in 0..1024 {
        known(&ct, secs(0), datagram(client(n), server()));
    }
    reap_until(&ct, secs(20));
    let standing = ct.save().head().reaper;
    assert!(standing.cursor > 0 && standing.due.is_some());
    assert_eq!(restored(&ct, secs(20)).save().head().reaper, standing);
}

/// Row 23: a restored table has another key: its connections are found in other buckets, and two of one image differ.
#[test]
fn row_23_each_restored_table_is_keyed_anew() {
    let ct = table(1024);
    for n in 0..500 {
        known(&ct, secs(0), datagram(client(n), server()));
    }
    let image = ct.save();
    let v4 = image.records(Family::V4).to_vec();
    let load = |key| Conntrack::load(ct.config().clone(), key, secs(0), image.head().clone(), &v4, &[]).unwrap();
    let (a, b) = (load(Key(3, 4)), load(Key(5, 6)));
    let spread = |ct: &Conntrack| -> Vec<u32> {
        let tuple = |n| crate::conntrack::tuple::of(&datagram(client(n), server())).unwrap();
        (0..500).map(|n| ct.bucket_of(ct.hash(&tuple(n)) as u32)).collect()
    };
    for (x, y) in [(&ct, &a), (&ct, &b), (&a, &b)] {
        assert!(spread(x).iter().zip(spread(y)).filter(|(x, y)| **x == *y).count() < 20);
    }
    for n in 0..500 {
        assert!(conn_of(&a, secs(0), &datagram(client(n), server())).is_some());
        assert!(conn_of(&b, secs(0), &datagram(server(), client(n))).is_some());
    }
}
