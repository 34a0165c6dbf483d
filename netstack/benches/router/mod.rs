//! A router between two links, a client on one and a server on the other, with rules between them.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use core::net::{IpAddr, Ipv4Addr};
use hibernet_netstack::admin::Recheck;
use hibernet_netstack::config::{Config, LinkNet};
use hibernet_netstack::edge::*;
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_netstack::wire::tcp::{Flags, Seq};
use hibernet_netstack::wire::{EtherType, Mac, ethernet, ipv4, tcp};
use hibernet_netstack::{Stack, Time};
use std::hint::black_box;

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const DATA: u32 = 100;

/// Where the segment begins in a frame.
const TCP: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;

/// Links that take everything, a host that is never asked.
#[derive(Default)]
pub struct Nobody {
    /// Frames that went out.
    pub sent: u64,
}

impl PayloadStore for Nobody {
    fn read(&self, _: Payload, _: &mut [u8]) -> usize {
        0
    }
    fn checksum(&self, _: Payload) -> u16 {
        0
    }
    fn make_private(&mut self, _: Payload) -> bool {
        true
    }

    fn stash(&mut self, _: &[u8]) -> Option<Payload> {
        None
    }
    fn release(&mut self, _: Payload) {}
}

impl FrameSink for Nobody {
    fn transmit(&mut self, _: LinkId, frame: TxFrame<'_>) -> Result<(), TxError> {
        black_box(frame.head);
        self.sent += 1;
        Ok(())
    }
}

const NO: SockError = SockError::NotAvailable;

impl HostSockets for Nobody {
    fn reserve(&mut self, _: u8, _: Endpoint, _: Source) -> bool {
        false
    }
    fn tcp_connect(&mut self, _: Token, _: Endpoint, _: Source) -> Result<SockId, SockError> {
        Err(NO)
    }
    fn tcp_adopt(&mut self, _: SockId, _: Token) -> Result<(), SockError> {
        Err(NO)
    }
    fn tcp_send(&mut self, _: SockId, _: Payload) -> Result<usize, SockError> {
        Err(NO)
    }
    fn tcp_send_bytes(&mut self, _: SockId, _: &[u8]) -> Result<usize, SockError> {
        Err(NO)
    }
    fn tcp_peek(&mut self, _: SockId, _: u32, _: u32) -> Result<Peek, SockError> {
        Err(NO)
    }
    fn tcp_consume(&mut self, _: SockId, _: u32) -> Result<(), SockError> {
        Err(NO)
    }
    fn tcp_unread(&mut self, _: SockId) -> u32 {
        0
    }
    fn tcp_shutdown(&mut self, _: SockId) -> Result<(), SockError> {
        Err(NO)
    }
    fn tcp_space(&mut self, _: SockId) -> u32 {
        0
    }
    fn tcp_unacked(&mut self, _: SockId) -> u32 {
        0
    }
    fn tcp_status(&mut self, _: SockId) -> TcpStatus {
        TcpStatus::default()
    }
    fn udp_open(&mut self, _: Token, _: Endpoint, _: Source) -> Result<SockId, SockError> {
        Err(NO)
    }
    fn udp_send(&mut self, _: SockId, _: Payload, _: &SendOpts) -> Result<(), SockError> {
        Err(NO)
    }
    fn udp_recv(&mut self, _: SockId, _: &mut [Option<Datagram>]) -> Result<usize, SockError> {
        Err(NO)
    }
    fn ping_open(&mut self, _: Token, _: IpAddr, _: u16, _: Option<IpAddr>) -> Result<SockId, SockError> {
        Err(NO)
    }
    fn ping_send(&mut self, _: SockId, _: u16, _: Payload, _: &SendOpts) -> Result<(), SockError> {
        Err(NO)
    }
    fn ping_recv(&mut self, _: SockId) -> Result<Option<(u16, Datagram)>, SockError> {
        Err(NO)
    }
    fn take_error(&mut self, _: SockId) -> Option<SockError> {
        None
    }
    fn take_report(&mut self, _: SockId) -> Option<ErrorReport> {
        None
    }
    fn close(&mut self, _: SockId, _: Close) {}
    fn flush(&mut self) {}
}

/// A segment of the client's, or the server's to the client as it knows it, of connection 0.
pub fn frame(src: Ipv4Addr, dst: Ipv4Addr, flags: Flags, seq: u32, ack: u32, data: u32) -> Vec<u8> {
    let mut b = vec![0; TCP + tcp::HEADER_LEN + data as usize];
    ethernet::Header { dst: Config::GATEWAY_MAC, src: MAC, ethertype: EtherType::Ipv4 }.emit(&mut b);
    ipv4::Header {
        header_len: ipv4::HEADER_LEN as u8,
        tos: 0,
        total_len: (b.len() - ethernet::HEADER_LEN) as u16,
        ident: 1,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: proto::TCP,
        src,
        dst,
    }
    .emit(&mut b[ethernet::HEADER_LEN..]);
    tcp::Header {
        src_port: 0,
        dst_port: 0,
        seq: Seq(seq),
        ack: Seq(ack),
        header_len: tcp::HEADER_LEN as u8,
        flags,
        window: 60_000,
        checksum: 0,
        urgent: 0,
    }
    .emit(&mut b[TCP..]);
    of(&mut b, src == CLIENT, 0);
    b
}

