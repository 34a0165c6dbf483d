//! Host sockets that outlive their owner: what is written down of them, and taking them over.
//!
//! A socket survives in its descriptor, held by another process or handed to a successor; what the kernel does not know of
//! it is plain data. Sockets keep their [`SockId`], so that the stack's flows find them. A socket that went on since the data were
//! written is told by its [`Fingerprint`].

use super::ping::{Ping, RawPing};
use super::tcp::Tcp;
use super::udp::{MAX_SCOPES, PathMtu, Udp};
use super::{Bytes, Entry, GENERATIONS, INDEX_BITS, Sock, SocketStats, Sockets};
use crate::slots::SLOT_SIZE;
use crate::sys::tcp::{self, TcpInfo};
use crate::sys::{socket, tcp::CLOSE};
use hibernet_netstack::edge::{Ready, SockId, Token, TokenKind};
use hibernet_netstack::tuple::Endpoint;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use vmm_sys_util::epoll::{ControlOperation, EpollEvent};

/// Everything about the sockets of a worker but the sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketsState {
    /// Slots in their order.
    pub slots: Vec<SlotState>,
    /// The free ones among them; the last is given out first.
    pub free: Vec<u32>,
    /// Events that are not the kernel's and were not handed out, at most one for each socket.
    pub notices: Vec<Notice>,
    /// Counters.
    pub stats: SocketStats,
}

impl SocketsState {
    /// All sockets with their kind.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (SockId, &SocketKind)> {
        (0..).zip(&self.slots).filter_map(|(i, s)| Some((s.id(i), &s.socket.as_ref()?.kind)))
    }

    /// Datagrams that were taken out of sockets and not handed out.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (SockId, &[QueuedDatagram])> {
        self.kinds().filter_map(|(id, kind)| match kind {
            SocketKind::Udp(u) if !u.waiting.is_empty() => Some((id, &u.waiting[..])),
            _ => None,
        })
    }

    /// Adds datagrams that were taken out of sockets behind those that wait already.
    pub(crate) fn set_waiting(&mut self, mut taken: HashMap<SockId, Vec<QueuedDatagram>>) {
        for (i, slot) in (0..).zip(&mut self.slots) {
            let id = slot.id(i);
            if let Some(SocketState { kind: SocketKind::Udp(u), .. }) = &mut slot.socket {
                u.waiting.extend(taken.remove(&id).into_iter().flatten());
            }
        }
    }
}

impl SlotState {
    /// The handle of the socket in it.
    fn id(&self, index: u32) -> SockId {
        SockId(u32::from(self.generation) << INDEX_BITS | index)
    }
}

/// A slot. Without a socket it is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Generation of the socket, or of the last one.
    pub generation: u16,
    /// The socket.
    pub socket: Option<SocketState>,
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketState {
    /// Bits of its [`Token`]; `None` if nobody gets its events yet.
    pub token: Option<u64>,
    /// The error queue may hold something.
    pub reports: bool,
    /// The kernel's number of the socket; 0 if unknown, or if it has no descriptor of its own.
    pub cookie: u64,
    /// What is special to its kind.
    pub kind: SocketKind,
}

/// A socket by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketKind {
    /// TCP.
    Tcp(TcpState),
    /// UDP.
    Udp(UdpState),
    /// A ping socket.
    Ping(PingState),
    /// A flow on a raw socket, which is shared.
    RawPing(RawPingState),
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpState {
    /// The socket's family is IPv6's.
    pub v6: bool,
    /// Bytes wait behind an urgent mark.
    pub at_mark: bool,
    /// Urgent data came at some time.
    pub urgent: bool,
    /// The peer has ended its stream, whether or not the socket knows it.
    pub ended: bool,
    /// Where its streams stand.
    pub fingerprint: Fingerprint,
}

/// A UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpState {
    /// The socket's family is IPv6's.
    pub v6: bool,
    /// Whom it is connected to; `None` for a published port.
    pub peer: Option<Endpoint>,
    /// Options of the IP header.
    pub header: HeaderState,
    /// Interfaces behind which link-local clients are, the latest last.
    pub scopes: Vec<Scope>,
    /// The kernel cuts super-datagrams for it.
    pub segments: bool,
    /// Error number of a gathered datagram, not handed out.
    pub pending: Option<i32>,
    /// Datagrams that were taken out of the kernel and not handed out, the first first.
    pub waiting: Vec<QueuedDatagram>,
}

