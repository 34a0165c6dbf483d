//! Links to guests: everything that carries Ethernet frames.

pub mod channel;
pub mod datagram;
pub mod pcap;
mod poll;
pub mod queues;
pub mod socket;
pub mod stream;
pub mod tap;
pub mod vhost_user;
pub mod vnet;

use crate::slots::Slots;
use hibernet_netstack::edge::{Gso, LinkInfo, Payload, RxChecksum, TxError, TxFrame};
use hibernet_netstack::wire::ethernet;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use vm_memory::VolatileSlice;

/// Most frames that one call receives or that a link gathers for one call.
pub const BATCH: usize = 64;

/// A frame that was received. Whoever takes it out of the batch owns the slot and gives it back. A [lent](Slots::lent) one is the link's: it is good until
/// the link is called again to receive into an empty batch, to flush, or to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The slot that holds it; the same as `frame.slot`.
    pub slot: u32,
    /// The frame, from its Ethernet header on.
    pub frame: Payload,
    /// What is known of its transport checksum.
    pub checksum: RxChecksum,
    /// Segmentation left undone.
    pub gso: Option<Gso>,
}

/// Frames received by one call: at most [`BATCH`]. It allocates once.
#[derive(Debug)]
pub struct RxBatch(Vec<Received>);

impl Default for RxBatch {
    fn default() -> Self {
        RxBatch(Vec::with_capacity(BATCH))
    }
}

impl RxBatch {
    /// How many more frames fit.
    pub fn room(&self) -> usize {
        BATCH - self.0.len()
    }

    /// Adds a frame; hands it back if there is no room.
    pub fn push(&mut self, r: Received) -> Result<(), Received> {
        if self.room() == 0 {
            return Err(r);
        }
        self.0.push(r);
        Ok(())
    }

    /// Takes all frames out, in the order in which they came.
    pub fn drain(&mut self) -> impl Iterator<Item = Received> + '_ {
        self.0.drain(..)
    }

    /// The frames, in the order in which they came.
    pub fn frames(&self) -> &[Received] {
        &self.0
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a link cannot receive.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end or the interface is gone for good: nothing will ever come or go again.
    #[error("the link is gone")]
    Closed,
    /// The system refused, possibly for this time only. Counted; the caller goes on when the descriptor is readable again.
    #[error("the link failed to receive: {0}")]
    Io(#[from] io::Error),
}

/// What became of the peer of a link whose peers come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkNews {
    /// There is one.
    Connected,
    /// It has left, and why; the link waits for the next.
    Disconnected(String),
    /// It did what its operator should hear of.
    Trouble(String),
    /// It moves its guest, and wants the network's state saved or loaded: [`Link::take_transfer`].
    Transfer,
    /// It has left after that, with the guest that is elsewhere now or has not begun here, and why.
    Left(String),
}

/// Which way a network's state goes with a virtual machine that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// To where the machine will be.
    Save,
    /// From where it was.
    Load,
}

/// What the monitor of a virtual machine wants, which moves it: an image of the network, or a network from one.
#[derive(Debug)]
pub struct Transfer {
    /// Which of both.
    pub direction: Direction,
    /// Where the image goes or comes from, usually a pipe.
    pub pipe: OwnedFd,
}

/// The connection of a link whose peers come and go, as it is handed to a successor: the stream's two ends may stand in the middle of a frame.
#[derive(Debug)]
pub struct Connection {
    /// The connected socket.
    pub fd: OwnedFd,
    /// What was received and not handed to the stack.
    pub received: Vec<u8>,
    /// The rest of a frame whose beginning was sent.
    pub unsent: Vec<u8>,
}

impl Connection {
    /// A copy.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn try_clone(&self) -> io::Result<Connection> {
        Ok(Connection { fd: self.fd.try_clone()?, received: self.received.clone(), unsent: self.unsent.clone() })
    }
}

