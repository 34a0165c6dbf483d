//! `recent`: whether an address was seen lately.

use crate::iptables::RecentMatch;
use crate::iptables::named::Named;
use crate::iptables::recent::RecentTable;
use crate::skb::Skb;
use crate::time::Time;
use std::sync::Arc;

/// A table, and what is asked of it.
#[derive(Debug)]
pub(in crate::iptables) struct Recent {
    table: Arc<RecentTable>,
    rule: RecentMatch,
}

impl Recent {
    pub(super) fn new(rule: &RecentMatch, named: &Named) -> Recent {
        Recent { table: named.recent.of(rule), rule: rule.clone() }
    }

    pub(super) fn ask(&self, skb: &Skb<'_>, now: Time) -> bool {
        let addr = if self.rule.dest { skb.dst } else { skb.src };
        // As it was before it was forwarded.
        let forwarded = skb.output.is_some() && skb.input.is_some();
        let ttl = skb.hop_limit.wrapping_add(forwarded.into());
        self.table.ask(&self.rule, addr, ttl, now)
    }
}
