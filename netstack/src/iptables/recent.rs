//! Tables of `recent`: addresses, and when they were seen (xt_recent.c). Rules of both families share them by name.
//!
//! A table lives as long as a rule in force names it. It is what its first rule makes it: its mask is that one's, and of how many times an
//! address is remembered it knows what the rule with most of them needs.

use crate::state::{Invalid, invalid};
use crate::time::Time;
use core::net::IpAddr;
use core::time::Duration;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Addresses of a table; a further one takes the place of the one that was not seen for longest. (Linux's `ip_list_tot`.)
const MAX_ENTRIES: usize = 100;
/// Times that are remembered of an address if no rule needs more.
const STAMPS: u32 = 32;
/// Most of them.
const MAX_STAMPS: u32 = 65_536;
/// Most tables in an image.
const MAX_TABLES: usize = 4096;

/// What a rule does with its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecentAction {
    /// `--set`.
    Set,
    /// `--rcheck`.
    Check,
    /// `--update`.
    Update,
    /// `--remove`.
    Remove,
}

/// `recent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentMatch {
    /// `!` stood before the action.
    pub not: bool,
    /// What it does.
    pub action: RecentAction,
    /// `--seconds`; 0 for any time.
    pub seconds: u32,
    /// `--reap`.
    pub reap: bool,
    /// `--hitcount`; 0 if once is enough.
    pub hitcount: u32,
    /// `--rttl`.
    pub rttl: bool,
    /// `--name`.
    pub name: String,
    /// `--mask`.
    pub mask: IpAddr,
    /// `--rdest`; else `--rsource`.
    pub dest: bool,
}

impl RecentMatch {
    /// Longest name in bytes.
    pub const MAX_NAME: usize = 199;
    /// Most hits that can be asked for.
    pub const MAX_HITS: u32 = MAX_STAMPS - 1;

    /// How many times of an address must be remembered for it.
    fn stamps(&self) -> u32 {
        if self.hitcount == 0 { STAMPS } else { self.hitcount.next_power_of_two() }
    }

    /// Whether a table can have the name.
    pub fn is_name(name: &str) -> bool {
        !name.is_empty() && name.len() <= RecentMatch::MAX_NAME && !name.contains('/')
    }
}

/// One table.
#[derive(Debug)]
pub struct RecentTable {
    name: String,
    seen: Mutex<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// Bits of an address that count, IPv4 in the first ones.
    mask: [u8; 16],
    /// Of how many times an address is remembered: a power of two.
    stamps: u32,
    /// Who was not seen for longest is first.
    entries: Vec<Entry>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    addr: [u8; 16],
    v6: bool,
    ttl: u8,
    /// When it was seen: a ring.
    stamps: Vec<Time>,
    /// Where the next one goes.
    index: u32,
}

impl Entry {
    fn last(&self) -> Time {
        let last = (self.index as usize).checked_sub(1).and_then(|n| self.stamps.get(n));
        last.or(self.stamps.last()).copied().unwrap_or_default()
    }
}

