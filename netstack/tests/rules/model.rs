//! A compiled program decides, changes and counts as an interpreter does that follows the rules as they are written.

use crate::kit::*;
use core::net::IpAddr;
use hibernet_netstack::conntrack::{Conn, CtTuple, Proto, Status, Track};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::{Hook::*, TableName::*, *};
use hibernet_netstack::skb::{Owner, Skb};
use hibernet_netstack::time::Time;
use hibernet_netstack::wire::Mac;
use hibernet_netstack::{DropReason, packet::L4};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::{option, sample};
use std::collections::BTreeMap;

/// What an interpreter keeps besides the rules: how often each `nth` was asked, by table, chain, rule and match.
#[derive(Default)]
struct Interpreter {
    asked: BTreeMap<(usize, usize, usize, usize), u32>,
    template: bool,
}

enum End {
    Decided(Outcome),
    /// The chain ended: back to the caller.
    Back,
}

impl Interpreter {
    fn run(&mut self, rules: &mut Ruleset, table: TableName, hook: Hook, skb: &mut Skb<'_>) -> Outcome {
        self.template = false;
        let Some(t) = rules.tables.iter().position(|t| t.name == table) else { return Outcome::Accept };
        let Some(c) = rules.tables[t].chains.iter().position(|c| c.name == hook.chain()) else { return Outcome::Accept };
        match self.chain(rules, t, c, skb) {
            End::Decided(o) => o,
            End::Back => {
                let chain = &mut rules.tables[t].chains[c];
                count(&mut chain.counters, skb);
                match chain.policy.unwrap() {
                    Policy::Accept => Outcome::Accept,
                    Policy::Drop => Outcome::Drop(DropReason::Policy),
                }
            }
        }
    }

    fn chain(&mut self, rules: &mut Ruleset, t: usize, c: usize, skb: &mut Skb<'_>) -> End {
        for r in 0..rules.tables[t].chains[c].rules.len() {
            let rule = rules.tables[t].chains[c].rules[r].clone();
            let fits = header(&rule, skb) && rule.matches.iter().enumerate().all(|(m, x)| self.fits(x, skb, (t, c, r, m)));
            if !fits {
                continue;
            }
            count(&mut rules.tables[t].chains[c].rules[r].counters, skb);
            let called = |name: &String| rules.tables[t].chains.iter().position(|c| c.name == *name).unwrap();
            match &rule.target {
                Target::None => {}
                Target::Accept => return End::Decided(Outcome::Accept),
                Target::Drop => return End::Decided(Outcome::Drop(DropReason::Rule)),
                Target::Reject(with) => return End::Decided(Outcome::Reject(*with)),
                Target::Return => return End::Back,
                Target::Jump(name) => {
                    let to = called(name);
                    if let End::Decided(o) = self.chain(rules, t, to, skb) {
                        return End::Decided(o);
                    }
                }
                Target::Goto(name) => {
                    let to = called(name);
                    return self.chain(rules, t, to, skb);
                }
                Target::Mark { value, mask } => skb.mark = (skb.mark & !mask) ^ value,
                Target::Connmark(Connmark::Set { value, mask }) => {
                    if let Track::Fresh { conn, .. } = &mut skb.track {
                        conn.mark = (conn.mark & !mask) ^ value;
                    }
                }
                Target::Ct(ct) => {
                    if skb.track == Track::None && !self.template {
                        self.template = true;
                        match ct.zone {
                            _ if ct.notrack => skb.track = Track::Untracked,
                            Some((z, _)) => skb.zones = [z; 2],
                            None => {}
                        }
                    }
                }
                other => unreachable!("{other:?}"),
            }
        }
        End::Back
    }

