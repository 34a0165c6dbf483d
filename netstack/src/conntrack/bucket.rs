//! Buckets: which connections have a tuple with a certain hash.
//!
//! A bucket is half a cache line. It holds four entries with seven bits of their hash each, so that a look-up touches hardly any
//! connection but the one it wants; more of them hang in a chain at the last one. Changes are made under the bucket's lock. Look-ups
//! do not take it: they read the entries between two readings of a sequence number, and look again if that has changed.

use super::slot::Arena;
use super::sync::{AtomicU32, Mutex, MutexGuard, Ordering, TRIES, fence, lock};
use Ordering::{Acquire, Relaxed, Release};

/// No entry.
pub(super) const NONE: u32 = u32::MAX;

/// Entries in the bucket itself; the last one is the head of a chain.
const INLINE: usize = 4;
const CHAIN: usize = INLINE - 1;

/// Entries seen at most by a look-up without the lock: it may have strayed into another chain.
const STRAY: u32 = 128;

/// A direction of the connection in a slot: slot and direction in one word.
pub(super) const fn entry(index: u32, dir: u32) -> u32 {
    index << 1 | dir
}

/// A bucket.
#[derive(Debug)]
#[cfg_attr(not(loom), repr(C, align(32)))]
pub(super) struct Bucket {
    lock: Mutex<()>,
    /// Odd while it changes.
    seq: AtomicU32,
    /// By place, seven bits of the entry's hash and a one; 0 if any hash may be there.
    tags: AtomicU32,
    entries: [AtomicU32; INLINE],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 32);

impl Default for Bucket {
    fn default() -> Self {
        Bucket {
            lock: Mutex::new(()),
            seq: AtomicU32::new(0),
            tags: AtomicU32::new(0),
            entries: core::array::from_fn(|_| AtomicU32::new(NONE)),
        }
    }
}

/// Tag of a hash.
const fn tag(hash: u32) -> u32 {
    hash & 0x7f | 0x80
}

impl Bucket {
    /// Gets the bucket's cache line on its way.
    #[inline]
    pub(super) fn prefetch(&self) {
        core::hint::black_box(self.seq.load(Relaxed));
    }

    /// Shows `visit` the entries that may have this hash, without the lock. Whatever is shown may be gone, or be another's,
    /// already: `visit` must look closely. `None` is certain: what was in the bucket all the while was shown. What `visit` returns ends the search, and is
    /// returned with the entry; it should fit into two registers.
    #[inline(always)]
    pub(super) fn search<R>(&self, arena: &Arena, hash: u32, mut visit: impl FnMut(u32) -> Option<R>) -> Option<(u32, R)> {
        let mut guard = None;
        for attempt in 0..=TRIES {
            if attempt == TRIES {
                guard = Some(lock(&self.lock));
            }
            let most = if guard.is_none() { STRAY } else { u32::MAX };
            let before = self.seq.load(Acquire);
            if let Some(found) = self.walk(arena, Some(hash), most, &mut visit) {
                return Some(found);
            }
            fence(Acquire);
            if before & 1 == 0 && self.seq.load(Relaxed) == before {
                return None;
            }
        }
        None
    }

    #[inline(always)]
    fn walk<R>(&self, arena: &Arena, hash: Option<u32>, most: u32, visit: &mut impl FnMut(u32) -> Option<R>) -> Option<(u32, R)> {
        let wanted = hash.map(tag);
        let tags = self.tags.load(Relaxed);
        for (place, head) in self.entries.iter().enumerate() {
            let seen = tags >> (place * 8) & 0xff;
            if wanted.is_some_and(|w| seen != w && seen != 0) {
                continue;
            }
            let mut at = head.load(Relaxed);
            let mut left = if place == CHAIN { most } else { 1 };
            while at != NONE && left > 0 {
                if let Some(found) = visit(at) {
                    return Some((at, found));
                }
                left -= 1;
                at = if left > 0 { arena.next(at).load(Relaxed) } else { NONE };
            }
        }
        None
    }

    /// Locks the bucket for changes.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked { bucket: self, _guard: lock(&self.lock) }
    }
}

/// A bucket whose lock is held.
pub(super) struct Locked<'a> {
    bucket: &'a Bucket,
    _guard: MutexGuard<'a, ()>,
}

impl Locked<'_> {
    /// Shows `visit` the entries that may have this hash, or all.
    pub(super) fn walk<R>(&self, arena: &Arena, hash: Option<u32>, mut visit: impl FnMut(u32) -> Option<R>) -> Option<R> {
        self.bucket.walk(arena, hash, u32::MAX, &mut visit).map(|(_, found)| found)
    }

    /// Entries in the bucket.
    pub(super) fn len(&self, arena: &Arena) -> u32 {
        let inline = self.bucket.entries[..CHAIN].iter().filter(|e| e.load(Relaxed) != NONE).count() as u32;
        let mut n = inline;
        let mut at = self.bucket.entries[CHAIN].load(Relaxed);
        while at != NONE {
            n += 1;
            at = arena.next(at).load(Relaxed);
        }
        n
    }

    /// Puts an entry in.
    pub(super) fn insert(&mut self, arena: &Arena, entry: u32, hash: u32) {
        let b = self.bucket;
        let place = b.entries.iter().position(|e| e.load(Relaxed) == NONE);
        self.change(|| match place {
            Some(place) => {
                arena.next(entry).store(NONE, Relaxed);
                b.set(place, entry, tag(hash));
            }
            None => {
                arena.next(entry).store(b.entries[CHAIN].load(Relaxed), Relaxed);
                b.set(CHAIN, entry, 0);
            }
        });
    }

    /// Takes an entry out; nothing happens if it is not there.
    pub(super) fn remove(&mut self, arena: &Arena, entry: u32) {
        let b = self.bucket;
        if let Some(place) = b.entries[..CHAIN].iter().position(|e| e.load(Relaxed) == entry) {
            let head = b.entries[CHAIN].load(Relaxed);
            self.change(|| {
                if head == NONE {
                    b.set(place, NONE, 0);
                    return;
                }
                // The chain's head moves up, so that chains stay short.
                let rest = arena.next(head).load(Relaxed);
                b.set(place, head, tag(arena.hash(head)));
                b.set(CHAIN, rest, 0);
            });
            return;
        }
        let mut link = &b.entries[CHAIN];
        loop {
            let at = link.load(Relaxed);
            if at == NONE {
                return;
            }
            let next = arena.next(at);
            if at == entry {
                let rest = next.load(Relaxed);
                self.change(|| link.store(rest, Relaxed));
                return;
            }
            link = next;
        }
    }

    /// Makes a change of which look-ups without the lock take notice.
    fn change(&mut self, f: impl FnOnce()) {
        let seq = &self.bucket.seq;
        let before = seq.load(Relaxed);
        seq.store(before.wrapping_add(1), Relaxed);
        fence(Release);
        f();
        seq.store(before.wrapping_add(2), Release);
    }
}

impl Bucket {
    fn set(&self, place: usize, entry: u32, tag: u32) {
        let tags = self.tags.load(Relaxed) & !(0xff << (place * 8)) | tag << (place * 8);
        self.tags.store(tags, Relaxed);
        self.entries[place].store(entry, Relaxed);
    }
}
