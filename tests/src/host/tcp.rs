//! TCP sockets of the host, as Linux has them.

use super::receive::ReceiveQueue;
use super::{FakeHost, Kind};
use core::time::Duration;
use hibernet_netstack::Time;
use hibernet_netstack::edge::{Close, Ready, SockError, SockId, Source, TcpStatus, Token};
use hibernet_netstack::tuple::Endpoint;
use std::collections::VecDeque;

/// What becomes of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectPlan {
    /// Established after this time.
    Accept(Duration),
    /// Fails with this error after this time.
    Fail(Duration, SockError),
    /// The call itself fails.
    FailNow(SockError),
    /// Never ends.
    Blackhole,
}

impl Default for ConnectPlan {
    /// Established at the driver's next step.
    fn default() -> Self {
        ConnectPlan::Accept(Duration::ZERO)
    }
}

impl ConnectPlan {
    /// The peer answers with RST.
    pub const REFUSE: ConnectPlan = ConnectPlan::Fail(Duration::ZERO, SockError::Refused);
}

/// How fast a peer takes (and acknowledges) what the socket sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Bytes at a time; 0: the peer reads nothing.
    pub bytes: usize,
    /// Time between them.
    pub every: Duration,
}

impl Drain {
    /// All of it at the driver's next step.
    pub const FAST: Drain = Drain { bytes: usize::MAX, every: Duration::ZERO };
    /// Nothing.
    pub const STOPPED: Drain = Drain { bytes: 0, every: Duration::ZERO };
}

/// How the stack ended a socket, as its peer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// FIN after the queued data.
    Fin,
    /// RST: asked for, or because unread data was thrown away (RFC 2525 section 2.17, as Linux does).
    Reset,
    /// The connect had not ended.
    Abandoned,
    /// It was dead already.
    Dead,
}

/// What a test can set of a TCP socket.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Size of the send buffer in bytes.
    pub sndbuf: usize,
    /// Most bytes that one call takes: short writes.
    pub max_write: usize,
    /// The peer's pace.
    pub drain: Drain,
    /// The window that the host reports as offered by the peer.
    pub peer_window: Option<u32>,
    /// Round-trip time that the host reports.
    pub rtt: Duration,
    /// MSS that the host reports.
    pub mss: u16,
    /// Most bytes that one peek yields. Where it cuts one short, another event announces the rest, as the contract wants.
    pub max_peek: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            sndbuf: 256 << 10,
            max_write: usize::MAX,
            drain: Drain::FAST,
            peer_window: Some(256 << 10),
            rtt: Duration::from_micros(200),
            mss: 1448,
            max_peek: usize::MAX,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting(Option<(Time, Result<(), SockError>)>),
    Established,
    Dead,
}

/// A TCP socket and its peer.
#[derive(Debug)]
pub struct TcpSocket {
    /// The peer.
    pub remote: Endpoint,
    /// The source that the stack asked for.
    pub source: Source,
    /// Behaviour; may be changed at any time.
    pub tuning: Tuning,
    /// Everything that the peer has received.
    pub received: Vec<u8>,
    /// How the stack ended it.
    pub ended: Option<Ended>,
    /// The stack ended the sending side.
    pub shutdown: bool,
    /// Calls of send that took something, and all.
    pub sends: (u64, u64),
    /// Calls of peek.
    pub peeks: u64,
    state: State,
    error: Option<SockError>,
    rx: ReceiveQueue,
    peeked: usize,
    consumed: u64,
    peer_fin: bool,
    tx: VecDeque<u8>,
    no_space: bool,
    drain_at: Option<Time>,
}

pub(crate) enum PeekResult {
    Data(Vec<u8>),
    Empty,
    Eof,
}

impl TcpSocket {
    fn new(remote: Endpoint, state: State, tuning: Tuning) -> Self {
        TcpSocket {
            remote,
            source: Source::ANY,
            tuning,
            received: Vec::new(),
            ended: None,
            shutdown: false,
            sends: (0, 0),
            peeks: 0,
            state,
            error: None,
            rx: ReceiveQueue::default(),
            peeked: 0,
            consumed: 0,
            peer_fin: false,
            tx: VecDeque::new(),
            no_space: false,
            drain_at: None,
        }
    }

    /// Whether the connection stands.
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// Whether the connect has not ended.
    pub fn is_connecting(&self) -> bool {
        matches!(self.state, State::Connecting(_))
    }

    /// Whether the peer has ended its sending side.
    pub fn is_peer_closed(&self) -> bool {
        self.peer_fin
    }

    /// Whether the peer ended its sending side, or the connection is dead.
    pub fn peer_ended(&self) -> bool {
        self.peer_fin || self.state == State::Dead
    }

    /// Bytes from the peer that the stack has not consumed.
    pub fn unconsumed(&self) -> usize {
        self.rx.len()
    }

    /// Memory of the host that bytes from the peer take, consumed ones in the same buffer as others included.
    pub fn receive_memory(&self) -> usize {
        self.rx.memory()
    }

    /// Bytes from the peer that the stack has consumed.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Bytes from the stack that the peer has not taken.
    pub fn queued(&self) -> usize {
        self.tx.len()
    }

