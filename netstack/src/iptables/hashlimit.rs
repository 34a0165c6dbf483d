//! Tables of `hashlimit`: a bucket of tokens for each address or port, or a rate (xt_hashlimit.c). Rules of a family share them by name.
//!
//! A table lives as long as a rule in force names it, and is what its first rule makes it. As there, a rule says for itself only whether it
//! wants what is above, and whether it counts bytes.

use super::HashlimitMatch;
use super::hashlimit_mode as mode;
use super::matches::Answer;
use crate::rng;
use crate::state::{Invalid, invalid};
use crate::time::Time;
use core::hash::{BuildHasher, Hash};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Ticks per second in which Linux's buckets are filled.
const HZ: u64 = 250;
/// Credits per tick, and per tick of a bucket of bytes: the largest powers of two that its arithmetic allows.
const CREDITS: u64 = 1 << 39;
const BYTE_CREDITS: u64 = 1 << 24;
/// A full bucket of bytes: what comes in a second.
const BYTES_FULL: u64 = BYTE_CREDITS * HZ;
/// What a rate of one per second is in the units of a rule.
const SCALE: u64 = 1_000_000;
/// Bytes are counted in chunks of 16.
const CHUNK_SHIFT: u32 = 4;
/// Buckets of a table whose rule does not say how many.
const SIZE: u32 = 8192;
/// Entries of a table at most, whatever its rule says.
const MOST: usize = 1 << 20;
/// Tables of an image at most.
const MAX_TABLES: usize = 4096;

/// What a table tells apart; what its rule does not ask for is 0. IPv4 addresses are in the first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Bucket {
    pub(super) src: [u8; 16],
    pub(super) dst: [u8; 16],
    pub(super) sport: u16,
    pub(super) dport: u16,
}

/// One of them. Times are in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// When it was filled last, or the interval of its rate began.
    since: u64,
    /// When it may go.
    expires: u64,
    /// What is in the bucket; of a rate, what came in this interval.
    credit: u64,
    /// What fits in; of a bucket of bytes, how often it may be filled again.
    cap: u64,
    /// The rate was above in the last interval.
    above: bool,
}

/// One table.
#[derive(Debug)]
pub struct HashTable {
    v6: bool,
    /// What its first rule says.
    rule: HashlimitMatch,
    entries: Mutex<Entries>,
}

#[derive(Debug)]
struct Entries {
    map: HashMap<Bucket, Entry, Keyed>,
    /// What was over by then is not there any more.
    swept: u64,
}

/// Hashes under a secret.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyed(pub(super) rng::Key);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0.0, self.0.1)
    }
}

fn ticks(t: Time) -> u64 {
    t.as_nanos() / (1_000_000_000 / HZ)
}

fn ticks_of(ms: u32) -> u64 {
    (u64::from(ms) * HZ).div_ceil(1000)
}

/// Credits of so many units of a rule (`user2credits`).
const fn credits(user: u64) -> u64 {
    user.wrapping_mul(HZ * CREDITS / SCALE)
}

impl HashlimitMatch {
    /// What a chunk of bytes costs (`user2credits_byte`).
    const fn byte_cost(&self) -> u64 {
        ((self.avg as u32 as u64) * BYTES_FULL) >> 32
    }

