//! Connection tracking shared by real threads. (Small cases in every interleaving: `./test.sh model`.)

use hibernet_netstack::Time;
use hibernet_netstack::conntrack::image::{Capture, Family, Loader, RECORD_V4};
use hibernet_netstack::conntrack::{Conntrack, CtConfig, Dir, Track};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::Key;
use hibernet_netstack::skb::Skb;
use hibernet_netstack::tuple::proto;
use hibernet_netstack::wire::udp;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

fn datagram(n: u32, dir: Dir) -> Skb<'static> {
    let client = (IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)), 4000);
    let server = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 53);
    let (src, dst) = if dir == Dir::Original { (client, server) } else { (server, client) };
    Skb {
        input: None,
        output: None,
        src_mac: None,
        src: src.0,
        dst: dst.0,
        protocol: proto::UDP,
        sport: src.1,
        dport: dst.1,
        l4: L4::Udp(udp::Header { src_port: src.1, dst_port: dst.1, len: 16, checksum: 0 }),
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

fn pass(ct: &Conntrack, now: Time, mut skb: Skb<'static>) -> Track {
    if ct.track(now, &mut skb).is_err() || ct.confirm(now, &mut skb).is_err() {
        return Track::None;
    }
    skb.track
}

/// gvisor.md, row 7: look-ups, inserts, removals, reaping and quiescing at the same time come to an end, and lose nothing that lives.
#[test]
fn everything_at_once() {
    const LIVE: u32 = 64;
    let ct = Conntrack::new(CtConfig { max: 512, ..CtConfig::default() }, Key(1, 2));
    let clock = AtomicU64::new(1000);
    let over = AtomicBool::new(false);
    let now = || Time::from_millis(clock.load(Relaxed));
    // These are answered and go on for longer than two seconds, so they are ASSURED.
    let renew = || {
        for n in 0..LIVE {
            for dir in [Dir::Original, Dir::Reply] {
                assert!(matches!(pass(&ct, now(), datagram(n, dir)), Track::Known { .. }), "{n}");
            }
        }
    };
    renew();
    clock.fetch_add(3000, Relaxed);
    renew();
    renew();
    let ids: Vec<_> = (0..LIVE).map(|n| pass(&ct, now(), datagram(n, Dir::Original))).collect();
    std::thread::scope(|s| {
        // Many others, that time out, are dropped early, or are removed.
        for thread in 1..=2 {
            let (ct, over, now) = (&ct, &over, &now);
            s.spawn(move || {
                let mut n = thread << 20;
                while !over.load(Relaxed) {
                    n += 1;
                    if let Track::Known { id, .. } = pass(ct, now(), datagram(n, Dir::Original))
                        && n % 3 == 0
                    {
                        ct.remove(id);
                    }
                    assert!(ct.len() <= 512);
                }
            });
        }
        s.spawn(|| {
            while !over.load(Relaxed) {
                ct.reap(now());
            }
        });
        s.spawn(|| {
            while !over.load(Relaxed) {
                ct.quiesce();
                let reaped = ct.reap(now());
                assert_eq!(reaped, None);
                ct.restart(now());
            }
        });
        for _ in 0..300 {
            clock.fetch_add(1000, Relaxed);
            renew();
        }
        over.store(true, Relaxed);
    });
    for (n, track) in ids.iter().enumerate() {
        let Track::Known { id, .. } = track else { panic!("{track:?}") };
        assert!(ct.get(*id).is_some(), "connection {n} is another one now");
    }
    // When it is over, what is left goes, and its memory is free.
    ct.restart(now());
    while !ct.is_empty() {
        let due = ct.reap_due().expect("connections are there");
        clock.store(due.as_nanos() / 1_000_000 + 1, Relaxed);
        ct.reap(now());
    }
    renew();
    assert_eq!(ct.len(), LIVE as usize);
}

/// A capture beside packets, removals and the reaper has, when all stand still, what the table has; ten times in a row, every other one thrown
/// away half-way.
#[test]
fn a_capture_beside_everything_is_complete() {
    let ct = Conntrack::new(CtConfig { max: 4096, ..CtConfig::default() }, Key(1, 2));
    let clock = AtomicU64::new(1000);
    let now = || Time::from_millis(clock.load(Relaxed));
    for round in 0..10_u32 {
        let (over, packets) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut capture = Capture::begin(&ct);
        std::thread::scope(|s| {
            for thread in 0..2_u32 {
                let (ct, over, packets, now) = (&ct, &over, &packets, &now);
                s.spawn(move || {
                    let mut n = round;
                    while !over.load(Relaxed) {
                        packets.fetch_add(1, Relaxed);
                        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let dir = if n & 1 == 0 { Dir::Original } else { Dir::Reply };
                        match pass(ct, now(), datagram(thread << 20 | n >> 21, dir)) {
                            Track::Known { id, .. } if n >> 28 == 0 => drop(ct.remove(id)),
                            Track::Known { id, .. } if n >> 28 == 1 => drop(ct.modify(id, |c| c.mark = n)),
                            _ => {}
                        }
                    }
                });
            }
            s.spawn(|| {
                while !over.load(Relaxed) {
                    clock.fetch_add(1, Relaxed);
                    ct.reap(now());
                }
            });
            while packets.load(Relaxed) < 20_000 {
                capture.step(&ct, 97).expect("the only capture");
            }
            over.store(true, Relaxed);
        });
        if round % 2 == 1 {
            continue;
        }
        let live = capture.finish(&ct).expect("the only capture");
        let exact = ct.save();
        assert_eq!(live.head(), exact.head());
        let (live, v4) = (live.records(Family::V4).to_vec(), exact.records(Family::V4).to_vec());
        assert_eq!(live.len(), v4.len());
        for (a, b) in live.chunks(RECORD_V4).zip(v4.chunks(RECORD_V4)) {
            let expires = |r: &[u8]| u64::from_le_bytes(r[8..16].try_into().expect("8 bytes"));
            assert!(a[..8] == b[..8] && a[16..] == b[16..], "{a:?} {b:?}");
            // Packets that only renew it are noted once a second.
            assert!(expires(a) <= expires(b) && expires(b) - expires(a) < 1_000_000_000);
        }
        // Two threads load what was saved.
        let loader = Loader::new(ct.config().clone(), Key(3, 4), now(), exact.head().clone()).expect("what was saved");
        let half = v4.len() / RECORD_V4 / 2;
        std::thread::scope(|s| {
            s.spawn(|| loader.insert(Family::V4, 0, &v4[..half * RECORD_V4]).expect("what was saved"));
            loader.insert(Family::V4, half as u32, &v4[half * RECORD_V4..]).expect("what was saved");
        });
        let loaded = loader.finish().expect("what was saved").save();
        assert!(loaded.head() == exact.head() && loaded.records(Family::V4).to_vec() == v4);
    }
}
