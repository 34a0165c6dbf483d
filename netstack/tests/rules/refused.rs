//! What is refused at load. Every case was tried with iptables-legacy 1.8.9 on Linux 6.18.

use crate::kit::*;
use hibernet_netstack::iptables::{Family::*, TableName::*, *};
use hibernet_netstack::nat::NatRange;

fn refusal(rules: &Ruleset) -> Option<RuleError> {
    Program::compile(rules).err()
}

/// One rule in a chain.
fn one(family: Family, table: TableName, hook: &str, r: Rule) -> Option<RuleError> {
    refusal(&ruleset(family, table, vec![chain(hook, vec![r])]))
}

fn with(proto: Option<Inv<u8>>, m: Match) -> Rule {
    Rule { proto, matches: vec![m], ..rule(Target::Accept) }
}

#[test]
fn direct_loop() {
    let e =
        refusal(&ruleset(V4, Filter, vec![chain("INPUT", vec![rule(jump("A"))]), chain("A", vec![rule(jump("A"))])])).unwrap();
    assert_eq!((e.chain.as_str(), e.rule, e.fault.clone()), ("A", Some(1), RuleFault::Loop("A -> A".into())));
    assert_eq!(e.to_string(), "table filter, chain A, rule 1: the chain leads back to itself (A -> A): remove one of the jumps");
}

#[test]
fn indirect_loop_of_any_length_by_jump_or_goto() {
    for n in [2, 3, 5, 20_000] {
        for link in [jump, goto] {
            let mut chains = vec![chain("FORWARD", vec![rule(Target::None), rule(jump("C0"))])];
            chains.extend(
                (0..n).map(|i| chain(&format!("C{i}"), vec![rule(Target::None), rule(link(&format!("C{}", (i + 1) % n)))])),
            );
            let e = refusal(&ruleset(V6, Filter, chains)).unwrap();
            assert_eq!((e.chain, e.rule), (format!("C{}", n - 1), Some(2)));
            let RuleFault::Loop(way) = e.fault else { panic!("{:?}", e.fault) };
            assert!(way.starts_with("C0 -> C1") && way.ends_with(&format!("C{} -> C0", n - 1)) && way.len() < 100, "{way}");
        }
    }
}

/// Linux follows calls from the built-in chains only.
#[test]
fn a_loop_that_nothing_leads_to_is_harmless() {
    let chains = || vec![chain("A", vec![rule(jump("B"))]), chain("B", vec![rule(jump("A"))])];
    assert_eq!(refusal(&ruleset(V4, Filter, chains())), None);
    let mut reached = chains();
    reached.push(chain("OUTPUT", vec![rule(jump("B"))]));
    assert!(matches!(refusal(&ruleset(V4, Filter, reached)).unwrap().fault, RuleFault::Loop(_)));
}

#[test]
fn a_diamond_is_no_loop() {
    let chains = vec![
        chain("INPUT", vec![rule(jump("A")), rule(jump("B")), rule(goto("C"))]),
        chain("A", vec![rule(jump("C"))]),
        chain("B", vec![rule(jump("C")), rule(jump("A"))]),
        chain("C", vec![]),
    ];
    assert_eq!(refusal(&ruleset(V4, Filter, chains)), None);
}

#[test]
fn jump_builtin_and_jump_to_nowhere() {
    for (link, name) in [(jump as fn(&str) -> Target, "INPUT"), (goto, "FORWARD")] {
        let e = one(V4, Filter, "INPUT", rule(link(name))).unwrap();
        assert_eq!(e.fault, RuleFault::BuiltIn(name.into()));
        // A chain of another table's name is not a built-in one here, nor does it exist.
        let e = one(V4, Filter, "INPUT", rule(link("PREROUTING"))).unwrap();
        assert_eq!((e.rule, e.fault), (Some(1), RuleFault::NoChain("PREROUTING".into())));
    }
    // Chains of another table are not this one's.
    let mut rules = ruleset(V4, Filter, vec![chain("INPUT", vec![rule(jump("U"))])]);
    rules.tables.extend(ruleset(V4, Mangle, vec![chain("U", vec![])]).tables);
    assert_eq!(refusal(&rules).unwrap().fault, RuleFault::NoChain("U".into()));
}