macro_rules! link_stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a link since it was made. All only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct LinkStats { $($(#[$doc])* pub $name: u64,)* }

        impl LinkStats {
            /// The sums of two links' counters.
            #[must_use]
            pub fn plus(self, other: LinkStats) -> LinkStats {
                LinkStats { $($name: self.$name + other.$name,)* }
            }

            /// Name and value of every counter.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

link_stats! {
    /// Frames handed to the stack.
    rx_frames,
    /// Bytes in them, from the Ethernet header on.
    rx_bytes,
    /// Frames dropped because their virtio-net header contradicts itself or them, or because their descriptors make no sense.
    rx_bad_header,
    /// Frames dropped because they are shorter than an Ethernet header.
    rx_too_short,
    /// Frames dropped because they are longer than a slot.
    rx_too_long,
    /// Frames dropped because no slot was free.
    rx_no_slot,
    /// Frames that the kernel dropped because we did not read in time, where it says so.
    rx_overrun,
    /// Frames that the end of a stream cut off.
    rx_cut_off,
    /// Times the interface went down without going away, or a peer left and others may come.
    rx_down,
    /// Other failures to receive.
    rx_errors,
    /// Frames that the kernel took.
    tx_frames,
    /// Bytes in them, from the Ethernet header on.
    tx_bytes,
    /// Frames dropped because the queue was full. An interface may take frames and drop them itself; it counts those.
    tx_full,
    /// Frames dropped because the interface was down or gone, or there was no peer.
    tx_down,
    /// Frames dropped because they are longer than the link carries.
    tx_too_big,
    /// Frames dropped because the system refused them for another reason.
    tx_errors,
}

/// The body of a frame that still stands in the kernel.
pub trait Unread {
    /// How many bytes.
    fn len(&self) -> usize;

    /// None: there is no such body.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has the kernel copy all of it to `places`, one after the other, which have room for exactly so much. May be asked again.
    ///
    /// # Errors
    /// If it did not copy all; some places may be written to then.
    fn read_to<'m>(&mut self, places: &mut dyn Iterator<Item = VolatileSlice<'m>>) -> io::Result<()>;

    /// Reads it into a slot. `None` if there is none, or the kernel did not copy all.
    fn to_slot(&mut self, slots: &mut Slots) -> Option<Payload> {
        let len = self.len();
        let slot = slots.take()?;
        let read = slots.slot_mut(slot).get_mut(..len).map(|room| self.read_to(&mut std::iter::once(VolatileSlice::from(room))));
        if !matches!(read, Some(Ok(()))) {
            slots.give(slot);
            return None;
        }
        Some(Payload { slot, offset: 0, len: len as u32 })
    }
}

/// A link to a guest. All calls are non-blocking.
///
/// Payload lives in the worker's [`Slots`]. A link whose frames stand in memory shared with the guest copies them
/// into slots, or [lends](Slots::lend) them behind the same handles: the stack never looks behind
/// a [`Payload`], and the head of a frame is copied to private memory before it is parsed.
pub trait Link: Send {
    /// What it can do.
    fn info(&self) -> LinkInfo;

    /// Whether that has changed since this was asked last. To be asked after [`Link::recv_batch`].
    fn take_change(&mut self) -> bool {
        false
    }

    /// Readable while frames wait, or while [`Link::recv_batch`] has an error to report. Level-triggered.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Adds frames to `out`, as many as one system call gives and as there is room for. None: it would block.
    /// A frame that cannot be used is dropped and counted, so the batch may be empty although more wait; then the descriptor stays readable.
    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError>;

    /// Whether the peer has asked for something that concerns all queues of the link, of which others serve some. To be asked after [`Link::recv_batch`];
    /// then [`Link::answer_peer`] is to be called when all of them stand still, between two of their wake-ups.
    fn asks_for_all(&self) -> bool {
        false
    }

    /// Does what the peer has asked for.
    fn answer_peer(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        let _ = slots;
        Ok(())
    }

    /// Sends a frame, or keeps it until [`Link::flush`]. Order is kept. The link takes the body's slot over and gives it back
    /// when the frame is gone, also on errors; with `keep_body` it holds the slot for itself as long as it needs it.
    /// What the kernel refuses later is counted as dropped.
    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError>;

    /// Whether the kernel can copy the bodies of frames to where the guest has them, now: [`Link::send_unread`] is more than a way around.
    fn reads_in_place(&self) -> bool {
        false
    }

    /// As [`Link::send`], of a frame whose body is still to be read. `frame.body` has its length, and no bytes.
    fn send_unread(&mut self, slots: &mut Slots, frame: TxFrame<'_>, body: &mut dyn Unread) -> Result<(), TxError> {
        let body = body.to_slot(slots).ok_or(TxError::Full)?;
        self.send(slots, TxFrame { body, keep_body: false, ..frame })
    }

    /// Sends what was gathered, as far as the system takes it ([`Link::waits`]). [`LinkError::Closed`] if the link was found to be gone, which the descriptor may then not tell any more.
    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError>;

    /// Whether frames wait that the system did not take: [`Link::flush`] is to be called when the descriptor is writable.
    fn waits(&self) -> bool {
        false
    }

    /// Whether frames would be taken now. To be asked after [`Link::flush`] on behalf of those whose frames were refused; a link that has no way to know
    /// says no, and they try again after a while.
    fn has_room(&self) -> bool {
        false
    }

    /// Ends the link: nothing is received or sent any more, and the descriptor may be removed from the event loop. Slots of
    /// gathered frames are given back.
    fn stop(&mut self, slots: &mut Slots);

    /// Counters.
    fn stats(&self) -> LinkStats;

    /// What became of the peer, where peers come and go: the oldest of what was not told yet.
    fn take_news(&mut self) -> Option<LinkNews> {
        None
    }

    /// What the peer wants done with the network's state, if it has said so ([`LinkNews::Transfer`]); once. It is answered by [`Link::end_transfer`].
    fn take_transfer(&mut self) -> Option<Transfer> {
        None
    }

    /// Tells the peer whether what it wanted was done.
    fn end_transfer(&mut self, slots: &mut Slots, done: bool) {
        let _ = (slots, done);
    }

    /// A copy of the connection with the peer, where peers come and go and there is one. The link is not to be used any more if the copy is.
    ///
    /// # Errors
    /// If descriptors ran out.
    fn connection(&self, slots: &Slots) -> io::Result<Option<Connection>> {
        let _ = slots;
        Ok(None)
    }

    /// Goes on with a connection of a former link of the same kind, before anything else. Links that have none ignore it.
    fn take_over(&mut self, slots: &mut Slots, connection: Connection) {
        let _ = (slots, connection);
    }
}

impl<L: Link + ?Sized> Link for Box<L> {
    fn info(&self) -> LinkInfo {
        (**self).info()
    }

    fn take_change(&mut self) -> bool {
        (**self).take_change()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        (**self).fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        (**self).recv_batch(slots, out)
    }

    fn asks_for_all(&self) -> bool {
        (**self).asks_for_all()
    }

    fn answer_peer(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        (**self).answer_peer(slots)
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        (**self).send(slots, frame)
    }

    fn reads_in_place(&self) -> bool {
        (**self).reads_in_place()
    }

    fn send_unread(&mut self, slots: &mut Slots, frame: TxFrame<'_>, body: &mut dyn Unread) -> Result<(), TxError> {
        (**self).send_unread(slots, frame, body)
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        (**self).flush(slots)
    }

    fn waits(&self) -> bool {
        (**self).waits()
    }

    fn has_room(&self) -> bool {
        (**self).has_room()
    }

    fn stop(&mut self, slots: &mut Slots) {
        (**self).stop(slots);
    }

    fn stats(&self) -> LinkStats {
        (**self).stats()
    }

    fn take_news(&mut self) -> Option<LinkNews> {
        (**self).take_news()
    }

    fn take_transfer(&mut self) -> Option<Transfer> {
        (**self).take_transfer()
    }

    fn end_transfer(&mut self, slots: &mut Slots, done: bool) {
        (**self).end_transfer(slots, done);
    }

    fn connection(&self, slots: &Slots) -> io::Result<Option<Connection>> {
        (**self).connection(slots)
    }

    fn take_over(&mut self, slots: &mut Slots, connection: Connection) {
        (**self).take_over(slots, connection);
    }
}

/// Bytes of a connection that may be on their way from the guest over a socket: a local link needs no more at any speed (the delay is that of a
/// wake-up), more falls out of the processor's cache before it is read, and bursts outgrow queues.
const IN_FLIGHT: u32 = 320 * 1024;

/// Longest frame: an IP packet of 65,535 bytes behind its Ethernet header.
const MAX_FRAME: usize = ethernet::HEADER_LEN + 65_535;

impl LinkStats {
    /// Counts a frame received.
    fn received(&mut self, len: usize) {
        self.rx_frames += 1;
        self.rx_bytes += len as u64;
    }

    /// Counts a frame sent.
    fn sent(&mut self, len: usize) {
        self.tx_frames += 1;
        self.tx_bytes += len as u64;
    }

    /// Counts a frame not sent.
    fn refused(&mut self, why: TxError) -> TxError {
        match why {
            TxError::Full => self.tx_full += 1,
            TxError::Down => self.tx_down += 1,
            TxError::TooBig => self.tx_too_big += 1,
        }
        why
    }

    /// Counts a frame that the kernel refused.
    fn failed(&mut self, e: &io::Error) -> TxError {
        match e.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => self.refused(TxError::Full),
            Some(
                libc::EIO
                | libc::EBADFD
                | libc::ENETDOWN
                | libc::ENODEV
                | libc::ENXIO
                | libc::EPIPE
                | libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::ENOTCONN,
            ) => self.refused(TxError::Down),
            Some(libc::EMSGSIZE) => self.refused(TxError::TooBig),
            _ => {
                self.tx_errors += 1;
                TxError::TooBig
            }
        }
    }
}

/// Refuses what a link with these capabilities does not carry.
fn check_size(info: &LinkInfo, frame: &TxFrame<'_>) -> Result<(), TxError> {
    let most = if frame.gso.is_some() { MAX_FRAME } else { ethernet::HEADER_LEN + usize::from(info.mtu) };
    if frame.head.len() + frame.body.len() > most { Err(TxError::TooBig) } else { Ok(()) }
}

/// Gives the body's slot back unless its sender keeps it.
fn release(slots: &mut Slots, frame: &TxFrame<'_>) {
    if !frame.keep_body {
        slots.give(frame.body.slot);
    }
}
