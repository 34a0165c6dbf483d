//! A ruleset, and what is sent through it.

use super::frames::{Body, Ends, IpFields, Packet, Quote, Tcp};
use super::{Side, node, router};
use core::net::IpAddr;
use std::time::Duration;

/// Number of a step of a scenario.
pub type StepId = usize;

/// A step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A packet is sent, and all that comes of it is taken in.
    Send(Packet),
    /// Time passes.
    Wait(Duration),
    /// Rules with counters and connections are compared here too.
    Check,
    /// Something changes under way. Only our own routers can do that.
    Change(Change),
    /// The step was taken out of a failing case to make it smaller; the others keep their numbers.
    Gone,
}

/// What may change while packets flow.
#[derive(Clone, Debug)]
pub enum Change {
    /// All rules are replaced.
    Rules(String),
    /// A tracked connection, counted among all of them and round to the first again, gets another mark.
    Mark(usize, u32),
    /// These are the host's addresses.
    Addresses(Vec<IpAddr>),
    /// The router is saved, and goes on from its image.
    Restore,
}

/// A case: built step by step, then [`run`](super::run).
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// IPv6.
    pub v6: bool,
    /// Text for iptables-restore.
    pub rules: String,
    /// Settings of tracking that differ from a fresh namespace: the end of a sysctl's name, after `nf_conntrack_`.
    pub settings: Vec<(&'static str, u32)>,
    /// What happens.
    pub steps: Vec<Step>,
    /// At least one frame must come out, or the scenario tests nothing.
    pub silent: bool,
}

/// An ICMP type by family.
fn by(v6: bool, four: u8, six: u8) -> u8 {
    if v6 { six } else { four }
}

impl Scenario {
    /// An empty case of a family.
    pub fn new(name: &str, v6: bool, rules: &str) -> Scenario {
        let rules = rules.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect();
        Scenario { name: name.to_owned(), v6, rules, settings: Vec::new(), steps: Vec::new(), silent: false }
    }

    /// IPv4.
    pub fn v4(name: &str, rules: &str) -> Scenario {
        Scenario::new(name, false, rules)
    }

    /// IPv6.
    pub fn v6(name: &str, rules: &str) -> Scenario {
        Scenario::new(name, true, rules)
    }

    /// Changes a setting of tracking.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: u32) -> Scenario {
        self.settings.push((name, value));
        self
    }

    /// Nothing is expected to come out.
    #[must_use]
    pub fn silent(mut self) -> Scenario {
        self.silent = true;
        self
    }

    /// Address of a node.
    pub fn node(&self, side: Side) -> IpAddr {
        node(side, self.v6)
    }

    /// Address of the router.
    pub fn router(&self, side: Side) -> IpAddr {
        router(side, self.v6)
    }

    /// Adds a step.
    pub fn push(&mut self, step: Step) -> StepId {
        self.steps.push(step);
        self.steps.len() - 1
    }

    /// Sends a packet between addresses and ports as said.
    pub fn send(&mut self, from: Side, src: (IpAddr, u16), dst: (IpAddr, u16), body: Body) -> StepId {
        self.push(Step::Send(Packet { from, ends: Ends::Said(src, dst), ip: IpFields::default(), body }))
    }

    /// Sends a packet from the node on one side to the one on the other.
    pub fn across(&mut self, from: Side, sport: u16, dport: u16, body: Body) -> StepId {
        self.send(from, (self.node(from), sport), (self.node(from.other()), dport), body)
    }

    /// Sends a packet from a node to any address.
    pub fn to(&mut self, from: Side, sport: u16, dst: IpAddr, dport: u16, body: Body) -> StepId {
        self.send(from, (self.node(from), sport), (dst, dport), body)
    }

    /// Answers the frame that came out at a step.
    pub fn answer(&mut self, to: StepId, body: Body) -> StepId {
        self.push(Step::Send(Packet { from: Side::Client, ends: Ends::Answer(to), ip: IpFields::default(), body }))
    }

    /// Sends something else between the ends of the packet sent at a step.
    pub fn again(&mut self, like: StepId, body: Body) -> StepId {
        self.push(Step::Send(Packet { from: Side::Client, ends: Ends::Again(like), ip: IpFields::default(), body }))
    }

    /// An ICMP error from `from` about what came out at a step: type and code of either family.
    pub fn error(&mut self, from: IpAddr, about: StepId, (ty, code): (u8, u8), len: Option<usize>) -> StepId {
        let body = Body::Error { ty, code, rest: 0, quote: Quote::Seen(about), len };
        self.push(Step::Send(Packet { from: Side::Client, ends: Ends::From(from, about), ip: IpFields::default(), body }))
    }

    /// Changes fields of the IP header of the last packet.
    pub fn ip(&mut self, change: impl FnOnce(&mut IpFields)) {
        if let Some(Step::Send(p)) = self.steps.last_mut() {
            change(&mut p.ip);
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, millis: u64) {
        self.push(Step::Wait(Duration::from_millis(millis)));
    }

    /// Compares rules and connections at this point.
    pub fn check(&mut self) {
        self.push(Step::Check);
    }

    /// An echo request.
    pub fn ping(&self, seq: u16) -> Body {
        Body::Icmp { ty: by(self.v6, 8, 128), code: 0, seq, data: 24 }
    }

    /// An echo reply.
    pub fn pong(&self, seq: u16) -> Body {
        Body::Icmp { ty: by(self.v6, 0, 129), code: 0, seq, data: 24 }
    }

    /// Type and code of a port-unreachable.
    pub fn port_unreachable(&self) -> (u8, u8) {
        if self.v6 { (1, 4) } else { (3, 3) }
    }

    /// Type and code of a time-exceeded.
    pub fn time_exceeded(&self) -> (u8, u8) {
        (by(self.v6, 11, 3), 0)
    }

    /// Type and code of too-big.
    pub fn too_big(&self) -> (u8, u8) {
        if self.v6 { (2, 0) } else { (3, 4) }
    }

    /// A SYN.
    pub fn syn(&self, seq: u32) -> Body {
        Body::Tcp(Tcp { seq, flags: crate::wire::flags::SYN, window: 64_240, ..Tcp::default() })
    }

    /// A TCP segment with flags and numbers.
    pub fn tcp(&self, flags: u8, seq: u32, ack: u32, data: usize) -> Body {
        Body::Tcp(Tcp { seq, ack, flags, window: 64_240, data, ..Tcp::default() })
    }
}
