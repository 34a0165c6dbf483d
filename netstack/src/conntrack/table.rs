//! The table of tracked connections.

use super::acct::Acct;
use super::bucket::{Bucket, entry};
use super::chunks::Chunks;
use super::config::CtConfig;
use super::conn::{Conn, ConnId, Dir, Proto, Status};
use super::flows::Closed;
use super::hash::{self, Words};
use super::reap::Reaper;
use super::slot::{Arena, Condemned, Held, MAX_SLOTS, Vacated};
use super::source::Sources;
use super::stats::{Counters, CtCounters, bump};
use super::sync::{AtomicU32, CROWDING, MODEL, MutexGuard, OnceLock, Ordering};
use super::tcp::TcpState;
use super::tuple::CtTuple;
use crate::edge::TokenKind;
use crate::rng::Key;
use crate::time::Time;
use crate::tuple::Endpoint;
use Ordering::Relaxed;

/// Buckets are allocated in chunks of at least `1 << CHUNK_SHIFT`: a page.
const CHUNK_SHIFT: u32 = 7;

/// The table of tracked connections, shared by all workers.
///
/// A connection is in a slot of an arena, named by [`ConnId`], and has an entry per tuple in a bucket. Memory is allocated when
/// the first connection needs it, and stays.
///
/// # Locks
/// In this order: the reaper, buckets by index, a slot or a list of free slots. A look-up locks no bucket and one slot, that of the
/// connection found. To be removed, a connection is first made to vanish, under its slot's lock; then its entries are taken out, one
/// bucket after the other; then the slot is free. No closure handed in may call the table.
#[derive(Debug)]
pub struct Conntrack {
    pub(super) cfg: CtConfig,
    key: Key,
    /// Connections at most.
    pub(super) max: u32,
    /// Logarithm of the number of buckets, which is at least `max`.
    bits: u32,
    /// Connections in the table, or about to be.
    pub(super) count: AtomicU32,
    tables: OnceLock<Tables>,
    pub(super) reaper: Reaper,
    pub(super) counters: Counters,
    pub(super) condemned: Condemned,
    /// Flows whose connection is gone, and that were not told.
    pub(super) closed: Closed,
    /// What connections carried.
    pub(super) acct: Acct,
    /// How many captures were begun: only the last one hears of changes.
    pub(super) captures: AtomicU32,
}

/// What is allocated with the first connection.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) buckets: Chunks<Bucket>,
    pub(super) arena: Arena,
    pub(super) sources: Sources,
}

/// Why there is no original destination to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginalDstError {
    /// No such connection is tracked (ENOENT).
    #[error("no such connection is tracked")]
    NotConnected,
    /// The connection's destination was not translated.
    #[error("the connection's destination was not translated")]
    NotTranslated,
}

/// Whether a connection is to be found: the one predicate of look-ups, inserts and the reaper.
#[inline]
pub(super) fn is_live(conn: &Conn, now: Time) -> bool {
    !conn.status.has(Status::DYING) && (conn.expires > now || is_pinned(conn))
}

/// Whether a connection is kept whatever its age: a live TCP flow pins it.
pub(super) fn is_pinned(conn: &Conn) -> bool {
    conn.flow.is_some_and(|t| t.kind() == TokenKind::Tcp)
}

impl Conntrack {
    /// An empty table. `key` must be secret, and never used twice.
    pub fn new(cfg: CtConfig, key: Key) -> Self {
        let table = Self::unallocated(cfg, key);
        if MODEL {
            table.allocate();
        }
        table
    }

    pub(super) fn unallocated(cfg: CtConfig, key: Key) -> Self {
        let max = cfg.max.clamp(1, MAX_SLOTS / 2);
        Conntrack {
            cfg,
            key,
            max,
            bits: max.next_power_of_two().trailing_zeros().saturating_sub(CROWDING),
            count: AtomicU32::new(0),
            tables: OnceLock::new(),
            reaper: Reaper::new(),
            counters: Counters::default(),
            condemned: Condemned::new(),
            closed: Closed::new(),
            acct: Acct::new(),
            captures: AtomicU32::new(0),
        }
    }