    fn fits(&mut self, m: &Match, skb: &Skb<'_>, at: (usize, usize, usize, usize)) -> bool {
        let port = |r: &Option<Inv<PortRange>>, p: u16| r.is_none_or(|r| (r.value.0..=r.value.1).contains(&p) != r.not);
        match m {
            Match::Tcp { sport, dport, flags, option: None } => {
                let L4::Tcp(h, _) = skb.l4 else { panic!() };
                let flags = flags.is_none_or(|f| (h.flags.0 & f.value.0 == f.value.1) != f.not);
                port(sport, skb.sport) && port(dport, skb.dport) && flags
            }
            Match::Udp { sport, dport } => port(sport, skb.sport) && port(dport, skb.dport),
            Match::Multiport { which, ports } => {
                let has = |p: u16| ports.value.iter().any(|(a, b)| (*a..=*b).contains(&p));
                let fits = match which {
                    Ports::Source => has(skb.sport),
                    Ports::Destination => has(skb.dport),
                    Ports::Either => has(skb.sport) || has(skb.dport),
                };
                fits != ports.not
            }
            Match::State(s) => (s.value & state(skb) != 0) != s.not,
            Match::Conntrack(m) => {
                let states = m.state.is_none_or(|s| (s.value & state(skb) != 0) != s.not);
                match &skb.track {
                    Track::Fresh { conn, .. } => states && m.proto.is_none_or(|p| (p.value == conn.tuples[0].proto) != p.not),
                    _ => states && m.state.is_some(),
                }
            }
            Match::Mark(m) => (skb.mark & m.value.1 == m.value.0) != m.not,
            Match::Connmark(m) => match &skb.track {
                Track::Fresh { conn, .. } => (conn.mark & m.value.1 == m.value.0) != m.not,
                _ => false,
            },
            Match::Mac(m) => skb.src_mac.is_some_and(|a| (a == m.value) != m.not),
            Match::Iprange { src, dst } => {
                let has = |r: &Option<Inv<(IpAddr, IpAddr)>>, a| r.is_none_or(|r| (r.value.0..=r.value.1).contains(&a) != r.not);
                has(src, skb.src) && has(dst, skb.dst)
            }
            Match::Owner { uid, .. } => {
                let u = uid.unwrap();
                skb.owner.map_or(u.not, |o| (u.value.0..=u.value.1).contains(&o.uid) != u.not)
            }
            Match::Statistic(Statistic::Nth { every, packet, not }) => {
                let n = self.asked.entry(at).or_insert(every - 1 - packet);
                *n = (*n + 1) % every;
                (*n == 0) != *not
            }
            Match::Comment(_) => true,
            other => unreachable!("{other:?}"),
        }
    }
}

fn count(c: &mut Counters, skb: &Skb<'_>) {
    c.packets += 1;
    c.bytes += u64::from(skb.len);
}

fn state(skb: &Skb<'_>) -> u16 {
    match &skb.track {
        Track::None => ctstate::INVALID,
        Track::Untracked => ctstate::UNTRACKED,
        Track::Fresh { conn, .. } if conn.status.has(Status::DST_NAT) => ctstate::NEW | ctstate::DNAT,
        _ => ctstate::NEW,
    }
}

fn header(r: &Rule, skb: &Skb<'_>) -> bool {
    let bits = |a: IpAddr| match a {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    let addr =
        |n: &Option<Inv<Net>>, a: IpAddr| n.is_none_or(|n| ((bits(a) ^ bits(n.value.addr)) & bits(n.value.mask) == 0) != n.not);
    let named = |n: &Option<Inv<IfaceName>>, i: Option<Iface>| {
        let name = i.map(|i| i.to_string()).unwrap_or_default();
        n.as_ref().is_none_or(|n| {
            let fits = if n.value.prefix { name.starts_with(&n.value.name) } else { name == n.value.name };
            fits != n.not
        })
    };
    addr(&r.src, skb.src)
        && addr(&r.dst, skb.dst)
        && named(&r.input, skb.input)
        && named(&r.output, skb.output)
        && r.proto.is_none_or(|p| (p.value == skb.protocol) != p.not)
        && r.fragment != Some(true)
}

fn inv<T: Clone + core::fmt::Debug + 'static>(value: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = Inv<T>> {
    (prop::bool::weighted(0.3), value).prop_map(|(not, value)| Inv { not, value })
}

fn maybe<T: Clone + core::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<Inv<T>>> {
    option::weighted(0.3, inv(value))
}