    /// Why a rule cannot be: what the kernel refuses.
    pub(super) fn refused(&self) -> Option<&'static str> {
        if !HashlimitMatch::is_name(&self.name) {
            return Some("--hashlimit-name must be a name of a file");
        }
        if self.gc_interval == 0 || self.expire == 0 {
            return Some("--hashlimit-htable-expire and --hashlimit-htable-gcinterval are at least 1");
        }
        match self.interval {
            Some(0) => Some("--hashlimit-rate-interval is at least 1"),
            Some(_) if self.avg == 0 || self.avg > u32::MAX.into() => Some("a rate that cannot be"),
            Some(_) => None,
            None if self.bytes && self.byte_cost() == 0 => Some("the rate is too high"),
            None if self.bytes => None,
            None if self.burst == 0 || credits(self.avg.wrapping_mul(self.burst)) < credits(self.avg) => {
                Some("the burst is 0 or too large for the rate: lower it")
            }
            None => None,
        }
    }

    /// Entries that its table may have.
    fn most(&self) -> usize {
        let size = if self.size == 0 { SIZE } else { self.size };
        let max = if self.max == 0 { size.saturating_mul(8) } else { self.max.max(size) };
        MOST.min(max as usize)
    }

    /// A new entry.
    fn fresh(&self, now: u64) -> Entry {
        let (credit, cap) = match (self.interval, self.bytes) {
            (Some(_), _) => (0, 0),
            (None, true) => (BYTES_FULL, self.burst),
            (None, false) => {
                let full = credits(self.avg.wrapping_mul(self.burst));
                (full, full)
            }
        };
        Entry { since: now, expires: 0, credit, cap, above: false }
    }

    /// What may come in a second of a rate, and as a burst.
    fn rate(&self) -> (u64, u64) {
        if self.bytes {
            let avg = u64::from(self.avg as u32);
            let rate = u64::from(u32::MAX).checked_div(avg).unwrap_or(u32::MAX.into()).saturating_sub(1) << CHUNK_SHIFT;
            (rate, if self.burst == 0 { rate } else { rate.saturating_mul(self.burst) })
        } else {
            let rate = SCALE.checked_div(self.avg).unwrap_or(0);
            (rate, rate.saturating_add(self.burst))
        }
    }

    /// Brings an entry up to date.
    fn fill(&self, e: &mut Entry, now: u64) {
        let passed = now.saturating_sub(e.since);
        if passed == 0 {
            return;
        }
        if let Some(interval) = self.interval {
            let interval = u64::from(interval) * HZ;
            if passed >= interval {
                e.since = now;
                let limit = u128::from(passed) * u128::from(self.rate().0);
                e.above = u128::from(e.credit) * u128::from(interval) > limit;
                e.credit = 0;
            }
            return;
        }
        e.since = now;
        let (per_tick, full) = if self.bytes { (BYTE_CREDITS, BYTES_FULL) } else { (CREDITS, e.cap) };
        e.credit = e.credit.saturating_add(per_tick.saturating_mul(passed)).min(full);
    }
}

impl HashTable {
    /// Nothing that is done under the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it tells packets apart by.
    pub(super) fn mode(&self) -> u8 {
        self.rule.mode
    }

    /// The bits of addresses that count, source and destination.
    pub(super) fn prefixes(&self) -> (u8, u8) {
        (self.rule.src_prefix, self.rule.dst_prefix)
    }

    /// Asks for a packet of so many bytes.
    pub(super) fn ask(&self, bytes: bool, above: bool, bucket: &Bucket, len: u32, now: Time) -> Answer {
        let now = ticks(now);
        let rule = &self.rule;
        let mut entries = self.lock();
        let interval = ticks_of(rule.gc_interval).max(1);
        // What was over at the last round of the collector is gone.
        let round = now - now % interval;
        let there = entries.map.get_mut(bucket).filter(|e| e.expires > round);
        let e = match there {
            Some(e) => {
                rule.fill(e, now);
                e
            }
            None => {
                if !entries.make_room(rule.most(), round) {
                    return Answer::Broken;
                }
                entries.map.entry(*bucket).insert_entry(rule.fresh(now)).into_mut()
            }
        };
        e.expires = now + ticks_of(rule.expire);
        (rule.take(e, bytes, len) != above).into()
    }
}

impl HashlimitMatch {
    /// Whether a packet is within the limit; takes what it costs then.
    fn take(&self, e: &mut Entry, bytes: bool, len: u32) -> bool {
        if self.interval.is_some() {
            e.credit = e.credit.saturating_add(if bytes { len.into() } else { 1 });
            return !e.above && e.credit <= self.rate().1;
        }
        let cost = if self.bytes { self.byte_cost() } else { credits(self.avg) };
        let cost = if bytes {
            let cost = cost.saturating_mul(u64::from(len >> CHUNK_SHIFT) + 1).min(BYTES_FULL);
            if e.credit < cost && e.cap > 0 {
                e.cap -= 1;
                e.credit = BYTES_FULL;
            }
            cost
        } else {
            cost
        };
        let within = e.credit >= cost;
        if within {
            e.credit -= cost;
        }
        within
    }
}

impl Entries {
    fn new(key: rng::Key) -> Entries {
        Entries { map: HashMap::with_hasher(Keyed(key)), swept: 0 }
    }

    /// Whether one more may be, now that what is over is gone.
    fn make_room(&mut self, most: usize, round: u64) -> bool {
        if self.map.len() >= most && self.swept != round {
            self.map.retain(|_, e| e.expires > round);
            self.swept = round;
        }
        self.map.len() < most
    }
}

/// The tables that rules in force name.
#[derive(Clone, Debug)]
pub struct HashTables {
    key: rng::Key,
    list: Arc<Mutex<Vec<Weak<HashTable>>>>,
}

