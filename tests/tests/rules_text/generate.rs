//! Rulesets at random, in the form in which they come out of a text.

use hibernet_netstack::iptables::{
    Chain, Connmark, Counters, CtMatch, CtTarget, Family, IcmpType, IfaceName, Inv, LogTarget, Match, Net, Policy, PortRange,
    Ports, RateUnit, RejectWith, Rule, Ruleset, Statistic, Table, TableName, Target, ZoneDir,
};
use hibernet_netstack::nat::NatRange;
use hibernet_netstack::wire::Mac;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub fn inv<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Inv<T>> {
    (any::<bool>(), value).prop_map(|(not, value)| Inv { not, value })
}

fn addr(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<u32>().prop_map(|a| Ipv4Addr::from(a).into()).boxed(),
        // Runs of zeros, mapped and compatible addresses as well.
        Family::V6 => prop_oneof![
            any::<u128>(),
            any::<u32>().prop_map(u128::from),
            any::<u32>().prop_map(|a| 0xffff_0000_0000 | u128::from(a)),
            (any::<u16>(), any::<u16>()).prop_map(|(a, b)| u128::from(a) << 112 | u128::from(b)),
        ]
        .prop_map(|a| Ipv6Addr::from(a).into())
        .boxed(),
    }
}

fn prefix(family: Family) -> impl Strategy<Value = Net> {
    let bits = if family == Family::V4 { 32u32 } else { 128 };
    (addr(family), 0..=bits).prop_map(move |(addr, len)| match family {
        Family::V4 => net(addr, Ipv4Addr::from(u32::MAX.checked_shl(32 - len).unwrap_or(0)).into()),
        Family::V6 => net(addr, Ipv6Addr::from(u128::MAX.checked_shl(128 - len).unwrap_or(0)).into()),
    })
}

fn net(addr: IpAddr, mask: IpAddr) -> Net {
    let addr = match (addr, mask) {
        (IpAddr::V4(a), IpAddr::V4(m)) => Ipv4Addr::from(u32::from(a) & u32::from(m)).into(),
        (IpAddr::V6(a), IpAddr::V6(m)) => Ipv6Addr::from(u128::from(a) & u128::from(m)).into(),
        _ => addr,
    };
    Net { addr, mask }
}

fn any_net(family: Family) -> impl Strategy<Value = Net> {
    prop_oneof![3 => prefix(family), 1 => (addr(family), addr(family)).prop_map(|(a, m)| net(a, m))]
}

/// An address to test, which is not every address.
fn tested(family: Family) -> impl Strategy<Value = Option<Inv<Net>>> {
    option::weighted(0.4, inv(any_net(family))).prop_map(|net| net.filter(|n| n.not || !n.value.mask.is_unspecified()))
}

fn iface() -> impl Strategy<Value = Option<Inv<IfaceName>>> {
    let name = ("[a-z][a-z0-9._-]{0,13}", any::<bool>()).prop_map(|(name, prefix)| IfaceName { name, prefix });
    option::weighted(0.3, inv(name))
}

