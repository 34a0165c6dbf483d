//! Host sockets made up: Linux's semantics, peers that do what the test says.

mod datagram;
mod peer;
mod receive;
mod tcp;

pub use datagram::{Incoming, PingSocket, Report, Sent, SentPing, UdpSocket};
pub use peer::Peer;
pub(crate) use tcp::PeekResult;
pub use tcp::{ConnectPlan, Drain, Ended, TcpSocket};

use core::net::IpAddr;
use hibernet_netstack::Time;
use hibernet_netstack::edge::{Close, Ready, SockError, SockId, Source, SourcePort, Token};
use hibernet_netstack::tuple::Endpoint;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A host: its sockets, open and closed, and what will happen to connects.
///
/// Socket handles count up and are never given out twice, so a use after the close is found. Everything that happens
/// to a socket becomes an edge-triggered event; its bits are those that hold when the driver fetches it, as with epoll.
#[derive(Debug, Default)]
pub struct FakeHost {
    pub(crate) now: Time,
    pub(crate) sockets: Vec<Socket>,
    ready: VecDeque<SockId>,
    wake: BTreeSet<(Time, SockId2)>,
    plans: BTreeMap<Endpoint, ConnectPlan>,
    open: usize,
    /// What the stack did to sockets so far: opened, sent, ended, closed.
    pub actions: u64,
    /// What happens to a connect to an endpoint without a plan of its own.
    pub default_plan: ConnectPlan,
    /// More open sockets than this are refused with [`SockError::NoResources`].
    pub max_sockets: Option<usize>,
    /// Errors for the next sockets to be opened or adopted, one each.
    pub fail_open: VecDeque<SockError>,
    /// Template of new TCP sockets: buffer, drain and so on.
    pub tcp_defaults: tcp::Tuning,
    /// Source ports that cannot be had: a socket that wishes one gets another, one that must have it fails.
    pub taken_ports: BTreeSet<u16>,
    /// Addresses that sockets can be bound to.
    pub addresses: BTreeSet<IpAddr>,
}

/// Orders sockets in the wake queue; [`SockId`] itself has no order.
type SockId2 = u32;

/// A socket of any kind.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) token: Option<Token>,
    pub(crate) open: bool,
    queued: bool,
    wake: Option<Time>,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Tcp(TcpSocket),
    Udp(UdpSocket),
    Ping(PingSocket),
}

impl FakeHost {
    /// What is to happen to connects to `to`, from now on.
    pub fn plan(&mut self, to: Endpoint, plan: ConnectPlan) {
        self.plans.insert(to, plan);
    }

    pub(crate) fn plan_for(&self, to: Endpoint) -> ConnectPlan {
        self.plans.get(&to).copied().unwrap_or(self.default_plan)
    }

    /// Whether a socket can have the source that is demanded.
    pub(crate) fn can_have(&self, from: Source) -> bool {
        let port = match from.port {
            SourcePort::Demand(p) => !self.taken_ports.contains(&p),
            SourcePort::Any | SourcePort::Wish(_) => true,
        };
        port && from.addr.is_none_or(|a| self.addresses.contains(&a))
    }

    /// Number of open sockets.
    pub fn open_sockets(&self) -> usize {
        self.open
    }

    /// Handles of all sockets there ever were, oldest first.
    pub fn all(&self) -> impl Iterator<Item = SockId> + use<> {
        (0..self.sockets.len() as u32).map(SockId)
    }

    /// Handle of the socket opened last.
    ///
    /// # Panics
    /// If there was none yet.
    pub fn last(&self) -> SockId {
        SockId(self.sockets.len().checked_sub(1).expect("no socket was opened") as u32)
    }

    /// Whether a socket has not been closed by the stack.
    pub fn is_open(&self, sock: SockId) -> bool {
        self.sockets[sock.0 as usize].open
    }

    /// The token for which a socket reports.
    pub fn token(&self, sock: SockId) -> Option<Token> {
        self.sockets[sock.0 as usize].token
    }

    /// Gives a socket that the test opened (a listener's) its token.
    pub fn set_token(&mut self, sock: SockId, token: Token) {
        self.sockets[sock.0 as usize].token = Some(token);
        self.notify(sock);
    }

    /// # Panics
    /// If a socket is open.
    pub fn assert_all_closed(&self) {
        let open: Vec<_> = self.sockets.iter().enumerate().filter(|(_, s)| s.open).collect();
        assert!(open.is_empty(), "sockets leaked: {open:#?}");
    }

