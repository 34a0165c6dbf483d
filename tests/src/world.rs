//! The driver: a stack, its edge, and virtual time.

use crate::link::Captured;
use crate::payload::SlotKind;
use crate::wire::{self, Frame, GUEST_MAC, Net, TcpSegment};
use crate::{FakeEdge, wire::L4};
use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::LinkNet;
use hibernet_netstack::edge::{Gso, HEAD_MAX, LinkId, LinkInfo, RxChecksum, RxFrame, SockId, Tso};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::Mac;
use hibernet_netstack::{Config, DropReason, Stack, Time};
use std::collections::VecDeque;

/// Calls into the stack that one settling may take before the driver calls it a livelock.
const MAX_STEPS: u64 = 200_000;

/// Is called where a run may be cut: between two calls into the stack, after each [`Stack::flush`] with which a batch of calls ends.
pub trait Boundary: core::fmt::Debug {
    /// The stack may be looked at, or replaced by one that goes on in its place. Returns whether it has to be flushed again.
    fn flushed(&mut self, now: Time, stack: &mut Stack, edge: &mut FakeEdge) -> bool;
}

/// A stack in a made-up world.
///
/// A test injects frames and moves peers, lets the world [settle](World::settle) or [run](World::run) for a time, and
/// looks at the frames and sockets that result.
#[derive(Debug)]
pub struct World {
    /// The stack under test.
    pub stack: Stack,
    /// Its edge.
    pub edge: FakeEdge,
    /// Frames for the guest, finished (checksums, segmentation), not looked at yet.
    pub inbox: VecDeque<(Time, Vec<u8>)>,
    /// The same for what is behind the second link, if there is one.
    pub far: VecDeque<(Time, Vec<u8>)>,
    /// Calls into the stack so far.
    pub steps: u64,
    /// Events of sockets that were handed to the stack so far.
    pub events: u64,
    /// What is done at each boundary, if anything.
    pub boundary: Option<Box<dyn Boundary>>,
    /// Calls when the last batch had ended; less if its flush left work.
    flushed: u64,
    now: Time,
}

impl World {
    /// One link without offloads, MTU 1500, and the guest's MAC address known.
    pub fn new(cfg: Config) -> Self {
        World::with_link(cfg, World::plain_link())
    }

    /// The link of [`World::new`].
    pub fn plain_link() -> LinkInfo {
        LinkInfo { mtu: 1500, checksum: false, tso: Tso::None, uso: false, guest_mac: Some(Mac(GUEST_MAC)), in_flight: u32::MAX }
    }

    /// A link that can do everything, MTU `mtu`.
    pub fn offload_link(mtu: u16) -> LinkInfo {
        LinkInfo { mtu, checksum: true, tso: Tso::Both, uso: true, guest_mac: Some(Mac(GUEST_MAC)), in_flight: u32::MAX }
    }

    /// With a link of the test's choice.
    pub fn with_link(cfg: Config, info: LinkInfo) -> Self {
        World::seeded(cfg, info, 0)
    }

    /// With a link and the stack's randomness of the test's choice.
    pub fn seeded(cfg: Config, info: LinkInfo, seed: u64) -> Self {
        let mut w = World::bare(cfg, seed);
        w.stack.add_link(info);
        w.edge.add_link(info);
        w
    }

    /// Two links, each with a network of its own, that route among each other.
    pub fn routed(cfg: Config, links: [(LinkInfo, LinkNet); 2]) -> Self {
        let mut w = World::bare(cfg, 0);
        for (info, net) in links {
            w.stack.add_link_with(info, net);
            w.edge.add_link(info);
        }
        w
    }

    fn bare(cfg: Config, seed: u64) -> Self {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let stack = Stack::new(cfg, key);
        let mut edge = FakeEdge::default();
        let now = Time::from_millis(1000);
        edge.host.advance(now);
        World { stack, edge, inbox: VecDeque::new(), far: VecDeque::new(), steps: 0, events: 0, boundary: None, flushed: 0, now }
    }

    /// Virtual time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// The guest's configured address of the family of `like`.
    pub fn guest_addr(&self, like: IpAddr) -> IpAddr {
        let cfg = self.stack.config();
        match like {
            IpAddr::V4(_) => cfg.v4.expect("IPv4 is on").guest.into(),
            IpAddr::V6(_) => cfg.v6.expect("IPv6 is on").guest.into(),
        }
    }

    /// The gateway's MAC address.
    pub fn gateway_mac(&self) -> [u8; 6] {
        self.stack.config().gateway_mac.0
    }

    /// How often something was dropped for a reason.
    pub fn dropped(&self, why: DropReason) -> u64 {
        self.stack.stats().dropped(why)
    }

    /// Drops of any reason.
    pub fn dropped_total(&self) -> u64 {
        self.stack.stats().drops().map(|(_, n)| n).sum()
    }

    /// Hands a frame of the guest to the stack, and nothing else: neither events nor flush.
    pub fn receive(&mut self, frame: &[u8]) {
        self.receive_as(frame, RxChecksum::Unverified, None);
    }

