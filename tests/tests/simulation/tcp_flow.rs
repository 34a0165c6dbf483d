//! A TCP connection: the programs at both ends.

use crate::guest::{Guest, endpoint};
use crate::plan::{Closing, PUBLISHED, Side, TcpPlan};
use core::time::Duration;
use hibernet_netstack::Time;
use hibernet_netstack::edge::SockId;
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::stream::{self, Checker};
use hibernet_tests::{ConnectPlan, Ended, SplitMix, World};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::time::Duration as GuestDuration;

/// Memory that the host's kernel spends for us before the peer has to wait.
const HOST_RCVBUF: usize = 96 << 10;
/// How often the peer's kernel then probes the closed window.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// When a guest gives up that gets no answer, as every kernel does.
const GIVE_UP: GuestDuration = GuestDuration::from_secs(600);

pub struct TcpFlow {
    plan: TcpPlan,
    /// Rules drop what tracking finds invalid.
    rules: bool,
    rng: SplitMix,
    start: Time,
    socket: Option<SocketHandle>,
    sock: Option<SockId>,
    guest: End,
    peer: End,
    /// When each program acts next.
    guest_next: Time,
    peer_next: Time,
    /// When it is broken off, by whom.
    abort: Option<(Side, Time)>,
    aborted: Option<Side>,
    done: bool,
}

/// One end's program.
struct End {
    sent: u64,
    to_send: u64,
    got: Checker,
    to_get: u64,
    fin_sent: bool,
    eof: bool,
}

impl End {
    fn new(to_send: u64, recv_id: u64, to_get: u64) -> End {
        End { sent: 0, to_send, got: Checker::new(recv_id), to_get, fin_sent: false, eof: false }
    }

    fn take(&mut self, data: &[u8]) {
        self.got.take(data);
        assert!(self.got.at <= self.to_get, "more bytes than were sent");
    }

    fn end(&mut self) {
        assert_eq!(self.got.at, self.to_get, "the stream ends early");
        self.eof = true;
    }
}

