//! Host sockets that outlive their owner: writing down what is to be known of them, and taking them over.
//!
//! A socket survives in its descriptor, held by another process or handed to a successor; what the kernel does not know of
//! it is plain data. Sockets keep their [`SockId`], so that the stack's flows find them. A socket that went on since the data were
//! written is told by its [`Fingerprint`](super::Fingerprint).

use super::ping::{Ping, RawPing};
use super::state::{Notice, SlotState, SocketKind, SocketState, SocketsState};
use super::tcp::Tcp;
use super::udp::{MAX_SCOPES, Udp};
use super::{Entry, GENERATIONS, INDEX_BITS, Sock, Sockets};
use crate::slots::SLOT_SIZE;
use crate::sys::{socket, tcp};
use hibernet_netstack::edge::{Ready, SockId, Token, TokenKind};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use vmm_sys_util::epoll::{ControlOperation, EpollEvent};

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

    /// Takes a socket with a descriptor of its own over from another worker's, for `token`: its handle here. `None` if it cannot be watched here; then it
    /// is closed.
    pub fn adopt_from(&mut self, other: &mut Sockets, id: SockId, token: Token) -> Option<SockId> {
        let fd = other.entry(id)?.sock.fd()?;
        // Fails only for a socket that was never watched.
        let _ = other.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
        let reports = other.entry(id).is_some_and(|e| e.reports);
        let sock = other.remove(id)?;
        let own = self.insert(Some(token), sock).ok()?;
        // It was neither opened nor closed.
        other.stats.closed -= 1;
        self.stats.opened -= 1;
        if self.watch(own).is_err() {
            self.remove(own);
            return None;
        }
        if reports {
            self.expect_reports(own);
        }
        other.notices.retain(|(of, ready)| {
            if *of == id {
                self.notices.push_back((own, *ready));
            }
            *of != id
        });
        Some(own)
    }

    /// Whether a state can be that of sockets.
    ///
    /// # Errors
    ///
    /// What contradicts itself.
    pub fn validate(state: &SocketsState) -> Result<(), HoldError> {
        validate(state)
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
