//! Long chains, asked by look-ups and rule by rule.

use super::number;
use core::fmt::Write;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::{Conntrack, CtConfig, Track};
use hibernet_netstack::edge::{LinkId, Payload};
use hibernet_netstack::iptables::{
    CounterSet, Env, Family, Hook, Iface, LogEntry, LogSink, NoBulk, Outcome, Program, RawHeaders, Ruleset, TableName, text,
};
use hibernet_netstack::nat::{AddrType, Addresses};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::{Key, Rng};
use hibernet_netstack::skb::Skb;
use hibernet_netstack::wire::{tcp, udp};
use hibernet_tests::SplitMix;

/// Packets of one ruleset.
const CASE: u64 = 2_000;

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

/// Writes rules and packets that meet.
struct Writer {
    r: SplitMix,
    v6: bool,
    /// In how large a part of all addresses and ports everything happens: the smaller, the more meets.
    bits: u64,
}

impl Writer {
    fn addr(&mut self) -> IpAddr {
        let n = self.r.below(1 << self.bits) as u32;
        // Spread over all of the address, so that prefixes of every length tell some apart.
        let n = n | n << 12 | n << 23;
        if self.v6 {
            let high = (u128::from(n) << 90) | u128::from(n);
            IpAddr::V6(Ipv6Addr::from_bits(0x2000 << 112 | high))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(n))
        }
    }

    fn port(&mut self) -> u16 {
        let n = self.r.below(1 << self.bits) as u16;
        if self.r.chance(50) { n } else { n.wrapping_mul(0x0909) }
    }

    fn ports(&mut self, sep: char) -> String {
        let (a, b) = (self.port(), self.port());
        if a == b || self.r.chance(60) { a.to_string() } else { format!("{}{sep}{}", a.min(b), a.max(b)) }
    }

    fn not(&mut self) -> &'static str {
        if self.r.chance(8) { "! " } else { "" }
    }

    fn net(&mut self) -> String {
        let a = self.addr();
        let most = if self.v6 { 128 } else { 32 };
        match self.r.below(10) {
            0..5 => a.to_string(),
            5..9 => format!("{a}/{}", self.r.below(most + 1)),
            _ if self.v6 => format!("{a}/ffff:ff0f:ffff::f0ff"),
            _ => format!("{a}/255.15.240.255"),
        }
    }

    /// What a rule tests.
    fn tests(&mut self) -> String {
        let mut t = String::new();
        for (option, percent) in [("-s", 45), ("-d", 45)] {
            if self.r.chance(percent) {
                let (not, net) = (self.not(), self.net());
                write!(t, " {not}{option} {net}").unwrap();
            }
        }
        if self.r.chance(10) {
            write!(t, " -i tap{}", self.r.below(2)).unwrap();
        }
        // A test that changes something goes first, now and then: nothing behind it may be looked up before it was asked.
        if self.r.chance(8) {
            let n = self.r.range(2, 5);
            write!(t, " -m statistic --mode nth --every {n} --packet 0").unwrap();
        }
        if self.r.chance(50) {
            let proto = if self.r.chance(70) { "tcp" } else { "udp" };
            write!(t, " -p {proto}").unwrap();
            if self.r.chance(25) {
                let n = self.r.range(1, 6);
                let list: Vec<String> = (0..n).map(|_| self.ports(':')).collect();
                let which = ["--sports", "--dports", "--ports"][self.r.below(3) as usize];
                write!(t, " -m multiport {}{which} {}", self.not(), list.join(",")).unwrap();
            } else {
                write!(t, " -m {proto}").unwrap();
                for (option, percent) in [("--sport", 30), ("--dport", 60)] {
                    if self.r.chance(percent) {
                        let (not, ports) = (self.not(), self.ports(':'));
                        write!(t, " {not}{option} {ports}").unwrap();
                    }
                }
                if proto == "tcp" && self.r.chance(10) {
                    t += " --tcp-flags SYN,ACK SYN";
                }
            }
        }
        if self.r.chance(15) {
            let (a, b) = (self.addr(), self.addr());
            let which = if self.r.chance(50) { "src" } else { "dst" };
            write!(t, " -m iprange {}--{which}-range {}-{}", self.not(), a.min(b), a.max(b)).unwrap();
        }
        if self.r.chance(5) {
            write!(t, " -m mark --mark 0x{:x}/0x3", self.r.below(4)).unwrap();
        }
        t
    }

    fn rules(&mut self, users: u64, n: u64) -> String {
        let mut t = String::from("*mangle\n:FORWARD ACCEPT [0:0]\n");
        (0..users).for_each(|u| writeln!(t, ":U{u} - [0:0]").unwrap());
        for i in 0..n {
            // Rules of a chain come in runs; chains call those of higher numbers only.
            let chain = (i * (users + 1) / n).checked_sub(1);
            let name = chain.map_or("FORWARD".into(), |u| format!("U{u}"));
            let tests = self.tests();
            let from = chain.map_or(0, |u| u + 1);
            let target = match self.r.below(20) {
                0..5 => " -j ACCEPT".into(),
                5..8 => " -j DROP".into(),
                8 => " -j RETURN".into(),
                9 | 10 => format!(" -j MARK --set-xmark 0x{:x}/0x3", self.r.below(4)),
                11..16 if from < users => {
                    let jump = if self.r.chance(70) { "-j" } else { "-g" };
                    format!(" {jump} U{}", self.r.range(from, users - 1))
                }
                _ => String::new(),
            };
            writeln!(t, "-A {name}{tests}{target}").unwrap();
        }
        t + "COMMIT\n"
    }

    fn packet<'a>(&mut self, bytes: &'a mut [u8; 20]) -> Skb<'a> {
        let (src_port, dst_port) = (self.port(), self.port());
        let (protocol, l4) = match self.r.below(10) {
            0..7 => {
                let flags = if self.r.chance(50) { tcp::Flags::SYN } else { tcp::Flags::ACK };
                let (seq, ack) = (tcp::Seq(1), tcp::Seq(1));
                let h = tcp::Header { src_port, dst_port, seq, ack, header_len: 20, flags, window: 1, checksum: 0, urgent: 0 };
                h.emit(bytes);
                (6, L4::Tcp(h, tcp::Options::default()))
            }
            7..9 => {
                let h = udp::Header { src_port, dst_port, len: 8, checksum: 0 };
                h.emit(bytes);
                (17, L4::Udp(h))
            }
            _ => (132, L4::Other),
        };
        let has_ports = protocol != 132;
        Skb {
            input: Some(Iface::Link(LinkId(self.r.below(2) as u8))),
            output: Some(Iface::Host0),
            src_mac: None,
            src: self.addr(),
            dst: self.addr(),
            protocol,
            sport: if has_ports { src_port } else { 0 },
            dport: if has_ports { dst_port } else { 0 },
            l4,
            l4_bytes: bytes,
            l4_len: 20,
            len: 40,
            tos: 0,
            hop_limit: 64,
            mark: self.r.below(4) as u32,
            zones: [0; 2],
            track: Track::None,
            quoted: None,
            owner: None,
            cast: Default::default(),
            ip_bytes: &[],
            body: Payload::EMPTY,
            traced: false,
            altered: Default::default(),
        }
    }
}

