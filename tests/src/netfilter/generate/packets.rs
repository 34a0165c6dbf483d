//! Random conversations.

use super::{DPORTS, SPORTS, UNTRACKED};
use crate::SplitMix;
use crate::netfilter::frames::Exchange;
use crate::netfilter::{Body, Ends, IpFields, Packet, Quote, Side, Talk, Tcp, beyond, node, router};
use crate::wire::flags::{ACK, FIN, PSH, RST, SYN, URG};
use core::net::IpAddr;

/// A conversation.
struct Flow {
    kind: Kind,
    from: Side,
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
    /// Step whose frame the other end answers.
    first: Option<usize>,
    talk: Talk,
    /// What the ends did: SYN sent, FIN sent, by end.
    opened: [bool; 2],
    closed: [bool; 2],
    last: [Option<Tcp>; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Echo,
    Other(u8),
}

/// Both nodes, and what they have said.
pub(super) struct Guests {
    r: SplitMix,
    v6: bool,
    /// SCTP is among what they speak.
    sctp: bool,
    /// Rules reject: then nobody speaks what Linux looks for a checksum in that the protocol does not have.
    rejects: bool,
    /// Nobody says that a packet is too big.
    all_fit: bool,
    flows: Vec<Flow>,
    /// Flow and end of the packet just made.
    current: Option<(usize, usize)>,
}

impl Guests {
    pub(super) fn new(r: SplitMix, v6: bool, rules: &str) -> Guests {
        let (sctp, rejects, all_fit) = (rules.contains(UNTRACKED), rules.contains("REJECT"), rules.contains("clamp-mss"));
        Guests { r, v6, sctp, rejects, all_fit, flows: Vec::new(), current: None }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.r.below(of.len() as u64) as usize]
    }

    /// Takes note of what became of the packet just made.
    pub(super) fn sent(&mut self, past: &[Exchange]) {
        let Some((flow, end)) = self.current.take() else { return };
        let step = past.len() - 1;
        let f = &mut self.flows[flow];
        // What came out at the far side is what the other end answers.
        let passed = past[step].out.first().is_some_and(|(side, _)| *side == f.from.other());
        if end == 0 && passed && (f.first.is_none() || self.r.chance(30)) {
            f.first = Some(step);
            f.talk.first = Some(step);
        }
    }

    /// The next packet.
    pub(super) fn next(&mut self, past: &[Exchange]) -> Packet {
        let mut packet = match self.r.below(100) {
            _ if self.flows.is_empty() => self.open(),
            0..=17 => self.open(),
            18..=80 => self.go_on(),
            81..=93 => self.error(past).unwrap_or_else(|| self.go_on()),
            _ => self.stray(),
        };
        if self.r.chance(2) {
            packet.body = Body::Broken(Box::new(packet.body), 1 + self.r.below(1000) as u16);
        }
        match self.r.below(60) {
            0 => packet.ip.ttl = 1,
            1 => packet.ip.tos = 0x10,
            2 => packet.ip.ttl = 2,
            _ => {}
        }
        packet
    }

    fn open(&mut self) -> Packet {
        let v6 = self.v6;
        let from = if self.r.chance(75) { Side::Client } else { Side::Server };
        let dst = match self.r.below(12) {
            0..=6 => node(from.other(), v6),
            7 | 8 => router(from, v6),
            9 => router(from.other(), v6),
            _ => node(from.other(), v6),
        };
        let (sport, dport) = (self.pick(&SPORTS), self.pick(&DPORTS));
        let kind = match self.r.below(20) {
            0..=9 => Kind::Tcp,
            10..=15 => Kind::Udp,
            16..=18 => Kind::Echo,
            _ => {
                let summed: &[u8] = if v6 { &[50, 135, 108] } else { &[50, 51, 108] };
                let plain: &[u8] = if v6 { &[50] } else { &[50, 51] };
                let of = self.pick(if self.rejects { plain } else { summed });
                Kind::Other(if self.sctp && self.r.chance(60) { 132 } else { of })
            }
        };
        let mut talk = Talk::between(from, (node(from, v6), sport), (dst, dport));
        talk.next = [self.r.u64() as u32, self.r.u64() as u32];
        if self.r.chance(60) {
            talk = talk.scaled([self.r.below(9) as u8, self.r.below(9) as u8]);
        }
        talk.window = [self.pick(&[64_240, 1000, 65_535]), self.pick(&[65_160, 512, 29_200])];
        let (src, dst) = if matches!(kind, Kind::Tcp | Kind::Udp) {
            ((node(from, v6), sport), (dst, dport))
        } else {
            ((node(from, v6), sport), (dst, 0))
        };
        self.flows.push(Flow {
            kind,
            from,
            src,
            dst,
            first: None,
            talk,
            opened: [false; 2],
            closed: [false; 2],
            last: [None, None],
        });
        let n = self.flows.len() - 1;
        self.say(n, 0)
    }