/// A datagram that was received and not handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedDatagram {
    /// The bytes.
    pub bytes: Bytes,
    /// Sender.
    pub from: Endpoint,
    /// Number of the interface that a link-local sender is behind, else 0.
    pub scope: u32,
    /// The local address that it was sent to, if known.
    pub to: Option<IpAddr>,
    /// TTL or hop limit with which it came, if known.
    pub hop_limit: Option<u8>,
    /// Equal datagrams were merged; this is the length of each but the last.
    pub segment: Option<u16>,
}

/// Options of the IP header that a datagram socket sends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderState {
    /// TTL or hop limit, if it was set.
    pub hop_limit: Option<u8>,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// What becomes of datagrams that are longer than the path's MTU.
    pub path_mtu: PathMtu,
}

/// The interface behind which a link-local client is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The client.
    pub addr: Ipv6Addr,
    /// Number of the interface.
    pub interface: u32,
}

/// A ping socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingState {
    /// Who is asked.
    pub to: IpAddr,
    /// The identifier, which is the socket's port.
    pub ident: u16,
    /// Options of the IP header.
    pub header: HeaderState,
}

/// A flow of echo requests on a raw socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawPingState {
    /// Who is asked.
    pub to: IpAddr,
    /// The source that requests must have.
    pub from: Option<IpAddr>,
    /// The identifier.
    pub ident: u16,
}

/// An event that is not the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The socket.
    pub id: u32,
    /// See [`Ready::readable`].
    pub readable: bool,
    /// See [`Ready::peer_closed`].
    pub peer_closed: bool,
    /// See [`Ready::error`].
    pub error: bool,
}

/// Where the streams of a TCP socket stand, in numbers that only its owner changes, whatever the peer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// State of the connection when the numbers were read.
    pub state: u8,
    /// Bytes written, a FIN included.
    pub written: u64,
    /// Bytes consumed.
    pub consumed: u64,
}

/// How often the numbers are read again because the peer moved them meanwhile.
const ATTEMPTS: usize = 100;

impl Fingerprint {
    /// Reads it.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Fingerprint> {
        let mut before = TcpInfo::of(fd)?;
        for _ in 0..ATTEMPTS {
            let read = Fingerprint::at(fd, &before)?;
            // What moves from one of two numbers to the other would be missed, or counted twice.
            let after = TcpInfo::of(fd)?;
            if (after.bytes_acked, after.bytes_received, after.state) == (before.bytes_acked, before.bytes_received, before.state)
            {
                return Ok(read);
            }
            before = after;
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn at(fd: BorrowedFd<'_>, info: &TcpInfo) -> io::Result<Fingerprint> {
        // After a reset nothing arrives any more, but the state does not say whether a FIN had.
        let fin = u64::from(tcp::peer_finished(info.state) && info.state != CLOSE);
        Ok(Fingerprint {
            state: info.state,
            written: info.bytes_acked.wrapping_add(u64::from(tcp::unacknowledged(fd)?)),
            consumed: info.bytes_received.wrapping_sub(u64::from(tcp::unread(fd)?)).wrapping_sub(fin),
        })
    }

    /// Whether `later` can be the same socket with the same bytes written and consumed.
    pub fn is_continued_by(&self, later: &Fingerprint) -> bool {
        let written = later.written.wrapping_sub(self.written);
        let consumed = later.consumed.wrapping_sub(self.consumed);
        // The SYN counts as a byte that is written, from the time it is acknowledged.
        let connected = self.state == tcp::SYN_SENT && later.state != tcp::SYN_SENT;
        // The FIN, if there was one, counts as received.
        let ended = later.state == CLOSE;
        (written == 0 || connected && written == 1) && (consumed == 0 || ended && consumed == 1)
    }

    /// Whether a socket goes on from here.
    fn is_of(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        // Mostly the peer is quiet, and one look does.
        Ok(self.is_continued_by(&Fingerprint::at(fd, &TcpInfo::of(fd)?)?) || self.is_continued_by(&Fingerprint::of(fd)?))
    }
}

/// A descriptor for a socket that is restored.
#[derive(Debug)]
pub enum Supplied {
    /// The socket itself: it was held, or handed over.
    Held(OwnedFd),
    /// Another one that continues it. It has no history that could be compared. The end of the peer's stream, if it had come, is behind the
    /// last byte that the socket has.
    Rebuilt(OwnedFd),
}

/// What became of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFate {
    /// It goes on.
    Resumed,
    /// Nobody had it.
    Missing,
    /// The one that was supplied is another, or went on since the state was saved. It was closed here and not touched otherwise.
    Stale,
    /// The one that was supplied is of another kind, or the kernel refused it, with this error number.
    Unusable(Option<i32>),
}

