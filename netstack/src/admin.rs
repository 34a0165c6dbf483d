//! What an operator does to a running stack: rules, tracked connections, the log of rules.

use crate::conntrack::{Conn, ConnId, Conntrack};
use crate::edge::Edge;
use crate::ipset::Sets;
use crate::iptables::{Family, RuleError, Ruleset};
use crate::stack::Stack;
use crate::time::Time;
use crate::trace;
use crate::workers::LEADER;
use std::sync::Arc;

/// What becomes of live connections when rules change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recheck {
    /// The new rules judge later packets only, as Linux does.
    #[default]
    Keep,
    /// Every live flow is judged once as if it were to begin now; those that may not are reset on both sides.
    Cut,
}

/// What a change of rules did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RulesReport {
    /// Flows that were reset.
    pub cut: usize,
    /// The other family has no rules of the user's, and is dropped from now on.
    pub other_family_closed: bool,
}

/// Ways past asking rule by rule. They change nothing but the time that it takes; to switch one off serves to measure it, and to test that.
/// All are on in a new stack, and in a restored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcuts {
    /// Packets of established connections go the way of those before them, where all that rules looked at is the same.
    pub verdicts: bool,
    /// Rules of long chains that look at addresses and ports are looked up by them.
    pub look_ups: bool,
}

impl Default for Shortcuts {
    fn default() -> Self {
        Shortcuts { verdicts: true, look_ups: true }
    }
}

impl Stack {
    /// Sets which shortcuts are taken from now on.
    pub fn set_shortcuts(&mut self, shortcuts: Shortcuts) {
        self.router.set_shortcuts(shortcuts);
    }

    /// Bytes that the cache of verdicts holds.
    pub fn verdict_bytes(&self) -> usize {
        self.router.verdict_bytes()
    }

    /// Replaces the rules of a family, all tables at once: each packet sees one ruleset. Tracking is on from the first time on. Our
    /// own chains (published ports, safe reach) are made anew in it. If only one family's rules were ever given, packets of the
    /// other are dropped.
    ///
    /// An error leaves everything as it was.
    pub fn set_rules<E: Edge>(
        &mut self,
        now: Time,
        rules: Ruleset,
        recheck: Recheck,
        edge: &mut E,
    ) -> Result<RulesReport, RuleError> {
        self.set_rules_on(now, rules, None, recheck, edge)
    }

    /// As [`Stack::set_rules`], and replaces the sets at the same time, if there are others. The other family's rules must do with those, too.
    pub fn set_rules_on<E: Edge>(
        &mut self,
        now: Time,
        rules: Ruleset,
        sets: Option<&Sets>,
        recheck: Recheck,
        edge: &mut E,
    ) -> Result<RulesReport, RuleError> {
        self.router.now = now;
        let family = rules.family;
        let rebuilt = sets.map(|s| self.router.rebuild(s, Some(family))).transpose()?;
        let program = self.router.compile_on(rules, true, rebuilt.as_ref())?;
        if let Some(rebuilt) = rebuilt {
            self.router.install_sets(rebuilt);
        }
        // Flows that are older than tracking have connections from here on, which can be judged.
        if self.router.begin_tracking() {
            self.translator.adopt(&mut self.router);
        }
        let mut report = RulesReport::default();
        if recheck == Recheck::Cut {
            // A family that was closed for want of rules has them now; its resets are to pass.
            self.router.open(family);
            let forbidden = self.translator.forbidden(&mut self.router, family, &program);
            report.cut = forbidden.len();
            for token in forbidden {
                self.translator.reset(&mut self.router, token, edge);
            }
        }
        report.other_family_closed = self.router.install(family, program);
        Ok(report)
    }

    /// Checks rules as [`Stack::set_rules`] would, and changes nothing.
    pub fn check_rules(&self, rules: Ruleset) -> Result<(), RuleError> {
        self.check_rules_on(rules, None)
    }

