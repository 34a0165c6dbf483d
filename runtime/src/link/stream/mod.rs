//! Streams of frames, each behind its length: 32 bits, big-endian. QEMU's `-netdev stream`, and what passt speaks.
//!
//! Such a stream has no place where it could be taken up again: after a length that cannot be true it is closed. Whoever is at its other end may come and
//! go; while nobody is there, frames for the guest are dropped and counted.

mod inbox;
mod outbox;

use super::poll::{ANY, Poll};
use super::{Connection, IN_FLIGHT, Link, LinkError, LinkNews, LinkStats, Received, RxBatch, check_size, release};
use crate::slots::Slots;
use crate::sys::event::Event;
use crate::sys::socket::{self, set_nonblocking};
use crate::sys::stream;
use hibernet_netstack::edge::{LinkInfo, RxChecksum, Tso, TxError, TxFrame};
use hibernet_netstack::wire::Mac;
use inbox::{Inbox, Next};
use outbox::{Outbox, Written};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that may wait in the kernel for the peer, its bookkeeping included (which it doubles the number for). Enough to keep it busy while we do other things.
const SEND_BUFFER: libc::c_int = 512 * 1024;

/// Where connections come from.
#[derive(Debug)]
enum Origin {
    /// They are accepted here, one after the other: who connects while there is one waits until that has ended.
    Listener(OwnedFd),
    /// The first is accepted here, and is the last.
    OneOff(OwnedFd),
    /// There was one, and when that has ended the link is gone.
    Over,
}

/// A connection.
#[derive(Debug)]
struct Peer {
    fd: OwnedFd,
    /// Its end takes nothing any more.
    broken: bool,
    /// It is watched for taking more.
    watched: bool,
}

/// A link over a stream socket.
pub struct StreamLink {
    /// What the link waits for: a connection, or what happens at the one that there is.
    poll: Poll,
    origin: Origin,
    peer: Option<Peer>,
    info: LinkInfo,
    stats: LinkStats,
    inbox: Inbox,
    outbox: Outbox,
    /// There is more to be handed out, although nothing more may come. Signalled as `announced` says.
    more: Event,
    announced: bool,
    /// The stream takes no more for now.
    full: bool,
    /// The last read took all that there was.
    drained: bool,
    news: Option<LinkNews>,
    stopped: bool,
}