#[test]
fn chains_and_tables_once_and_policies_for_built_in_chains_only() {
    let twice = ruleset(V4, Filter, vec![chain("U", vec![]), chain("U", vec![])]);
    assert_eq!(refusal(&twice).unwrap().fault, RuleFault::DuplicateChain);
    let mut tables = ruleset(V4, Filter, vec![]);
    tables.tables.extend(tables.tables.clone());
    assert_eq!(refusal(&tables).unwrap().fault, RuleFault::DuplicateTable);
    for (name, policy) in [("U", Some(Policy::Drop)), ("INPUT", None), ("PREROUTING", Some(Policy::Accept))] {
        let chains = vec![Chain { policy, ..chain(name, vec![]) }];
        let e = refusal(&Ruleset { family: V4, tables: vec![Table { name: Filter, chains }] }).unwrap();
        assert!(matches!(e.fault, RuleFault::Policy(_)) && e.to_string().contains("INPUT, FORWARD, OUTPUT"), "{e}");
    }
}

#[test]
fn interfaces_where_they_are_not_known() {
    let input = Rule { input: is(iface("tap0")), ..rule(Target::Accept) };
    let output = Rule { output: is(iface("tap0")), ..rule(Target::Accept) };
    for (hook, i, o) in [
        ("PREROUTING", true, false),
        ("INPUT", true, false),
        ("FORWARD", true, true),
        ("OUTPUT", false, true),
        ("POSTROUTING", false, true),
    ] {
        assert_eq!(one(V4, Mangle, hook, input.clone()).is_none(), i, "-i in {hook}");
        assert_eq!(one(V6, Mangle, hook, output.clone()).is_none(), o, "-o in {hook}");
    }
    // In a user's chain, whatever leads there.
    let chains =
        vec![chain("OUTPUT", vec![rule(jump("U"))]), chain("INPUT", vec![rule(jump("U"))]), chain("U", vec![input, output])];
    assert_eq!(refusal(&ruleset(V4, Filter, chains)), None);
}

/// Hooks at which a rule is accepted, directly and through a user's chain.
fn hooks_of(family: Family, table: TableName, r: &Rule) -> Vec<Hook> {
    table
        .hooks()
        .iter()
        .filter(|h| {
            let direct = one(family, table, h.chain(), r.clone()).is_none();
            let through =
                vec![chain(h.chain(), vec![rule(jump("A"))]), chain("A", vec![rule(goto("B"))]), chain("B", vec![r.clone()])];
            assert_eq!(refusal(&ruleset(family, table, through)).is_none(), direct, "{r:?} in {}", h.chain());
            direct
        })
        .copied()
        .collect()
}

#[test]
fn targets_work_in_their_tables_and_hooks() {
    use Hook::*;
    let addr = |family| NatRange {
        addrs: Some(if family == V4 { (ip("192.0.2.1"), ip("192.0.2.1")) } else { (ip("fd00::9"), ip("fd00::9")) }),
        ..NatRange::default()
    };
    for family in [V4, V6] {
        let reject = if family == V4 { RejectWith::Icmp(3) } else { RejectWith::Icmp6(4) };
        let netmap = net(if family == V4 { "192.0.2.0/24" } else { "fd00:9::/64" });
        let cases: Vec<(Target, TableName, &[Hook])> = vec![
            (Target::Dnat(addr(family)), Nat, &[PreRouting, Output]),
            (Target::Redirect(NatRange::default()), Nat, &[PreRouting, Output]),
            (Target::Snat(addr(family)), Nat, &[Input, PostRouting]),
            (Target::Masquerade(NatRange::default()), Nat, &[PostRouting]),
            (Target::Netmap(netmap), Nat, &[PreRouting, Input, Output, PostRouting]),
            (Target::Ct(CtTarget { notrack: true, ..CtTarget::default() }), Raw, &[PreRouting, Output]),
            (Target::Ct(CtTarget { zone: Some((1, ZoneDir::Both)), ..CtTarget::default() }), Raw, &[PreRouting, Output]),
            (Target::Reject(reject), Filter, &[Input, Forward, Output]),
        ];
        for (target, table, hooks) in cases {
            for t in TableName::ALL {
                let expected = if t == table { hooks } else { &[] };
                assert_eq!(hooks_of(family, t, &rule(target.clone())), expected, "{target:?} in {t}");
                // A chain that nothing leads to: the table counts, the hook does not.
                let alone = refusal(&ruleset(family, t, vec![chain("U", vec![rule(target.clone())])]));
                assert_eq!(alone.is_none(), t == table, "{target:?} in {t}");
            }
        }
        let log = LogTarget { level: 4, prefix: String::new(), flags: 0 };
        let everywhere = [
            Target::Mark { value: 1, mask: 1 },
            Target::Connmark(Connmark::Save { nfmask: 1, ctmask: 1 }),
            Target::Log(Box::new(log)),
            Target::Accept,
            Target::Return,
            Target::None,
        ];
        for target in everywhere {
            for t in TableName::ALL {
                assert_eq!(hooks_of(family, t, &rule(target.clone())), t.hooks(), "{target:?} in {t}");
            }
        }
        for t in TableName::ALL {
            assert_eq!(hooks_of(family, t, &rule(Target::Drop)).is_empty(), t == Nat);
        }
    }
}

