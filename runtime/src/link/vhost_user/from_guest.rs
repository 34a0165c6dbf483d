//! Frames from the guest.

use super::VhostUserLink;
use super::device::{Device, FROM_GUEST};
use super::memory::Memory;
use super::queue::{Broken, Chain, Segment};
use crate::link::vnet::{self, BadHeader};
use crate::link::{BATCH, LinkStats, MAX_FRAME, Received, RxBatch};
use crate::slots::{SLOT_SIZE, Slots};
use hibernet_netstack::edge::Payload;
use hibernet_netstack::wire::ethernet;

impl VhostUserLink {
    /// Takes frames out of the guest's queue.
    pub(super) fn take_frames(&mut self, slots: &mut Slots, out: &mut RxBatch) {
        if !self.device.ready(FROM_GUEST) {
            return;
        }
        match self.try_take_frames(slots, out) {
            Ok(0) => {}
            Ok(_) => self.tell(FROM_GUEST),
            Err(e) => self.broken(FROM_GUEST, e),
        }
    }

    fn try_take_frames(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<usize, Broken> {
        let header_len = self.device.header_len();
        let Device { memory, rings: [_, ring], .. } = &mut self.device;
        let rings = ring.queue.rings(memory)?;
        let mut taken = 0;
        loop {
            // Counted by buffers, not by frames: those that are no good must not keep us here.
            if taken == BATCH || out.room() == 0 {
                if !std::mem::replace(&mut self.more_set, true) {
                    self.more.signal();
                }
                return Ok(taken);
            }
            self.segments.clear();
            let Some(chain) = ring.queue.take(&rings, &mut self.segments)? else {
                if ring.wants_kicks {
                    return Ok(taken);
                }
                ring.wants_kicks = true;
                if ring.queue.want_kicks(&rings, 0)? {
                    continue;
                }
                return Ok(taken);
            };
            if std::mem::take(&mut ring.wants_kicks) {
                ring.queue.refuse_kicks(&rings)?;
            }
            taken += 1;
            if ring.is_enabled()
                && let Some(r) = read_frame(memory, chain, &self.segments, header_len, slots, &mut self.stats)
                && let Err(r) = out.push(r)
            {
                slots.give(r.slot);
            }
            ring.queue.give(&rings, chain.head, 0)?;
        }
    }
}

/// Copies a frame out of the guest's buffer. What it is not is counted.
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
