//! Rules and packets, short to write.

use core::net::IpAddr;
use hibernet_netstack::conntrack::{Conn, ConnId, Conntrack, CtConfig, Track};
use hibernet_netstack::iptables::*;
use hibernet_netstack::nat::{AddrType, Addresses};
use hibernet_netstack::packet::L4;
use hibernet_netstack::rng::{Key, Rng};
use hibernet_netstack::skb::Skb;
use hibernet_netstack::time::Time;
use hibernet_netstack::tuple::proto;
use hibernet_netstack::wire::{icmp, tcp, udp};

pub fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// `addr` or `addr/prefix`.
pub fn net(s: &str) -> Net {
    let (addr, len) = s.split_once('/').unwrap_or((s, if s.contains(':') { "128" } else { "32" }));
    let len: u32 = len.parse().unwrap();
    let mask = match ip(addr) {
        IpAddr::V4(_) => IpAddr::V4((u32::MAX.checked_shl(32 - len).unwrap_or(0)).into()),
        IpAddr::V6(_) => IpAddr::V6((u128::MAX.checked_shl(128 - len).unwrap_or(0)).into()),
    };
    Net { addr: ip(addr), mask }
}

pub fn is<T>(value: T) -> Option<Inv<T>> {
    Some(Inv { not: false, value })
}

pub fn not<T>(value: T) -> Option<Inv<T>> {
    Some(Inv { not: true, value })
}

pub fn iface(name: &str) -> IfaceName {
    IfaceName { name: name.trim_end_matches('+').into(), prefix: name.ends_with('+') }
}

pub fn rule(target: Target) -> Rule {
    Rule { target, ..Rule::default() }
}

pub fn jump(chain: &str) -> Target {
    Target::Jump(chain.into())
}

pub fn goto(chain: &str) -> Target {
    Target::Goto(chain.into())
}

pub fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    let built_in = Hook::ALL.iter().any(|h| h.chain() == name);
    Chain { name: name.into(), policy: built_in.then_some(Policy::Accept), counters: Counters::default(), rules }
}

/// One table with the chains given, and the built-in ones that were not.
pub fn ruleset(family: Family, name: TableName, chains: Vec<Chain>) -> Ruleset {
    let mut all: Vec<_> = name
        .hooks()
        .iter()
        .map(|h| chains.iter().find(|c| c.name == h.chain()).cloned().unwrap_or_else(|| chain(h.chain(), vec![])))
        .collect();
    all.extend(chains.into_iter().filter(|c| c.policy.is_none()));
    Ruleset { family, tables: vec![Table { name, chains: all }] }
}

/// A packet that is neither tracked nor of any interface.
pub fn packet(src: &str, dst: &str, l4: L4, bytes: &'static [u8]) -> Skb<'static> {
    let (protocol, sport, dport) = match l4 {
        L4::Tcp(h, _) => (proto::TCP, h.src_port, h.dst_port),
        L4::Udp(h) => (proto::UDP, h.src_port, h.dst_port),
        L4::Icmp(h) => (proto::ICMP, h.ident(), 0),
        L4::Icmpv6(h) => (proto::ICMPV6, h.ident(), 0),
        L4::Other => (47, 0, 0),
    };
    Skb {
        input: None,
        output: None,
        src_mac: None,
        src: ip(src),
        dst: ip(dst),
        protocol,
        sport,
        dport,
        l4,
        l4_bytes: bytes,
        l4_len: 80,
        len: 100,
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

/// A TCP packet from 10.0.0.1 to 10.0.0.2, or between the IPv6 addresses that end so.
pub fn tcp(v6: bool, sport: u16, dport: u16, flags: u8) -> Skb<'static> {
    let mut b = vec![0; 20];
    tcp::Header {
        src_port: sport,
        dst_port: dport,
        seq: tcp::Seq(1),
        ack: tcp::Seq(2),
        header_len: 20,
        flags: tcp::Flags(flags),
        window: 1000,
        checksum: 0,
        urgent: 0,
    }
    .emit(&mut b);
    tcp_bytes(v6, b)
}

/// A TCP packet with this header.
pub fn tcp_bytes(v6: bool, b: Vec<u8>) -> Skb<'static> {
    let h = tcp::Header::parse(&b, b.len()).unwrap();
    let options = tcp::Options::parse(&b[20..]);
    let (src, dst) = pair(v6);
    packet(src, dst, L4::Tcp(h, options), b.leak())
}

fn pair(v6: bool) -> (&'static str, &'static str) {
    if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") }
}

pub fn udp(v6: bool, sport: u16, dport: u16) -> Skb<'static> {
    let mut b = vec![0; 8];
    let h = udp::Header { src_port: sport, dst_port: dport, len: 8, checksum: 0 };
    h.emit(&mut b);
    let (src, dst) = pair(v6);
    packet(src, dst, L4::Udp(h), b.leak())
}

