//! The search for free ports, on tables that are given.

use super::super::ports::choice;
use super::Build;
use super::build::conn_of;
use crate::conntrack::tcp::{TcpState, TcpTrack};
use crate::conntrack::{Addr, Conn, ConnId, CtTuple, Proto, Track};
use crate::nat::{Manip, Nat, NatRange, Table, bind};
use crate::rng::Rng;
use crate::time::Time;
use crate::tuple::proto;
use crate::verdict::DropReason;
use core::cell::Cell;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Where these ports or identifiers are taken, whoever asks.
struct Taken {
    keys: BTreeSet<u16>,
    /// Taken by connections that a new one may throw out.
    closed: bool,
    asked: Cell<u32>,
}

impl Taken {
    fn new(keys: impl IntoIterator<Item = u16>) -> Self {
        Taken { keys: keys.into_iter().collect(), closed: false, asked: Cell::new(0) }
    }
}

impl Table for Taken {
    fn taken(&self, _: Time, _: &Conn, reply: &CtTuple) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.keys.contains(&if reply.has_ports() { reply.dport } else { reply.sport })
    }

    fn taken_by_living(&self, now: Time, conn: &Conn, reply: &CtTuple) -> bool {
        self.taken(now, conn, reply) && !self.closed
    }

    fn source_mapping(&self, _: Time, _: &CtTuple, _: &mut dyn FnMut(Addr, u16) -> bool) {}

    fn tuples(&self, _: ConnId) -> Option<[CtTuple; 2]> {
        None
    }
}

/// The key that a new connection from `port` gets.
fn found(protocol: u8, port: u16, range: &NatRange, table: &Taken, seed: u8) -> Result<u16, DropReason> {
    let build = Build::new(protocol, ("10.0.2.15", port), ("203.0.113.9", 80));
    let bytes = build.bytes();
    let (mut skb, _) = super::skb_of(&bytes);
    let mut conn = conn_of(&skb);
    if protocol == proto::TCP {
        conn.proto = Proto::Tcp(TcpTrack { state: TcpState::SynSent, ..TcpTrack::default() });
    }
    skb.track = Track::Fresh { conn, related: false, len: 0 };
    let addrs = super::world::Router::default();
    let mut nat = Nat { now: Time::ZERO, rng: &mut Rng::new([seed; 16]), table, addrs: &addrs };
    bind(&mut nat, &mut skb, Manip::Source, range)?;
    match skb.track {
        Track::Fresh { conn, .. } => Ok(if conn.tuples[1].has_ports() { conn.tuples[1].dport } else { conn.tuples[1].sport }),
        other => panic!("{other:?}"),
    }
}

/// 128 attempts in the first round, then half as many: 64, 32, 16 and 8 (a round of 15 or less is the last).
const MOST: u32 = 128 + 64 + 32 + 16 + 8;

proptest! {
    #[test]
    fn what_is_found_is_free_and_in_range(
        port: u16,
        ends in prop_oneof![Just(None), any::<(u16, u16)>().prop_map(Some), (any::<u16>(), 0..200u16).prop_map(|(a, n)| Some((a, a.saturating_add(n))))],
        protocol in prop_oneof![Just(proto::TCP), Just(proto::UDP), Just(proto::ICMP)],
        random: bool,
        base: Option<u16>,
        density in 0..=10u16,
        salt: u16,
        seed: u8,
    ) {
        let ports = ends.map(|(a, b)| (a.min(b), a.max(b)));
        let range = NatRange { ports, random, base: base.filter(|_| ports.is_some()), ..NatRange::default() };
        let keys = (0..=u16::MAX).filter(|k| k.wrapping_mul(40_503).wrapping_add(salt) % 10 < density);
        let table = Taken::new(keys);
        let class = match (ports, protocol, port) {
            (Some((a, b)), ..) => a..=b,
            (_, proto::ICMP, _) => 0..=u16::MAX,
            (.., 0..512) => 1..=511,
            (.., 512..1024) => 600..=1023,
            _ => 1024..=u16::MAX,
        };
        let all_taken = class.clone().all(|k| table.keys.contains(&k));
        let got = found(protocol, port, &range, &table, seed);
        // A look at the original and one at the same in the range, then the search; and one at what an only port is.
        prop_assert!(table.asked.get() <= MOST + 3, "{} attempts", table.asked.get());
        match got {
            Ok(key) => {
                prop_assert!(!table.keys.contains(&key));
                prop_assert!(class.contains(&key) || (!random && ports.is_none() && key == port));
            }
            Err(why) => {
                prop_assert_eq!(why, DropReason::NatExhausted);
                // Where a tenth is free, 248 random tries find it.
                prop_assert!(all_taken || density >= 9 || class.clone().count() <= 128, "{density}");
                if class.clone().count() <= 128 {
                    prop_assert!(all_taken, "a small range is searched whole");
                }
            }
        }
    }
}

#[test]
fn a_full_range_ends_the_search() {
    for protocol in [proto::TCP, proto::UDP, proto::ICMP] {
        let table = Taken::new(0..=u16::MAX);
        assert_eq!(found(protocol, 5000, &NatRange::default(), &table, 1), Err(DropReason::NatExhausted));
        assert_eq!(table.asked.get(), MOST + 2);
    }
}

/// The last attempts of a round throw closed connections out, but only for a new TCP connection.
#[test]
fn closed_connections_go_last() {
    for (protocol, found_at) in [(proto::TCP, Some(96)), (proto::UDP, None)] {
        let table = Taken { closed: true, ..Taken::new(0..=u16::MAX) };
        let got = found(protocol, 5000, &NatRange::default(), &table, 1);
        assert_eq!(got.is_ok(), found_at.is_some());
        if let Some(n) = found_at {
            assert_eq!(table.asked.get(), 2 + n + 1);
        }
    }
}

/// Protocols without ports have only their addresses.
#[test]
fn no_ports_no_choice() {
    let build = Build::new(47, ("10.0.2.15", 0), ("203.0.113.9", 0));
    let bytes = build.bytes();
    let (skb, _) = super::skb_of(&bytes);
    let mapping = super::super::mapping::Mapping::of(&conn_of(&skb));
    assert_eq!(choice(&mapping, Manip::Source, &NatRange { ports: Some((1, 2)), ..NatRange::default() }), None);
    assert_eq!(found(47, 0, &NatRange::default(), &Taken::new([0]), 1), Err(DropReason::NatExhausted));
    assert_eq!(found(47, 0, &NatRange::default(), &Taken::new([]), 1), Ok(0));
}
