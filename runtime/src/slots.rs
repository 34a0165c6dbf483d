//! Buffers of payload.

use crate::lent::{LentBuffers, LentBytes, is_lent};
use crate::sys::mmap::Mapping;
use hibernet_netstack::edge::Payload;
use std::io;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Bytes in a slot: the largest IP packet, and room for the link's headers before it.
pub const SLOT_SIZE: usize = 64 * 1024 + 4 * 1024;

/// A fixed number of buffers of [`SLOT_SIZE`] bytes.
///
/// A free slot is taken by one owner; [`Slots::hold`] adds an owner (a frame that waits in a link's batch while its
/// sender keeps the handle), [`Slots::give`] takes one away, and the slot is free when none is left. The slot given
/// back last is taken first, so that few pages stay warm and the rest are never touched.
///
/// Beside them stand buffers that a link lends where its guest has them. They have slot numbers too, but no owners: the link ends them
/// ([`Slots::end_lent`]) before its guest has them back. Whoever wants their bytes reads them or has them copied.
#[derive(Debug)]
pub struct Slots {
    memory: Mapping,
    /// Free slots; the warmest is last.
    free: Vec<u32>,
    /// Number of owners of each slot.
    owners: Vec<u16>,
    /// Slots that may have memory: taken since the last trim that reached them.
    touched: Vec<bool>,
    lent: LentBuffers,
}

impl Slots {
    /// `count` slots, at least one. Memory is taken only when a slot's bytes are written.
    pub fn new(count: u32) -> io::Result<Slots> {
        let count = count.max(1);
        let len = (count as usize).checked_mul(SLOT_SIZE).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Mapping::anonymous(len)?;
        Ok(Slots {
            memory,
            free: (0..count).rev().collect(),
            owners: vec![0; count as usize],
            touched: vec![false; count as usize],
            lent: LentBuffers::default(),
        })
    }

    /// A free slot, its content undefined; `None` if there is none.
    pub fn take(&mut self) -> Option<u32> {
        let slot = self.free.pop()?;
        self.owners[slot as usize] = 1;
        self.touched[slot as usize] = true;
        Some(slot)
    }

    /// Adds an owner to a slot in use. Ignored for [`Payload::NO_SLOT`]. A lent buffer cannot be held.
    pub fn hold(&mut self, slot: u32) {
        debug_assert!(!is_lent(slot), "hold of a lent buffer");
        if let Some(n) = self.owners.get_mut(slot as usize) {
            debug_assert!(*n > 0, "hold of the free slot {slot}");
            *n += u16::from(*n > 0);
        }
    }

    /// Gives a slot back. Ignored for [`Payload::NO_SLOT`] and for lent buffers; giving a free slot is a mistake and ignored.
    pub fn give(&mut self, slot: u32) {
        let Some(n) = self.owners.get_mut(slot as usize) else { return };
        debug_assert!(*n > 0, "slot {slot} was given back twice");
        match *n {
            0 => {}
            1 => {
                *n = 0;
                self.free.push(slot);
            }
            _ => *n -= 1,
        }
    }

    /// Whether a slot has several owners.
    pub fn is_shared(&self, slot: u32) -> bool {
        self.owners.get(slot as usize).is_some_and(|n| *n > 1)
    }

    /// Lends a buffer of a guest, in pieces of so many bytes at these addresses of its memory. None if not all of that is there, or if it is to be copied
    /// because there are too many pieces or buffers.
    pub fn lend(&mut self, memory: &Arc<GuestMemoryMmap>, pieces: impl Iterator<Item = (u64, u32)>) -> Option<u32> {
        self.lent.lend(memory, pieces)
    }

    /// Takes a lent buffer back: nobody has its bytes any more. Ignored for slots.
    pub fn end_lent(&mut self, slot: u32) {
        if let Some(copy) = self.lent.end(slot) {
            self.give(copy);
        }
    }