    /// Checks rules and sets as [`Stack::set_rules_on`] would, and changes nothing.
    pub fn check_rules_on(&self, rules: Ruleset, sets: Option<&Sets>) -> Result<(), RuleError> {
        let rebuilt = sets.map(|s| self.router.rebuild(s, Some(rules.family))).transpose()?;
        self.router.compile_on(rules, true, rebuilt.as_ref()).map(|_| ())
    }

    /// Replaces the sets that rules name. The rules in force must do with them; an error leaves everything as it was.
    pub fn set_sets(&mut self, now: Time, sets: &Sets) -> Result<(), RuleError> {
        self.router.now = now;
        let rebuilt = self.router.rebuild(sets, None)?;
        self.router.install_sets(rebuilt);
        Ok(())
    }

    /// The sets that rules name.
    pub fn sets(&self) -> &Sets {
        self.router.sets()
    }

    /// The rules in force, with what they counted.
    pub fn rules(&self, family: Family) -> Ruleset {
        self.router.ruleset(family)
    }

    /// A ruleset as it would be in force: with our own chains.
    pub fn with_own_rules(&self, rules: Ruleset) -> Ruleset {
        self.router.with_own(rules, true)
    }

    /// The tracked connections.
    pub fn conntrack(&self) -> &Arc<Conntrack> {
        self.router.conntrack()
    }

    /// Resets the flows that may not go on under the leader's rules of a family, which this worker is to [follow](Stack::follow) next: their number.
    pub fn cut<E: Edge>(&mut self, now: Time, leader: &Stack, family: Family, edge: &mut E) -> usize {
        self.router.now = now;
        let Some(program) = leader.router.program(family) else { return 0 };
        self.router.open(family);
        let forbidden = self.translator.forbidden(&mut self.router, family, &program);
        for token in &forbidden {
            self.translator.reset(&mut self.router, *token, edge);
        }
        forbidden.len()
    }

    /// Removes tracked connections; the flows that they carry are reset on both sides. Returns their number. Of [several workers](crate::workers) all are
    /// to be asked, the leader at the end: the others remove those whose flows are theirs.
    pub fn delete_connections<E: Edge>(&mut self, now: Time, ids: &[ConnId], edge: &mut E) -> usize {
        self.router.now = now;
        let mut n = 0;
        for &id in ids {
            let Some(Conn { flow, .. }) = self.conntrack().get(id) else { continue };
            let mine = flow.is_some_and(|t| t.worker() == self.worker());
            if !mine && self.worker() != LEADER {
                continue;
            }
            if let Some(token) = flow.filter(|_| mine) {
                // The reset finds its way by the connection.
                self.translator.reset(&mut self.router, token, edge);
            }
            n += usize::from(self.conntrack().remove(id).is_some());
        }
        n
    }

    /// Ends the flows whose tracked connection timed out or was thrown out.
    pub(crate) fn close_untracked<E: Edge>(&mut self, edge: &mut E) {
        let mut closed = self.router.take_closed();
        for token in closed.drain(..) {
            self.translator.reset(&mut self.router, token, edge);
        }
        self.router.give_back(closed);
    }

    /// Takes the lines that LOG rules wrote since the last call, and how many more there were than could be kept.
    pub fn take_log(&mut self) -> (Vec<String>, u64) {
        self.router.take_log()
    }

    /// Whether there is something for [`Stack::take_log`] or [`Stack::take_traces`].
    pub fn has_log(&self) -> bool {
        self.router.has_log()
    }

    /// Traces packets that fit a filter, beside those that TRACE rules mark; or does not any more. Nothing of this is saved.
    pub fn set_trace(&mut self, filter: Option<trace::Filter>) {
        self.router.set_trace(filter);
    }

    /// Takes what happened to traced packets since the last call, and how much more there was than could be kept.
    pub fn take_traces(&mut self) -> (Vec<trace::Event>, u64) {
        self.router.take_traces()
    }
}
