//! The locks of connection tracking, in every interleaving of two threads (up to a number of preemptions, see `check`) on tables of one
//! bucket or two: `./test.sh model`. Nothing of this is built otherwise.
#![cfg(loom)]

use core::net::{IpAddr, Ipv4Addr};
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::image::{Capture, Family, Head, Image};
use hibernet_netstack::conntrack::{ConnId, Conntrack, CtConfig, Dir, Status, Track, tuple};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::Key;
use hibernet_netstack::skb::Skb;
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_netstack::verdict::DropReason;
use hibernet_netstack::wire::udp;
use loom::sync::Arc;
use loom::thread;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Tables have a quarter as many buckets as connections here.
const ONE_BUCKET: u32 = 4;
const TWO_BUCKETS: u32 = 8;

const START: Time = Time::from_millis(1000);
/// When what was confirmed at the start has timed out, and the reaper is due.
const LATE: Time = Time::from_millis(31_000);

/// Checks all interleavings in which a thread is interrupted at most `LOOM_MAX_PREEMPTIONS` times (2). There must be `least` at least,
/// or less was checked than the test believes.
///
/// Loom notices that a write races with a read that came before only if nobody has read in between; so it is the thread that is spawned
/// that reads, and the one that spawns it that writes first.
fn check(least: u64, f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.max_branches = 100_000;
    model.preemption_bound = model.preemption_bound.or(Some(2));
    let count = std::sync::Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    model.check(move || {
        counted.fetch_add(1, Relaxed);
        f();
    });
    let count = count.load(Relaxed);
    println!("{count} interleavings");
    assert!(count >= least, "{count} interleavings only");
}

fn table(max: u32) -> Arc<Conntrack> {
    Arc::new(Conntrack::new(CtConfig { max, ..CtConfig::default() }, Key(1, 2)))
}

fn client(n: u16) -> Endpoint {
    Endpoint::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), n)
}

fn server() -> Endpoint {
    Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 53)
}

fn datagram(src: Endpoint, dst: Endpoint) -> Skb<'static> {
    let h = udp::Header { src_port: src.port, dst_port: dst.port, len: 16, checksum: 0 };
    Skb {
        input: None,
        output: None,
        src_mac: None,
        src: src.addr,
        dst: dst.addr,
        protocol: proto::UDP,
        sport: src.port,
        dport: dst.port,
        l4: L4::Udp(h),
        l4_bytes: &[],
        l4_len: 16,
        len: 36,
        tos: 0,
        hop_limit: 64,
        mark: 0,
        zones: [0, 0],
        track: Track::None,
        quoted: None,
        owner: None,
        cast: Default::default(),
        ip_bytes: &[],
        body: hibernet_netstack::edge::Payload::EMPTY,
        traced: false,
        altered: Default::default(),
    }
}

fn query(n: u16) -> Skb<'static> {
    datagram(client(n), server())
}

fn pass(ct: &Conntrack, now: Time, mut skb: Skb<'static>) -> Result<Track, DropReason> {
    ct.track(now, &mut skb)?;
    ct.confirm(now, &mut skb)?;
    Ok(skb.track)
}

fn find(ct: &Conntrack, now: Time, skb: &Skb<'_>) -> Option<Dir> {
    ct.find(now, &tuple::of(skb).expect("a tuple")).map(|(_, dir)| dir)
}

/// Both tuples find the connection, and only as often as there are connections.
fn assert_whole(ct: &Conntrack, now: Time, present: &[u16]) {
    for &n in present {
        assert_eq!(find(ct, now, &query(n)), Some(Dir::Original));
        assert_eq!(find(ct, now, &datagram(server(), client(n))), Some(Dir::Reply));
    }
    let mut shown = 0;
    ct.dump(now, 0, u32::MAX, |_, _| shown += 1);
    assert_eq!(shown, present.len());
}

/// A table with connections 1 and 2, and the entries of 3 in a chain; and the handle of 2.
fn chained() -> (Arc<Conntrack>, ConnId) {
    let ct = table(ONE_BUCKET);
    pass(&ct, START, query(1)).expect("room");
    let Ok(Track::Known { id, .. }) = pass(&ct, START, query(2)) else { panic!() };
    pass(&ct, START, query(3)).expect("room");
    (ct, id)
}

/// A connection is found all the time while another leaves its bucket, though its entry moves.
#[test]
fn a_live_connection_is_found_while_another_goes() {
    check(100, || {
        let (ct, id) = chained();
        let other = ct.clone();
        let t = thread::spawn(move || assert_eq!(find(&other, START, &datagram(server(), client(3))), Some(Dir::Reply)));
        assert!(ct.remove(id).is_some());
        t.join().expect("no panic");
        assert_whole(&ct, START, &[1, 3]);
    });
}

