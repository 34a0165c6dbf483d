//! From rules as values to a program.

use super::check::{self, Graph, RuleError, RuleFault};
use super::flags::FlagClasses;
use super::head::{self, Head, Sets};
use super::holds::Holds;
use super::ifaces::IfaceSet;
use super::lookup::Rows;
use super::matches::{Op, Ops};
use super::named::Named;
use super::program::{Action, Entry, Heads, Parts, Tail};
use super::targets::Effect;
use super::{CtTarget, Family, Hook, Match, Policy, Rule, Ruleset, TableName, Target};

/// Checks rules and compiles them.
pub(super) fn compile(rules: &Ruleset, named: &Named) -> Result<Parts, RuleError> {
    let graphs = check::check(rules)?;
    let starts = starts(rules)?;
    let sets = head::sets(all_rules(rules));
    let mut c = Compiler {
        rules,
        named,
        graphs: &graphs,
        starts: &starts,
        sets: &sets,
        tails: Vec::new(),
        ops: Ops::default(),
        effects: Vec::new(),
    };
    let heads = match rules.family {
        Family::V4 => Heads::V4(c.rows()?),
        Family::V6 => Heads::V6(c.rows()?),
    };
    let flags = match &heads {
        Heads::V4(rows) => flags(rows.heads(), &c.ops),
        Heads::V6(rows) => flags(rows.heads(), &c.ops),
    };
    let Compiler { tails, ops, effects, .. } = c;
    Ok(Parts {
        entries: entries(rules, &graphs, &starts),
        depth: graphs.iter().map(|g| g.depth).max().unwrap_or(0),
        tracking: all_rules(rules).any(needs_tracking),
        asks_conn_mark: ops.list.iter().any(|op| op.holds() == Holds::ConnMark)
            || effects.iter().any(|e| e.holds() == Holds::ConnMark),
        flags,
        heads,
        tails,
        ops,
        effects,
        sets,
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

/// What rules tell apart of TCP flags.
fn flags<const N: usize>(heads: &[Head<N>], ops: &Ops) -> FlagClasses {
    FlagClasses::of(heads.iter().filter_map(Head::asked_flags).chain(ops.list.iter().filter_map(Op::asked_flags)))
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
    rule.matches.iter().any(|m| {
        matches!(m, Match::Conntrack(_) | Match::State(_) | Match::Connmark(_) | Match::Connbytes(_) | Match::Connlimit(_))
    }) || match &rule.target {
        Target::Dnat(_) | Target::Snat(_) | Target::Masquerade(_) | Target::Redirect(_) | Target::Netmap(_) => true,
        Target::Connmark(_) => true,
        Target::Ct(CtTarget { notrack, .. }) => !notrack,
        _ => false,
    }
}

struct Compiler<'a> {
    rules: &'a Ruleset,
    named: &'a Named,
    graphs: &'a [Graph],
    starts: &'a [u32],
    sets: &'a Sets,
    tails: Vec<Tail>,
    ops: Ops,
    effects: Vec<Effect>,
}

impl Compiler<'_> {
    /// Compiles all rules; gives their header tests.
    fn rows<const N: usize>(&mut self) -> Result<Rows<N>, RuleError> {
        let mut rows = Rows::new();
        let mut starts = self.starts;
        for (table, graph) in self.rules.tables.iter().zip(self.graphs) {
            for (c, chain) in table.chains.iter().enumerate() {
                let mut links = graph.links[c].iter().peekable();
                let first = self.tails.len();
                let mut wanted = Vec::with_capacity(chain.rules.len());
                for (r, rule) in chain.rules.iter().enumerate() {
                    let to = links.next_if(|l| l.rule == r).map(|l| starts[l.chain]);
                    let fault = |fault| RuleError { table: table.name, chain: chain.name.clone(), rule: Some(r + 1), fault };
                    let tests = self.ops.list.len();
                    let head = self.rule(rule, to).map_err(fault)?;
                    let mut wants = head.wanted();
                    self.ops.want(tests, rule.proto, &mut wants);
                    wanted.push(wants);
                    rows.push(head);
                }
                rows.index(first, &wanted);
                let action = match chain.policy {
                    Some(Policy::Accept) => Action::PolicyAccept,
                    Some(Policy::Drop) => Action::PolicyDrop,
                    None => Action::Return,
                };
                rows.push(Head::ANY);
                self.tails.push(Tail { matches: 0, arg: 0, match_count: 0, action });
            }
            starts = &starts[table.chains.len()..];
        }
        Ok(rows)
    }

    /// One rule. `to`: the first rule of the chain that it calls.
    fn rule<const N: usize>(&mut self, rule: &Rule, to: Option<u32>) -> Result<Head<N>, RuleFault> {
        let mut head = Head::ANY;
        let matches = self.ops.list.len();
        self.header(&mut head, rule);
        for m in &rule.matches {
            // A test may become part of the header test only if those before change nothing, and drop no packet that it would let pass by.
            let may_fold = !self.ops.list[matches..].iter().any(|op| op.is_stateful() || op.may_drop(rule.proto));
            self.ops.compile(m, self.rules.family, &mut head, may_fold, self.named)?;
        }
        let (action, arg) = self.action(&rule.target, to)?;
        let match_count = u8::try_from(self.ops.list.len() - matches)
            .map_err(|_| RuleFault::Value("rule", "more than 255 tests: split it in two by a chain"))?;
        self.tails.push(Tail { matches: matches as u32, arg, match_count, action });
        Ok(head)
    }

    fn header<const N: usize>(&mut self, head: &mut Head<N>, rule: &Rule) {
        for (dst, net) in [(false, &rule.src), (true, &rule.dst)] {
            if let Some(net) = net.as_ref().filter(|n| !head.addr(dst.into(), n)) {
                self.ops.list.push(Op::Net { dst, net: Box::new(*net) });
            }
        }
        if let Some(proto) = rule.proto.filter(|p| !head.proto(*p, &self.sets.protos)) {
            self.ops.list.push(Op::Proto(proto));
        }
        for (output, test) in [(false, &rule.input), (true, &rule.output)] {
            let Some(set) = test.as_ref().map(IfaceSet::of) else { continue };
            let classes = if output { &self.sets.output } else { &self.sets.input };
            match classes.exact(&set) {
                Some(bits) => head.iface(output, bits),
                None => self.ops.list.push(Op::Iface { output, set: Box::new(set) }),
            }
        }
        if rule.fragment == Some(true) {
            head.never();
        }
    }

    fn action(&mut self, target: &Target, to: Option<u32>) -> Result<(Action, u32), RuleFault> {
        Ok(match (target, to) {
            (Target::Jump(_), Some(to)) => (Action::Jump, to),
            (Target::Goto(_), Some(to)) => (Action::Goto, to),
            (Target::Accept, _) => (Action::Accept, 0),
            (Target::Drop, _) => (Action::Drop, 0),
            (Target::Return, _) => (Action::Return, 0),
            (target, _) => match Effect::compile(target, self.rules.family, self.named)? {
                Some(effect) => {
                    self.effects.push(effect);
                    (Action::Target, self.effects.len() as u32 - 1)
                }
                None => (Action::Next, 0),
            },
        })
    }
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
