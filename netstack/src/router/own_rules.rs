//! The rules that the configuration stands for: published ports in the nat table, the safe reach in the filter table.
//!
//! They are in chains of our own, which are made anew whenever rules are loaded; a ruleset that does not say where to
//! jump to them has them first. What the reach forbids beyond these rules (addresses that embed a forbidden one) is refused when the
//! packet is routed.

use crate::config::{AllowHost, Config, Egress, Publish};
use crate::iptables::{
    Chain, Counters, CtMatch, Family, IfaceName, Inv, Match, Net, Policy, RejectWith, Rule, Ruleset, Table, TableName, Target,
    ctstate,
};
use crate::nat::{AddrType, NatRange};
use crate::reach::{METADATA_V4, METADATA_V6};
use crate::tuple::proto;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Chain of the published ports (nat).
const PUBLISH: &str = "HIBERNET-PUBLISH";
/// Chain that gives clients our address whose own one means nothing to the guest (nat).
const CLIENTS: &str = "HIBERNET-CLIENTS";
/// Chain of the safe reach (filter).
const REACH: &str = "HIBERNET-REACH";

/// A ruleset with our own chains in it. `tracked` says whether packets are tracked.
pub(super) fn with_own(cfg: &Config, mut rules: Ruleset, tracked: bool) -> Ruleset {
    let v6 = rules.family == Family::V6;
    let on = if v6 { cfg.v6.is_some() } else { cfg.v4.is_some() };
    if !on {
        return rules;
    }
    let publish = publish_rules(cfg, v6);
    if !publish.is_empty() {
        let table = table_of(&mut rules, TableName::Nat);
        let from_host = Rule { input: iface("host0", false), ..jump(PUBLISH) };
        put(table, PUBLISH, publish, &[("PREROUTING", from_host), ("OUTPUT", jump(PUBLISH))]);
        let translated = CtMatch { state: Some(is(ctstate::DNAT)), ..CtMatch::default() };
        let translated =
            Rule { output: iface("tap", true), matches: vec![Match::Conntrack(Box::new(translated))], ..jump(CLIENTS) };
        put(table, CLIENTS, client_rules(cfg, v6), &[("POSTROUTING", translated)]);
    }
    let new = CtMatch { state: Some(is(ctstate::NEW)), ..CtMatch::default() };
    let matches = if tracked { vec![Match::Conntrack(Box::new(new))] } else { Vec::new() };
    let to_host = Rule { output: iface("host0", false), matches, ..jump(REACH) };
    put(table_of(&mut rules, TableName::Filter), REACH, reach_rules(cfg, v6), &[("FORWARD", to_host)]);
    rules
}

/// Built-in chains of a table.
fn built_in(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Raw => &["PREROUTING", "OUTPUT"],
        TableName::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        TableName::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        TableName::Filter | TableName::Security => &["INPUT", "FORWARD", "OUTPUT"],
    }
}

fn table_of(rules: &mut Ruleset, name: TableName) -> &mut Table {
    let at = match rules.tables.iter().position(|t| t.name == name) {
        Some(at) => at,
        None => {
            let chain = |&name: &&str| chain(name, Some(Policy::Accept), Vec::new());
            let table = Table { name, chains: built_in(name).iter().map(chain).collect() };
            let at = rules.tables.iter().position(|t| t.name > name).unwrap_or(rules.tables.len());
            rules.tables.insert(at, table);
            at
        }
    };
    &mut rules.tables[at]
}

fn chain(name: &str, policy: Option<Policy>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), policy, counters: Counters::default(), rules }
}

