//! The run of one seed.

use crate::flood::Flood;
use crate::forgotten::Forgotten;
use crate::frame::{tcp_of, udp_payload};
use crate::guest::Guest;
use crate::net::{Frame, Wire};
use crate::plan::Plan;
use crate::tcp_flow::TcpFlow;
use crate::udp_flow::{UdpFlow, label};
use core::hash::Hasher;
use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::Time;
use hibernet_netstack::admin::Recheck;
use hibernet_netstack::edge::{RxChecksum, TxError};
use hibernet_netstack::iptables::text;
use hibernet_tests::{Boundary, SplitMix, World};
use std::collections::hash_map::DefaultHasher;

/// How long everything may take, in virtual time.
const LIMIT: Duration = Duration::from_secs(5 * 3600);
/// And in turns of the loop.
const TURNS: u64 = 3_000_000;
/// Until the last UDP flow must have expired.
const LINGER: Duration = Duration::from_secs(600);

/// What was done, to be sure that something was.
#[derive(Debug, Default)]
pub struct Done {
    seeds: u64,
    tcp_flows: u64,
    aborted: u64,
    tcp_bytes: u64,
    udp_datagrams: u64,
    frames: u64,
    lost: u64,
    rto: u64,
    fast_retransmit: u64,
    window_probes: u64,
    out_of_order: u64,
    virtual_seconds: u64,
    /// Worlds in which the guest forgot what it had sent.
    forgotten: u64,
    /// Of all frames; of no use for more than one seed.
    hash: u64,
}

impl Done {
    /// What tells two runs apart: every frame in both directions, and when it was sent.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub fn add(&mut self, o: &Done) {
        self.seeds += o.seeds;
        self.tcp_flows += o.tcp_flows;
        self.aborted += o.aborted;
        self.tcp_bytes += o.tcp_bytes;
        self.udp_datagrams += o.udp_datagrams;
        self.frames += o.frames;
        self.lost += o.lost;
        self.rto += o.rto;
        self.fast_retransmit += o.fast_retransmit;
        self.window_probes += o.window_probes;
        self.out_of_order += o.out_of_order;
        self.virtual_seconds += o.virtual_seconds;
        self.forgotten += o.forgotten;
    }
}

/// A world with everything around it.
pub struct Sim {
    world: World,
    guest: Guest,
    up: Wire,
    down: Wire,
    tcp: Vec<TcpFlow>,
    udp: Vec<UdpFlow>,
    flood: Flood,
    frames: u64,
    /// Of all frames and when they were sent.
    hash: DefaultHasher,
    forgotten: Forgotten,
    seed: u64,
    full: bool,
    freeze: Option<(Time, Duration)>,
    trace: bool,
}

/// Addresses of the host.
pub fn host_addresses() -> Vec<IpAddr> {
    ["198.18.0.1", "fd99::1"].map(|a| a.parse().expect("an address")).into()
}