pub fn icmp(v6: bool, ty: u8, code: u8) -> Skb<'static> {
    let h = icmp::Header { ty, code, checksum: 0, rest: 0x1234_0001 };
    let mut b = vec![0; 8];
    h.emit(&mut b);
    let (src, dst) = pair(v6);
    packet(src, dst, if v6 { L4::Icmpv6(h) } else { L4::Icmp(h) }, b.leak())
}

/// 10.0.0.2 and fd00::2 are ours on every interface, 10.0.0.3 and fd00::3 on host0 only.
pub struct Addrs;

impl Addresses for Addrs {
    fn kind(&self, addr: IpAddr, on: Option<Iface>) -> AddrType {
        match addr {
            IpAddr::V4(a) if a.is_broadcast() => AddrType::Broadcast,
            a if a.is_multicast() => AddrType::Multicast,
            a if a.is_unspecified() => AddrType::Unspec,
            a if a == ip("10.0.0.2") || a == ip("fd00::2") => AddrType::Local,
            a if a == ip("10.0.0.3") || a == ip("fd00::3") => match on {
                None | Some(Iface::Host0) => AddrType::Local,
                _ => AddrType::Unicast,
            },
            a if a == ip("10.0.0.9") || a == ip("fd00::9") => AddrType::Prohibit,
            _ => AddrType::Unicast,
        }
    }

    fn primary(&self, _: Iface, v6: bool) -> Option<IpAddr> {
        Some(ip(if v6 { "fd00::fe" } else { "192.0.2.1" }))
    }

    fn first(&self, _: Iface, v6: bool) -> Option<IpAddr> {
        Some(ip(if v6 { "fd00::2" } else { "10.0.0.2" }))
    }
}

/// Lines that were logged.
#[derive(Default)]
pub struct Lines(pub Vec<String>);

impl LogSink for Lines {
    fn log(&mut self, entry: &LogEntry<'_>) {
        self.0.push(entry.to_string());
    }
}

/// A program and what it needs to run.
pub struct Bench {
    pub program: Program,
    pub counters: CounterSet,
    pub rng: Rng,
    pub log: Lines,
    pub now: Time,
    pub ct: Conntrack,
}

impl Bench {
    pub fn new(rules: &Ruleset) -> Bench {
        let program = Program::compile(rules).unwrap_or_else(|e| panic!("{e}"));
        let counters = CounterSet::new(&program);
        Bench {
            program,
            counters,
            rng: Rng::new([7; 16]),
            log: Lines::default(),
            now: Time::ZERO,
            ct: Conntrack::new(CtConfig::default(), Key(1, 2)),
        }
    }

    pub fn run(&mut self, table: TableName, hook: Hook, skb: &mut Skb<'_>) -> Outcome {
        let mut env = Env {
            now: self.now,
            rng: &mut self.rng,
            ct: &self.ct,
            addrs: &Addrs,
            counters: &mut self.counters,
            log: &mut self.log,
            raw: RawHeaders::default(),
            bulk: &NoBulk,
            wall: None,
        };
        self.program.run(table, hook, skb, &mut env)
    }

    /// Puts a connection into the table.
    pub fn confirm(&self, conn: Conn) -> ConnId {
        let mut skb = udp(false, 1, 2);
        skb.track = Track::Fresh { conn, related: false, len: 0 };
        self.ct.confirm(self.now, &mut skb).unwrap();
        let Track::Known { id, .. } = skb.track else { panic!("not in the table") };
        id
    }

    /// Packets that met each rule of a chain, then its policy.
    pub fn counts(&self, chain: &str) -> Vec<u64> {
        let rules = self.program.ruleset([&self.counters]);
        let chain = rules.tables.iter().flat_map(|t| &t.chains).find(|c| c.name == chain).unwrap();
        chain.rules.iter().map(|r| r.counters).chain([chain.counters]).map(|c| c.packets).collect()
    }
}