/// A connection is found all the time while another enters its bucket.
#[test]
fn a_live_connection_is_found_while_another_comes() {
    check(100, || {
        let (ct, _) = chained();
        let other = ct.clone();
        let t = thread::spawn(move || assert_eq!(find(&other, START, &query(3)), Some(Dir::Original)));
        pass(&ct, START, query(4)).expect("room");
        t.join().expect("no panic");
        assert_whole(&ct, START, &[1, 2, 3, 4]);
    });
}

/// Two first packets of one connection: one connection, which both have.
#[test]
fn first_packets_of_one_connection_share_it() {
    check(1000, || {
        let ct = table(ONE_BUCKET);
        let other = ct.clone();
        let t = thread::spawn(move || pass(&other, START, query(1)));
        let here = pass(&ct, START, query(1));
        let there = t.join().expect("no panic");
        let (Ok(Track::Known { id: a, .. }), Ok(Track::Known { id: b, .. })) = (here, there) else {
            panic!("{here:?} {there:?}")
        };
        assert_eq!((a, ct.len()), (b, 1));
        assert_whole(&ct, START, &[1]);
    });
}

/// Two connections that want the same reply tuple: one gets it, and of the other nothing is left.
#[test]
fn a_reply_tuple_has_one_owner() {
    check(1000, || {
        let ct = table(TWO_BUCKETS);
        let translated = |ct: &Conntrack, n| {
            let mut skb = query(n);
            ct.track(START, &mut skb)?;
            if let Track::Fresh { conn, .. } = &mut skb.track {
                conn.tuples[1].dport = 5353;
                conn.status.set(Status::SRC_NAT);
            }
            ct.confirm(START, &mut skb)
        };
        let other = ct.clone();
        let t = thread::spawn(move || translated(&other, 1));
        let results = [translated(&ct, 2), t.join().expect("no panic")];
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
        assert_eq!(ct.len(), 1);
        assert_eq!(find(&ct, START, &datagram(server(), client(5353))), Some(Dir::Reply));
        assert_eq!(find(&ct, START, &query(1)).is_some(), results[1].is_ok());
        assert_eq!(find(&ct, START, &query(2)).is_some(), results[0].is_ok());
    });
}

/// Connections whose buckets are the same two, in either order: nobody waits for ever.
#[test]
fn two_buckets_are_locked_in_order() {
    check(1000, || {
        let ct = table(TWO_BUCKETS);
        let other = ct.clone();
        // What is the original tuple of one is the reply's of the other.
        let t = thread::spawn(move || pass(&other, START, datagram(server(), client(1))).is_ok());
        assert!(pass(&ct, START, query(1)).is_ok());
        assert!(t.join().expect("no panic"));
        assert_eq!(ct.len(), 1);
    });
}

/// The reaper and a packet that begins the connection anew: the new one is there in the end, the old one is not.
#[test]
fn an_expired_connection_gives_way_once() {
    check(1000, || {
        let ct = table(ONE_BUCKET);
        let Ok(Track::Known { id, .. }) = pass(&ct, START, query(1)) else { panic!() };
        let other = ct.clone();
        let t = thread::spawn(move || other.reap(LATE));
        let Ok(Track::Known { id: new, .. }) = pass(&ct, LATE, query(1)) else { panic!() };
        t.join().expect("no panic");
        assert!(ct.get(id).is_none() && ct.get(new).is_some());
        assert_eq!(ct.len(), 1);
        assert_whole(&ct, LATE, &[1]);
    });
}

/// The reaper takes nothing that is alive, and a look-up beside it finds nothing that is not.
#[test]
fn reaping_beside_look_ups() {
    check(100, || {
        let ct = table(ONE_BUCKET);
        pass(&ct, START, query(1)).expect("room");
        pass(&ct, LATE, query(2)).expect("room");
        let other = ct.clone();
        let t = thread::spawn(move || while other.reap(LATE) == Some(LATE) {});
        assert_eq!(find(&ct, LATE, &query(1)), None);
        assert_eq!(find(&ct, LATE, &query(2)), Some(Dir::Original));
        t.join().expect("no panic");
        assert_whole(&ct, LATE, &[2]);
        assert_eq!(ct.len(), 1);
    });
}

