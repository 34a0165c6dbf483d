//! Records into a new table.

use super::{COUNTS, Family, Head, HeadError, RecordError, record, record_size};
use crate::conntrack::config::CtConfig;
use crate::conntrack::confirm::Refused;
use crate::conntrack::conn::{ConnId, Status};
use crate::conntrack::slot::Arena;
use crate::conntrack::sync::Ordering::Relaxed;
use crate::conntrack::sync::{Mutex, lock};
use crate::conntrack::table::{Conntrack, Tables};
use crate::edge::Token;
use crate::rng::Key;
use crate::time::Time;

/// Connections whose memory is got on its way together.
const BATCH: usize = 32;

/// Why an image was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// There are more connections than may be.
    #[error("{conns} tracked connections, but at most {max} may be")]
    TooMany {
        /// Connections of the image.
        conns: u64,
        /// What the configuration allows.
        max: u32,
    },
    /// What is said of the table as a whole is wrong.
    #[error("tracked connections: {0}")]
    Head(#[from] HeadError),
    /// A record is wrong.
    #[error("tracked {} connection {number} (slot {slot}): {why}", if *.family == Family::V4 { "IPv4" } else { "IPv6" })]
    Record {
        /// Its family.
        family: Family,
        /// Its number, from 0.
        number: u32,
        /// The slot that it says; 0 if it is not even that long.
        slot: u32,
        /// What is wrong.
        why: RecordError,
    },
    /// What a connection carried is told of one that is not there, or twice, or not all of it.
    #[error("the record of what the connection in slot {0} carried is of none")]
    Counts(u32),
    /// Records are missing, or there are too many, or some were given twice.
    #[error("the records of tracked {} connections are not those that were announced", if *.0 == Family::V4 { "IPv4" } else { "IPv6" })]
    Records(Family),
}

/// Makes a table of an image. [`Loader::insert`] may be called by several threads at a time.
///
/// Memory is bounded by that of a table with `cfg.max` connections, and connections take what they would take otherwise: `cfg` must be one that the
/// caller would run with.
#[derive(Debug)]
pub struct Loader {
    table: Conntrack,
    now: Time,
    head: Head,
    /// Slots that there can be, and that the image may use.
    slots: u32,
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    pieces: Vec<Piece>,
    /// Of connections whose source is translated: number, hash, slot.
    translated: Vec<(u32, u32, u32)>,
}

/// Records that were given in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    family: u8,
    first: u32,
    len: u32,
    slots: (u32, u32),
}

impl Loader {
    /// Begins. `key` must be secret and a new one, whatever the image is loaded for; `now` is the stack time at which the image was made.
    ///
    /// # Errors
    /// `head` is wrong, or has more connections than `cfg` allows.
    pub fn new(cfg: CtConfig, key: Key, now: Time, head: Head) -> Result<Self, LoadError> {
        head.check(now)?;
        let table = Conntrack::unallocated(cfg, key);
        if head.conns() > table.max.into() {
            return Err(LoadError::TooMany { conns: head.conns(), max: table.max });
        }
        let slots = head.slots.min(Arena::capacity_for(table.max));
        if head.slots > 0 {
            table.allocate_at(head.generation);
        }
        Ok(Loader { table, now, head, slots, given: Mutex::default() })
    }

    /// Puts records of a family in, the first of which is number `first`; those of one call must be in order. If it fails the loader is of no
    /// use any more.
    ///
    /// # Errors
    /// A record is wrong, or does not go with others that are in the table.
    pub fn insert(&self, family: Family, first: u32, records: &[u8]) -> Result<(), LoadError> {
        let size = record_size(family);
        let fail = |n: usize, why| {
            let bytes = records.get(n * size..).and_then(|r| r.first_chunk());
            let slot = bytes.map_or(0, record::slot_of);
            LoadError::Record { family, number: first.saturating_add(n as u32), slot, why }
        };
        let len = records.len() / size;
        if !records.len().is_multiple_of(size) {
            return Err(fail(len, RecordError::Length));
        }
        let end = u64::from(first) + len as u64;
        if end > self.head.count(family).into() {
            return Err(LoadError::Records(family));
        }
        let (Some(t), false) = (self.table.tables(), records.is_empty()) else { return Ok(()) };
        let mut translated = Vec::new();
        let (mut lowest, mut highest) = (0, None);
        for (n, batch) in records.chunks(size * BATCH).enumerate() {
            let from = n * BATCH;
            self.insert_batch(t, family, batch, &mut highest, &mut translated).map_err(|(n, why)| fail(from + n, why))?;
            if n == 0 {
                lowest = batch.first_chunk().map_or(0, record::slot_of);
            }
        }
        let piece = Piece { family: family as u8, first, len: len as u32, slots: (lowest, highest.unwrap_or(lowest)) };
        let mut given = lock(&self.given);
        given.pieces.push(piece);
        given.translated.append(&mut translated);
        Ok(())
    }

