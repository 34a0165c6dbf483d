//! Connection tracking shared by real threads. (Small cases in every interleaving: `./test.sh model`.)

use hibernet_netstack::Time;
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
