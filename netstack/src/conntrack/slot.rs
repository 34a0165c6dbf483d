//! Slots of connections, and what goes with each.

use super::bucket::{NONE, entry};
use super::changed::Changed;
use super::chunks::Chunks;
use super::conn::{Conn, ConnId, Dir, Proto, Status};
use super::sync::{AtomicU32, AtomicU64, BATCH, IN_FLIGHT, Mutex, MutexGuard, Ordering, SHARDS, lock};
use super::tuple::CtTuple;
use crate::edge::Token;
use crate::time::Time;
use Ordering::Relaxed;

/// Slots are allocated in chunks of at least `1 << CHUNK_SHIFT`.
const CHUNK_SHIFT: u32 = 6;

/// Most slots that there can be: an entry has 31 bits for the slot.
pub(super) const MAX_SLOTS: u32 = 1 << 30;

/// A slot. Its connection is looked at and changed under its lock.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(super) struct Slot {
    /// Lower halves of the tuples' hashes, by direction.
    pub(super) hash: [AtomicU32; 2],
    conn: Mutex<Conn>,
    /// Odd while the slot is occupied. Changes under the lock.
    generation: AtomicU32,
    /// 0 if a capture has a copy and must hear of the next change; 1 if it has heard, or there is none. Changes under the lock.
    heard: AtomicU32,
}

/// What is seldom asked of a slot.
#[derive(Debug)]
struct Side {
    /// Next entry of the chain, by direction; of a free slot, the next free one.
    next: [AtomicU32; 2],
    /// Not expired before this tick, unless it says less later; [`VACANT`] for a free slot.
    hint: AtomicU32,
}

/// No connection to reap.
const VACANT: u32 = u32::MAX;

/// A connection takes three cache lines; more would cost an access to memory and the bound on memory per connection.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 192);

impl Default for Slot {
    fn default() -> Self {
        let conn = Conn {
            tuples: [CtTuple::default(); 2],
            status: Status::default(),
            mark: 0,
            expires: Time::ZERO,
            proto: Proto::Generic,
            flow: None,
        };
        Slot {
            hash: [AtomicU32::new(0), AtomicU32::new(0)],
            conn: Mutex::new(conn),
            generation: AtomicU32::new(0),
            heard: AtomicU32::new(1),
        }
    }
}

impl Default for Side {
    fn default() -> Self {
        Side { next: [AtomicU32::new(NONE), AtomicU32::new(NONE)], hint: AtomicU32::new(VACANT) }
    }
}

/// Ticks of the reaper's hints: about 17 ms, so that 32 bits hold two years. What is later is looked at too often, no more.
fn tick(t: Time) -> u32 {
    u32::try_from(t.as_nanos() >> 24).unwrap_or(VACANT).min(VACANT - 1)
}

/// An occupied slot whose lock is held.
pub(super) struct Held<'a> {
    pub(super) conn: MutexGuard<'a, Conn>,
    pub(super) id: ConnId,
    slot: &'a Slot,
}

impl Held<'_> {
    /// Whether a capture must hear of a change ([`Arena::changed`]).
    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        self.slot.heard.load(Relaxed) == 0
    }
}

impl Slot {
    /// Gets the slot's cache lines on their way: the middle one comes with one of its neighbours.
    #[inline]
    fn prefetch(&self) {
        core::hint::black_box((self.hash[0].load(Relaxed), self.generation.load(Relaxed)));
    }

    /// Locks the slot if there is a connection in it.
    #[inline(always)]
    fn hold(&self, index: u32) -> Option<Held<'_>> {
        let conn = lock(&self.conn);
        let generation = self.generation.load(Relaxed);
        (generation & 1 == 1).then_some(Held { conn, id: ConnId { index, generation }, slot: self })
    }
}

/// All slots.
#[derive(Debug)]
pub(super) struct Arena {
    slots: Chunks<Slot>,
    side: Chunks<Side>,
    free: Box<[Shard]>,
    /// Slots that were ever used are below.
    used: AtomicU32,
    capacity: u32,
    /// Generation of slots that no connection was in since the table was made or loaded: even, and no handle is older.
    generation: u32,
    changed: Changed,
}

