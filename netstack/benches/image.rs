//! Saving, live capture and loading of a million tracked connections: `cargo bench -p netstack --bench image`, or of as many as the first
//! argument says, a million at most: `-- 200000`. (`tests/bench/conntrack.sh` has the kernel beside it.)
//!
//! Judge by the ratios to copying the same bytes from memory to memory, which is measured in the same run: machines are shared.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks and makes threads")]

#[path = "common/mod.rs"]
mod common;

use common::{Lcg, Measured, allocated, cpu_time, dram_latency, measure, measure_wall};
use core::net::{IpAddr, Ipv4Addr};
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::image::{Capture, Family, Image, Loader, RECORD_V4};
use hibernet_netstack::conntrack::{Conntrack, CtConfig, Dir, Status, Track};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::Key;
use hibernet_netstack::skb::Skb;
use hibernet_netstack::tuple::proto;
use hibernet_netstack::wire::tcp::{self, Flags, Options, Seq};
use std::hint::black_box;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

const MILLION: u32 = 1_000_000;
const MAX: u32 = 1 << 20;
const CHUNK: usize = 64 << 10;
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// Captures whose freeze is measured.
const CAPTURES: usize = 50;
/// Packets in a millisecond.
const PACKETS: u32 = 100;
/// Slots that a step copies at most.
const STEP: u32 = 1024;

fn segment(n: u32, dir: Dir, flags: Flags, seq: u32, ack: u32) -> Skb<'static> {
    let (addr, port) = (IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + (n >> 15))), (n & 0x7fff) as u16 + 1024);
    let (src, dst, sport, dport) = match dir {
        Dir::Original => (addr, SERVER, port, 80),
        Dir::Reply => (SERVER, addr, 80, port),
    };
    let h = tcp::Header {
        src_port: sport,
        dst_port: dport,
        seq: Seq(seq),
        ack: Seq(ack),
        header_len: 20,
        flags,
        window: 60_000,
        checksum: 0,
        urgent: 0,
    };
    Skb {
        input: None,
        output: None,
        src_mac: None,
        src,
        dst,
        protocol: proto::TCP,
        sport,
        dport,
        l4: L4::Tcp(h, Options::default()),
        l4_bytes: &[],
        l4_len: 20,
        len: 40,
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

fn pass(ct: &Conntrack, now: Time, mut skb: Skb<'static>) {
    ct.track(now, &mut skb).expect("room");
    ct.confirm(now, &mut skb).expect("room");
    assert!(matches!(skb.track, Track::Known { .. }));
}

/// Established connections, translated or not.
fn table(conns: u32, translated: bool) -> Conntrack {
    let ct = Conntrack::new(CtConfig { max: MAX, ..CtConfig::default() }, Key(0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321));
    for n in 0..conns {
        let mut syn = segment(n, Dir::Original, Flags::SYN, 100, 0);
        ct.track(Time::ZERO, &mut syn).expect("room");
        if let Track::Fresh { conn, .. } = &mut syn.track
            && translated
        {
            conn.tuples[1].dst = GATEWAY.into();
            // A million ports are more than there are.
            (conn.tuples[1].dport, conn.tuples[1].sport) = (n as u16, (n >> 16) as u16);
            for s in [Status::SRC_NAT, Status::SRC_NAT_DONE, Status::DST_NAT, Status::DST_NAT_DONE] {
                conn.status.set(s);
            }
        }
        ct.confirm(Time::ZERO, &mut syn).expect("room");
        if !translated {
            pass(&ct, Time::ZERO, segment(n, Dir::Reply, Flags::SYN | Flags::ACK, 500, 101));
            pass(&ct, Time::ZERO, segment(n, Dir::Original, Flags::ACK, 101, 501));
        }
    }
    ct
}

fn line(name: &str, m: Measured, memcpy: f64, target: &str) {
    println!(
        "{name:<58} {:>7.1} ms (best {:>6.1})  {:>5.1} memcpy  {:>6.0} allocations   target {target}",
        m.ns / 1e6,
        m.best / 1e6,
        m.ns / memcpy,
        m.allocations
    );
}

/// All chunks of an image, one after the other.
fn write_out(image: &Image, chunk: &mut [u8]) -> usize {
    let records = image.records(Family::V4);
    let (mut at, mut bytes) = (0, 0);
    while at < records.len() {
        let n = records.fill(at, chunk);
        black_box(&chunk);
        at += n;
        bytes += n as usize * RECORD_V4;
    }
    bytes
}

/// Nanoseconds of a copy of so many bytes that are not in a cache, to memory that is there.
fn memcpy(bytes: usize) -> f64 {
    let from = vec![1_u8; bytes];
    let mut to = vec![0_u8; bytes];
    measure(9, 1, || (), |()| black_box(&mut to).copy_from_slice(black_box(&from))).ns
}

fn load(image: &Image, v4: &[u8], threads: usize) -> Conntrack {
    let cfg = CtConfig { max: MAX, ..CtConfig::default() };
    let loader = Loader::new(cfg, Key(5, 6), Time::from_millis(1000), image.head().clone()).expect("what was saved");
    let insert = |from: usize, bytes: &[u8]| {
        for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
            let first = (from + n * CHUNK) / RECORD_V4;
            loader.insert(Family::V4, first as u32, chunk).expect("what was saved");
        }
    };
    let (here, there) = v4.split_at((v4.len() / threads).next_multiple_of(CHUNK).min(v4.len()));
    std::thread::scope(|s| {
        if !there.is_empty() {
            s.spawn(|| insert(here.len(), there));
        }
        insert(0, here);
    });
    loader.finish().expect("what was saved")
}

