//! Random tables, and images of them as bytes.

use crate::Time;
use crate::conntrack::image::{Capture, Family, Head, Image, LoadError, Loader, record_size};
use crate::conntrack::tcp::{SegKind, TcpSide, TcpState, TcpTrack, side};
use crate::conntrack::tuple::{Addr, CtTuple, invert};
use crate::conntrack::{Conn, ConnId, Conntrack, CtConfig, Dir, Proto, Status, Track};
use crate::edge::{Token, TokenKind};
use crate::rng::Key;
use crate::tuple::proto;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use proptest::prelude::*;

/// Stack time of the tests.
pub(super) const NOW: Time = Time::from_millis(1_000_000);

pub(super) fn config(max: u32) -> CtConfig {
    CtConfig { max, ..CtConfig::default() }
}

/// An image as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) head: Head,
    pub(super) v4: Vec<u8>,
    pub(super) v6: Vec<u8>,
    pub(super) counts: Option<Vec<u8>>,
}

impl From<&Image> for Saved {
    fn from(image: &Image) -> Self {
        let bytes = |family| {
            let records = image.records(family);
            assert_eq!(records.len(), image.head().count(family));
            records.to_vec()
        };
        Saved { head: image.head().clone(), v4: bytes(Family::V4), v6: bytes(Family::V6), counts: image.counts() }
    }
}

impl Saved {
    pub(super) fn of(table: &Conntrack) -> Self {
        Saved::from(&table.save())
    }

    /// Saved in steps of `slots`.
    pub(super) fn in_steps(table: &Conntrack, slots: u32) -> Self {
        let mut capture = Capture::begin(table);
        while !capture.step(table, slots).unwrap().complete {}
        Saved::from(&capture.finish(table).unwrap())
    }

    pub(super) fn load(&self, max: u32) -> Result<Conntrack, LoadError> {
        self.load_under(max, Key(71, 72))
    }

    pub(super) fn load_under(&self, max: u32, key: Key) -> Result<Conntrack, LoadError> {
        self.load_at(max, key, NOW)
    }

    pub(super) fn load_at(&self, max: u32, key: Key, now: Time) -> Result<Conntrack, LoadError> {
        let Some(counts) = &self.counts else {
            return Conntrack::load(config(max), key, now, self.head.clone(), &self.v4, &self.v6);
        };
        let loader = Loader::new(config(max), key, now, self.head.clone())?;
        loader.insert(Family::V4, 0, &self.v4)?;
        loader.insert(Family::V6, 0, &self.v6)?;
        loader.insert_counts(counts)?;
        loader.finish()
    }

    /// Records of a family.
    pub(super) fn records(&mut self, family: Family) -> &mut Vec<u8> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Bytes of a record.
    pub(super) fn record(&mut self, family: Family, n: usize) -> &mut [u8] {
        let size = record_size(family);
        &mut self.records(family)[n * size..(n + 1) * size]
    }
}

/// What a connection is made of, besides its name.
#[derive(Clone, Debug)]
pub(super) struct Seed {
    /// Its name: connections of the same one have the same original tuple.
    pub(super) name: u16,
    pub(super) kind: u8,
    pub(super) v6: bool,
    pub(super) zones: [u16; 2],
    /// 0 none, 1 source, 2 destination, 3 both.
    pub(super) nat: u8,
    pub(super) mark: u32,
    pub(super) pinned: bool,
    pub(super) bits: u64,
}

pub(super) fn seed() -> impl Strategy<Value = Seed> {
    let zones = prop_oneof![4 => Just([0, 0]), 1 => any::<[u16; 2]>()];
    (0_u16..400, 0_u8..5, any::<bool>(), zones, 0_u8..4, any::<u32>(), any::<bool>(), any::<u64>())
        .prop_map(|(name, kind, v6, zones, nat, mark, pinned, bits)| Seed { name, kind, v6, zones, nat, mark, pinned, bits })
}

fn addr(v6: bool, n: u32) -> Addr {
    let ip = match v6 {
        false => IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)),
        true => IpAddr::V6(Ipv6Addr::from_bits(0xfd00_1111_2222_3333 << 64 | u128::from(n) << 40 | u128::from(n))),
    };
    ip.into()
}