    /// The secret under which tuples are hashed: one that takes this table's place may take it over.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// The configuration in force.
    pub fn config(&self) -> &CtConfig {
        &self.cfg
    }

    /// Connections that there may be.
    pub(crate) fn most(&self) -> usize {
        self.max as usize
    }

    /// Whether there is a live connection with this tuple that was not closed by its ends.
    pub(crate) fn is_open(&self, now: Time, tuple: &CtTuple) -> bool {
        self.hold(now, tuple).is_some_and(|(held, _)| match &held.conn.proto {
            Proto::Tcp(t) => !matches!(t.state, TcpState::TimeWait | TcpState::Close),
            _ => true,
        })
    }

    /// Whether there is a live connection with this tuple that went on for long enough not to be dropped early.
    pub(crate) fn is_assured(&self, now: Time, tuple: &CtTuple) -> bool {
        self.hold(now, tuple).is_some_and(|(held, _)| held.conn.status.has(Status::ASSURED))
    }

    /// Connections in the table, those that timed out and were not removed yet included.
    pub fn len(&self) -> usize {
        self.count.load(Relaxed) as usize
    }

    /// Whether the table holds no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was counted.
    pub fn counters(&self) -> CtCounters {
        self.counters.read()
    }

    /// The live connection that has this tuple, and in which direction.
    pub fn find(&self, now: Time, tuple: &CtTuple) -> Option<(ConnId, Dir)> {
        self.hold(now, tuple).map(|(held, dir)| (held.id, dir))
    }

    /// A copy of a connection; `None` if it is gone.
    pub fn get(&self, id: ConnId) -> Option<Conn> {
        Some(*self.tables()?.arena.hold_id(id)?.conn)
    }

    /// The mark of a connection; `None` if it is gone.
    pub(crate) fn mark(&self, id: ConnId) -> Option<u32> {
        Some(self.tables()?.arena.hold_id(id)?.conn.mark)
    }

    /// Looks at a connection, or changes it (not its tuples); `None` if it is gone. `f` must not call the table.
    pub fn modify<R>(&self, id: ConnId, f: impl FnOnce(&mut Conn) -> R) -> Option<R> {
        let arena = &self.tables()?.arena;
        let mut held = arena.hold_id(id)?;
        let result = f(&mut held.conn);
        arena.changed(&held);
        arena.reap_by(&held, held.conn.expires);
        Some(result)
    }

    /// Whether a live connection has this tuple, in any direction: for the search of a free port.
    pub fn is_taken(&self, now: Time, tuple: &CtTuple) -> bool {
        self.find(now, tuple).is_some()
    }

    /// Removes a connection, pinned or not; its flow will hear. `None` if it is gone already.
    pub fn remove(&self, id: ConnId) -> Option<Conn> {
        let held = self.tables()?.arena.hold_id(id)?;
        let conn = *held.conn;
        bump(&self.counters.delete);
        self.vacate(held);
        Some(conn)
    }

    /// Removes all connections, pinned or not; returns how many.
    pub fn flush(&self) -> usize {
        let Some(t) = self.tables() else { return 0 };
        let ids = (0..t.arena.used()).filter_map(|i| t.arena.id(i));
        ids.filter(|&id| self.remove(id).is_some()).count()
    }

    /// Where the packets of `tuple` were going before their destination was translated (`SO_ORIGINAL_DST`).
    pub fn original_dst(&self, now: Time, tuple: &CtTuple) -> Result<Endpoint, OriginalDstError> {
        let (held, _) = self.hold(now, tuple).ok_or(OriginalDstError::NotConnected)?;
        if !held.conn.status.has(Status::DST_NAT) {
            return Err(OriginalDstError::NotTranslated);
        }
        let original = &held.conn.tuples[0];
        Ok(Endpoint::new(original.dst_ip(), original.dport))
    }
}

impl Conntrack {
    /// What the first connection allocated.
    #[inline]
    pub(super) fn tables(&self) -> Option<&Tables> {
        self.tables.get()
    }

    pub(super) fn allocate(&self) -> &Tables {
        self.allocate_at(0)
    }

