//! Frames to the guest.

use super::VhostUserLink;
use super::device::{Common, Device, TO_GUEST};
use super::memory::Memory;
use super::message::feature;
use super::pair::Pair;
use super::queue::{Broken, Segment};
use crate::link::{Link, check_size, vnet};
use crate::slots::Slots;
use hibernet_netstack::edge::{GsoKind, Payload, TxError, TxFrame};
use hibernet_netstack::wire::flow;

/// Most frames that wait for buffers of the guest's, in all pairs of queues.
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

impl Pair {
    pub(super) fn drop_held(&mut self, slots: &mut Slots, why: TxError) {
        for h in self.held.drain(..) {
            slots.give(h.head.slot);
            slots.give(h.body.slot);
            self.stats.refused(why);
        }
    }

    /// Gives the guest a frame, if it has buffers.
    fn deliver(&mut self, common: &Common, header: [u8; HEADER], head: &[u8], body: &[u8]) -> Fate {
        if !self.rings[TO_GUEST].ready(&common.memory) || !self.rings[TO_GUEST].enabled {
            return Fate::Down;
        }
        match self.try_deliver(common, header, head, body) {
            Ok(fate) => fate,
            Err(e) => {
                self.rings[TO_GUEST].break_off(e);
                Fate::Down
            }
        }
    }

    fn try_deliver(&mut self, common: &Common, mut header: [u8; HEADER], head: &[u8], body: &[u8]) -> Result<Fate, Broken> {
        let header_len = common.header_len();
        let mergeable = common.has(feature::MRG_RXBUF);
        let memory = &common.memory;
        let ring = &mut self.rings[TO_GUEST];
        let rings = ring.queue.rings(memory)?;
        let total = header_len + head.len() + body.len();
        self.segments.clear();
        self.chains.clear();
        let mut room = 0;
        let mark = ring.queue.mark();
        while room < total {
            let start = self.segments.len();
            let Some(chain) = ring.queue.take(&rings, &mut self.segments)? else {
                let all = self.chains.len() == usize::from(ring.queue.size);
                self.too_few = self.chains.len() as u16;
                ring.queue.untake(mark, self.chains.iter().map(|c| c.0));
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
                ring.queue.untake(mark, self.chains.iter().map(|c| c.0));
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

    /// Keeps a frame until the guest has buffers, unless `most` are kept.
    fn hold(&mut self, slots: &mut Slots, header: [u8; HEADER], frame: &TxFrame<'_>, most: usize) -> Result<(), TxError> {
        if self.held.len() >= most {
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
    pub(super) fn deliver_held(&mut self, common: &Common, slots: &mut Slots) {
        while let Some(&h) = self.held.front() {
            match self.deliver(common, h.header, slots.bytes(h.head), slots.bytes(h.body)) {
                Fate::Taken => {}
                Fate::Wait if self.want_buffers(common) => continue,
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
                self.tell_given(common);
            }
        }
        self.refuse_kicks(common);
    }

    /// Asks the guest to say when it has more buffers than were too few. True if it has by now.
    fn want_buffers(&mut self, common: &Common) -> bool {
        let known = self.too_few;
        let ring = &mut self.rings[TO_GUEST];
        let came = ring.queue.rings(&common.memory).and_then(|r| ring.queue.want_kicks(&r, known));
        ring.wants_kicks = true;
        came.unwrap_or_else(|e| {
            ring.break_off(e);
            false
        })
    }

    /// New buffers for frames to the guest are no news while none waits.
    fn refuse_kicks(&mut self, common: &Common) {
        let ring = &mut self.rings[TO_GUEST];
        if std::mem::take(&mut ring.wants_kicks) {
            let refused = ring.queue.rings(&common.memory).and_then(|r| ring.queue.refuse_kicks(&r));
            if let Err(e) = refused {
                ring.break_off(e);
            }
        }
    }

    /// Gives the guest a frame, or keeps it until it has buffers, unless `most` are kept.
    fn send(
        &mut self,
        common: &Common,
        slots: &mut Slots,
        header: [u8; HEADER],
        frame: &TxFrame<'_>,
        most: usize,
    ) -> Result<(), TxError> {
        if !self.held.is_empty() {
            return self.hold(slots, header, frame, most);
        }
        match self.deliver(common, header, frame.head, slots.bytes(frame.body)) {
            Fate::Taken => {
                if self.untold >= TELL_AFTER {
                    self.tell_given(common);
                }
                Ok(())
            }
            Fate::Wait => {
                self.hold(slots, header, frame, most)?;
                if self.want_buffers(common) {
                    self.deliver_held(common, slots);
                }
                Ok(())
            }
            Fate::TooBig => Err(TxError::TooBig),
            Fate::Down => Err(TxError::Down),
        }
    }
}

impl VhostUserLink {
    /// How many frames may wait in each pair.
    pub(super) fn most_held(&self) -> usize {
        HELD / self.device.pairs.len()
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
        if !self.device.common.has(feature::GUEST_ECN) {
            header[1] &= !vnet::GSO_ECN;
        }
        Ok(header)
    }

    pub(super) fn send_frame(&mut self, slots: &mut Slots, frame: &TxFrame<'_>) -> Result<(), TxError> {
        if self.stopped || self.session.is_none() && !self.in_process {
            return Err(TxError::Down);
        }
        let header = self.header(frame)?;
        let most = self.most_held();
        let Device { common, pairs, .. } = &mut self.device;
        let chosen = match (&common.steering, &self.receiving[..]) {
            (_, [only]) => Some(usize::from(*only)),
            (Some(s), several) => s.choose(flow::hash(frame.head), several),
            (None, _) => None,
        };
        pairs[chosen.ok_or(TxError::Down)?].send(common, slots, header, frame, most)
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
