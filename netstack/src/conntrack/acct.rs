//! What connections carried (nf_conntrack_acct.c), once a rule asked for it. Connections that began before are not counted.
//!
//! Counters are beside the slots, in lines of their own that nobody touches unless accounting is on. A line is written under its slot's lock.

use super::chunks::Chunks;
use super::conn::{ConnId, Dir};
use super::slot::{Arena, Held};
use super::sync::{AtomicU32, AtomicU64, OnceLock, Ordering};
use super::table::Conntrack;
use Ordering::Relaxed;

/// Lines are allocated in chunks of at least `1 << CHUNK_SHIFT`.
const CHUNK_SHIFT: u32 = 6;

/// What went in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

impl core::ops::Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        let packets = self.packets.wrapping_add(other.packets);
        Counts { packets, bytes: self.bytes.wrapping_add(other.bytes) }
    }
}

/// Counters by slot; none before accounting was asked for.
#[derive(Debug)]
pub(super) struct Acct(OnceLock<Chunks<Line>>);

#[derive(Debug)]
struct Line {
    /// Of which connection of the slot they are; 0 for none, which is no connection's generation.
    generation: AtomicU32,
    /// Packets and bytes, by direction.
    counts: [[AtomicU64; 2]; 2],
}

impl Default for Line {
    fn default() -> Self {
        let none = || [AtomicU64::new(0), AtomicU64::new(0)];
        Line { generation: AtomicU32::new(0), counts: [none(), none()] }
    }
}

impl Line {
    fn of(&self, id: ConnId) -> Option<&Self> {
        (self.generation.load(Relaxed) == id.generation).then_some(self)
    }

    fn get(&self) -> [Counts; 2] {
        self.counts.each_ref().map(|[packets, bytes]| Counts { packets: packets.load(Relaxed), bytes: bytes.load(Relaxed) })
    }

    fn add(&self, dir: Dir, more: Counts) {
        let [packets, bytes] = &self.counts[dir as usize];
        packets.store(packets.load(Relaxed).wrapping_add(more.packets), Relaxed);
        bytes.store(bytes.load(Relaxed).wrapping_add(more.bytes), Relaxed);
    }
}

impl Acct {
    pub(super) const fn new() -> Self {
        Acct(OnceLock::new())
    }

    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.0.get().is_some()
    }

    /// Counts for a connection that is held; whether it is one that counts.
    #[inline]
    pub(super) fn add(&self, held: &Held<'_>, dir: Dir, len: u32) -> bool {
        let Some(lines) = self.0.get() else { return false };
        let Some(line) = lines.get(held.id.index).and_then(|l| l.of(held.id)) else { return false };
        line.add(dir, Counts { packets: 1, bytes: len.into() });
        true
    }

    /// Begins to count for a connection that is held, whose first packet brought so much.
    pub(super) fn begin(&self, id: ConnId, so_far: [Counts; 2]) {
        let Some(lines) = self.0.get() else { return };
        let line = lines.touch(id.index);
        for ([packets, bytes], counts) in line.counts.iter().zip(so_far) {
            packets.store(counts.packets, Relaxed);
            bytes.store(counts.bytes, Relaxed);
        }
        line.generation.store(id.generation, Relaxed);
    }

    /// What a connection carried; `None` if it does not count.
    pub(super) fn get(&self, id: ConnId) -> Option<[Counts; 2]> {
        Some(self.0.get()?.get(id.index)?.of(id)?.get())
    }
}

impl Conntrack {
    /// Counts packets and bytes of connections that begin from now on. There is no way back, as a rule of `connbytes` has none.
    pub fn account(&self) {
        self.acct.0.get_or_init(|| Chunks::new(Arena::capacity_for(self.max), CHUNK_SHIFT));
    }

    /// Whether connections that begin are counted.
    pub fn accounts(&self) -> bool {
        self.acct.is_on()
    }

    /// What a connection carried so far, by direction; `None` if it is gone or began before it was counted. Locks nothing.
    pub fn counts(&self, id: ConnId) -> Option<[Counts; 2]> {
        self.acct.get(id)
    }

    /// What a connection carried that began with a packet of so many bytes and is not in the table.
    pub(crate) fn first_counts(&self, len: u32) -> Option<[Counts; 2]> {
        self.acct.is_on().then(|| first(len))
    }
}

/// What a first packet of so many bytes brings.
pub(super) fn first(len: u32) -> [Counts; 2] {
    [Counts { packets: 1, bytes: len.into() }, Counts::default()]
}
