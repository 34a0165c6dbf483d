//! Images that nobody saved.

use super::kit::*;
use crate::conntrack::image::{COUNTS, Family, Head, HeadError, LoadError, Loader, RECORD_V4, RECORD_V6, RecordError};
use crate::conntrack::{Conntrack, Dir, Status};
use crate::edge::{Token, TokenKind};
use crate::rng::Key;
use core::time::Duration;
use proptest::prelude::*;

const SEED: Seed = Seed { name: 0, kind: 0, v6: false, zones: [0, 0], nat: 0, mark: 0, pinned: false, bits: 1 << 40 | 1 << 22 };

/// IPv4: TCP, UDP, ICMP, GRE, ESP; then the same of IPv6; then IPv4 with its source translated.
fn sample() -> Saved {
    let kind = |n: u16| Seed { name: n, kind: n as u8 % 5, bits: SEED.bits | u64::from(n == 4 || n == 9), ..SEED };
    let mut seeds: Vec<_> = (0..5).map(kind).collect();
    seeds.extend((5..10).map(|n| Seed { v6: true, ..kind(n) }));
    seeds.extend((10..15).map(|n| Seed { nat: 1, ..kind(n) }));
    let saved = Saved::of(&table(64, &seeds, 0));
    assert_eq!((saved.head.v4, saved.head.v6), (10, 5));
    assert!(saved.load(64).is_ok());
    saved
}

/// Which record of the sample: its protocol, and whether its source is translated.
type Which = (u8, bool);
const TCP: Which = (6, false);
const UDP: Which = (17, false);
const ICMP: Which = (1, false);
const ESP: Which = (50, false);
const TRANSLATED: Which = (6, true);

/// The number of the first record of this kind.
fn number(saved: &mut Saved, family: Family, (protocol, translated): Which) -> usize {
    let is = |r: &[u8]| r[46] == protocol && (r[28] & Status::SRC_NAT.0 as u8 != 0) == translated;
    (0..saved.head.count(family) as usize).find(|&n| is(saved.record(family, n))).unwrap()
}

#[track_caller]
fn refused(family: Family, which: Which, forge: impl FnOnce(&mut [u8]), why: RecordError) {
    let mut saved = sample();
    let n = number(&mut saved, family, which);
    forge(saved.record(family, n));
    match saved.load(64) {
        Err(LoadError::Record { family: f, number, why: w, .. }) => assert_eq!((f, number as usize, w), (family, n, why)),
        other => panic!("{other:?}, not {why:?}"),
    }
}

fn set<const N: usize>(at: usize, bytes: [u8; N]) -> impl FnOnce(&mut [u8]) {
    move |r| r[at..at + N].copy_from_slice(&bytes)
}