    /// Whether the peer has seen the end of the stream: all data, then FIN.
    pub fn eof_seen(&self) -> bool {
        let fin = self.shutdown || self.ended == Some(Ended::Fin);
        fin && self.tx.is_empty() && !matches!(self.state, State::Dead)
    }

    fn free(&self) -> usize {
        self.tuning.sndbuf.saturating_sub(self.tx.len())
    }

    fn has_room(&self) -> bool {
        self.free() * 3 >= self.tuning.sndbuf
    }

    /// As `tcp_poll`: room counts once a third of the buffer is free; a dead socket reports everything.
    pub(crate) fn ready(&self) -> Ready {
        match self.state {
            State::Connecting(_) => Ready::default(),
            State::Dead => Ready { readable: true, writable: true, peer_closed: true, error: true },
            State::Established => Ready {
                readable: !self.rx.is_empty() || self.peer_fin,
                writable: self.shutdown || self.has_room(),
                peer_closed: self.peer_fin,
                error: self.peer_fin && self.shutdown,
            },
        }
    }

    pub(crate) fn next_wake(&self, now: Time) -> Option<Time> {
        match self.state {
            State::Connecting(Some((at, _))) => Some(at),
            State::Established if !self.tx.is_empty() && self.tuning.drain.bytes > 0 => {
                Some(self.drain_at.unwrap_or(now + self.tuning.drain.every))
            }
            State::Established if self.no_space && self.has_room() => Some(now),
            _ => None,
        }
    }

    /// What is due at `now` happens; returns whether it is an event.
    pub(crate) fn advance(&mut self, now: Time) -> bool {
        match self.state {
            State::Connecting(Some((at, outcome))) if at <= now => {
                self.state = match outcome {
                    Ok(()) => State::Established,
                    Err(e) => {
                        self.error = Some(e);
                        State::Dead
                    }
                };
                true
            }
            State::Established => {
                if !self.tx.is_empty() && self.drain_at.is_none_or(|at| at <= now) {
                    let n = self.tx.len().min(self.tuning.drain.bytes);
                    self.received.extend(self.tx.drain(..n));
                    self.drain_at = (!self.tx.is_empty()).then(|| now + self.tuning.drain.every);
                }
                let room = self.no_space && self.has_room();
                self.no_space &= !room;
                room
            }
            _ => false,
        }
    }

    /// The pending error; afterwards the socket is merely at its end, as in Linux.
    pub(crate) fn take_error(&mut self) -> Option<SockError> {
        self.error.take()
    }

    pub(crate) fn peer_send(&mut self, data: &[u8]) {
        assert!(!self.peer_fin, "the peer sends after its FIN");
        self.rx.push(data);
    }

    pub(crate) fn peer_fin(&mut self) {
        self.peer_fin = true;
    }

    pub(crate) fn peer_reset(&mut self) {
        self.error = Some(if matches!(self.state, State::Connecting(_)) { SockError::Refused } else { SockError::Reset });
        self.state = State::Dead;
        self.tx.clear();
    }

    pub(crate) fn set_error(&mut self, error: SockError) {
        self.error = Some(error);
    }

    /// The pace changed: what waited for the old one is forgotten.
    pub(crate) fn retuned(&mut self) {
        self.drain_at = None;
    }

    pub(crate) fn finish_connect(&mut self, outcome: Result<(), SockError>, now: Time) {
        assert!(matches!(self.state, State::Connecting(_)), "the connect is over");
        self.state = State::Connecting(Some((now, outcome)));
    }

    pub(crate) fn close(&mut self, how: Close, now: Time) {
        self.ended = Some(match (self.state, how) {
            (State::Dead, _) => Ended::Dead,
            (State::Connecting(_), _) => Ended::Abandoned,
            (_, Close::Graceful) if self.rx.is_empty() => Ended::Fin,
            _ => Ended::Reset,
        });
        match self.ended {
            Some(Ended::Fin) => self.drain_at = self.drain_at.or(Some(now)),
            _ => {
                self.state = State::Dead;
                self.tx.clear();
            }
        }
    }
}

impl FakeHost {
    /// A TCP socket, open or closed.
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn tcp(&self, sock: SockId) -> &TcpSocket {
        match &self.sockets[sock.0 as usize].kind {
            Kind::Tcp(t) => t,
            k => panic!("{sock:?} is no TCP socket: {k:?}"),
        }
    }

    pub(crate) fn tcp_mut(&mut self, sock: SockId) -> &mut TcpSocket {
        match &mut self.sockets[sock.0 as usize].kind {
            Kind::Tcp(t) => t,
            k => panic!("{sock:?} is no TCP socket: {k:?}"),
        }
    }

    /// Handles of all TCP sockets that ever connected or were accepted, oldest first.
    pub fn tcp_sockets(&self) -> Vec<SockId> {
        self.all().filter(|s| matches!(self.sockets[s.0 as usize].kind, Kind::Tcp(_))).collect()
    }