impl std::fmt::Debug for StreamLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamLink").field("origin", &self.origin).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl StreamLink {
    /// Waits for connections at a listening socket; with `one_off` for one, after which the link is gone. `mtu` in bytes.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn listening(listener: OwnedFd, one_off: bool, mtu: u16, guest_mac: Option<Mac>) -> io::Result<StreamLink> {
        set_nonblocking(&listener)?;
        let origin = if one_off { Origin::OneOff(listener) } else { Origin::Listener(listener) };
        let link = StreamLink::with(origin, mtu, guest_mac)?;
        link.watch_listener(true)?;
        Ok(link)
    }

    /// Over a socket that is connected. `mtu` in bytes.
    ///
    /// # Errors
    /// `InvalidInput` if it is no stream socket; others if descriptors ran out.
    pub fn connected(fd: OwnedFd, mtu: u16, guest_mac: Option<Mac>) -> io::Result<StreamLink> {
        if socket::get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE)? != libc::SOCK_STREAM {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is no stream socket"));
        }
        set_nonblocking(&fd)?;
        let mut link = StreamLink::with(Origin::Over, mtu, guest_mac)?;
        link.connect(fd)?;
        Ok(link)
    }

    fn with(origin: Origin, mtu: u16, guest_mac: Option<Mac>) -> io::Result<StreamLink> {
        let poll = Poll::new()?;
        let more = Event::new()?;
        poll.add(&more, ANY)?;
        Ok(StreamLink {
            poll,
            origin,
            peer: None,
            info: LinkInfo { mtu, checksum: false, tso: Tso::None, uso: false, guest_mac, in_flight: IN_FLIGHT },
            stats: LinkStats::default(),
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            more,
            announced: false,
            full: false,
            drained: false,
            news: None,
            stopped: false,
        })
    }

    fn watch_listener(&self, on: bool) -> io::Result<()> {
        let (Origin::Listener(listener) | Origin::OneOff(listener)) = &self.origin else { return Ok(()) };
        if on {
            return self.poll.add(listener, ANY);
        }
        self.poll.remove(listener);
        Ok(())
    }

    fn connect(&mut self, fd: OwnedFd) -> io::Result<()> {
        // The kernel may allow less, with which it works too.
        let _ = socket::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER);
        self.poll.add(&fd, ANY)?;
        self.watch_listener(false)?;
        if matches!(self.origin, Origin::OneOff(_)) {
            self.origin = Origin::Over;
        }
        self.peer = Some(Peer { fd, broken: false, watched: false });
        self.drained = false;
        self.news = Some(LinkNews::Connected);
        Ok(())
    }

    /// Accepts a connection if one waits.
    fn accept(&mut self) -> io::Result<()> {
        let (Origin::Listener(listener) | Origin::OneOff(listener)) = &self.origin else { return Ok(()) };
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => self.connect(fd),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The connection has ended.
    fn lose(&mut self, slots: &mut Slots, why: String) {
        let Some(peer) = self.peer.take() else { return };
        self.poll.remove(&peer.fd);
        self.stats.rx_cut_off += u64::from(self.inbox.clear(slots));
        self.drop_outbox(slots);
        self.stats.rx_down += 1;
        self.news = Some(LinkNews::Disconnected(why));
        // It can only fail for want of memory; then nobody can connect any more, which is told by the next call.
        if self.watch_listener(true).is_err() {
            self.origin = Origin::Over;
        }
    }

    fn drop_outbox(&mut self, slots: &mut Slots) {
        self.stats.tx_down += self.outbox.clear(slots) as u64;
        self.full = false;
    }

    /// Whether the link is gone for good.
    fn is_over(&self) -> bool {
        self.stopped || self.peer.is_none() && matches!(self.origin, Origin::Over)
    }

    /// Takes what the stream has, as much as there is room for.
    fn read(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        let Some(peer) = &self.peer else { return Ok(()) };
        let Some(room) = self.inbox.room(slots) else {
            // It waits in the socket, and whoever sends it too.
            self.stats.rx_no_slot += 1;
            return Ok(());
        };
        let most = room.len();
        match socket::recv(peer.fd.as_fd(), &mut slots.memory_mut()[room], 0) {
            Ok(0) => self.lose(slots, "it has closed the connection".into()),
            Ok(n) => {
                self.inbox.received(n);
                self.drained = n < most;
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => self.lose(slots, e.to_string()),
        }
        Ok(())
    }

    /// Hands frames out. How many of them.
    fn hand_out(&mut self, slots: &mut Slots, out: &mut RxBatch) -> usize {
        let mut count = 0;
        while out.room() > 0 {
            match self.inbox.next(slots) {
                Next::Frame(frame) => {
                    self.stats.received(frame.len());
                    let r = Received { slot: frame.slot, frame, checksum: RxChecksum::Unverified, gso: None };
                    // There is room.
                    let _ = out.push(r).map_err(|r| slots.give(r.slot));
                    count += 1;
                }
                Next::Short => self.stats.rx_too_short += 1,
                Next::TooLong(len) => {
                    self.stats.rx_too_long += 1;
                    self.inbox.clear(slots);
                    self.lose(
                        slots,
                        format!("a frame of {len} bytes was announced, longer than any can be; the connection was closed"),
                    );
                }
                Next::Nothing => break,
            }
        }
        count
    }

    /// Keeps the descriptor readable as long as there is something to be handed out or told.
    fn announce(&mut self, slots: &Slots) {
        let wanted = self.is_over() || self.inbox.has_more(slots);
        if wanted != self.announced {
            self.announced = wanted;
            if wanted {
                self.more.signal();
            } else {
                self.more.clear();
            }
        }
    }

    /// Has the descriptor be readable also when the stream takes more.
    fn watch_room(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        if peer.watched != self.full && self.poll.watch_room(&peer.fd, ANY, self.full) {
            peer.watched = self.full;
        }
    }

    fn gather(&mut self, slots: &mut Slots, frame: &TxFrame<'_>) -> Result<(), TxError> {
        match &self.peer {
            Some(p) if !p.broken && !self.stopped => {}
            _ => return Err(TxError::Down),
        }
        check_size(&self.info, frame)?;
        if frame.gso.is_some() || frame.checksum.is_some() {
            return Err(TxError::TooBig);
        }
        if self.outbox.is_full(frame.head.len(), self.full) && !self.full {
            self.write(slots);
        }
        if self.outbox.is_full(frame.head.len(), self.full) {
            return Err(TxError::Full);
        }
        if frame.keep_body {
            slots.hold(frame.body.slot);
        }
        self.outbox.push(frame);
        if self.outbox.is_worth_it() && !self.full {
            self.write(slots);
        }
        Ok(())
    }

    fn write(&mut self, slots: &mut Slots) {
        let Some(peer) = self.peer.as_mut().filter(|p| !p.broken) else { return };
        let fd = peer.fd.as_fd();
        self.full = false;
        match self.outbox.write(slots, &mut self.stats, |pieces| stream::send_vectored(fd, pieces)) {
            Written::All => {}
            Written::Full => self.full = true,
            Written::Broken => {
                // What had come before is read first; then the end is found.
                peer.broken = true;
                self.drop_outbox(slots);
            }
        }
    }
}

impl Link for StreamLink {
    fn info(&self) -> LinkInfo {
        self.info
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        if self.is_over() {
            return Err(LinkError::Closed);
        }
        if self.peer.is_none() {
            self.accept()?;
        }
        // What comes after a read that took all is told.
        if self.hand_out(slots, out) == 0 && out.room() > 0 && !std::mem::take(&mut self.drained) {
            self.read(slots)?;
            self.hand_out(slots, out);
        }
        self.announce(slots);
        Ok(())
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        self.gather(slots, &frame).map_err(|e| {
            release(slots, &frame);
            self.stats.refused(e)
        })
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        if !self.outbox.is_empty() {
            self.write(slots);
        }
        self.watch_room();
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.peer.is_some() && !self.full
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.stopped = true;
        self.inbox.clear(slots);
        self.outbox.clear(slots);
        self.full = false;
    }

    fn stats(&self) -> LinkStats {
        self.stats
    }

    fn take_news(&mut self) -> Option<LinkNews> {
        self.news.take()
    }

    fn connection(&self, slots: &Slots) -> io::Result<Option<Connection>> {
        let copy = |peer: &Peer| {
            let (received, unsent) = (self.inbox.bytes(slots).to_vec(), self.outbox.begun(slots));
            Ok(Connection { fd: peer.fd.try_clone()?, received, unsent })
        };
        self.peer.as_ref().filter(|p| !p.broken).map(copy).transpose()
    }

    fn take_over(&mut self, slots: &mut Slots, connection: Connection) {
        let Connection { fd, received, unsent } = connection;
        // Without the bytes that were received the frames behind them could not be found. A link that was made with the connection has it.
        if self.inbox.begin(slots, &received) && (self.peer.is_some() || self.connect(fd).is_ok()) {
            self.outbox.begin(slots, unsent);
            // The guest knows us.
            self.news = None;
            self.announce(slots);
        } else {
            self.inbox.clear(slots);
        }
    }
}