/// A connection such as the stack may have.
pub(super) fn conn(s: &Seed) -> Conn {
    let bits = |shift: u32, n: u64| (s.bits >> shift) % n;
    let (number, protocol_state, token) = match s.kind {
        0 | 1 => (proto::TCP, Proto::Tcp(tcp(s.bits)), Some(TokenKind::Tcp)),
        2 => (proto::UDP, Proto::Udp { stream_after: Time::from_millis(bits(3, 1_002_000)) }, Some(TokenKind::Udp)),
        3 => (if s.v6 { proto::ICMPV6 } else { proto::ICMP }, Proto::Icmp, Some(TokenKind::Icmp)),
        _ => (if s.bits & 1 == 0 { 47 } else { 50 }, Proto::Generic, None),
    };
    let (sport, dport) = match s.kind {
        0..=2 => (s.name, bits(7, 3) as u16 + 80),
        3 => (s.name, if s.v6 { 128 << 8 } else { [8_u16, 13, 15, 17][bits(9, 4) as usize] << 8 | 3 }),
        _ if number == 47 => (0, s.name),
        _ => (0, 0),
    };
    let original = CtTuple {
        src: addr(s.v6, u32::from(s.name)),
        dst: addr(s.v6, 0x10_0000 + bits(11, 4) as u32),
        sport,
        dport,
        zone: s.zones[0],
        proto: number,
        v6: s.v6,
    };
    let mut reply = CtTuple { zone: s.zones[1], ..invert(&original).unwrap() };
    let mut status = Status::default();
    let mut set = |yes: bool, bit: Status| {
        if yes {
            status.set(bit);
        }
    };
    set(bits(20, 2) == 1, Status::SEEN_REPLY);
    set(bits(21, 2) == 1, Status::ASSURED);
    set(s.kind < 2 && bits(22, 16) == 0, Status::DYING);
    set(true, Status::SRC_NAT_DONE);
    set(true, Status::DST_NAT_DONE);
    set(s.kind == 2 && bits(26, 8) == 0, Status::NAT_CLASH);
    if s.nat & 1 == 1 {
        reply.dst = addr(s.v6, 0x20_0000);
        if s.kind <= 2 {
            reply.dport = 30_000 + s.name;
        } else if s.kind == 3 {
            reply.sport = s.name.wrapping_add(7);
        }
        set(true, Status::SRC_NAT);
        set(bits(30, 2) == 1, Status::SRC_ADDR_GIVEN);
        set(bits(31, 2) == 1, Status::SRC_PORT_GIVEN);
    }
    if s.nat & 2 == 2 {
        reply.src = addr(s.v6, 0x30_0000);
        set(true, Status::DST_NAT);
    }
    let expires = NOW + Duration::from_nanos(s.bits >> 12);
    let token = token.filter(|_| s.pinned).map(|kind| Token::new(kind, bits(5, 1000) as u32, bits(9, 100) as u32));
    Conn { tuples: [original, reply], status, mark: s.mark, expires, proto: protocol_state, flow: token }
}

fn tcp(bits: u64) -> TcpTrack {
    let mut random = bits;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 32) as u32
    };
    let mut side = || TcpSide {
        end: next(),
        max_end: next(),
        max_win: next(),
        max_ack: next(),
        scale: (next() % 15) as u8,
        flags: next() as u8 & side::ALL,
    };
    TcpTrack {
        sides: [side(), side()],
        state: TcpState::ALL[next() as usize % 10],
        last_dir: if next() % 2 == 0 { Dir::Original } else { Dir::Reply },
        last_kind: SegKind::ALL[next() as usize % 6],
        retrans: next() as u8,
        last_seq: next(),
        last_ack: next(),
        last_end: next(),
        last_win: next() as u16,
        noted_scale: (next() % 15) as u8,
        notes: next() as u8,
    }
}

/// Puts a connection into the table, if its tuples are free.
pub(super) fn add(table: &Conntrack, s: &Seed) -> Option<ConnId> {
    match table.adopt(NOW, conn(s)) {
        Ok(Track::Known { id, .. }) => Some(id),
        _ => None,
    }
}

/// A table with connections, from which every so manieth was removed again.
pub(super) fn table(max: u32, seeds: &[Seed], remove: usize) -> Conntrack {
    let table = Conntrack::new(config(max), Key(1, 2));
    let ids: Vec<_> = seeds.iter().filter_map(|s| add(&table, s)).collect();
    if remove > 0 {
        for &id in ids.iter().step_by(remove) {
            table.remove(id);
        }
    }
    table
}
