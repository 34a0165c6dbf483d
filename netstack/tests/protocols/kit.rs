//! A tracker of one connection, and packets for it.

use hibernet_netstack::conntrack::icmp::{concerns, quoted};
use hibernet_netstack::conntrack::proto::{self, Invalid, Kind, Step};
use hibernet_netstack::conntrack::tcp::{TcpState, TcpTrack};
use hibernet_netstack::conntrack::{Conn, CtConfig, Dir, Proto, Status, Track, tuple};
use hibernet_netstack::packet::L4;
use hibernet_netstack::skb::Skb;
use hibernet_netstack::time::Time;
use hibernet_netstack::wire::{EtherType, icmp, ip, tcp, udp};
use std::net::IpAddr;
use std::time::Duration;

pub const CLIENT: &str = "10.1.0.2";
pub const SERVER: &str = "10.2.0.2";

/// What `--ctstate` would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Invalid(Invalid),
    New,
    Established,
    Related(Dir),
    Untracked,
}

pub const INVALID_STATE: State = State::Invalid(Invalid::TcpState);
pub const BEYOND: State = State::Invalid(Invalid::TcpSeqOver);
pub const NOT_SENT: State = State::Invalid(Invalid::TcpAckOver);
pub use State::New;
pub const KNOWN: State = State::Established;

/// A packet: its addresses, protocol and what follows the IP header.
#[derive(Clone, Debug)]
pub struct Bytes {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub l4: Vec<u8>,
    /// Bytes that the packet has and `l4` does not: the rest of a super-segment.
    pub more: u32,
}

impl Bytes {
    pub fn new(src: &str, dst: &str, protocol: u8, l4: Vec<u8>) -> Bytes {
        Bytes { src: src.parse().unwrap(), dst: dst.parse().unwrap(), protocol, l4, more: 0 }
    }

    /// From an IP packet.
    pub fn of_ip(b: &[u8]) -> Bytes {
        let ethertype = if b[0] >> 4 == 6 { EtherType::Ipv6 } else { EtherType::Ipv4 };
        let h = ip::Header::parse(ethertype, b, b.len()).unwrap();
        let l4 = b[usize::from(h.header_len)..h.total_len as usize].to_vec();
        Bytes { src: h.src, dst: h.dst, protocol: h.protocol, l4, more: 0 }
    }

    pub fn skb(&self) -> Skb<'_> {
        let b = &self.l4[..];
        let mut ports = (0, 0);
        let l4 = match (self.protocol, self.src.is_ipv4()) {
            (6, _) => tcp::Header::parse(b, b.len()).map(|h| {
                ports = (h.src_port, h.dst_port);
                L4::Tcp(h, tcp::Options::parse(&b[tcp::HEADER_LEN..usize::from(h.header_len)]))
            }),
            (17, _) => udp::Header::parse(b, b.len()).map(|h| {
                ports = (h.src_port, h.dst_port);
                L4::Udp(h)
            }),
            (1, true) => icmp::Header::parse(b).map(L4::Icmp),
            (58, false) => icmp::Header::parse(b).map(L4::Icmpv6),
            _ => Ok(L4::Other),
        };
        if let Ok(L4::Icmp(h) | L4::Icmpv6(h)) = l4 {
            ports.0 = h.ident();
        }
        Skb {
            input: None,
            output: None,
            src_mac: None,
            src: self.src,
            dst: self.dst,
            protocol: self.protocol,
            sport: ports.0,
            dport: ports.1,
            l4: l4.unwrap_or(L4::Other),
            l4_bytes: b,
            l4_len: b.len() as u32 + self.more,
            len: b.len() as u32 + self.more + 20,
            tos: 0,
            hop_limit: 64,
            mark: 0,
            zones: [0, 0],
            track: Track::None,
            quoted: None,
            owner: None,
            cast: Default::default(),
            ip_bytes: &[],
            body: hibernet_netstack::edge::Payload::EMPTY,
            traced: false,
            altered: Default::default(),
        }
    }
}

/// A TCP segment between client and server.
#[derive(Clone, Debug)]
pub struct Seg {
    dir: Dir,
    flags: u8,
    seq: u32,
    ack: u32,
    win: u16,
    len: u32,
    options: Vec<u8>,
}

/// A segment of the client, by the letters of its flags.
pub fn c(flags: &str, seq: u32, ack: u32) -> Seg {
    seg(Dir::Original, flags, seq, ack)
}

/// A segment of the server.
pub fn s(flags: &str, seq: u32, ack: u32) -> Seg {
    seg(Dir::Reply, flags, seq, ack)
}

pub fn seg(dir: Dir, flags: &str, seq: u32, ack: u32) -> Seg {
    let bit = |c| match c {
        'F' => 0x01,
        'S' => 0x02,
        'R' => 0x04,
        'P' => 0x08,
        'A' => 0x10,
        'U' => 0x20,
        'E' => 0x40,
        'C' => 0x80,
        _ => panic!("no flag {c}"),
    };
    Seg { dir, flags: flags.chars().map(bit).sum(), seq, ack, win: 1000, len: 0, options: Vec::new() }
}

impl Seg {
    pub fn win(self, win: u16) -> Seg {
        Seg { win, ..self }
    }

    /// With so many bytes of payload.
    pub fn len(self, len: u32) -> Seg {
        Seg { len, ..self }
    }

    pub fn options(mut self, bytes: &[u8]) -> Seg {
        self.options.extend_from_slice(bytes);
        self
    }

    pub fn scale(self, shift: u8) -> Seg {
        self.options(&[3, 3, shift, 1])
    }

