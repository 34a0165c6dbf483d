//! Asking the rules about a packet.

use super::head::Key;
use super::log::{LogSink, RawHeaders};
use super::lookup::Rows;
use super::matches::{Answer, Memo};
use super::program::{Action, Entry, Heads};
use super::trail::Witness;
use super::{CounterSet, Family, Hook, Program, RejectWith, TableName, TraceEntry, TraceStep};
use crate::conntrack::{Conn, Conntrack, Track};
use crate::edge::{Payload, PayloadStore};
use crate::nat::Addresses;
use crate::rng::Rng;
use crate::skb::Skb;
use crate::time::Time;
use crate::verdict::DropReason;
use core::cell::RefCell;
use core::time::Duration;

/// What rules may need besides the packet.
pub struct Env<'a> {
    /// Stack time.
    pub now: Time,
    /// For `statistic` and random ports.
    pub rng: &'a mut Rng,
    /// Connections.
    pub ct: &'a Conntrack,
    /// What kinds of addresses there are.
    pub addrs: &'a dyn Addresses,
    /// Of this worker, made for this program.
    pub counters: &'a mut CounterSet,
    /// Where LOG goes.
    pub log: &'a mut dyn LogSink,
    /// What LOG shows of headers that a [`Skb`] does not keep; may be empty.
    pub raw: RawHeaders<'a>,
    /// Reads payload.
    pub bulk: &'a dyn Bulk,
    /// Time since 1970 at stack time zero; `None` if nobody said what time it is. (`time` fits no packet then.)
    pub wall: Option<Duration>,
}

/// Reads the part of a packet that the stack has not copied.
pub trait Bulk {
    /// Copies the start of `p` to `out`; returns how many bytes.
    fn read(&self, p: Payload, out: &mut [u8]) -> usize;
}

impl<T: PayloadStore> Bulk for T {
    fn read(&self, p: Payload, out: &mut [u8]) -> usize {
        PayloadStore::read(self, p, out)
    }
}

impl<T: PayloadStore> Bulk for RefCell<&mut T> {
    fn read(&self, p: Payload, out: &mut [u8]) -> usize {
        self.try_borrow().map_or(0, |store| PayloadStore::read(&**store, p, out))
    }
}

/// Payload that cannot be read.
#[derive(Clone, Copy, Debug)]
pub struct NoBulk;

impl Bulk for NoBulk {
    fn read(&self, _: Payload, _: &mut [u8]) -> usize {
        0
    }
}

impl core::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Env").field("now", &self.now).finish_non_exhaustive()
    }
}

/// What a table says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Accept,
    /// It ends here.
    Drop(DropReason),
    /// It ends here, and its sender is to be told so.
    Reject(RejectWith),
}

/// What becomes of packets if the counters are of another program, too few somewhere: better no packet than a wrong one.
const BROKEN: Outcome = Outcome::Drop(DropReason::Rule);

impl Program {
    /// Asks a table's chain at a hook. A chain that is not there accepts; a packet of the other family is dropped.
    pub fn run(&self, table: TableName, hook: Hook, skb: &mut Skb<'_>, env: &mut Env<'_>) -> Outcome {
        self.run_before(table, hook, skb, env, &mut ())
    }

    /// As [`Program::run`]; `witness` sees what the packet meets.
    pub(super) fn run_before(
        &self,
        table: TableName,
        hook: Hook,
        skb: &mut Skb<'_>,
        env: &mut Env<'_>,
        witness: &mut impl Witness,
    ) -> Outcome {
        let Some(entry) = self.entry(table, hook) else { return Outcome::Accept };
        if skb.is_v6() != (self.family() == Family::V6) {
            return Outcome::Drop(DropReason::NoRules);
        }
        if entry.start == entry.end {
            return self.policy(entry, hook, skb, env, witness);
        }
        match &self.heads {
            Heads::V4(rows) => self.walk(rows, entry, hook, skb, env, witness),
            Heads::V6(rows) => self.walk(rows, entry, hook, skb, env, witness),
        }
    }

