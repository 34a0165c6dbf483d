//! Frames from the guest.

use super::device::{Common, FROM_GUEST};
use super::memory::Memory;
use super::pair::Pair;
use super::queue::{Broken, Chain, Segment};
use super::share::Share;
use crate::lent::is_lent;
use crate::link::vnet::{self, BadHeader};
use crate::link::{BATCH, LinkStats, MAX_FRAME, Received, RxBatch};
use crate::slots::{SLOT_SIZE, Slots};
use hibernet_netstack::edge::{GsoKind, HEAD_MAX, Payload, RxChecksum};
use hibernet_netstack::wire::{ethernet, flow};

/// Frames from this length on are lent where the guest has them: what it costs to copy a shorter one is less than what it costs to keep its buffer.
const LENT: usize = 8 * 1024;

impl Share {
    /// Gives the guest back what was lent. To be called while nobody deals with frames, and before anything becomes of rings or memory.
    pub(super) fn end_lent(&mut self, slots: &mut Slots) {
        let Share { common, pairs, .. } = self;
        for p in pairs {
            if p.rings[FROM_GUEST].end_lent(&common.memory, slots) {
                p.tell_taken(common);
            }
        }
    }

    /// Comes back to queues that were not found empty, of which no kick tells; and to a loss of memory.
    pub(super) fn come_back(&mut self) {
        let unsure = |p: &Pair| p.rings[FROM_GUEST].is_running() && !p.rings[FROM_GUEST].wants_kicks;
        if self.pairs.iter().any(unsure) || self.has_lost_memory() {
            self.look_again();
        }
    }

    /// Has the link's descriptor readable, so that queues are looked at again.
    pub(super) fn look_again(&mut self) {
        if !std::mem::replace(&mut self.more_set, true) {
            self.more.signal();
        }
    }

    /// Takes frames out of the guest's queues, of a pair after the other, each time beginning with another one.
    pub(super) fn take_frames(&mut self, slots: &mut Slots, out: &mut RxBatch) {
        let Share { common, pairs, next_pair, .. } = self;
        let count = pairs.len();
        let mut left = false;
        for n in (*next_pair..count).chain(0..*next_pair) {
            left |= pairs[n].take_frames(common, slots, out);
        }
        *next_pair = (*next_pair + 1) % count.max(1);
        if left {
            self.look_again();
        }
    }
}

impl Pair {
    /// Takes frames out of the guest's queue. Whether some may be left of which no kick will tell.
    fn take_frames(&mut self, common: &Common, slots: &mut Slots, out: &mut RxBatch) -> bool {
        if !self.rings[FROM_GUEST].ready(&common.memory) {
            return false;
        }
        match self.try_take_frames(common, slots, out) {
            Ok((taken, left)) => {
                // While something is lent the guest hears of all at once, afterwards.
                if taken > 0 && self.rings[FROM_GUEST].lent.is_empty() {
                    self.tell_taken(common);
                }
                left
            }
            Err(e) => {
                self.rings[FROM_GUEST].break_off(e);
                false
            }
        }
    }

