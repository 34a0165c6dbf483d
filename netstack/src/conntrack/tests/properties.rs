//! The table against a naive model, under random operations.

use super::kit::*;
use crate::Time;
use crate::conntrack::{CtInfo, Dir, Track};
use crate::edge::{Token, TokenKind};
use crate::skb::Skb;
use core::time::Duration;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Connections that the operations are about.
const NAMES: u32 = 24;

#[derive(Clone, Debug)]
enum Op {
    /// A datagram from client to server, or back.
    Packet(u32, bool),
    /// A datagram whose first phase happens, and that is dropped then.
    Dropped(u32),
    Remove(u32),
    Pin(u32),
    Unpin(u32),
    Wait(u64),
    Reap,
    Quiesce,
    Restart,
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..NAMES, any::<bool>()).prop_map(|(n, back)| Op::Packet(n, back)),
        1 => (0..NAMES).prop_map(Op::Dropped),
        2 => (0..NAMES).prop_map(Op::Remove),
        1 => (0..NAMES).prop_map(Op::Pin),
        1 => (0..NAMES).prop_map(Op::Unpin),
        6 => (1_u64..40_000).prop_map(Op::Wait),
        4 => Just(Op::Reap),
        1 => Just(Op::Quiesce),
        1 => Just(Op::Restart),
        1 => Just(Op::Flush),
    ]
}

/// What the model knows of one connection.
#[derive(Clone, Copy, Debug)]
struct Entry {
    expires: Time,
    stream_after: Time,
    answered: bool,
    pinned: bool,
    /// The first packet came from the server.
    reversed: bool,
}

impl Entry {
    fn live(&self, now: Time) -> bool {
        self.pinned || self.expires > now
    }
}

