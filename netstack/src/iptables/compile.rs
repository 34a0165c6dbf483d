//! From rules as values to a program.

use super::check::{self, Graph, RuleError, RuleFault};
use super::head::{self, Action, Addrs, Head, Span, V4, V6};
use super::ifaces::{IfaceBits, IfaceNames, IfaceSet};
use super::matches::Op;
use super::program::{Code, Entry, Parts};
use super::targets::Effect;
use super::{CtTarget, Family, Hook, Inv, Match, Policy, Rule, Ruleset, TableName, Target, ctstate};

/// Checks rules and compiles them.
pub(super) fn compile(rules: &Ruleset) -> Result<Parts, RuleError> {
    let graphs = check::check(rules)?;
    let starts = starts(rules)?;
    let (mut ops, mut effects) = (Vec::new(), Vec::new());
    let bits = interfaces(rules);
    let mut c = Compiler { rules, graphs: &graphs, starts: &starts, bits: &bits, ops: &mut ops, effects: &mut effects };
    let code = match rules.family {
        Family::V4 => Code::V4(c.heads::<V4>()?),
        Family::V6 => Code::V6(c.heads::<V6>()?),
    };
    Ok(Parts {
        code,
        entries: entries(rules, &graphs, &starts),
        depth: graphs.iter().map(|g| g.depth).max().unwrap_or(0),
        tracking: all_rules(rules).any(needs_tracking),
        ops,
        effects,
        bits,
        starts,
    })
}

/// Number of the first rule of each chain of each table; chains have an end, which is a rule too.
fn starts(rules: &Ruleset) -> Result<Vec<u32>, RuleError> {
    let mut next = 0u32;
    let mut starts = Vec::new();
    for table in &rules.tables {
        for chain in &table.chains {
            starts.push(next);
            let len = u32::try_from(chain.rules.len()).ok().and_then(|n| n.checked_add(1));
            next = len.and_then(|n| next.checked_add(n)).ok_or_else(|| RuleError {
                table: table.name,
                chain: chain.name.clone(),
                rule: None,
                fault: RuleFault::TooMany,
            })?;
        }
    }
    Ok(starts)
}

fn entries(rules: &Ruleset, graphs: &[Graph], starts: &[u32]) -> [[Option<Entry>; Hook::ALL.len()]; TableName::ALL.len()] {
    let mut entries = [[None; Hook::ALL.len()]; TableName::ALL.len()];
    let mut starts = starts.iter();
    for (table, graph) in rules.tables.iter().zip(graphs) {
        for ((c, chain), start) in table.chains.iter().enumerate().zip(&mut starts) {
            if let Some(hook) = graph.hook(c) {
                entries[table.name as usize][hook as usize] =
                    Some(Entry { start: *start, end: start + chain.rules.len() as u32 });
            }
        }
    }
    entries
}

fn all_rules(rules: &Ruleset) -> impl Iterator<Item = &Rule> {
    rules.tables.iter().flat_map(|t| &t.chains).flat_map(|c| &c.rules)
}

/// Where Linux's extensions ask for tracking (`nf_ct_netns_get`).
fn needs_tracking(rule: &Rule) -> bool {
    rule.matches.iter().any(|m| matches!(m, Match::Conntrack(_) | Match::State(_) | Match::Connmark(_)))
        || match &rule.target {
            Target::Dnat(_) | Target::Snat(_) | Target::Masquerade(_) | Target::Redirect(_) | Target::Netmap(_) => true,
            Target::Connmark(_) => true,
            Target::Ct(CtTarget { notrack, .. }) => !notrack,
            _ => false,
        }
}

/// Finds the classes of interfaces that the rules tell apart.
fn interfaces(rules: &Ruleset) -> IfaceBits {
    let names = IfaceNames::new();
    let mut bits = IfaceBits::default();
    for rule in all_rules(rules) {
        // A set that finds no room stays a test of its own.
        if let Some(test) = &rule.input {
            bits.input.admit(&names.set(test));
        }
        if let Some(test) = &rule.output {
            bits.output.admit(&names.set(test));
        }
    }
    bits
}

struct Compiler<'a> {
    rules: &'a Ruleset,
    graphs: &'a [Graph],
    starts: &'a [u32],
    bits: &'a IfaceBits,
    ops: &'a mut Vec<Op>,
    effects: &'a mut Vec<Effect>,
}

