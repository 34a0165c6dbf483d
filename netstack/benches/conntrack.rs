//! Speed and size of connection tracking: `cargo bench -p netstack --bench conntrack`.
//!
//! Judge by the ratios to the machine's own latency, which is measured in the same run: machines are shared.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks and makes threads")]

#[path = "common/mod.rs"]
mod common;

use common::{Lcg, allocated, cpu_time, dram_latency, measure, measure_wall, memcpy_rate, report, resident};
use core::net::{IpAddr, Ipv4Addr};
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::{Conntrack, CtConfig, Dir, Status, Track};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::Key;
use hibernet_netstack::skb::Skb;
use hibernet_netstack::tuple::proto;
use hibernet_netstack::wire::tcp::{Flags, Options, Seq};
use hibernet_netstack::wire::{tcp, udp};
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

const MILLION: u32 = 1_000_000;
/// The smallest table that holds a million, and some more.
const MAX: u32 = 1 << 20;

fn addrs(n: u32) -> (IpAddr, u16) {
    (IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + (n >> 15))), (n & 0x7fff) as u16 + 1024)
}

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn packet(n: u32, dir: Dir, protocol: u8, l4: L4) -> Skb<'static> {
    let (addr, port) = addrs(n);
    let (src, dst, sport, dport) = match dir {
        Dir::Original => (addr, SERVER, port, 80),
        Dir::Reply => (SERVER, addr, 80, port),
    };
    Skb {
        input: None,
        output: None,
        src_mac: None,
        src,
        dst,
        protocol,
        sport,
        dport,
        l4,
        l4_bytes: &[],
        l4_len: 120,
        len: 140,
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

fn datagram(n: u32, dir: Dir) -> Skb<'static> {
    packet(n, dir, proto::UDP, L4::Udp(udp::Header { src_port: 0, dst_port: 0, len: 120, checksum: 0 }))
}

fn segment(n: u32, dir: Dir, flags: Flags, seq: u32, ack: u32) -> Skb<'static> {
    let h = tcp::Header {
        src_port: 0,
        dst_port: 0,
        seq: Seq(seq),
        ack: Seq(ack),
        header_len: 20,
        flags,
        window: 60_000,
        checksum: 0,
        urgent: 0,
    };
    let mut skb = packet(n, dir, proto::TCP, L4::Tcp(h, Options::default()));
    skb.l4_len = 20;
    skb
}

fn pass(ct: &Conntrack, now: Time, mut skb: Skb<'static>) {
    ct.track(now, &mut skb).expect("room");
    ct.confirm(now, &mut skb).expect("room");
    assert!(matches!(skb.track, Track::Known { .. }));
}

fn establish(ct: &Conntrack, n: u32) {
    pass(ct, Time::ZERO, segment(n, Dir::Original, Flags::SYN, 100, 0));
    pass(ct, Time::ZERO, segment(n, Dir::Reply, Flags::SYN | Flags::ACK, 500, 101));
    pass(ct, Time::ZERO, segment(n, Dir::Original, Flags::ACK, 101, 501));
}

fn table(max: u32) -> Conntrack {
    Conntrack::new(CtConfig { max, ..CtConfig::default() }, Key(0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321))
}

fn established(max: u32, n: u32) -> Conntrack {
    let ct = table(max);
    (0..n).for_each(|n| establish(&ct, n));
    ct
}

fn hot(dram: f64) {
    let ct = established(1 << 18, 100);
    const OPS: u64 = 200_000;
    let mut data = segment(7, Dir::Original, Flags::ACK | Flags::PSH, 101, 501);
    data.l4_len = 120;
    let mut ack = segment(7, Dir::Reply, Flags::ACK, 501, 101);
    let mut seq = 101;
    let now = Time::from_millis(1000);
    let m = measure(
        21,
        OPS,
        || (),
        |()| {
            for _ in 0..OPS / 2 {
                if let L4::Tcp(h, _) = &mut data.l4 {
                    h.seq = Seq(seq);
                }
                seq = seq.wrapping_add(100);
                if let L4::Tcp(h, _) = &mut ack.l4 {
                    h.ack = Seq(seq);
                }
                for skb in [&mut data, &mut ack] {
                    skb.track = Track::None;
                    let _ = ct.track(now, black_box(skb));
                }
            }
        },
    );
    assert!(matches!((data.track, ack.track), (Track::Known { .. }, Track::Known { .. })));
    report("established TCP, hot: look-up and update", m, dram, "60 ns");

    let Track::Known { id, .. } = data.track else { return };
    let m = measure(
        21,
        OPS,
        || (),
        |()| {
            for _ in 0..OPS / 2 {
                if let L4::Tcp(h, _) = &mut data.l4 {
                    h.seq = Seq(seq);
                }
                seq = seq.wrapping_add(100);
                if let L4::Tcp(h, _) = &mut ack.l4 {
                    h.ack = Seq(seq);
                }
                for (skb, dir) in [(&mut data, Dir::Original), (&mut ack, Dir::Reply)] {
                    skb.track = Track::None;
                    let _ = ct.track_known(now, id, dir, black_box(skb));
                }
            }
        },
    );
    report("the same by the flow's handle", m, dram, "-");

    let mut query = datagram(3, Dir::Original);
    pass(&ct, now, query.clone());
    let m = measure(
        21,
        OPS,
        || (),
        |()| {
            for _ in 0..OPS {
                query.track = Track::None;
                let _ = ct.track(now, black_box(&mut query));
            }
        },
    );
    report("UDP, hot", m, dram, "60 ns");
}