    /// Next event, edge-triggered: the bits that hold now.
    pub fn next_event(&mut self) -> Option<(Token, Ready)> {
        while let Some(sock) = self.ready.pop_front() {
            let s = &mut self.sockets[sock.0 as usize];
            s.queued = false;
            let (true, Some(token)) = (s.open, s.token) else { continue };
            let ready = match &s.kind {
                Kind::Tcp(t) => t.ready(),
                Kind::Udp(u) => u.ready(),
                Kind::Ping(p) => p.ready(),
            };
            if ready != Ready::default() {
                return Some((token, ready));
            }
        }
        None
    }

    /// Whether an event waits.
    pub fn has_events(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Queues an event for a socket though nothing happened, as epoll may.
    pub fn notify(&mut self, sock: SockId) {
        let s = &mut self.sockets[sock.0 as usize];
        if s.open && s.token.is_some() && !s.queued {
            s.queued = true;
            self.ready.push_back(sock);
        }
    }

    /// When something happens by itself next.
    pub fn next_deadline(&self) -> Option<Time> {
        self.wake.first().map(|(at, _)| *at)
    }

    /// Lets happen what is due: connects end, peers take data.
    pub fn advance(&mut self, now: Time) {
        self.now = now;
        while let Some(&(at, sock)) = self.wake.first().filter(|(at, _)| *at <= now) {
            self.wake.remove(&(at, sock));
            let s = &mut self.sockets[sock as usize];
            s.wake = None;
            let Kind::Tcp(t) = &mut s.kind else { continue };
            let event = t.advance(at);
            let next = t.next_wake(at);
            if event {
                self.notify(SockId(sock));
            }
            if let Some(next) = next {
                self.wake_at(SockId(sock), next);
            }
        }
    }

    pub(crate) fn wake_at(&mut self, sock: SockId, at: Time) {
        let s = &mut self.sockets[sock.0 as usize];
        if s.wake.is_some_and(|w| w <= at) {
            return;
        }
        if let Some(old) = s.wake.replace(at) {
            self.wake.remove(&(old, sock.0));
        }
        self.wake.insert((at, sock.0));
    }

    pub(crate) fn rearm(&mut self, sock: SockId) {
        let now = self.now;
        if let Kind::Tcp(t) = &self.sockets[sock.0 as usize].kind
            && let Some(at) = t.next_wake(now)
        {
            self.wake_at(sock, at);
        }
    }

    /// May another socket be opened?
    pub(crate) fn admit(&mut self) -> Result<(), SockError> {
        if let Some(e) = self.fail_open.pop_front() {
            return Err(e);
        }
        if self.max_sockets.is_some_and(|max| self.open >= max) {
            return Err(SockError::NoResources);
        }
        Ok(())
    }

    /// Takes a socket over from another worker's host, for `token`; there it is closed.
    pub fn adopt_from(&mut self, other: &mut FakeHost, sock: SockId, token: Token) -> SockId {
        let theirs = other.used(sock);
        theirs.open = false;
        let kind = std::mem::replace(&mut theirs.kind, datagram::nothing());
        if let Some(at) = theirs.wake.take() {
            other.wake.remove(&(at, sock.0));
        }
        other.open -= 1;
        let id = self.add(Some(token), kind);
        self.rearm(id);
        self.notify(id);
        id
    }

    pub(crate) fn add(&mut self, token: Option<Token>, kind: Kind) -> SockId {
        self.open += 1;
        self.actions += 1;
        self.sockets.push(Socket { token, open: true, queued: false, wake: None, kind });
        SockId(self.sockets.len() as u32 - 1)
    }

    /// A socket that the stack uses.
    pub(crate) fn used(&mut self, sock: SockId) -> &mut Socket {
        let s = self.sockets.get_mut(sock.0 as usize).unwrap_or_else(|| panic!("{sock:?} was never given out"));
        assert!(s.open, "{sock:?} is used after it was closed");
        s
    }

    pub(crate) fn close(&mut self, sock: SockId, how: Close) {
        let now = self.now;
        let s = self.used(sock);
        s.open = false;
        if let Kind::Tcp(t) = &mut s.kind {
            t.close(how, now);
        }
        self.open -= 1;
        self.actions += 1;
        self.rearm(sock);
    }

    pub(crate) fn take_error(&mut self, sock: SockId) -> Option<SockError> {
        match &mut self.used(sock).kind {
            Kind::Tcp(t) => t.take_error(),
            k => panic!("take_error on {k:?}, which is no stream"),
        }
    }
}
