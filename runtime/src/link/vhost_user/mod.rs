//! vhost-user: a virtual machine's network device, whose memory its monitor shares with us (QEMU's vhost-user specification; virtio 1.3
//! section 5.1).
//!
//! We are the back end. Front ends connect to a socket of ours, or are connected to: one at a time, the next one when it has gone. Requests are answered between
//! frames. Until a front end and its guest's driver are there, and after they have gone, the link is down: frames are dropped and counted.
//!
//! A monitor in this process needs no socket ([`VhostUserLink::in_process`]).
//!
//! A front end may shorten the file behind the memory that it shares: a process that is to outlive that says so ([`survive`](crate::sys::vanished::survive)).
//!
//! Frames that the guest has no buffers for wait, a bounded number of them, until it gives some.

mod device;
mod from_guest;
mod in_process;
mod inflight;
mod log;
mod memory;
mod message;
mod pair;
mod peers;
mod queue;
mod ring;
mod session;
mod share;
mod steering;
mod to_guest;
mod transfer;

use super::poll::Poll;
use super::{Link, LinkError, LinkNews, LinkStats, RxBatch, Transfer, Unread, release};
use crate::slots::Slots;
use crate::sys::event::Event;
use crate::sys::vanished;
use device::{Common, Device, DeviceError};
use hibernet_netstack::edge::{LinkInfo, Tso, TxError, TxFrame};
use hibernet_netstack::wire::Mac;
pub use in_process::{FEATURES, Vring, VringPair, Vrings};
use message::{Reply, Request, feature};
use pair::Pair;
use peers::Peers;
use session::{Asked, Session, SessionError};
pub use share::PairsLink;
use share::{Board, Share, Shared, Trouble, lock};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use transfer::StateTransfer;

const _: () = assert!(cfg!(target_endian = "little"), "virtio-net headers are written in the machine's byte order");

/// Bytes of a connection that may be on their way from the guest; as for a TAP.
const IN_FLIGHT: u32 = 1024 * 1024;
/// Most requests that are answered before frames have their turn.
const REQUESTS: usize = 64;

/// Most pairs of queues of a device.
pub const MAX_QUEUE_PAIRS: usize = 16;

/// Most troubles with one front end that are told.
const TROUBLES: u32 = 16;

/// Words of events; a ring's kicks are `KICK` and its index.
const LISTENER: u64 = 0;
const SESSION: u64 = 1;
const MORE: u64 = 2;
const KICK: u64 = 8;

/// See the module's documentation.
#[derive(Debug)]
pub struct VhostUserLink {
    peers: Peers,
    session: Option<Session>,
    device: Device,
    poll: Arc<Poll>,
    /// Makes the link's descriptor readable where no other does.
    more: Arc<Event>,
    /// The pairs that this link serves.
    mine: Shared,
    /// Those that others serve.
    others: Vec<Shared>,
    board: Arc<Board>,
    /// The front end has asked for something, while others serve pairs.
    asked: bool,
    guest_mac: Option<Mac>,
    /// The guest receives by one of the pairs: it was told that the link is there.
    up: bool,
    changed: bool,
    /// At most as many as there are requests at a time: it is asked for them afterwards.
    news: VecDeque<LinkNews>,
    troubles: u32,
    /// The guest moves, and the network's state with it.
    transfer: StateTransfer,
    stats: LinkStats,
    stopped: bool,
}

impl VhostUserLink {
    fn without_session(mtu: u16, guest_mac: Option<Mac>) -> io::Result<VhostUserLink> {
        let (poll, more) = events()?;
        let device = Device::new(1, mtu, std::slice::from_ref(&poll));
        let info = info(&device, guest_mac);
        let mine = Share::new(1, 1, info, Arc::new(device.common.clone()), more.clone());
        let mut link = VhostUserLink {
            peers: Peers::None,
            session: None,
            device,
            poll,
            more,
            mine: Arc::new(Mutex::new(mine)),
            others: Vec::new(),
            board: Arc::default(),
            asked: false,
            guest_mac,
            up: false,
            changed: false,
            news: VecDeque::new(),
            troubles: 0,
            transfer: StateTransfer::default(),
            stats: LinkStats::default(),
            stopped: false,
        };
        link.share_out();
        Ok(link)
    }