    /// An end of some conversation says something.
    fn go_on(&mut self) -> Packet {
        // Rather one of the last ones.
        let n = self.flows.len() as u64;
        let flow = if self.r.chance(70) { n - 1 - self.r.below(n.min(3)) } else { self.r.below(n) } as usize;
        let end = if self.flows[flow].first.is_some() { self.r.below(2) as usize } else { 0 };
        self.say(flow, end)
    }

    fn say(&mut self, flow: usize, end: usize) -> Packet {
        self.current = Some((flow, end));
        let f = &self.flows[flow];
        let ends = match (end, f.first) {
            (1, Some(first)) => Ends::Answer(first),
            _ => Ends::Said(f.src, f.dst),
        };
        let (kind, from) = (f.kind, f.from);
        let body = match kind {
            Kind::Tcp => Body::Tcp(self.tcp(flow, end)),
            Kind::Udp if !self.v6 && self.r.chance(5) => Body::UdpUnsummed(self.r.below(40) as usize),
            Kind::Udp => Body::Udp(self.r.below(100) as usize),
            Kind::Echo => {
                let ty = match (end, self.v6) {
                    (0, false) => 8,
                    (0, true) => 128,
                    (_, false) => 0,
                    (_, true) => 129,
                };
                Body::Icmp { ty, code: 0, seq: self.r.below(4) as u16, data: self.r.below(60) as usize }
            }
            Kind::Other(protocol) => Body::Raw(protocol, self.other(protocol)),
        };
        Packet { from, ends, ip: IpFields::default(), body }
    }

    /// What a protocol other than TCP, UDP and ICMP says, as far as rules look at it.
    fn other(&mut self, protocol: u8) -> Vec<u8> {
        let n = self.r.below(4) as u8;
        let mut bytes = match protocol {
            132 => {
                let mut b = [&5000u16.to_be_bytes()[..], &(80 + u16::from(n)).to_be_bytes(), &[0; 8]].concat();
                for _ in 0..self.r.range(1, 3) {
                    let (ty, flags) = (self.pick(&[0, 0, 1, 3, 6, 64]), self.r.below(8) as u8);
                    b.extend([ty, flags, 0, 8, 0, 0, 0, 0]);
                }
                return b;
            }
            // Security parameter index, as the protocol has it.
            51 => vec![59, 4, 0, 0, 0, 0, 0, n],
            108 => vec![59, 0, 0, n],
            135 => return vec![59, 1, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            _ => vec![0, 0, 0, n],
        };
        bytes.resize(24 + self.r.below(30) as usize, 0);
        bytes
    }

    /// The next segment of an end: mostly what a TCP would say, sometimes nearly that.
    fn tcp(&mut self, flow: usize, end: usize) -> Tcp {
        let roll = self.r.below(100);
        let odd = self.r.below(100);
        let by = self.pick(&[-100_000_i64, -2000, -1, 1, 2000, 70_000, 5_000_000]);
        let strange = self.pick(&[SYN, SYN | ACK, RST, RST | ACK, FIN | ACK, ACK, 0, SYN | FIN, FIN, ACK | URG, PSH]);
        let len = self.r.range(1, 300) as usize;
        let window = self.pick(&[0, 1, 500, 65_535]);
        let f = &mut self.flows[flow];
        // A retransmission.
        if odd < 6
            && let Some(last) = &f.last[end]
        {
            return last.clone();
        }
        let (flags, data) = match (f.opened[end], f.opened[1 - end]) {
            (false, false) if end == 0 => (SYN, 0),
            (false, _) if end == 1 => (SYN | ACK, 0),
            (true, false) if roll < 70 => (SYN, 0),
            _ => match roll {
                0..=44 => (ACK | PSH, len),
                45..=74 => (ACK, 0),
                75..=89 => (FIN | ACK, 0),
                90..=94 => (RST, 0),
                // Once more from the beginning.
                _ => (SYN, 0),
            },
        };
        let flags = if (6..12).contains(&odd) { strange } else { flags };
        let mut t = f.talk.next_segment(end, flags, data);
        // A SYN sent again, or a second incarnation.
        if flags & SYN != 0 && f.opened[end] {
            if roll.is_multiple_of(2)
                && let Some(last) = f.last[end].as_ref().filter(|l| l.flags & SYN != 0)
            {
                return last.clone();
            }
            f.closed = [false; 2];
        }
        match odd {
            12..=16 => t.seq = t.seq.wrapping_add(by as u32),
            17..=20 => t.ack = t.ack.wrapping_add(by as u32),
            21..=23 => t.window = window,
            _ => {
                f.talk.next[end] = t.seq.wrapping_add(data as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0));
                f.opened[end] |= flags & SYN != 0;
                f.closed[end] |= flags & FIN != 0;
            }
        }
        f.last[end] = Some(t.clone());
        t
    }