/// Puts a chain of ours into a table, and the jumps to it where the table has none.
fn put(table: &mut Table, name: &str, rules: Vec<Rule>, jumps: &[(&str, Rule)]) {
    match table.chains.iter_mut().find(|c| c.name == name) {
        Some(c) => c.rules = keep_counters(&c.rules, rules),
        None => {
            let after = |c: &Chain| c.policy.is_none() && c.name.as_str() > name;
            let at = table.chains.iter().position(after).unwrap_or(table.chains.len());
            table.chains.insert(at, chain(name, None, rules));
        }
    }
    let leads_here = |r: &Rule| matches!(&r.target, Target::Jump(to) | Target::Goto(to) if to == name);
    if table.chains.iter().any(|c| c.rules.iter().any(leads_here)) {
        return;
    }
    for (from, rule) in jumps {
        if let Some(c) = table.chains.iter_mut().find(|c| c.name == *from && c.policy.is_some()) {
            c.rules.insert(0, rule.clone());
        }
    }
}

/// The new rules with the counters of those of the old ones that are the same.
fn keep_counters(old: &[Rule], mut new: Vec<Rule>) -> Vec<Rule> {
    for rule in &mut new {
        let same = |o: &&Rule| Rule { counters: Counters::default(), ..(*o).clone() } == *rule;
        if let Some(counters) = old.iter().find(same).map(|o| o.counters) {
            rule.counters = counters;
        }
    }
    new
}

fn is<T>(value: T) -> Inv<T> {
    Inv { not: false, value }
}

fn jump(to: &str) -> Rule {
    Rule { target: Target::Jump(to.to_owned()), ..Rule::default() }
}

fn local(source: bool) -> Match {
    let kind = Some(is(1 << AddrType::Local as u16));
    Match::Addrtype { src: kind.filter(|_| source), dst: kind.filter(|_| !source), limit_in: false, limit_out: false }
}

fn iface(name: &str, prefix: bool) -> Option<Inv<IfaceName>> {
    Some(is(IfaceName { name: name.to_owned(), prefix }))
}

fn net(addr: IpAddr, len: u32) -> Option<Inv<Net>> {
    let (addr, mask) = match addr {
        IpAddr::V4(a) => {
            let mask = !u32::MAX.checked_shr(len).unwrap_or(0);
            (Ipv4Addr::from_bits(a.to_bits() & mask).into(), Ipv4Addr::from_bits(mask).into())
        }
        IpAddr::V6(a) => {
            let mask = !u128::MAX.checked_shr(len).unwrap_or(0);
            (Ipv6Addr::from_bits(a.to_bits() & mask).into(), Ipv6Addr::from_bits(mask).into())
        }
    };
    Some(is(Net { addr, mask }))
}

fn host(addr: IpAddr) -> Option<Inv<Net>> {
    net(addr, if addr.is_ipv4() { 32 } else { 128 })
}

/// The published ports: one rule for a range that keeps its numbers, else one for each port. (A range with a base would do too, but
/// where a client's connections clash it leads one to another port: Linux searches the range for a free one.)
fn publish_rules(cfg: &Config, v6: bool) -> Vec<Rule> {
    let guest: IpAddr = match (v6, cfg.v4, cfg.v6) {
        (false, Some(c), _) => c.guest.into(),
        (true, _, Some(c)) => c.guest.into(),
        _ => return Vec::new(),
    };
    let mut rules = Vec::new();
    for p in cfg.publish.iter().filter(|p| p.addr.is_none_or(|a| a.is_ipv6() == v6)) {
        let (first, last) = p.host_ports;
        if p.guest_port == first {
            rules.push(publish_rule(p, (first, last), guest, None));
            continue;
        }
        let pairs = (first..=last).zip(p.guest_port..=u16::MAX);
        rules.extend(pairs.map(|(host, to)| publish_rule(p, (host, host), guest, Some((to, to)))));
    }
    rules
}

fn publish_rule(p: &Publish, host_ports: (u16, u16), guest: IpAddr, ports: Option<(u16, u16)>) -> Rule {
    let dport = Some(is(host_ports));
    let tested = match p.proto {
        proto::UDP => Match::Udp { sport: None, dport },
        _ => Match::Tcp { sport: None, dport, flags: None, option: None },
    };
    Rule {
        dst: p.addr.filter(|a| !a.is_unspecified()).and_then(host),
        proto: Some(is(p.proto)),
        matches: vec![tested],
        target: Target::Dnat(NatRange { addrs: Some((guest, guest)), ports, ..NatRange::default() }),
        ..Rule::default()
    }
}