/// An address in 16 bytes.
fn bytes(addr: IpAddr) -> [u8; 16] {
    let mut all = [0; 16];
    match addr {
        IpAddr::V4(a) => all[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => all = a.octets(),
    }
    all
}

impl RecentTable {
    fn new(rule: &RecentMatch) -> RecentTable {
        let seen = Seen { mask: bytes(rule.mask), stamps: rule.stamps(), entries: Vec::new() };
        RecentTable { name: rule.name.clone(), seen: Mutex::new(seen) }
    }

    /// Nothing that is done under the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a rule of this table about an address.
    pub(super) fn ask(&self, rule: &RecentMatch, addr: IpAddr, ttl: u8, now: Time) -> bool {
        self.lock().ask(rule, addr, ttl, now)
    }

    /// Sees to it that as many times are remembered as a rule needs. Those that were remembered do not fit then, and are forgotten.
    fn widen(&self, rule: &RecentMatch) {
        let mut seen = self.lock();
        if seen.stamps < rule.stamps() {
            seen.entries.clear();
            seen.stamps = rule.stamps();
        }
    }
}

impl Seen {
    fn ask(&mut self, rule: &RecentMatch, addr: IpAddr, ttl: u8, now: Time) -> bool {
        let v6 = addr.is_ipv6();
        let mut addr = bytes(addr);
        addr.iter_mut().zip(self.mask).for_each(|(byte, mask)| *byte &= mask);
        let wanted = if rule.rttl { ttl } else { 0 };
        let fits = |e: &Entry| e.v6 == v6 && e.addr == addr && (wanted == 0 || e.ttl == 0 || e.ttl == wanted);
        let Some(at) = self.entries.iter().rposition(fits) else {
            if rule.action != RecentAction::Set {
                return rule.not;
            }
            if self.entries.len() >= MAX_ENTRIES {
                self.entries.remove(0);
            }
            self.entries.push(Entry { addr, v6, ttl, stamps: vec![now], index: 1 });
            return !rule.not;
        };
        match rule.action {
            RecentAction::Set => {
                self.touch(at, ttl, now);
                !rule.not
            }
            RecentAction::Remove => {
                self.entries.remove(at);
                !rule.not
            }
            RecentAction::Check | RecentAction::Update => {
                let life = Duration::from_secs(rule.seconds.into());
                let counts = |stamp: &&Time| rule.seconds == 0 || now.since(**stamp) <= life;
                let needed = rule.hitcount.max(1) as usize;
                let seen = self.entries[at].stamps.iter().filter(counts).nth(needed - 1).is_some();
                let answer = seen != rule.not;
                let update = rule.action == RecentAction::Update && answer;
                let oldest = self.entries.first().map_or(now, Entry::last);
                let gone = rule.reap && !(at == 0 && update) && now.since(oldest) > life;
                if update {
                    self.touch(at, ttl, now);
                }
                if gone {
                    self.entries.remove(0);
                }
                answer
            }
        }
    }

    /// Notes that an address was seen once more.
    fn touch(&mut self, at: usize, ttl: u8, now: Time) {
        let mut e = self.entries.remove(at);
        e.ttl = ttl;
        e.index &= self.stamps - 1;
        match e.stamps.get_mut(e.index as usize) {
            Some(stamp) => *stamp = now,
            None => e.stamps.push(now),
        }
        e.index += 1;
        self.entries.push(e);
    }
}

/// The tables that rules in force name.
#[derive(Clone, Debug, Default)]
pub struct RecentTables(Arc<Mutex<Vec<Weak<RecentTable>>>>);

impl RecentTables {
    fn live(&self) -> Vec<Arc<RecentTable>> {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|t| t.strong_count() > 0);
        list.iter().filter_map(Weak::upgrade).collect()
    }

    fn add(&self, table: RecentTable) -> Arc<RecentTable> {
        let table = Arc::new(table);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&table));
        table
    }

    /// The table of a rule; a new one if there is none.
    pub(super) fn of(&self, rule: &RecentMatch) -> Arc<RecentTable> {
        let there = self.live().into_iter().find(|t| t.name == rule.name);
        let table = there.unwrap_or_else(|| self.add(RecentTable::new(rule)));
        // As soon as the rule is read, as the kernel does.
        table.widen(rule);
        table
    }

    /// The state of all tables.
    pub(crate) fn save(&self) -> RecentState {
        RecentState { tables: self.live().iter().map(|t| (t.name.clone(), t.lock().clone())).collect() }
    }

    /// Tables as they were saved. They are given away, and gone if no rule takes them meanwhile.
    pub(crate) fn load(&self, state: RecentState) -> Result<Vec<Arc<RecentTable>>, Invalid> {
        if state.tables.len() > MAX_TABLES {
            return Err(invalid("more tables than there may be"));
        }
        let mut tables: Vec<Arc<RecentTable>> = Vec::new();
        for (name, seen) in state.tables {
            if !RecentMatch::is_name(&name) || tables.iter().any(|t| t.name == name) {
                return Err(invalid("a table with a name that cannot be"));
            }
            seen.check()?;
            tables.push(self.add(RecentTable { name, seen: Mutex::new(seen) }));
        }
        Ok(tables)
    }
}

impl Seen {
    fn check(&self) -> Result<(), Invalid> {
        if !self.stamps.is_power_of_two() || self.stamps > MAX_STAMPS || self.entries.len() > MAX_ENTRIES {
            return Err(invalid("a table that is larger than it may be"));
        }
        for (n, e) in self.entries.iter().enumerate() {
            let stamps = e.stamps.len() as u64;
            let masked = e.addr.iter().zip(self.mask).all(|(a, m)| a & !m == 0) && (e.v6 || e.addr[4..] == [0; 12]);
            let twice = || self.entries[..n].iter().any(|o| (o.addr, o.v6, o.ttl) == (e.addr, e.v6, e.ttl));
            let ring = stamps == u64::from(self.stamps) || u64::from(e.index) == stamps;
            if !(1..=u64::from(self.stamps)).contains(&stamps)
                || !(1..=stamps).contains(&u64::from(e.index))
                || !ring
                || !masked
                || twice()
            {
                return Err(invalid("an address that a table cannot have"));
            }
        }
        Ok(())
    }
}

/// Tables as they are saved. Times are stack time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentState {
    tables: Vec<(String, Seen)>,
}

impl RecentState {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(action: RecentAction) -> RecentMatch {
        let mask = "255.255.255.255".parse().unwrap();
        RecentMatch { not: false, action, seconds: 0, reap: false, hitcount: 0, rttl: false, name: "t".into(), mask, dest: false }
    }