    /// As [`Conntrack::allocate`]; slots begin at this generation.
    pub(super) fn allocate_at(&self, generation: u32) -> &Tables {
        self.tables.get_or_init(|| {
            let arena = Arena::new(self.max, generation);
            Tables {
                buckets: Chunks::new(1 << self.bits, CHUNK_SHIFT),
                sources: Sources::new(self.bits.saturating_sub(2), arena.capacity()),
                arena,
            }
        })
    }

    #[inline]
    pub(super) fn hash(&self, tuple: &CtTuple) -> u64 {
        Words::of(tuple).hash(self.key)
    }

    #[inline]
    pub(super) fn source_hash(&self, tuple: &CtTuple) -> u32 {
        hash::source(self.key, tuple) as u32
    }

    /// How many buckets there are.
    pub(super) fn buckets(&self) -> u32 {
        1 << self.bits
    }

    /// Bucket of a tuple with this hash: the uppermost bits, as entries carry the lowest.
    #[inline]
    pub(super) fn bucket_of(&self, hash: u32) -> u32 {
        (u64::from(hash) >> (32 - self.bits)) as u32
    }

    /// The live connection that has this tuple, locked, and in which direction. One that timed out is removed on the way.
    ///
    /// All of it is in line where it is used: what a call would hand over takes as long as the rest.
    #[inline(always)]
    pub(super) fn hold(&self, now: Time, tuple: &CtTuple) -> Option<(Held<'_>, Dir)> {
        let t = self.tables()?;
        let words = Words::of(tuple);
        let hash = words.hash(self.key) as u32;
        let bucket = t.buckets.get(self.bucket_of(hash))?;
        loop {
            let look = |entry| t.lock(entry, hash, &words).filter(|conn| !conn.status.has(Status::DYING));
            let (entry, conn) = bucket.search(&t.arena, hash, look)?;
            let (held, dir) = t.arena.held(entry, conn);
            if is_live(&held.conn, now) {
                return Some((held, dir));
            }
            self.expire(held);
        }
    }

    #[cold]
    pub(super) fn expire(&self, held: Held<'_>) {
        bump(&self.counters.expired);
        self.vacate(held);
    }

    /// Removes a connection, whatever the reason.
    pub(super) fn vacate(&self, held: Held<'_>) {
        // The connection is held, so there are tables.
        let t = self.allocate();
        let gone = t.arena.vacate(held);
        gone.hash.map(|h| t.buckets.touch(self.bucket_of(h))).iter().for_each(|b| b.prefetch());
        self.unlink(t, &gone);
        self.free(t, &[gone.index]);
    }

    /// Takes the entries of a connection that vanished out of their buckets; then its slot can be freed.
    pub(super) fn unlink(&self, t: &Tables, gone: &Vacated) {
        for (dir, &hash) in gone.hash.iter().enumerate() {
            t.buckets.touch(self.bucket_of(hash)).lock().remove(&t.arena, entry(gone.index, dir as u32));
        }
        if let Some(original) = &gone.source {
            t.sources.remove(self.source_hash(original), gone.index);
        }
        if let Some(flow) = gone.flow {
            self.closed.push(flow);
        }
    }

    /// Frees the slots of connections that were taken out of their buckets.
    pub(super) fn free(&self, t: &Tables, indices: &[u32]) {
        t.arena.give(indices);
        self.count.fetch_sub(indices.len() as u32, Relaxed);
    }
}

impl Tables {
    /// The connection that an entry stands for, locked, if that tuple of it is the one wanted.
    #[inline(always)]
    fn lock(&self, entry: u32, hash: u32, wanted: &Words) -> Option<MutexGuard<'_, Conn>> {
        let conn = self.arena.lock_entry(entry, hash)?;
        (Words::of(&conn.tuples[(entry & 1) as usize]) == *wanted).then_some(conn)
    }

    /// The same, with its handle and the direction.
    pub(super) fn has(&self, entry: u32, hash: u32, wanted: &Words) -> Option<(Held<'_>, Dir)> {
        self.lock(entry, hash, wanted).map(|conn| self.arena.held(entry, conn))
    }
}