fn set_rules(w: &mut World, plan: &Plan) {
    for (family, rules) in &plan.rules {
        let rules = text::parse(*family, rules).unwrap_or_else(|e| panic!("{e}: {rules}"));
        let now = w.now();
        w.stack.set_rules(now, rules, Recheck::Keep, &mut w.edge).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Runs a seed to its end.
pub fn seed(seed: u64) -> Done {
    Sim::new(&Plan::new(seed), seed, None).finish()
}

impl Sim {
    /// The world of a plan, in which nothing has happened yet.
    pub fn new(plan: &Plan, seed: u64, boundary: Option<Box<dyn Boundary>>) -> Sim {
        let mut rng = SplitMix::new(!seed);
        let mut world = World::seeded(plan.config.clone(), plan.link, seed);
        let now = world.now();
        world.stack.set_host_addresses(host_addresses());
        world.edge.host.addresses.extend(host_addresses());
        world.boundary = boundary;
        world.link_up();
        set_rules(&mut world, plan);
        Sim {
            guest: Guest::new(plan, now, seed),
            up: Wire::new(plan.faults, now, rng.fork()),
            down: Wire::new(plan.faults, now, rng.fork()),
            tcp: plan.tcp.iter().map(|p| TcpFlow::new(p.clone(), !plan.rules.is_empty(), now, rng.fork())).collect(),
            udp: plan.udp.iter().map(|p| UdpFlow::new(p.clone(), now, rng.fork())).collect(),
            flood: Flood::new(plan.flood.clone(), &mut world, rng.fork()),
            world,
            frames: 0,
            hash: DefaultHasher::new(),
            forgotten: Forgotten::new(now),
            seed,
            full: plan.full,
            freeze: plan.freeze.map(|(at, len)| (now + at, len)),
            trace: std::env::var_os("HIBERNET_TRACE").is_some(),
        }
    }

    /// Runs it to its end.
    pub fn finish(mut self) -> Done {
        let start = self.world.now();
        let whole = self.run(start + LIMIT);
        if whole {
            self.settle_down();
        }
        Done { forgotten: u64::from(!whole), ..self.done(start) }
    }

    /// What chance does now. It depends on nothing but the time, so that a turn in which nothing happens changes nothing.
    fn chance(&self, at: Time, what: u64) -> SplitMix {
        SplitMix::new(SplitMix::new(self.seed ^ what << 56).u64() ^ at.as_nanos())
    }

    /// Lets everything come to its end; `false` if the guest made that impossible.
    fn run(&mut self, end: Time) -> bool {
        let (mut turns, mut moved) = (0, false);
        loop {
            let now = self.world.now();
            moved |= self.deliver(now);
            self.guest.poll(now);
            if moved {
                self.tcp.iter_mut().for_each(|f| f.wake(now));
            }
            for f in &mut self.tcp {
                f.act(now, &mut self.world, &mut self.guest);
            }
            self.udp.iter_mut().for_each(|f| f.act(now, &mut self.guest));
            self.flood.act(&mut self.world, &mut self.guest);
            self.guest.poll(now);
            // A wake-up for the link alone comes before the one for the sockets.
            if self.chance(now, 1).chance(50) {
                self.world.flush();
            }
            let before = self.world.events;
            self.world.settle();
            while self.host_answers() {
                self.world.settle();
            }
            // An event at a socket may be what a peer waits for.
            if self.world.events > before {
                self.tcp.iter_mut().for_each(|f| f.wake(now));
            }
            self.send(now);
            self.tcp.iter_mut().for_each(|f| f.finish(&mut self.world, &mut self.guest));
            if self.tcp.iter().all(TcpFlow::is_done)
                && self.udp.iter().all(UdpFlow::is_done)
                && self.flood.is_done()
                && self.up.next().is_none()
                && self.down.next().is_none()
                && self.world.stack.flow_counts().0 == 0
            {
                return true;
            }
            if self.forgotten.knows(now) && self.tcp.iter().all(|f| f.is_done() || self.forgotten.is(f.ports())) {
                return false;
            }
            turns += 1;
            let next = self.next(now);
            assert!(
                next <= end && turns < TURNS,
                "no end after {turns} turns, {:?}:\n{:#?}\n{:#?}",
                now.since(Time::ZERO),
                self.tcp,
                self.world.stack.stats()
            );
            moved = self.world.edge.host.next_deadline().is_some_and(|d| d <= next);
            self.fill_link(next);
            self.world.run_to(next);
            if let Some((_, len)) = self.freeze.take_if(|(at, _)| *at <= next) {
                self.world.freeze(len);
                moved = true;
            }
        }
    }

    /// The link's queue is full for a moment, now and then.
    fn fill_link(&mut self, at: Time) {
        let mut chance = self.chance(at, 2);
        let fail = &mut self.world.edge.links[0].fail;
        fail.clear();
        if self.full && chance.chance(2) {
            fail.extend([TxError::Full; 4].iter().take(chance.range(1, 4) as usize));
        }
    }

    /// Programs on the host answer datagrams at once; whether there were any.
    fn host_answers(&mut self) -> bool {
        let mut any = self.flood.answer(&mut self.world);
        for f in &mut self.udp {
            any |= f.echo(&mut self.world);
        }
        any
    }

    fn note(&mut self, now: Time, what: u8, frame: &[u8]) {
        self.frames += 1;
        self.hash.write_u64(now.as_nanos());
        self.hash.write_u8(what);
        self.hash.write(frame);
    }

    /// Frames that have arrived.
    fn deliver(&mut self, now: Time) -> bool {
        let mut any = false;
        while let Some(f) = self.up.arrived(now) {
            self.trace(now, "to stack", &f.bytes);
            let trust = if self.guest.offload { RxChecksum::Trusted } else { RxChecksum::Unverified };
            self.world.receive_as(&f.bytes, trust, f.gso);
            any = true;
        }
        while let Some(f) = self.down.arrived(now) {
            self.trace(now, "to guest", &f.bytes);
            self.guest.device.rx.push_back(f.bytes);
            any = true;
        }
        any
    }

    /// Frames that were sent. UDP datagrams are booked, so that none goes missing but on the link.
    fn send(&mut self, now: Time) {
        while let Some(f) = self.guest.device.tx.pop_front() {
            self.note(now, 0, &f.bytes);
            let data = udp_payload(&f.bytes);
            self.trace(now, "guest sends", &f.bytes);
            if self.forgotten.watches(now)
                && let Some((_, _, t)) = tcp_of(&f.bytes)
            {
                self.forgotten.guest_sent(&t);
            }
            let copies = self.up.send(now, f);
            self.trace_copies(copies);
            if let Some((flow, seq)) = data.and_then(|d| self.exchange(&d)) {
                *self.udp[flow].delivered_up.entry(seq).or_default() += copies;
            }
        }
        self.world.collect();
        while let Some((_, bytes)) = self.world.inbox.pop_front() {
            self.note(now, 1, &bytes);
            let data = udp_payload(&bytes);
            self.trace(now, "stack sends", &bytes);
            if self.forgotten.watches(now)
                && let Some((_, _, t)) = tcp_of(&bytes)
            {
                self.forgotten.stack_sent(&t);
            }
            let copies = self.down.send(now, Frame { bytes, gso: None });
            self.trace_copies(copies);
            if let Some((flow, seq)) = data.and_then(|d| self.exchange(&d)) {
                *self.udp[flow].delivered_down.entry(seq).or_default() += copies;
            }
        }
        for f in &mut self.udp {
            f.delivered_up.retain(|_, n| *n > 0);
            f.delivered_down.retain(|_, n| *n > 0);
        }
    }

    fn trace_copies(&self, copies: u64) {
        if self.trace && copies != 1 {
            println!("                {}", if copies == 0 { "LOST" } else { "doubled" });
        }
    }

    fn trace(&self, now: Time, what: &str, frame: &[u8]) {
        if !self.trace {
            return;
        }
        let at = now.as_nanos() / 1000;
        match tcp_of(frame) {
            Some((src, dst, t)) => println!(
                "{at:>12} {what:>11} {src}:{} > {dst}:{} flags {:#04x} seq {} ack {} win {} len {} options {:02x?}",
                t.src_port,
                t.dst_port,
                t.flags,
                t.seq,
                t.ack,
                t.window,
                t.data.len(),
                t.options
            ),
            None => println!("{at:>12} {what:>11} {} bytes, no TCP", frame.len()),
        }
    }

    fn exchange(&self, data: &[u8]) -> Option<(usize, u64)> {
        let (id, seq) = label(data)?;
        Some((self.udp.iter().position(|f| f.plan.id == id)?, seq))
    }

    fn next(&mut self, now: Time) -> Time {
        let flows = self.tcp.iter().map(TcpFlow::next).chain(self.udp.iter().map(UdpFlow::next)).min();
        let freeze = self.freeze.map(|(at, _)| at);
        let flood = Some(self.flood.next());
        [self.world.next_deadline(), self.up.next(), self.down.next(), flows, flood, freeze, self.guest.poll_at(now)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Time::NEVER)
    }

    /// All is said; nothing may be left.
    fn settle_down(&mut self) {
        self.udp.iter().for_each(UdpFlow::check_counts);
        assert_eq!(self.world.stack.flow_counts().0, 0, "TCP flows are left");
        self.world.boundary = None;
        self.world.run(LINGER);
        self.flood.close(&mut self.world);
        self.world.assert_clean();
    }

    fn done(&self, start: Time) -> Done {
        let s = self.world.stack.stats();
        Done {
            seeds: 1,
            tcp_flows: self.tcp.len() as u64,
            aborted: self.tcp.iter().filter(|f| f.is_aborted()).count() as u64,
            tcp_bytes: self.tcp.iter().map(TcpFlow::bytes).sum(),
            udp_datagrams: self.udp.iter().map(|f| f.got_guest.values().sum::<u64>()).sum(),
            frames: self.frames,
            lost: self.up.lost + self.down.lost,
            rto: s.tcp_rto,
            fast_retransmit: s.tcp_fast_retransmit,
            window_probes: s.tcp_window_probe,
            out_of_order: s.tcp_out_of_order,
            virtual_seconds: self.world.now().since(start + LINGER).as_secs(),
            forgotten: 0,
            hash: self.hash.finish(),
        }
    }
}