#[test]
fn every_field_of_a_record_is_checked() {
    let v4 = |n, at, byte: u8, why| refused(Family::V4, n, set(at, [byte]), why);
    let slots = sample().head.slots;
    refused(Family::V4, TCP, set(0, (1_u32 << 30).to_le_bytes()), RecordError::Slot(slots));
    refused(Family::V4, UDP, set(0, slots.to_le_bytes()), RecordError::Slot(slots));
    refused(Family::V4, TCP, set(4, 2_u32.to_le_bytes()), RecordError::Generation(2));
    refused(Family::V4, TCP, set(4, 5_u32.to_le_bytes()), RecordError::Generation(5));
    refused(Family::V4, TCP, set(8, u64::MAX.to_le_bytes()), RecordError::Time);
    refused(Family::V4, TCP, set(16, 1_u64.to_le_bytes()), RecordError::Flow);
    let flow = |kind| Token::new(kind, 1, 1).bits().to_le_bytes();
    refused(Family::V4, UDP, set(16, flow(TokenKind::Tcp)), RecordError::Flow);
    refused(Family::V4, TCP, set(16, flow(TokenKind::Udp)), RecordError::Flow);
    refused(Family::V4, TCP, set(16, flow(TokenKind::Conntrack)), RecordError::Flow);
    let status = |add: Status, remove: Status| {
        let s = Status(Status::CONFIRMED.0 | Status::SRC_NAT_DONE.0 | Status::DST_NAT_DONE.0);
        (s.0 | add.0) & !remove.0
    };
    let none = Status::default();
    for (n, s) in [
        (TCP, status(Status(1), none)),
        (TCP, status(Status(1 << 6), none)),
        (TCP, status(none, Status::CONFIRMED)),
        (TCP, status(Status::NAT_CLASH, none)),
        (TCP, status(Status::SRC_NAT, Status::SRC_NAT_DONE)),
        (TCP, status(Status::DST_NAT, Status::DST_NAT_DONE)),
        (TCP, status(Status::SRC_PORT_GIVEN, Status::SRC_NAT_DONE)),
    ] {
        refused(Family::V4, n, set(28, s.to_le_bytes()), RecordError::Status(s));
    }
    v4(TCP, 30, 4, RecordError::Kind(4));
    refused(Family::V4, ICMP, set(30, [0]), RecordError::Protocol(1));
    v4(TCP, 31, 6, RecordError::Family(6));
    v4(TCP, 31, 0, RecordError::Family(0));
    refused(Family::V6, TCP, set(31, [4]), RecordError::Family(4));
    v4(TCP, 46, 17, RecordError::Protocols);
    v4(TCP, 47, 1, RecordError::Reserved);
    v4(TCP, 63, 1, RecordError::Reserved);
    v4(TCP, 127, 1, RecordError::Reserved);
    v4(UDP, 72, 1, RecordError::Reserved);
    v4(ICMP, 64, 1, RecordError::Reserved);
    // An echo reply begins nothing; ESP has no ports.
    refused(Family::V4, ICMP, set(42, [0, 0]), RecordError::Ports);
    refused(Family::V4, ESP, set(40, [1]), RecordError::Ports);
    v4(TCP, 80, 15, RecordError::TcpScale(15));
    v4(TCP, 98, 255, RecordError::TcpScale(255));
    v4(TCP, 118, 15, RecordError::TcpScale(15));
    v4(TCP, 81, 0x40, RecordError::TcpFlags(0x40));
    v4(TCP, 99, 0x80, RecordError::TcpFlags(0x80));
    v4(TCP, 100, 10, RecordError::TcpState(10));
    v4(TCP, 101, 2, RecordError::TcpLast);
    v4(TCP, 102, 6, RecordError::TcpLast);
    refused(Family::V4, UDP, set(64, (NOW + Duration::from_secs(3)).as_nanos().to_le_bytes()), RecordError::Time);
    v4(TCP, 120, 1, RecordError::Number);
}

#[test]
fn tuples_must_agree_with_translation() {
    // Source and destination address, source and destination port of the reply.
    for at in [48, 52, 56, 58] {
        refused(Family::V4, TCP, |r| r[at] ^= 1, RecordError::Translation);
    }
    refused(Family::V4, TRANSLATED, |r| r[48] ^= 1, RecordError::Translation);
    refused(Family::V4, TRANSLATED, |r| r[28] &= !(Status::SRC_NAT.0 as u8), RecordError::Number);
    let unnumbered = |r: &mut [u8]| {
        r[28] &= !(Status::SRC_NAT.0 as u8);
        r[120..124].fill(0);
    };
    refused(Family::V4, TRANSLATED, unnumbered, RecordError::Translation);
    refused(Family::V4, TCP, |r| r[28] |= Status::SRC_NAT.0 as u8, RecordError::Translation);
    refused(Family::V4, TCP, |r| r[28] |= Status::DST_NAT.0 as u8, RecordError::Translation);
    // Identifier and type.
    refused(Family::V4, ICMP, |r| r[56] ^= 1, RecordError::Translation);
    refused(Family::V4, ICMP, |r| r[59] ^= 1, RecordError::Translation);
    refused(Family::V6, TCP, |r| r[128] ^= 1, RecordError::Translation);
}

#[test]
fn tuples_are_of_one_connection_each() {
    let mut saved = sample();
    let of_tcp = |s: &mut Saved, skip: usize| {
        let is = |r: &[u8]| r[46] == 6 && r[28] & Status::SRC_NAT.0 as u8 == 0;
        (0..10).filter(|&n| is(s.record(Family::V4, n))).nth(skip).unwrap()
    };
    let (first, two) = (of_tcp(&mut saved, 0), of_tcp(&mut saved, 1));
    let one = saved.record(Family::V4, first)[32..64].to_vec();
    saved.record(Family::V4, two)[32..64].copy_from_slice(&one);
    let why = RecordError::TupleTaken(Dir::Original);
    assert_eq!(
        saved.load(64).map(drop),
        Err(LoadError::Record { family: Family::V4, number: two as u32, slot: slot(&mut saved, two), why })
    );
    // The other way round: one's original tuple is the other's reply.
    saved.record(Family::V4, two)[32..48].copy_from_slice(&one[16..]);
    saved.record(Family::V4, two)[48..64].copy_from_slice(&one[..16]);
    let Err(LoadError::Record { why: RecordError::TupleTaken(_), .. }) = saved.load(64) else { panic!() };
    // A slot that a connection of the other family has.
    let mut saved = sample();
    let slot = saved.record(Family::V4, 0)[..4].to_vec();
    saved.record(Family::V6, 0)[..4].copy_from_slice(&slot);
    let Err(LoadError::Record { family: Family::V6, number: 0, why: RecordError::SlotTaken, .. }) = saved.load(64) else {
        panic!()
    };
    // Not above the one before.
    let mut saved = sample();
    let slot = saved.record(Family::V4, 3)[..4].to_vec();
    saved.record(Family::V4, 4)[..4].copy_from_slice(&slot);
    let Err(LoadError::Record { number: 4, why: RecordError::Order, .. }) = saved.load(64) else { panic!() };
}

