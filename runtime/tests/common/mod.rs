//! What the suites share: host sockets on an event loop of their own, and peers from the standard library.
#![allow(dead_code, missing_docs)]

use hibernet::edge::RuntimeEdge;
use hibernet::slots::Slots;
use hibernet::sock::{SocketFate, Sockets, Supplied};
use hibernet_netstack::edge::{HostSockets, Payload, PayloadStore, Peek, Ready, SockError, SockId, Source, Token, TokenKind};
use hibernet_netstack::tuple::Endpoint;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Longer than anything on a loopback takes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Loopback addresses of both families, as far as the machine has them.
pub fn loopbacks() -> Vec<SocketAddr> {
    let all = ["127.0.0.1:0", "[::1]:0"].map(|a| a.parse::<SocketAddr>().unwrap());
    all.into_iter().filter(|a| TcpListener::bind(a).is_ok()).collect()
}

pub fn token(n: u32) -> Token {
    Token::new(TokenKind::Tcp, n, 1)
}

/// An edge without links.
pub struct Host {
    pub edge: RuntimeEdge,
    waiter: Epoll,
    seen: HashMap<Token, Ready>,
}

impl Host {
    pub fn new() -> Host {
        Host::with_raw(None, None)
    }

    pub fn with_raw(raw4: Option<OwnedFd>, raw6: Option<OwnedFd>) -> Host {
        let sockets = Sockets::new(raw4, raw6).unwrap();
        let waiter = Epoll::new().unwrap();
        waiter.ctl(ControlOperation::Add, sockets.fd().as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        let edge = RuntimeEdge::new(Slots::new(256).unwrap(), Vec::new(), sockets);
        Host { edge, waiter, seen: HashMap::new() }
    }

    /// Looks for events, waiting until there are some or `until` has come.
    pub fn poll(&mut self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        if !self.edge.sockets.has_notices() {
            let _ = self.waiter.wait(left.as_millis() as i32, &mut [EpollEvent::default()]);
        }
        let mut events = Vec::new();
        self.edge.sockets.poll(&mut self.edge.slots, &mut events);
        for (id, r) in events {
            if let Some(t) = self.edge.sockets.token(id) {
                let s = self.seen.entry(t).or_default();
                s.readable |= r.readable;
                s.writable |= r.writable;
                s.peer_closed |= r.peer_closed;
                s.error |= r.error;
            }
        }
    }

    /// Waits until the events of `t` since the last call satisfy `enough`.
    pub fn wait(&mut self, t: Token, enough: impl Fn(Ready) -> bool) -> Ready {
        let until = Instant::now() + PATIENCE;
        while !self.seen.get(&t).is_some_and(|r| enough(*r)) {
            assert!(Instant::now() < until, "no such event for {t:?}: {:?}", self.seen.get(&t));
            self.poll(until);
        }
        self.seen.remove(&t).unwrap_or_default()
    }

    /// Waits until a peek at `offset` gives something other than [`Peek::Empty`].
    pub fn peek(&mut self, sock: SockId, offset: u32, max: u32) -> Result<Peek, SockError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.edge.tcp_peek(sock, offset, max)? {
                Peek::Empty => {
                    assert!(Instant::now() < until, "nothing to peek at {offset}");
                    self.poll(until);
                }
                other => return Ok(other),
            }
        }
    }

    /// As [`Host::peek`], the bytes; none at the end of the stream.
    pub fn peek_bytes(&mut self, sock: SockId, offset: u32, max: u32) -> Vec<u8> {
        match self.peek(sock, offset, max).unwrap() {
            Peek::Data(p) => self.take(p),
            _ => Vec::new(),
        }
    }

    /// The bytes of a payload, which is released.
    pub fn take(&mut self, p: Payload) -> Vec<u8> {
        let bytes = self.edge.slots.bytes(p).to_vec();
        self.edge.release(p);
        bytes
    }

    pub fn stash(&mut self, bytes: &[u8]) -> Payload {
        self.edge.stash(bytes).unwrap()
    }

    /// A connected flow socket and its peer.
    pub fn connected(&mut self, t: Token, at: SocketAddr) -> (SockId, TcpStream) {
        let listener = TcpListener::bind(at).unwrap();
        let sock = self.edge.tcp_connect(t, Endpoint::from(listener.local_addr().unwrap()), Source::ANY).unwrap();
        let (peer, _) = listener.accept().unwrap();
        peer.set_nodelay(true).unwrap();
        let ready = self.wait(t, |r| r.writable);
        assert!(!ready.error);
        (sock, peer)
    }

    /// No payload slot is lost.
    pub fn assert_no_slots(&self) {
        assert_eq!(self.edge.slots.in_use(), 0);
    }
}

impl Host {
    /// Puts a successor into the place of the sockets, as one in another process would be: from what they saved, and copies of
    /// their descriptors. `between` happens when they have saved.
    pub fn hand_over(&mut self, between: impl FnOnce(&mut Host)) -> Vec<(SockId, SocketFate)> {
        let state = self.edge.sockets.save().unwrap();
        between(self);
        let mut copies = self.copies();
        let raw = self.edge.sockets.raw_descriptors().map(|fd| fd.map(|fd| fd.try_clone_to_owned().unwrap()));
        let [raw4, raw6] = raw;
        let (new, fates) = Sockets::restore(state, raw4, raw6, &mut |id| copies.remove(&id.0).map(Supplied::Held)).unwrap();
        self.replace(new).release();
        fates
    }

    /// Copies of all descriptors.
    pub fn copies(&self) -> HashMap<u32, OwnedFd> {
        self.edge.sockets.descriptors().map(|(id, fd)| (id.0, fd.try_clone_to_owned().unwrap())).collect()
    }

    /// Works with other sockets from now on; returns the former.
    pub fn replace(&mut self, new: Sockets) -> Sockets {
        self.waiter.ctl(ControlOperation::Delete, self.edge.sockets.fd().as_raw_fd(), EpollEvent::default()).unwrap();
        self.waiter.ctl(ControlOperation::Add, new.fd().as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        self.seen.clear();
        std::mem::replace(&mut self.edge.sockets, new)
    }
}
