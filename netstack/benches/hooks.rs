//! What rules and tracking add to the way of a packet: TCP between two links, with all tables empty and everything tracked, and
//! as configured by default (no tracking; the filter table has the safe reach): an established connection that is hot, established ones at
//! random, new ones. `cargo bench -p netstack --bench hooks`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks")]

#[path = "common/mod.rs"]
mod common;
#[path = "router/mod.rs"]
mod router;

use common::{Lcg, Measured, dram_latency, measure, memcpy_rate, report};
use core::net::Ipv4Addr;
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::Status;
use hibernet_netstack::wire::tcp::Flags;
use router::{CLIENT, DATA, Router, SERVER, frame, hot, of};
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

/// All there are, and empty.
const TABLES: &str = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n*security\nCOMMIT\n";
const MILLION: u32 = 1_000_000;
/// Packets of a round on one connection.
const HOT: u64 = 200_000;

/// Packets of `n` connections at random.
fn random(r: &mut Router, n: u32) -> Measured {
    const PACKETS: u64 = 300_000;
    let mut random = Lcg(n.into());
    let mut data = frame(CLIENT, SERVER, Flags::ACK | Flags::PSH, 1001, 5001, DATA);
    measure(
        9,
        PACKETS,
        || (),
        |()| {
            for _ in 0..PACKETS {
                of(&mut data, true, random.below(n));
                r.receive(Time::from_millis(1000), 0, black_box(&data));
            }
        },
    )
}

/// First packets of connections, removed again between the rounds.
fn new(r: &mut Router) -> Measured {
    const PACKETS: u32 = 40_000;
    let mut syn = frame(CLIENT, SERVER, Flags::SYN, 1, 0, 0);
    let (mut next, now) = (2 * MILLION, Time::from_millis(1000));
    let ct = r.stack.conntrack().clone();
    let clean = || {
        ct.remove_if(now, |c| !c.status.has(Status::ASSURED));
    };
    let m = measure(9, PACKETS.into(), clean, |()| {
        for _ in 0..PACKETS {
            of(&mut syn, true, next);
            next += 1;
            r.receive(now, 0, black_box(&syn));
        }
    });
    clean();
    m
}

/// What the hooks, tracking and empty tables took.
fn difference(name: &str, with: Measured, without: Measured, dram: f64, target: &str) {
    report(&format!("{name}, tracked, all tables empty"), with, dram, "-");
    let ns = with.ns - without.ns;
    println!(
        "{:<52} {ns:>8.1} ns                      {:>5.2} DRAM                      target {target}",
        "  of which hooks and tracking",
        ns / dram
    );
}

fn main() {
    let dram = dram_latency();
    println!("this machine, now: random access to memory {dram:.0} ns, memcpy {:.1} GB/s; all by CPU time", memcpy_rate());
    let plain = hot(Router::new(None), HOT);
    report("established, hot, as configured by default", plain, dram, "-");
    difference("established, hot", hot(Router::new(Some(TABLES)), HOT), plain, dram, "150 ns");
    let mut snat = Router::new(Some("*nat\n-A POSTROUTING -o tap1 -j SNAT --to-source 10.2.0.9\nCOMMIT\n"));
    snat.public = Ipv4Addr::new(10, 2, 0, 9);
    report("established, hot, tracked, behind SNAT", hot(snat, HOT), dram, "-");

    let mut bare = Router::new(None);
    // The smallest tables that hold so many, and some more.
    for (n, max, target) in [(100_000, 1 << 18, "700 ns"), (MILLION, 1 << 20, "1500 ns")] {
        let mut tracked = Router::tracking(max, Some(TABLES));
        tracked.open(0..n);
        let plain = random(&mut bare, n);
        difference(&format!("random among {n}"), random(&mut tracked, n), plain, dram, "4 DRAM");
        let plain = new(&mut bare);
        difference(&format!("new connection at {n}"), new(&mut tracked), plain, dram, target);
        assert_eq!(tracked.stack.conntrack().len(), n as usize);
    }
}
