//! A TCP connection in a scenario, with its numbers.

use super::frames::{Body, Packet, Tcp};
use super::scenario::{Scenario, Step, StepId};
use super::{Ends, IpFields, Side};
use crate::wire::flags::{ACK, FIN, PSH, RST, SYN};
use core::net::IpAddr;

/// Two ends that know what they sent. The one who opens is number 0; it sends to the address that the scenario says, and the
/// other one answers whatever reached it first.
#[derive(Clone, Debug)]
pub struct Talk {
    from: Side,
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
    /// Next sequence number, by end.
    pub next: [u32; 2],
    /// Window on the wire, by end.
    pub window: [u16; 2],
    /// Options of the SYN, by end.
    pub options: [Vec<u8>; 2],
    /// Step whose frame the other end answers.
    pub first: Option<StepId>,
}

impl Talk {
    /// From the node on one side to that on the other.
    pub fn new(s: &Scenario, from: Side, sport: u16, dport: u16) -> Talk {
        Talk::to(s, from, sport, s.node(from.other()), dport)
    }

    /// From the node on one side to any address.
    pub fn to(s: &Scenario, from: Side, sport: u16, dst: IpAddr, dport: u16) -> Talk {
        Talk::between(from, (s.node(from), sport), (dst, dport))
    }

    /// Between any ends.
    pub fn between(from: Side, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Talk {
        let mss = vec![2, 4, 5, 180];
        Talk { from, src, dst, next: [1000, 5000], window: [64_240, 65_160], options: [mss.clone(), mss], first: None }
    }

    /// Both ends scale their windows.
    #[must_use]
    pub fn scaled(mut self, shift: [u8; 2]) -> Talk {
        for (o, shift) in self.options.iter_mut().zip(shift) {
            o.extend([1, 3, 3, shift]);
        }
        self
    }

    /// Sends a segment as it is.
    pub fn segment(&mut self, s: &mut Scenario, end: usize, t: Tcp) -> StepId {
        let ends = match (end, self.first) {
            (0, _) => Ends::Said(self.src, self.dst),
            (_, Some(first)) => Ends::Answer(first),
            (_, None) => Ends::Said(self.dst, self.src),
        };
        let from = if end == 0 { self.from } else { self.from.other() };
        let step = s.push(Step::Send(Packet { from, ends, ip: IpFields::default(), body: Body::Tcp(t) }));
        if end == 0 && self.first.is_none() {
            self.first = Some(step);
        }
        step
    }

    /// The next segment of an end: flags, data; what the other end sent is acknowledged if the flags have ACK.
    pub fn next_segment(&self, end: usize, flags: u8, data: usize) -> Tcp {
        let options = if flags & SYN != 0 { self.options[end].clone() } else { Vec::new() };
        let ack = if flags & ACK != 0 { self.next[1 - end] } else { 0 };
        Tcp { seq: self.next[end], ack, flags, window: self.window[end], options, data }
    }

    /// Sends the next segment of an end.
    pub fn say(&mut self, s: &mut Scenario, end: usize, flags: u8, data: usize) -> StepId {
        let t = self.next_segment(end, flags, data);
        self.next[end] = self.next[end].wrapping_add(data as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0));
        self.segment(s, end, t)
    }

    /// SYN.
    pub fn syn(&mut self, s: &mut Scenario) -> StepId {
        self.say(s, 0, SYN, 0)
    }

    /// SYN, SYN-ACK, ACK.
    pub fn open(&mut self, s: &mut Scenario) -> StepId {
        let first = self.syn(s);
        self.say(s, 1, SYN | ACK, 0);
        self.say(s, 0, ACK, 0);
        first
    }

    /// Data of an end.
    pub fn data(&mut self, s: &mut Scenario, end: usize, n: usize) -> StepId {
        self.say(s, end, PSH | ACK, n)
    }

    /// An acknowledgement of an end.
    pub fn ack(&mut self, s: &mut Scenario, end: usize) -> StepId {
        self.say(s, end, ACK, 0)
    }

    /// FIN of an end.
    pub fn fin(&mut self, s: &mut Scenario, end: usize) -> StepId {
        self.say(s, end, FIN | ACK, 0)
    }

    /// RST of an end, at its next number.
    pub fn rst(&mut self, s: &mut Scenario, end: usize) -> StepId {
        self.say(s, end, RST, 0)
    }

    /// Closes orderly, `end` first.
    pub fn close(&mut self, s: &mut Scenario, end: usize) {
        self.fin(s, end);
        self.ack(s, 1 - end);
        self.fin(s, 1 - end);
        self.ack(s, end);
    }
}
