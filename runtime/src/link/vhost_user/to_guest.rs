//! Frames to the guest.
//!
//! A frame's buffers are taken, written to, and given back in one go; if it comes to nothing, they are made available again. The body may be written by the
//! kernel ([`Unread`]): straight into the guest's memory, where nobody here looks at it.

use super::device::{Common, TO_GUEST};
use super::memory::Memory;
use super::message::feature;
use super::pair::Pair;
use super::queue::{Broken, Segment};
use super::share::{Share, lock};
use crate::link::{Unread, check_size, vnet};
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
    /// The kernel has not copied the body.
    NotRead,
}

/// What follows a frame's head.
enum Body<'b> {
    Bytes(&'b [u8]),
    Unread(&'b mut dyn Unread),
}

impl Body<'_> {
    fn len(&self) -> usize {
        match self {
            Body::Bytes(b) => b.len(),
            Body::Unread(u) => u.len(),
        }
    }
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
    fn deliver(&mut self, common: &Common, header: [u8; HEADER], head: &[u8], body: Body<'_>) -> Fate {
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

    fn try_deliver(&mut self, common: &Common, mut header: [u8; HEADER], head: &[u8], body: Body<'_>) -> Result<Fate, Broken> {
        let header_len = common.header_len();
        let mergeable = common.has(feature::MRG_RXBUF);
        let memory = &common.memory;
        let ring = &mut self.rings[TO_GUEST];
        let rings = ring.queue.rings(memory)?;
        let len = head.len() + body.len();
        let total = header_len + len;
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
        if !at.write(memory, &header[..header_len]) || !at.write(memory, head) {
            return Err(Broken::BadBuffer);
        }
        let read = match body {
            Body::Bytes(bytes) if !at.write(memory, bytes) => return Err(Broken::BadBuffer),
            Body::Bytes(_) => true,
            Body::Unread(unread) => at.fill(memory, unread)?,
        };
        if !read {
            ring.queue.untake(mark, self.chains.iter().map(|c| c.0));
            return Ok(Fate::NotRead);
        }
        let mut left = total;
        for &(head, len) in &self.chains {
            let used = left.min(len as usize);
            ring.queue.give(&rings, head, used as u32)?;
            left -= used;
        }
        ring.queue.publish(&rings)?;
        self.stats.sent(len);
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
            match self.deliver(common, h.header, slots.bytes(h.head), Body::Bytes(slots.bytes(h.body))) {
                Fate::Taken => {}
                Fate::Wait if self.want_buffers(common) => continue,
                Fate::Wait | Fate::NotRead => return,
                Fate::TooBig => {
                    self.stats.refused(TxError::TooBig);
                }
                Fate::Down => return self.drop_held(slots, TxError::Down),
            }
            slots.give(h.head.slot);
            slots.give(h.body.slot);
            self.held.pop_front();
            self.tell_at_times(common);
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
        match self.deliver(common, header, frame.head, Body::Bytes(slots.bytes(frame.body))) {
            Fate::Taken => {
                self.tell_at_times(common);
                Ok(())
            }
            Fate::Wait | Fate::NotRead => {
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

    /// As [`Pair::send`], of a frame whose body is still to be read: into the guest's buffers, else, if there are none, into a slot.
    fn send_unread(
        &mut self,
        common: &Common,
        slots: &mut Slots,
        header: [u8; HEADER],
        (frame, body): (&TxFrame<'_>, &mut dyn Unread),
        most: usize,
    ) -> Result<(), TxError> {
        let fate = if self.held.is_empty() { self.deliver(common, header, frame.head, Body::Unread(body)) } else { Fate::Wait };
        match fate {
            Fate::Taken => {
                self.tell_at_times(common);
                Ok(())
            }
            Fate::Wait | Fate::NotRead => {
                let body = body.to_slot(slots).ok_or(TxError::Full)?;
                let sent = self.send(common, slots, header, &TxFrame { body, keep_body: false, ..*frame }, most);
                slots.give(body.slot);
                sent
            }
            Fate::TooBig => Err(TxError::TooBig),
            Fate::Down => Err(TxError::Down),
        }
    }

    /// Gives the guest a frame of somebody else's, who comes back if it has no buffers.
    fn send_at_once(&mut self, common: &Common, header: [u8; HEADER], head: &[u8], body: Body<'_>) -> Result<(), TxError> {
        let fate = if self.held.is_empty() { self.deliver(common, header, head, body) } else { Fate::Wait };
        match fate {
            Fate::Taken => {
                self.tell_given(common);
                Ok(())
            }
            Fate::Wait | Fate::NotRead => Err(TxError::Full),
            Fate::TooBig => Err(TxError::TooBig),
            Fate::Down => Err(TxError::Down),
        }
    }

    fn tell_at_times(&mut self, common: &Common) {
        if self.untold >= TELL_AFTER {
            self.tell_given(common);
        }
    }
}

impl Share {
    /// The header for a frame, as far as the guest can take what it says.
    fn header(&self, frame: &TxFrame<'_>) -> Result<[u8; HEADER], TxError> {
        let info = &self.info;
        check_size(info, frame)?;
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
        if !self.common.has(feature::GUEST_ECN) {
            header[1] &= !vnet::GSO_ECN;
        }
        Ok(header)
    }

    /// `unread`: the body, where it is still to be read.
    pub(super) fn send_frame(
        &mut self,
        slots: &mut Slots,
        frame: &TxFrame<'_>,
        unread: Option<&mut dyn Unread>,
    ) -> Result<(), TxError> {
        let Some(chosen) = self.choose(frame.head) else { return self.send_elsewhere(slots, frame, unread) };
        let (header, most) = (self.header(frame)?, self.most_held);
        let Share { common, pairs, .. } = self;
        let pair = &mut pairs[chosen];
        match unread {
            None => pair.send(common, slots, header, frame, most),
            Some(body) => pair.send_unread(common, slots, header, (frame, body), most),
        }
    }

    /// The place of the pair by which a frame goes to the guest; none if it receives by none of these.
    fn choose(&self, head: &[u8]) -> Option<usize> {
        let number = match (&self.common.steering, &self.receiving[..]) {
            (_, [only]) => Some(usize::from(*only)),
            (Some(s), several) => s.choose(flow::hash(head), several),
            (None, _) => None,
        };
        number.map(|n| n / self.of)
    }

    /// Sends by a pair of another share's. It waits nowhere: slots are this one's.
    fn send_elsewhere(&self, slots: &Slots, frame: &TxFrame<'_>, unread: Option<&mut dyn Unread>) -> Result<(), TxError> {
        let mut other = lock(self.elsewhere.as_deref().ok_or(TxError::Down)?);
        let chosen = other.choose(frame.head).ok_or(TxError::Down)?;
        let header = other.header(frame)?;
        let Share { common, pairs, .. } = &mut *other;
        let body = match unread {
            Some(unread) => Body::Unread(unread),
            None => Body::Bytes(slots.bytes(frame.body)),
        };
        pairs[chosen].send_at_once(common, header, frame.head, body)
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

    /// Where the next `len` bytes go, and how many go there.
    fn pieces(&self, len: usize) -> impl Iterator<Item = (u64, usize)> {
        let (mut skip, mut left) = (self.skip, len);
        let piece = move |s: &Segment| {
            let (at, room) = (s.addr.wrapping_add(skip.into()), (s.len - skip) as usize);
            let n = room.min(left);
            (skip, left) = (0, left - n);
            (at, n)
        };
        self.segments.iter().map(piece).filter(|(_, n)| *n > 0)
    }

    /// Has the kernel write what follows to the next of the buffers; whether it did.
    ///
    /// # Errors
    /// [`Broken::BadBuffer`] if they are not in the guest's memory.
    fn fill(&self, memory: &Memory, body: &mut dyn Unread) -> Result<bool, Broken> {
        let mut missing = false;
        let places = self.pieces(body.len()).flat_map(|(at, n)| memory.slices(at, n));
        let read = body.read_to(&mut places.inspect(|p| missing |= p.is_none()).map_while(|p| p));
        self.pieces(body.len()).for_each(|(at, n)| memory.mark(at, n));
        if missing { Err(Broken::BadBuffer) } else { Ok(read.is_ok()) }
    }
}