/// A program with what a worker has for it.
struct Asked {
    program: Program,
    counters: CounterSet,
    rng: Rng,
}

impl Asked {
    fn new(rules: &Ruleset, look_ups: bool) -> Self {
        let program = Program::compile(rules).unwrap();
        let mut counters = CounterSet::new(&program);
        counters.set_look_ups(look_ups);
        Asked { program, counters, rng: Rng::new([3; 16]) }
    }

    fn ask(&mut self, ct: &Conntrack, skb: &mut Skb<'_>) -> Outcome {
        let mut env = Env {
            now: Time::ZERO,
            rng: &mut self.rng,
            ct,
            addrs: &Outside,
            counters: &mut self.counters,
            log: &mut Outside,
            raw: RawHeaders::default(),
            bulk: &NoBulk,
            wall: None,
        };
        self.program.run(TableName::Mangle, Hook::Forward, skb, &mut env)
    }
}

#[test]
fn verdict_marks_and_counters_are_those_of_rule_by_rule() {
    let ct = Conntrack::new(CtConfig::default(), Key(1, 2));
    let first = number("HIBERNET_SHORTCUT_FIRST", 0);
    let (mut looked_up, mut dropped) = (0, 0);
    let packets = 10 * number("HIBERNET_SHORTCUT_PACKETS", 20_000);
    for seed in first..first + packets.div_ceil(CASE) {
        let mut w = Writer { r: SplitMix::new(seed).fork(), v6: seed % 3 == 2, bits: 2 + seed % 9 };
        let (users, n) = (w.r.below(4), w.r.range(40, 600));
        let text = w.rules(users, n);
        let family = if w.v6 { Family::V6 } else { Family::V4 };
        let rules = text::parse(family, &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let (mut quick, mut plain) = (Asked::new(&rules, true), Asked::new(&rules, false));
        looked_up += u64::from(quick.program.look_up_bytes() > 0);
        for n in 0..CASE {
            let mut bytes = [0; 20];
            let mut skb = w.packet(&mut bytes);
            let mut other = skb.clone();
            let got = (quick.ask(&ct, &mut skb), plain.ask(&ct, &mut other));
            let say = || format!("seed {seed}, packet {n}: {skb:?}\n{text}");
            assert_eq!(got.0, got.1, "{}", say());
            assert_eq!(skb.mark, other.mark, "{}", say());
            dropped += u64::from(got.0 != Outcome::Accept);
        }
        let counted = [&quick, &plain].map(|a| a.program.ruleset([&a.counters]));
        assert!(counted[0] == counted[1], "seed {seed}: counters differ\n{text}");
    }
    let cases = packets.div_ceil(CASE);
    eprintln!("{packets} packets, {looked_up} of {cases} rulesets with look-ups, {dropped} packets dropped");
    assert!(looked_up * 2 > cases && dropped * 10 > packets && dropped * 10 < packets * 9);
}

/// Chains made to be looked up badly take no more memory than their rules allow, and no longer than a multiple of asking one by one.
#[test]
fn hostile_chains_are_compiled_in_bounds() {
    let all_shapes = |i: usize| format!("-s {}.{}.0.0/{} -d 10.0.0.0/{}", i % 200, i / 200, 1 + i % 32, 1 + i / 32 % 32);
    let one_cell = |i: usize| format!("-s 10.0.0.1 -m mark --mark {i}");
    let lists = |i: usize| {
        let list: Vec<String> =
            (0..7).map(|n| format!("{}:{}", (i + n * 4000) % 30_000, (i + n * 4000) % 30_000 + 999)).collect();
        format!("-p tcp -m multiport --dports {} -m iprange --src-range 9.255.0.0-10.0.{}.255", list.join(","), i % 250)
    };
    let kinds: [&dyn Fn(usize) -> String; 3] = [&all_shapes, &one_cell, &lists];
    for (kind, rule) in kinds.iter().enumerate() {
        let text: String = (0..5_000).map(|i| format!("-A FORWARD {} -j DROP\n", rule(i))).collect();
        let rules = text::parse(Family::V4, &format!("*filter\n{text}COMMIT\n")).unwrap();
        let bytes = Program::compile(&rules).unwrap().look_up_bytes();
        assert!(bytes <= 5_000 * 32 * 40, "kind {kind}: {bytes} bytes");
    }
}
