//! Payload that stays where the guest has it while the stack deals with its frame.

use hibernet_netstack::edge::Payload;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// Most buffers at a time; more frames than that are copied.
const BUFFERS: usize = 64;
/// Most pieces of one: a super-segment of Linux has its head and 17 fragments of pages.
pub const PIECES: usize = 32;
/// Slots from this one on are no slots but lent buffers; from [`END`] on they are something else.
const FIRST: u32 = 1 << 31;
const END: u32 = FIRST + BUFFERS as u32;

/// Buffers in the memory of guests, under slot numbers of their own.
///
/// A guest changes them at any time, so nothing refers to them as bytes: they are copied, or handed to the kernel. The memory is held, so that it stays
/// mapped whatever becomes of the link.
#[derive(Debug, Default)]
pub struct LentBuffers {
    /// Made when they are first needed, and used over and over.
    all: Vec<Lent>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Lent {
    /// None while it is free.
    memory: Option<Arc<GuestMemoryMmap>>,
    pieces: Vec<(GuestAddress, usize)>,
    /// The slot with a copy, if somebody needed one.
    copy: Option<u32>,
}

/// What a payload is in the memory of a guest.
#[derive(Clone, Copy, Debug)]
pub struct LentBytes<'a> {
    memory: &'a GuestMemoryMmap,
    pieces: &'a [(GuestAddress, usize)],
    from: usize,
    len: usize,
}

/// Whether a slot number is that of a lent buffer.
pub const fn is_lent(slot: u32) -> bool {
    FIRST <= slot && slot < END
}

impl LentBuffers {
    /// Lends a buffer in pieces of so many bytes at these addresses; its slot number. None if not all of that is there, or there are too many of either.
    pub fn lend(&mut self, memory: &Arc<GuestMemoryMmap>, pieces: impl Iterator<Item = (u64, u32)>) -> Option<u32> {
        let n = match self.free.pop() {
            Some(n) => n,
            None if self.all.len() < BUFFERS => {
                self.all.push(Lent { pieces: Vec::with_capacity(PIECES), ..Lent::default() });
                self.all.len() as u32 - 1
            }
            None => return None,
        };
        let lent = &mut self.all[n as usize];
        lent.pieces.clear();
        for (at, len) in pieces {
            let (at, len) = (GuestAddress(at), len as usize);
            if lent.pieces.len() == PIECES || memory.get_slice(at, len).is_err() {
                self.free.push(n);
                return None;
            }
            lent.pieces.push((at, len));
        }
        lent.memory = Some(memory.clone());
        Some(FIRST + n)
    }

    fn index(slot: u32) -> Option<usize> {
        is_lent(slot).then(|| (slot - FIRST) as usize)
    }

    /// Takes a buffer back; the slot with its copy, if it has one. Nothing leads to it any more.
    pub fn end(&mut self, slot: u32) -> Option<u32> {
        let n = LentBuffers::index(slot)?;
        let lent = self.all.get_mut(n)?;
        if lent.memory.take().is_some() {
            self.free.push(n as u32);
        }
        lent.copy.take()
    }

    /// The slot with the copy of a buffer.
    pub fn copy(&self, slot: u32) -> Option<u32> {
        self.all.get(LentBuffers::index(slot)?)?.copy
    }

    /// From now on this slot has the bytes of a buffer.
    pub fn set_copy(&mut self, slot: u32, copy: u32) {
        if let Some(lent) = LentBuffers::index(slot).and_then(|n| self.all.get_mut(n)) {
            lent.copy = Some(copy);
        }
    }

    /// A payload in a buffer; none if it is in no lent one.
    pub fn bytes(&self, p: Payload) -> Option<LentBytes<'_>> {
        let Lent { memory, pieces, .. } = self.all.get(LentBuffers::index(p.slot)?)?;
        Some(LentBytes { memory: memory.as_deref()?, pieces, from: p.offset as usize, len: p.len() })
    }

    /// All of a buffer.
    pub fn whole(&self, slot: u32) -> Option<LentBytes<'_>> {
        self.bytes(Payload { slot, offset: 0, len: u32::MAX })
    }
}