    /// An ICMP error about something that came out.
    fn error(&mut self, past: &[Exchange]) -> Option<Packet> {
        let with: Vec<usize> = past.iter().enumerate().filter(|(_, e)| !e.out.is_empty()).map(|(i, _)| i).collect();
        let about = *with.get(self.r.below(with.len().max(1) as u64) as usize)?;
        let side = past[about].out.first()?.0;
        let kinds: &[(u8, u8)] = if self.v6 {
            &[(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)]
        } else {
            &[(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0), (4, 0)]
        };
        let (ty, code) = match self.pick(kinds) {
            // Linux would remember it, and clamp by that.
            (2, 0) | (3, 4) if self.all_fit => kinds[0],
            kind => kind,
        };
        let len = self.pick(&[None, None, Some(8), Some(20), Some(28), Some(4)]);
        let quote = if self.r.chance(8) { Quote::Sent(about) } else { Quote::Seen(about) };
        let body = Body::Error { ty, code, rest: if self.r.chance(30) { 1280 } else { 0 }, quote, len };
        let me = if self.r.chance(25) { beyond(side, self.v6) } else { node(side, self.v6) };
        let ends = if self.r.chance(90) { Ends::From(me, about) } else { Ends::Said((me, 0), (node(side.other(), self.v6), 0)) };
        Some(Packet { from: side, ends, ip: IpFields::default(), body })
    }

    /// Something out of any conversation.
    fn stray(&mut self) -> Packet {
        let v6 = self.v6;
        let from = self.pick(&Side::BOTH);
        let (sport, dport) = (self.pick(&SPORTS), self.pick(&DPORTS));
        let to = self.pick(&[node(from.other(), v6), router(from, v6), router(from.other(), v6)]);
        let flags = self.pick(&[ACK, FIN | ACK, RST, SYN | ACK, PSH | ACK, FIN | PSH | URG]);
        let tcp = Body::Tcp(Tcp { seq: self.r.u64() as u32, ack: self.r.u64() as u32, flags, window: 1000, ..Tcp::default() });
        let body = match self.r.below(8) {
            0..=3 => tcp,
            4 => Body::Icmp { ty: if v6 { 129 } else { 0 }, code: 0, seq: 1, data: 8 },
            5 if !v6 => Body::Icmp { ty: self.pick(&[14, 15, 17, 9, 30]), code: 0, seq: 1, data: 12 },
            6 => {
                Body::Raw(6, [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 8], &[0x40, flags, 0, 9, 0, 0, 0, 0]].concat())
            }
            7 => Body::Cut(Box::new(Body::Udp(20)), 10),
            _ => Body::Udp(3),
        };
        let ports = matches!(body, Body::Tcp(_) | Body::Udp(_) | Body::Cut(..));
        Packet {
            from,
            ends: Ends::Said((node(from, v6), sport), (to, if ports { dport } else { 0 })),
            ip: IpFields::default(),
            body,
        }
    }
}