fn slot(saved: &mut Saved, n: usize) -> u32 {
    u32::from_le_bytes(saved.record(Family::V4, n)[..4].try_into().unwrap())
}

#[test]
fn the_head_is_checked() {
    let saved = sample();
    let with = |change: &dyn Fn(&mut Head)| {
        let mut forged = saved.clone();
        change(&mut forged.head);
        forged.load(64).map(drop).unwrap_err()
    };
    let head = |change: &dyn Fn(&mut Head)| match with(change) {
        LoadError::Head(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(with(&|h| h.v4 += 1), LoadError::Records(Family::V4));
    assert_eq!(with(&|h| h.v4 -= 1), LoadError::Records(Family::V4));
    assert_eq!(with(&|h| h.v6 += 1), LoadError::Records(Family::V6));
    assert_eq!(head(&|h| h.v6 = u32::MAX), HeadError::Slots { conns: u64::from(u32::MAX) + 10, slots: saved.head.slots });
    assert_eq!(head(&|h| h.slots = 14), HeadError::Slots { conns: 15, slots: 14 });
    assert_eq!(head(&|h| h.slots = u32::MAX), HeadError::Slots { conns: 15, slots: u32::MAX });
    assert_eq!(head(&|h| h.generation = 3), HeadError::Generation(3));
    assert_eq!(head(&|h| h.reaper.due = None), HeadError::NoReaper);
    assert_eq!(head(&|h| h.reaper.due = Some(NOW + Duration::from_secs(6))), HeadError::Reaper);
    assert_eq!(head(&|h| h.reaper.cursor = h.slots), HeadError::Reaper);
    assert_eq!(head(&|h| h.reaper.left = h.slots), HeadError::Reaper);
    assert_eq!(head(&|h| h.reaper.passed = h.slots + 1), HeadError::Reaper);
    assert_eq!(head(&|h| h.reaper.expired = h.reaper.passed + 1), HeadError::Reaper);
    assert_eq!(head(&|h| h.reaper.pressure = h.slots + 1), HeadError::Reaper);
    assert_eq!(head(&|h| h.reaper.interval = Duration::ZERO), HeadError::Reaper);
    assert_eq!(head(&|h| h.reaper.interval = Duration::from_secs(60)), HeadError::Reaper);
    assert_eq!(head(&|h| h.condemned = vec![(0, 1); 65]), HeadError::Condemned);
    assert_eq!(head(&|h| h.condemned = vec![(0, 2)]), HeadError::Condemned);
    assert_eq!(head(&|h| h.condemned = vec![(h.slots, 1)]), HeadError::Condemned);
    assert_eq!(head(&|h| h.closed = vec![5]), HeadError::Closed(5));
    let first = slot(&mut saved.clone(), 0);
    assert_eq!(head(&|h| h.condemned = vec![(first, 1)]), HeadError::Alive(first));
    let nothing = Saved { v4: Vec::new(), v6: Vec::new(), counts: None, head: Head { generation: 2, ..Head::default() } };
    assert_eq!(nothing.load(64).map(drop), Err(HeadError::Generation(2).into()));
    let mut nothing = Saved { v4: Vec::new(), v6: Vec::new(), counts: None, head: Head::default() };
    nothing.head.reaper.due = Some(NOW);
    assert_eq!(nothing.load(64).map(drop), Err(HeadError::Reaper.into()));
}

/// Slots that the image says it used are no reason to allocate anything.
#[test]
fn a_table_that_has_become_too_small_is_refused() {
    let mut saved = sample();
    assert_eq!(saved.load(14).map(drop), Err(LoadError::TooMany { conns: 15, max: 14 }));
    assert_eq!(saved.load(15).unwrap().len(), 15);
    saved.head.slots = 1 << 29;
    assert_eq!(saved.load(15).unwrap().len(), 15);
    saved.record(Family::V6, 4)[..4].copy_from_slice(&((1_u32 << 29) - 1).to_le_bytes());
    let Err(LoadError::Record { why: RecordError::Slot(_), .. }) = saved.load(15) else { panic!() };
}

#[test]
fn pieces_must_be_whole_and_given_once() {
    let saved = sample();
    let loader = || Loader::new(config(64), Key(1, 1), NOW, saved.head.clone()).unwrap();
    let all = |l: &Loader| l.insert(Family::V6, 0, &saved.v6).unwrap();
    let cut = 3 * RECORD_V4;
    // In any order.
    let l = loader();
    all(&l);
    l.insert(Family::V4, 3, &saved.v4[cut..]).unwrap();
    l.insert(Family::V4, 0, &saved.v4[..cut]).unwrap();
    assert!(Saved::of(&l.finish().unwrap()) == saved);
    // One is missing, one comes twice, one is not where it says.
    let l = loader();
    all(&l);
    l.insert(Family::V4, 3, &saved.v4[cut..]).unwrap();
    assert_eq!(l.finish().map(drop), Err(LoadError::Records(Family::V4)));
    let l = loader();
    l.insert(Family::V4, 0, &saved.v4[..cut]).unwrap();
    let Err(LoadError::Record { why: RecordError::TupleTaken(_), .. }) = l.insert(Family::V4, 3, &saved.v4[..cut]) else {
        panic!()
    };
    let l = loader();
    all(&l);
    l.insert(Family::V4, 0, &saved.v4[cut..]).unwrap();
    l.insert(Family::V4, 7, &saved.v4[..cut]).unwrap();
    assert_eq!(l.finish().map(drop), Err(LoadError::Records(Family::V4)));
    // Half a record; and one too many.
    let l = loader();
    let Err(LoadError::Record { number: 4, why: RecordError::Length, .. }) =
        l.insert(Family::V6, 0, &saved.v6[..RECORD_V6 * 5 - 1])
    else {
        panic!()
    };
    assert_eq!(l.insert(Family::V6, 1, &saved.v6), Err(LoadError::Records(Family::V6)));
    assert_eq!(l.insert(Family::V6, u32::MAX, &saved.v6), Err(LoadError::Records(Family::V6)));
}

/// What is loaded though somebody changed it is a table that works, and saves as what was loaded.
fn works_or_is_refused(saved: &Saved) {
    if let Ok(table) = saved.load(64) {
        assert!(&Saved::of(&table) == saved);
        table.flush();
        let t = table.tables().unwrap();
        let left: u32 = (0..table.buckets()).filter_map(|n| t.buckets.get(n)).map(|x| x.lock().len(&t.arena)).sum();
        assert_eq!(left, 0);
    }
}

#[test]
fn any_changed_bit_is_refused_or_harmless() {
    let saved = sample();
    for family in [Family::V4, Family::V6] {
        for bit in 0..saved.clone().records(family).len() * 8 {
            let mut forged = saved.clone();
            forged.records(family)[bit / 8] ^= 1 << (bit % 8);
            works_or_is_refused(&forged);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_harmless(changes in prop::collection::vec((any::<usize>(), any::<u8>(), any::<bool>()), 1..8), cut in 0_usize..200) {
        let mut saved = sample();
        for (at, byte, v6) in changes {
            let records = if v6 { &mut saved.v6 } else { &mut saved.v4 };
            let len = records.len();
            records[at % len] = byte;
        }
        if cut < 20 {
            saved.v4.truncate(saved.v4.len() - cut);
        }
        works_or_is_refused(&saved);
    }
}

#[test]
fn counts_of_nobody_and_counts_twice_are_refused() {
    let seeds: Vec<_> = (0..6).map(|n| Seed { name: n, kind: 2, ..SEED }).collect();
    let table = Conntrack::new(config(64), Key(1, 2));
    table.account();
    seeds.iter().for_each(|s| assert!(add(&table, s).is_some()));
    let good = Saved::of(&table);
    let counts = good.counts.clone().unwrap();
    assert_eq!(counts.len(), 6 * COUNTS);
    assert!(good.load(64).is_ok());
    let refused = |counts: Vec<u8>, slot: u32| {
        let saved = Saved { counts: Some(counts), ..good.clone() };
        assert_eq!(saved.load(64).err(), Some(LoadError::Counts(slot)));
    };
    refused([&counts[..], &counts[..COUNTS]].concat(), 0);
    refused(counts[1..].to_vec(), u32::from_le_bytes(counts[1..5].try_into().unwrap()));
    refused(counts[..COUNTS + 8].to_vec(), 0);
    let mut other = counts.clone();
    other[COUNTS] = 63;
    refused(other, 63);
    let mut older = counts;
    let slot = older[2 * COUNTS].into();
    older[2 * COUNTS + 4] ^= 2;
    refused(older, slot);
}