    /// As [`World::receive`], with what a link with offloads says about the frame.
    pub fn receive_as(&mut self, frame: &[u8], checksum: RxChecksum, gso: Option<Gso>) {
        self.receive_on(LinkId(0), frame, checksum, gso);
    }

    /// As [`World::receive_as`], over a link of the test's choice.
    pub fn receive_on(&mut self, link: LinkId, frame: &[u8], checksum: RxChecksum, gso: Option<Gso>) {
        let payload = self.edge.pool.put(SlotKind::Frame, frame.to_vec());
        let head = &frame[..frame.len().min(HEAD_MAX)];
        let rx = RxFrame { link, head, frame: payload, checksum, gso };
        self.stack.receive(self.now, &rx, &mut self.edge);
        self.edge.pool.end_frame(payload);
        self.after_call();
    }

    /// Another worker of the same network, with a link and a host of its own, at the same time.
    pub fn share(&mut self, worker: u8) -> World {
        let stack = self.stack.share(worker, [worker + 1; 16]);
        self.beside(stack)
    }

    /// A world for the stack of another worker.
    pub fn beside(&mut self, stack: Stack) -> World {
        let mut edge = FakeEdge::default();
        self.edge.links.iter().for_each(|l| edge.add_link(l.info));
        edge.host.advance(self.now);
        edge.handed_room = usize::MAX;
        self.edge.handed_room = usize::MAX;
        let (inbox, far) = (VecDeque::new(), VecDeque::new());
        World { stack, edge, inbox, far, steps: 0, events: 0, boundary: None, flushed: 0, now: self.now }
    }

    /// Has workers take the frames that they handed each other, until there are none.
    pub fn exchange(workers: &mut [World]) {
        while let Some(h) = workers.iter_mut().find_map(|w| w.edge.handed.pop_front()) {
            let w = workers.iter_mut().find(|w| w.stack.worker() == h.to).expect("a worker of this number");
            let payload = w.edge.pool.put(SlotKind::Frame, h.bytes.clone());
            let head = &h.bytes[..h.bytes.len().min(HEAD_MAX)];
            let rx = RxFrame { link: h.link, head, frame: payload, checksum: h.checksum, gso: h.gso };
            w.stack.receive_handed(w.now, &rx, &mut w.edge);
            w.edge.pool.end_frame(payload);
            w.after_call();
            w.settle();
        }
    }

    /// Hands a frame of the guest to the stack and [settles](World::settle).
    pub fn inject(&mut self, frame: &[u8]) {
        self.receive(frame);
        self.settle();
    }

    /// Injects an IP packet of the guest's in a frame of its own.
    pub fn inject_ip(&mut self, ip: &wire::Ip, protocol: u8, payload: &[u8]) {
        let frame = ip.frame(self.gateway_mac(), GUEST_MAC, protocol, payload);
        self.inject(&frame);
    }

    /// A connection from `peer` to a published port at `local`; settles. The socket's handle.
    pub fn accept(&mut self, peer: Endpoint, local: Endpoint) -> SockId {
        let sock = self.edge.host.accept(peer);
        self.accept_socket(sock, peer, local);
        sock
    }

    /// As [`World::accept`], with a socket already made (and perhaps tuned).
    pub fn accept_socket(&mut self, sock: SockId, peer: Endpoint, local: Endpoint) {
        self.stack.accepted(self.now, sock, peer, local, &mut self.edge);
        self.after_call();
        self.settle();
    }

    /// Opens a published UDP port's socket.
    pub fn listen_udp(&mut self, local: Endpoint) -> SockId {
        let sock = self.edge.host.udp_listener(local);
        let token = self.stack.udp_listening(sock, local);
        self.edge.host.set_token(sock, token);
        sock
    }

    /// The link comes up.
    pub fn link_up(&mut self) {
        self.stack.link_up(self.now, LinkId(0), &mut self.edge);
        self.after_call();
        self.settle();
    }

    /// Does everything that can be done without time passing: deadlines that are due, what the host does, socket events,
    /// flush, until nothing is left. Frames that result are in [`World::inbox`].
    ///
    /// # Panics
    /// If it does not come to an end.
    pub fn settle(&mut self) {
        let first = self.steps;
        loop {
            assert!(self.steps - first < MAX_STEPS, "livelock: the stack does not settle at {:?}", self.now);
            self.edge.host.advance(self.now);
            let mut worked = false;
            while let Some((token, ready)) = self.edge.host.next_event() {
                worked = true;
                self.events += 1;
                self.stack.socket_ready(self.now, token, ready, &mut self.edge);
                self.after_call();
                assert!(self.steps - first < MAX_STEPS, "livelock: events without end at {:?}", self.now);
            }
            if self.stack.next_deadline().is_some_and(|d| d <= self.now) {
                worked = true;
                self.stack.tick(self.now, &mut self.edge);
                self.after_call();
            }
            worked |= self.flush();
            if !worked && !self.edge.host.has_events() && self.edge.host.next_deadline().is_none_or(|d| d > self.now) {
                break;
            }
        }
        self.collect();
    }

