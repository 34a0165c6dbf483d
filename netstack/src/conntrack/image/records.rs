//! The working copy of a capture, and records without holes out of it.

use super::record::{Core, RECORD_V4, UPPER, Upper};
use super::{Family, Head, record, record_size};
use crate::conntrack::acct::Counts;
use crate::conntrack::changed::ones;
use crate::conntrack::conn::{Conn, ConnId};

/// Slots whose copies are allocated together: 64 KiB of IPv4 connections.
const PART: u32 = 512;
const WORDS: usize = (PART / 64) as usize;

/// Copies of connections, by slot.
#[derive(Debug, Default)]
pub(super) struct Copies {
    parts: Vec<Option<Box<Part>>>,
}

#[derive(Debug)]
struct Part {
    /// Which slots have a connection of IPv4, and which of IPv6.
    present: [[u64; WORDS]; 2],
    cores: Vec<Core>,
    /// The rest of IPv6 connections; empty if there never was one.
    uppers: Vec<Upper>,
    /// Which connections are counted.
    counted: [u64; WORDS],
    /// What they carried; empty if none ever was.
    counts: Vec<[Counts; 2]>,
}

impl Part {
    fn new() -> Self {
        Part {
            present: [[0; WORDS]; 2],
            cores: vec![[0; RECORD_V4]; PART as usize],
            uppers: Vec::new(),
            counted: [0; WORDS],
            counts: Vec::new(),
        }
    }

    fn count(&self, family: Family) -> u32 {
        self.present[family as usize].iter().map(|w| w.count_ones()).sum()
    }

    /// The slots of a family that have one, from the `skip`th on.
    fn slots(&self, family: Family, mut skip: u32) -> impl Iterator<Item = usize> {
        let words = self.present[family as usize];
        let first = words.iter().position(|w| {
            let n = w.count_ones();
            let here = n > skip;
            skip -= if here { 0 } else { n };
            here
        });
        let from = first.unwrap_or(WORDS);
        let slots = (from..WORDS).flat_map(move |w| ones(words[w]).map(move |bit| w * 64 + bit as usize));
        slots.skip(skip as usize)
    }
}

impl Copies {
    /// Makes sure that there is room for a slot, so that nothing is allocated later.
    fn part(&mut self, slot: u32) -> &mut Part {
        let n = (slot / PART) as usize;
        if n >= self.parts.len() {
            self.parts.resize_with(n + 1, || None);
        }
        self.parts[n].get_or_insert_with(|| Box::new(Part::new()))
    }

    /// Gets the memory of a copy on its way.
    pub(super) fn prefetch(&self, slot: u32) {
        if let Some(Some(part)) = self.parts.get((slot / PART) as usize) {
            core::hint::black_box(part.cores[(slot % PART) as usize][0]);
        }
    }

    /// The slot has this connection.
    pub(super) fn set(&mut self, id: ConnId, conn: &Conn, number: u32) {
        let (slot, v6) = (id.index, conn.tuples[0].v6);
        let part = self.part(slot);
        let at = (slot % PART) as usize;
        record::write(&mut part.cores[at], id, conn, number);
        let bit = 1 << (at % 64);
        part.present[usize::from(v6)][at / 64] |= bit;
        part.present[usize::from(!v6)][at / 64] &= !bit;
        if v6 {
            part.uppers.resize(PART as usize, [0; UPPER]);
            record::write_upper(&mut part.uppers[at], conn);
        }
    }

    /// What the slot's connection carried, if it is counted.
    pub(super) fn set_counts(&mut self, slot: u32, counts: Option<[Counts; 2]>) {
        let part = self.part(slot);
        let at = (slot % PART) as usize;
        let bit = 1 << (at % 64);
        part.counted[at / 64] &= !bit;
        if let Some(counts) = counts {
            part.counted[at / 64] |= bit;
            part.counts.resize(PART as usize, [Counts::default(); 2]);
            part.counts[at] = counts;
        }
    }

    /// The slot is empty.
    pub(super) fn clear(&mut self, slot: u32) {
        let Some(Some(part)) = self.parts.get_mut((slot / PART) as usize) else { return };
        let at = (slot % PART) as usize;
        part.present.iter_mut().chain([&mut part.counted]).for_each(|p| p[at / 64] &= !(1 << (at % 64)));
    }

    pub(super) fn count(&self, family: Family) -> u32 {
        self.parts.iter().flatten().map(|p| p.count(family)).sum()
    }
}

/// A captured table.
#[derive(Debug)]
pub struct Image {
    head: Head,
    copies: Copies,
    accounts: bool,
}

impl Image {
    pub(super) fn new(head: Head, copies: Copies, accounts: bool) -> Self {
        Image { head, copies, accounts }
    }

    /// What there is besides connections.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What connections carried, in records of [`COUNTS`](super::COUNTS) bytes in the order of their slots; `None` if nobody counts.
    #[must_use]
    pub fn counts(&self) -> Option<Vec<u8>> {
        self.accounts.then(|| {
            let mut all = Vec::new();
            for part in self.copies.parts.iter().flatten() {
                let slots = (0..WORDS).flat_map(|w| ones(part.counted[w]).map(move |bit| w * 64 + bit as usize));
                slots.for_each(|at| all.extend(record::counts(&part.cores[at], part.counts[at])));
            }
            all
        })
    }

    /// The records of a family, in the order of their slots.
    #[must_use]
    pub fn records(&self, family: Family) -> Records<'_> {
        let mut first = Vec::with_capacity(self.copies.parts.len());
        let mut len = 0;
        for part in &self.copies.parts {
            first.push(len);
            len += part.as_ref().map_or(0, |p| p.count(family));
        }
        Records { copies: &self.copies, family, first, len }
    }
}

/// Records of one family without holes, to be read in pieces, in any order, by any thread. The same table gives the same bytes.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    copies: &'a Copies,
    family: Family,
    /// By part, how many records come before it.
    first: Vec<u32>,
    len: u32,
}

impl Records<'_> {
    /// How many records there are; bytes are [`record_size`] times as many.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes records from number `first` on into `out`, as many as fit and are left; returns how many.
    pub fn fill(&self, first: u32, out: &mut [u8]) -> u32 {
        let size = record_size(self.family);
        let mut at = first;
        let mut n = self.first.partition_point(|&f| f <= first).saturating_sub(1);
        let mut places = out.chunks_exact_mut(size);
        while let Some(part) = self.copies.parts.get(n) {
            let Some(part) = part else {
                n += 1;
                continue;
            };
            for slot in part.slots(self.family, at - self.first[n]) {
                let Some(place) = places.next() else { return at - first };
                let (core, upper) = place.split_at_mut(RECORD_V4);
                core.copy_from_slice(&part.cores[slot]);
                if self.family == Family::V6 {
                    upper.copy_from_slice(&part.uppers[slot]);
                }
                at += 1;
            }
            n += 1;
        }
        at - first
    }

    /// All records in one piece, for small tables and for tests.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize * record_size(self.family)];
        self.fill(0, &mut bytes);
        bytes
    }
}
