//! The pairs of queues that one worker serves: all of a device, or a share of them where several workers serve it.
//!
//! The session with the front end is the [link's](super::VhostUserLink). What it is told concerns the device as a whole: it takes the pairs out of all shares for
//! as long as that takes, and so that nobody misses them it does that only while all who serve one stand still. Otherwise a share is used by one
//! worker alone, but for frames of those who have no pair by which the guest receives: they borrow one, frame by frame. So its lock is one that nearly
//! nobody waits for.

use super::device::{Common, TO_GUEST};
use super::pair::Pair;
use super::queue::Broken;
use super::to_guest::HELD;
use super::{KICK, MORE, has_lost};
use crate::link::poll::Poll;
use crate::link::{Link, LinkError, LinkStats, RxBatch, Unread, release};
use crate::slots::Slots;
use crate::sys::event::Event;
use crate::sys::vanished;
use hibernet_netstack::edge::{LinkInfo, TxError, TxFrame};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A ring that makes no sense, by its number, and why.
pub(super) type Trouble = (usize, Broken);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) common: Arc<Common>,
    /// What the link can do.
    pub(super) info: LinkInfo,
    /// In the order of their numbers; none while they are taken out.
    pub(super) pairs: Vec<Pair>,
    /// How many shares there are: so far apart are the numbers of its pairs.
    pub(super) of: usize,
    /// The numbers of those by which the guest receives.
    pub(super) receiving: Vec<u8>,
    /// A share with pairs by which the guest receives, if this one has none.
    pub(super) elsewhere: Option<Arc<Mutex<Share>>>,
    /// How many frames may wait in each pair.
    pub(super) most_held: usize,
    /// The place of the pair from which frames are taken first, next time.
    pub(super) next_pair: usize,
    /// Frames were left in a queue, of which no kick tells.
    pub(super) more: Arc<Event>,
    pub(super) more_set: bool,
    /// Frames that wait are for a guest that has gone.
    pub(super) stale: bool,
    /// Of frames that went through no pair.
    pub(super) stats: LinkStats,
}

/// A share, for its owner and for who looks at all of them.
pub(super) type Shared = Arc<Mutex<Share>>;

pub(super) fn lock(share: &Mutex<Share>) -> MutexGuard<'_, Share> {
    // Each call leaves it whole but for what it was about to do, and who panicked serves no longer.
    share.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Share {
    /// One of `of` shares of a device of so many pairs, before those are there.
    pub(super) fn new(of: usize, pairs: usize, info: LinkInfo, common: Arc<Common>, more: Arc<Event>) -> Share {
        Share {
            common,
            info,
            pairs: Vec::new(),
            of,
            receiving: Vec::new(),
            elsewhere: None,
            most_held: HELD / pairs,
            next_pair: 0,
            more,
            more_set: false,
            stale: false,
            stats: LinkStats::default(),
        }
    }

    /// Takes its pairs out.
    pub(super) fn take_pairs(&mut self) -> Vec<Pair> {
        self.receiving.clear();
        (self.elsewhere, self.next_pair) = (None, 0);
        std::mem::take(&mut self.pairs)
    }

    /// They are back, under these conditions.
    pub(super) fn put_pairs(&mut self, pairs: Vec<Pair>, common: Arc<Common>, info: LinkInfo) {
        self.receiving.extend(pairs.iter().filter(|p| p.receives()).map(|p| p.number as u8));
        (self.pairs, self.common, self.info) = (pairs, common, info);
    }

    /// Before its owner's slots are used for anything else: drops what waits for a guest that has gone.
    pub(super) fn tidy(&mut self, slots: &mut Slots) {
        if std::mem::take(&mut self.stale) {
            self.pairs.iter_mut().for_each(|p| p.drop_held(slots, TxError::Down));
        }
    }

    /// An event of its own; others are none.
    pub(super) fn attend(&mut self, word: u64, slots: &mut Slots) {
        if word == MORE {
            self.more.clear();
            self.more_set = false;
        }
        let Some(ring) = word.checked_sub(KICK).map(|n| n as usize) else { return };
        let Share { common, pairs, of, .. } = self;
        let Some(pair) = pairs.get_mut(ring / 2 / *of) else { return };
        if ring % 2 == TO_GUEST {
            pair.deliver_held(common, slots);
            pair.tell_given(common);
        }
    }

    /// Sends a frame; `unread` is its body, if that is still to be read.
    pub(super) fn send(
        &mut self,
        slots: &mut Slots,
        frame: &TxFrame<'_>,
        unread: Option<&mut dyn Unread>,
    ) -> Result<(), TxError> {
        self.send_frame(slots, frame, unread).map_err(|e| self.stats.refused(e))
    }

    /// Whether the kernel can copy bodies to where the guest has them. Frames that have to wait wait in slots, and a checksum needs the bytes.
    pub(super) fn reads_in_place(&self) -> bool {
        self.info.checksum && !self.receiving.is_empty() && self.receivers().all(|p| p.held.is_empty())
    }

    /// Whether frames would be taken: not at the first place that becomes free, whoever was refused has much to send.
    pub(super) fn has_room(&self) -> bool {
        let room = self.most_held / 2;
        !self.receiving.is_empty() && self.receivers().all(|p| p.held.len() < room)
    }

    fn receivers(&self) -> impl Iterator<Item = &Pair> {
        self.receiving.iter().map(|n| &self.pairs[usize::from(*n) / self.of])
    }

    /// The end of a wake-up: the guest gets back what was lent, and hears of what it was given. There will be another one where a queue was not found empty.
    pub(super) fn flush(&mut self, slots: &mut Slots) {
        self.end_lent(slots);
        let Share { common, pairs, .. } = self;
        pairs.iter_mut().for_each(|p| p.tell_given(common));
        self.come_back();
    }

    /// Whether the front end has taken memory away from us.
    pub(super) fn has_lost_memory(&self) -> bool {
        vanished::has_any() && has_lost(&self.common, &self.pairs)
    }

    /// Rings that were found to make no sense.
    pub(super) fn take_troubles(&mut self) -> Vec<Trouble> {
        let of_pair = |p: &mut Pair| {
            let first = 2 * p.number;
            [0, 1].map(|i| p.rings[i].take_trouble().map(|why| (first + i, why)))
        };
        self.pairs.iter_mut().flat_map(of_pair).flatten().collect()
    }

    pub(super) fn all_stats(&self) -> LinkStats {
        self.pairs.iter().fold(self.stats, |sum, p| sum.plus(p.stats))
    }
}

