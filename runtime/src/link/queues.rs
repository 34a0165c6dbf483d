//! A link of several queues, each a link of its own kind: packet sockets among which the kernel divides what comes.
//!
//! One worker reads them all, in turn. Frames to the guest go out by the first, so that their order is kept.

use super::poll::{ANY, Poll};
use super::{Link, LinkError, LinkStats, RxBatch};
use crate::slots::Slots;
use hibernet_netstack::edge::{LinkInfo, TxError, TxFrame};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Several queues as one link.
#[derive(Debug)]
pub struct QueuesLink<L> {
    poll: Poll,
    first: L,
    others: Vec<L>,
    /// Whose turn it is.
    turn: usize,
    /// The first is watched for taking more.
    watched: bool,
}

impl<L: Link> QueuesLink<L> {
    /// Of these queues.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn new(first: L, others: Vec<L>) -> io::Result<QueuesLink<L>> {
        let poll = Poll::new()?;
        for l in std::iter::once(&first).chain(&others) {
            poll.add(l.fd(), ANY)?;
        }
        Ok(QueuesLink { poll, first, others, turn: 0, watched: false })
    }

    fn all(&self) -> impl Iterator<Item = &L> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn queue(&mut self, n: usize) -> &mut L {
        if n > 0 && n <= self.others.len() { &mut self.others[n - 1] } else { &mut self.first }
    }
}

impl<L: Link> Link for QueuesLink<L> {
    fn info(&self) -> LinkInfo {
        self.first.info()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        let (before, count) = (out.len(), self.others.len() + 1);
        for _ in 0..count {
            let turn = self.turn;
            self.turn = (turn + 1) % count;
            self.queue(turn).recv_batch(slots, out)?;
            if out.len() > before {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        self.first.send(slots, frame)
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        self.first.flush(slots)?;
        let waits = self.first.waits();
        if waits != self.watched && self.poll.watch_room(self.first.fd(), ANY, waits) {
            self.watched = waits;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.first.has_room()
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.first.stop(slots);
        self.others.iter_mut().for_each(|l| l.stop(slots));
    }

    fn stats(&self) -> LinkStats {
        self.all().map(Link::stats).fold(LinkStats::default(), LinkStats::plus)
    }
}
