//! What rules and tracking add to the way of a packet: established TCP between two links, with all tables empty and everything tracked, and
//! as configured by default (no tracking; the filter table has the safe reach). `cargo bench -p netstack --bench hooks`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks")]

#[path = "common/mod.rs"]
mod common;

use common::{dram_latency, measure, report};
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

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const DATA: usize = 100;

/// Links that take everything, a host that is never asked.
#[derive(Default)]
struct Nobody {
    sent: u64,
}

impl PayloadStore for Nobody {
    fn read(&self, _: Payload, _: &mut [u8]) -> usize {
        0
    }
    fn checksum(&self, _: Payload) -> u16 {
        0
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

/// A segment of the client's or the server's.
fn frame(from_client: bool, flags: Flags, seq: u32, ack: u32, data: usize) -> Vec<u8> {
    let (src, dst, src_port, dst_port) = if from_client { (CLIENT, SERVER, 5000, 80) } else { (SERVER, CLIENT, 80, 5000) };
    let mut b = vec![0; ethernet::HEADER_LEN + ipv4::HEADER_LEN + tcp::HEADER_LEN + data];
    ethernet::Header { dst: Config::GATEWAY_MAC, src: MAC, ethertype: EtherType::Ipv4 }.emit(&mut b);
    let total_len = (ipv4::HEADER_LEN + tcp::HEADER_LEN + data) as u16;
    ipv4::Header {
        header_len: ipv4::HEADER_LEN as u8,
        tos: 0,
        total_len,
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
        src_port,
        dst_port,
        seq: Seq(seq),
        ack: Seq(ack),
        header_len: tcp::HEADER_LEN as u8,
        flags,
        window: 60_000,
        checksum: 0,
        urgent: 0,
    }
    .emit(&mut b[ethernet::HEADER_LEN + ipv4::HEADER_LEN..]);
    b
}

fn receive(stack: &mut Stack, edge: &mut Nobody, now: Time, link: u8, bytes: &[u8]) {
    let frame = Payload { slot: 0, offset: 0, len: bytes.len() as u32 };
    let head = &bytes[..bytes.len().min(HEAD_MAX)];
    let rx = RxFrame { link: LinkId(link), head, frame, checksum: RxChecksum::Trusted, gso: None };
    stack.receive(now, &rx, edge);
}

/// Two links, an open connection between their guests.
fn connected(rules: Option<&str>) -> (Stack, Nobody) {
    let mut stack = Stack::new(Config::default(), [7; 16]);
    let mut edge = Nobody::default();
    let info = LinkInfo { mtu: 1500, checksum: true, tso: true, uso: true, guest_mac: Some(MAC), in_flight: u32::MAX };
    for third in [1, 2] {
        let net = LinkNet { v4: Some((Ipv4Addr::new(10, third, 0, 1), 24)), v6: None };
        stack.add_link_with(info, net);
    }
    if let Some(rules) = rules {
        let rules = text::parse(Family::V4, rules).expect("rules");
        stack.set_rules(Time::ZERO, rules, Recheck::Keep, &mut edge).expect("rules");
    }
    let now = Time::from_millis(1);
    receive(&mut stack, &mut edge, now, 0, &frame(true, Flags::SYN, 1000, 0, 0));
    receive(&mut stack, &mut edge, now, 1, &frame(false, Flags::SYN | Flags::ACK, 5000, 1001, 0));
    receive(&mut stack, &mut edge, now, 0, &frame(true, Flags::ACK, 1001, 5001, 0));
    assert_eq!(edge.sent, 3, "{:?}", stack.stats());
    (stack, edge)
}

fn main() {
    const ROUNDS: usize = 21;
    const PACKETS: u64 = 200_000;
    let dram = dram_latency();
    println!("random access to memory {dram:.0} ns");
    let tables = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n*security\nCOMMIT\n";
    let mut medians = Vec::new();
    for (name, rules) in [
        ("link to link, as configured by default", None),
        ("link to link, tracked, all tables there and empty", Some(tables)),
        ("link to link, tracked, behind SNAT", Some("*nat\n-A POSTROUTING -o tap1 -j SNAT --to-source 10.2.0.9\nCOMMIT\n")),
    ] {
        let (mut stack, mut edge) = connected(rules);
        let data = frame(true, Flags::ACK | Flags::PSH, 1001, 5001, DATA);
        let m = measure(
            ROUNDS,
            PACKETS,
            || (),
            |()| {
                for n in 0..PACKETS {
                    receive(&mut stack, &mut edge, Time::from_millis(2 + n / 1000), 0, black_box(&data));
                }
            },
        );
        report(name, m, dram, "-");
        medians.push(m.ns);
    }
    println!(
        "{:<52} {:>8.1} ns                                             target 150 ns",
        "all hooks, tracking and empty tables: the difference",
        medians[1] - medians[0]
    );
}
