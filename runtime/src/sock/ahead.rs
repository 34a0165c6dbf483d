//! Bytes of a TCP stream that were peeked before they were asked for: many pieces with one call of the kernel.

use super::Sockets;
use crate::slots::{SLOT_SIZE, Slots};
use crate::sys::stream;
use hibernet_netstack::edge::{Payload, SockId};
use std::collections::VecDeque;
use std::os::fd::AsFd;

/// Most pieces of one call: few enough to stay in the processor's cache until they are used.
const PIECES: usize = 16;
/// Free slots that are left for others.
const SPARE: usize = 64;

/// What was read ahead, of one socket. What stands in a stream never changes, so it stays good until it is used or consumed.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    sock: Option<SockId>,
    /// Where the first piece begins, behind the first unread byte.
    offset: u32,
    pieces: VecDeque<Payload>,
}

impl Ahead {
    /// Takes the first piece if it stands there and is of this length.
    pub(super) fn take(&mut self, id: SockId, offset: u32, len: usize) -> Option<Payload> {
        if self.sock != Some(id) || self.offset != offset || self.pieces.front()?.len() != len {
            return None;
        }
        self.offset += len as u32;
        self.pieces.pop_front()
    }

    /// The first `n` bytes of a stream were consumed.
    pub(super) fn consumed(&mut self, slots: &mut Slots, id: SockId, n: u32) {
        if self.sock == Some(id) {
            match self.offset.checked_sub(n) {
                Some(offset) => self.offset = offset,
                None => self.forget(slots),
            }
        }
    }

    /// Forgets what is of this socket.
    pub(super) fn forget_of(&mut self, slots: &mut Slots, id: SockId) {
        if self.sock == Some(id) {
            self.forget(slots);
        }
    }

    /// Forgets everything.
    pub(super) fn forget(&mut self, slots: &mut Slots) {
        self.sock = None;
        self.pieces.drain(..).for_each(|p| slots.give(p.slot));
    }
}

impl Sockets {
    /// Peeks at up to `pieces` pieces of `len` bytes from `offset` on, where the kernel's peek offset stands, and keeps those that are whole. Whatever
    /// hinders it is found again, and told, by whoever peeks at the same place.
    pub(super) fn peek_ahead(&mut self, slots: &mut Slots, id: SockId, offset: u32, len: usize, pieces: usize) {
        self.ahead.forget(slots);
        let spare = slots.capacity().saturating_sub(slots.in_use() + SPARE);
        let mut buffers = [const { 0..0 }; PIECES];
        let mut count = 0;
        for buffer in buffers.iter_mut().take(pieces.min(spare)) {
            let Some(slot) = slots.take() else { break };
            let start = slot as usize * SLOT_SIZE;
            *buffer = start..start + len.min(SLOT_SIZE);
            count += 1;
        }
        let peeked = self.tcp(id).map_or(0, |s| {
            let n = stream::peek_into(s.fd.as_fd(), slots.memory_mut(), &buffers[..count]).unwrap_or(0);
            s.advance_peek(n);
            n
        });
        let whole = peeked / len;
        (self.ahead.sock, self.ahead.offset) = (Some(id), offset);
        for (i, buffer) in buffers[..count].iter().enumerate() {
            let slot = (buffer.start / SLOT_SIZE) as u32;
            if i < whole {
                self.ahead.pieces.push_back(Payload { slot, offset: 0, len: len as u32 });
            } else {
                slots.give(slot);
            }
        }
    }

    /// Gives back what was read ahead and not used.
    pub fn forget_ahead(&mut self, slots: &mut Slots) {
        self.ahead.forget(slots);
    }
}
