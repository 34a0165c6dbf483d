//! Chains: jumps, gotos, returns, policies, and what is counted on the way.

use crate::kit::*;
use hibernet_netstack::DropReason;
use hibernet_netstack::iptables::{Family::*, Hook::*, Outcome::*, TableName::*, *};

fn dport(p: u16, target: Target) -> Rule {
    let m = Match::Tcp { sport: None, dport: is((p, p)), flags: None, option: None };
    Rule { proto: is(6), matches: vec![m], ..rule(target) }
}

/// Runs a TCP packet to port 80 through INPUT of filter, in both families.
fn outcome(chains: Vec<Chain>) -> (Outcome, Bench) {
    let run = |family, v6| {
        let mut b = Bench::new(&ruleset(family, Filter, chains.clone()));
        let o = b.run(Filter, Input, &mut tcp(v6, 1, 80, 2));
        (o, b)
    };
    let ((o4, b), (o6, _)) = (run(V4, false), run(V6, true));
    assert_eq!(o4, o6);
    (o4, b)
}

const DROPPED: Outcome = Drop(DropReason::Rule);

#[test]
fn a_rule_counts_what_it_meets_and_the_policy_the_rest() {
    for (family, v6) in [(V4, false), (V6, true)] {
        let rules = vec![dport(22, Target::Drop), dport(80, Target::Drop)];
        let mut b = Bench::new(&ruleset(family, Filter, vec![chain("INPUT", rules)]));
        assert_eq!(b.run(Filter, Input, &mut tcp(v6, 1, 22, 2)), DROPPED);
        assert_eq!(b.run(Filter, Input, &mut tcp(v6, 1, 80, 2)), DROPPED);
        assert_eq!(b.run(Filter, Input, &mut tcp(v6, 1, 81, 2)), Accept);
        assert_eq!(b.run(Filter, Input, &mut udp(v6, 1, 80)), Accept);
        assert_eq!(b.counts("INPUT"), [1, 1, 2]);
        let rules = b.program.ruleset([&b.counters, &b.counters]);
        assert_eq!(rules.tables[0].chains[0].counters, Counters { packets: 4, bytes: 400 }, "one set per worker, summed");
        let mut sum = CounterSet::new(&b.program);
        sum.add(&b.counters);
        sum.add(&b.counters);
        assert_eq!(b.program.ruleset([&sum]), rules);
    }
}

#[test]
fn counters_of_the_text_are_gone_on_with() {
    let mut rules = ruleset(V4, Filter, vec![chain("INPUT", vec![dport(80, Target::None)])]);
    let given = Counters { packets: 5, bytes: 500 };
    rules.tables[0].chains[0].counters = given;
    rules.tables[0].chains[0].rules[0].counters = given;
    let mut b = Bench::new(&rules);
    assert_eq!(b.program.ruleset([&b.counters]), rules);
    b.run(Filter, Input, &mut tcp(false, 1, 80, 2));
    assert_eq!(b.counts("INPUT"), [6, 6]);
}

#[test]
fn a_rule_without_target_counts_and_goes_on() {
    let (o, b) = outcome(vec![chain("INPUT", vec![dport(80, Target::None), dport(80, Target::Drop)])]);
    assert_eq!((o, b.counts("INPUT")), (DROPPED, vec![1, 1, 0]));
}

#[test]
fn a_jump_returns_behind_itself_and_a_goto_to_the_caller() {
    let user = || chain("U", vec![dport(80, Target::None), dport(80, Target::Return), dport(80, Target::Drop)]);
    let (o, b) = outcome(vec![chain("INPUT", vec![rule(jump("U")), dport(80, Target::Drop)]), user()]);
    assert_eq!((o, b.counts("INPUT"), b.counts("U")), (DROPPED, vec![1, 1, 0], vec![1, 1, 0, 0]));

    // From a built-in chain there is no caller: the policy.
    let (o, b) = outcome(vec![chain("INPUT", vec![rule(goto("U")), dport(80, Target::Drop)]), user()]);
    assert_eq!((o, b.counts("INPUT"), b.counts("U")), (Accept, vec![1, 0, 1], vec![1, 1, 0, 0]));

    let middle = chain("M", vec![rule(goto("U")), dport(80, Target::Drop)]);
    let (o, b) = outcome(vec![chain("INPUT", vec![rule(jump("M")), dport(80, Target::None)]), middle, user()]);
    assert_eq!((o, b.counts("INPUT"), b.counts("M")), (Accept, vec![1, 1, 1], vec![1, 0, 0]));
}

#[test]
fn the_end_of_a_users_chain_returns_and_has_no_counter() {
    let (o, b) = outcome(vec![chain("INPUT", vec![rule(jump("U")), rule(jump("U")), rule(Target::Drop)]), chain("U", vec![])]);
    assert_eq!((o, b.counts("INPUT"), b.counts("U")), (DROPPED, vec![1, 1, 1, 0], vec![0]));
}

#[test]
fn return_in_a_built_in_chain_runs_the_policy() {
    for (policy, expected) in [(Policy::Accept, Accept), (Policy::Drop, Drop(DropReason::Policy))] {
        let mut input = chain("INPUT", vec![rule(Target::Return), rule(Target::Accept)]);
        input.policy = Some(policy);
        let (o, b) = outcome(vec![input]);
        assert_eq!((o, b.counts("INPUT")), (expected, vec![1, 0, 1]));
    }
}

#[test]
fn a_chain_that_is_called_twice_returns_to_each_caller() {
    let chains = vec![
        chain("INPUT", vec![rule(jump("A")), rule(jump("B")), rule(Target::Drop)]),
        chain("A", vec![rule(jump("B")), rule(Target::None)]),
        chain("B", vec![rule(Target::None)]),
    ];
    let (o, b) = outcome(chains);
    assert_eq!((o, b.counts("INPUT")), (DROPPED, vec![1, 1, 1, 0]));
    assert_eq!((b.counts("A"), b.counts("B")), (vec![1, 1, 0], vec![2, 0]));
}