    fn at(s: u64) -> Time {
        Time::ZERO + Duration::from_secs(s)
    }

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn an_address_counts_for_so_many_hits_in_so_many_seconds() {
        let tables = RecentTables::default();
        let set = rule(RecentAction::Set);
        let check = RecentMatch { seconds: 60, hitcount: 3, ..rule(RecentAction::Check) };
        let t = tables.of(&check);
        for s in [0, 10, 20] {
            assert!(!t.ask(&check, ip(1), 64, at(s)), "at {s}");
            assert!(t.ask(&set, ip(1), 64, at(s)));
        }
        assert!(t.ask(&check, ip(1), 64, at(60)), "three in the last 60 seconds, the first just so");
        assert!(!t.ask(&check, ip(1), 64, at(61)));
        assert!(!t.ask(&check, ip(2), 64, at(20)));
        assert!(t.ask(&RecentMatch { not: true, ..check }, ip(2), 64, at(20)));
    }

    #[test]
    fn update_renews_what_it_finds_and_remove_forgets() {
        let tables = RecentTables::default();
        let update = RecentMatch { seconds: 10, ..rule(RecentAction::Update) };
        let t = tables.of(&update);
        assert!(!t.ask(&update, ip(1), 64, at(0)), "it adds nobody");
        t.ask(&rule(RecentAction::Set), ip(1), 64, at(0));
        assert!(t.ask(&update, ip(1), 64, at(9)) && t.ask(&update, ip(1), 64, at(19)) && !t.ask(&update, ip(1), 64, at(30)));
        assert!(t.ask(&rule(RecentAction::Remove), ip(1), 64, at(30)));
        assert!(!t.ask(&rule(RecentAction::Remove), ip(1), 64, at(30)));
    }

    #[test]
    fn tables_are_bounded_and_the_oldest_goes_first() {
        let tables = RecentTables::default();
        let set = rule(RecentAction::Set);
        let t = tables.of(&set);
        (0..=100).for_each(|n| _ = t.ask(&set, ip(n), 64, at(n.into())));
        let check = rule(RecentAction::Check);
        assert!(!t.ask(&check, ip(0), 64, at(200)) && t.ask(&check, ip(1), 64, at(200)));
        (0..100).for_each(|n| _ = t.ask(&set, ip(7), 64, at(200 + n)));
        assert!(t.lock().entries.iter().all(|e| e.stamps.len() <= 32));
        // A rule that needs more of each begins anew.
        t.widen(&RecentMatch { hitcount: 33, ..check.clone() });
        assert!(!t.ask(&check, ip(7), 64, at(300)));
    }

    #[test]
    fn reap_takes_one_that_is_too_old_and_rttl_tells_senders_apart() {
        let tables = RecentTables::default();
        let set = rule(RecentAction::Set);
        let t = tables.of(&set);
        t.ask(&set, ip(1), 64, at(0));
        t.ask(&set, ip(2), 64, at(50));
        t.ask(&RecentMatch { seconds: 20, reap: true, ..rule(RecentAction::Check) }, ip(2), 64, at(51));
        assert!(!t.ask(&rule(RecentAction::Check), ip(1), 64, at(51)) && t.ask(&rule(RecentAction::Check), ip(2), 64, at(51)));
        let rttl = RecentMatch { rttl: true, ..rule(RecentAction::Check) };
        assert!(t.ask(&rttl, ip(2), 64, at(51)) && !t.ask(&rttl, ip(2), 63, at(51)));
    }

    #[test]
    fn tables_are_shared_by_name_as_long_as_a_rule_has_them_and_are_saved() {
        let tables = RecentTables::default();
        let set = rule(RecentAction::Set);
        let t = tables.of(&set);
        assert!(Arc::ptr_eq(&t, &tables.of(&rule(RecentAction::Check))));
        t.ask(&set, ip(1), 64, at(5));
        t.ask(&set, "fd00::1".parse().unwrap(), 64, at(6));
        let saved = tables.save();
        drop(t);
        assert!(tables.save().is_empty());
        let kept = tables.load(saved.clone()).unwrap();
        assert_eq!(tables.save(), saved);
        assert!(tables.of(&set).ask(&rule(RecentAction::Check), ip(1), 64, at(9)));
        drop(kept);
        let json = serde_json::to_string(&saved).unwrap();
        for (a, b) in [
            ("\"stamps\":32", "\"stamps\":31"),
            ("\"stamps\":32", "\"stamps\":131072"),
            ("\"index\":1", "\"index\":2"),
            ("[10,0,0,1,0", "[10,0,0,1,1"),
        ] {
            assert!(json.contains(a), "{json}");
            let forged: RecentState = serde_json::from_str(&json.replacen(a, b, 1)).unwrap();
            assert!(tables.load(forged).is_err(), "{b}");
        }
    }
}