/// A list of free slots.
#[derive(Debug)]
#[repr(align(64))]
struct Shard(Mutex<u32>);

impl Arena {
    /// For `max` connections at a time.
    pub(super) fn new(max: u32, generation: u32) -> Self {
        let capacity = Self::capacity_for(max);
        Arena {
            slots: Chunks::new(capacity, CHUNK_SHIFT),
            side: Chunks::new(capacity, CHUNK_SHIFT + 2),
            free: (0..SHARDS).map(|_| Shard(Mutex::new(NONE))).collect(),
            used: AtomicU32::new(0),
            capacity,
            generation,
            changed: Changed::new(capacity),
        }
    }

    /// Slots for `max` connections at a time: a list may hold free slots that another one would need; each can keep a batch to itself.
    pub(super) const fn capacity_for(max: u32) -> u32 {
        max + SHARDS * BATCH
    }

    /// Slots that there can be.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Slots that were ever used are below.
    pub(super) fn used(&self) -> u32 {
        self.used.load(Relaxed).min(self.capacity)
    }

    /// The connection that an entry stands for, locked, if it has this hash and there is one.
    #[inline(always)]
    pub(super) fn lock_entry(&self, entry: u32, hash: u32) -> Option<MutexGuard<'_, Conn>> {
        let slot = self.slots.get(entry >> 1)?;
        slot.prefetch();
        if slot.hash[(entry & 1) as usize].load(Relaxed) != hash {
            return None;
        }
        let conn = lock(&slot.conn);
        (slot.generation.load(Relaxed) & 1 == 1).then_some(conn)
    }

    /// What [`Arena::lock_entry`] locked, with its handle and the direction of the entry.
    #[inline(always)]
    pub(super) fn held<'a>(&'a self, entry: u32, conn: MutexGuard<'a, Conn>) -> (Held<'a>, Dir) {
        let slot = self.slots.touch(entry >> 1);
        let id = ConnId { index: entry >> 1, generation: slot.generation.load(Relaxed) };
        let dir = if entry & 1 == 0 { Dir::Original } else { Dir::Reply };
        (Held { conn, id, slot }, dir)
    }

    /// Gets a slot's memory on its way.
    #[inline]
    pub(super) fn prefetch(&self, index: u32) {
        if let Some(slot) = self.slots.get(index) {
            slot.prefetch();
        }
    }

    /// Locks a slot if there is a connection in it.
    #[inline]
    pub(super) fn hold(&self, index: u32) -> Option<Held<'_>> {
        self.slots.get(index)?.hold(index)
    }

    /// The connection in a slot.
    pub(super) fn id(&self, index: u32) -> Option<ConnId> {
        self.hold(index).map(|held| held.id)
    }

    /// Locks the slot of a connection if it is still there.
    #[inline(always)]
    pub(super) fn hold_id(&self, id: ConnId) -> Option<Held<'_>> {
        let slot = self.slots.get(id.index)?;
        slot.prefetch();
        slot.hold(id.index).filter(|h| h.id == id)
    }

    /// Hash of the tuple that an entry stands for.
    #[inline]
    pub(super) fn hash(&self, entry: u32) -> u32 {
        self.slots.get(entry >> 1).map_or(0, |s| s.hash[(entry & 1) as usize].load(Relaxed))
    }

    /// The link of an entry in its bucket's chain.
    pub(super) fn next(&self, entry: u32) -> &AtomicU32 {
        &self.side.touch(entry >> 1).next[(entry & 1) as usize]
    }

    /// Looks through the slots from `from` to `end` for connections that may have timed out, or for any, until there are as many as `found`
    /// has room for. Returns how many were found, how many connections were passed, and where the search ended.
    pub(super) fn look(&self, from: u32, end: u32, now: Option<Time>, found: &mut [u32]) -> (usize, u32, u32) {
        let latest = now.map_or(VACANT - 1, tick);
        let (mut n, mut passed, mut at) = (0, 0, from);
        while at < end {
            let side = match self.side.rest(at) {
                Ok(side) => side,
                Err(gap) => {
                    at = at.saturating_add(gap).min(end);
                    continue;
                }
            };
            for s in side.iter().take((end - at) as usize) {
                if n == found.len() {
                    return (n, passed, at);
                }
                let hint = s.hint.load(Relaxed);
                passed += u32::from(hint != VACANT);
                if hint <= latest {
                    found[n] = at;
                    n += 1;
                }
                at += 1;
            }
        }
        (n, passed, at)
    }

    /// Whether there is a connection in the slot, to say the least probably.
    pub(super) fn is_occupied(&self, index: u32) -> bool {
        self.side.get(index).is_some_and(|s| s.hint.load(Relaxed) != VACANT)
    }

    /// Says when the reaper is to look at a connection. Under the slot's lock.
    pub(super) fn reap_at(&self, held: &Held<'_>, at: Time) {
        self.side.touch(held.id.index).hint.store(tick(at), Relaxed);
    }

    /// Says that the reaper is to look no later than then. Under the slot's lock.
    pub(super) fn reap_by(&self, held: &Held<'_>, at: Time) {
        let hint = &self.side.touch(held.id.index).hint;
        if tick(at) < hint.load(Relaxed) {
            hint.store(tick(at), Relaxed);
        }
    }

    /// Takes a free slot, from the list that `hash` chooses if that has one; `None` if all are occupied.
    pub(super) fn take(&self, hash: u32) -> Option<u32> {
        let first = hash % SHARDS;
        if let Some(index) = self.pop(first) {
            return Some(index);
        }
        if let Ok(base) = self.used.fetch_update(Relaxed, Relaxed, |n| (n < self.capacity).then(|| n.saturating_add(BATCH))) {
            self.give_to(first, (base + 1..self.capacity.min(base + BATCH)).rev());
            return Some(base);
        }
        (1..SHARDS).find_map(|n| self.pop((first + n) % SHARDS))
    }

    fn pop(&self, shard: u32) -> Option<u32> {
        let mut head = lock(&self.free[shard as usize].0);
        let index = *head;
        if index == NONE {
            return None;
        }
        *head = self.next(entry(index, 0)).load(Relaxed);
        Some(index)
    }

    /// Gives back slots that were taken, or vacated.
    pub(super) fn give(&self, indices: &[u32]) {
        for same in indices.chunk_by(|a, b| a / BATCH == b / BATCH) {
            self.give_to(same[0] / BATCH % SHARDS, same.iter().copied());
        }
    }

    fn give_to(&self, shard: u32, indices: impl Iterator<Item = u32>) {
        let mut head = lock(&self.free[shard as usize].0);
        for index in indices {
            self.next(entry(index, 0)).store(*head, Relaxed);
            *head = index;
        }
    }

    /// Puts a connection into a slot that was taken.
    pub(super) fn occupy(&self, index: u32, conn: &Conn, hash: [u32; 2]) -> ConnId {
        let slot = self.slots.touch(index);
        let mut place = lock(&slot.conn);
        *place = *conn;
        slot.hash[0].store(hash[0], Relaxed);
        slot.hash[1].store(hash[1], Relaxed);
        let before = match slot.generation.load(Relaxed) {
            0 => self.generation,
            before => before,
        };
        let generation = before.wrapping_add(1);
        slot.generation.store(generation, Relaxed);
        self.note(slot, index);
        self.side.touch(index).hint.store(tick(conn.expires), Relaxed);
        ConnId { index, generation }
    }

    /// Makes the connection vanish: its handle is stale, no look-up finds it. Its entries must be taken out of their buckets
    /// before the slot is given back.
    pub(super) fn vacate(&self, held: Held<'_>) -> Vacated {
        held.slot.generation.store(held.id.generation.wrapping_add(1), Relaxed);
        self.note(held.slot, held.id.index);
        self.side.touch(held.id.index).hint.store(VACANT, Relaxed);
        Vacated {
            index: held.id.index,
            hash: [held.slot.hash[0].load(Relaxed), held.slot.hash[1].load(Relaxed)],
            source: held.conn.status.has(Status::SRC_NAT).then_some(held.conn.tuples[0]),
            flow: held.conn.flow,
        }
    }

    /// Says that a connection changed, if a capture must hear of it.
    #[inline]
    pub(super) fn changed(&self, held: &Held<'_>) {
        self.note(held.slot, held.id.index);
    }

    /// Under the slot's lock.
    #[inline]
    fn note(&self, slot: &Slot, index: u32) {
        if slot.heard.load(Relaxed) == 0 {
            slot.heard.store(1, Relaxed);
            self.changed.set(index);
        }
    }

    /// Slots of which a capture is to hear.
    pub(super) fn changes(&self) -> &Changed {
        &self.changed
    }

    /// Shows what is in a slot, its generation and its connection; the next change after that is one of [`Arena::changes`].
    pub(super) fn watch<R>(&self, index: u32, f: impl FnOnce(u32, Option<&Conn>) -> R) -> R {
        let slot = self.slots.touch(index);
        let conn = lock(&slot.conn);
        slot.heard.store(0, Relaxed);
        let generation = match slot.generation.load(Relaxed) {
            0 => self.generation,
            generation => generation,
        };
        f(generation, (generation & 1 == 1).then_some(&*conn))
    }

    /// Puts a connection into its slot of an image; false if there is one already.
    pub(super) fn restore(&self, id: ConnId, conn: &Conn, hash: [u32; 2]) -> bool {
        let slot = self.slots.touch(id.index);
        let mut place = lock(&slot.conn);
        if slot.generation.load(Relaxed) & 1 == 1 {
            return false;
        }
        *place = *conn;
        slot.hash[0].store(hash[0], Relaxed);
        slot.hash[1].store(hash[1], Relaxed);
        slot.generation.store(id.generation, Relaxed);
        self.side.touch(id.index).hint.store(tick(conn.expires), Relaxed);
        true
    }

    /// After all connections of an image: slots below `used` that have none are free, the first ones to be taken first.
    pub(super) fn restored(&self, used: u32) {
        self.used.store(used, Relaxed);
        for first in (0..used).step_by(BATCH as usize).rev() {
            let free = (first..used.min(first + BATCH)).rev().filter(|&i| !self.is_occupied(i));
            self.give_to(first / BATCH % SHARDS, free);
        }
    }
}

