//! One table, several threads: rows 7, 13.

use core::net::{IpAddr, Ipv4Addr};
use hibernet_netstack::conntrack::{ConnId, Conntrack, CtConfig, Dir, Status, Track};
use hibernet_netstack::iptables::Iface;
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::Key;
use hibernet_netstack::skb::Skb;
use hibernet_netstack::wire::udp;
use hibernet_netstack::{DropReason, Time};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

fn table(max: u32) -> Conntrack {
    Conntrack::new(CtConfig { max, ..CtConfig::default() }, Key(1, 2))
}

fn datagram(sport: u16, dport: u16) -> Skb<'static> {
    let end = |n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n));
    Skb {
        input: Some(Iface::Host0),
        output: None,
        src_mac: None,
        src: end(1),
        dst: end(2),
        protocol: 17,
        sport,
        dport,
        l4: L4::Udp(udp::Header { src_port: sport, dst_port: dport, len: 8, checksum: 0 }),
        l4_bytes: &[],
        l4_len: 8,
        len: 28,
        tos: 0,
        hop_limit: 64,
        mark: 0,
        zones: [0; 2],
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

/// The packet's connection, its destination translated to port `to` if it is the first.
fn pass(ct: &Conntrack, now: Time, mut skb: Skb<'static>, to: u16) -> Result<Track, DropReason> {
    ct.track(now, &mut skb)?;
    if let Track::Fresh { conn, .. } = &mut skb.track {
        conn.tuples[Dir::Reply as usize].sport = to;
        conn.status.set(Status::DST_NAT);
    }
    ct.confirm(now, &mut skb)?;
    Ok(skb.track)
}

/// Row 7: packets, the reaper, and one who quiesces the table all the time neither wait for each other in a circle nor lose what lives.
/// (A deadlock shows as a test that never ends.)
#[test]
fn row_07_look_ups_reaping_and_quiescing_beside_each_other_come_to_an_end() {
    let ct = table(512);
    let (clock, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let now = || Time::from_millis(clock.load(Relaxed));
    std::thread::scope(|s| {
        let packets: Vec<_> = (0..2_u16)
            .map(|thread| {
                let (ct, clock) = (&ct, &clock);
                s.spawn(move || {
                    let mut last = None;
                    for n in 0..20_000_u16 {
                        let now = Time::from_millis(clock.fetch_add(1, Relaxed));
                        // One that is renewed all the time, and many that are not.
                        let Ok(Track::Known { id, .. }) = pass(ct, now, datagram(thread, 53), 1000 + thread) else {
                            panic!("lost")
                        };
                        assert!(last.is_none_or(|l| l == id), "a live connection was taken away");
                        last = Some(id);
                        let _ = pass(ct, now, datagram(100 + n % 5000, 80 + thread), 80 + thread);
                        // It is assured: nothing throws it out.
                        ct.modify(id, |c| c.status.set(Status::ASSURED));
                    }
                })
            })
            .collect();
        s.spawn(|| {
            while !done.load(Relaxed) {
                ct.reap(now());
            }
        });
        s.spawn(|| {
            while !done.load(Relaxed) {
                ct.quiesce();
                ct.restart(now());
            }
        });
        for t in packets {
            let ended = t.join();
            if ended.is_err() {
                done.store(true, Relaxed);
            }
            ended.unwrap();
        }
        done.store(true, Relaxed);
    });
    assert!(ct.len() <= 512);
    ct.restart(now());
    while let Some(due) = ct.reap_due() {
        ct.reap(due);
        if ct.is_empty() {
            return;
        }
    }
    panic!("{} connections stay for ever", ct.len());
}

/// Row 13: first packets of one connection, at once on several threads, that were to be translated alike: there is one entry, and all have it.
#[test]
fn row_13_threads_that_race_for_a_connection_share_it() {
    const THREADS: usize = 3;
    let ct = table(4096);
    let start = Barrier::new(THREADS);
    let ids: Vec<Vec<Option<ConnId>>> = std::thread::scope(|s| {
        let race = || {
            (0..2000_u16)
                .map(|n| {
                    start.wait();
                    match pass(&ct, Time::from_millis(1), datagram(n, 80), 8080) {
                        Ok(Track::Known { id, .. }) => Some(id),
                        // Not here: the others would wait for ever.
                        _ => None,
                    }
                })
                .collect()
        };
        let threads: Vec<_> = (0..THREADS).map(|_| s.spawn(race)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|i| *i == ids[0]));
    assert_eq!(ct.len(), 2000);
    for &id in &ids[0] {
        let id = id.expect("dropped");
        assert_eq!(ct.get(id).map(|c| c.tuples[1].sport), Some(8080));
    }
}
