//! Connections that a rule of `connlimit` counts (xt_connlimit.c, nf_conncount.c).
//!
//! A rule knows connections of which it saw packets, by their original tuples. Those that are gone or closed are found out when it matters:
//! when there seem to be more than the limit, once per tick of Linux's clock, or when there are twice as many as the last time.

use super::ConnlimitMatch;
use super::hashlimit::{Keyed, prefix};
use super::matches::Answer;
use crate::conntrack::{Conntrack, CtTuple};
use crate::rng;
use crate::state::{Invalid, invalid};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nanoseconds of a tick.
const TICK: u64 = 4_000_000;
/// Fewer connections are not worth looking for those that are gone.
const FEW: usize = 1024;
/// Rules in an image at most.
const MAX_RULES: usize = 1 << 16;

/// By what connections are counted together: the first bits of an address, and the zone.
type Key = ([u8; 16], u16);

/// What a rule counts.
#[derive(Debug)]
pub(super) struct Counted {
    rule: ConnlimitMatch,
    conns: Mutex<Conns>,
}

#[derive(Debug)]
struct Conns {
    groups: HashMap<Key, Group, Keyed>,
    /// Tuples of all groups.
    total: usize,
    /// With so many, those that are gone are looked for.
    sweep_at: usize,
    swept: u64,
}

#[derive(Debug)]
struct Group {
    tuples: HashSet<CtTuple, Keyed>,
    /// Tick at which those that are gone were looked for.
    looked: u64,
}

impl Group {
    /// Drops those that are gone, but for the one that just sent a packet; returns how many.
    fn prune(&mut self, own: Option<&CtTuple>, ct: &Conntrack, now: Time) -> usize {
        let before = self.tuples.len();
        self.tuples.retain(|t| Some(t) == own || ct.is_open(now, t));
        before - self.tuples.len()
    }
}

/// A packet as the rule counts it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counting {
    /// The address that is asked for.
    pub(super) addr: [u8; 16],
    /// Original tuple of its connection, or its own.
    pub(super) tuple: CtTuple,
    /// That connection is ASSURED.
    pub(super) assured: bool,
}

impl Counted {
    pub(super) fn new(rule: ConnlimitMatch, key: rng::Key) -> Counted {
        let groups = HashMap::with_hasher(Keyed(key));
        Counted { rule, conns: Mutex::new(Conns { groups, total: 0, sweep_at: FEW, swept: 0 }) }
    }

    /// Nothing that is done under the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Conns> {
        self.conns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a packet's connection, and asks how many there are.
    pub(super) fn ask(&self, packet: &Counting, ct: &Conntrack, now: Time) -> Answer {
        let mut conns = self.lock();
        let key = (prefix(packet.addr, self.rule.prefix), packet.tuple.zone);
        match conns.count(key, packet, self.rule.limit as usize, ct, now) {
            0 => Answer::Broken,
            n => ((n > self.rule.limit as usize) == self.rule.above).into(),
        }
    }
}

impl Conns {
    /// How many connections there are in a group, this one included: exactly, if they are more than the limit. 0 if there is no room to
    /// count it.
    fn count(&mut self, key: Key, packet: &Counting, limit: usize, ct: &Conntrack, now: Time) -> usize {
        let tick = now.as_nanos() / TICK;
        let hasher = *self.groups.hasher();
        if self.total >= self.sweep_at {
            self.sweep(ct, now);
        }
        let full = self.total >= ct.most();
        let new = || Group { tuples: HashSet::with_hasher(hasher), looked: tick };
        let group = self.groups.entry(key).or_insert_with(new);
        if !group.tuples.contains(&packet.tuple) {
            // As Linux: a connection that was ASSURED before the rule saw it counts only if it is the first one.
            if packet.assured && !group.tuples.is_empty() && group.looked != tick {
                group.looked = tick;
                self.total -= group.prune(None, ct, now);
            }
            if !packet.assured || group.tuples.is_empty() {
                if full {
                    return 0;
                }
                group.tuples.insert(packet.tuple);
                self.total += 1;
            }
        }
        if group.tuples.len() > limit && group.looked != tick {
            group.looked = tick;
            self.total -= group.prune(Some(&packet.tuple), ct, now);
        }
        group.tuples.len()
    }