    /// A chain without rules.
    fn policy(&self, entry: Entry, hook: Hook, skb: &Skb<'_>, env: &mut Env<'_>, witness: &mut impl Witness) -> Outcome {
        let end = entry.end as usize;
        if skb.traced {
            self.trace(end, hook, skb, env);
        }
        match (self.tails.get(end), env.counters.rules.get_mut(end)) {
            (Some(tail), Some(counter)) => {
                counter.count(skb.len);
                witness.counted(end);
                if tail.action == Action::PolicyAccept { Outcome::Accept } else { Outcome::Drop(DropReason::Policy) }
            }
            _ => BROKEN,
        }
    }

    fn walk<const N: usize>(
        &self,
        rows: &Rows<N>,
        entry: Entry,
        hook: Hook,
        skb: &mut Skb<'_>,
        env: &mut Env<'_>,
        witness: &mut impl Witness,
    ) -> Outcome {
        let Some(mut key) = Key::<N>::of(skb, &self.sets) else { return Outcome::Drop(DropReason::NoRules) };
        let mut memo = Memo::default();
        let mut at = entry.start as usize;
        let mut depth = 0;
        loop {
            let Some(next) = rows.next(at, &key, env.counters.look_ups) else { return BROKEN };
            at = next;
            let Some(tail) = self.tails.get(at) else { return BROKEN };
            match self.ops.ask(tail, skb, env, &mut memo, witness) {
                Answer::Yes => {}
                Answer::No => {
                    at += 1;
                    continue;
                }
                Answer::Broken => return Outcome::Drop(DropReason::Malformed),
            }
            let Some(counter) = env.counters.rules.get_mut(at) else { return BROKEN };
            counter.count(skb.len);
            witness.counted(at);
            if skb.traced {
                self.trace(at, hook, skb, env);
            }
            at = match tail.action {
                Action::Next => at + 1,
                Action::Accept | Action::PolicyAccept => return Outcome::Accept,
                Action::Drop => return Outcome::Drop(DropReason::Rule),
                Action::PolicyDrop => return Outcome::Drop(DropReason::Policy),
                Action::Goto => tail.arg as usize,
                Action::Jump => {
                    let Some(call) = env.counters.calls.get_mut(depth) else { return BROKEN };
                    *call = at as u32 + 1;
                    depth += 1;
                    tail.arg as usize
                }
                // With nothing to return to, the policy decides.
                Action::Return => match depth.checked_sub(1) {
                    None => entry.end as usize,
                    Some(d) => {
                        depth = d;
                        env.counters.calls[d] as usize
                    }
                },
                Action::Target => {
                    let Some(effect) = self.effects.get(tail.arg as usize) else { return BROKEN };
                    witness.relied_on(effect.holds());
                    if let Some(outcome) = effect.act(hook, skb, env, &mut memo) {
                        return outcome;
                    }
                    key.refresh(skb);
                    at + 1
                }
            };
        }
    }
}

impl Program {
    /// Records that a traced packet met a rule, or the end of a chain.
    #[cold]
    fn trace(&self, at: usize, hook: Hook, skb: &Skb<'_>, env: &mut Env<'_>) {
        let Some((table, chain, place)) = self.place(at) else { return };
        let step = match (chain.rules.get(place), chain.policy) {
            (Some(rule), _) => TraceStep::Rule(rule),
            (None, Some(policy)) => TraceStep::Policy(policy),
            (None, None) => TraceStep::Return,
        };
        env.log.trace(&TraceEntry { table, hook, chain: &chain.name, number: place + 1, step, skb, raw: env.raw });
    }
}

/// The connection of a packet, as it is now.
pub(super) fn conn_of(skb: &Skb<'_>, env: &Env<'_>) -> Option<Conn> {
    match &skb.track {
        Track::None | Track::Untracked => None,
        Track::Fresh { conn, .. } => Some(*conn),
        Track::Known { id, .. } => env.ct.get(*id),
    }
}
