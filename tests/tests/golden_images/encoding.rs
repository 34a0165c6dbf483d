//! How states are encoded: a state with everything that states may have.

use crate::{Format, state};
use hibernet_snapshot::{Bytes, SectionKind, SectionState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Unit,
    Newtype(u16),
    Tuple(u8, u64),
    Struct { on: bool, text: String },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(i64);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    unsigned: (u8, u16, u32, u64, u128, usize),
    signed: (i8, i16, i32, i64, i128),
    other: (bool, char, f64, Newtype, ()),
    options: [Option<u32>; 2],
    choices: Vec<Choice>,
    bytes: Bytes,
    text: String,
    map: BTreeMap<u16, Vec<u8>>,
    set: BTreeSet<u8>,
    addresses: (IpAddr, IpAddr, SocketAddr),
    time: Duration,
    not_zero: NonZeroU32,
    boxed: Box<u8>,
}

impl SectionState for Everything {
    const KIND: SectionKind = SectionKind(u32::MAX);
    const VERSION: u16 = 1;
}

pub fn format() -> Format {
    state("encoding", |_| Everything {
        unsigned: (1, 0x0203, 0x0405_0607, 0x0809_0a0b_0c0d_0e0f, u128::MAX - 1, 300),
        signed: (-1, -2, -3, -4, -5),
        other: (true, 'ß', -0.5, Newtype(i64::MIN), ()),
        options: [None, Some(7)],
        choices: vec![Choice::Unit, Choice::Newtype(1), Choice::Tuple(2, 3), Choice::Struct { on: false, text: "x".into() }],
        bytes: Bytes(vec![9, 8, 7]),
        text: "Straße".into(),
        map: BTreeMap::from([(2, vec![]), (1, vec![1, 2])]),
        set: BTreeSet::from([3, 1, 2]),
        addresses: ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap(), "[::1]:53".parse().unwrap()),
        time: Duration::new(5, 6),
        not_zero: NonZeroU32::MAX,
        boxed: Box::new(4),
    })
}