/// Clients whose addresses the guest could not answer: those of the host, link-local ones, and the guest's own.
fn client_rules(cfg: &Config, v6: bool) -> Vec<Rule> {
    let masquerade = || Rule { target: Target::Masquerade(NatRange::default()), ..Rule::default() };
    let from = |src: Option<Inv<Net>>| Rule { src, ..masquerade() };
    let mut rules = vec![Rule { matches: vec![local(true)], ..masquerade() }];
    if v6 {
        rules.push(from(net(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10)));
        rules.extend(cfg.v6.map(|c| from(net(c.guest.into(), c.prefix.into()))));
    } else {
        rules.push(from(net(Ipv4Addr::new(169, 254, 0, 0).into(), 16)));
        rules.extend(cfg.v4.map(|c| from(host(c.guest.into()))));
    }
    let mapped = cfg.reach.map_host_loopback.iter().filter(|a| a.is_ipv6() == v6);
    rules.extend(mapped.map(|a| from(host(*a))));
    rules
}

/// The safe reach, in the order in which it is decided.
fn reach_rules(cfg: &Config, v6: bool) -> Vec<Rule> {
    let reach = &cfg.reach;
    let deny = || {
        let with = if v6 { RejectWith::Icmp6(1) } else { RejectWith::Icmp(13) };
        Rule { target: Target::Reject(with), ..Rule::default() }
    };
    let allow = || Rule { target: Target::Return, ..Rule::default() };
    let of_family = |a: &IpAddr| a.is_ipv6() == v6;
    let mut rules: Vec<Rule> = Vec::new();
    for a in reach.map_host_loopback.iter().copied().filter(of_family) {
        rules.push(Rule { dst: host(a), ..allow() });
    }
    let never: &[(IpAddr, u32)] = if v6 {
        &[
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
            (IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96),
        ]
    } else {
        &[
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8),
            (IpAddr::V4(Ipv4Addr::LOCALHOST), 8),
            (IpAddr::V4(Ipv4Addr::new(240, 0, 0, 0)), 4),
        ]
    };
    rules.extend(never.iter().map(|&(a, len)| Rule { dst: net(a, len), ..deny() }));
    for open in &reach.allow_host {
        match *open {
            AllowHost::Any => rules.push(Rule { matches: vec![local(false)], ..allow() }),
            AllowHost::Addr(a) if of_family(&a) => rules.push(Rule { dst: host(a), ..allow() }),
            AllowHost::Port(e) if of_family(&e.addr) => rules.extend([proto::TCP, proto::UDP].map(|proto| {
                let dport = Some(is((e.port, e.port)));
                let ports = match proto {
                    proto::UDP => Match::Udp { sport: None, dport },
                    _ => Match::Tcp { sport: None, dport, flags: None, option: None },
                };
                Rule { dst: host(e.addr), proto: Some(is(proto)), matches: vec![ports], ..allow() }
            })),
            AllowHost::Addr(_) | AllowHost::Port(_) => {}
        }
    }
    rules.push(Rule { matches: vec![local(false)], ..deny() });
    let link_local = if v6 {
        net(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10)
    } else {
        net(Ipv4Addr::new(169, 254, 0, 0).into(), 16)
    };
    let metadata = METADATA_V4.map(IpAddr::from).into_iter().chain(METADATA_V6.map(IpAddr::from)).filter(of_family);
    let verdict = if reach.allow_metadata { allow() } else { deny() };
    rules.push(Rule { dst: link_local, ..verdict.clone() });
    rules.extend(metadata.map(|a| Rule { dst: host(a), ..verdict.clone() }));
    match reach.egress {
        Egress::Open => {}
        Egress::Public => {
            let private: &[(IpAddr, u32)] = if v6 {
                &[
                    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
                    (IpAddr::V6(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0)), 10),
                ]
            } else {
                &[
                    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
                    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
                    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
                    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
                    (IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)), 15),
                ]
            };
            rules.extend(private.iter().map(|&(a, len)| Rule { dst: net(a, len), ..deny() }));
        }
        Egress::None => rules.push(deny()),
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Reach;
    use crate::iptables::{Program, text};
    use crate::tuple::Endpoint;

    /// One configuration for each choice of each option.
    fn configurations() -> Vec<Config> {
        let ip = |a: &str| -> IpAddr { a.parse().unwrap() };
        let publish = |proto, addr: Option<&str>, last, guest_port| Publish {
            proto,
            addr: addr.map(ip),
            host_ports: (8000, last),
            guest_port,
        };
        let published = [
            vec![],
            vec![publish(proto::TCP, None, 8000, 80), publish(proto::UDP, None, 8000, 8000)],
            vec![publish(proto::TCP, Some("0.0.0.0"), 8010, 9000), publish(proto::UDP, Some("127.0.0.1"), 8010, 8000)],
            vec![publish(proto::TCP, Some("::1"), 8010, u16::MAX), publish(proto::UDP, Some("::"), 8000, 53)],
        ];
        let hosts = [
            vec![],
            vec![AllowHost::Any],
            vec![AllowHost::Addr(ip("192.0.2.1")), AllowHost::Addr(ip("2001:db8::1"))],
            vec![AllowHost::Port(Endpoint::new(ip("192.0.2.1"), 443)), AllowHost::Port(Endpoint::new(ip("2001:db8::1"), 53))],
        ];
        let mapped = [vec![], vec![ip("10.0.2.2"), ip("fd00::1")]];
        let mut all = Vec::new();
        for publish in &published {
            for allow_host in &hosts {
                for map_host_loopback in &mapped {
                    for egress in [Egress::Open, Egress::Public, Egress::None] {
                        for allow_metadata in [false, true] {
                            let (allow_host, map_host_loopback) = (allow_host.clone(), map_host_loopback.clone());
                            let reach = Reach { egress, map_host_loopback, allow_host, allow_metadata };
                            all.push(Config { reach, publish: publish.clone(), ..Config::default() });
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn rules_of_every_configuration_compile_and_can_be_read_back() {
        for cfg in configurations() {
            for family in [Family::V4, Family::V6] {
                for tracked in [false, true] {
                    let rules = with_own(&cfg, Ruleset { family, tables: Vec::new() }, tracked || !cfg.publish.is_empty());
                    let printed = text::print(&rules, text::PrintOptions::default());
                    Program::compile(&rules).unwrap_or_else(|e| panic!("{e}\n{printed}"));
                    let read = text::parse(family, &printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
                    assert_eq!(text::print(&read, text::PrintOptions::default()), printed);
                }
            }
        }
    }

    #[test]
    fn put_in_again_they_are_the_same_and_keep_what_they_counted() {
        for cfg in configurations() {
            let mut once = with_own(&cfg, Ruleset { family: Family::V4, tables: Vec::new() }, true);
            for chain in once.tables.iter_mut().flat_map(|t| &mut t.chains) {
                chain.rules.iter_mut().for_each(|r| r.counters = Counters { packets: 3, bytes: 180 });
            }
            assert_eq!(with_own(&cfg, once.clone(), true), once);
        }
    }

    #[test]
    fn a_jump_that_stands_elsewhere_stays_there() {
        let cfg = Config::default();
        let rules = "*filter\n:HIBERNET-REACH - [0:0]\n-A FORWARD -j ACCEPT\n-A FORWARD -j HIBERNET-REACH\nCOMMIT\n";
        let rules = with_own(&cfg, text::parse(Family::V4, rules).unwrap(), true);
        let forward = rules.tables[0].chains.iter().find(|c| c.name == "FORWARD").unwrap();
        assert_eq!(forward.rules.len(), 2);
        assert_eq!(forward.rules[0].target, Target::Accept);
    }
}