#[test]
fn a_chain_reached_from_several_hooks_is_checked_with_all_of_them() {
    let snat = rule(Target::Dnat(NatRange { addrs: Some((ip("192.0.2.1"), ip("192.0.2.1"))), ..NatRange::default() }));
    let chains = |hooks: &[&str]| {
        let mut all: Vec<_> = hooks.iter().map(|h| chain(h, vec![rule(jump("U"))])).collect();
        all.push(chain("U", vec![snat.clone()]));
        ruleset(V4, Nat, all)
    };
    assert_eq!(refusal(&chains(&["PREROUTING", "OUTPUT"])), None);
    let e = refusal(&chains(&["PREROUTING", "POSTROUTING"])).unwrap();
    assert_eq!(
        e.to_string(),
        "table nat, chain U, rule 1: target DNAT works in PREROUTING, OUTPUT only, but the rule is reached from POSTROUTING: move it"
    );
}

#[test]
fn matches_work_at_their_hooks() {
    use Hook::*;
    let hooks = |m: Match| hooks_of(V4, Mangle, &with(None, m));
    let uid = Match::Owner { uid: is((0, 0)), gid: None, socket: None };
    assert_eq!(hooks(uid), [Output, PostRouting]);
    assert_eq!(hooks(Match::Mac(Inv { not: true, value: "02:00:00:00:00:01".parse().unwrap() })), [PreRouting, Input, Forward]);
    let types = |limit_in, limit_out| Match::Addrtype { src: is(1 << 2), dst: None, limit_in, limit_out };
    assert_eq!(hooks(types(false, false)), Hook::ALL);
    assert_eq!(hooks(types(true, false)), [PreRouting, Input, Forward]);
    assert_eq!(hooks(types(false, true)), [Forward, Output, PostRouting]);
    assert_eq!(hooks(types(true, true)), []);
}

