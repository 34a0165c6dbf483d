//! What rules cost a packet that passes them: `cargo bench -p netstack --bench rules [-- KIND]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks")]

#[path = "common/mod.rs"]
mod common;

use common::{dram_latency, measure, memcpy_rate, report};
use core::net::IpAddr;
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::{ConnId, Conntrack, CtConfig, CtInfo, Status, Track};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::text::parse;
use hibernet_netstack::iptables::*;
use hibernet_netstack::nat::{AddrType, Addresses};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::{Key, Rng};
use hibernet_netstack::skb::Skb;
use hibernet_netstack::wire::{Mac, tcp};
use std::fmt::Write;
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

/// Nothing is known about addresses, and nobody reads the log.
struct Outside;

impl Addresses for Outside {
    fn kind(&self, _: IpAddr, _: Option<Iface>) -> AddrType {
        AddrType::Unicast
    }

    fn primary(&self, _: Iface, _: bool) -> Option<IpAddr> {
        None
    }

    fn first(&self, _: Iface, _: bool) -> Option<IpAddr> {
        None
    }
}

impl LogSink for Outside {
    fn log(&mut self, _: &LogEntry<'_>) {}
}

/// What is measured: name, and what a rule that the packet passes should cost at most.
const KINDS: [(&str, &str); 7] = [
    ("addresses and ports", "< 5 ns a rule"),
    ("ports only", "< 5 ns a rule"),
    ("ranges and inversions", ""),
    ("multiport", ""),
    ("state", ""),
    ("conntrack, all it can ask", ""),
    ("user chains of 9 rules", ""),
];

/// Rule `i` of a kind, which does not fit the packet.
fn rule(kind: &str, i: usize, v6: bool) -> String {
    let addr = |n: usize| {
        if v6 {
            format!("2001:db8:{:x}::{:x}", n / 251, n % 251 + 1)
        } else {
            format!("10.{}.{}.{}", n / 62_500, n / 250 % 250, n % 250 + 3)
        }
    };
    let home = if v6 { "fd00::/64" } else { "192.168.0.0/16" };
    match (kind, i % 5) {
        ("addresses and ports", 0) => format!("-s {} -j DROP", addr(i)),
        ("addresses and ports", 1) => format!("-p tcp -m tcp --dport {} -j DROP", 1000 + i % 5000),
        ("addresses and ports", 2) => format!("-s {} -d {} -j ACCEPT", addr(i), addr(i + 1)),
        ("addresses and ports", 3) => format!("-d {} -p tcp -m tcp --dport 443 -j DROP", addr(i)),
        ("addresses and ports", _) => format!("-i tap1 -p udp -m udp --sport {} -j DROP", 1 + i % 1000),
        ("ports only", _) => format!("-p tcp -m tcp --dport {} -j DROP", 1000 + i % 5000),
        ("ranges and inversions", 0 | 1) => format!("-p tcp -m tcp --dport {}:{} -j DROP", 1000 + i % 5000, 1010 + i % 5000),
        ("ranges and inversions", 2 | 3) => format!("! -s {home} -p tcp -j DROP"),
        ("ranges and inversions", _) => "-p tcp -m tcp ! --dport 80 -j DROP".into(),
        ("multiport", _) => format!("-p tcp -m multiport --dports {},7000,8000:8100 -j DROP", 1000 + i % 5000),
        ("state", _) => "-m conntrack --ctstate NEW,INVALID -j DROP".into(),
        _ => format!("-m conntrack --ctorigdst {} --ctorigdstport {} -j DROP", addr(i), 1 + i % 5000),
    }
}

fn rules(kind: &str, n: usize, v6: bool) -> String {
    let mut t = String::from("*filter\n");
    if kind.starts_with("user chains") {
        for c in 0..n / 10 {
            writeln!(t, ":U{c} - [0:0]\n-A FORWARD -p tcp -j U{c}").unwrap();
            (0..9).for_each(|i| writeln!(t, "-A U{c} {}", rule("addresses and ports", c * 9 + i, v6)).unwrap());
        }
    } else {
        (0..n).for_each(|i| writeln!(t, "-A FORWARD {}", rule(kind, i, v6)).unwrap());
    }
    t + "COMMIT\n"
}

const HEADER: tcp::Header = tcp::Header {
    src_port: 40_000,
    dst_port: 80,
    seq: tcp::Seq(1),
    ack: tcp::Seq(1),
    header_len: 20,
    flags: tcp::Flags::ACK,
    window: 1000,
    checksum: 0,
    urgent: 0,
};

/// A segment of an established connection, forwarded.
fn packet(v6: bool, bytes: &[u8]) -> Skb<'_> {
    let (src, dst) = if v6 { ("fd00::15", "2606:4700::1") } else { ("192.168.0.15", "93.184.216.34") };
    Skb {
        input: Some(Iface::Link(LinkId(0))),
        output: Some(Iface::Host0),
        src_mac: Some(Mac([2; 6])),
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: 6,
        sport: HEADER.src_port,
        dport: HEADER.dst_port,
        l4: L4::Tcp(HEADER, tcp::Options::default()),
        l4_bytes: bytes,
        l4_len: 20,
        len: 60,
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

/// Puts the packet's connection into the table.
fn confirm(ct: &Conntrack, skb: &mut Skb<'_>) -> ConnId {
    ct.track(Time::ZERO, skb).unwrap();
    ct.confirm(Time::ZERO, skb).unwrap();
    let Track::Known { id, .. } = skb.track else { panic!("not in the table") };
    id
}

fn main() {
    let only = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let dram = dram_latency();
    println!("DRAM access {dram:.0} ns, memcpy {:.1} bytes/ns", memcpy_rate());
    let mut bytes = [0; 20];
    HEADER.emit(&mut bytes);
    for v6 in [false, true] {
        for (kind, target) in KINDS.into_iter().filter(|(k, _)| k.contains(&only)) {
            for n in [0, 1, 100, 1_000, 10_000] {
                let family = if v6 { Family::V6 } else { Family::V4 };
                let program = Program::compile(&parse(family, &rules(kind, n, v6)).unwrap()).unwrap();
                let mut counters = CounterSet::new(&program);
                let ct = Conntrack::new(CtConfig::default(), Key(1, 2));
                let mut skb = packet(v6, &bytes);
                let id = confirm(&ct, &mut skb);
                skb.track = Track::Known { id, info: CtInfo::Established, status: Status::CONFIRMED };
                let (mut rng, mut log) = (Rng::new([0; 16]), Outside);
                let packets = 100_000 / (n as u64 + 10) + 1;
                let run = |()| {
                    for _ in 0..packets {
                        let mut env = Env {
                            now: Time::ZERO,
                            rng: &mut rng,
                            ct: &ct,
                            addrs: &Outside,
                            counters: &mut counters,
                            log: &mut log,
                            raw: RawHeaders::default(),
                            bulk: &NoBulk,
                            wall: None,
                        };
                        let outcome = program.run(TableName::Filter, Hook::Forward, black_box(&mut skb), &mut env);
                        assert_eq!(black_box(outcome), Outcome::Accept);
                    }
                };
                // Per rule; of an empty chain, and one of one rule, per packet.
                let m = measure(101, packets * n.max(1) as u64, || (), run);
                let name = format!("{} {kind}, {n} rules", if v6 { "IPv6" } else { "IPv4" });
                report(&name, m, dram, if n <= 1 { "" } else { target });
            }
        }
    }
}
