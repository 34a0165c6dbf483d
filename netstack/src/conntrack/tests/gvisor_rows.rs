//! Defects of the table that this one starts from, by the rows of `gvisor.md` section 3: each test fails on what its row describes.

use super::kit::*;
use crate::conntrack::{CtInfo, Dir, Status, Track};
use crate::tuple::Endpoint;

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
    let t = ct.tables().unwrap();
    let left: u32 = (0..64).filter_map(|b| t.buckets.get(b)).map(|b| b.lock().len(&t.arena)).sum();
    assert_eq!(left, 0);
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
