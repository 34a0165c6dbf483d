//! Host sockets: the host's side of every flow, behind one inner epoll descriptor.
//!
//! A socket is registered once, for everything and edge-triggered, and never modified: Linux reports room for sending again
//! only after a call that came up short, so nothing needs to be switched. Sockets are named by slot and generation, so an
//! event of a socket that was closed earlier in the same batch is recognised.

mod ahead;
mod bytes;
pub mod error;
mod gather;
mod hold;
mod ping;
mod source;
mod state;
mod tcp;
mod udp;
mod unread;

use crate::slots::Slots;
use crate::sys::socket;
use ahead::Ahead;
pub use bytes::Bytes;
use error::sock_error;
use gather::Gather;
use hibernet_netstack::edge::{Close, Ready, SockError, SockId, Token};
pub use hold::{HoldError, SocketFate, Supplied};
use ping::{Ping, RawPing, RawPings};
use serde::{Deserialize, Serialize};
use source::Reserved;
pub use state::{
    Fingerprint, HeaderState, Notice, PingState, QueuedDatagram, RawPingState, Scope, SlotState, SocketKind, SocketState,
    SocketsState, TcpState, UdpState,
};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use tcp::Tcp;
pub use tcp::{PEEK_MAX, prepare as prepare_tcp};
pub use udp::PathMtu;
use udp::Udp;
pub use unread::{Rest, UNREAD_MIN, is_unread};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Most events of one look at the inner epoll.
pub const EVENTS: usize = 256;
/// Bits of a [`SockId`] that are the slot; the others are the generation.
const INDEX_BITS: u32 = 20;
/// How many generations there are.
const GENERATIONS: u16 = 1 << (32 - INDEX_BITS);
/// Words of events of the shared raw sockets, out of the range of [`SockId`].
const RAW_V4: u64 = 1 << 32;
const RAW_V6: u64 = 2 << 32;

/// What events a flow's socket is registered for.
fn interest() -> EventSet {
    EventSet::IN | EventSet::OUT | EventSet::PRIORITY | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
}

macro_rules! socket_stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of the host's side. All only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct SocketStats { $($(#[$doc])* pub $name: u64,)* }

        impl SocketStats {
            /// The sums of both.
            #[must_use]
            pub fn plus(self, other: SocketStats) -> SocketStats {
                SocketStats { $($name: self.$name + other.$name,)* }
            }

            /// Name and value of every counter.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

socket_stats! {
    /// Sockets opened or accepted.
    opened,
    /// Sockets closed.
    closed,
    /// Opens that failed because descriptors, memory or ports ran out.
    no_resources,
    /// Datagrams dropped because the socket's send buffer or the interface's queue was full.
    send_full,
    /// Datagrams that the host refused to send.
    send_failed,
    /// Datagrams sent by calls that carried several.
    sent_together,
    /// Datagrams dropped because they did not come from the flow's peer.
    wrong_sender,
    /// Reads put off because no payload slot was free.
    no_slot,
    /// Echo replies and errors dropped because their flow did not take the earlier ones.
    ping_overrun,
}

/// Something happened at a socket.
pub type SocketEvent = (SockId, Ready);

/// All host sockets of a worker.
pub struct Sockets {
    epoll: Epoll,
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Whether TCP sockets have a peek offset, IPv4 and IPv6; unknown until the first one is asked.
    peek_offset: [Option<bool>; 2],
    /// Where the bytes before an offset go where there is no peek offset; empty until needed.
    discard: Vec<u8>,
    ahead: Ahead,
    unread: unread::Current,
    gather: Gather,
    reserved: Option<Reserved>,
    raw: RawPings,
    /// Events that are not the kernel's: something was put off, or failed in a gathered call.
    notices: VecDeque<SocketEvent>,
    events: Box<[EpollEvent; EVENTS]>,
    stats: SocketStats,
}

impl std::fmt::Debug for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sockets").field("open", &self.len()).field("stats", &self.stats).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Entry {
    /// Changes whenever the slot is given out.
    generation: u16,
    token: Option<Token>,
    /// The error queue may hold something. Cleared when it was found empty; whatever comes later is an event.
    reports: bool,
    sock: Sock,
}

#[derive(Debug)]
enum Sock {
    Free,
    Tcp(Tcp),
    Udp(Udp),
    Ping(Ping),
    RawPing(RawPing),
}

