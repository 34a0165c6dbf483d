//! Target extensions, compiled.

mod alter;
mod mark;
mod set;

use super::check::RuleFault;
use super::holds::Holds;
use super::matches::Memo;
use super::named::Named;
use super::{
    Alter, Connmark, CtTarget, Env, Family, Hook, LogEntry, LogTarget, Net, NflogTarget, Outcome, RejectWith, Target, ZoneDir,
};
use crate::conntrack::Track;
use crate::nat::{self, Manip, Nat, NatRange};
use crate::skb::Skb;
use crate::verdict::DropReason;

/// What a rule does that is more than going somewhere.
#[derive(Debug)]
pub(super) enum Effect {
    Reject(RejectWith),
    Log(Box<LogTarget>),
    Dnat(Box<NatRange>),
    Snat(Box<NatRange>),
    Masquerade(Box<NatRange>),
    Redirect(Box<NatRange>),
    Netmap(Box<Net>),
    Mark { value: u32, mask: u32 },
    Connmark(Connmark),
    Ct(CtTarget),
    Alter(Alter),
    Trace,
    Set(Box<set::ChangeSets>),
}

impl Effect {
    /// `None` for targets that only lead somewhere.
    pub(super) fn compile(target: &Target, family: Family, named: &Named) -> Result<Option<Effect>, RuleFault> {
        Ok(Some(match target {
            Target::None | Target::Accept | Target::Drop | Target::Return | Target::Jump(_) | Target::Goto(_) => return Ok(None),
            Target::Reject(with) => Effect::Reject(*with),
            Target::Log(log) => Effect::Log(log.clone()),
            Target::Dnat(range) => Effect::Dnat(Box::new(*range)),
            Target::Snat(range) => Effect::Snat(Box::new(*range)),
            Target::Masquerade(range) => Effect::Masquerade(Box::new(*range)),
            Target::Redirect(range) => Effect::Redirect(Box::new(*range)),
            Target::Netmap(net) => Effect::Netmap(Box::new(*net)),
            Target::Mark { value, mask } => Effect::Mark { value: *value, mask: *mask },
            Target::Connmark(c) => Effect::Connmark(*c),
            Target::Ct(ct) => Effect::Ct(*ct),
            Target::Alter(a) => Effect::Alter(*a),
            Target::Nflog(log) => Effect::Log(Box::new(nflog(log))),
            Target::Trace => Effect::Trace,
            Target::Set(set) => Effect::Set(Box::new(set::ChangeSets::new(set, family, named)?)),
        }))
    }

    /// For which packets it does the same.
    pub(super) const fn holds(&self) -> Holds {
        match self {
            Effect::Reject(_) | Effect::Mark { .. } => Holds::Connection,
            Effect::Connmark(_) => Holds::ConnMark,
            Effect::Log(_) | Effect::Ct(_) | Effect::Set(_) | Effect::Alter(_) | Effect::Trace => Holds::Packet,
            Effect::Dnat(_) | Effect::Snat(_) | Effect::Masquerade(_) | Effect::Redirect(_) | Effect::Netmap(_) => Holds::Packet,
        }
    }

    /// Does it. `None` to go on with the next rule.
    pub(super) fn act(&self, hook: Hook, skb: &mut Skb<'_>, env: &mut Env<'_>, memo: &mut Memo) -> Option<Outcome> {
        match self {
            Effect::Reject(with) => Some(Outcome::Reject(*with)),
            Effect::Log(log) => {
                env.log.log(&LogEntry { target: log, hook, skb, raw: env.raw });
                None
            }
            Effect::Mark { value, mask } => {
                skb.mark = (skb.mark & !mask) ^ value;
                None
            }
            Effect::Connmark(c) => {
                mark::connmark(c, skb, env);
                memo.forget_conn();
                None
            }
            Effect::Ct(ct) => {
                track(ct, skb, memo);
                None
            }
            Effect::Alter(a) => alter::alter(a, skb, env),
            Effect::Trace => {
                skb.traced = true;
                None
            }
            Effect::Set(set) => {
                set.change(skb, env.now);
                None
            }
            Effect::Dnat(r) => Some(translate(env, |n| nat::bind(n, skb, Manip::Destination, r))),
            Effect::Snat(r) => Some(translate(env, |n| nat::bind(n, skb, Manip::Source, r))),
            Effect::Masquerade(r) => Some(translate(env, |n| nat::masquerade(n, skb, r))),
            Effect::Redirect(r) => Some(translate(env, |n| nat::redirect(n, skb, hook, r))),
            Effect::Netmap(net) => {
                let manip = match hook {
                    Hook::PreRouting | Hook::Output => Manip::Destination,
                    Hook::Input | Hook::Forward | Hook::PostRouting => Manip::Source,
                };
                Some(translate(env, |n| nat::netmap(n, skb, manip, net)))
            }
        }
    }
}

/// NFLOG as LOG: nobody listens to groups here, so the line says which one it is.
fn nflog(log: &NflogTarget) -> LogTarget {
    let blank = if log.prefix.is_empty() { "" } else { " " };
    LogTarget { level: 6, prefix: format!("NFLOG: group={} {}{blank}", log.group, log.prefix), flags: 0 }
}

/// A target of the nat table: the packet goes on, unless it cannot be translated.
fn translate(env: &mut Env<'_>, f: impl FnOnce(&mut Nat<'_>) -> Result<(), DropReason>) -> Outcome {
    let mut nat = Nat { now: env.now, rng: env.rng, table: env.ct, addrs: env.addrs };
    f(&mut nat).map_or_else(Outcome::Drop, |()| Outcome::Accept)
}

/// `CT`: says how tracking is to take the packet. The first such rule wins, as in Linux.
fn track(ct: &CtTarget, skb: &mut Skb<'_>, memo: &mut Memo) {
    if skb.track != Track::None || core::mem::replace(&mut memo.template, true) {
        return;
    }
    if ct.notrack {
        skb.track = Track::Untracked;
    } else if let Some((zone, dir)) = ct.zone {
        skb.zones = match dir {
            ZoneDir::Both => [zone, zone],
            ZoneDir::Original => [zone, 0],
            ZoneDir::Reply => [0, zone],
        };
    }
}