impl TcpFlow {
    pub fn new(plan: TcpPlan, rules: bool, now: Time, rng: SplitMix) -> TcpFlow {
        let guest = End::new(plan.up, !plan.id, plan.down);
        let peer = End::new(plan.down, plan.id, plan.up);
        let start = now + plan.start;
        TcpFlow {
            rules,
            rng,
            start,
            socket: None,
            sock: None,
            guest,
            peer,
            guest_next: start,
            peer_next: start,
            abort: plan.abort.map(|(side, after)| (side, start + after)),
            aborted: None,
            done: false,
            plan,
        }
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted.is_some()
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The guest's port and the other end's, as the guest sees it.
    pub fn ports(&self) -> (u16, u16) {
        (self.plan.guest_port, self.plan.seen.port)
    }

    pub fn bytes(&self) -> u64 {
        self.guest.got.at + self.peer.got.at
    }

    /// When one of the programs wants to act.
    pub fn next(&self) -> Time {
        let abort = self.abort.map_or(Time::NEVER, |(_, at)| at);
        if self.done { Time::NEVER } else { self.guest_next.min(self.peer_next).min(abort) }
    }

    /// Something moved: programs that wait look again soon.
    pub fn wake(&mut self, now: Time) {
        let pause = Duration::from_nanos(self.rng.below(self.plan.pace.as_nanos() as u64 + 1));
        if now >= self.start {
            self.guest_next = self.guest_next.min(now + pause);
            self.peer_next = self.peer_next.min(now + pause);
        }
    }

    fn open(&mut self, w: &mut World, g: &mut Guest) {
        let p = &self.plan;
        let mut s = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; p.guest_buffers.0]),
            tcp::SocketBuffer::new(vec![0; p.guest_buffers.1]),
        );
        s.set_ack_delay(p.delayed_ack.then_some(GuestDuration::from_millis(10)));
        s.set_nagle_enabled(self.rng.chance(50));
        // Who says nothing never learns that a reset was lost; and the answers wake smoltcp when it forgot its timer.
        s.set_keep_alive(Some(GuestDuration::from_secs(5)));
        // Where a reset of ours is lost, what the guest repeats is invalid from then on, and dropped by those rules.
        s.set_timeout(self.rules.then_some(GIVE_UP));
        if p.inbound {
            s.listen(p.guest_port).unwrap();
        } else {
            w.edge.host.plan(p.remote, ConnectPlan::Accept(p.connect_delay));
            let local = endpoint(Endpoint::new(g.addr(p.seen.addr), p.guest_port));
            s.connect(g.iface.context(), endpoint(p.seen), local).unwrap();
        }
        self.socket = Some(g.sockets.add(s));
        if p.inbound {
            let local = Endpoint::new(g.addr(p.remote.addr), PUBLISHED.0 + (p.guest_port - PUBLISHED.1));
            let sock = w.edge.host.accept(p.remote);
            self.attach(w, sock);
            w.accept_socket(sock, self.plan.remote, local);
        }
    }

    fn attach(&mut self, w: &mut World, sock: SockId) {
        let p = &self.plan;
        w.edge.host.peer(sock).tune(|t| {
            (t.sndbuf, t.max_write, t.max_peek, t.drain) = (p.sndbuf, p.max_write, p.max_peek, p.drain);
        });
        self.sock = Some(sock);
    }

    /// Lets the programs do what they can.
    pub fn act(&mut self, now: Time, w: &mut World, g: &mut Guest) {
        if self.done || now < self.start {
            return;
        }
        if self.socket.is_none() {
            self.open(w, g);
        }
        if self.sock.is_none() {
            let remote = self.plan.remote;
            let new = w.edge.host.tcp_sockets().into_iter().rev().find(|s| w.edge.host.tcp(*s).remote == remote);
            if let Some(sock) = new {
                self.attach(w, sock);
            }
        }
        if let Some((side, _)) = self.abort.take_if(|(_, at)| *at <= now) {
            self.break_off(side, w, g);
        }
        if self.guest_next <= now {
            self.guest_next = Time::NEVER;
            self.guest_acts(g);
        }
        if self.peer_next <= now {
            self.peer_next = Time::NEVER;
            self.peer_acts(w);
        }
        self.finish(w, g);
    }

    /// One side has had enough, if it has not ended in good order already.
    fn break_off(&mut self, side: Side, w: &mut World, g: &mut Guest) {
        let s = g.sockets.get_mut::<tcp::Socket<'_>>(self.socket.unwrap());
        match side {
            Side::Guest if s.state() != tcp::State::Closed && s.state() != tcp::State::TimeWait => s.abort(),
            Side::Peer if self.sock.is_some_and(|sock| w.edge.host.is_open(sock)) => {
                w.edge.host.peer(self.sock.unwrap()).reset();
                // A guest that missed the answer may try again.
                w.edge.host.plan(self.plan.remote, ConnectPlan::REFUSE);
            }
            _ => return,
        }
        self.aborted = Some(side);
    }

    fn may_end(&self, e: &End, first: Closing) -> bool {
        let turn = self.plan.closing == first || self.plan.closing == Closing::Independent || e.eof;
        e.sent == e.to_send && !e.fin_sent && turn
    }

    fn guest_acts(&mut self, g: &mut Guest) {
        let aborted = self.is_aborted();
        let s = g.sockets.get_mut::<tcp::Socket<'_>>(self.socket.unwrap());
        if matches!(s.state(), tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Listen) {
            return;
        }
        let mut buf = vec![0; self.rng.range(1, 20_000) as usize];
        match s.recv_slice(&mut buf) {
            Ok(n) => self.guest.take(&buf[..n]),
            Err(tcp::RecvError::Finished) if !self.guest.eof && !s.is_open() && aborted => return,
            Err(tcp::RecvError::Finished) if !self.guest.eof => self.guest.end(),
            Err(tcp::RecvError::Finished) => {}
            Err(_) if aborted => return,
            Err(e) => assert!(self.guest.eof, "the guest's socket failed: {e:?} in {:?}", s.state()),
        }
        let left = self.guest.to_send - self.guest.sent;
        if left > 0 && s.can_send() {
            let n = left.min(self.rng.range(1, 20_000)) as usize;
            let took = s.send_slice(&stream::bytes(self.plan.id, self.guest.sent, n)).expect("room");
            self.guest.sent += took as u64;
        }
        if self.may_end(&self.guest, Closing::GuestFirst) {
            let s = g.sockets.get_mut::<tcp::Socket<'_>>(self.socket.unwrap());
            s.close();
            self.guest.fin_sent = true;
        }
        let s = g.sockets.get_mut::<tcp::Socket<'_>>(self.socket.unwrap());
        let eof_waits = !s.may_recv() && !self.guest.eof;
        if eof_waits || s.can_recv() || self.guest.sent < self.guest.to_send && s.can_send() {
            self.guest_next = Time::ZERO;
        }
    }

    fn peer_acts(&mut self, w: &mut World) {
        let Some(sock) = self.sock else { return };
        let established = w.edge.host.tcp(sock).is_established();
        let received = w.edge.host.peer(sock).take_received();
        self.peer.take(&received);
        if w.edge.host.tcp(sock).eof_seen() && !self.peer.eof {
            self.peer.end();
        }
        if !established || !w.edge.host.is_open(sock) {
            return;
        }
        let room = HOST_RCVBUF.saturating_sub(w.edge.host.tcp(sock).receive_memory());
        if room == 0 {
            self.peer_next = w.now() + PROBE_EVERY;
        }
        let n = (self.peer.to_send - self.peer.sent).min(self.rng.range(1, 30_000)).min(room as u64);
        if n > 0 {
            w.edge.host.peer(sock).send(&stream::bytes(!self.plan.id, self.peer.sent, n as usize));
            self.peer.sent += n;
            self.peer_next = Time::ZERO;
        }
        if self.may_end(&self.peer, Closing::PeerFirst) {
            w.edge.host.peer(sock).fin();
            self.peer.fin_sent = true;
        }
    }

    /// Programs that are not finished act again after their pause; at the end, the sockets must have closed cleanly.
    pub fn finish(&mut self, w: &mut World, g: &mut Guest) {
        if self.done || self.socket.is_none() {
            return;
        }
        let now = w.now();
        for next in [&mut self.guest_next, &mut self.peer_next] {
            if *next == Time::ZERO {
                *next = now + Duration::from_nanos(self.rng.below(self.plan.pace.as_nanos() as u64 + 1));
            }
        }
        if self.is_aborted() {
            self.finish_aborted(w, g);
            return;
        }
        let ends = [&self.guest, &self.peer];
        if !ends.iter().all(|e| e.eof && e.fin_sent) {
            return;
        }
        let sock = self.sock.unwrap();
        if w.edge.host.is_open(sock) {
            return;
        }
        assert_eq!(w.edge.host.tcp(sock).ended, Some(Ended::Fin), "the connection did not end cleanly");
        let state = g.sockets.get::<tcp::Socket<'_>>(self.socket.unwrap()).state();
        if state == tcp::State::Closed {
            g.sockets.remove(self.socket.unwrap());
            self.done = true;
        }
    }
}

