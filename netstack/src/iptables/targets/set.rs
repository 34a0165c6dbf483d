//! `SET`: adds packets to sets, or deletes them.

use crate::ipset::{Change, Set};
use crate::iptables::check::RuleFault;
use crate::iptables::matches::set_of;
use crate::iptables::named::Named;
use crate::iptables::{Family, SetDirs, SetRef, SetTarget};
use crate::skb::Skb;
use crate::time::Time;
use std::sync::Arc;

/// The sets that a rule changes.
#[derive(Debug)]
pub(in crate::iptables) struct ChangeSets {
    add: Option<(Arc<Set>, Change)>,
    del: Option<(Arc<Set>, SetDirs)>,
}

impl ChangeSets {
    pub(super) fn new(t: &SetTarget, family: Family, named: &Named) -> Result<ChangeSets, RuleFault> {
        let find = |s: &Option<SetRef>| s.as_ref().map(|s| Ok::<_, RuleFault>((set_of(named, s, family)?, s.dirs))).transpose();
        let add = find(&t.add)?.map(|(set, dirs)| (set, Change { dirs, exist: t.exist, timeout: t.timeout }));
        let del = find(&t.del)?;
        add.iter().map(|a| &a.0).chain(del.iter().map(|d| &d.0)).for_each(|set| set.rules_change_it());
        Ok(ChangeSets { add, del })
    }

    /// What cannot be added or deleted is none of the packet's business.
    pub(super) fn change(&self, skb: &Skb<'_>, now: Time) {
        if let Some((set, change)) = &self.add {
            let _ = set.add(skb, change, now);
        }
        if let Some((set, dirs)) = &self.del {
            set.del(skb, *dirs, now);
        }
    }
}
