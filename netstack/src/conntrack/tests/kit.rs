//! Packets and keys for the tests.

use crate::conntrack::{Conn, ConnId, Conntrack, CtConfig, CtInfo, Dir, Track};
use crate::iptables::Iface;
use crate::packet::L4;
use crate::rng::Key;
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::tcp::{Flags, Options, Seq};
use crate::wire::{tcp, udp};
use core::net::{IpAddr, Ipv4Addr};

/// A table of at most `max` connections, otherwise as Linux has it.
pub(crate) fn table(max: u32) -> Conntrack {
    Conntrack::new(CtConfig { max, ..CtConfig::default() }, Key(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908))
}

pub(crate) const fn secs(s: u64) -> Time {
    Time::from_millis(s * 1000)
}

/// Number `n` of many clients, each with an address of its own for every 50,000 ports.
pub(crate) fn client(n: u32) -> Endpoint {
    Endpoint::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n / 50_000)), (n % 50_000 + 1024) as u16)
}

/// A server.
pub(crate) fn server() -> Endpoint {
    Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 80)
}

pub(crate) fn tuple(proto: u8, src: Endpoint, dst: Endpoint) -> Tuple {
    Tuple { src, dst, proto }
}

/// A packet with this transport header.
fn packet(t: Tuple, l4: L4, l4_len: u32) -> Skb<'static> {
    Skb {
        input: Some(Iface::Host0),
        output: None,
        src_mac: None,
        src: t.src.addr,
        dst: t.dst.addr,
        protocol: t.proto,
        sport: t.src.port,
        dport: t.dst.port,
        l4,
        l4_bytes: &[],
        l4_len,
        len: 20 + l4_len,
        tos: 0,
        hop_limit: 64,
        mark: 0,
        zones: [0, 0],
        track: Track::None,
        quoted: None,
        owner: None,
        cast: Default::default(),
        ip_bytes: &[],
        body: crate::edge::Payload::EMPTY,
        traced: false,
        altered: Default::default(),
    }
}

/// A datagram of 8 bytes.
pub(crate) fn datagram(src: Endpoint, dst: Endpoint) -> Skb<'static> {
    let h = udp::Header { src_port: src.port, dst_port: dst.port, len: 16, checksum: 0 };
    packet(tuple(proto::UDP, src, dst), L4::Udp(h), 16)
}

/// A segment with `len` bytes of data.
pub(crate) fn segment(src: Endpoint, dst: Endpoint, flags: Flags, seq: u32, ack: u32, len: u32) -> Skb<'static> {
    let h = tcp::Header {
        src_port: src.port,
        dst_port: dst.port,
        seq: Seq(seq),
        ack: Seq(ack),
        header_len: 20,
        flags,
        window: 60_000,
        checksum: 0,
        urgent: 0,
    };
    packet(tuple(proto::TCP, src, dst), L4::Tcp(h, Options::default()), 20 + len)
}

/// Passes a packet through tracking and all the rest, which accepts it.
pub(crate) fn pass(ct: &Conntrack, now: Time, mut skb: Skb<'static>) -> Result<Track, DropReason> {
    ct.track(now, &mut skb)?;
    ct.confirm(now, &mut skb)?;
    Ok(skb.track)
}

/// As [`pass`] for a packet of a connection that is to be known: its handle and how it belongs to it.
#[track_caller]
pub(crate) fn known(ct: &Conntrack, now: Time, skb: Skb<'static>) -> (ConnId, CtInfo) {
    match pass(ct, now, skb) {
        Ok(Track::Known { id, info, .. }) => (id, info),
        other => panic!("not of a connection: {other:?}"),
    }
}

/// Lets a TCP connection be established.
#[track_caller]
pub(crate) fn establish(ct: &Conntrack, now: Time, a: Endpoint, b: Endpoint) -> ConnId {
    let (id, _) = known(ct, now, segment(a, b, Flags::SYN, 100, 0, 0));
    known(ct, now, segment(b, a, Flags::SYN | Flags::ACK, 500, 101, 0));
    known(ct, now, segment(a, b, Flags::ACK, 101, 501, 0));
    id
}

/// Lets the reaper do all that it will do until `until`; returns when it ran.
pub(crate) fn reap_until(ct: &Conntrack, until: Time) -> Vec<Time> {
    let mut runs = Vec::new();
    while let Some(due) = ct.reap_due().filter(|&due| due <= until) {
        runs.push(due);
        ct.reap(due);
        assert!(runs.len() < 1_000_000, "the reaper never comes to an end");
    }
    runs
}

/// A packet's connection before it is confirmed, with another reply tuple: as if it were translated.
pub(crate) fn translated(ct: &Conntrack, now: Time, mut skb: Skb<'static>, change: impl FnOnce(&mut Conn)) -> Skb<'static> {
    ct.track(now, &mut skb).expect("room");
    match &mut skb.track {
        Track::Fresh { conn, .. } => change(conn),
        other => panic!("not the first packet of a connection: {other:?}"),
    }
    skb
}

/// The connection with a tuple, by direction of the packet.
pub(crate) fn conn_of(ct: &Conntrack, now: Time, skb: &Skb<'_>) -> Option<(Conn, Dir)> {
    let (id, dir) = ct.find(now, &crate::conntrack::tuple::of(skb)?)?;
    Some((ct.get(id)?, dir))
}