    /// How many buffers were taken, and whether there may be more.
    fn try_take_frames(&mut self, common: &Common, slots: &mut Slots, out: &mut RxBatch) -> Result<(usize, bool), Broken> {
        let header_len = common.header_len();
        let Common { memory, steering, .. } = common;
        let ring = &mut self.rings[FROM_GUEST];
        let rings = ring.queue.rings(memory)?;
        let mut taken = 0;
        // The guest keeps half of its descriptors to go on with.
        let (mut lent, most) = (0, usize::from(ring.queue.size / 2).max(1));
        loop {
            // Counted by buffers, not by frames: those that are no good must not keep us here.
            if taken == BATCH || out.room() == 0 || lent >= most {
                return Ok((taken, true));
            }
            self.segments.clear();
            let Some(chain) = ring.queue.take(&rings, &mut self.segments)? else {
                // Kicks are for when there is nothing to do; whoever has got frames comes again.
                if ring.wants_kicks || taken > 0 {
                    return Ok((taken, false));
                }
                ring.wants_kicks = true;
                if ring.queue.want_kicks(&rings, 0)? {
                    continue;
                }
                return Ok((taken, false));
            };
            if std::mem::take(&mut ring.wants_kicks) {
                ring.queue.refuse_kicks(&rings)?;
            }
            taken += 1;
            let mut slot = Payload::NO_SLOT;
            if ring.enabled
                && let Some(r) = read_frame(memory, chain, &self.segments, header_len, slots, &mut self.stats)
            {
                if let Some(s) = steering {
                    let mut head = [0; HEAD_MAX];
                    let n = slots.read(r.frame, &mut head);
                    s.learn(flow::hash(&head[..n]), self.number);
                }
                slot = r.slot;
                // There was room.
                let _ = out.push(r);
            }
            if is_lent(slot) || !ring.lent.is_empty() {
                ring.lent.push((chain.head, slot));
                lent += if ring.queue.indirect { 1 } else { self.segments.len() };
                continue;
            }
            ring.queue.give(&rings, chain.head, 0)?;
        }
    }
}

/// A frame: lent if it is long, else copied out of the guest's buffer. What it is not is counted.
fn read_frame(
    memory: &Memory,
    chain: Chain,
    segments: &[Segment],
    header_len: usize,
    slots: &mut Slots,
    stats: &mut LinkStats,
) -> Option<Received> {
    let readable = || segments.iter().take_while(|s| !s.writable);
    let total = readable().map(|s| s.len as usize).sum::<usize>();
    let len = total.saturating_sub(header_len);
    if !chain.good {
        stats.rx_bad_header += 1;
        return None;
    }
    if len < ethernet::HEADER_LEN {
        stats.rx_too_short += 1;
        return None;
    }
    if len > MAX_FRAME || total > SLOT_SIZE {
        stats.rx_too_long += 1;
        return None;
    }
    if total >= LENT
        && let Some(r) = lend_frame(memory, readable(), header_len, len, slots)
    {
        stats.received(len);
        return Some(r);
    }
    let Some(slot) = slots.take() else {
        stats.rx_no_slot += 1;
        return None;
    };
    let bytes = &mut slots.slot_mut(slot)[..total];
    let mut at = 0;
    let mut whole = true;
    for s in readable() {
        let end = at + s.len as usize;
        whole &= memory.read(s.addr, &mut bytes[at..end]);
        at = end;
    }
    let known = bytes.first_chunk().filter(|_| whole).ok_or(BadHeader).and_then(|h| vnet::decode(h, len));
    match known {
        Ok((checksum, gso)) => {
            stats.received(len);
            let frame = Payload { slot, offset: header_len as u32, len: len as u32 };
            Some(Received { slot, frame, checksum, gso })
        }
        Err(BadHeader) => {
            stats.rx_bad_header += 1;
            slots.give(slot);
            None
        }
    }
}

/// A frame that stays where it is. None if it cannot, or would be copied anyway: to be summed or to be cut into datagrams.
fn lend_frame<'s>(
    memory: &Memory,
    pieces: impl Iterator<Item = &'s Segment>,
    header_len: usize,
    len: usize,
    slots: &mut Slots,
) -> Option<Received> {
    let slot = slots.lend(memory.regions(), pieces.map(|s| (s.addr, s.len)))?;
    let mut header = [0; vnet::LEN];
    slots.read(Payload { slot, offset: 0, len: vnet::LEN as u32 }, &mut header);
    match vnet::decode(&header, len) {
        Ok((checksum @ RxChecksum::Trusted, gso)) if gso.is_none_or(|g| g.kind != GsoKind::Udp) => {
            let frame = Payload { slot, offset: header_len as u32, len: len as u32 };
            Some(Received { slot, frame, checksum, gso })
        }
        _ => {
            slots.end_lent(slot);
            None
        }
    }
}
