//! Rules that count.

use super::{Place, value};
use crate::iptables::check::RuleFault;
use crate::iptables::{HashlimitMatch, RecentAction, RecentMatch};

pub(super) fn recent(m: &RecentMatch, place: &Place) -> Result<(), RuleFault> {
    place.addr(m.mask)?;
    let asks = m.seconds != 0 || m.hitcount != 0 || m.rttl || m.reap;
    let changes = matches!(m.action, RecentAction::Set | RecentAction::Remove);
    value(!(changes && asks), "recent", "--seconds, --hitcount, --rttl and --reap go with --rcheck and --update only")?;
    value(!m.reap || m.seconds != 0, "recent", "--reap needs --seconds")?;
    value(m.hitcount <= RecentMatch::MAX_HITS, "recent", "--hitcount is at most 65535")
}

pub(super) fn prefixes(name: &'static str, prefixes: &[u8], place: &Place) -> Result<(), RuleFault> {
    let most = if place.is_v6() { 128 } else { 32 };
    value(prefixes.iter().all(|p| *p <= most), name, "a prefix is no longer than an address")
}

pub(super) fn hashlimit(m: &HashlimitMatch, place: &Place) -> Result<(), RuleFault> {
    prefixes("hashlimit", &[m.src_prefix, m.dst_prefix], place)?;
    match m.refused() {
        Some(why) => Err(RuleFault::Value("hashlimit", why)),
        None => Ok(()),
    }
}