    /// A connection that a listener accepted from `peer`: to be handed to the stack.
    pub fn accept(&mut self, peer: Endpoint) -> SockId {
        let tuning = self.tcp_defaults;
        self.add(None, Kind::Tcp(TcpSocket::new(peer, State::Established, tuning)))
    }

    fn stream(&mut self, sock: SockId) -> &mut TcpSocket {
        match &mut self.used(sock).kind {
            Kind::Tcp(t) => t,
            k => panic!("{sock:?} is no TCP socket: {k:?}"),
        }
    }

    pub(crate) fn tcp_connect(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        self.admit()?;
        if !self.can_have(from) {
            return Err(SockError::NotAvailable);
        }
        let end = match self.plan_for(to) {
            ConnectPlan::FailNow(e) => return Err(e),
            ConnectPlan::Accept(after) => Some((self.now + after, Ok(()))),
            ConnectPlan::Fail(after, e) => Some((self.now + after, Err(e))),
            ConnectPlan::Blackhole => None,
        };
        let tuning = self.tcp_defaults;
        let socket = TcpSocket { source: from, ..TcpSocket::new(to, State::Connecting(end), tuning) };
        let sock = self.add(Some(token), Kind::Tcp(socket));
        self.rearm(sock);
        Ok(sock)
    }

    pub(crate) fn tcp_adopt(&mut self, sock: SockId, token: Token) -> Result<(), SockError> {
        if let Some(e) = self.fail_open.pop_front() {
            return Err(e);
        }
        let s = self.used(sock);
        assert!(s.token.is_none(), "{sock:?} is adopted twice");
        s.token = Some(token);
        // epoll reports what holds when a descriptor is added.
        self.notify(sock);
        Ok(())
    }

    pub(crate) fn tcp_send(&mut self, sock: SockId, data: &[u8]) -> Result<usize, SockError> {
        let now = self.now;
        let t = self.stream(sock);
        assert!(!t.shutdown, "{sock:?}: send after shutdown");
        t.sends.1 += 1;
        match t.state {
            State::Connecting(_) => {
                t.no_space = true;
                return Ok(0);
            }
            State::Dead => return Err(t.error.take().unwrap_or(SockError::Reset)),
            State::Established => {}
        }
        let n = data.len().min(t.free()).min(t.tuning.max_write);
        if t.tx.is_empty() {
            t.drain_at = Some(now + t.tuning.drain.every);
        }
        t.tx.extend(&data[..n]);
        t.sends.0 += u64::from(n > 0);
        t.no_space |= n < data.len();
        self.rearm(sock);
        Ok(n)
    }

    pub(crate) fn tcp_peek(&mut self, sock: SockId, offset: u32, max: u32) -> Result<PeekResult, SockError> {
        let t = self.stream(sock);
        t.peeks += 1;
        let offset = offset as usize;
        assert!(max > 0, "{sock:?}: a peek for nothing");
        assert!(offset <= t.rx.len(), "{sock:?}: peek at {offset}, but only {} bytes ever came", t.rx.len());
        let n = (t.rx.len() - offset).min(max as usize).min(t.tuning.max_peek);
        if n > 0 {
            t.peeked = t.peeked.max(offset + n);
            let cut = n < max as usize && t.rx.len() > offset + n;
            let data = t.rx.copy(offset, n);
            if cut {
                self.notify(sock);
            }
            return Ok(PeekResult::Data(data));
        }
        match (t.state, t.peer_fin) {
            (State::Dead, false) => match t.error.take() {
                Some(e) => Err(e),
                None => Ok(PeekResult::Eof),
            },
            (_, true) => Ok(PeekResult::Eof),
            _ => Ok(PeekResult::Empty),
        }
    }

    pub(crate) fn tcp_consume(&mut self, sock: SockId, n: u32) -> Result<(), SockError> {
        let t = self.stream(sock);
        let n = n as usize;
        assert!(n <= t.peeked, "{sock:?}: {n} bytes are consumed, of which only {} were peeked", t.peeked);
        t.rx.consume(n);
        t.peeked -= n;
        t.consumed += n as u64;
        Ok(())
    }

    pub(crate) fn tcp_shutdown(&mut self, sock: SockId) -> Result<(), SockError> {
        let t = self.stream(sock);
        match t.state {
            State::Connecting(_) => panic!("{sock:?}: shutdown before the connection stands"),
            State::Dead => return Err(SockError::Reset),
            State::Established => t.shutdown = true,
        }
        let both = t.peer_fin;
        self.actions += 1;
        if both {
            self.notify(sock);
        }
        Ok(())
    }

    pub(crate) fn tcp_space(&mut self, sock: SockId) -> u32 {
        let t = self.stream(sock);
        t.free().min(t.tuning.max_write) as u32
    }

    pub(crate) fn tcp_unacked(&mut self, sock: SockId) -> u32 {
        self.stream(sock).tx.len() as u32
    }

    pub(crate) fn tcp_status(&mut self, sock: SockId) -> TcpStatus {
        let t = self.stream(sock);
        let Tuning { peer_window, rtt, mss, .. } = t.tuning;
        TcpStatus { peer_window, rtt, mss, established: t.is_established() }
    }
}