fn random(ct: &Conntrack, n: u32, dram: f64, name: &str) {
    const OPS: u64 = 300_000;
    let now = Time::from_millis(1000);
    let mut random = Lcg(n.into());
    let m = measure(
        9,
        OPS,
        || (),
        |()| {
            for _ in 0..OPS {
                let mut skb = segment(random.below(n), Dir::Original, Flags::ACK | Flags::PSH, 101, 501);
                skb.l4_len = 120;
                let _ = ct.track(now, black_box(&mut skb));
                debug_assert!(matches!(skb.track, Track::Known { .. }));
            }
        },
    );
    report(name, m, dram, "4 DRAM");
}

/// New connections in a table of `n`, each round as many as fit; they are removed in between.
fn new(ct: &Conntrack, n: u32, dram: f64, target: &str) {
    const OPS: u32 = 40_000;
    let now = Time::from_millis(1000);
    let mut next = 2 * MILLION;
    let m = measure(
        9,
        OPS.into(),
        || {
            ct.remove_if(now, |c| c.tuples[0].proto == proto::UDP || !c.status.has(Status::ASSURED));
            assert_eq!(ct.len(), n as usize);
            next += OPS;
            next - OPS
        },
        |base| {
            for n in base..base + OPS {
                pass(ct, now, black_box(segment(n, Dir::Original, Flags::SYN, 1, 0)));
            }
        },
    );
    ct.remove_if(now, |c| !c.status.has(Status::ASSURED));
    report(&format!("new connection, track and confirm, at {n}"), m, dram, target);
}

fn reap(dram: f64) {
    let ct = table(MAX);
    let mut times = Vec::new();
    let m = measure(
        5,
        MILLION.into(),
        || (0..MILLION).for_each(|n| pass(&ct, Time::ZERO, datagram(n, Dir::Original))),
        |()| {
            while !ct.is_empty() {
                let at = ct.reap_due().unwrap_or_default().max(Time::from_millis(31_000));
                let start = cpu_time();
                ct.reap(at);
                times.push(cpu_time() - start);
            }
        },
    );
    report("reaping, all of a million timed out", m, dram, "100 ns");
    steps("steps of these", times);
}

/// Steps of the reaper over a million that live.
fn reap_nothing(ct: &Conntrack) {
    let mut times = Vec::new();
    while let Some(due) = ct.reap_due().filter(|&d| d < Time::from_millis(200_000)) {
        let start = cpu_time();
        ct.reap(due);
        times.push(cpu_time() - start);
    }
    steps("steps of the reaper over a million that live", times);
}

/// What steps took: the median; the longest; and nearly the longest, as a machine that is shared stops now and then.
fn steps(name: &str, mut times: Vec<u64>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 1000] as f64 / 1e3;
    println!(
        "{name:<52} {:>8.1} us  (99.9 %: {:.1}, longest {:.1}, {} steps)   target 500 us",
        at(500),
        at(999),
        at(1000),
        times.len()
    );
}

