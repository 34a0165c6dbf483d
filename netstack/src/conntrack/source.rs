//! Connections whose source is translated, by their source: a source keeps its mapping where that can be (Linux's nf_nat_bysource).

use super::bucket::NONE;
use super::chunks::Chunks;
use super::conn::Status;
use super::sync::{AtomicU32, Mutex, Ordering, lock};
use super::table::{Conntrack, is_live};
use super::tuple::{self, Addr, CtTuple};
use crate::time::Time;
use Ordering::Relaxed;

/// Connections that one look-up asks at most: one source may have any number.
const MOST: u32 = 256;

/// Not in a chain.
const ABSENT: u32 = NONE - 1;

/// Buckets, each a chain of slots, the youngest first.
#[derive(Debug)]
pub(super) struct Sources {
    buckets: Chunks<Chain>,
    links: Chunks<Link>,
    bits: u32,
    /// Connections that were numbered, modulo 2^32.
    numbered: AtomicU32,
}

#[derive(Debug)]
struct Chain(Mutex<u32>);

impl Default for Chain {
    fn default() -> Self {
        Chain(Mutex::new(NONE))
    }
}

/// Neighbours of a slot in its chain, which change under the chain's lock.
#[derive(Debug)]
struct Link {
    next: AtomicU32,
    previous: AtomicU32,
    /// Which connection it was that got this slot, counted modulo 2^32: who is younger is to be known after a restore, too.
    number: AtomicU32,
}

impl Default for Link {
    fn default() -> Self {
        Link { next: AtomicU32::new(NONE), previous: AtomicU32::new(ABSENT), number: AtomicU32::new(0) }
    }
}

impl Sources {
    /// With `1 << bits` buckets, for so many slots.
    pub(super) fn new(bits: u32, slots: u32) -> Self {
        Sources { buckets: Chunks::new(1 << bits, 8), links: Chunks::new(slots, 8), bits, numbered: AtomicU32::new(0) }
    }

    fn bucket(&self, hash: u32) -> u32 {
        (u64::from(hash) >> (32 - self.bits)) as u32
    }

    /// The connection that is about to be in this slot is the youngest.
    pub(super) fn number(&self, index: u32) {
        let number = self.numbered.fetch_add(1, Relaxed).wrapping_add(1);
        self.links.touch(index).number.store(number, Relaxed);
    }

    /// The number that a slot's connection got; 0 if none ever did.
    pub(super) fn number_of(&self, index: u32) -> u32 {
        self.links.get(index).map_or(0, |l| l.number.load(Relaxed))
    }

    /// Connections that were numbered, modulo 2^32.
    pub(super) fn numbered(&self) -> u32 {
        self.numbered.load(Relaxed)
    }

    /// Puts connections of an image in, {number, hash, slot} each in any order; `numbered` is what was counted when they were saved.
    pub(super) fn restore(&self, numbered: u32, conns: &mut [(u32, u32, u32)]) {
        self.numbered.store(numbered, Relaxed);
        conns.sort_unstable_by_key(|&(number, _, index)| (core::cmp::Reverse(numbered.wrapping_sub(number)), index));
        for &mut (number, hash, index) in conns {
            self.links.touch(index).number.store(number, Relaxed);
            self.insert(hash, index);
        }
    }

    pub(super) fn insert(&self, hash: u32, index: u32) {
        let mut head = lock(&self.buckets.touch(self.bucket(hash)).0);
        let link = self.links.touch(index);
        link.next.store(*head, Relaxed);
        link.previous.store(NONE, Relaxed);
        if *head != NONE {
            self.links.touch(*head).previous.store(index, Relaxed);
        }
        *head = index;
    }

    /// Takes a slot out; nothing happens if it is in no chain.
    pub(super) fn remove(&self, hash: u32, index: u32) {
        let Some(chain) = self.buckets.get(self.bucket(hash)) else { return };
        let mut head = lock(&chain.0);
        let link = self.links.touch(index);
        let (next, previous) = (link.next.load(Relaxed), link.previous.load(Relaxed));
        match previous {
            ABSENT => return,
            NONE => *head = next,
            _ => self.links.touch(previous).next.store(next, Relaxed),
        }
        if next != NONE {
            self.links.touch(next).previous.store(previous, Relaxed);
        }
        link.previous.store(ABSENT, Relaxed);
    }

    /// Shows slots of the chain until `visit` has what it wants.
    fn find<R>(&self, hash: u32, mut visit: impl FnMut(u32) -> Option<R>) -> Option<R> {
        let head = lock(&self.buckets.get(self.bucket(hash))?.0);
        let mut at = *head;
        for _ in 0..MOST {
            if at == NONE {
                break;
            }
            if let Some(found) = visit(at) {
                return Some(found);
            }
            at = self.links.touch(at).next.load(Relaxed);
        }
        None
    }
}

impl Conntrack {
    /// The translated source {address, port or identifier} of another live connection from the same source as `original` (address, port,
    /// protocol, zone): the first one, youngest connections first, for which `fits` says yes. Only connections whose source is translated are
    /// asked, the youngest 256 of them. `fits` must not call the table.
    pub fn source_mapping(&self, now: Time, original: &CtTuple, mut fits: impl FnMut(Addr, u16) -> bool) -> Option<(Addr, u16)> {
        let t = self.tables()?;
        let source = |t: &CtTuple| (t.src, t.sport, t.proto, t.zone, t.v6);
        t.sources.find(self.source_hash(original), |index| {
            let held = t.arena.hold(index)?;
            let conn = &*held.conn;
            if source(&conn.tuples[0]) != source(original) || !conn.status.has(Status::SRC_NAT) || !is_live(conn, now) {
                return None;
            }
            let mapped = tuple::invert(&conn.tuples[1])?;
            fits(mapped.src, mapped.sport).then_some((mapped.src, mapped.sport))
        })
    }
}