/// A connection is removed once, whoever wants it: its slot is not given to two.
#[test]
fn a_connection_is_removed_once() {
    check(6, || {
        let ct = table(ONE_BUCKET);
        let Ok(Track::Known { id, .. }) = pass(&ct, START, query(1)) else { panic!() };
        let other = ct.clone();
        let t = thread::spawn(move || other.remove(id).is_some());
        let here = ct.remove(id).is_some();
        assert_ne!(here, t.join().expect("no panic"));
        assert_eq!(ct.len(), 0);
        pass(&ct, START, query(2)).expect("room");
        pass(&ct, START, query(3)).expect("room");
        assert_whole(&ct, START, &[2, 3]);
    });
}

/// When `quiesce` returns, no step of the reaper is in progress, and none comes before `restart`.
#[test]
fn nothing_is_reaped_while_quiesced() {
    check(6, || {
        let ct = table(ONE_BUCKET);
        pass(&ct, START, query(1)).expect("room");
        pass(&ct, START, query(2)).expect("room");
        let other = ct.clone();
        let t = thread::spawn(move || {
            for _ in 0..2 {
                other.reap(LATE);
            }
        });
        ct.quiesce();
        let then = (ct.len(), ct.counters().expired);
        assert_eq!(ct.reap(LATE), None);
        t.join().expect("no panic");
        assert_eq!((ct.len(), ct.counters().expired), then);
        ct.restart(LATE);
        for _ in 0..4 {
            ct.reap(ct.reap_due().expect("started").max(LATE));
        }
        assert_eq!(ct.len(), 0);
    });
}

/// A full table: whoever drops another's connection early, there are never more than fit.
#[test]
fn early_drop_keeps_the_cap() {
    check(1000, || {
        let ct = table(1);
        pass(&ct, START, query(1)).expect("room");
        let other = ct.clone();
        let t = thread::spawn(move || {
            let done = pass(&other, START, query(2));
            assert!(other.len() <= 1);
            done
        });
        let results = [pass(&ct, START, query(3)), t.join().expect("no panic")];
        assert!(results.iter().any(Result::is_ok), "{results:?}");
        assert_eq!(ct.len(), 1);
        let found = [1, 2, 3].into_iter().filter(|&n| find(&ct, START, &query(n)).is_some()).count();
        assert_eq!(found, 1);
    });
}

fn bytes(image: &Image) -> (Head, Vec<u8>) {
    (image.head().clone(), image.records(Family::V4).to_vec())
}

/// A capture goes through the table, and through what changed in it, while a thread does `change`: nothing of that is lost. Either is
/// done by the thread that is spawned, as each way loom finds others of the interleavings.
fn captured(least: [u64; 2], change: fn(&Conntrack, ConnId)) {
    fn steps(capture: &mut Capture, ct: &Conntrack) {
        // The second step looks for changes alone, unless there is a slot that never was in use.
        for _ in 0..2 {
            capture.step(ct, u32::MAX).expect("the only capture");
        }
    }
    let begin = || {
        let ct = table(ONE_BUCKET);
        let Ok(Track::Known { id, .. }) = pass(&ct, START, query(1)) else { panic!() };
        (Capture::begin(&ct), ct.clone(), ct, id)
    };
    let compare = |capture: Capture, ct: &Conntrack| {
        let image = bytes(&capture.finish(ct).expect("the only capture"));
        assert!(image == bytes(&ct.save()));
    };
    check(least[0], move || {
        let (mut capture, other, ct, id) = begin();
        let t = thread::spawn(move || {
            steps(&mut capture, &other);
            capture
        });
        change(&ct, id);
        compare(t.join().expect("no panic"), &ct);
    });
    check(least[1], move || {
        let (mut capture, other, ct, id) = begin();
        let t = thread::spawn(move || change(&other, id));
        steps(&mut capture, &ct);
        t.join().expect("no panic");
        compare(capture, &ct);
    });
}

#[test]
fn a_capture_loses_no_new_connection() {
    captured([40, 1], |ct, _| assert!(pass(ct, START, query(2)).is_ok()));
}

#[test]
fn a_capture_loses_no_modification() {
    captured([15, 25], |ct, id| {
        for mark in [1, 2] {
            assert!(ct.modify(id, |c| c.mark = mark).is_some());
        }
    });
}

#[test]
fn a_capture_loses_no_packet() {
    captured([8, 16], |ct, _| assert!(pass(ct, START, datagram(server(), client(1))).is_ok()));
}

#[test]
fn a_capture_loses_no_removal() {
    captured([8, 16], |ct, _| {
        ct.reap(LATE);
    });
}

/// A connection takes the slot of another that goes.
#[test]
fn a_capture_loses_no_successor() {
    captured([25, 60], |ct, id| {
        assert!(ct.remove(id).is_some());
        assert!(pass(ct, START, query(2)).is_ok());
    });
}
