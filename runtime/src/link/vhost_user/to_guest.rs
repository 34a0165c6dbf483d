//! Frames to the guest.

use super::VhostUserLink;
use super::device::{Device, TO_GUEST};
use super::memory::Memory;
use super::message::feature;
use super::queue::{Broken, Segment};
use crate::link::{Link, check_size, vnet};
use crate::slots::Slots;
use hibernet_netstack::edge::{GsoKind, Payload, TxError, TxFrame};

/// Most frames that wait for buffers of the guest's.
pub(super) const HELD: usize = 256;
/// Longest virtio-net header: with the number of buffers.
const HEADER: usize = vnet::LEN + 2;
/// After this many frames the guest is told, though more follow at once.
const TELL_AFTER: usize = 16;

/// A frame that waits for buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    header: [u8; HEADER],
    /// The head, copied to a slot of the link's own.
    head: Payload,
    /// The body, of which the link owns a share.
    body: Payload,
}

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    /// The guest has no buffers for it now.
    Wait,
    /// It has none that are large enough.
    TooBig,
    /// The device is not running.
    Down,
}

impl VhostUserLink {
    pub(super) fn drop_held(&mut self, slots: &mut Slots, why: TxError) {
        for h in self.held.drain(..) {
            slots.give(h.head.slot);
            slots.give(h.body.slot);
            self.stats.refused(why);
        }
    }

    /// Gives the guest a frame, if it has buffers.
    fn deliver(&mut self, header: [u8; HEADER], head: &[u8], body: &[u8]) -> Fate {
        if !self.device.ready(TO_GUEST) || !self.device.rings[TO_GUEST].is_enabled() {
            return Fate::Down;
        }
        match self.try_deliver(header, head, body) {
            Ok(fate) => fate,
            Err(e) => {
                self.broken(TO_GUEST, e);
                Fate::Down
            }
        }
    }

    fn try_deliver(&mut self, mut header: [u8; HEADER], head: &[u8], body: &[u8]) -> Result<Fate, Broken> {
        let header_len = self.device.header_len();
        let mergeable = self.device.has(feature::MRG_RXBUF);
        let Device { memory, rings: [ring, _], .. } = &mut self.device;
        let rings = ring.queue.rings(memory)?;
        let total = header_len + head.len() + body.len();
        self.segments.clear();
        self.chains.clear();
        let mut room = 0;
        while room < total {
            let start = self.segments.len();
            let Some(chain) = ring.queue.take(&rings, &mut self.segments)? else {
                let all = self.chains.len() == usize::from(ring.queue.size);
                self.too_few = self.chains.len() as u16;
                ring.queue.untake(self.too_few);
                return Ok(if all { Fate::TooBig } else { Fate::Wait });
            };
            let segments = &self.segments[start..];
            let len = segments.iter().map(|s| s.len as usize).sum::<usize>();
            if !chain.good || segments.iter().any(|s| !s.writable) {
                return Err(Broken::BadBuffer);
            }
            room += len;
            self.chains.push((chain.head, len as u32));
            if room < total && !mergeable {
                ring.queue.untake(1);
                return Ok(Fate::TooBig);
            }
        }
        header[vnet::LEN..].copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
        let mut at = Cursor { segments: &self.segments, skip: 0 };
        for part in [&header[..header_len], head, body] {
            if !at.write(memory, part) {
                return Err(Broken::BadBuffer);
            }
        }
        let mut left = total;
        for &(head, len) in &self.chains {
            let used = left.min(len as usize);
            ring.queue.give(&rings, head, used as u32)?;
            left -= used;
        }
        ring.queue.publish(&rings)?;
        self.stats.sent(head.len() + body.len());
        self.untold += 1;
        Ok(Fate::Taken)
    }

    /// Keeps a frame until the guest has buffers.
    fn hold(&mut self, slots: &mut Slots, header: [u8; HEADER], frame: &TxFrame<'_>) -> Result<(), TxError> {
        if self.held.len() == HELD {
            return Err(TxError::Full);
        }
        let slot = slots.take().ok_or(TxError::Full)?;
        let room = slots.slot_mut(slot);
        if frame.head.len() > room.len() {
            slots.give(slot);
            return Err(TxError::TooBig);
        }
        room[..frame.head.len()].copy_from_slice(frame.head);
        let head = Payload { slot, offset: 0, len: frame.head.len() as u32 };
        // A second owner; the caller's share is released like that of a frame that is gone.
        slots.hold(frame.body.slot);
        self.held.push_back(Held { header, head, body: frame.body });
        Ok(())
    }

