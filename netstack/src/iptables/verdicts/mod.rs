//! The cache of verdicts: what becomes of an established connection's packets, so that they need not ask the rules.
//!
//! Tables are asked in stages: those in a row with nothing between them but rules. When a packet of a tracked connection passes a stage, it
//! leaves a trail ([`super::trail`]). If nothing that it relied on differs between packets of one [`Key`], the verdict, the mark that the packet
//! ended with and the rules that counted it are kept as a path. A later packet of the connection with the same key takes the path: it
//! counts there what it would have counted, gets the mark and the verdict.
//!
//! Paths are few, since a path does not say whose it is; a connection has a line with the numbers of its paths, by direction and stage.
//! A line is of one generation of its slot and one epoch. An epoch ends when rules, sets, addresses or routes change
//! ([`Verdicts::forget`]): then all lines are void. Nothing of this is saved.

mod key;
mod lines;
mod paths;

pub(crate) use key::Stage;

use super::trail::{Trail, Witness};
use super::{CounterSet, Env, Outcome, Program};
use crate::conntrack::Conntrack;
use crate::skb::Skb;
use key::{Key, Whose};
use lines::Lines;
use paths::{Path, Paths};

/// Paths by connection.
#[derive(Debug)]
pub(crate) struct Verdicts {
    off: bool,
    lines: Lines,
    paths: Paths,
}

/// What the cache says about a packet at a stage.
#[derive(Debug)]
pub(crate) enum Known {
    /// It took a path.
    Path(Outcome),
    /// The rules are to be asked, and will have to be each time.
    Ask,
    /// The rules are to be asked, and what they say may be kept.
    Keep(Place),
}

/// Where a path would be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    whose: Whose,
    key: Key,
}

impl Verdicts {
    /// An empty cache. The key is secret.
    pub(crate) fn new(key: crate::rng::Key) -> Self {
        Verdicts { off: false, lines: Lines::default(), paths: Paths::new(key) }
    }

    /// Switches it off or on.
    pub(crate) fn set_off(&mut self, off: bool) {
        self.off = off;
        self.clear();
    }

    /// Ends the epoch: what was kept holds no longer.
    pub(crate) fn forget(&mut self) {
        self.paths.clear();
        self.lines.forget();
    }

    /// As [`Verdicts::forget`], and gives the memory back.
    pub(crate) fn clear(&mut self) {
        self.paths.clear();
        self.lines.clear();
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.bytes() + self.paths.bytes()
    }

    /// Sends a packet along the path that is known for it.
    #[inline]
    pub(crate) fn take(
        &self,
        stage: Stage,
        program: &Program,
        skb: &mut Skb<'_>,
        ct: &Conntrack,
        counters: &mut CounterSet,
    ) -> Known {
        if self.off || !program.has_rules_at(stage) {
            return Known::Ask;
        }
        let Some((whose, key)) = Key::of(stage, program, skb) else { return Known::Ask };
        let path = self.lines.get(whose.id, whose.place).and_then(|n| self.paths.get(n));
        let Some(path) = path.filter(|p| p.key == key && p.holds(skb, whose.id, ct)) else {
            return Known::Keep(Place { whose, key });
        };
        let Some(outcome) = path.outcome else { return Known::Ask };
        for &rule in self.paths.counted(path) {
            counters.count(rule as usize, skb.len);
        }
        skb.mark = path.mark;
        Known::Path(outcome)
    }

    /// Asks the rules of a stage, and keeps what they say for the packets that follow.
    pub(crate) fn ask(&mut self, place: Place, program: &Program, skb: &mut Skb<'_>, env: &mut Env<'_>) -> Outcome {
        let Place { whose, key } = place;
        let conn_mark = || if program.asks_conn_mark { env.ct.mark(whose.id) } else { None };
        let before = conn_mark();
        let mut trail = Trail::new();
        let mac = skb.src_mac;
        let outcome = key.stage().ask(program, skb, env, &mut trail);
        let conn_mark = trail.conn_mark.then_some(before).flatten();
        if trail.conn_mark && (before.is_none() || env.ct.mark(whose.id) != before) {
            // It changed the mark; the next one may leave it.
            return outcome;
        }
        let rules = trail.rules();
        let path = Path::new(key, rules.map(|_| outcome), skb.mark, trail.mac.then_some(mac), conn_mark);
        let path = self.paths.add(path, rules.unwrap_or_default()).or_else(|| {
            self.forget();
            None
        });
        if let Some(n) = path {
            self.lines.put(whose.id, whose.place, n);
        }
        outcome
    }
}

impl Stage {
    /// Asks the tables one after the other.
    pub(super) fn ask(self, program: &Program, skb: &mut Skb<'_>, env: &mut Env<'_>, witness: &mut impl Witness) -> Outcome {
        for &table in self.tables() {
            match program.run_before(table, self.hook(), skb, env, witness) {
                Outcome::Accept => {}
                stop => return stop,
            }
        }
        Outcome::Accept
    }

    /// As [`Stage::ask`], with nobody looking.
    pub(crate) fn run(self, program: &Program, skb: &mut Skb<'_>, env: &mut Env<'_>) -> Outcome {
        self.ask(program, skb, env, &mut ())
    }
}
