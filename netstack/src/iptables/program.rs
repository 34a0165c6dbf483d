//! Rules compiled for evaluation.

use super::check::RuleError;
use super::connlimit::{Counted, SavedRule};
use super::flags::FlagClasses;
use super::head::{Sets, V4, V6};
use super::lookup::Rows;
use super::matches::{Op, Ops};
use super::named::Named;
use super::targets::Effect;
use super::{Chain, CounterSet, Family, Hook, Ruleset, Stage, TableName};

/// The rules of one family, checked and compiled. Immutable, but for what rules of `limit` and `statistic` share among workers.
#[derive(Debug)]
pub struct Program {
    /// What was compiled, with the counters that it came with.
    source: Ruleset,
    pub(super) heads: Heads,
    /// As long as the heads.
    pub(super) tails: Vec<Tail>,
    pub(super) ops: Ops,
    pub(super) effects: Vec<Effect>,
    pub(super) sets: Sets,
    entries: [[Option<Entry>; Hook::ALL.len()]; TableName::ALL.len()],
    /// Number of the first rule of each chain, in the order of the source; the last rule of each is its end.
    starts: Vec<u32>,
    depth: usize,
    tracking: bool,
    pub(super) flags: FlagClasses,
    pub(super) asks_conn_mark: bool,
    /// Stages with rules, as bits.
    stages: u8,
}

/// The header tests of a family in one piece: chain after chain, each with an end that every packet fits.
#[derive(Debug)]
pub(super) enum Heads {
    V4(Rows<V4>),
    V6(Rows<V6>),
}

/// Where a hook's chain starts and ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// What a rule does once its header test fits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    /// First match.
    pub(super) matches: u32,
    /// What the action is about.
    pub(super) arg: u32,
    /// How many matches.
    pub(super) match_count: u8,
    pub(super) action: Action,
}

/// Where a rule leads, without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Action {
    /// The next rule.
    Next,
    /// ACCEPT.
    Accept,
    /// DROP.
    Drop,
    /// RETURN, and the end of a user's chain.
    Return,
    /// To the rule `arg`, and back.
    Jump,
    /// To the rule `arg`.
    Goto,
    /// Target extension `arg`.
    Target,
    /// The end of a built-in chain: policy ACCEPT.
    PolicyAccept,
    /// The end of a built-in chain: policy DROP.
    PolicyDrop,
}

/// A program without its source: what the compiler makes.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) heads: Heads,
    pub(super) tails: Vec<Tail>,
    pub(super) ops: Ops,
    pub(super) effects: Vec<Effect>,
    pub(super) sets: Sets,
    pub(super) entries: [[Option<Entry>; Hook::ALL.len()]; TableName::ALL.len()],
    pub(super) starts: Vec<u32>,
    pub(super) depth: usize,
    pub(super) tracking: bool,
    /// Of all that rules ask of TCP flags.
    pub(super) flags: FlagClasses,
    /// Whether a rule looks at connection marks or changes them.
    pub(super) asks_conn_mark: bool,
}

impl Program {
    /// Checks rules and compiles them.
    ///
    /// # Errors
    /// Says which rule cannot be, and why: jumps to nowhere, loops, matches and targets where they cannot be.
    pub fn compile(rules: &Ruleset) -> Result<Program, RuleError> {
        Program::compile_with(rules, &Named::default())
    }

    /// As [`Program::compile`], for rules that may name what there is in `named`.
    ///
    /// # Errors
    /// As there; and if they name what is not there.
    pub fn compile_with(rules: &Ruleset, named: &Named) -> Result<Program, RuleError> {
        let p = super::compile::compile(rules, named)?;
        let has_rules = |hook: Hook, t: &TableName| p.entries[*t as usize][hook as usize].is_some_and(|e| e.start < e.end);
        let with_rules = Stage::ALL.into_iter().filter(|s| s.tables().iter().any(|t| has_rules(s.hook(), t)));
        let stages = with_rules.fold(0, |bits, s| bits | 1 << s as u8);
        Ok(Program {
            source: rules.clone(),
            heads: p.heads,
            tails: p.tails,
            ops: p.ops,
            effects: p.effects,
            sets: p.sets,
            entries: p.entries,
            starts: p.starts,
            depth: p.depth,
            tracking: p.tracking,
            flags: p.flags,
            asks_conn_mark: p.asks_conn_mark,
            stages,
        })
    }

    /// Bytes that look-ups take.
    pub fn look_up_bytes(&self) -> usize {
        match &self.heads {
            Heads::V4(rows) => rows.look_up_bytes(),
            Heads::V6(rows) => rows.look_up_bytes(),
        }
    }