#[test]
fn matches_need_their_protocol() {
    let tcp = || Match::Tcp { sport: None, dport: is((1, 1)), flags: None, option: None };
    let udp = || Match::Udp { sport: None, dport: is((1, 1)) };
    let icmp = || Match::Icmp(is(IcmpType { ty: 8, codes: (0, 255) }));
    let ports = || Match::Multiport { which: Ports::Either, ports: Inv { not: false, value: vec![(1, 1)] } };
    type Make<'a> = &'a dyn Fn() -> Match;
    let cases: [(Family, Make<'_>, &[u8]); 6] = [
        (V4, &tcp, &[6]),
        (V6, &udp, &[17]),
        (V4, &icmp, &[1]),
        (V6, &icmp, &[58]),
        (V4, &ports, &[6, 17, 33, 132, 136]),
        (V6, &ports, &[6, 17, 33, 132, 136]),
    ];
    for (family, m, protos) in cases {
        for p in 1..=255 {
            let fine = one(family, Filter, "INPUT", with(is(p), m())).is_none();
            assert_eq!(fine, protos.contains(&p), "{:?} with -p {p}", m());
            assert!(one(family, Filter, "INPUT", with(not(p), m())).is_some(), "! -p {p}");
        }
        let e = one(family, Filter, "INPUT", with(None, m())).unwrap();
        assert!(matches!(e.fault, RuleFault::MatchProto(..)), "{e}");
    }
    let reset = |proto| Rule { proto, ..rule(Target::Reject(RejectWith::TcpReset)) };
    for family in [V4, V6] {
        assert!(one(family, Filter, "INPUT", reset(is(6))).is_none());
        for proto in [None, not(6), is(17)] {
            assert!(matches!(one(family, Filter, "INPUT", reset(proto)).unwrap().fault, RuleFault::TargetProto(..)));
        }
    }
    let ports = NatRange { ports: Some((80, 80)), ..NatRange::default() };
    let redirect = |proto| Rule { proto, ..rule(Target::Redirect(ports)) };
    assert!(one(V4, Nat, "PREROUTING", redirect(None)).is_some());
    assert!(one(V4, Nat, "PREROUTING", redirect(is(47))).is_some());
    for proto in [is(6), is(17), is(132), is(33), is(1), not(6)] {
        assert!(one(V4, Nat, "PREROUTING", redirect(proto)).is_none(), "{proto:?}");
    }
}

#[test]
fn options_have_possible_values() {
    let bad = |m: Match| one(V4, Filter, "INPUT", with(is(6), m)).is_some();
    let limit = |rate, unit, burst| bad(Match::Limit { rate, unit, burst });
    use RateUnit::*;
    // Linux's own verdicts; its arithmetic has 32 bits.
    for (rate, unit, burst, refused) in [
        (1, Second, 5, false),
        (10_000, Second, 5, false),
        (10_001, Second, 5, true),
        (1, Hour, 5, false),
        (1, Day, 5, true),
        (1, Day, 1, false),
        (1, Day, 2, true),
        (1, Hour, 37, false),
        (1, Hour, 100, false),
        (1, Day, 10_000, true),
        (2, Day, 10_000, false),
        (1, Second, 0, true),
        (0, Second, 5, true),
    ] {
        assert_eq!(limit(rate, unit, burst), refused, "{rate}/{unit:?} burst {burst}");
    }
    let nth = |every, packet| bad(Match::Statistic(Statistic::Nth { every, packet, not: false }));
    assert!(nth(0, 0) && nth(3, 3) && !nth(1, 0) && !nth(3, 2));
    let random = |p| bad(Match::Statistic(Statistic::Random(Inv { not: false, value: p })));
    assert!(!random(0) && !random(1 << 31) && random((1 << 31) + 1));
    let ports = |value| bad(Match::Multiport { which: Ports::Source, ports: Inv { not: false, value } });
    assert!(
        ports(vec![]) && ports(vec![(1, 1); 16]) && ports(vec![(1, 2); 8]) && !ports(vec![(1, 1); 15]) && !ports(vec![(1, 2); 7])
    );
    assert!(bad(Match::Addrtype { src: None, dst: None, limit_in: false, limit_out: false }));
    let types6 = |t: u16| {
        one(V6, Filter, "INPUT", with(None, Match::Addrtype { src: None, dst: is(1 << t), limit_in: false, limit_out: false }))
            .is_some()
    };
    // UNSPEC UNICAST LOCAL BROADCAST ANYCAST MULTICAST BLACKHOLE UNREACHABLE PROHIBIT THROW
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(types6), [false, false, false, true, false, false, true, false, true, true]);
    let log = |level, prefix: &str, flags| {
        one(V4, Filter, "INPUT", rule(Target::Log(Box::new(LogTarget { level, prefix: prefix.into(), flags })))).is_some()
    };
    assert!(!log(7, &"x".repeat(29), 47) && log(8, "", 0) && log(4, &"x".repeat(30), 0) && log(4, "", 16));
    let reject = |family, with| one(family, Filter, "INPUT", rule(Target::Reject(with))).is_some();
    for code in 0..=255 {
        assert_eq!(reject(V4, RejectWith::Icmp(code)), ![0, 1, 2, 3, 9, 10, 13].contains(&code));
        assert_eq!(reject(V6, RejectWith::Icmp6(code)), ![0, 1, 3, 4, 5, 6].contains(&code));
    }
    assert!(reject(V4, RejectWith::Icmp6(4)) && reject(V6, RejectWith::Icmp(3)));
}

#[test]
fn addresses_are_of_the_rules_family() {
    for (family, a) in [(V4, "fd00::1"), (V6, "10.0.0.1")] {
        let n = net(a);
        let mut cases = vec![
            (Filter, Rule { src: is(n), ..rule(Target::Accept) }),
            (Filter, Rule { dst: not(n), ..rule(Target::Accept) }),
            (Filter, with(None, Match::Conntrack(Box::new(CtMatch { repl_dst: is(n), ..CtMatch::default() })))),
            (Filter, with(None, Match::Iprange { src: None, dst: is((ip(a), ip(a))) })),
            (Nat, rule(Target::Dnat(NatRange { addrs: Some((ip(a), ip(a))), ..NatRange::default() }))),
            (Nat, rule(Target::Netmap(n))),
        ];
        for (table, r) in cases.drain(..) {
            let e = one(family, table, "OUTPUT", r.clone()).unwrap();
            assert_eq!(e.fault, RuleFault::Family(family), "{r:?}");
        }
    }
    assert_eq!(
        one(V6, Filter, "INPUT", Rule { fragment: Some(true), ..rule(Target::Drop) }).unwrap().fault,
        RuleFault::Fragment6
    );
}
