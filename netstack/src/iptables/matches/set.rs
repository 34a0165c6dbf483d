//! `set`: whether a packet is in a set.

use crate::ipset::{Asked, Set};
use crate::iptables::check::RuleFault;
use crate::iptables::holds::Holds;
use crate::iptables::named::Named;
use crate::iptables::{Family, SetMatch, SetRef};
use crate::skb::Skb;
use crate::time::Time;
use std::sync::Arc;

/// A set, and what is asked of it.
#[derive(Debug)]
pub(in crate::iptables) struct InSet {
    set: Arc<Set>,
    asked: Asked,
    not: bool,
}

/// The set that a rule names.
pub(in crate::iptables) fn set_of(named: &Named, set: &SetRef, family: Family) -> Result<Arc<Set>, RuleFault> {
    let found = named.sets.get(&set.name).ok_or_else(|| RuleFault::NoSet(set.name.clone()))?;
    if found.head().takes(family) { Ok(found.clone()) } else { Err(RuleFault::SetFamily(set.name.clone())) }
}

impl InSet {
    pub(super) fn new(m: &SetMatch, family: Family, named: &Named) -> Result<InSet, RuleFault> {
        let SetMatch { not, set, return_nomatch, no_counters, no_subcounters, packets, bytes } = m;
        let asked = Asked {
            dirs: set.dirs,
            return_nomatch: *return_nomatch,
            no_counters: *no_counters,
            no_subcounters: *no_subcounters,
            packets: *packets,
            bytes: *bytes,
        };
        Ok(InSet { set: set_of(named, set, family)?, asked, not: *not })
    }

    /// A set that only the operator changes says the same for as long as it is in force.
    pub(super) fn holds(&self) -> Holds {
        if self.set.is_constant() { Holds::Connection } else { Holds::Packet }
    }

    pub(super) fn has(&self, skb: &Skb<'_>, now: Time) -> bool {
        self.set.has(skb, &self.asked, now) != self.not
    }
}
