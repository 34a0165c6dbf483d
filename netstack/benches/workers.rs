//! What a second worker brings: packets of two threads, each with a stack of its own that shares connections and rules, beside those of one, and beside
//! two threads whose stacks share nothing (what the machine gives). Rounds alternate. `cargo bench -p netstack --bench workers`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks")]

#[path = "common/mod.rs"]
mod common;
#[path = "router/mod.rs"]
mod router;

use common::{Lcg, cpu_time};
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::Status;
use hibernet_netstack::wire::tcp::Flags;
use router::{CLIENT, DATA, Nobody, Router, SERVER, frame, of};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

const RULES: &str =
    "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n";
const ROUNDS: usize = 15;
/// Connections of each worker.
const CONNECTIONS: u32 = 100_000;
/// Where a worker's connections begin.
const APART: u32 = 8_000_000;

/// What a round does.
#[derive(Clone, Copy)]
enum Load {
    /// Data of one connection.
    Hot,
    /// Data of connections at random.
    Random,
    /// First packets.
    New,
}

impl Load {
    const ALL: [(Load, &str, u64); 3] = [
        (Load::Hot, "one connection a worker", 400_000),
        (Load::Random, "100,000 connections a worker, at random", 300_000),
        (Load::New, "new connections", 60_000),
    ];

    fn round(self, r: &mut Router, worker: u32, random: &mut Lcg, packets: u64) {
        let (first, now) = (worker * APART, Time::from_millis(1000));
        let (flags, seq, data) = match self {
            Load::New => (Flags::SYN, 1, 0),
            _ => (Flags::ACK | Flags::PSH, 1001, DATA),
        };
        let mut frame = frame(CLIENT, SERVER, flags, seq, 5001, data);
        let before = r.edge.sent;
        for n in 0..packets as u32 {
            let at = match self {
                Load::Hot => 0,
                Load::Random => random.below(CONNECTIONS),
                Load::New => CONNECTIONS + n,
            };
            of(&mut frame, true, first + at);
            r.receive(now, 0, black_box(&frame));
        }
        assert_eq!(r.edge.sent - before, packets);
    }
}

fn alone() -> Router {
    Router::tracking(1 << 20, Some(RULES))
}

/// Two workers of one network.
fn sharing() -> Vec<Router> {
    let mut first = alone();
    let stack = first.stack.share(1, [9; 16]);
    let second = Router { stack, edge: Nobody::default(), public: first.public };
    vec![first, second]
}

/// Nanoseconds per packet of all workers together, by the wall clock, and the processors' time for one.
fn round(load: Load, packets: u64, routers: &mut [Router]) -> [f64; 2] {
    let start = Barrier::new(routers.len() + 1);
    let (wall, cpu) = std::thread::scope(|s| {
        let threads: Vec<_> = (0..)
            .zip(routers.iter_mut())
            .map(|(n, r)| {
                let start = &start;
                s.spawn(move || {
                    start.wait();
                    let before = cpu_time();
                    load.round(r, n, &mut Lcg(u64::from(n) + 7), packets);
                    cpu_time() - before
                })
            })
            .collect();
        start.wait();
        let begin = Instant::now();
        let cpu: u64 = threads.into_iter().map(|t| t.join().expect("a worker")).sum();
        (begin.elapsed().as_nanos(), cpu)
    });
    for r in routers.iter() {
        r.stack.conntrack().remove_if(Time::from_millis(1000), |c| !c.status.has(Status::ASSURED));
    }
    let all = packets * routers.len() as u64;
    [wall as f64 / all as f64, cpu as f64 / all as f64]
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() {
    println!(
        "packets a second of two workers, of those of one; by the wall clock, and by processors' time (which leaves out what others on the machine take)"
    );
    for (load, name, packets) in Load::ALL {
        let mut sets = [vec![alone()], sharing(), vec![alone(), alone()]];
        for set in &mut sets {
            for (n, r) in (0..).zip(set.iter_mut()) {
                let first = n * APART;
                r.open(first..first + CONNECTIONS);
            }
        }
        let mut times: [[Vec<f64>; 2]; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (set, times) in sets.iter_mut().zip(&mut times) {
                let round = round(load, packets, set);
                times.iter_mut().zip(round).for_each(|(t, r)| t.push(r));
            }
        }
        let [[one, one_cpu], [two, two_cpu], [apart, apart_cpu]] = times.map(|t| t.map(median));
        println!("{name}: one {one_cpu:.0} ns a packet, two {two_cpu:.0}");
        println!(
            "  two that share       {:.2} times (by processors' time {:.2})   target 1.7",
            one / two,
            2.0 * one_cpu / two_cpu
        );
        println!("  two that share nothing {:.2} times ({:.2})", one / apart, 2.0 * one_cpu / apart_cpu);
    }
}