    /// The family of its rules.
    pub const fn family(&self) -> Family {
        self.source.family
    }

    /// Whether there is a chain to be asked. (An empty one counts the packets that meet its policy, so it is asked too.)
    pub fn has(&self, table: TableName, hook: Hook) -> bool {
        self.entry(table, hook).is_some()
    }

    /// Whether there are rules at a stage; a policy alone is none.
    #[inline]
    pub(super) const fn has_rules_at(&self, stage: Stage) -> bool {
        self.stages >> stage as u8 & 1 != 0
    }

    /// Whether there are rules at any stage.
    pub(crate) const fn has_rules(&self) -> bool {
        self.stages != 0
    }

    /// Whether a rule needs connections to be tracked: one that asks for or changes what is known of them, or translates addresses.
    pub const fn needs_tracking(&self) -> bool {
        self.tracking
    }

    /// The rules, with all that was counted: what they came with, and what `counters` (one set per worker) have.
    pub fn ruleset<'a>(&self, counters: impl IntoIterator<Item = &'a CounterSet>) -> Ruleset {
        let mut rules = self.source.clone();
        for set in counters {
            let chains = rules.tables.iter_mut().flat_map(|t| &mut t.chains);
            for (chain, start) in chains.zip(&self.starts) {
                let start = *start as usize;
                let all = chain.rules.iter_mut().map(|r| &mut r.counters).chain([&mut chain.counters]);
                for (sum, counted) in all.zip(set.rules.get(start..).unwrap_or_default()) {
                    *sum += *counted;
                }
            }
        }
        // The end of a user's chain has no counters.
        for chain in rules.tables.iter_mut().flat_map(|t| &mut t.chains).filter(|c| c.policy.is_none()) {
            chain.counters = Default::default();
        }
        rules
    }

    /// What its matches remember of earlier packets (`limit`, `statistic`), in the order of the rules.
    pub fn memory(&self) -> Vec<u64> {
        self.ops.list.iter().filter_map(Op::memory).collect()
    }

    /// Has its matches remember what those of the same rules did. Memory of other rules is none: as many words as there are matches
    /// that remember something, or nothing is taken over.
    pub fn recall(&self, memory: &[u64]) {
        let keepers = || self.ops.list.iter().filter(|op| op.memory().is_some());
        if keepers().count() == memory.len() {
            keepers().zip(memory).for_each(|(op, &word)| op.recall(word));
        }
    }

    /// Whether a rule asks what connections carried, so that this is to be counted from now on.
    pub(crate) fn needs_accounting(&self) -> bool {
        self.ops.list.iter().any(|op| matches!(op, Op::Connbytes(_)))
    }

    /// Whether a rule looks at what packets carry.
    pub(crate) fn reads_payload(&self) -> bool {
        self.ops.list.iter().any(Op::reads_payload)
    }

    /// Whether a rule decides which connection packets belong to, or that they belong to none (CT).
    pub(crate) fn decides_tracking(&self) -> bool {
        self.effects.iter().any(|e| matches!(e, Effect::Ct(_)))
    }

    /// The connections that its rules count, in the order of the rules.
    pub(crate) fn connections(&self) -> Vec<SavedRule> {
        self.ops.list.iter().filter_map(Op::counted).map(Counted::save).collect()
    }

    /// Has its rules count on from what those of the same rules did; if there are more or fewer, nothing is taken over.
    pub(crate) fn recall_connections(&self, saved: &[SavedRule]) {
        let counted = || self.ops.list.iter().filter_map(Op::counted);
        if counted().count() == saved.len() {
            counted().zip(saved).for_each(|(rule, saved)| rule.recall(saved));
        }
    }

    /// Where a rule of the program stands in the source: table, chain, and its place there. The last place of a chain is its end.
    pub(super) fn place(&self, at: usize) -> Option<(TableName, &Chain, usize)> {
        let n = self.starts.partition_point(|start| *start as usize <= at).checked_sub(1)?;
        let mut left = n;
        for table in &self.source.tables {
            match table.chains.get(left) {
                Some(chain) => return Some((table.name, chain, at - self.starts[n] as usize)),
                None => left -= table.chains.len(),
            }
        }
        None
    }

    pub(super) fn entry(&self, table: TableName, hook: Hook) -> Option<Entry> {
        self.entries[table as usize][hook as usize]
    }

    /// Rules, the ends of chains included.
    pub(super) fn rule_count(&self) -> usize {
        self.tails.len()
    }

    /// Most calls between chains that can be open at a time.
    pub(super) const fn call_depth(&self) -> usize {
        self.depth
    }
}