/// A connection that vanished from its slot, while its entries are still in their buckets.
pub(super) struct Vacated {
    pub(super) index: u32,
    pub(super) hash: [u32; 2],
    /// Original tuple, if the source was translated.
    pub(super) source: Option<CtTuple>,
    pub(super) flow: Option<Token>,
}

/// Connections that are over, the last few: the packets that ended them may still be on their way through the hooks.
#[derive(Debug)]
pub(super) struct Condemned {
    next: AtomicU32,
    ids: [AtomicU64; IN_FLIGHT],
}

impl Condemned {
    pub(super) fn new() -> Self {
        Condemned { next: AtomicU32::new(0), ids: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Those that are in it, the first to go first.
    pub(super) fn list(&self) -> Vec<ConnId> {
        let next = self.next.load(Relaxed) as usize;
        let ids = (0..IN_FLIGHT).filter_map(|n| Self::id(self.ids[(next + n) % IN_FLIGHT].load(Relaxed)));
        ids.collect()
    }

    /// Generations of occupied slots are odd, so no handle is 0.
    fn id(bits: u64) -> Option<ConnId> {
        (bits != 0).then_some(ConnId { index: bits as u32, generation: (bits >> 32) as u32 })
    }

    /// Adds one; returns the one that has to go.
    pub(super) fn push(&self, id: ConnId) -> Option<ConnId> {
        let at = self.next.fetch_add(1, Relaxed) as usize % IN_FLIGHT;
        let old = self.ids[at].swap(u64::from(id.generation) << 32 | u64::from(id.index), Relaxed);
        Self::id(old)
    }
}
