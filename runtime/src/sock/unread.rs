//! Bytes of a TCP stream that a frame needs and that stay in the kernel until the link says where they go: then the kernel copies them there at once, and no
//! slot is in between.
//!
//! There is one such payload at a time, from the peek to the transmission within one call into the stack. It has a slot number that no slot has; whoever
//! uses one that is over finds nothing. Its length is what the kernel has received by then; the bytes never change.

use super::Sockets;
use crate::link::Unread;
use crate::slots::Slots;
use crate::sys::tcp;
use hibernet_netstack::edge::{Payload, SockId};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use vm_memory::VolatileSlice;

/// Fewest bytes for which it pays: it takes a call for each piece, and now and then one that asks how much is there.
pub const UNREAD_MIN: u32 = 16 * 1024;
/// The first of the slot numbers of such payloads; behind the last is [`Payload::NO_SLOT`].
const FIRST: u32 = 0xc000_0000;

/// What is known of a socket.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    /// The last peek found much: so does the next one, most likely.
    much: bool,
    /// So many bytes are there from the first unread one on, at least.
    there: u32,
    /// Rules look at the bytes, or the kernel did not have them as it said: they are read at once.
    never: bool,
}

impl PutOff {
    /// A peek found so many bytes.
    pub(super) fn found(&mut self, n: usize) {
        self.much = n >= UNREAD_MIN as usize;
    }

    /// So many bytes were consumed.
    pub(super) fn consumed(&mut self, n: usize) {
        self.there = self.there.saturating_sub(n as u32);
    }
}

/// Where the bytes stand.
#[derive(Clone, Copy, Debug)]
struct Place {
    sock: SockId,
    offset: u32,
    len: u32,
}

/// The payload that was put off.
#[derive(Debug, Default)]
pub(super) struct Current {
    slot: u32,
    place: Option<Place>,
    /// All of it, if somebody has looked at it; else empty.
    copy: RefCell<Vec<u8>>,
}

impl Current {
    fn put(&mut self, place: Place) -> Payload {
        self.slot = self.slot.wrapping_add(1).max(FIRST);
        if self.slot == Payload::NO_SLOT {
            self.slot = FIRST;
        }
        self.place = Some(place);
        self.copy.get_mut().clear();
        Payload { slot: self.slot, offset: 0, len: place.len }
    }

    fn of(&self, p: Payload) -> Option<Place> {
        self.place.filter(|_| p.slot == self.slot)
    }

    /// It is over if it is of this socket.
    pub(super) fn forget_of(&mut self, id: SockId) {
        self.place = self.place.filter(|p| p.sock != id);
    }
}

/// Whether a payload with this slot number was put off, now or once.
pub fn is_unread(slot: u32) -> bool {
    (FIRST..Payload::NO_SLOT).contains(&slot)
}

impl Sockets {
    /// In place of a peek: a payload of up to `max` bytes at `offset` that are there, and stay where they are for now. `None` if they had better be peeked at.
    pub(super) fn put_off(&mut self, id: SockId, offset: u32, max: u32) -> Option<Payload> {
        let s = self.tcp(id).ok()?;
        if max < UNREAD_MIN || !s.put_off.much || s.put_off.never || !s.peeks_anywhere() {
            return None;
        }
        if s.put_off.there < offset.saturating_add(max) {
            s.put_off.there = tcp::unread(s.fd.as_fd()).ok()?;
        }
        let len = s.put_off.there.saturating_sub(offset).min(max);
        if len < UNREAD_MIN {
            s.put_off.much = false;
            return None;
        }
        Some(self.unread.put(Place { sock: id, offset, len }))
    }

    /// The bytes of a payload that was put off, to be looked at; none if it is over.
    pub fn look_at_unread<R>(&self, p: Payload, look: impl FnOnce(&[u8]) -> R) -> R {
        let mut copy = self.unread.copy.borrow_mut();
        let place = self.unread.of(p);
        if let (Some(place), true) = (place, copy.is_empty()) {
            copy.resize(place.len as usize, 0);
            let whole = self.tcp_ref(place.sock).is_some_and(|s| s.peek_aside(place.offset, &mut copy).is_ok());
            if !whole {
                copy.clear();
            }
        }
        let known: &[u8] = if place.is_some() { &copy } else { &[] };
        let from = known.get(p.offset as usize..).unwrap_or_default();
        look(&from[..p.len().min(from.len())])
    }

    /// A payload that was put off, to be transmitted: all of it, which nobody has looked at.
    pub fn take_unread(&mut self, p: Payload) -> Option<Rest<'_>> {
        let place = self.unread.of(p)?;
        if p.offset > 0 || p.len != place.len || !self.unread.copy.get_mut().is_empty() {
            self.never_put_off(place.sock);
            return None;
        }
        self.unread.place = None;
        Some(Rest { sockets: self, place })
    }

    fn never_put_off(&mut self, id: SockId) {
        if let Ok(s) = self.tcp(id) {
            s.put_off.never = true;
        }
    }

    /// A copy of a payload that was put off, in a slot. `None` if it cannot be had: then the next peek reads at once.
    pub fn read_unread(&mut self, slots: &mut Slots, p: Payload) -> Option<Payload> {
        let slot = slots.take()?;
        let n = self.look_at_unread(p, |bytes| {
            let room = slots.slot_mut(slot).get_mut(..bytes.len())?;
            room.copy_from_slice(bytes);
            Some(bytes.len())
        });
        if n == Some(p.len()) {
            return Some(Payload { slot, offset: 0, len: p.len });
        }
        slots.give(slot);
        if let Some(place) = self.unread.of(p) {
            self.never_put_off(place.sock);
        }
        None
    }
}

/// A payload that was put off, in the hands of the link.
#[derive(Debug)]
pub struct Rest<'s> {
    sockets: &'s mut Sockets,
    place: Place,
}

impl Unread for Rest<'_> {
    fn len(&self) -> usize {
        self.place.len as usize
    }

    fn read_to<'m>(&mut self, places: &mut dyn Iterator<Item = VolatileSlice<'m>>) -> io::Result<()> {
        let Place { sock, offset, len } = self.place;
        let read = match self.sockets.tcp(sock) {
            Ok(s) => s.peek_to(offset, len as usize, places),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EBADF)),
        };
        if read.is_err() {
            self.sockets.never_put_off(sock);
        }
        read
    }
}