/// Few addresses, so that rules often fit.
fn addresses(v6: bool) -> impl Strategy<Value = IpAddr> {
    sample::select(if v6 {
        vec![ip("fd00::1"), ip("fd00::2"), ip("fd00::3"), ip("fd00:0:0:1::1")]
    } else {
        vec![ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.3"), ip("10.1.0.1")]
    })
}

fn nets(v6: bool) -> impl Strategy<Value = Net> {
    let masks = if v6 {
        vec!["::", "ffff:ffff:ffff:ffff::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1", "8000::", "ffff::fffe"]
    } else {
        vec!["0.0.0.0", "255.0.0.0", "255.255.0.0", "255.255.255.255", "0.0.0.1", "255.255.255.254", "128.0.0.0"]
    };
    (addresses(v6), sample::select(masks)).prop_map(|(addr, mask)| Net { addr, mask: ip(mask) })
}

fn port() -> impl Strategy<Value = u16> {
    sample::select(vec![0, 1, 22, 80, 81, 443, 65535])
}

fn port_range() -> impl Strategy<Value = PortRange> {
    (port(), port()).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn iface_name() -> impl Strategy<Value = IfaceName> {
    sample::select(vec!["tap0", "tap1", "tap+", "host0", "+", "h+", "eth0"]).prop_map(iface)
}

fn marks() -> impl Strategy<Value = (u32, u32)> {
    (0u32..4, sample::select(vec![1u32, 2, 3, u32::MAX]))
}

fn matches(v6: bool, proto: Option<u8>, hook: Hook, table: TableName) -> impl Strategy<Value = Match> {
    let states = sample::select(vec![
        ctstate::NEW,
        ctstate::INVALID,
        ctstate::UNTRACKED,
        ctstate::DNAT,
        ctstate::NEW | ctstate::INVALID,
        ctstate::ESTABLISHED,
    ]);
    let mut all = vec![
        inv(states.clone()).prop_map(Match::State).boxed(),
        (maybe(states), maybe(sample::select(vec![6u8, 17])))
            .prop_map(|(state, proto)| Match::Conntrack(Box::new(CtMatch { state, proto, ..CtMatch::default() })))
            .boxed(),
        inv(marks()).prop_map(Match::Mark).boxed(),
        inv(marks()).prop_map(Match::Connmark).boxed(),
        (maybe((addresses(v6), addresses(v6))), maybe((addresses(v6), addresses(v6))))
            .prop_map(|(src, dst)| Match::Iprange { src, dst })
            .boxed(),
        (1u32..4, any::<bool>())
            .prop_flat_map(|(every, not)| {
                (0..every).prop_map(move |packet| Match::Statistic(Statistic::Nth { every, packet, not }))
            })
            .boxed(),
        Just(Match::Comment("x".into())).boxed(),
    ];
    let ports = || (maybe(port_range()), maybe(port_range()));
    match proto {
        Some(6) => all.extend([(ports(), maybe((0u8..64, 0u8..64)))
            .prop_map(|((sport, dport), flags)| Match::Tcp { sport, dport, flags, option: None })
            .boxed()]),
        Some(17) => all.push(ports().prop_map(|(sport, dport)| Match::Udp { sport, dport }).boxed()),
        _ => {}
    }
    if matches!(proto, Some(6 | 17)) {
        let which = sample::select(vec![Ports::Source, Ports::Destination, Ports::Either]);
        all.push((which, inv(vec(port_range(), 1..4))).prop_map(|(which, ports)| Match::Multiport { which, ports }).boxed());
    }
    if table != Raw && hook == Forward {
        all.push(inv(sample::select(vec![Mac([2; 6]), Mac([4; 6])])).prop_map(Match::Mac).boxed());
    }
    if hook == Output {
        all.push(
            inv(sample::select(vec![(0, 0), (0, 1000), (1000, 2000)]))
                .prop_map(|u| Match::Owner { uid: Some(u), gid: None, socket: None })
                .boxed(),
        );
    }
    prop::strategy::Union::new(all)
}

/// A rule in chain `c` of `chains`: it leads to later ones only.
fn rules(v6: bool, table: TableName, hook: Hook, c: usize, chains: usize) -> impl Strategy<Value = Rule> {
    let proto = option::weighted(0.6, (sample::select(vec![6u8, 17]), prop::bool::weighted(0.2)));
    let mut targets = vec![
        (3, Just(Target::None).boxed()),
        (2, Just(Target::Accept).boxed()),
        (2, Just(Target::Drop).boxed()),
        (2, Just(Target::Return).boxed()),
        (2, marks().prop_map(|(value, mask)| Target::Mark { value, mask }).boxed()),
        (1, marks().prop_map(|(value, mask)| Target::Connmark(Connmark::Set { value, mask })).boxed()),
    ];
    if c + 1 < chains {
        let call =
            (c + 1..chains, any::<bool>()).prop_map(|(to, j)| if j { jump(&format!("C{to}")) } else { goto(&format!("C{to}")) });
        targets.push((8, call.boxed()));
    }
    match table {
        Filter => targets.push((1, Just(Target::Reject(if v6 { RejectWith::Icmp6(4) } else { RejectWith::Icmp(3) })).boxed())),
        Raw => {
            let ct = (any::<bool>(), option::of(1u16..3)).prop_map(|(notrack, zone)| {
                Target::Ct(CtTarget { notrack, zone: zone.map(|z| (z, ZoneDir::Both)), ..CtTarget::default() })
            });
            targets.push((3, ct.boxed()));
        }
        _ => {}
    }
    let target = prop::strategy::Union::new_weighted(targets);
    let head = (
        maybe(nets(v6)),
        maybe(nets(v6)),
        maybe(iface_name()),
        maybe(iface_name()),
        proto,
        option::weighted(0.05, any::<bool>()),
        target,
    );
    head.prop_flat_map(move |(src, dst, input, output, proto, fragment, target)| {
        let not_inverted = proto.and_then(|(p, not)| (!not).then_some(p));
        vec(matches(v6, not_inverted, hook, table), 0..3).prop_map(move |matches| {
            // Interfaces that iptables refuses in the built-in chain.
            let known = hook == Forward || c > 0;
            Rule {
                src,
                dst,
                input: input.clone().filter(|_| known || hook != Output),
                output: output.clone().filter(|_| known || hook != PreRouting),
                proto: proto.map(|(value, not)| Inv { not, value }),
                fragment: fragment.filter(|_| !v6),
                matches,
                target: target.clone(),
                counters: Counters::default(),
            }
        })
    })
}

fn rulesets() -> impl Strategy<Value = (Ruleset, TableName, Hook)> {
    let place = sample::select(vec![(Filter, Forward), (Filter, Output), (Raw, PreRouting), (Mangle, Forward)]);
    (any::<bool>(), place, 1usize..6, any::<bool>()).prop_flat_map(|(v6, (table, hook), chains, drop)| {
        let all: Vec<_> = (0..chains).map(|c| vec(rules(v6, table, hook, c, chains), 0..8)).collect();
        all.prop_map(move |all| {
            let name = |c| if c == 0 { hook.chain().to_owned() } else { format!("C{c}") };
            let chains = all.into_iter().enumerate().map(|(c, rules)| chain(&name(c), rules)).collect();
            let family = if v6 { Family::V6 } else { Family::V4 };
            let mut r = ruleset(family, table, chains);
            if drop {
                r.tables[0].chains.iter_mut().for_each(|c| c.policy = c.policy.map(|_| Policy::Drop));
            }
            (r, table, hook)
        })
    })
}

#[derive(Clone, Debug)]
struct Facts {
    addrs: (sample::Index, sample::Index),
    ports: (u16, u16),
    tcp: Option<u8>,
    ifaces: (u8, u8),
    track: u8,
    mark: u32,
    mac: u8,
    uid: Option<u32>,
    len: u32,
}

fn facts() -> impl Strategy<Value = Facts> {
    let uid = option::of(sample::select(vec![0, 1000, 3000]));
    (
        any::<(sample::Index, sample::Index)>(),
        (port(), port()),
        option::of(0u8..64),
        (0u8..4, 0u8..4),
        0u8..4,
        0u32..4,
        0u8..3,
        uid,
        20u32..70_000,
    )
        .prop_map(|(addrs, ports, tcp, ifaces, track, mark, mac, uid, len)| Facts {
            addrs,
            ports,
            tcp,
            ifaces,
            track,
            mark,
            mac,
            uid,
            len,
        })
}

fn skb(f: &Facts, v6: bool, table: TableName) -> Skb<'static> {
    let addrs =
        if v6 { ["fd00::1", "fd00::2", "fd00::3", "fd00:0:0:1::1"] } else { ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.1.0.1"] };
    let mut skb = match f.tcp {
        Some(flags) => tcp(v6, f.ports.0, f.ports.1, flags),
        None => udp(v6, f.ports.0, f.ports.1),
    };
    let iface = |n| match n {
        0 => None,
        1 => Some(Iface::Host0),
        n => Some(Iface::Link(LinkId(n - 2))),
    };
    let tuple = CtTuple { proto: skb.protocol, v6, ..CtTuple::default() };
    let conn = Conn {
        tuples: [tuple; 2],
        status: if f.track == 3 { Status::DST_NAT } else { Status::default() },
        mark: f.mark ^ 1,
        expires: Time::ZERO,
        proto: Proto::Generic,
        flow: None,
    };
    skb.src = ip(addrs[f.addrs.0.index(4)]);
    skb.dst = ip(addrs[f.addrs.1.index(4)]);
    skb.input = iface(f.ifaces.0);
    skb.output = iface(f.ifaces.1);
    skb.track = match f.track {
        _ if table == Raw => Track::None,
        0 => Track::None,
        1 => Track::Untracked,
        _ => Track::Fresh { conn, related: false, len: 0 },
    };
    skb.mark = f.mark;
    skb.src_mac = [None, Some(Mac([2; 6])), Some(Mac([4; 6]))][usize::from(f.mac)];
    skb.owner = f.uid.map(|uid| Owner { uid, gid: 0 });
    skb.len = f.len;
    skb
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn a_program_does_what_its_rules_say((mut rules, table, hook) in rulesets(), packets in vec(facts(), 1..20)) {
        let mut b = Bench::new(&rules);
        let mut model = Interpreter::default();
        for f in &packets {
            let mut ours = skb(f, rules.family == Family::V6, table);
            let mut theirs = ours.clone();
            let wanted = model.run(&mut rules, table, hook, &mut theirs);
            prop_assert_eq!(b.run(table, hook, &mut ours), wanted);
            prop_assert_eq!((ours.mark, ours.zones, ours.track), (theirs.mark, theirs.zones, theirs.track));
        }
        prop_assert_eq!(b.program.ruleset([&b.counters]), rules);
    }
}