pub fn ordered<T: Ord + Copy + std::fmt::Debug>(one: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = (T, T)> {
    (one.clone(), one).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn ports() -> impl Strategy<Value = PortRange> {
    prop_oneof![any::<u16>().prop_map(|p| (p, p)), ordered(any::<u16>())]
}

pub fn tested_ports() -> impl Strategy<Value = Option<Inv<PortRange>>> {
    option::of(inv(ports())).prop_map(|p| p.filter(|p| p.not || p.value != (0, u16::MAX)))
}

fn tcp() -> impl Strategy<Value = Match> {
    let flags = option::of(inv((0u8..64, 0u8..64))).prop_map(|f| f.filter(|f| f.not || f.value != (0, 0)));
    (tested_ports(), tested_ports(), flags, option::of(inv(1u8..))).prop_map(|(sport, dport, flags, option)| Match::Tcp {
        sport,
        dport,
        flags,
        option,
    })
}

fn multiport() -> impl Strategy<Value = Match> {
    let which = prop_oneof![Just(Ports::Source), Just(Ports::Destination), Just(Ports::Either)];
    (which, inv(vec(ports(), 1..=7))).prop_map(|(which, ports)| Match::Multiport { which, ports })
}

fn conntrack(family: Family) -> impl Strategy<Value = Match> {
    let net = move || option::of(inv(any_net(family)));
    let ports = || option::of(inv(ports()));
    let states = prop::sample::subsequence(vec![1u16, 2, 4, 8, 64, 128, 256], 1..=7).prop_map(|s| s.into_iter().sum::<u16>());
    let head = (option::of(inv(states)), option::of(inv(1u8..)), net(), net(), net(), net());
    let tail = (ports(), ports(), ports(), ports(), option::of(inv(0u16..16)), option::of(inv(ordered(any::<u32>()))));
    (head, tail, any::<bool>()).prop_map(|((state, proto, a, b, c, d), (e, f, g, h, status, expire), reply)| {
        Match::Conntrack(Box::new(CtMatch {
            state,
            proto,
            orig_src: a,
            orig_dst: b,
            repl_src: c,
            repl_dst: d,
            orig_sport: e,
            orig_dport: f,
            repl_sport: g,
            repl_dport: h,
            status,
            expire,
            reply: Some(reply),
        }))
    })
}

fn limit() -> impl Strategy<Value = Match> {
    let rate = prop_oneof![
        (1u32..=100).prop_map(|rate| (rate, RateUnit::Second)),
        (1u32..60).prop_map(|rate| (rate, RateUnit::Minute)),
        (1u32..60).prop_map(|rate| (rate, RateUnit::Hour)),
        (1u32..24).prop_map(|rate| (rate, RateUnit::Day)),
    ];
    (rate, 1u32..=10_000).prop_map(|((rate, unit), burst)| Match::Limit { rate, unit, burst })
}

fn simple_match(family: Family) -> BoxedStrategy<Match> {
    let icmp = inv((any::<u8>(), ordered(any::<u8>())).prop_map(|(ty, codes)| IcmpType { ty, codes }));
    let kinds = || option::of(inv(1u16..1 << 12));
    let addrtype = (kinds(), kinds(), 0..3).prop_map(|(src, dst, limit)| Match::Addrtype {
        dst: if src.is_none() { dst.or(Some(Inv { not: false, value: 4 })) } else { dst },
        src,
        limit_in: limit == 1,
        limit_out: limit == 2,
    });
    let range = move || option::of(inv((addr(family), addr(family))));
    let iprange = (inv((addr(family), addr(family))), range()).prop_map(|(src, dst)| Match::Iprange { src: Some(src), dst });
    let ids = || option::of(inv(ordered(0..u32::MAX)));
    let statistic = prop_oneof![
        inv(0u32..=1 << 31).prop_map(Statistic::Random),
        (1u32.., any::<u32>(), any::<bool>()).prop_map(|(every, n, not)| Statistic::Nth { every, packet: n % every, not }),
    ];
    let states = prop::sample::subsequence(vec![1u16, 2, 4, 8, 256], 1..=5).prop_map(|s| s.into_iter().sum::<u16>());
    prop_oneof![
        tcp(),
        (tested_ports(), tested_ports()).prop_map(|(sport, dport)| Match::Udp { sport, dport }),
        icmp.prop_map(|ty| Match::Icmp(Some(ty))),
        conntrack(family),
        inv(states).prop_map(Match::State),
        "[^\n\0]{0,60}".prop_map(Match::Comment),
        inv(any::<(u32, u32)>()).prop_map(Match::Mark),
        inv((any::<u32>(), Just(u32::MAX))).prop_map(Match::Connmark),
        addrtype,
        limit(),
        statistic.prop_map(Match::Statistic),
        inv(any::<[u8; 6]>()).prop_map(|mac| Match::Mac(Inv { not: mac.not, value: Mac(mac.value) })),
        iprange,
        (ids(), ids(), any::<bool>()).prop_map(|(uid, gid, socket)| Match::Owner { uid, gid, socket: Some(socket) }),
        crate::packets::any_match(family),
    ]
    .boxed()
}

fn nat(family: Family, persistent: bool, fully: bool, base: bool) -> impl Strategy<Value = NatRange> {
    let base = if base { option::of(1u16..).boxed() } else { Just(None).boxed() };
    (ordered(addr(family)), any::<bool>(), option::of(ports()), base, any::<[bool; 3]>()).prop_map(
        move |(addrs, with_addrs, ports, base, flags)| NatRange {
            addrs: (with_addrs || ports.is_none()).then_some(addrs),
            ports,
            base: base.filter(|_| ports.is_some_and(|(first, last)| first < last)),
            random: flags[0],
            random_fully: flags[1] && fully,
            persistent: flags[2] && persistent,
        },
    )
}

fn log() -> impl Strategy<Value = Target> {
    let flags = prop::sample::subsequence(vec![1u8, 2, 4, 8, 32], 0..=5).prop_map(|f| f.into_iter().sum::<u8>());
    (0u8..8, "[ -~]{0,29}", flags).prop_map(|(level, prefix, flags)| Target::Log(Box::new(LogTarget { level, prefix, flags })))
}

fn reject(family: Family) -> impl Strategy<Value = Target> {
    let mut with = match family {
        Family::V4 => [0u8, 1, 2, 3, 9, 10, 13].map(RejectWith::Icmp).to_vec(),
        Family::V6 => [0u8, 1, 3, 4, 5, 6].map(RejectWith::Icmp6).to_vec(),
    };
    with.push(RejectWith::TcpReset);
    prop::sample::select(with).prop_map(Target::Reject)
}

fn ct() -> impl Strategy<Value = Target> {
    let dir = prop_oneof![Just(ZoneDir::Both), Just(ZoneDir::Original), Just(ZoneDir::Reply)];
    (any::<bool>(), option::of((1u16.., dir))).prop_map(|(notrack, zone)| Target::Ct(CtTarget { notrack, alias: false, zone }))
}

fn target(family: Family, chains: Vec<String>) -> BoxedStrategy<Target> {
    let marks = any::<(u32, u32)>;
    let connmark = prop_oneof![
        marks().prop_map(|(value, mask)| Connmark::Set { value, mask }),
        marks().prop_map(|(nfmask, ctmask)| Connmark::Save { nfmask, ctmask }),
        marks().prop_map(|(nfmask, ctmask)| Connmark::Restore { nfmask, ctmask }),
    ];
    let port_only = |range: NatRange| NatRange { addrs: None, base: None, ..range };
    let own = prop_oneof![
        Just(Target::None),
        Just(Target::Accept),
        Just(Target::Drop),
        Just(Target::Return),
        reject(family),
        log(),
        nat(family, true, false, true).prop_map(Target::Dnat),
        nat(family, true, true, false).prop_map(Target::Snat),
        nat(family, false, true, false).prop_map(move |r| Target::Masquerade(port_only(r))),
        nat(family, false, false, false).prop_map(move |r| Target::Redirect(port_only(r))),
        prefix(family).prop_map(Target::Netmap),
        marks().prop_map(|(value, mask)| Target::Mark { value, mask }),
        connmark.prop_map(Target::Connmark),
        ct(),
        crate::packets::any_target(),
        Just(Target::Ct(CtTarget { notrack: true, alias: true, zone: None })),
    ];
    if chains.is_empty() {
        return own.boxed();
    }
    let jump = (prop::sample::select(chains), any::<bool>());
    prop_oneof![3 => own, 1 => jump.prop_map(|(to, goto)| if goto { Target::Goto(to) } else { Target::Jump(to) })].boxed()
}

fn counters() -> impl Strategy<Value = Counters> {
    any::<(u64, u64)>().prop_map(|(packets, bytes)| Counters { packets, bytes })
}

/// A rule of any chain; what a chain does not allow is taken out later.
fn rule(family: Family, chains: Vec<String>) -> impl Strategy<Value = Rule> {
    let one = prop_oneof![4 => simple_match(family), 1 => multiport()];
    let head = (counters(), tested(family), tested(family), iface(), iface(), option::of(inv(1u8..)), option::of(any::<bool>()));
    (head, vec(one, 0..4), target(family, chains)).prop_map(
        move |((counters, src, dst, input, output, mut proto, fragment), matches, target)| {
            let range = match &target {
                Target::Dnat(r) | Target::Snat(r) | Target::Masquerade(r) | Target::Redirect(r) => r.ports.is_some(),
                _ => false,
            };
            if range || matches.iter().any(|m| matches!(m, Match::Multiport { .. })) {
                proto = Some(Inv { not: false, value: 6 });
            }
            let fragment = fragment.filter(|_| family == Family::V4);
            Rule { counters, src, dst, input, output, proto, fragment, matches, target }
        },
    )
}

fn table(family: Family, name: TableName) -> impl Strategy<Value = Table> {
    let fixed = name.built_in();
    btree_set("[a-zA-Z0-9_.:][a-zA-Z0-9_.:,-]{0,27}", 0..4).prop_flat_map(move |own| {
        let own: Vec<String> = own.into_iter().filter(|n| !fixed.contains(&n.as_str())).collect();
        let names: Vec<(String, bool)> =
            fixed.iter().map(|n| ((*n).to_owned(), true)).chain(own.iter().map(|n| (n.clone(), false))).collect();
        let chain = |(n, built_in): (String, bool)| {
            let policy = any::<bool>().prop_map(move |drop| built_in.then_some(if drop { Policy::Drop } else { Policy::Accept }));
            (policy, counters(), vec(rule(family, own.clone()), 0..4)).prop_map(move |(policy, counters, rules)| {
                let rules = rules.into_iter().map(|r| allowed(name, &n, r)).collect();
                let counters = if built_in { counters } else { Counters::default() };
                Chain { name: n.clone(), policy, counters, rules }
            })
        };
        names.into_iter().map(chain).collect::<Vec<_>>().prop_map(move |chains| Table { name, chains })
    })
}

fn allowed(table: TableName, chain: &str, mut rule: Rule) -> Rule {
    if matches!(chain, "PREROUTING" | "INPUT") {
        rule.output = None;
    }
    if matches!(chain, "POSTROUTING" | "OUTPUT") {
        rule.input = None;
    }
    if table == TableName::Nat && rule.target == Target::Drop {
        rule.target = Target::Accept;
    }
    rule
}

/// Any ruleset.
pub fn ruleset() -> impl Strategy<Value = Ruleset> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    (family, prop::sample::subsequence(TableName::ALL.to_vec(), 0..=3)).prop_flat_map(|(family, names)| {
        let tables: Vec<_> = names.into_iter().map(|n| table(family, n)).collect();
        tables.prop_map(move |tables| Ruleset { family, tables })
    })
}
