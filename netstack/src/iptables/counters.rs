//! Counters of rules and policies: one set per worker and program.

use super::{Counters, Program};

/// What rules and policies met since the set was made, and the stack of calls between chains.
///
/// Every worker has its own, so that counting needs no atomics; they are summed when read ([`Program::ruleset`]).
#[derive(Clone, Debug)]
pub struct CounterSet {
    /// By number of the rule in its program; ends of chains have one too.
    pub(super) rules: Box<[Counters]>,
    /// Where to go on after the chains that were jumped to: as deep as the program's rules can go.
    pub(super) calls: Box<[u32]>,
    /// Whether rules of long chains are looked up, or asked one by one.
    pub(super) look_ups: bool,
}

impl CounterSet {
    /// Zeroes, for one program. Sets of other programs must not be handed to it.
    pub fn new(program: &Program) -> Self {
        CounterSet {
            rules: vec![Counters::default(); program.rule_count()].into(),
            calls: vec![0; program.call_depth()].into(),
            look_ups: true,
        }
    }

    /// Has rules of long chains looked up, or asked one by one; the same comes of both.
    pub fn set_look_ups(&mut self, on: bool) {
        self.look_ups = on;
    }

    /// Counts a packet where a rule or policy would.
    #[inline]
    pub(super) fn count(&mut self, rule: usize, bytes: u32) {
        if let Some(counter) = self.rules.get_mut(rule) {
            counter.count(bytes);
        }
    }

    /// Adds what another worker counted for the same program.
    pub fn add(&mut self, other: &CounterSet) {
        for (mine, theirs) in self.rules.iter_mut().zip(&other.rules) {
            *mine += *theirs;
        }
    }

    /// Begins to count anew.
    pub(crate) fn clear(&mut self) {
        self.rules.fill(Counters::default());
    }
}

impl Counters {
    /// One more packet of `bytes`.
    pub(super) fn count(&mut self, bytes: u32) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes.into());
    }
}

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, o: Counters) {
        self.packets = self.packets.wrapping_add(o.packets);
        self.bytes = self.bytes.wrapping_add(o.bytes);
    }
}