fn size() {
    let before = (allocated(), resident());
    let ct = table(CtConfig::default().max);
    let (bytes, rss) = (allocated() - before.0, resident().saturating_sub(before.1));
    println!(
        "{:<52} {:>8} bytes allocated, {} KiB resident   target 256 KiB",
        "an unused tracker",
        bytes + size_of_val(&ct) as u64,
        rss / 1024
    );
    (0..20).for_each(|n| establish(&ct, n));
    println!(
        "{:<52} {:>8} KiB allocated, {} KiB resident",
        "the same with 20 connections",
        (allocated() - before.0) / 1024,
        resident().saturating_sub(before.1) / 1024
    );
    drop(ct);

    for translated in [false, true] {
        let before = allocated();
        let ct = table(MAX);
        for n in 0..MAX {
            let mut skb = datagram(n, Dir::Original);
            ct.track(Time::ZERO, &mut skb).expect("room");
            if let Track::Fresh { conn, .. } = &mut skb.track
                && translated
            {
                conn.tuples[1].dst = conn.tuples[1].src;
                (conn.tuples[1].dport, conn.tuples[1].sport) = (n as u16, (n >> 16) as u16);
                conn.status.set(Status::SRC_NAT);
            }
            ct.confirm(Time::ZERO, &mut skb).expect("room");
        }
        let each = (allocated() - before) as f64 / f64::from(MAX);
        let kind = if translated { ", source translated" } else { "" };
        println!(
            "{:<52} {each:>8.1} bytes                                    target 256",
            format!("per connection, buckets included{kind}")
        );
    }
}

fn threads(dram: f64) {
    const N: u32 = 100_000;
    const OPS: u32 = 200_000;
    let ct = established(1 << 18, N);
    let now = Time::from_millis(1000);
    let packets = |half: u32| {
        let mut random = Lcg(half.into());
        for _ in 0..OPS {
            let mut skb = segment(half * N / 2 + random.below(N / 2), Dir::Original, Flags::ACK | Flags::PSH, 101, 501);
            skb.l4_len = 120;
            let _ = ct.track(now, black_box(&mut skb));
        }
    };
    let new = |half: u32| {
        for n in 0..OPS / 5 {
            pass(&ct, now, segment((2 + half) * MILLION + n, Dir::Original, Flags::SYN, 1, 0));
        }
    };
    let clean = || {
        ct.remove_if(now, |c| !c.status.has(Status::ASSURED));
    };
    scaling("random among 100,000", OPS, dram, clean, packets);
    scaling("new connections at 100,000", OPS / 5, dram, clean, new);
}

/// One thread against two that do the same at the same time. By the wall clock it shows what this machine gives two threads just now; by
/// CPU time, how much they are in each other's way (locks that sleep aside, which the wall clock shows).
fn scaling(name: &str, ops: u32, dram: f64, clean: impl Fn(), work: impl Fn(u32) + Sync) {
    const ROUNDS: usize = 9;
    let one = measure(ROUNDS, ops.into(), &clean, |()| work(0));
    let one_wall = measure_wall(ROUNDS, ops.into(), &clean, |()| work(0));
    let mut spent = Vec::new();
    let two_wall = measure_wall(ROUNDS, u64::from(ops) * 2, &clean, |()| {
        std::thread::scope(|s| {
            let timed = |half| {
                let start = cpu_time();
                work(half);
                cpu_time() - start
            };
            let other = s.spawn(move || timed(1));
            let here = timed(0);
            spent.push((here + other.join().expect("no panic")) as f64 / f64::from(2 * ops));
        });
    });
    clean();
    spent.sort_by(f64::total_cmp);
    report(&format!("{name}, one thread"), one, dram, "-");
    println!("{:<52} {:>8.1} ns  (best {:>7.1})", "the same, each of two threads", spent[ROUNDS / 2], spent[0]);
    println!(
        "{:<52} {:>8.2} times one by CPU time, {:.2} by wall clock (best {:.2})   target 1.7",
        "two threads",
        2.0 * one.ns / spent[ROUNDS / 2],
        one_wall.ns / two_wall.ns,
        one_wall.best / two_wall.best
    );
}

fn main() {
    // Parts to run, by name; all if none is given.
    let parts: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let dram = dram_latency();
    println!(
        "this machine, now: random access to memory {dram:.0} ns, memcpy {:.1} GB/s; all by CPU time, threads by wall clock too",
        memcpy_rate()
    );
    if wanted("size") {
        size();
    }
    if wanted("hot") {
        hot(dram);
    }
    if wanted("random") {
        let ct = established(1 << 18, 100_000);
        random(&ct, 100_000, dram, "established TCP, random among 100,000");
        new(&ct, 100_000, dram, "700 ns");
        drop(ct);
        let ct = established(MAX, MILLION);
        random(&ct, MILLION, dram, "established TCP, random among 1,000,000");
        new(&ct, MILLION, dram, "1500 ns");
        reap_nothing(&ct);
    }
    if wanted("reap") {
        reap(dram);
    }
    if wanted("threads") {
        threads(dram);
    }
}