    fn insert_batch(
        &self,
        t: &Tables,
        family: Family,
        batch: &[u8],
        highest: &mut Option<u32>,
        translated: &mut Vec<(u32, u32, u32)>,
    ) -> Result<(), (usize, RecordError)> {
        let mut read = [None; BATCH];
        for (n, bytes) in batch.chunks(record_size(family)).enumerate() {
            let record = record::read(family, bytes).map_err(|why| (n, why))?;
            record.check(self.now, self.slots, self.head.generation).map_err(|why| (n, why))?;
            if highest.is_some_and(|h| record.id.index <= h) {
                return Err((n, RecordError::Order));
            }
            *highest = Some(record.id.index);
            let hash = record.conn.tuples.each_ref().map(|tuple| self.table.hash(tuple));
            read[n] = Some((record, hash));
        }
        for (_, hash) in read.iter().flatten() {
            hash.iter().for_each(|&h| t.buckets.touch(self.table.bucket_of(h as u32)).prefetch());
        }
        for (n, (record, hash)) in read.iter().flatten().enumerate() {
            self.table.restore(t, record.id, &record.conn, *hash).map_err(|refused| match refused {
                Refused::Slot => (n, RecordError::SlotTaken),
                Refused::Tuple(dir) => (n, RecordError::TupleTaken(dir)),
            })?;
            if record.conn.status.has(Status::SRC_NAT) {
                translated.push((record.number, self.table.source_hash(&record.conn.tuples[0]), record.id.index));
            }
        }
        Ok(())
    }

    /// Puts in what connections carried, which are in the table already. From now on connections are counted.
    ///
    /// # Errors
    /// A record is of no connection, or was there before.
    pub fn insert_counts(&self, records: &[u8]) -> Result<(), LoadError> {
        self.table.account();
        let (whole, rest) = records.as_chunks::<COUNTS>();
        for record in whole {
            let (id, counts) = record::read_counts(record);
            let held = self.table.tables().and_then(|t| t.arena.hold_id(id)).ok_or(LoadError::Counts(id.index))?;
            if self.table.counts(id).is_some() {
                return Err(LoadError::Counts(id.index));
            }
            self.table.acct.begin(held.id, counts);
        }
        if rest.is_empty() { Ok(()) } else { Err(LoadError::Counts(0)) }
    }

    /// The table, when all records were put in. Its reaper stands where it stood and is not quiesced.
    ///
    /// # Errors
    /// Records are missing or were given twice, or connections that should be over are not.
    pub fn finish(self) -> Result<Conntrack, LoadError> {
        let Loader { table, head, slots, given, .. } = self;
        let mut given = given.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        given.pieces.sort_unstable();
        for family in [Family::V4, Family::V6] {
            let (mut next, mut above) = (0, None);
            for piece in given.pieces.iter().filter(|p| p.family == family as u8) {
                if piece.first != next || above.is_some_and(|a| piece.slots.0 <= a) {
                    return Err(LoadError::Records(family));
                }
                next += piece.len;
                above = Some(piece.slots.1);
            }
            if next != head.count(family) {
                return Err(LoadError::Records(family));
            }
        }
        if let Some(t) = table.tables().filter(|_| head.slots > 0) {
            t.arena.restored(slots);
            t.sources.restore(head.numbered, &mut given.translated);
        }
        table.count.store(head.v4 + head.v6, Relaxed);
        table.counters.restore(&head.counters);
        table.resume_reaping(&head.reaper, slots);
        for &(index, generation) in &head.condemned {
            let id = ConnId { index, generation };
            if table.get(id).is_some_and(|c| !c.status.has(Status::DYING)) {
                return Err(HeadError::Alive(index).into());
            }
            table.condemned.push(id);
        }
        head.closed.iter().filter_map(|&bits| Token::from_bits(bits)).for_each(|flow| table.closed.push(flow));
        Ok(table)
    }
}

impl Conntrack {
    /// A new table with the connections of an image, by one thread. See [`Loader`].
    ///
    /// # Errors
    /// The image is wrong, or has more connections than `cfg` allows.
    pub fn load(cfg: CtConfig, key: Key, now: Time, head: Head, v4: &[u8], v6: &[u8]) -> Result<Self, LoadError> {
        let loader = Loader::new(cfg, key, now, head)?;
        loader.insert(Family::V4, 0, v4)?;
        loader.insert(Family::V6, 0, v6)?;
        loader.finish()
    }
}