impl Sock {
    /// The socket's own descriptor, if it has one.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Sock::Tcp(s) => Some(s.fd.as_fd()),
            Sock::Udp(s) => Some(s.fd.as_fd()),
            Sock::Ping(s) => Some(s.fd.as_fd()),
            Sock::RawPing(_) | Sock::Free => None,
        }
    }
}

/// A handle that names no socket: a mistake of the caller.
const STALE: SockError = SockError::Other(libc::EBADF);

impl Sockets {
    /// No sockets yet. The raw ICMP sockets, if any, serve pings where ping sockets are switched off.
    pub fn new(raw4: Option<OwnedFd>, raw6: Option<OwnedFd>) -> io::Result<Sockets> {
        let epoll = Epoll::new()?;
        let raw = RawPings::new(raw4, raw6)?;
        for (fd, word) in [(raw.fd(false), RAW_V4), (raw.fd(true), RAW_V6)] {
            if let Some(fd) = fd {
                epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(interest(), word))?;
            }
        }
        Ok(Sockets {
            epoll,
            entries: Vec::new(),
            free: Vec::new(),
            peek_offset: [None; 2],
            discard: Vec::new(),
            ahead: Ahead::default(),
            unread: unread::Current::default(),
            gather: Gather::default(),
            reserved: None,
            raw,
            notices: VecDeque::new(),
            events: Box::new([EpollEvent::default(); EVENTS]),
            stats: SocketStats::default(),
        })
    }

    /// The inner epoll descriptor: readable while [`Sockets::poll`] has something to report.
    pub fn fd(&self) -> &impl AsRawFd {
        &self.epoll
    }

    /// Counters.
    pub fn stats(&self) -> &SocketStats {
        &self.stats
    }

    /// Open sockets.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether no socket is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Treats TCP sockets of both families as if the kernel had no peek offset for them.
    pub fn disable_peek_offset(&mut self) {
        self.peek_offset = [Some(false); 2];
    }

    /// Adds what happened since the last call to `out`, without waiting; at most [`EVENTS`] and a few. Returns whether there may be more.
    pub fn poll(&mut self, slots: &mut Slots, out: &mut Vec<SocketEvent>) -> bool {
        // Fails only if a signal interrupts it; then the descriptor stays readable.
        let n = self.epoll.wait(0, &mut self.events[..]).unwrap_or(0);
        for i in 0..n {
            let (set, word) = (self.events[i].event_set(), self.events[i].data());
            match u32::try_from(word) {
                Ok(id) => {
                    if set.contains(EventSet::PRIORITY) {
                        self.urgent(SockId(id));
                    }
                    let ready = Ready {
                        readable: set.contains(EventSet::IN),
                        writable: set.contains(EventSet::OUT),
                        peer_closed: set.contains(EventSet::READ_HANG_UP),
                        error: set.contains(EventSet::ERROR),
                    };
                    if ready.error {
                        self.expect_reports(SockId(id));
                    }
                    out.push((SockId(id), ready));
                }
                Err(_) => self.raw_ready(slots, word == RAW_V6),
            }
        }
        for is_v6 in [false, true] {
            if self.raw.take_again(is_v6) {
                self.raw_ready(slots, is_v6);
            }
        }
        out.extend(self.notices.drain(..));
        n == EVENTS
    }

    /// Whether [`Sockets::poll`] would report something although the descriptor is not readable.
    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty() || self.raw.has_again()
    }

    /// Whom an event is for. `None` if the socket was closed since.
    pub fn token(&self, id: SockId) -> Option<Token> {
        self.entry(id).and_then(|e| e.token)
    }

    /// Takes an accepted TCP socket over. It is silent until [`Sockets::tcp_adopt`].
    /// `v6` is the socket's family.
    pub fn accept(&mut self, fd: OwnedFd, v6: bool) -> Result<SockId, SockError> {
        self.insert(None, Sock::Tcp(Tcp::new(fd, v6)))
    }

    /// Whether a socket is open and nobody gets its events.
    pub fn is_silent(&self, id: SockId) -> bool {
        self.entry(id).is_some_and(|e| e.token.is_none())
    }

    fn entry(&self, id: SockId) -> Option<&Entry> {
        let e = self.entries.get((id.0 & ((1 << INDEX_BITS) - 1)) as usize)?;
        (u32::from(e.generation) == id.0 >> INDEX_BITS && !matches!(e.sock, Sock::Free)).then_some(e)
    }

    fn entry_mut(&mut self, id: SockId) -> Option<&mut Entry> {
        let e = self.entries.get_mut((id.0 & ((1 << INDEX_BITS) - 1)) as usize)?;
        (u32::from(e.generation) == id.0 >> INDEX_BITS && !matches!(e.sock, Sock::Free)).then_some(e)
    }

    fn tcp_ref(&self, id: SockId) -> Option<&Tcp> {
        match self.entry(id).map(|e| &e.sock) {
            Some(Sock::Tcp(s)) => Some(s),
            _ => None,
        }
    }

    fn tcp(&mut self, id: SockId) -> Result<&mut Tcp, SockError> {
        match self.entry_mut(id).map(|e| &mut e.sock) {
            Some(Sock::Tcp(s)) => Ok(s),
            _ => Err(STALE),
        }
    }

    fn udp(&mut self, id: SockId) -> Result<&mut Udp, SockError> {
        match self.entry_mut(id).map(|e| &mut e.sock) {
            Some(Sock::Udp(s)) => Ok(s),
            _ => Err(STALE),
        }
    }

    /// Puts a socket into a slot.
    fn insert(&mut self, token: Option<Token>, sock: Sock) -> Result<SockId, SockError> {
        let index = match self.free.pop() {
            Some(i) => i,
            None if self.entries.len() < 1 << INDEX_BITS => {
                self.entries.push(Entry { generation: 0, token: None, reports: false, sock: Sock::Free });
                (self.entries.len() - 1) as u32
            }
            None => return Err(SockError::NoResources),
        };
        let e = &mut self.entries[index as usize];
        e.generation = (e.generation + 1) % GENERATIONS;
        e.token = token;
        e.reports = false;
        e.sock = sock;
        self.stats.opened += 1;
        Ok(SockId(u32::from(e.generation) << INDEX_BITS | index))
    }

    /// Puts a socket into a slot and has its events reported.
    fn register(&mut self, token: Token, sock: Sock) -> Result<SockId, SockError> {
        let id = self.insert(Some(token), sock)?;
        if let Err(e) = self.watch(id) {
            self.remove(id);
            return Err(sock_error(&e));
        }
        Ok(id)
    }

    fn watch(&mut self, id: SockId) -> io::Result<()> {
        match self.entry(id).and_then(|e| e.sock.fd()) {
            Some(fd) => self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(interest(), u64::from(id.0))),
            None => Ok(()),
        }
    }

    /// Frees a slot; the socket is closed with it.
    fn remove(&mut self, id: SockId) -> Option<Sock> {
        let e = self.entry_mut(id)?;
        e.token = None;
        let sock = std::mem::replace(&mut e.sock, Sock::Free);
        self.free.push(id.0 & ((1 << INDEX_BITS) - 1));
        self.stats.closed += 1;
        Some(sock)
    }

    /// Ends a socket. It leaves the epoll first: were the description shared with another process, its events would go on.
    pub fn close(&mut self, slots: &mut Slots, id: SockId, how: Close) {
        if self.gather.is_for(id) {
            self.flush(slots);
        }
        self.ahead.forget_of(slots, id);
        self.unread.forget_of(id);
        let Some(sock) = self.remove(id) else { return };
        if let Some(fd) = sock.fd() {
            // Fails only for a socket that was never watched.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
        }
        match sock {
            Sock::Tcp(s) if how == Close::Reset => {
                // Fails only for a descriptor that is no socket.
                let _ = socket::set_linger_reset(s.fd.as_fd());
            }
            Sock::RawPing(s) => self.raw.closed(slots, s),
            _ => {}
        }
    }

    /// The error queue of a socket has to be looked at.
    fn expect_reports(&mut self, id: SockId) {
        if let Some(e) = self.entry_mut(id) {
            e.reports = true;
        }
    }

    /// Reports an event at the next [`Sockets::poll`].
    fn notice(&mut self, id: SockId, ready: Ready) {
        self.notices.push_back((id, ready));
    }

    /// Reports `readable` again because no slot was free to read into.
    fn retry_read(&mut self, id: SockId) {
        self.stats.no_slot += 1;
        self.notice(id, Ready { readable: true, ..Ready::default() });
    }

    /// An open failed: counts what is worth it.
    fn failed(&mut self, e: SockError) -> SockError {
        self.stats.no_resources += u64::from(e == SockError::NoResources);
        e
    }
}