/// Makes a frame one of connection `n`: by its ports, of which the header of IP says nothing.
pub fn of(frame: &mut [u8], from_client: bool, n: u32) {
    let (client, server) = ((n & 0x7fff) as u16 + 1024, (n >> 15) as u16 + 80);
    let (src, dst) = if from_client { (client, server) } else { (server, client) };
    frame[TCP..TCP + 2].copy_from_slice(&src.to_be_bytes());
    frame[TCP + 2..TCP + 4].copy_from_slice(&dst.to_be_bytes());
}

pub fn number(frame: &mut [u8], seq: u32, ack: u32) {
    frame[TCP + 4..TCP + 8].copy_from_slice(&seq.to_be_bytes());
    frame[TCP + 8..TCP + 12].copy_from_slice(&ack.to_be_bytes());
}

/// Two links of a router with rules.
pub struct Router {
    pub stack: Stack,
    pub edge: Nobody,
    /// How the server knows the client.
    pub public: Ipv4Addr,
}

impl Router {
    pub fn new(rules: Option<&str>) -> Router {
        Router::tracking(Config::default().conntrack.max, rules)
    }

    /// With room for so many connections.
    pub fn tracking(max: u32, rules: Option<&str>) -> Router {
        let mut cfg = Config::default();
        cfg.conntrack.max = max;
        let (mut stack, mut edge) = (Stack::new(cfg, [7; 16]), Nobody::default());
        let info = LinkInfo { mtu: 1500, checksum: true, tso: Tso::Both, uso: true, guest_mac: Some(MAC), in_flight: u32::MAX };
        for third in [1, 2] {
            let net = LinkNet { v4: Some((Ipv4Addr::new(10, third, 0, 1), 24)), v6: None };
            stack.add_link_with(info, net);
        }
        if let Some(rules) = rules {
            let rules = text::parse(Family::V4, rules).expect("rules");
            stack.set_rules(Time::ZERO, rules, Recheck::Keep, &mut edge).expect("rules");
        }
        Router { stack, edge, public: CLIENT }
    }

    pub fn receive(&mut self, now: Time, link: u8, bytes: &[u8]) {
        let frame = Payload { slot: 0, offset: 0, len: bytes.len() as u32 };
        let head = &bytes[..bytes.len().min(HEAD_MAX)];
        let rx = RxFrame { link: LinkId(link), head, frame, checksum: RxChecksum::Trusted, gso: None };
        self.stack.receive(now, &rx, &mut self.edge);
    }

    /// Opens connections between the links' guests.
    pub fn open(&mut self, connections: core::ops::Range<u32>) {
        let before = self.edge.sent;
        let opened = 3 * u64::from(connections.end - connections.start);
        let mut syn = frame(CLIENT, SERVER, Flags::SYN, 1000, 0, 0);
        let mut answer = frame(SERVER, self.public, Flags::SYN | Flags::ACK, 5000, 1001, 0);
        let mut ack = frame(CLIENT, SERVER, Flags::ACK, 1001, 5001, 0);
        let now = Time::from_millis(1);
        for n in connections {
            for (link, frame) in [(0, &mut syn), (1, &mut answer), (0, &mut ack)] {
                of(frame, link == 0, n);
                self.receive(now, link, frame);
            }
        }
        assert_eq!(self.edge.sent - before, opened, "{:?}", self.stack.stats());
    }
}

/// One connection, data one way, acknowledgements the other; `packets` a round.
pub fn hot(mut r: Router, packets: u64) -> crate::common::Measured {
    r.open(0..1);
    let mut data = frame(CLIENT, SERVER, Flags::ACK | Flags::PSH, 1001, 5001, DATA);
    let mut ack = frame(SERVER, r.public, Flags::ACK, 5001, 1001, 0);
    let (mut seq, mut sent) = (1001_u32, 0);
    let m = crate::common::measure(
        21,
        packets,
        || (),
        |()| {
            for n in 0..packets / 2 {
                let now = Time::from_millis(2 + n / 1000);
                number(&mut data, seq, 5001);
                seq = seq.wrapping_add(DATA);
                number(&mut ack, 5001, seq);
                r.receive(now, 0, black_box(&data));
                r.receive(now, 1, black_box(&ack));
            }
            sent += packets;
        },
    );
    assert_eq!(r.edge.sent, sent + 3, "{:?}", r.stack.stats());
    assert_eq!(r.stack.conntrack().counters().invalid, 0);
    m
}
