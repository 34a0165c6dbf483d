//! vhost-user: a virtual machine's network device, whose memory its monitor shares with us (QEMU's vhost-user specification; virtio 1.3
//! section 5.1).
//!
//! We are the back end. Front ends connect to a socket of ours, or are connected to: one at a time, the next one when it has gone. Requests are answered between
//! frames. Until a front end and its guest's driver are there, and after they have gone, the link is down: frames are dropped and counted.
//!
//! A monitor in this process needs no socket ([`VhostUserLink::in_process`]).
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
mod steering;
mod to_guest;
mod transfer;

use super::poll::Poll;
use super::{Link, LinkError, LinkNews, LinkStats, RxBatch, Transfer, Unread, release};
use crate::slots::Slots;
use crate::sys::event::Event;
use device::{Device, DeviceError, TO_GUEST};
use hibernet_netstack::edge::{LinkInfo, Tso, TxError, TxFrame};
use hibernet_netstack::wire::Mac;
pub use in_process::{FEATURES, Vring, VringPair, Vrings};
use message::{Reply, Request, feature};
use peers::Peers;
use session::{Asked, Session, SessionError};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
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
    /// The monitor is in this process; there will be no session.
    in_process: bool,
    device: Device,
    poll: Poll,
    /// Frames were left in the queue, of which no kick tells.
    more: Event,
    more_set: bool,
    guest_mac: Option<Mac>,
    /// The pair from which frames are taken first, next time.
    next_pair: usize,
    /// The pairs by which the guest receives.
    receiving: Vec<u8>,
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
        let (poll, more) = (Poll::new()?, Event::new()?);
        poll.add(&more, MORE)?;
        Ok(VhostUserLink {
            peers: Peers::None,
            session: None,
            in_process: false,
            device: Device::new(1, mtu),
            poll,
            more,
            more_set: false,
            guest_mac,
            next_pair: 0,
            receiving: Vec::new(),
            changed: false,
            news: VecDeque::new(),
            troubles: 0,
            transfer: StateTransfer::default(),
            stats: LinkStats::default(),
            stopped: false,
        })
    }

    /// With so many pairs of queues, from 1 to [`MAX_QUEUE_PAIRS`], in place of one; to be said before anything is served. A front end may use fewer.
    ///
    /// # Panics
    /// If there cannot be so many.
    #[must_use]
    pub fn with_queue_pairs(mut self, pairs: usize) -> VhostUserLink {
        assert!((1..=MAX_QUEUE_PAIRS).contains(&pairs), "{pairs} pairs of queues");
        self.device = Device::new(pairs, self.device.mtu);
        self
    }

    /// Looks at what has happened besides frames.
    fn attend(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        for word in self.poll.ready()? {
            match word {
                LISTENER => self.next_peer()?,
                SESSION => self.converse(slots)?,
                MORE => {
                    self.more.clear();
                    self.more_set = false;
                    if let Peers::Handed(_) = self.peers {
                        self.next_peer()?;
                    }
                }
                word => {
                    let i = (word - KICK) as usize;
                    let Device { common, pairs, .. } = &mut self.device;
                    let pair = &mut pairs[i / 2];
                    if i % 2 == TO_GUEST {
                        pair.deliver_held(common, slots);
                        pair.tell_given(common);
                    }
                }
            }
        }
        Ok(())
    }

    /// Answers requests.
    fn converse(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
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
        let result: Result<Option<Reply>, DeviceError> = self.device.handle(header.request, request, fds, &self.poll, word);
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
        let was_up = self.is_up();
        self.receiving.clear();
        self.receiving.extend((0u8..).zip(&self.device.pairs).filter(|(_, p)| p.receives()).map(|(n, _)| n));
        if self.is_up() == was_up {
            return;
        }
        if was_up {
            return self.news.push_back(LinkNews::Disconnected("its guest has stopped".into()));
        }
        // Whatever was saved or loaded, the guest is here now.
        self.transfer = StateTransfer::default();
        self.news.push_back(LinkNews::Connected);
    }

    /// The guest receives: it was told that the link is there.
    fn is_up(&self) -> bool {
        !self.receiving.is_empty()
    }

    fn end_session(&mut self, slots: &mut Slots, why: &SessionError) -> Result<(), LinkError> {
        self.stats.rx_down += 1;
        if let Some(s) = self.session.take() {
            self.poll.remove(s.fd());
        }
        self.device.reset(&self.poll);
        self.changed = true;
        self.device.pairs.iter_mut().for_each(|p| p.drop_held(slots, TxError::Down));
        let was_up = !std::mem::take(&mut self.receiving).is_empty();
        if std::mem::take(&mut self.transfer).is_some() {
            self.news.push_back(LinkNews::Left(why.to_string()));
        } else if was_up {
            self.news.push_back(LinkNews::Disconnected(why.to_string()));
        } else {
            self.trouble(format_args!("{why}, before its guest had a network"));
        }
        self.await_peer()
    }

    /// Tells of rings that were found to make no sense.
    fn hear_troubles(&mut self) {
        for i in 0..2 * self.device.pairs.len() {
            if let Some(why) = self.device.pairs[i / 2].rings[i % 2].take_trouble() {
                self.trouble(format_args!("queue {i} makes no sense, and is not served until it is set up again: {why}"));
            }
        }
    }
}

