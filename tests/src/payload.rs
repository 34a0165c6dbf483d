//! Payload slots with a memory of who owes them.

use hibernet_netstack::edge::Payload;
use hibernet_netstack::wire::checksum::Sum;
use std::collections::BTreeMap;

/// Where a payload came from, and so how long the stack may have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// A received frame: valid in the call that brought it, never released by the stack.
    Frame,
    /// Peeked or received from a socket, or quoted by an error report: must be gone when the call ends.
    Socket,
    /// Stashed by the stack: may be kept over calls.
    Stash,
}

#[derive(Debug)]
struct Slot {
    kind: SlotKind,
    bytes: Vec<u8>,
}

/// Payload memory. A slot number is never given out twice, so every use of a payload that is gone is found.
#[derive(Debug, Default)]
pub struct PayloadPool {
    slots: BTreeMap<u32, Slot>,
    next: u32,
    stashed: usize,
    /// Most bytes that may be stashed at once; beyond that [`PayloadPool::stash`] refuses. No limit if `None`.
    pub stash_limit: Option<usize>,
    /// Nothing can be appended to a payload.
    pub no_append: bool,
    /// Highest number of stashed bytes so far.
    pub stash_peak: usize,
}

impl PayloadPool {
    /// Puts bytes into a new slot.
    pub fn put(&mut self, kind: SlotKind, bytes: Vec<u8>) -> Payload {
        let slot = self.next;
        self.next += 1;
        assert_ne!(slot, Payload::NO_SLOT, "slot numbers ran out");
        let p = Payload { slot, offset: 0, len: bytes.len() as u32 };
        if kind == SlotKind::Stash {
            self.stashed += bytes.len();
            self.stash_peak = self.stash_peak.max(self.stashed);
        }
        self.slots.insert(slot, Slot { kind, bytes });
        p
    }

    /// Stashes a copy, unless the limit forbids it.
    pub fn stash(&mut self, bytes: &[u8]) -> Option<Payload> {
        if self.stash_limit.is_some_and(|max| self.stashed + bytes.len() > max) {
            return None;
        }
        Some(self.put(SlotKind::Stash, bytes.to_vec()))
    }

    /// The bytes of a payload.
    ///
    /// # Panics
    /// If the payload is gone or reaches beyond its slot.
    pub fn bytes(&self, p: Payload) -> &[u8] {
        if p.slot == Payload::NO_SLOT {
            assert!(p.is_empty(), "{p:?} has bytes but no slot");
            return &[];
        }
        let slot = self.slots.get(&p.slot).unwrap_or_else(|| panic!("{p:?} is used after it was released or transmitted"));
        let from = p.offset as usize;
        slot.bytes.get(from..from + p.len()).unwrap_or_else(|| panic!("{p:?} reaches beyond its {} bytes", slot.bytes.len()))
    }

    /// One's-complement sum as [`hibernet_netstack::edge::PayloadStore::checksum`] wants it.
    pub fn checksum(&self, p: Payload) -> u16 {
        Sum::default().bytes(self.bytes(p)).fold()
    }

    /// Copies a datagram from a socket behind another. False if [`PayloadPool::no_append`] says so.
    ///
    /// # Panics
    /// If either is not the whole of a slot filled from a socket.
    pub fn append(&mut self, to: &mut Payload, more: Payload) -> bool {
        if self.no_append {
            return false;
        }
        for p in [&*to, &more] {
            let slot = self.slots.get(&p.slot).unwrap_or_else(|| panic!("{p:?} is used after it was released or transmitted"));
            assert_eq!((slot.kind, slot.bytes.len(), p.offset), (SlotKind::Socket, p.len(), 0), "{p:?} is no whole datagram");
        }
        assert_ne!(to.slot, more.slot, "appended to itself");
        let bytes = self.bytes(more).to_vec();
        self.release(more);
        let Some(slot) = self.slots.get_mut(&to.slot) else { return false };
        slot.bytes.extend_from_slice(&bytes);
        to.len += more.len;
        true
    }

    /// The stack gives a payload back, or hands it to a link.
    ///
    /// # Panics
    /// If it is gone already, or is (part of) a received frame, which is not the stack's to release.
    pub fn release(&mut self, p: Payload) {
        if p.slot == Payload::NO_SLOT {
            return;
        }
        let slot = self.slots.remove(&p.slot).unwrap_or_else(|| panic!("{p:?} is released twice"));
        assert_ne!(slot.kind, SlotKind::Frame, "{p:?} is a received frame and not to be released");
        if slot.kind == SlotKind::Stash {
            self.stashed -= slot.bytes.len();
        }
    }

    /// Whether a slot is in use.
    pub fn is_live(&self, slot: u32) -> bool {
        self.slots.contains_key(&slot)
    }

    /// Ends a received frame.
    pub fn end_frame(&mut self, p: Payload) {
        self.slots.remove(&p.slot);
    }

    /// Bytes stashed now.
    pub fn stashed(&self) -> usize {
        self.stashed
    }

    /// Slots of a kind that are in use.
    pub fn live(&self, kind: SlotKind) -> usize {
        self.slots.values().filter(|s| s.kind == kind).count()
    }

    /// # Panics
    /// If a payload from a socket outlived the call that obtained it.
    pub fn assert_balanced(&self) {
        for (number, slot) in &self.slots {
            let (kind, len) = (slot.kind, slot.bytes.len());
            assert_ne!(kind, SlotKind::Socket, "slot {number} ({len} bytes from a socket) was neither released nor transmitted");
            assert_ne!(kind, SlotKind::Frame, "slot {number} is a frame that outlived its call");
        }
    }

    /// # Panics
    /// If anything at all is in use.
    pub fn assert_empty(&self) {
        assert!(self.slots.is_empty(), "payload leaked: {:?}", self.slots.keys().collect::<Vec<_>>());
    }
}