/// What those who serve the other shares have to say to the link.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<Vec<Trouble>>);

impl Board {
    /// At most one for each ring since it was set up last.
    fn add(&self, troubles: Vec<Trouble>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(troubles);
    }

    pub(super) fn take(&self) -> Vec<Trouble> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A share as the link of another worker than the one that has the [whole link](super::VhostUserLink).
#[derive(Debug)]
pub struct PairsLink {
    pub(super) poll: Arc<Poll>,
    pub(super) share: Shared,
    pub(super) board: Arc<Board>,
    /// Has the link look at the board.
    pub(super) bell: Arc<Event>,
    pub(super) stopped: bool,
}

impl PairsLink {
    fn tell(&self, troubles: Vec<Trouble>) {
        if !troubles.is_empty() {
            self.board.add(troubles);
            self.bell.signal();
        }
    }
}

impl Link for PairsLink {
    fn info(&self) -> LinkInfo {
        lock(&self.share).info
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        if self.stopped {
            return Err(LinkError::Closed);
        }
        let mut share = lock(&self.share);
        share.tidy(slots);
        if out.is_empty() {
            share.end_lent(slots);
        }
        if out.room() == 0 {
            return Ok(());
        }
        share.take_frames(slots, out);
        if out.is_empty() {
            self.poll.ready()?.for_each(|word| share.attend(word, slots));
            share.take_frames(slots, out);
        }
        self.tell(share.take_troubles());
        Ok(())
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        let mut share = lock(&self.share);
        share.tidy(slots);
        let sent = share.send(slots, &frame, None);
        release(slots, &frame);
        sent
    }

    fn reads_in_place(&self) -> bool {
        lock(&self.share).reads_in_place()
    }

    fn send_unread(&mut self, slots: &mut Slots, frame: TxFrame<'_>, body: &mut dyn Unread) -> Result<(), TxError> {
        let mut share = lock(&self.share);
        share.tidy(slots);
        share.send(slots, &frame, Some(body))
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        let mut share = lock(&self.share);
        share.tidy(slots);
        share.flush(slots);
        if share.has_lost_memory() {
            self.bell.signal();
        }
        self.tell(share.take_troubles());
        Ok(())
    }

    fn has_room(&self) -> bool {
        lock(&self.share).has_room()
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.stopped = true;
        let mut share = lock(&self.share);
        share.end_lent(slots);
        (share.stale, share.receiving) = (true, Vec::new());
        share.tidy(slots);
    }

    fn stats(&self) -> LinkStats {
        lock(&self.share).all_stats()
    }
}
