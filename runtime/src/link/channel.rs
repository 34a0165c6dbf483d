//! A link without a kernel: frames pass between the worker and a program in the same process.
//!
//! An embedder holds the [`ChannelEnd`], which stands for the guest: it injects frames and takes those that the stack
//! sends. Both directions are bounded queues; what does not fit is refused and counted, never waited for. Buffers go round,
//! so that nothing is allocated once the queues have warmed up.

use super::{Link, LinkError, LinkStats, MAX_FRAME, Received, RxBatch, check_size, release};
use crate::slots::Slots;
use crate::sys::event::Event;
use crossbeam_queue::ArrayQueue;
use hibernet_netstack::edge::{Gso, LinkInfo, Payload, RxChecksum, TxChecksum, TxError, TxFrame};
use hibernet_netstack::wire::checksum::Sum;
use hibernet_netstack::wire::ethernet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A frame on its way to the stack.
#[derive(Debug)]
struct Inbound {
    bytes: Vec<u8>,
    checksum: RxChecksum,
    gso: Option<Gso>,
}

/// A frame that the stack sent to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The frame, from its Ethernet header on.
    pub bytes: Vec<u8>,
    /// The transport checksum to be completed; only if the link's capabilities say `checksum`.
    pub checksum: Option<TxChecksum>,
    /// Segmentation to be done; only if the link's capabilities say `tso` or `uso`.
    pub gso: Option<Gso>,
}

impl Outbound {
    /// Completes the transport checksum in place. For receivers of frames that are no super-segments.
    pub fn complete_checksum(&mut self) {
        let Some(c) = self.checksum.take() else { return };
        let (start, at) = (usize::from(c.start), usize::from(c.start) + usize::from(c.offset));
        if start <= at && at + 2 <= self.bytes.len() {
            // The field holds the sum over the pseudo-header and takes part. Zero would mean "none" to UDP, and is the same number.
            let sum = match Sum::default().bytes(&self.bytes[start..]).finish() {
                0 => 0xffff,
                sum => sum,
            };
            self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// Why a frame could not be injected. The buffer comes back.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The worker has not kept up.
    #[error("the link's queue is full")]
    Full(Vec<u8>),
    /// No IP packet can be that long.
    #[error("a frame of {} bytes is longer than a link can carry", .0.len())]
    TooLong(Vec<u8>),
    /// The link was stopped or dropped.
    #[error("the link is gone")]
    Closed(Vec<u8>),
}

#[derive(Debug)]
struct Shared {
    inbound: ArrayQueue<Inbound>,
    outbound: ArrayQueue<Outbound>,
    /// Buffers for frames in either direction.
    spare: ArrayQueue<Vec<u8>>,
    /// Frames wait for the stack, or the end is gone.
    inbound_event: Event,
    /// Frames wait for the end, or the link is gone.
    outbound_event: Event,
    /// One of the two sides is gone.
    closed: AtomicBool,
}

impl Shared {
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.inbound_event.signal();
        self.outbound_event.signal();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn buffer(&self) -> Vec<u8> {
        let mut b = self.spare.pop().unwrap_or_default();
        b.clear();
        b
    }

    fn recycle(&self, b: Vec<u8>) {
        // When there are spare ones enough it is freed.
        let _ = self.spare.push(b);
    }
}

/// Makes a link with the given capabilities, and its other end. Up to `depth` frames (at least one) wait in each direction.
pub fn channel(info: LinkInfo, depth: usize) -> io::Result<(ChannelLink, ChannelEnd)> {
    let depth = depth.max(1);
    let shared = Arc::new(Shared {
        inbound: ArrayQueue::new(depth),
        outbound: ArrayQueue::new(depth),
        spare: ArrayQueue::new(depth),
        inbound_event: Event::new()?,
        outbound_event: Event::new()?,
        closed: AtomicBool::new(false),
    });
    let link = ChannelLink { shared: Arc::clone(&shared), info, stats: LinkStats::default(), unannounced: false };
    Ok((link, ChannelEnd { shared }))
}

/// The worker's side of a channel.
#[derive(Debug)]
pub struct ChannelLink {
    shared: Arc<Shared>,
    info: LinkInfo,
    stats: LinkStats,
    /// Frames were queued since the other end was last told.
    unannounced: bool,
}

/// The guest's side of a channel. May be used from any thread; dropping it closes the link.
#[derive(Debug)]
pub struct ChannelEnd {
    shared: Arc<Shared>,
}

impl ChannelEnd {
    /// Hands a frame, from its Ethernet header on, to the stack. `checksum` and `gso` say what is known of it and what was left undone,
    /// as a virtio-net header would.
    pub fn inject(&self, bytes: Vec<u8>, checksum: RxChecksum, gso: Option<Gso>) -> Result<(), InjectError> {
        if self.shared.is_closed() {
            return Err(InjectError::Closed(bytes));
        }
        if bytes.len() > MAX_FRAME {
            return Err(InjectError::TooLong(bytes));
        }
        self.shared.inbound.push(Inbound { bytes, checksum, gso }).map_err(|f| InjectError::Full(f.bytes))?;
        self.shared.inbound_event.signal();
        Ok(())
    }

    /// An empty buffer to inject, if possible one that was used before.
    pub fn buffer(&self) -> Vec<u8> {
        self.shared.buffer()
    }

    /// Gives the buffer of a frame that was taken back for use by others.
    pub fn recycle(&self, buffer: Vec<u8>) {
        self.shared.recycle(buffer);
    }

    /// The next frame that the stack sent; `None` if there is none now. After `None`, [`ChannelEnd::fd`] becomes readable when there is one.
    pub fn take(&self) -> Option<Outbound> {
        let shared = &*self.shared;
        shared.outbound.pop().or_else(|| {
            shared.outbound_event.clear();
            // What happened just before the event was cleared has no event any more.
            let frame = shared.outbound.pop();
            if frame.is_some() || shared.is_closed() {
                shared.outbound_event.signal();
            }
            frame
        })
    }

    /// Whether the worker's side is gone. Frames that it sent before can still be taken.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Readable while frames can be taken, and for ever after the end. Level-triggered.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.outbound_event.as_fd()
    }
}

impl Drop for ChannelEnd {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Drop for ChannelLink {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl ChannelLink {
    /// Copies a frame to a slot.
    fn accept(&mut self, slots: &mut Slots, f: &Inbound) -> Option<Received> {
        if f.bytes.len() < ethernet::HEADER_LEN {
            self.stats.rx_too_short += 1;
            return None;
        }
        if f.gso.is_some_and(|g| g.size == 0) {
            self.stats.rx_bad_header += 1;
            return None;
        }
        let Some(slot) = slots.take() else {
            self.stats.rx_no_slot += 1;
            return None;
        };
        slots.slot_mut(slot)[..f.bytes.len()].copy_from_slice(&f.bytes);
        self.stats.received(f.bytes.len());
        let frame = Payload { slot, offset: 0, len: f.bytes.len() as u32 };
        Some(Received { slot, frame, checksum: f.checksum, gso: f.gso })
    }