impl TcpFlow {
    /// After a break both sockets must go, and the side that did not break must hear of it.
    fn finish_aborted(&mut self, w: &mut World, g: &mut Guest) {
        let s = g.sockets.get::<tcp::Socket<'_>>(self.socket.unwrap());
        // A listener that was reset in its handshake listens again.
        if !matches!(s.state(), tcp::State::Closed | tcp::State::Listen)
            || self.sock.is_some_and(|sock| w.edge.host.is_open(sock))
        {
            return;
        }
        let clean = [&self.guest, &self.peer].iter().all(|e| e.fin_sent);
        let ended = self.sock.map(|sock| w.edge.host.tcp(sock).ended.expect("it is closed"));
        match (self.aborted, ended) {
            (_, None) => {}
            (Some(Side::Guest), Some(Ended::Reset | Ended::Abandoned)) => {}
            (Some(Side::Peer), Some(Ended::Dead)) => {}
            // It was broken off between the last FIN and the end of the sockets.
            (_, Some(Ended::Fin)) if clean => {}
            other => panic!("broken off, but the peer saw {other:?}"),
        }
        // The reset must have left the guest before its socket goes.
        if w.stack.flow_counts().0 == 0 {
            g.sockets.remove(self.socket.unwrap());
            self.done = true;
        }
    }
}

impl core::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let end =
            |e: &End| format!("sent {}/{} got {}/{} fin {} eof {}", e.sent, e.to_send, e.got.at, e.to_get, e.fin_sent, e.eof);
        write!(
            f,
            "{:?}\n  guest: {}\n  peer: {}\n  {:?} aborted {:?}",
            self.plan,
            end(&self.guest),
            end(&self.peer),
            self.sock,
            self.aborted
        )
    }
}