fn save_and_load(ct: &Conntrack, kind: &str) {
    const ROUNDS: usize = 7;
    let mut chunk = vec![0; CHUNK];
    let bytes = write_out(&ct.save(), &mut chunk);
    let copy = memcpy(bytes);
    println!(
        "{kind}: {} connections, {:.1} bytes each in the image; memcpy of it {:.1} ms",
        ct.len(),
        bytes as f64 / ct.len() as f64,
        copy / 1e6
    );
    let m = measure(ROUNDS, 1, || (), |()| assert_eq!(write_out(&ct.save(), &mut chunk), bytes));
    line("saved: all slots copied, records written out in chunks", m, copy, "12");
    let image = ct.save();
    let v4 = image.records(Family::V4).to_vec();
    // What the round before loaded is thrown away between the rounds.
    let loaded = core::cell::RefCell::new(None);
    let clear = || drop(loaded.take());
    let one = || *loaded.borrow_mut() = Some(load(&image, &v4, 1));
    let m = measure(ROUNDS, 1, clear, |()| one());
    line("loaded by one thread, by CPU time", m, copy, "45");
    clear();
    let before = allocated();
    one();
    println!("{:<58} {:>7.1} bytes a connection", "memory that it takes", (allocated() - before) as f64 / ct.len() as f64);
    let m = measure_wall(ROUNDS, 1, clear, |()| one());
    line("the same by the wall clock", m, copy, "-");
    let m = measure_wall(ROUNDS, 1, clear, |()| *loaded.borrow_mut() = Some(load(&image, &v4, 2)));
    line("loaded by two threads, by the wall clock", m, copy, "45");
    assert_eq!(loaded.take().map(|t| t.len()), Some(ct.len()));
}

/// Captures of a table while packets go on: between two steps there are those that arrived in a millisecond.
fn live(ct: &Conntrack, kind: &str, mut choose: impl FnMut(&mut Lcg) -> u32) {
    let mut random = Lcg(7);
    let mut clock = 1_000_000_u64;
    let mut seq = 101_u32;
    let (mut freezes, mut steps, mut left, mut rounds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CAPTURES {
        let mut capture = Capture::begin(ct);
        let mut n = 0;
        loop {
            clock += 1;
            for _ in 0..PACKETS {
                seq = seq.wrapping_add(1);
                let mut skb = segment(choose(&mut random), Dir::Original, Flags::ACK | Flags::PSH, 101, 501);
                skb.l4_len = 21 + (seq & 7);
                ct.track(Time::from_millis(clock), black_box(&mut skb)).expect("room");
            }
            let start = cpu_time();
            let progress = capture.step(ct, STEP).expect("the only capture");
            steps.push((cpu_time() - start) as f64 / 1e3);
            n += 1;
            if progress.complete && capture.remaining(ct) < PACKETS {
                break;
            }
        }
        // What arrives in another millisecond, until nothing moves any more.
        for _ in 0..PACKETS {
            let mut skb = segment(choose(&mut random), Dir::Original, Flags::ACK | Flags::PSH, 101, 501);
            ct.track(Time::from_millis(clock), black_box(&mut skb)).expect("room");
        }
        left.push(f64::from(capture.remaining(ct)));
        rounds.push(f64::from(n));
        let start = Instant::now();
        let image = capture.finish(ct).expect("the only capture");
        freezes.push(start.elapsed().as_nanos() as f64 / 1e3);
        assert_eq!(image.head().v4 as usize, ct.len());
    }
    let show = |name: &str, mut values: Vec<f64>, unit: &str, target: &str| {
        values.sort_by(f64::total_cmp);
        let at = |p: usize| values[(values.len() - 1) * p / 100];
        println!("{:<58} {:>7.1} {unit} (99 %: {:.1}, most {:.1})   {target}", name, at(50), at(99), at(100));
    };
    println!("{kind}: {CAPTURES} captures of {} connections while {}000 packets a second pass", ct.len(), PACKETS);
    show("freeze: what is left is copied, by the wall clock", freezes, "us", "target 99 %: 5,000 us");
    show("slots left for it", left, "slots", "");
    show("a step before", steps, "us", "");
    show("steps, one in a millisecond", rounds, "steps", "");
}

fn main() {
    let mut parts: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let conns = parts.iter().find_map(|a| a.parse::<u32>().ok()).unwrap_or(MILLION).clamp(1, MILLION);
    parts.retain(|a| a.parse::<u32>().is_err());
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    println!("this machine, now: random access to memory {:.0} ns", dram_latency());
    let ct = table(conns, false);
    if wanted("save") {
        save_and_load(&ct, "established TCP");
    }
    if wanted("live") {
        live(&ct, "spread evenly", |r| r.below(conns));
        // By Zipf's law the rank is as often 1 to 10 as 10 to 100.
        live(&ct, "by Zipf's law", |r| f64::from(conns).powf(f64::from(r.below(1 << 30)) / f64::from(1 << 30)) as u32 % conns);
    }
    drop(ct);
    if wanted("translated") {
        save_and_load(&table(conns, true), "TCP, source and destination translated");
    }
}