fn skb(n: u32, back: bool) -> Skb<'static> {
    if back { datagram(server(), client(n)) } else { datagram(client(n), server()) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn behaves_as_the_model(ops in prop::collection::vec(op(), 1..150), max in 24_u32..80) {
        let ct = table(max);
        let mut model: BTreeMap<u32, Entry> = BTreeMap::new();
        let mut now = secs(1);
        for op in ops {
            match op {
                Op::Packet(n, back) => {
                    let track = pass(&ct, now, skb(n, back)).unwrap();
                    let Track::Known { info, .. } = track else { panic!("{track:?}") };
                    let wanted = match model.get_mut(&n).filter(|e| e.live(now)) {
                        None => {
                            let (expires, stream_after) = (now + Duration::from_secs(30), now + Duration::from_secs(2));
                            model.insert(n, Entry { expires, stream_after, answered: false, pinned: false, reversed: back });
                            CtInfo::New
                        }
                        Some(e) => {
                            let dir = if back == e.reversed { Dir::Original } else { Dir::Reply };
                            let stream = e.answered && now > e.stream_after;
                            e.expires = now + Duration::from_secs(if stream { 120 } else { 30 });
                            e.answered |= dir == Dir::Reply;
                            match dir {
                                Dir::Reply => CtInfo::EstablishedReply,
                                Dir::Original if e.answered => CtInfo::Established,
                                Dir::Original => CtInfo::New,
                            }
                        }
                    };
                    prop_assert_eq!(info, wanted);
                }
                Op::Dropped(n) => {
                    // A packet of a connection that is there would renew it.
                    if !model.get(&n).is_some_and(|e| e.live(now)) {
                        ct.track(now, &mut skb(n, false)).unwrap();
                    }
                }
                Op::Remove(n) => {
                    let id = ct.find(now, &crate::conntrack::tuple::of(&skb(n, true)).unwrap());
                    let live = model.remove(&n).is_some_and(|e| e.live(now));
                    prop_assert_eq!(id.and_then(|(id, _)| ct.remove(id)).is_some(), live);
                }
                Op::Pin(n) => {
                    let id = ct.find(now, &crate::conntrack::tuple::of(&skb(n, false)).unwrap());
                    let entry = model.get_mut(&n).filter(|e| e.live(now));
                    prop_assert_eq!(id.is_some(), entry.is_some());
                    if let (Some((id, _)), Some(e)) = (id, entry) {
                        prop_assert!(ct.pin(id, Token::new(TokenKind::Tcp, n, 0)));
                        e.pinned = true;
                    }
                }
                Op::Unpin(n) => {
                    let id = ct.find(now, &crate::conntrack::tuple::of(&skb(n, false)).unwrap());
                    if let (Some((id, _)), Some(e)) = (id, model.get_mut(&n)) {
                        ct.unpin(now, id);
                        e.pinned = false;
                    }
                }
                Op::Wait(ms) => now = now + Duration::from_millis(ms),
                Op::Reap => {
                    ct.reap(now);
                }
                Op::Quiesce => ct.quiesce(),
                Op::Restart => ct.restart(now),
                Op::Flush => {
                    ct.flush();
                    model.clear();
                }
            }
            // What timed out may be there still, what lives must be; and the table shows the same from all sides.
            let live: Vec<u32> = model.iter().filter(|(_, e)| e.live(now)).map(|(n, _)| *n).collect();
            prop_assert!(ct.len() >= live.len() && ct.len() <= NAMES as usize);
            let mut shown = Vec::new();
            let mut from = Some(0);
            while let Some(at) = from {
                from = ct.dump(now, at, 7, |_, c| shown.push(*c));
            }
            prop_assert_eq!(shown.len(), live.len());
            for (&n, e) in &model {
                for back in [false, true] {
                    let found = conn_of(&ct, now, &skb(n, back));
                    let dir = if back == e.reversed { Dir::Original } else { Dir::Reply };
                    prop_assert_eq!(found.map(|(c, d)| (c.expires, d)), e.live(now).then_some((e.expires, dir)));
                }
            }
        }
        // Everything goes in the end, and nothing is left in the buckets.
        for n in 0..NAMES {
            if let Some((id, _)) = ct.find(now, &crate::conntrack::tuple::of(&skb(n, false)).unwrap()) {
                ct.unpin(now, id);
            }
        }
        ct.restart(now);
        reap_until(&ct, now + Duration::from_secs(120 + 61));
        prop_assert_eq!(ct.len(), 0);
        if let Some(t) = ct.tables() {
            let left: u32 = (0..ct.buckets()).filter_map(|b| t.buckets.get(b)).map(|b| b.lock().len(&t.arena)).sum();
            prop_assert_eq!(left, 0);
        }
    }

    /// Long chains, which a keyed hash does not let happen: entries come and go in any order.
    #[test]
    fn buckets_keep_what_they_are_given(ops in prop::collection::vec((0_u32..40, any::<bool>()), 1..300)) {
        use crate::conntrack::bucket::{Bucket, entry};
        let arena = crate::conntrack::slot::Arena::new(64, 0);
        let bucket = Bucket::default();
        let Track::Fresh { conn, .. } = translated(&table(1), secs(0), skb(0, false), |_| ()).track else { panic!() };
        let mut model = std::collections::BTreeSet::new();
        for (n, add) in ops {
            // Some have the same tag, some the same hash.
            let hash = |n: u32| (n % 7) | ((n % 3) << 16);
            let e = entry(n, n & 1);
            if add && model.insert(n) {
                arena.occupy(n, &conn, [hash(n); 2]);
                bucket.lock().insert(&arena, e, hash(n));
            } else if !add {
                model.remove(&n);
                bucket.lock().remove(&arena, e);
                if let Some(held) = arena.hold(n) {
                    arena.vacate(held);
                }
            }
            prop_assert_eq!(bucket.lock().len(&arena) as usize, model.len());
            for n in 0..40 {
                let found = bucket.search(&arena, hash(n), |e| (e == entry(n, n & 1)).then_some(()));
                prop_assert_eq!(found.is_some(), model.contains(&n));
            }
        }
    }
}