    /// Drops all that is gone, unless that was done in this tick.
    fn sweep(&mut self, ct: &Conntrack, now: Time) {
        let tick = now.as_nanos() / TICK;
        if self.swept == tick {
            return;
        }
        self.swept = tick;
        self.groups.retain(|_, group| {
            group.prune(None, ct, now);
            !group.tuples.is_empty()
        });
        self.total = self.groups.values().map(|g| g.tuples.len()).sum();
        self.sweep_at = FEW.max(2 * self.total).min(ct.most());
    }
}

/// What a rule counted, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedRule {
    prefix: u8,
    dest: bool,
    /// Groups and tuples in their order.
    groups: Vec<(Key, Vec<CtTuple>)>,
}

impl Counted {
    pub(super) fn save(&self) -> SavedRule {
        let conns = self.lock();
        let sorted = |g: &Group| {
            let mut tuples: Vec<CtTuple> = g.tuples.iter().copied().collect();
            tuples.sort_unstable_by_key(|t| (t.src, t.dst, t.sport, t.dport, t.proto));
            tuples
        };
        let groups = conns.groups.iter().filter(|(_, g)| !g.tuples.is_empty());
        let mut groups: Vec<_> = groups.map(|(key, g)| (*key, sorted(g))).collect();
        groups.sort_unstable_by_key(|(key, _)| *key);
        SavedRule { prefix: self.rule.prefix, dest: self.rule.dest, groups }
    }

    /// Goes on from what the same rule counted; another one's is not taken.
    pub(super) fn recall(&self, saved: &SavedRule) {
        if (saved.prefix, saved.dest) != (self.rule.prefix, self.rule.dest) {
            return;
        }
        let mut conns = self.lock();
        let hasher = *conns.groups.hasher();
        for (key, tuples) in &saved.groups {
            let mut group = Group { tuples: HashSet::with_hasher(hasher), looked: 0 };
            group.tuples.extend(tuples);
            conns.total += group.tuples.len();
            conns.groups.insert(*key, group);
        }
    }
}

/// What rules counted, by family and in the order of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnlimitState {
    pub(crate) families: [Vec<SavedRule>; 2],
}

impl ConnlimitState {
    /// Whether there are no such rules.
    pub fn is_empty(&self) -> bool {
        self.families.iter().all(Vec::is_empty)
    }

    /// Whether it can be, in a table of at most so many connections.
    pub(crate) fn check(&self, most: usize) -> Result<(), Invalid> {
        for (rules, v6) in self.families.iter().zip([false, true]) {
            if rules.len() > MAX_RULES {
                return Err(invalid("more rules than there may be"));
            }
            rules.iter().try_for_each(|r| r.check(v6, most))?;
        }
        Ok(())
    }
}

impl SavedRule {
    fn check(&self, v6: bool, most: usize) -> Result<(), Invalid> {
        let total: usize = self.groups.iter().map(|(_, tuples)| tuples.len()).sum();
        if total > most {
            return Err(invalid("more connections than a rule counts"));
        }
        let fits = |((addr, zone), tuples): &(Key, Vec<CtTuple>)| {
            prefix(*addr, self.prefix) == *addr && !tuples.is_empty() && tuples.iter().all(|t| t.v6 == v6 && t.zone == *zone)
        };
        if self.groups.is_sorted_by(|(a, _), (b, _)| a < b) && self.groups.iter().all(fits) {
            Ok(())
        } else {
            Err(invalid("connections that a rule cannot count"))
        }
    }
}

#[cfg(test)]
mod tests;