    /// Ends a batch of calls without a look at what else there is: a wake-up of the worker's for the link alone.
    /// Whether the stack has more to do at once.
    pub fn flush(&mut self) -> bool {
        let called = self.steps > self.flushed;
        let mut more = self.stack.flush(self.now, &mut self.edge);
        self.after_call();
        self.flushed = if more { self.steps - 1 } else { self.steps };
        if let Some(boundary) = self.boundary.as_mut().filter(|_| called) {
            more |= boundary.flushed(self.now, &mut self.stack, &mut self.edge);
        }
        more
    }

    /// When something happens by itself next.
    pub fn next_deadline(&self) -> Option<Time> {
        [self.stack.next_deadline(), self.edge.host.next_deadline()].into_iter().flatten().min()
    }

    /// Lets time pass up to `at`, deadline by deadline.
    pub fn run_to(&mut self, at: Time) {
        self.settle();
        while let Some(next) = self.next_deadline().filter(|d| *d <= at) {
            self.now = next.max(self.now);
            self.settle();
        }
        self.now = at.max(self.now);
        self.settle();
    }

    /// Lets time pass.
    pub fn run(&mut self, d: Duration) {
        self.run_to(self.now + d);
    }

    /// Lets time pass until `done`, at most `limit`; returns the time that passed, or `None` if it was not enough.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut World) -> bool) -> Option<Duration> {
        let start = self.now;
        let end = start + limit;
        self.settle();
        loop {
            if done(self) {
                return Some(self.now.since(start));
            }
            let next = self.next_deadline().filter(|d| *d <= end)?;
            self.now = next.max(self.now);
            self.settle();
        }
    }

    /// Time jumps without anything happening in between: the process was stopped.
    pub fn freeze(&mut self, d: Duration) {
        self.now = self.now + d;
        self.settle();
    }

    fn after_call(&mut self) {
        self.steps += 1;
        self.edge.pool.assert_balanced();
    }

    /// Moves captured frames to the inboxes, finished.
    pub fn collect(&mut self) {
        for (link, inbox) in self.edge.links.iter_mut().zip([&mut self.inbox, &mut self.far]) {
            while let Some(c) = link.sent.pop_front() {
                let Captured { at, .. } = c;
                inbox.extend(wire::complete(&c).into_iter().map(|f| (at, f)));
            }
        }
    }

    /// Takes the first frame in the inbox that `want` turns into something, with that.
    ///
    /// # Panics
    /// If a frame in the inbox is malformed.
    pub fn take<T>(&mut self, mut want: impl FnMut(&Frame) -> Option<T>) -> Option<T> {
        let mut found = None;
        let at = self.inbox.iter().position(|(_, f)| {
            let frame = wire::parse(f).unwrap_or_else(|e| panic!("the stack sent a bad frame: {}: {f:02x?}", e.0));
            found = want(&frame);
            found.is_some()
        })?;
        self.inbox.remove(at);
        found
    }

    /// Takes the first TCP segment with these ports and addresses out of the inbox.
    pub fn take_tcp(&mut self, src: Endpoint, dst: Endpoint) -> Option<TcpSegment> {
        self.take(|f| match &f.net {
            Net::Ip { src: s, dst: d, l4: L4::Tcp(t), .. }
                if Endpoint::new(*s, t.src_port) == src && Endpoint::new(*d, t.dst_port) == dst =>
            {
                Some(t.clone())
            }
            _ => None,
        })
    }

    /// Takes the first UDP datagram for a port of the guest out of the inbox: sender and data.
    pub fn take_udp(&mut self, port: u16) -> Option<(Endpoint, Vec<u8>)> {
        self.take(|f| match &f.net {
            Net::Ip { src, l4: L4::Udp { src_port, dst_port, data }, .. } if *dst_port == port => {
                Some((Endpoint::new(*src, *src_port), data.clone()))
            }
            _ => None,
        })
    }

    /// Takes the first ICMP message out of the inbox: sender, type, code, the four bytes after the checksum, and what follows.
    pub fn take_icmp(&mut self) -> Option<(IpAddr, u8, u8, u32, Vec<u8>)> {
        self.take(|f| match &f.net {
            Net::Ip { src, l4: L4::Icmp { ty, code, rest, data }, .. } => Some((*src, *ty, *code, *rest, data.clone())),
            _ => None,
        })
    }

    /// The end of a test: no flow, no socket, no payload may be left.
    ///
    /// # Panics
    /// If something leaked.
    pub fn assert_clean(&mut self) {
        self.settle();
        assert_eq!(self.stack.flow_counts(), (0, 0, 0), "flows are left: TCP, UDP, ICMP");
        self.edge.host.assert_all_closed();
        self.edge.pool.assert_empty();
    }
}
