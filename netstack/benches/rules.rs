//! What rules cost a packet that passes them.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use core::hint::black_box;
use core::net::IpAddr;
use hibernet_netstack::conntrack::{ConnId, Conntrack, CtConfig, CtInfo, Status, Track};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::text;
use hibernet_netstack::iptables::*;
use hibernet_netstack::nat::{AddrType, Addresses};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::{Key, Rng};
use hibernet_netstack::skb::Skb;
use hibernet_netstack::time::Time;
use hibernet_netstack::wire::{Mac, tcp};
use std::fmt::Write;
use std::time::Instant;

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

/// Rules none of which fits the packet, by kind.
fn rule(kind: &str, i: usize, v6: bool, out: &mut String) {
    let a = |n: usize| {
        if v6 {
            format!("2001:db8:{:x}::{:x}", n / 251, n % 251 + 1)
        } else {
            format!("10.{}.{}.{}", n / 62_500, n / 250 % 250, n % 250 + 3)
        }
    };
    match kind {
        // A mix of what firewalls test.
        "simple" => {
            let r = match i % 6 {
                0 => format!("-s {} -j DROP", a(i)),
                1 => format!("-p tcp -m tcp --dport {} -j DROP", 1000 + i % 5000),
                2 => format!("-s {} -d {} -j ACCEPT", a(i), a(i + 1)),
                3 => format!("-d {} -p tcp -m tcp --dport 443 -j DROP", a(i)),
                4 => format!("-i tap1 -p udp -m udp --sport {} -j DROP", 1 + i % 1000),
                _ => format!("! -s {}/{} -p tcp -j DROP", if v6 { "fd00::" } else { "192.168.0.0" }, if v6 { 64 } else { 16 }),
            };
            writeln!(out, "-A FORWARD {r}")
        }
        "multiport" => writeln!(out, "-A FORWARD -p tcp -m multiport --dports {},{},8000:8100 -j DROP", 1000 + i % 5000, 7000),
        "state" => writeln!(out, "-A FORWARD -m conntrack --ctstate NEW,INVALID -j DROP"),
        "mark" => writeln!(out, "-A FORWARD -m mark --mark {} -j DROP", i + 1),
        "ctdir" => writeln!(out, "-A FORWARD -m conntrack --ctdir REPLY -j DROP"),
        "mixed-mark" => {
            writeln!(out, "-A FORWARD -p tcp -m mark --mark {}/0xff00 -m comment --comment x -j DROP", 0x100 + i % 7 * 0x100)
        }
        _ => unreachable!(),
    }
    .unwrap();
}

fn rules(kind: &str, n: usize, v6: bool) -> String {
    let mut t = String::from("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n");
    if kind == "chains" {
        for c in 0..n / 10 {
            writeln!(t, ":U{c} - [0:0]").unwrap();
        }
        for c in 0..n / 10 {
            writeln!(t, "-A FORWARD -p tcp -j U{c}").unwrap();
            for i in 0..9 {
                let mut line = String::new();
                rule("simple", c * 9 + i, v6, &mut line);
                t += &line.replace("FORWARD", &format!("U{c}"));
            }
        }
    } else {
        (0..n).for_each(|i| rule(kind, i, v6, &mut t));
    }
    t + "COMMIT\n"
}

fn main() {
    let header = tcp::Header {
        src_port: 40000,
        dst_port: 80,
        seq: tcp::Seq(1),
        ack: tcp::Seq(1),
        header_len: 20,
        flags: tcp::Flags(16),
        window: 1000,
        checksum: 0,
        urgent: 0,
    };
    let mut bytes = [0; 20];
    header.emit(&mut bytes);
    for v6 in [false, true] {
        for kind in ["simple", "multiport", "chains", "state", "mark", "ctdir", "mixed-mark"] {
            for n in [0, 100, 1_000, 10_000] {
                let (family, src, dst): (_, &str, &str) =
                    if v6 { (Family::V6, "fd00::15", "2606:4700::1") } else { (Family::V4, "192.168.0.15", "93.184.216.34") };
                let set = text::parse(family, &rules(kind, n, v6)).unwrap();
                let t0 = Instant::now();
                let program = Program::compile(&set).unwrap();
                let compile = t0.elapsed();
                let mut counters = CounterSet::new(&program);
                let mut skb = Skb {
                    input: Some(Iface::Link(LinkId(0))),
                    output: Some(Iface::Host0),
                    src_mac: Some(Mac([2; 6])),
                    src: src.parse().unwrap(),
                    dst: dst.parse().unwrap(),
                    protocol: 6,
                    sport: 40000,
                    dport: 80,
                    l4: L4::Tcp(header, tcp::Options::default()),
                    l4_bytes: &bytes,
                    l4_len: 20,
                    len: 60,
                    tos: 0,
                    hop_limit: 64,
                    mark: 0,
                    zones: [0; 2],
                    track: Track::Known {
                        id: ConnId { index: 0, generation: 0 },
                        info: CtInfo::Established,
                        status: Status::CONFIRMED,
                    },
                    quoted: None,
                    owner: None,
                };
                let mut rng = Rng::new([0; 16]);
                let mut sink = Outside;
                let ct = Conntrack::new(CtConfig::default(), Key(1, 2));
                let loops = 30_000 / (n + 100) + 1;
                let mut best = f64::MAX;
                for _ in 0..400 {
                    let t = Instant::now();
                    for _ in 0..loops {
                        let mut env = Env {
                            now: Time::ZERO,
                            rng: &mut rng,
                            ct: &ct,
                            addrs: &Outside,
                            counters: &mut counters,
                            log: &mut sink,
                            raw: RawHeaders::default(),
                        };
                        let o = program.run(TableName::Filter, Hook::Forward, black_box(&mut skb), &mut env);
                        assert_eq!(black_box(o), Outcome::Accept);
                    }
                    best = best.min(t.elapsed().as_nanos() as f64 / loops as f64);
                }
                println!(
                    "{} {kind:10} {n:6}: {best:10.1} ns a packet, {:6.2} ns a rule; compiled in {:?}",
                    if v6 { "v6" } else { "v4" },
                    best / n.max(1) as f64,
                    compile
                );
            }
        }
    }
}