    /// With so many pairs of queues, from 1 to [`MAX_QUEUE_PAIRS`], in place of one; to be said before anything is served. A front end may use fewer.
    ///
    /// # Panics
    /// If there cannot be so many.
    #[must_use]
    pub fn with_queue_pairs(mut self, pairs: usize) -> VhostUserLink {
        assert!((1..=MAX_QUEUE_PAIRS).contains(&pairs), "{pairs} pairs of queues");
        self.divide(pairs, Vec::new());
        self
    }

    /// Leaves the pairs by turns to so many workers, at most as many as there are pairs. This link is the first one's, and has the session with the front end;
    /// those of the others come beside it. Whoever serves it has what the front end asks for carried out while all stand still ([`Link::answer_peer`]).
    /// To be said before anything is served.
    ///
    /// # Errors
    /// `InvalidInput` if a guest is served already, others if descriptors ran out.
    pub fn shared_by(mut self, workers: usize) -> io::Result<(VhostUserLink, Vec<PairsLink>)> {
        if self.up {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let pairs = self.device.count();
        let theirs = (1..workers.min(pairs)).map(|_| events()).collect::<io::Result<Vec<_>>>()?;
        let polls: Vec<_> = theirs.iter().map(|(poll, _)| poll.clone()).collect();
        self.divide(pairs, theirs);
        let link = |(poll, share): (_, &Shared)| PairsLink {
            poll,
            share: share.clone(),
            board: self.board.clone(),
            bell: self.more.clone(),
            stopped: false,
        };
        let links = polls.into_iter().zip(&self.others).map(link).collect();
        Ok((self, links))
    }

    /// Makes the device anew, with so many pairs, and a share for each of these beside the own.
    fn divide(&mut self, pairs: usize, theirs: Vec<(Arc<Poll>, Arc<Event>)>) {
        let polls: Vec<_> = std::iter::once(&self.poll).chain(theirs.iter().map(|(poll, _)| poll)).cloned().collect();
        self.device = Device::new(pairs, self.device.mtu, &polls);
        let (common, info) = (Arc::new(self.device.common.clone()), self.info());
        let share = |more| Arc::new(Mutex::new(Share::new(polls.len(), pairs, info, common.clone(), more)));
        self.mine = share(self.more.clone());
        self.others = theirs.into_iter().map(|(_, more)| share(more)).collect();
        self.share_out();
    }

    fn shares(&self) -> impl Iterator<Item = &Shared> {
        std::iter::once(&self.mine).chain(&self.others)
    }

    /// Does something with all pairs of the device, while nobody serves any.
    fn whole<R>(&mut self, f: impl FnOnce(&mut VhostUserLink) -> R) -> R {
        let mut taken: Vec<_> = self.shares().map(|s| lock(s).take_pairs().into_iter()).collect();
        let of = taken.len();
        self.device.pairs = (0..self.device.count()).filter_map(|n| taken[n % of].next()).collect();
        let done = f(self);
        self.share_out();
        done
    }

    fn share_out(&mut self) {
        let (common, info) = (Arc::new(self.device.common.clone()), self.info());
        let of = self.others.len() + 1;
        let mut dealt: Vec<Vec<Pair>> = (0..of).map(|_| Vec::new()).collect();
        self.device.pairs.drain(..).for_each(|p| dealt[p.number % of].push(p));
        self.shares().zip(dealt).for_each(|(s, pairs)| lock(s).put_pairs(pairs, common.clone(), info));
        let (able, others): (Vec<_>, Vec<_>) = self.shares().partition(|s| !lock(s).receiving.is_empty());
        if let Some(able) = able.first() {
            others.iter().for_each(|s| lock(s).elsewhere = Some(Shared::clone(able)));
        }
    }

    /// Frames for a guest that has gone wait no longer; those of others are dropped by them, whose slots they are in. All pairs are here.
    fn drop_held(&mut self, slots: &mut Slots) {
        let of = self.others.len() + 1;
        self.device.pairs.iter_mut().step_by(of).for_each(|p| p.drop_held(slots, TxError::Down));
        self.others.iter().for_each(|s| lock(s).stale = true);
    }

    /// Looks at what has happened besides frames.
    fn attend(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        for word in self.poll.ready()? {
            match word {
                LISTENER => self.next_peer()?,
                SESSION if self.others.is_empty() => self.whole(|l| l.converse(slots))?,
                SESSION => self.asked = true,
                word => lock(&self.mine).attend(word, slots),
            }
            if word == MORE {
                let troubles = self.board.take();
                self.hear_of(troubles);
                if let Peers::Handed(_) = self.peers {
                    self.next_peer()?;
                }
            }
        }
        Ok(())
    }

    /// Whether the front end has taken memory away from us. All pairs are here.
    fn has_lost_memory(&self) -> bool {
        vanished::has_any() && has_lost(&self.device.common, &self.device.pairs)
    }

    /// Answers requests.
    fn converse(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        if self.session.is_some() && self.has_lost_memory() {
            return self.end_session(slots, &SessionError::Vanished);
        }
        for _ in 0..REQUESTS {
            if self.transfer.is_awaited() {
                return Ok(());
            }
            let Some(session) = &mut self.session else { return Ok(()) };
            let done = session.next().and_then(|asked| match asked {
                Some(a) => self.carry_out(a).map(|()| true),
                None => Ok(false),
            });
            match done {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(e) => return self.end_session(slots, &e),
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, asked: Asked) -> Result<(), SessionError> {
        let Asked { header, request, fds } = asked;
        if let Request::SetDeviceStateFd(_) | Request::CheckDeviceState = request {
            return self.about_state(header.request, &request, fds);
        }
        let unknown = request == Request::Unknown;
        let before = self.info();
        let word = |n: u32| KICK + u64::from(n);
        let result: Result<Option<Reply>, DeviceError> = self.device.handle(header.request, request, fds, word);
        self.changed |= before != self.info();
        self.look_at_rings();
        let acknowledged = header.need_reply && self.device.acknowledges();
        let reply = match result {
            Ok(Some(reply)) => Some(reply),
            Ok(None) if acknowledged => Some(Reply::number(header.request, unknown.into())),
            Ok(None) => None,
            Err(e) if acknowledged => {
                self.trouble(format_args!("a request of the front end is refused: {e}"));
                Some(Reply::number(header.request, 1))
            }
            // A front end that does not hear of it would go on as if it had what it wants.
            Err(e) => return Err(e.into()),
        };
        match (&self.session, reply) {
            (Some(s), Some(reply)) => s.answer(&reply),
            _ => Ok(()),
        }
    }

    fn trouble(&mut self, what: std::fmt::Arguments<'_>) {
        if self.troubles < TROUBLES {
            self.troubles += 1;
            self.news.push_back(LinkNews::Trouble(what.to_string()));
        }
    }

    /// Whether the guest receives is known from its rings: a driver that stops, or a machine that is paused, is as one that has gone.
    fn look_at_rings(&mut self) {
        let is_up = self.device.pairs.iter().any(Pair::receives);
        let was_up = std::mem::replace(&mut self.up, is_up);
        if is_up == was_up {
            return;
        }
        if was_up {
            return self.news.push_back(LinkNews::Disconnected("its guest has stopped".into()));
        }
        // Whatever was saved or loaded, the guest is here now.
        self.transfer = StateTransfer::default();
        self.news.push_back(LinkNews::Connected);
    }

    fn end_session(&mut self, slots: &mut Slots, why: &SessionError) -> Result<(), LinkError> {
        self.stats.rx_down += 1;
        if let Some(s) = self.session.take() {
            self.poll.remove(s.fd());
        }
        self.device.reset();
        self.changed = true;
        self.drop_held(slots);
        let troubles = self.board.take();
        self.hear_of(troubles);
        let was_up = std::mem::take(&mut self.up);
        if std::mem::take(&mut self.transfer).is_some() {
            self.news.push_back(LinkNews::Left(why.to_string()));
        } else if was_up {
            self.news.push_back(LinkNews::Disconnected(why.to_string()));
        } else {
            self.trouble(format_args!("{why}, before its guest had a network"));
        }
        // What was to be looked at has gone with it; taken for news of the next, that would be asked for twice.
        self.more.clear();
        lock(&self.mine).more_set = false;
        self.await_peer()
    }

    /// Tells of rings that were found to make no sense.
    fn hear_of(&mut self, troubles: Vec<Trouble>) {
        for (ring, why) in troubles {
            self.trouble(format_args!("queue {ring} makes no sense, and is not served until it is set up again: {why}"));
        }
    }
}

/// Whether memory that these pairs use was taken away.
fn has_lost(common: &Common, pairs: &[Pair]) -> bool {
    let mut noted = pairs.iter().flat_map(|p| &p.rings).filter_map(|r| r.queue.inflight.as_ref());
    common.memory.has_vanished() || noted.any(|i| i.has_vanished())
}

/// A set of descriptors, and an event in it.
fn events() -> io::Result<(Arc<Poll>, Arc<Event>)> {
    let (poll, more) = (Poll::new()?, Event::new()?);
    poll.add(&more, MORE)?;
    Ok((Arc::new(poll), Arc::new(more)))
}

/// What a link to a device can do.
fn info(device: &Device, guest_mac: Option<Mac>) -> LinkInfo {
    let d: &Common = &device.common;
    let checksum = d.has(feature::GUEST_CSUM);
    let tso = match (d.has(feature::GUEST_TSO4), d.has(feature::GUEST_TSO6)) {
        (true, true) if checksum => Tso::Both,
        (true, false) if checksum => Tso::V4,
        _ => Tso::None,
    };
    let uso = checksum && d.has(feature::GUEST_USO4 | feature::GUEST_USO6);
    LinkInfo { mtu: device.mtu, checksum, tso, uso, guest_mac, in_flight: IN_FLIGHT }
}

impl Link for VhostUserLink {
    fn info(&self) -> LinkInfo {
        info(&self.device, self.guest_mac)
    }

    fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn take_news(&mut self) -> Option<LinkNews> {
        self.news.pop_front()
    }

    fn take_transfer(&mut self) -> Option<Transfer> {
        self.transfer.take()
    }

    fn end_transfer(&mut self, slots: &mut Slots, done: bool) {
        self.state_moved(slots, done);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        if self.stopped {
            return Err(LinkError::Closed);
        }
        let mut mine = lock(&self.mine);
        if out.is_empty() {
            mine.end_lent(slots);
            if mine.has_lost_memory() {
                drop(mine);
                // A front end that does so is heard no more.
                self.asked = !self.others.is_empty();
                return if self.asked { Ok(()) } else { self.whole(|l| l.converse(slots)) };
            }
        }
        if out.room() == 0 {
            return Ok(());
        }
        mine.take_frames(slots, out);
        if out.is_empty() {
            drop(mine);
            self.attend(slots)?;
            // Before that is answered nothing may be lent.
            if self.asked {
                return Ok(());
            }
            mine = lock(&self.mine);
            mine.take_frames(slots, out);
        }
        let troubles = mine.take_troubles();
        drop(mine);
        self.hear_of(troubles);
        Ok(())
    }

    fn asks_for_all(&self) -> bool {
        self.asked
    }

    fn answer_peer(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        self.asked = false;
        // Kicks that were heard beside it were for frames that were not taken.
        lock(&self.mine).look_again();
        self.whole(|l| l.converse(slots))
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        let sent = lock(&self.mine).send(slots, &frame, None);
        release(slots, &frame);
        sent
    }

    fn reads_in_place(&self) -> bool {
        lock(&self.mine).reads_in_place()
    }

    fn send_unread(&mut self, slots: &mut Slots, frame: TxFrame<'_>, body: &mut dyn Unread) -> Result<(), TxError> {
        lock(&self.mine).send(slots, &frame, Some(body))
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        let mut mine = lock(&self.mine);
        mine.flush(slots);
        let troubles = mine.take_troubles();
        drop(mine);
        self.hear_of(troubles);
        Ok(())
    }

    fn has_room(&self) -> bool {
        lock(&self.mine).has_room()
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.stopped = true;
        lock(&self.mine).end_lent(slots);
        self.whole(|l| {
            l.drop_held(slots);
            l.device.reset();
        });
        self.session = None;
    }

    fn stats(&self) -> LinkStats {
        self.stats.plus(lock(&self.mine).all_stats())
    }
}