impl<'a> LentBytes<'a> {
    /// Its pieces, in their order, none of them empty.
    pub fn slices(self) -> impl Iterator<Item = VolatileSlice<'a>> {
        let LentBytes { memory, pieces, from: mut skip, len: mut left } = self;
        pieces.iter().filter_map(move |&(at, len)| {
            let from = skip.min(len);
            skip -= from;
            let n = left.min(len - from);
            left -= n;
            // They were found to be there when they were lent, in a memory that does not change its regions.
            let piece = if n > 0 { memory.get_slice(at, len).ok()?.subslice(from, n).ok() } else { None };
            debug_assert!(n == 0 || piece.is_some(), "a lent piece at {at:?} has gone");
            piece
        })
    }

    /// Copies the start of it; how many bytes.
    pub fn copy_to(self, out: &mut [u8]) -> usize {
        let mut at = 0;
        for s in self.slices() {
            if at == out.len() {
                break;
            }
            at += s.copy_to(&mut out[at..]);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn memory() -> Arc<GuestMemoryMmap> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096), (GuestAddress(8192), 4096)]).unwrap();
        memory.write_slice(b"0123456789", GuestAddress(100)).unwrap();
        memory.write_slice(b"abcdef", GuestAddress(8192)).unwrap();
        Arc::new(memory)
    }

    fn read(lent: &LentBuffers, slot: u32, offset: u32, len: u32) -> Vec<u8> {
        let mut out = vec![0; 64];
        let n = lent.bytes(Payload { slot, offset, len }).map_or(0, |l| l.copy_to(&mut out));
        out.truncate(n);
        out
    }

    #[test]
    fn every_part_is_read_from_its_pieces() {
        let (mut lent, memory) = (LentBuffers::default(), memory());
        let slot = lent.lend(&memory, [(100, 4), (104, 0), (8192, 6), (104, 6)].into_iter()).unwrap();
        let all = b"0123abcdef456789";
        for from in 0..=20 {
            for len in 0..=20 {
                let expected = &all[from.min(16)..(from + len).min(16)];
                assert_eq!(read(&lent, slot, from as u32, len as u32), expected, "{len} from {from}");
                let pieces = lent.bytes(Payload { slot, offset: from as u32, len: len as u32 }).unwrap().slices();
                assert!(pieces.inspect(|s| assert!(!s.is_empty())).map(|s| s.len()).sum::<usize>() == expected.len());
            }
        }
        let mut short = [0; 6];
        assert_eq!(lent.whole(slot).unwrap().copy_to(&mut short), 6);
        assert_eq!(&short, b"0123ab");
        assert_eq!(read(&lent, slot, u32::MAX, u32::MAX), b"");
    }

    #[test]
    fn what_is_not_there_is_not_lent() {
        let (mut lent, memory) = (LentBuffers::default(), memory());
        for piece in [(4095, 2), (4096, 1), (u64::MAX, 1), (8192, u32::MAX)] {
            assert_eq!(lent.lend(&memory, [(0, 1), piece].into_iter()), None, "{piece:?}");
        }
        assert_eq!(lent.lend(&memory, [(0, 1); PIECES + 1].into_iter()), None);
        let all: Vec<u32> = (0..BUFFERS).map(|_| lent.lend(&memory, [(0, 1); PIECES].into_iter()).unwrap()).collect();
        assert_eq!(lent.lend(&memory, [(0, 1)].into_iter()), None, "no more than there are");
        assert!(all.iter().all(|s| is_lent(*s)) && !is_lent(Payload::NO_SLOT) && !is_lent(4096));
        assert_eq!(lent.end(all[3]), None);
        assert_eq!(lent.lend(&memory, [(0, 1)].into_iter()), Some(all[3]));
    }

    #[test]
    fn nothing_leads_to_what_was_taken_back_and_the_memory_is_held_until_then() {
        let (mut lent, memory) = (LentBuffers::default(), memory());
        let slot = lent.lend(&memory, [(100, 4)].into_iter()).unwrap();
        assert_eq!(Arc::strong_count(&memory), 2);
        lent.set_copy(slot, 7);
        assert_eq!((lent.copy(slot), lent.end(slot), lent.copy(slot)), (Some(7), Some(7), None));
        assert_eq!(Arc::strong_count(&memory), 1);
        assert!(lent.bytes(Payload { slot, offset: 0, len: 4 }).is_none());
        assert_eq!((lent.end(slot), lent.end(3), lent.end(Payload::NO_SLOT)), (None, None, None));
        let again = lent.lend(&memory, [(100, 4)].into_iter()).unwrap();
        assert_eq!((again, lent.copy(again)), (slot, None));
        assert_ne!(lent.lend(&memory, [(100, 4)].into_iter()), Some(slot), "taken back twice, lent once");
    }
}