impl Link for VhostUserLink {
    fn info(&self) -> LinkInfo {
        let d = &self.device.common;
        let checksum = d.has(feature::GUEST_CSUM);
        let tso = match (d.has(feature::GUEST_TSO4), d.has(feature::GUEST_TSO6)) {
            (true, true) if checksum => Tso::Both,
            (true, false) if checksum => Tso::V4,
            _ => Tso::None,
        };
        let uso = checksum && d.has(feature::GUEST_USO4 | feature::GUEST_USO6);
        LinkInfo { mtu: self.device.mtu, checksum, tso, uso, guest_mac: self.guest_mac, in_flight: IN_FLIGHT }
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
        if out.is_empty() {
            self.end_lent(slots);
        }
        if out.room() == 0 {
            return Ok(());
        }
        self.take_frames(slots, out);
        if out.is_empty() {
            self.attend(slots)?;
            self.take_frames(slots, out);
        }
        self.hear_troubles();
        Ok(())
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        let sent = self.send_frame(slots, &frame, None);
        release(slots, &frame);
        sent.map_err(|e| self.stats.refused(e))
    }

    /// Frames that have to wait wait in slots, and a checksum needs the bytes.
    fn reads_in_place(&self) -> bool {
        let ready = |p: &u8| self.device.pairs[usize::from(*p)].held.is_empty();
        self.device.common.has(feature::GUEST_CSUM) && self.is_up() && self.receiving.iter().all(ready)
    }

    fn send_unread(&mut self, slots: &mut Slots, frame: TxFrame<'_>, body: &mut dyn Unread) -> Result<(), TxError> {
        self.send_frame(slots, &frame, Some(body)).map_err(|e| self.stats.refused(e))
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        self.end_lent(slots);
        let Device { common, pairs, .. } = &mut self.device;
        pairs.iter_mut().for_each(|p| p.tell_given(common));
        self.come_back();
        self.hear_troubles();
        Ok(())
    }

    fn has_room(&self) -> bool {
        // Not at the first place that becomes free: whoever was refused has much to send.
        let room = self.most_held() / 2;
        self.is_up() && self.receiving.iter().all(|p| self.device.pairs[usize::from(*p)].held.len() < room)
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.stopped = true;
        self.end_lent(slots);
        self.device.pairs.iter_mut().for_each(|p| p.drop_held(slots, TxError::Down));
        self.device.reset(&self.poll);
        self.session = None;
    }

    fn stats(&self) -> LinkStats {
        self.device.pairs.iter().fold(self.stats, |sum, p| sum.plus(p.stats))
    }
}