/// Linux takes this ruleset too, and a packet reaches the end.
#[test]
fn jumps_ten_thousand_chains_deep_reach_the_end_and_return() {
    const DEPTH: usize = 10_000;
    let last = |target| {
        let mut chains = vec![chain("INPUT", vec![rule(jump("C1")), rule(Target::Drop)])];
        for i in 1..DEPTH {
            chains.push(chain(&format!("C{i}"), vec![rule(jump(&format!("C{}", i + 1)))]));
        }
        chains.push(chain(&format!("C{DEPTH}"), vec![rule(target)]));
        outcome(chains)
    };
    let (o, b) = last(Target::Accept);
    assert_eq!((o, b.counts("INPUT"), b.counts("C9999")), (Accept, vec![1, 0, 0], vec![1, 0]));
    let (o, b) = last(Target::Return);
    assert_eq!((o, b.counts("INPUT")), (DROPPED, vec![1, 1, 0]));
}

#[test]
fn a_chain_that_is_not_there_is_not_asked() {
    let rules = ruleset(V4, Raw, vec![]);
    let mut b = Bench::new(&rules);
    for table in TableName::ALL {
        for hook in Hook::ALL {
            assert_eq!(b.program.has(table, hook), table == Raw && matches!(hook, PreRouting | Output));
            assert_eq!(b.run(table, hook, &mut udp(false, 1, 2)), Accept);
        }
    }
    assert_eq!((b.counts("PREROUTING"), b.counts("OUTPUT")), (vec![1], vec![1]));
    assert_eq!(b.program.family(), V4);
}

#[test]
fn a_packet_of_the_other_family_has_no_rules() {
    let mut b = Bench::new(&ruleset(V4, Filter, vec![]));
    assert_eq!(b.run(Filter, Input, &mut udp(true, 1, 2)), Drop(DropReason::NoRules));
    let mut b = Bench::new(&ruleset(V6, Filter, vec![]));
    assert_eq!(b.run(Filter, Input, &mut udp(false, 1, 2)), Drop(DropReason::NoRules));
}

#[test]
fn counters_of_another_program_never_lead_to_a_panic() {
    let small = Program::compile(&ruleset(V4, Filter, vec![])).unwrap();
    let chains = vec![chain("INPUT", vec![rule(Target::None), rule(jump("U"))]), chain("U", vec![rule(Target::None)])];
    let mut b = Bench::new(&ruleset(V4, Filter, chains));
    b.counters = CounterSet::new(&small);
    for hook in [Input, Forward, Output] {
        b.run(Filter, hook, &mut udp(false, 1, 2));
    }
    b.program.ruleset([&b.counters]);
}

#[test]
fn several_tables_have_their_own_chains_and_counters() {
    let mut rules = ruleset(V4, Filter, vec![chain("INPUT", vec![rule(Target::Drop)]), chain("U", vec![rule(Target::Accept)])]);
    let mangle = ruleset(V4, Mangle, vec![chain("INPUT", vec![rule(jump("U"))]), chain("U", vec![rule(Target::None)])]);
    rules.tables.extend(mangle.tables);
    let mut b = Bench::new(&rules);
    assert_eq!(b.run(Mangle, Input, &mut udp(false, 1, 2)), Accept);
    assert_eq!(b.run(Filter, Input, &mut udp(false, 1, 2)), DROPPED);
    let counted = b.program.ruleset([&b.counters]);
    let packets = |t: usize, c: &str| {
        let chain = counted.tables[t].chains.iter().find(|x| x.name == c).unwrap();
        chain.rules.iter().map(|r| r.counters.packets).collect::<Vec<_>>()
    };
    assert_eq!(
        (packets(0, "INPUT"), packets(0, "U"), packets(1, "INPUT"), packets(1, "U")),
        (vec![1], vec![0], vec![1], vec![1])
    );
}

#[test]
fn rules_that_ask_for_connections_need_tracking() {
    let needs =
        |table, hook: &str, r: Rule| Program::compile(&ruleset(V4, table, vec![chain(hook, vec![r])])).unwrap().needs_tracking();
    let m = |m| Rule { matches: vec![m], ..rule(Target::None) };
    assert!(!needs(Filter, "INPUT", dport(80, Target::Drop)));
    assert!(!needs(Filter, "INPUT", m(Match::Mark(Inv { not: false, value: (1, 1) }))));
    assert!(needs(Filter, "INPUT", m(Match::State(Inv { not: false, value: ctstate::NEW }))));
    assert!(needs(Filter, "INPUT", m(Match::Conntrack(Box::default()))));
    assert!(needs(Filter, "INPUT", m(Match::Connmark(Inv { not: false, value: (1, 1) }))));
    assert!(needs(Filter, "INPUT", rule(Target::Connmark(Connmark::Save { nfmask: 1, ctmask: 1 }))));
    assert!(needs(Nat, "POSTROUTING", rule(Target::Masquerade(Default::default()))));
    let ct = |notrack| rule(Target::Ct(CtTarget { notrack, ..CtTarget::default() }));
    assert!(needs(Raw, "PREROUTING", ct(false)) && !needs(Raw, "PREROUTING", ct(true)));
    // An unreachable rule counts as well, as in Linux.
    let unreached = vec![chain("U", vec![m(Match::State(Inv { not: false, value: ctstate::NEW }))])];
    assert!(Program::compile(&ruleset(V4, Filter, unreached)).unwrap().needs_tracking());
}