impl Compiler<'_> {
    fn heads<A: Addrs>(&mut self) -> Result<Vec<Head<A>>, RuleError> {
        let names = IfaceNames::new();
        let mut heads = Vec::new();
        let mut starts = self.starts;
        for (table, graph) in self.rules.tables.iter().zip(self.graphs) {
            for (c, chain) in table.chains.iter().enumerate() {
                let mut links = graph.links[c].iter().peekable();
                for (r, rule) in chain.rules.iter().enumerate() {
                    let to = links.next_if(|l| l.rule == r).map(|l| starts[l.chain]);
                    let (action, arg) = self.action(&rule.target, to);
                    let mut head = Head::any(action, arg);
                    let fault = |fault| RuleError { table: table.name, chain: chain.name.clone(), rule: Some(r + 1), fault };
                    self.tests(&mut head, rule, &names).map_err(fault)?;
                    heads.push(head);
                }
                let end = match chain.policy {
                    Some(Policy::Accept) => Action::PolicyAccept,
                    Some(Policy::Drop) => Action::PolicyDrop,
                    None => Action::Return,
                };
                heads.push(Head::any(end, 0));
            }
            starts = &starts[table.chains.len()..];
        }
        Ok(heads)
    }

    /// `to`: the first rule of the chain that is called.
    fn action(&mut self, target: &Target, to: Option<u32>) -> (Action, u32) {
        match (target, to) {
            (Target::Jump(_), Some(to)) => (Action::Jump, to),
            (Target::Goto(_), Some(to)) => (Action::Goto, to),
            (Target::Accept, _) => (Action::Accept, 0),
            (Target::Drop, _) => (Action::Drop, 0),
            (Target::Return, _) => (Action::Return, 0),
            (target, _) => match Effect::compile(target) {
                Some(effect) => {
                    self.effects.push(effect);
                    (Action::Target, self.effects.len() as u32 - 1)
                }
                None => (Action::Next, 0),
            },
        }
    }

    /// Puts into the header test what it has room for, and the rest behind.
    fn tests<A: Addrs>(&mut self, head: &mut Head<A>, rule: &Rule, names: &IfaceNames) -> Result<(), RuleFault> {
        let mut ops = Vec::new();
        for (side, net) in [&rule.src, &rule.dst].into_iter().enumerate() {
            if let Some(net) = net.as_ref().filter(|n| !A::put(head, side, n)) {
                ops.push(Op::Net { dst: side == 1, net: *net });
            }
        }
        if let Some(proto) = rule.proto {
            head.proto = proto.value;
            head.flags &= !head::ANY_PROTO;
            head.flags |= if proto.not { head::INV_PROTO } else { 0 };
        }
        if rule.fragment == Some(true) {
            head.states = 0;
        }
        if let Some(test) = &rule.input {
            head.input = self.iface(&mut ops, false, names.set(test));
        }
        if let Some(test) = &rule.output {
            head.output = self.iface(&mut ops, true, names.set(test));
        }
        for m in &rule.matches {
            let from = ops.len();
            Op::compile(m, self.rules.family, &mut ops)?;
            // Tests may only go before others that change nothing.
            if !ops[..from].iter().any(Op::is_stateful) {
                let mut at = from;
                while at < ops.len() {
                    if fold(head, &ops[at]) { drop(ops.remove(at)) } else { at += 1 }
                }
            }
        }
        head.matches = self.ops.len() as u32;
        head.match_count = u8::try_from(ops.len()).map_err(|_| RuleFault::Value("rule", "more than 255 tests: split it"))?;
        self.ops.append(&mut ops);
        Ok(())
    }

    fn iface(&self, ops: &mut Vec<Op>, output: bool, set: IfaceSet) -> u32 {
        let classes = if output { &self.bits.output } else { &self.bits.input };
        classes.exact(&set).unwrap_or_else(|| {
            ops.push(Op::Iface { output, set });
            u32::MAX
        })
    }
}

/// Makes a test part of the header test. False if there is no room, or it cannot be.
fn fold<A: Addrs>(head: &mut Head<A>, op: &Op) -> bool {
    let (span, flag, ports) = match op {
        Op::Port { dst: false, ports } => (&mut head.sport, head::INV_SPORT, ports),
        Op::Port { dst: true, ports } => (&mut head.dport, head::INV_DPORT, ports),
        Op::State(s) => return fold_state(&mut head.states, s),
        Op::Conntrack(c) => {
            let only_state = c.state.filter(|s| **c == super::CtMatch { state: Some(*s), ..Default::default() });
            return only_state.is_some_and(|s| fold_state(&mut head.states, &s));
        }
        _ => return false,
    };
    let Inv { not, value: (first, last) } = *ports;
    if *span != Span::ALL || head.flags & flag != 0 || first > last {
        return false;
    }
    *span = Span { first, span: last - first };
    head.flags |= if not { flag } else { 0 };
    true
}

/// A packet has exactly one of the real states, so that an inverted set is one too. The virtual ones come in addition.
fn fold_state(states: &mut u16, s: &Inv<u16>) -> bool {
    if s.value & (ctstate::SNAT | ctstate::DNAT) != 0 {
        return false;
    }
    let real = ctstate::INVALID | ctstate::ESTABLISHED | ctstate::RELATED | ctstate::NEW | ctstate::UNTRACKED;
    *states &= if s.not { real & !s.value } else { s.value };
    true
}

impl From<super::matches::LimitError> for RuleFault {
    fn from(e: super::matches::LimitError) -> Self {
        RuleFault::Value("limit", e.text())
    }
}

impl core::fmt::Display for TableName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TableName {
    /// The hooks at which a table has a chain.
    pub const fn hooks(self) -> &'static [Hook] {
        match self {
            TableName::Raw => &[Hook::PreRouting, Hook::Output],
            TableName::Mangle => &Hook::ALL,
            TableName::Nat => &[Hook::PreRouting, Hook::Input, Hook::Output, Hook::PostRouting],
            TableName::Filter | TableName::Security => &[Hook::Input, Hook::Forward, Hook::Output],
        }
    }
}