    /// Gives the guest what waits, as far as it has buffers.
    pub(super) fn deliver_held(&mut self, slots: &mut Slots) {
        while let Some(&h) = self.held.front() {
            match self.deliver(h.header, slots.bytes(h.head), slots.bytes(h.body)) {
                Fate::Taken => {}
                Fate::Wait if self.want_buffers() => continue,
                Fate::Wait => return,
                Fate::TooBig => {
                    self.stats.refused(TxError::TooBig);
                }
                Fate::Down => return self.drop_held(slots, TxError::Down),
            }
            slots.give(h.head.slot);
            slots.give(h.body.slot);
            self.held.pop_front();
            if self.untold >= TELL_AFTER {
                self.tell(TO_GUEST);
            }
        }
        self.refuse_kicks();
    }

    /// Asks the guest to say when it has more buffers than were too few. True if it has by now.
    fn want_buffers(&mut self) -> bool {
        let known = self.too_few;
        let ring = &mut self.device.rings[TO_GUEST];
        let came = ring.queue.rings(&self.device.memory).and_then(|r| ring.queue.want_kicks(&r, known));
        ring.wants_kicks = true;
        came.unwrap_or_else(|e| {
            self.broken(TO_GUEST, e);
            false
        })
    }

    /// New buffers for frames to the guest are no news while none waits.
    fn refuse_kicks(&mut self) {
        let ring = &mut self.device.rings[TO_GUEST];
        if std::mem::take(&mut ring.wants_kicks) {
            let refused = ring.queue.rings(&self.device.memory).and_then(|r| ring.queue.refuse_kicks(&r));
            if let Err(e) = refused {
                self.broken(TO_GUEST, e);
            }
        }
    }

    /// The header for a frame, as far as the guest can take what it says.
    fn header(&self, frame: &TxFrame<'_>) -> Result<[u8; HEADER], TxError> {
        let info = self.info();
        check_size(&info, frame)?;
        let carried = match frame.gso.map(|g| g.kind) {
            None => true,
            Some(GsoKind::Tcp4) => info.tso.carries(false),
            Some(GsoKind::Tcp6) => info.tso.carries(true),
            Some(GsoKind::Udp) => info.uso,
        };
        if !carried || frame.checksum.is_some() && !info.checksum {
            return Err(TxError::TooBig);
        }
        let mut header = [0; HEADER];
        header[..vnet::LEN].copy_from_slice(&vnet::encode(frame)?);
        if !self.device.has(feature::GUEST_ECN) {
            header[1] &= !vnet::GSO_ECN;
        }
        Ok(header)
    }

    pub(super) fn send_frame(&mut self, slots: &mut Slots, frame: &TxFrame<'_>) -> Result<(), TxError> {
        if self.stopped || self.session.is_none() && !self.in_process {
            return Err(TxError::Down);
        }
        let header = self.header(frame)?;
        if !self.held.is_empty() {
            return self.hold(slots, header, frame);
        }
        match self.deliver(header, frame.head, slots.bytes(frame.body)) {
            Fate::Taken => {
                if self.untold >= TELL_AFTER {
                    self.tell(TO_GUEST);
                }
                Ok(())
            }
            Fate::Wait => {
                self.hold(slots, header, frame)?;
                if self.want_buffers() {
                    self.deliver_held(slots);
                }
                Ok(())
            }
            Fate::TooBig => Err(TxError::TooBig),
            Fate::Down => Err(TxError::Down),
        }
    }
}

/// Where the next bytes of a frame go.
struct Cursor<'s> {
    segments: &'s [Segment],
    /// Bytes of the first segment that are written.
    skip: u32,
}

impl Cursor<'_> {
    /// Writes to the next of the buffers; false if they are not in the guest's memory.
    fn write(&mut self, memory: &Memory, mut bytes: &[u8]) -> bool {
        while let (Some(s), false) = (self.segments.first(), bytes.is_empty()) {
            let n = bytes.len().min((s.len - self.skip) as usize);
            if !memory.write(s.addr.wrapping_add(self.skip.into()), &bytes[..n]) {
                return false;
            }
            bytes = &bytes[n..];
            self.skip += n as u32;
            if self.skip == s.len {
                (self.segments, self.skip) = (&self.segments[1..], 0);
            }
        }
        true
    }
}
