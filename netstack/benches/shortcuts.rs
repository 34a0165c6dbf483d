//! What many rules cost: an established connection under none, 1,000 and 10,000 of them, first packets, loading them, memory; with the cache of
//! verdicts and look-ups and, for comparison, rule by rule. `cargo bench -p netstack --bench shortcuts`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks")]

#[path = "common/mod.rs"]
mod common;
#[path = "router/mod.rs"]
mod router;

use common::{Measured, dram_latency, measure, memcpy_rate, report};
use hibernet_netstack::Time;
use hibernet_netstack::admin::{Recheck, Shortcuts};
use hibernet_netstack::conntrack::Status;
use hibernet_netstack::iptables::{Family, Program, text};
use hibernet_netstack::wire::tcp::Flags;
use router::{CLIENT, Router, SERVER, frame, hot, of};
use std::fmt::Write;
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

/// All tables, and empty.
const TABLES: &str = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n*security\nCOMMIT\n";
const ALL: Shortcuts = Shortcuts { verdicts: true, look_ups: true };
const NONE: Shortcuts = Shortcuts { verdicts: false, look_ups: false };

/// Kinds of rules that the packets pass.
const KINDS: [&str; 6] =
    ["addresses", "networks and ports", "ports and ranges", "address ranges and port lists", "by address to chains", "all sorts"];

/// Rules of a kind in FORWARD, one below the other.
fn rules(kind: &str, n: usize) -> String {
    let mut t = String::from("*filter\n");
    let addr = |i: usize| format!("172.{}.{}.{}", 16 + i / 62_500, i / 250 % 250, i % 250 + 3);
    for i in 0..n {
        // Not those of the connections.
        let port = 34_000 + i % 30_000;
        let rule = match (kind, i % 5) {
            ("addresses", _) => format!("-s {} -j DROP", addr(i)),
            ("networks and ports", 0 | 1) => {
                format!("-s 172.{}.{}.0/24 -p tcp -m tcp --dport 443 -j DROP", 16 + i / 250, i % 250)
            }
            ("networks and ports", _) => format!("-d {} -p tcp -m tcp --dport {port} -j DROP", addr(i)),
            ("ports and ranges", 0..3) => format!("-p tcp -m tcp --dport {port} -j DROP"),
            ("ports and ranges", _) => format!("-p tcp -m tcp --dport {port}:{} -j DROP", port + 10),
            ("address ranges and port lists", 0..3) => {
                format!("-m iprange --src-range {}-172.{}.{}.254 -j DROP", addr(i), 16 + i / 62_500, i / 250 % 250)
            }
            ("address ranges and port lists", _) => {
                format!("-p tcp -m multiport --dports {port},{},{}:{} -j DROP", port + 1, port + 5, port + 9)
            }
            ("by address to chains", _) => {
                writeln!(t, ":C{i} - [0:0]\n-A C{i} -p tcp -m tcp --dport 22 -j ACCEPT").unwrap();
                format!("-d {} -j C{i}", addr(i))
            }
            (_, 0) => format!("-s {} -i tap0 -j DROP", addr(i)),
            (_, 1) => format!("-d {} -p udp -m udp --dport {port} -j ACCEPT", addr(i)),
            (_, 2) => format!("-s {} -d 10.0.0.0/24 -m conntrack --ctstate NEW -j DROP", addr(i)),
            (_, 3) => format!("-p udp -m udp --sport {port} -j DROP"),
            _ => format!("-s {} -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", addr(i)),
        };
        writeln!(t, "-A FORWARD {rule}").unwrap();
    }
    t + "COMMIT\n"
}

fn router(rules: &str, shortcuts: Shortcuts) -> Router {
    let mut r = Router::new(None);
    r.stack.set_shortcuts(shortcuts);
    let rules = text::parse(Family::V4, rules).expect("rules");
    r.stack.set_rules(Time::ZERO, rules, Recheck::Keep, &mut r.edge).expect("rules");
    r
}

/// First packets of connections, removed again between the rounds.
fn first_packets(mut r: Router, packets: u32) -> Measured {
    let mut syn = frame(CLIENT, SERVER, Flags::SYN, 1, 0, 0);
    let now = Time::from_millis(1000);
    let ct = r.stack.conntrack().clone();
    let clean = || {
        ct.remove_if(now, |c| !c.status.has(Status::ASSURED));
    };
    measure(9, packets.into(), clean, |()| {
        for n in 0..packets {
            of(&mut syn, true, n);
            r.receive(now, 0, black_box(&syn));
        }
    })
}

fn beside(name: &str, m: Measured, base: Measured, dram: f64, target: &str) {
    report(name, m, dram, target);
    let best = m.best / base.best;
    println!("{:<52} {:>8.2} times  (best {best:>6.2})  {:.1} ns without rules", "", m.ns / base.ns, base.ns);
}

fn main() {
    let dram = dram_latency();
    println!("this machine, now: random access to memory {dram:.0} ns, memcpy {:.1} GB/s; all by CPU time", memcpy_rate());
    let only = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();

    for kind in KINDS.into_iter().filter(|k| k.contains(&only)) {
        println!("\n== {kind}");
        let looked_up = Shortcuts { verdicts: false, ..ALL };
        let established = [(1, ALL, ""), (100, ALL, ""), (1_000, ALL, ""), (10_000, ALL, "")];
        let slower = [(1_000, NONE, ", rule by rule"), (10_000, looked_up, ", look-ups only")];
        for (n, shortcuts, how) in established.into_iter().chain(slower) {
            // Beside none at the same time, as the machine may not be ours alone.
            let none = hot(router(TABLES, ALL), 100_000);
            let packets = if shortcuts == NONE { 5_000 } else { 100_000 };
            let m = hot(router(&rules(kind, n), shortcuts), packets);
            let target = if how.is_empty() { "1.3 times" } else { "" };
            beside(&format!("established, {n} rules{how}"), m, none, dram, target);
        }

        report("first packet, no rules", first_packets(router(TABLES, ALL), 20_000), dram, "");
        let slow = first_packets(router(&rules(kind, 10_000), NONE), 1_000);
        let quick = first_packets(router(&rules(kind, 10_000), ALL), 20_000);
        report("first packet, 10000 rules, rule by rule", slow, dram, "");
        report("first packet, 10000 rules", quick, dram, "");
        println!("{:<52} {:>8.1} times cheaper                                     target 5, aim 20", "", slow.ns / quick.ns);

        let text = rules(kind, 10_000);
        let parse = measure(9, 1, || (), |()| drop(black_box(text::parse(Family::V4, &text))));
        let parsed = text::parse(Family::V4, &text).unwrap();
        let compile = measure(9, 1, || (), |()| drop(black_box(Program::compile(&parsed))));
        let bytes = Program::compile(&parsed).unwrap().look_up_bytes();
        println!(
            "load 10000 rules: parse {:.1} ms, check and compile {:.1} ms, target 100 ms in all; look-ups take {:.1} bytes a rule",
            parse.ns / 1e6,
            compile.ns / 1e6,
            bytes as f64 / 10_000.0
        );
    }

    let mut r = router(&rules("addresses", 1_000), ALL);
    let mut open = 0;
    for n in [1_000, 10_000, 100_000] {
        r.open(open..n);
        open = n;
        let bytes = r.stack.verdict_bytes();
        println!("verdicts of {n} connections: {:.1} bytes each", bytes as f64 / f64::from(n));
    }
}
