//! What goes on beside the flows that are checked byte by byte: a guest that asks everybody and listens to nobody, clients of a published
//! port, queries for names, echo requests.

use crate::guest::Guest;
use crate::net::Frame;
use crate::plan::FloodPlan;
use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::Time;
use hibernet_netstack::edge::SockId;
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::host::Incoming;
use hibernet_tests::wire::{self, GUEST_MAC, TcpSegment};
use hibernet_tests::{ConnectPlan, SplitMix, World};
use std::collections::BTreeMap;

/// The published UDP port.
const PORT: u16 = 9000;

#[derive(Debug)]
pub struct Flood {
    plan: FloodPlan,
    rng: SplitMix,
    next: Time,
    listener: Option<SockId>,
    /// What was seen of each socket's messages.
    seen: BTreeMap<u32, usize>,
}

impl Flood {
    pub fn new(plan: FloodPlan, w: &mut World, rng: SplitMix) -> Flood {
        let listener = (plan.clients > 0).then(|| w.listen_udp(Endpoint::new([0, 0, 0, 0].into(), PORT)));
        let next = if plan.frames > 0 || plan.clients > 0 { w.now() } else { Time::NEVER };
        Flood { plan, rng, next, listener, seen: BTreeMap::new() }
    }

    pub fn is_done(&self) -> bool {
        self.next == Time::NEVER
    }

    pub fn next(&self) -> Time {
        self.next
    }

    pub fn act(&mut self, w: &mut World, g: &mut Guest) {
        let now = w.now();
        if self.next > now {
            return;
        }
        for _ in 0..self.rng.range(1, 3).min(self.plan.frames) {
            self.plan.frames -= 1;
            let bytes = self.frame(w, g);
            g.device.tx.push_back(Frame { bytes, gso: None });
        }
        if let Some(sock) = self.listener.filter(|_| self.plan.clients > 0) {
            self.plan.clients -= 1;
            let from = Endpoint::new([203, 0, 113, self.rng.range(1, 30) as u8].into(), 1000);
            let to = Some("198.18.0.1".parse().expect("an address"));
            let data = vec![self.rng.u64() as u8; self.rng.below(100) as usize];
            w.edge.host.udp_arrives(sock, Incoming { data, from, to, segment: None, hop_limit: Some(60) });
        }
        let more = self.plan.frames > 0 || self.plan.clients > 0;
        let pause = Duration::from_nanos(self.rng.below(self.plan.pace.as_nanos() as u64 + 1));
        self.next = if more { now + pause } else { Time::NEVER };
    }

    /// One more frame of the guest's.
    fn frame(&mut self, w: &mut World, g: &Guest) -> Vec<u8> {
        let rng = &mut self.rng;
        let host = rng.range(1, 250) as u16;
        let dst: IpAddr =
            if rng.chance(50) { [0x2600, 0x1f, 0, 0, 0, 0, 1, host].into() } else { [203, 0, 114, host as u8].into() };
        let src = g.addr(dst);
        let (sport, dport) = (rng.range(40_000, 40_050) as u16, rng.range(1, 1000) as u16);
        let (dst, protocol, payload) = match (rng.below(8), self.plan.resolver) {
            (0 | 1, Some(_)) => {
                let dst = w.stack.config().v4.expect("IPv4 is on").dns.into();
                let src = g.addr(dst);
                (dst, 17, wire::udp(src, dst, sport, 53, &query(rng.u64() as u16)))
            }
            (0..=2, _) => (dst, 17, wire::udp(src, dst, sport, dport, &[7; 40])),
            (3 | 4, _) => {
                let protocol = if dst.is_ipv4() { 1 } else { 58 };
                (dst, protocol, wire::echo(src, dst, rng.range(1, 4) as u16, rng.u64() as u16, &[8; 24]))
            }
            (n, _) => {
                if n == 5 {
                    w.edge.host.plan(Endpoint::new(dst, dport), ConnectPlan::Blackhole);
                }
                let syn = TcpSegment {
                    src_port: sport,
                    dst_port: dport,
                    seq: 1000,
                    flags: wire::flags::SYN,
                    window: 1000,
                    ..TcpSegment::default()
                };
                (dst, 6, syn.bytes(src, dst))
            }
        };
        wire::Ip::new(g.addr(dst), dst).frame(w.gateway_mac(), GUEST_MAC, protocol, &payload)
    }

    /// Resolvers and those who are pinged answer every other message; whether there was one.
    pub fn answer(&mut self, w: &mut World) -> bool {
        let mut any = false;
        let Some(resolver) = self.plan.resolver else { return false };
        for sock in w.edge.host.udp_sockets() {
            if !w.edge.host.is_open(sock) || w.edge.host.udp(sock).to != Some(Endpoint::new(resolver, 53)) {
                continue;
            }
            for data in self.news(sock, w.edge.host.udp(sock).sent.iter().map(|s| s.data.clone())) {
                let mut data = data;
                data[2] |= 0x80;
                w.edge.host.udp_reply(sock, &data);
                any = true;
            }
        }
        for sock in w.edge.host.ping_sockets() {
            if !w.edge.host.is_open(sock) {
                continue;
            }
            for (seq, data) in self.news(sock, w.edge.host.ping(sock).sent.iter().map(|s| (s.seq, s.sent.data.clone()))) {
                w.edge.host.ping_reply(sock, seq, &data);
                any = true;
            }
        }
        any
    }

    /// Those of a socket's messages that were not seen before, and are to be answered.
    fn news<T>(&mut self, sock: SockId, all: impl ExactSizeIterator<Item = T>) -> Vec<T> {
        let seen = self.seen.entry(sock.0).or_default();
        let from = std::mem::replace(seen, all.len());
        all.skip(from).filter(|_| self.rng.chance(50)).collect()
    }

    /// The end: the published port's socket goes.
    pub fn close(&mut self, w: &mut World) {
        if let Some(sock) = self.listener.take() {
            w.edge.host.close_listener(sock);
        }
    }
}

/// A query for a name.
fn query(id: u16) -> Vec<u8> {
    let mut q = id.to_be_bytes().to_vec();
    q.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    q.extend(b"\x07example\x03net\0\0\x01\0\x01");
    q
}