    pub fn sack_permitted(self) -> Seg {
        self.options(&[4, 2, 1, 1])
    }

    pub fn sack(self, blocks: &[(u32, u32)]) -> Seg {
        let mut b = vec![1, 1, 5, 2 + 8 * blocks.len() as u8];
        for (left, right) in blocks {
            b.extend_from_slice(&left.to_be_bytes());
            b.extend_from_slice(&right.to_be_bytes());
        }
        self.options(&b)
    }

    pub fn bytes(&self) -> Bytes {
        let (mut src, mut dst, mut ports) = (CLIENT, SERVER, (1000u16, 80u16));
        if self.dir == Dir::Reply {
            (src, dst) = (dst, src);
            ports = (ports.1, ports.0);
        }
        let mut b = vec![0; 20];
        b[..2].copy_from_slice(&ports.0.to_be_bytes());
        b[2..4].copy_from_slice(&ports.1.to_be_bytes());
        b[4..8].copy_from_slice(&self.seq.to_be_bytes());
        b[8..12].copy_from_slice(&self.ack.to_be_bytes());
        b[13] = self.flags;
        b[14..16].copy_from_slice(&self.win.to_be_bytes());
        b.extend_from_slice(&self.options);
        b.resize(b.len().next_multiple_of(4), 0);
        b[12] = (b.len() as u8 / 4) << 4;
        let mut bytes = Bytes::new(src, dst, 6, b);
        bytes.more = self.len;
        bytes
    }
}

/// A tracker that knows at most one connection.
#[derive(Clone, Debug)]
pub struct Tracker {
    pub cfg: CtConfig,
    pub now: Time,
    pub conn: Option<Conn>,
}

impl Default for Tracker {
    fn default() -> Self {
        Tracker { cfg: CtConfig::default(), now: Time::from_millis(1_000), conn: None }
    }
}

impl Tracker {
    pub fn with(setting: &str, value: u64) -> Tracker {
        let mut t = Tracker::default();
        t.cfg.set(setting, value).unwrap();
        t
    }

    /// An established connection: the client's next byte is 1001, the server's 5001, windows are 1000.
    pub fn established() -> Tracker {
        let mut t = Tracker::default();
        t.handshake();
        t
    }

    pub fn handshake(&mut self) {
        assert_eq!(self.tcp(c("S", 1000, 0)), New);
        assert_eq!(self.tcp(s("SA", 5000, 1001)), KNOWN);
        assert_eq!(self.tcp(c("A", 1001, 5001)), KNOWN);
        assert_eq!(self.state(), Some(TcpState::Established));
    }

    pub fn wait(&mut self, secs: u64) {
        self.now = self.now + Duration::from_secs(secs);
    }

    pub fn tcp(&mut self, seg: Seg) -> State {
        self.packet(&seg.bytes())
    }

    /// As the table does it.
    pub fn packet(&mut self, bytes: &Bytes) -> State {
        let skb = bytes.skb();
        self.conn = self.conn.filter(|c| c.expires > self.now);
        match proto::check(&skb) {
            Err(why) => return State::Invalid(why),
            Ok(Kind::Exempt) => return State::Untracked,
            Ok(Kind::IcmpError) => return self.error(&skb),
            Ok(Kind::Packet) => {}
        }
        let Some(tuple) = tuple::of(&skb) else { return State::Invalid(Invalid::Truncated) };
        if let Some(conn) = &mut self.conn
            && let Some(dir) = [Dir::Original, Dir::Reply].into_iter().find(|d| conn.tuples[*d as usize] == tuple)
        {
            let state = match dir {
                Dir::Original if !conn.status.has(Status::SEEN_REPLY) => New,
                _ => State::Established,
            };
            match proto::packet(&self.cfg, self.now, conn, dir, &skb) {
                Step::Accept | Step::Aside => return state,
                Step::Invalid(why) => return State::Invalid(why),
                Step::DeleteAccept => {
                    self.conn = None;
                    return state;
                }
                Step::Repeat => {}
            }
        }
        let Some(reply) = tuple::invert(&tuple) else { return State::Invalid(Invalid::IcmpType) };
        match proto::new(&self.cfg, self.now, &skb) {
            Ok((proto, timeout)) => {
                let (tuples, status) = ([tuple, reply], Status::CONFIRMED);
                self.conn = Some(Conn { tuples, status, mark: 0, expires: self.now + timeout, proto, flow: None });
                New
            }
            Err(why) => State::Invalid(why),
        }
    }

    fn error(&self, skb: &Skb<'_>) -> State {
        let quote = match quoted(skb) {
            Ok(quote) => quote,
            Err(why) => return State::Invalid(why),
        };
        let found = self.conn.and_then(|c| {
            let dir = [Dir::Original, Dir::Reply].into_iter().find(|d| c.tuples[*d as usize] == quote.expected)?;
            concerns(skb, &c, dir).then_some(dir)
        });
        found.map_or(State::Invalid(Invalid::Quote), State::Related)
    }

    pub fn state(&self) -> Option<TcpState> {
        self.track().map(|t| t.state)
    }

    pub fn track(&self) -> Option<&TcpTrack> {
        match &self.conn.as_ref()?.proto {
            Proto::Tcp(t) => Some(t),
            _ => None,
        }
    }

    /// Seconds that are left to the connection, as the listing shows them; 0 if there is none.
    pub fn left(&self) -> u64 {
        self.conn.map_or(0, |c| c.expires.since(self.now).as_secs())
    }

    pub fn assured(&self) -> bool {
        self.conn.is_some_and(|c| c.status.has(Status::ASSURED))
    }
}