/// Why sockets could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// There cannot be so many.
    #[error("host sockets of the image: {0} slots, at most {max} are possible: the image is damaged", max = 1 << INDEX_BITS)]
    TooMany(usize),
    /// Something about a slot is impossible.
    #[error("host sockets of the image: slot {slot}: {what}: the image is damaged")]
    Invalid {
        /// The slot.
        slot: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// The kernel refused something.
    #[error("cannot watch host sockets: {0}")]
    Os(#[from] io::Error),
}

impl Sockets {
    /// Writes everything down. What waits to be sent ([`Sockets::flush`]) or to be handed out ([`Sockets::has_notices`]) should be
    /// before: echo replies that were read from a raw socket and not handed out are not kept.
    ///
    /// # Errors
    ///
    /// If a socket's numbers cannot be read.
    pub fn save(&self) -> io::Result<SocketsState> {
        let slots = self.entries.iter().map(|e| {
            let kind = match &e.sock {
                Sock::Free => return Ok(SlotState { generation: e.generation, socket: None }),
                Sock::Tcp(s) => SocketKind::Tcp(s.save()?),
                Sock::Udp(s) => SocketKind::Udp(s.save()),
                Sock::Ping(s) => SocketKind::Ping(s.save()),
                Sock::RawPing(s) => SocketKind::RawPing(s.save()),
            };
            let cookie = e.sock.fd().map_or(0, socket::cookie);
            let socket = SocketState { token: e.token.map(Token::bits), reports: e.reports, cookie, kind };
            Ok(SlotState { generation: e.generation, socket: Some(socket) })
        });
        let mut notices: Vec<Notice> = Vec::new();
        let mut pending: Vec<_> = self.notices.iter().filter(|(id, _)| self.entry(*id).is_some()).collect();
        pending.sort_by_key(|(id, _)| id.0);
        for (id, ready) in pending {
            match notices.last_mut().filter(|n| n.id == id.0) {
                Some(n) => {
                    n.readable |= ready.readable;
                    n.peer_closed |= ready.peer_closed;
                    n.error |= ready.error;
                }
                None => notices.push(Notice {
                    id: id.0,
                    readable: ready.readable,
                    peer_closed: ready.peer_closed,
                    error: ready.error,
                }),
            }
        }
        Ok(SocketsState { slots: slots.collect::<io::Result<_>>()?, free: self.free.clone(), notices, stats: self.stats })
    }

    /// The descriptors of all sockets that have one of their own, in the order of the slots.
    pub fn descriptors(&self) -> impl Iterator<Item = (SockId, BorrowedFd<'_>)> {
        let id = |index: usize, e: &Entry| SockId(u32::from(e.generation) << INDEX_BITS | index as u32);
        self.entries.iter().enumerate().filter_map(move |(i, e)| e.sock.fd().map(|fd| (id(i, e), fd)))
    }

    /// The shared raw sockets, IPv4 and IPv6.
    pub fn raw_descriptors(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [self.raw.fd(false), self.raw.fd(true)]
    }

    /// Lets go of all sockets without ending them: they are watched no longer. What was given out of them stays valid; when the last copy of
    /// one is closed, its connection ends.
    pub fn release(self) -> Vec<(SockId, OwnedFd)> {
        let mut out = Vec::with_capacity(self.len());
        // A copy elsewhere keeps the open file in the epoll after our descriptor is closed, and its events would go on.
        for fd in self.descriptors().map(|(_, fd)| fd).chain(self.raw_descriptors().into_iter().flatten()) {
            // Fails only for a socket that was never watched.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
        }
        for (i, e) in self.entries.into_iter().enumerate() {
            let id = SockId(u32::from(e.generation) << INDEX_BITS | i as u32);
            match e.sock {
                Sock::Tcp(Tcp { fd, .. }) | Sock::Udp(Udp { fd, .. }) | Sock::Ping(Ping { fd, .. }) => out.push((id, fd)),
                Sock::RawPing(_) | Sock::Free => {}
            }
        }
        out
    }

    /// Takes sockets over. `take` is asked for each in the order of the slots. All keep their ids; a slot whose socket is not resumed is free.
    /// Events that are due now are reported by the next [`Sockets::poll`], those included that a former owner did not see.
    ///
    /// # Errors
    ///
    /// If the state contradicts itself; nothing has been taken then.
    pub fn restore(
        state: SocketsState,
        raw4: Option<OwnedFd>,
        raw6: Option<OwnedFd>,
        take: &mut dyn FnMut(SockId) -> Option<Supplied>,
    ) -> Result<(Sockets, Vec<(SockId, SocketFate)>), HoldError> {
        validate(&state)?;
        let mut all = Sockets::new(raw4, raw6)?;
        all.stats = state.stats;
        all.free = state.free;
        all.entries.reserve_exact(state.slots.len());
        let mut fates = Vec::with_capacity(state.slots.len());
        for (index, slot) in state.slots.into_iter().enumerate() {
            all.entries.push(Entry { generation: slot.generation, token: None, reports: false, sock: Sock::Free });
            let Some(s) = slot.socket else { continue };
            let id = SockId(u32::from(slot.generation) << INDEX_BITS | index as u32);
            let fate = match all.take_over(id, &s, take) {
                Ok((sock, is_held)) => all.put_back(index, id, &s, sock, is_held),
                Err(fate) => fate,
            };
            if fate != SocketFate::Resumed {
                all.free.push(index as u32);
                all.stats.closed += 1;
            }
            fates.push((id, fate));
        }
        for n in state.notices {
            if all.entry(SockId(n.id)).is_some() {
                let ready = Ready { readable: n.readable, peer_closed: n.peer_closed, error: n.error, writable: false };
                all.notice(SockId(n.id), ready);
            }
        }
        Ok((all, fates))
    }

    /// Checks and takes what is supplied for a socket; whether it is the socket itself.
    fn take_over(
        &mut self,
        id: SockId,
        s: &SocketState,
        take: &mut dyn FnMut(SockId) -> Option<Supplied>,
    ) -> Result<(Sock, bool), SocketFate> {
        if let SocketKind::RawPing(s) = &s.kind {
            return if self.raw.reopened(s, id) {
                Ok((Sock::RawPing(RawPing::restore(s)), true))
            } else {
                Err(SocketFate::Missing)
            };
        }
        let (fd, is_held) = match take(id) {
            Some(Supplied::Held(fd)) => (fd, true),
            Some(Supplied::Rebuilt(fd)) => (fd, false),
            None => return Err(SocketFate::Missing),
        };
        let refused = |e: io::Error| SocketFate::Unusable(e.raw_os_error());
        let expected = match &s.kind {
            SocketKind::Tcp(s) => (family(s.v6), libc::IPPROTO_TCP),
            SocketKind::Udp(s) => (family(s.v6), libc::IPPROTO_UDP),
            SocketKind::Ping(s) if s.to.is_ipv4() => (libc::AF_INET, libc::IPPROTO_ICMP),
            SocketKind::Ping(_) | SocketKind::RawPing(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        };
        if socket::kind(fd.as_fd()).map_err(refused)? != expected {
            return Err(SocketFate::Unusable(None));
        }
        if is_held && s.cookie != 0 && socket::cookie(fd.as_fd()) != s.cookie {
            return Err(SocketFate::Stale);
        }
        let sock = match &s.kind {
            SocketKind::Tcp(s) => {
                if is_held && !s.fingerprint.is_of(fd.as_fd()).map_err(refused)? {
                    return Err(SocketFate::Stale);
                }
                Sock::Tcp(Tcp::restore(fd, s))
            }
            SocketKind::Udp(s) => Sock::Udp(Udp::restore(fd, s)),
            SocketKind::Ping(s) => Sock::Ping(Ping::restore(fd, s)),
            SocketKind::RawPing(s) => Sock::RawPing(RawPing::restore(s)),
        };
        Ok((sock, is_held))
    }

    /// Puts a socket into its slot and has its events reported.
    fn put_back(&mut self, index: usize, id: SockId, s: &SocketState, sock: Sock, is_held: bool) -> SocketFate {
        let e = &mut self.entries[index];
        e.token = s.token.and_then(Token::from_bits);
        e.reports = s.reports;
        e.sock = sock;
        if e.token.is_none() {
            return SocketFate::Resumed;
        }
        match self.watch(id) {
            Ok(()) => {
                // Such an end is no event of the kernel's.
                if matches!(&s.kind, SocketKind::Tcp(t) if t.ended && !(is_held && tcp::peer_finished(t.fingerprint.state))) {
                    self.notice(id, Ready { readable: true, peer_closed: true, ..Ready::default() });
                }
                if matches!(&s.kind, SocketKind::Udp(u) if !u.waiting.is_empty()) {
                    self.notice(id, Ready { readable: true, ..Ready::default() });
                }
                SocketFate::Resumed
            }
            Err(error) => {
                let e = &mut self.entries[index];
                e.token = None;
                e.sock = Sock::Free;
                SocketFate::Unusable(error.raw_os_error())
            }
        }
    }
}

fn family(v6: bool) -> libc::c_int {
    if v6 { libc::AF_INET6 } else { libc::AF_INET }
}

/// Whether a state can be that of sockets.
fn validate(state: &SocketsState) -> Result<(), HoldError> {
    let count = state.slots.len();
    if count > 1 << INDEX_BITS {
        return Err(HoldError::TooMany(count));
    }
    let invalid = |slot: usize, what| Err(HoldError::Invalid { slot: slot as u32, what });
    let mut is_listed = vec![false; count];
    for &slot in &state.free {
        match is_listed.get_mut(slot as usize) {
            Some(seen) if !*seen && state.slots[slot as usize].socket.is_none() => *seen = true,
            _ => return invalid(slot as usize, "it cannot be free, or is free twice"),
        }
    }
    let mut idents = HashSet::new();
    for (i, slot) in state.slots.iter().enumerate() {
        if slot.generation >= GENERATIONS {
            return invalid(i, "generation out of range");
        }
        let Some(s) = &slot.socket else {
            if !is_listed[i] {
                return invalid(i, "neither free nor in use");
            }
            continue;
        };
        let token = match s.token.map(Token::from_bits) {
            Some(None) => return invalid(i, "its token is none"),
            t => t.flatten().map(Token::kind),
        };
        let fits = match (&s.kind, token) {
            (_, None) => matches!(s.kind, SocketKind::Tcp(_) | SocketKind::Udp(_)),
            (SocketKind::Tcp(_), Some(t)) => t == TokenKind::Tcp,
            (SocketKind::Udp(_), Some(t)) => matches!(t, TokenKind::Udp | TokenKind::UdpListener | TokenKind::Dns),
            (SocketKind::Ping(_) | SocketKind::RawPing(_), Some(t)) => t == TokenKind::Icmp,
        };
        if !fits {
            return invalid(i, "its token is for another kind of socket");
        }
        match &s.kind {
            SocketKind::Udp(u) if u.scopes.len() > MAX_SCOPES => return invalid(i, "too many clients"),
            SocketKind::Udp(u) if u.waiting.iter().any(|d| d.bytes.0.len() > SLOT_SIZE) => {
                return invalid(i, "datagram too long");
            }
            SocketKind::Udp(u) if u.peer.is_some_and(|p| p.addr.is_ipv6() != u.v6) => {
                return invalid(i, "peer of another family");
            }
            SocketKind::RawPing(p) if p.from.is_some_and(|a| a.is_ipv6() != p.to.is_ipv6()) => {
                return invalid(i, "source of another family");
            }
            SocketKind::RawPing(p) if !idents.insert((p.to.is_ipv6(), p.ident)) => return invalid(i, "identifier in use twice"),
            _ => {}
        }
    }
    match state.notices.len() {
        n if n > count => invalid(count, "more events than sockets"),
        _ => Ok(()),
    }
}