impl HashTables {
    /// None, to be hashed under a key that nobody else should know.
    pub(super) fn new(key: rng::Key) -> HashTables {
        HashTables { key, list: Arc::default() }
    }

    fn live(&self) -> Vec<Arc<HashTable>> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|t| t.strong_count() > 0);
        list.iter().filter_map(Weak::upgrade).collect()
    }

    fn add(&self, table: HashTable) -> Arc<HashTable> {
        let table = Arc::new(table);
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&table));
        table
    }

    /// The table of a rule, a new one if there is none; `None` if one of the name takes rates and the rule does not, or the other way round.
    pub(super) fn of(&self, rule: &HashlimitMatch, v6: bool) -> Option<Arc<HashTable>> {
        match self.live().into_iter().find(|t| t.v6 == v6 && t.rule.name == rule.name) {
            Some(t) => (t.rule.interval.is_some() == rule.interval.is_some()).then_some(t),
            None => Some(self.add(HashTable { v6, rule: rule.clone(), entries: Mutex::new(Entries::new(self.key)) })),
        }
    }

    /// The state of all tables.
    pub(crate) fn save(&self) -> HashlimitState {
        let table = |t: &Arc<HashTable>| {
            let mut entries: Vec<_> = t.lock().map.iter().map(|(b, e)| (*b, *e)).collect();
            entries.sort_unstable_by_key(|(b, _)| *b);
            SavedTable { v6: t.v6, rule: t.rule.clone(), entries }
        };
        HashlimitState { tables: self.live().iter().map(table).collect() }
    }

    /// Tables as they were saved. They are given away, and gone if no rule takes them meanwhile.
    pub(crate) fn load(&self, state: HashlimitState) -> Result<Vec<Arc<HashTable>>, Invalid> {
        if state.tables.len() > MAX_TABLES {
            return Err(invalid("more tables than there may be"));
        }
        let mut tables: Vec<Arc<HashTable>> = Vec::new();
        for saved in state.tables {
            saved.check()?;
            let SavedTable { v6, rule, entries: list } = saved;
            if tables.iter().any(|t| t.v6 == v6 && t.rule.name == rule.name) {
                return Err(invalid("a table twice"));
            }
            let mut entries = Entries::new(self.key);
            entries.map.extend(list);
            tables.push(self.add(HashTable { v6, rule, entries: Mutex::new(entries) }));
        }
        Ok(tables)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedTable {
    v6: bool,
    rule: HashlimitMatch,
    /// In the order of the buckets.
    entries: Vec<(Bucket, Entry)>,
}

impl SavedTable {
    fn check(&self) -> Result<(), Invalid> {
        let bits = if self.v6 { 128 } else { 32 };
        let r = &self.rule;
        if r.refused().is_some() || r.src_prefix.max(r.dst_prefix) > bits || r.size > HashlimitMatch::MAX_SIZE {
            return Err(invalid("a table that no rule makes"));
        }
        if self.entries.len() > r.most() {
            return Err(invalid("a table with more entries than it may have"));
        }
        let ordered = self.entries.is_sorted_by(|(a, _), (b, _)| a < b);
        let fits = |b: &Bucket| {
            let keeps = |bit: u8, zero: bool| zero || r.mode & bit != 0;
            *b == b.masked(r.src_prefix, r.dst_prefix)
                && keeps(mode::SRC_IP, b.src == [0; 16])
                && keeps(mode::DST_IP, b.dst == [0; 16])
                && keeps(mode::SRC_PORT, b.sport == 0)
                && keeps(mode::DST_PORT, b.dport == 0)
                && (self.v6 || b.src[4..] == [0; 12] && b.dst[4..] == [0; 12])
        };
        if ordered && self.entries.iter().all(|(b, _)| fits(b)) {
            Ok(())
        } else {
            Err(invalid("an entry that a table cannot have"))
        }
    }
}

impl Bucket {
    /// With the addresses' first bits only.
    pub(super) fn masked(self, src: u8, dst: u8) -> Bucket {
        Bucket { src: prefix(self.src, src), dst: prefix(self.dst, dst), ..self }
    }
}

/// The first bits of an address.
pub(super) fn prefix(addr: [u8; 16], bits: u8) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
    (u128::from_be_bytes(addr) & mask).to_be_bytes()
}

/// Tables as they are saved. Times are stack time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashlimitState {
    tables: Vec<SavedTable>,
}

impl HashlimitState {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

#[cfg(test)]
mod tests;