    fn queue(&mut self, slots: &Slots, frame: &TxFrame<'_>) -> Result<usize, TxError> {
        if self.shared.is_closed() {
            return Err(TxError::Down);
        }
        check_size(&self.info, frame)?;
        if self.shared.outbound.is_full() {
            return Err(TxError::Full);
        }
        let mut bytes = self.shared.buffer();
        bytes.extend_from_slice(frame.head);
        bytes.extend_from_slice(slots.bytes(frame.body));
        let len = bytes.len();
        // There is room: nobody else adds frames.
        self.shared.outbound.push(Outbound { bytes, checksum: frame.checksum, gso: frame.gso }).map_err(|_| TxError::Full)?;
        self.unannounced = true;
        Ok(len)
    }
}

impl Link for ChannelLink {
    fn info(&self) -> LinkInfo {
        self.info
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.shared.inbound_event.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        let closed = self.shared.is_closed();
        self.shared.inbound_event.clear();
        let mut any = false;
        for _ in 0..out.room() {
            let Some(f) = self.shared.inbound.pop() else { break };
            any = true;
            if let Some(r) = self.accept(slots, &f) {
                // There is room: the loop is bounded by it.
                let _ = out.push(r).map_err(|r| slots.give(r.slot));
            }
            self.shared.recycle(f.bytes);
        }
        // What happened just before the event was cleared, or does not fit into this batch, needs it again.
        if self.shared.is_closed() || !self.shared.inbound.is_empty() {
            self.shared.inbound_event.signal();
        }
        // What was injected before the end is delivered first.
        if closed && !any && out.room() > 0 { Err(LinkError::Closed) } else { Ok(()) }
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        let queued = self.queue(slots, &frame);
        release(slots, &frame);
        match queued {
            Ok(len) => {
                self.stats.sent(len);
                Ok(())
            }
            Err(e) => Err(self.stats.refused(e)),
        }
    }

    fn flush(&mut self, _slots: &mut Slots) -> Result<(), LinkError> {
        if std::mem::take(&mut self.unannounced) {
            self.shared.outbound_event.signal();
        }
        Ok(())
    }

    fn stop(&mut self, _slots: &mut Slots) {
        self.shared.close();
        while let Some(f) = self.shared.inbound.pop() {
            self.shared.recycle(f.bytes);
        }
    }

    fn stats(&self) -> LinkStats {
        self.stats
    }
}