    /// Where a payload stands in the memory of a guest; none if it is in a slot.
    pub fn lent(&self, p: Payload) -> Option<LentBytes<'_>> {
        if self.lent.copy(p.slot).is_some() { None } else { self.lent.bytes(p) }
    }

    /// The payload in memory that no guest changes: itself if it is in a slot, else in a copy of the lent buffer, which all see from now on in its place. The copy is the
    /// buffer's, and is there as long as that. None if there is no slot for it.
    pub fn private(&mut self, p: Payload) -> Option<Payload> {
        if !is_lent(p.slot) {
            return Some(p);
        }
        let slot = match self.lent.copy(p.slot) {
            Some(slot) => slot,
            None => {
                let slot = self.take()?;
                let start = slot as usize * SLOT_SIZE;
                if let Some(l) = self.lent.whole(p.slot) {
                    l.copy_to(&mut self.memory.bytes_mut()[start..start + SLOT_SIZE]);
                }
                self.lent.set_copy(p.slot, slot);
                slot
            }
        };
        Some(Payload { slot, ..p })
    }

    /// Copies the start of a payload, wherever it is; how many bytes.
    pub fn read(&self, p: Payload, out: &mut [u8]) -> usize {
        if let Some(l) = self.lent(p) {
            return l.copy_to(out);
        }
        let bytes = self.bytes(p);
        let n = bytes.len().min(out.len());
        out[..n].copy_from_slice(&bytes[..n]);
        n
    }

    /// The bytes of a payload, as far as they lie in its slot. Those of a lent buffer are none before it was [copied](Slots::private).
    pub fn bytes(&self, p: Payload) -> &[u8] {
        let p = Payload { slot: self.lent.copy(p.slot).unwrap_or(p.slot), ..p };
        debug_assert!(!is_lent(p.slot), "bytes of a lent buffer");
        if p.slot as usize >= self.owners.len() {
            return &[];
        }
        let start = p.slot as usize * SLOT_SIZE;
        let slot = &self.memory.bytes()[start..start + SLOT_SIZE];
        let slot = &slot[(p.offset as usize).min(SLOT_SIZE)..];
        &slot[..p.len().min(slot.len())]
    }

    /// Copies a payload behind another in that one's slot, and gives its own slot back. False, and nothing is done, if
    /// there is no room or the other's slot has several owners.
    pub fn append(&mut self, to: &mut Payload, more: Payload) -> bool {
        let (at, len) = (to.offset as usize + to.len(), more.len());
        // Nor of a lent buffer, which has none.
        let single = |slot: u32| self.owners.get(slot as usize) == Some(&1);
        let source = more.slot as usize * SLOT_SIZE + more.offset as usize;
        if to.slot == more.slot || !single(to.slot) || !single(more.slot) || at + len > SLOT_SIZE {
            return false;
        }
        if more.offset as usize + len > SLOT_SIZE {
            return false;
        }
        self.memory.bytes_mut().copy_within(source..source + len, to.slot as usize * SLOT_SIZE + at);
        to.len += more.len;
        self.give(more.slot);
        true
    }

    /// All bytes of a slot; none for a slot that does not exist.
    pub fn slot_mut(&mut self, slot: u32) -> &mut [u8] {
        if slot as usize >= self.owners.len() {
            return &mut [];
        }
        let start = slot as usize * SLOT_SIZE;
        &mut self.memory.bytes_mut()[start..start + SLOT_SIZE]
    }

    /// The memory of all slots: slot `n` starts at `n * SLOT_SIZE`. For calls that fill several slots at once.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// Number of slots.
    pub fn capacity(&self) -> usize {
        self.owners.len()
    }

    /// Number of slots that have an owner.
    pub fn in_use(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    /// Gives the memory of free slots back to the kernel, all but that of the `keep` warmest. For idle times after a burst.
    pub fn trim(&mut self, keep: usize) {
        let cold = self.free.len().saturating_sub(keep);
        for &slot in &self.free[..cold] {
            if !std::mem::take(&mut self.touched[slot as usize]) {
                continue;
            }
            let start = slot as usize * SLOT_SIZE;
            self.memory.discard(start..start + SLOT_SIZE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use vm_memory::{Bytes, GuestAddress};

    fn payload(slot: u32, offset: u32, len: u32) -> Payload {
        Payload { slot, offset, len }
    }

    #[test]
    fn every_slot_once_and_then_none() {
        let mut s = Slots::new(5).unwrap();
        let taken: HashSet<u32> = std::iter::from_fn(|| s.take()).collect();
        assert_eq!(taken, (0..5).collect());
        assert_eq!((s.capacity(), s.in_use()), (5, 5));
        s.give(3);
        s.give(1);
        assert_eq!((s.take(), s.take(), s.take()), (Some(1), Some(3), None));
    }

    #[test]
    fn held_slots_are_free_after_the_last_owner() {
        let mut s = Slots::new(2).unwrap();
        let a = s.take().unwrap();
        s.hold(a);
        s.give(a);
        assert_eq!(s.in_use(), 1);
        s.give(a);
        assert_eq!(s.in_use(), 0);
    }

    #[test]
    fn bytes_are_clamped_to_the_slot() {
        let mut s = Slots::new(2).unwrap();
        let a = s.take().unwrap();
        s.slot_mut(a).fill(9);
        assert_eq!(s.bytes(payload(a, 10, 20)), &[9; 20]);
        let end = SLOT_SIZE as u32;
        assert_eq!(s.bytes(payload(a, end - 4, 100)).len(), 4);
        assert_eq!(s.bytes(payload(a, end + 1, u32::MAX)).len(), 0);
        assert_eq!(s.bytes(payload(a, u32::MAX, u32::MAX)).len(), 0);
        assert_eq!(s.bytes(payload(77, 0, 4)).len(), 0);
        assert_eq!(s.bytes(Payload::EMPTY).len(), 0);
        assert!(s.slot_mut(Payload::NO_SLOT).is_empty());
    }

    #[test]
    fn a_payload_is_appended_where_there_is_room_and_one_owner() {
        let mut s = Slots::new(4).unwrap();
        let [a, b, c] = [1, 2, 3].map(|fill| {
            let slot = s.take().unwrap();
            s.slot_mut(slot).fill(fill);
            slot
        });
        let mut to = payload(a, 100, 10);
        assert!(s.append(&mut to, payload(b, 5, 3)));
        assert_eq!((to, s.bytes(to)), (payload(a, 100, 13), &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2][..]));
        assert_eq!((s.in_use(), s.bytes(payload(a, 113, 1))), (2, &[1][..]));
        let end = SLOT_SIZE as u32;
        let mut full = payload(a, end - 5, 3);
        for (mut to, more) in
            [(full, payload(c, 0, 3)), (to, payload(a, 0, 1)), (to, payload(77, 0, 1)), (to, payload(c, end, 1))]
        {
            assert!(!s.append(&mut to, more));
        }
        assert!(!s.append(&mut Payload { slot: Payload::NO_SLOT, ..to }, payload(c, 0, 1)));
        s.hold(a);
        assert!(!s.append(&mut full, payload(c, 0, 1)));
        s.give(a);
        assert!(s.append(&mut full, payload(c, 0, 2)));
        assert_eq!((full, s.in_use()), (payload(a, end - 5, 5), 1));
    }

    #[test]
    fn a_slot_does_not_reach_into_its_neighbour() {
        let mut s = Slots::new(3).unwrap();
        let (a, b) = (s.take().unwrap(), s.take().unwrap());
        s.slot_mut(a).fill(1);
        s.slot_mut(b).fill(2);
        assert!(s.bytes(payload(a, 0, u32::MAX)).iter().all(|&x| x == 1));
        assert!(s.bytes(payload(b, 0, u32::MAX)).iter().all(|&x| x == 2));
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "given back twice"))]
    fn a_double_give_does_not_make_two_owners() {
        let mut s = Slots::new(2).unwrap();
        let a = s.take().unwrap();
        s.give(a);
        s.give(a);
        assert_ne!(s.take(), s.take());
        assert_eq!(s.take(), None);
    }

    #[test]
    fn a_lent_buffer_is_read_where_it_is_until_it_is_copied() {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        let write = |bytes: &[u8]| memory.write_slice(bytes, GuestAddress(10)).unwrap();
        let mut s = Slots::new(1).unwrap();
        write(b"before");
        let slot = s.lend(&memory, [(10, 3), (13, 3)].into_iter()).unwrap();
        let part = payload(slot, 1, 4);
        let mut out = [0; 8];
        assert_eq!((s.read(part, &mut out), &out[..4]), (4, &b"efor"[..]));
        write(b"BEFORE");
        assert_eq!((s.read(part, &mut out), &out[..4], s.in_use()), (4, &b"EFOR"[..], 0));

        let other = s.take().unwrap();
        assert_eq!(s.private(part), None);
        s.give(other);
        let copied = s.private(part).unwrap();
        assert_eq!((copied, s.private(part), s.in_use()), (payload(0, 1, 4), Some(copied), 1));
        write(b"after!");
        assert_eq!((s.bytes(copied), s.bytes(part), s.lent(part).is_none()), (&b"EFOR"[..], &b"EFOR"[..], true));
        assert_eq!((s.read(part, &mut out), &out[..4]), (4, &b"EFOR"[..]));
        assert!(!s.append(&mut payload(slot, 0, 1), payload(slot, 1, 1)));

        s.give(slot);
        assert_eq!(s.in_use(), 1, "it is the link's");
        s.hold(copied.slot);
        s.end_lent(slot);
        assert_eq!((s.in_use(), s.bytes(copied), s.lent(part).is_none()), (1, &b"EFOR"[..], true));
        s.give(copied.slot);
        assert_eq!((s.in_use(), s.private(payload(0, 5, 5))), (0, Some(payload(0, 5, 5))));
    }

    #[test]
    fn trimmed_slots_are_zero_and_usable() {
        let mut s = Slots::new(4).unwrap();
        let all: Vec<u32> = std::iter::from_fn(|| s.take()).collect();
        all.iter().for_each(|&a| s.slot_mut(a).fill(5));
        all.iter().for_each(|&a| s.give(a));
        s.trim(1);
        let warm = s.take().unwrap();
        assert!(s.slot_mut(warm).iter().all(|&x| x == 5));
        let cold = s.take().unwrap();
        assert!(s.slot_mut(cold).iter().all(|&x| x == 0));
    }

    /// Resident bytes of this process, from the kernel.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * crate::sys::mmap::page_size()
    }

    #[test]
    fn small_datagrams_touch_few_pages() {
        let mut s = Slots::new(4096).unwrap();
        let before = resident();
        for _ in 0..10 {
            let batch: Vec<u32> = (0..64).map(|_| s.take().unwrap()).collect();
            batch.iter().for_each(|&a| s.slot_mut(a)[..1500].fill(1));
            batch.iter().for_each(|&a| s.give(a));
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 2 << 20, "64 datagrams of 1500 bytes cost {grown} bytes");
    }
}
