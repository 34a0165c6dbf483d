//! Frames from worker to worker: a bounded queue for each, into which all others put what is not theirs.

use crate::slots::Slots;
use crate::sys::event::Event;
use crossbeam_queue::ArrayQueue;
use hibernet_netstack::edge::{Gso, HandedFrame, LinkId, Payload, RxChecksum};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Frames that wait at most; of up to 64 KiB each.
const DEPTH: usize = 256;

/// A frame that another worker took from a guest.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) link: LinkId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) checksum: RxChecksum,
    pub(crate) gso: Option<Gso>,
}

impl Handed {
    /// A copy in a slot; none if there is none free.
    pub(crate) fn in_slot(&self, slots: &mut Slots) -> Option<Payload> {
        let slot = slots.take()?;
        slots.slot_mut(slot)[..self.bytes.len()].copy_from_slice(&self.bytes);
        Some(Payload { slot, offset: 0, len: self.bytes.len() as u32 })
    }
}

/// What others have for a worker.
#[derive(Debug)]
pub(crate) struct Inbox {
    frames: ArrayQueue<Handed>,
    /// Buffers go round, so that nothing is allocated once they have grown.
    spare: ArrayQueue<Vec<u8>>,
    bell: Event,
    /// The bell was rung, and its owner has not come yet.
    rung: AtomicBool,
    /// There is something besides frames.
    news: AtomicBool,
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Inbox> {
        Ok(Inbox {
            frames: ArrayQueue::new(DEPTH),
            spare: ArrayQueue::new(DEPTH),
            bell: Event::new()?,
            rung: AtomicBool::new(false),
            news: AtomicBool::new(false),
        })
    }

    /// Copies a frame into the queue; whether there was room.
    pub(crate) fn put(&self, slots: &Slots, frame: &HandedFrame<'_>) -> bool {
        if self.frames.is_full() {
            self.ring();
            return false;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame.head);
        bytes.extend_from_slice(slots.bytes(frame.body));
        let handed = Handed { link: frame.link, bytes, checksum: frame.checksum, gso: frame.gso };
        let done = self.frames.push(handed).map_err(|h| self.give_back(h)).is_ok();
        self.ring();
        done
    }

    /// The next frame. To be [given back](Inbox::give_back).
    pub(crate) fn take(&self) -> Option<Handed> {
        self.frames.pop()
    }

    /// A frame was dealt with.
    pub(crate) fn give_back(&self, handed: Handed) {
        // When there are spare ones enough it is freed.
        let _ = self.spare.push(handed.bytes);
    }

    /// Has its owner come, without a frame.
    pub(crate) fn tell(&self) {
        self.news.store(true, Ordering::Release);
        self.ring();
    }

    /// Whether there was something besides frames since the last time.
    pub(crate) fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::Acquire)
    }

    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.bell.signal();
        }
    }

    /// The owner comes: what is put in from here on rings again.
    pub(crate) fn answer(&self) {
        self.bell.clear();
        self.rung.store(false, Ordering::Release);
    }

    /// Whether frames wait.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

impl AsFd for Inbox {
    /// Readable while its owner is to come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(slots: &mut Slots, bytes: &[u8]) -> Payload {
        let slot = slots.take().unwrap();
        slots.slot_mut(slot)[..bytes.len()].copy_from_slice(bytes);
        Payload { slot, offset: 0, len: bytes.len() as u32 }
    }

    fn handed(head: &[u8], body: Payload) -> HandedFrame<'_> {
        HandedFrame { link: LinkId(0), head, body, checksum: RxChecksum::Trusted, gso: None }
    }

    #[test]
    fn frames_come_whole_in_their_order_and_no_more_than_fit() {
        let (inbox, mut slots) = (Inbox::new().unwrap(), Slots::new(4).unwrap());
        let body = frame(&mut slots, b"body");
        assert!(!crate::sys::event::is_readable(&inbox));
        for n in 0..DEPTH {
            assert!(inbox.put(&slots, &handed(&[n as u8], body)));
        }
        assert!(!inbox.put(&slots, &handed(b"more", body)));
        assert!(crate::sys::event::is_readable(&inbox));
        inbox.answer();
        assert!(!crate::sys::event::is_readable(&inbox));
        for n in 0..DEPTH {
            let h = inbox.take().unwrap();
            assert_eq!(h.bytes, [&[n as u8][..], b"body"].concat());
            let p = h.in_slot(&mut slots).unwrap();
            assert_eq!(slots.bytes(p), h.bytes);
            slots.give(p.slot);
            inbox.give_back(h);
        }
        assert!(inbox.take().is_none() && inbox.is_empty());
        assert!(inbox.put(&slots, &handed(b"", body)));
        assert!(crate::sys::event::is_readable(&inbox));
    }

    #[test]
    fn news_are_told_once() {
        let inbox = Inbox::new().unwrap();
        inbox.tell();
        inbox.tell();
        assert!(crate::sys::event::is_readable(&inbox));
        inbox.answer();
        assert!(inbox.take_news() && !inbox.take_news());
    }
}
