//! The driver's side of a split virtqueue (virtio 1.3 section 2.7), and means to break its rules.

use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where a queue and its buffers are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Entries, a power of two.
    pub size: u16,
    /// Guest address of the descriptors; the rings follow.
    pub base: u64,
    /// Guest address of the buffers, one for each descriptor.
    pub buffers: u64,
    /// Length of each.
    pub buffer: u32,
}

impl Layout {
    /// Guest address of the descriptors.
    pub fn desc(&self) -> u64 {
        self.base
    }

    /// Guest address of the available ring.
    pub fn avail(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    /// Guest address of the used ring.
    pub fn used(&self) -> u64 {
        (self.avail() + 6 + 2 * u64::from(self.size)).next_multiple_of(64)
    }

    /// Length of descriptors and rings together.
    pub fn len(&self) -> u64 {
        self.used() + 6 + 8 * u64::from(self.size) - self.base
    }

    /// A queue has entries.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Guest address of a buffer.
    pub fn buffer(&self, n: u16) -> u64 {
        self.buffers + u64::from(n) * u64::from(self.buffer)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct DriverQueue {
    memory: GuestMemoryMmap,
    /// Where it is.
    pub layout: Layout,
    event_idx: bool,
    free: Vec<u16>,
    next_avail: u16,
    seen: u16,
    kicked: u16,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;

impl DriverQueue {
    /// An empty one in memory of zeroes.
    pub fn new(memory: GuestMemoryMmap, layout: Layout, event_idx: bool) -> DriverQueue {
        DriverQueue { memory, layout, event_idx, free: (0..layout.size).rev().collect(), next_avail: 0, seen: 0, kicked: 0 }
    }

    fn load(&self, at: u64) -> u16 {
        self.memory.load(GuestAddress(at), Ordering::Acquire).expect("ring in memory")
    }

    fn store(&self, at: u64, v: u16) {
        self.memory.store(v, GuestAddress(at), Ordering::Release).expect("ring in memory");
    }

    /// Writes a descriptor.
    pub fn describe(&self, n: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let bytes = u128::from(addr) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        self.memory.write_slice(&bytes.to_le_bytes(), GuestAddress(self.layout.desc() + 16 * u64::from(n))).expect("descriptor");
    }

    /// Makes the chain that begins with a descriptor available.
    pub fn offer(&mut self, head: u16) {
        let at = self.layout.avail() + 4 + 2 * u64::from(self.next_avail % self.layout.size);
        self.store(at, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.store(self.layout.avail() + 2, self.next_avail);
    }

    /// Claims that so many buffers are available.
    pub fn claim(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_add(n);
        self.store(self.layout.avail() + 2, self.next_avail);
    }

    /// Whether the device wants to hear of what was offered since this was asked last.
    pub fn wants_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.kicked, self.next_avail), self.next_avail);
        if old == new {
            return false;
        }
        if self.event_idx {
            let event = self.load(self.layout.used() + 4 + 8 * u64::from(self.layout.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(self.layout.used()) & 1 == 0
        }
    }

    /// Asks to be called when the device has used one buffer more.
    pub fn want_calls(&self) {
        if self.event_idx {
            self.store(self.layout.avail() + 4 + 2 * u64::from(self.layout.size), self.seen);
        } else {
            self.store(self.layout.avail(), 0);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks not to be called.
    pub fn refuse_calls(&self) {
        if !self.event_idx {
            self.store(self.layout.avail(), 1);
        }
    }

    /// Whether the device has used a buffer that was not taken yet.
    pub fn has_used(&self) -> bool {
        self.load(self.layout.used() + 2) != self.seen
    }

    /// The next buffer that the device has used: its head and how much was written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        let mut entry = [0; 8];
        let at = self.layout.used() + 4 + 8 * u64::from(self.seen % self.layout.size);
        self.memory.read_slice(&mut entry, GuestAddress(at)).expect("used ring");
        self.seen = self.seen.wrapping_add(1);
        let entry = u64::from_le_bytes(entry);
        Some((entry as u16, (entry >> 32) as u32))
    }

    /// Number of buffers used in all, modulo 2^16.
    pub fn used_index(&self) -> u16 {
        self.load(self.layout.used() + 2)
    }

    /// Free descriptors.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A free descriptor. Its buffer belongs to it.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Gives a descriptor back.
    pub fn give(&mut self, n: u16) {
        assert!(!self.free.contains(&n), "buffer {n} came back twice");
        self.free.push(n);
    }

    /// Offers as many buffers to be written as there are.
    pub fn fill(&mut self) {
        while let Some(n) = self.take() {
            self.offer_to_write(n);
        }
    }

    /// Offers one buffer to be written.
    pub fn offer_to_write(&mut self, n: u16) {
        self.describe(n, self.layout.buffer(n), self.layout.buffer, WRITE, 0);
        self.offer(n);
    }

    /// Offers bytes to be read, cut into as many buffers as it takes. False if there are not so many.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.send_chain(bytes).is_some()
    }

    /// As [`DriverQueue::send`]; the chain's head.
    pub fn send_chain(&mut self, bytes: &[u8]) -> Option<u16> {
        let pieces: Vec<&[u8]> = bytes.chunks(self.layout.buffer as usize).collect();
        if self.free.len() < pieces.len() {
            return None;
        }
        let chain: Vec<u16> = pieces.iter().map(|_| self.take().expect("counted")).collect();
        for (i, piece) in pieces.iter().enumerate() {
            let at = self.layout.buffer(chain[i]);
            self.memory.write_slice(piece, GuestAddress(at)).expect("buffer");
            let next = chain.get(i + 1).copied();
            self.describe(chain[i], at, piece.len() as u32, if next.is_some() { NEXT } else { 0 }, next.unwrap_or(0));
        }
        self.offer(chain[0]);
        Some(chain[0])
    }

    /// Takes back what the device has read. Every chain was made by [`DriverQueue::send`].
    pub fn reclaim(&mut self) -> usize {
        std::iter::from_fn(|| self.reclaim_chain()).count()
    }

    /// Takes back the next chain; its head.
    pub fn reclaim_chain(&mut self) -> Option<u16> {
        let (head, _) = self.used()?;
        let mut at = head;
        loop {
            let mut b = [0; 16];
            self.memory.read_slice(&mut b, GuestAddress(self.layout.desc() + 16 * u64::from(at))).expect("descriptor");
            self.give(at);
            if b[12] & NEXT as u8 == 0 {
                return Some(head);
            }
            at = u16::from_le_bytes([b[14], b[15]]);
        }
    }

    /// The bytes of a buffer.
    pub fn read(&self, n: u16, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.memory.read_slice(&mut out, GuestAddress(self.layout.buffer(n))).expect("buffer");
        out
    }
}
