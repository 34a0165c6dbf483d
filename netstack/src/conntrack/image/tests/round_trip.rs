//! What goes into an image comes out of it.

use super::kit::*;
use crate::conntrack::image::{Family, Head, record_size};
use crate::conntrack::{ConnId, Conntrack, Dir};
use crate::rng::Key;
use proptest::prelude::*;

/// Everything that is in a table's slots.
fn slots(table: &Conntrack) -> Vec<(ConnId, crate::conntrack::Conn)> {
    let Some(t) = table.tables() else { return Vec::new() };
    (0..t.arena.used()).filter_map(|i| t.arena.hold(i).map(|h| (h.id, *h.conn))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_connection_comes_back(seeds in prop::collection::vec(seed(), 0..300), remove in 0_usize..6, step in 1_u32..200) {
        let a = table(512, &seeds, remove);
        let saved = Saved::of(&a);
        prop_assert!(Saved::in_steps(&a, step) == saved);
        let b = saved.load(512).unwrap();
        prop_assert!(slots(&a) == slots(&b));
        prop_assert_eq!((a.len(), a.counters(), a.reap_due()), (b.len(), b.counters(), b.reap_due()));
        prop_assert!(Saved::of(&b) == saved);
        for (id, conn) in slots(&a) {
            prop_assert_eq!(b.get(id), Some(conn));
            for (dir, tuple) in [Dir::Original, Dir::Reply].into_iter().zip(&conn.tuples) {
                prop_assert_eq!(b.find(NOW, tuple), a.find(NOW, tuple), "{:?}", dir);
            }
        }
        // Empty slots are there to be taken, as many as before, and never under a handle that was given out.
        let mut closed = [Vec::new(), Vec::new()];
        a.take_closed(0, &mut closed[0]);
        b.take_closed(0, &mut closed[1]);
        prop_assert_eq!(&closed[0], &closed[1]);
        let old: Vec<_> = slots(&a).iter().map(|(id, _)| *id).collect();
        for n in b.len() as u16..512 {
            let s = Seed { name: 1000 + n, kind: 2, v6: false, zones: [9, 9], nat: 0, mark: 0, pinned: false, bits: 1 << 30 };
            let id = add(&b, &s).unwrap();
            prop_assert!(!old.contains(&id));
        }
        prop_assert_eq!(b.len(), 512);
        b.flush();
        let t = b.tables().unwrap();
        let left: u32 = (0..b.buckets()).filter_map(|n| t.buckets.get(n)).map(|x| x.lock().len(&t.arena)).sum();
        prop_assert_eq!(left, 0);
    }

    /// Connections of one source are asked in the same order after a restore.
    #[test]
    fn the_youngest_mapping_is_asked_first(order in prop::collection::vec((0_u16..6, any::<bool>()), 1..40)) {
        let a = Conntrack::new(config(64), Key(1, 2));
        for (n, remove) in order {
            let mut c = conn(&Seed { name: 5, kind: 2, v6: false, zones: [0, 0], nat: 1, mark: 0, pinned: false, bits: 1 << 40 });
            c.tuples[0].dport = n;
            (c.tuples[1].sport, c.tuples[1].dport) = (n, 1000 + n);
            match a.find(NOW, &c.tuples[0]) {
                Some((id, _)) if remove => prop_assert!(a.remove(id).is_some()),
                Some(_) => {}
                None => prop_assert!(a.adopt(NOW, c).is_ok()),
            }
        }
        let b = Saved::of(&a).load(64).unwrap();
        let asked = |ct: &Conntrack| {
            let mut asked = Vec::new();
            let c = conn(&Seed { name: 5, kind: 2, v6: false, zones: [0, 0], nat: 1, mark: 0, pinned: false, bits: 1 << 40 });
            ct.source_mapping(NOW, &c.tuples[0], |_, port| {
                asked.push(port);
                false
            });
            asked
        };
        prop_assert_eq!(asked(&a), asked(&b));
        prop_assert_eq!(asked(&a).len(), a.len());
    }
}

#[test]
fn records_can_be_read_in_pieces() {
    let seeds: Vec<Seed> = (0..3000)
        .map(|n| Seed { name: n, kind: 2, v6: n % 7 == 0, zones: [0, 0], nat: 0, mark: 1, pinned: false, bits: 1 << 40 })
        .collect();
    let a = table(4096, &seeds, 3);
    let image = a.save();
    for family in [Family::V4, Family::V6] {
        let records = image.records(family);
        let whole = records.to_vec();
        let size = record_size(family);
        for piece in [1, 7, 512, 5000] {
            let mut at = 0;
            let mut out = vec![0; piece * size + 3];
            loop {
                let n = records.fill(at, &mut out) as usize;
                assert_eq!(n, piece.min((records.len() - at) as usize));
                assert_eq!(out[..n * size], whole[at as usize * size..][..n * size]);
                if n == 0 {
                    break;
                }
                at += n as u32;
            }
            assert_eq!(at, records.len());
        }
    }
}

#[test]
fn an_unused_table_is_saved_any_number_of_times_and_allocates_nothing() {
    let mut table = Conntrack::new(config(64), Key(1, 2));
    for n in 0..10 {
        let saved = Saved::of(&table);
        assert_eq!(saved, Saved { head: Head::default(), v4: Vec::new(), v6: Vec::new(), counts: None });
        assert!(table.tables().is_none());
        table = saved.load_under(64, Key(n, 3)).unwrap();
        assert!(table.tables().is_none() && table.reap_due().is_none());
    }
}

/// Handles that flows still have are not given out again by a table that does not know their slots' past.
#[test]
fn stale_handles_stay_stale() {
    let s = |n| Seed { name: n, kind: 2, v6: false, zones: [0, 0], nat: 0, mark: 0, pinned: false, bits: 1 << 40 };
    let mut table = Conntrack::new(config(64), Key(1, 2));
    let mut stale = Vec::new();
    for round in 0..5 {
        let ids: Vec<_> = (0..64).filter_map(|n| add(&table, &s(n))).collect();
        assert_eq!(ids.len(), 64);
        assert!(ids.iter().all(|id| !stale.contains(id)), "round {round}");
        table.flush();
        stale.extend(ids);
        table = Saved::of(&table).load(64).unwrap();
        assert!(stale.iter().all(|&id| table.get(id).is_none()));
    }
}

#[test]
fn two_tables_of_one_image_are_independent() {
    let seeds: Vec<Seed> = (0..200)
        .map(|n| Seed { name: n, kind: 2, v6: false, zones: [0, 0], nat: 1, mark: 1, pinned: false, bits: 1 << 40 })
        .collect();
    let saved = Saved::of(&table(512, &seeds, 0));
    let (a, b) = (saved.load_under(512, Key(5, 6)).unwrap(), saved.load_under(512, Key(7, 8)).unwrap());
    let spread = |t: &Conntrack| slots(t).iter().map(|(_, c)| t.bucket_of(t.hash(&c.tuples[0]) as u32)).collect::<Vec<_>>();
    assert!(spread(&a).iter().zip(spread(&b)).filter(|(a, b)| **a == *b).count() < 20);
    a.flush();
    assert_eq!((a.len(), b.len()), (0, 200));
    assert!(Saved::of(&b) == saved);
}
