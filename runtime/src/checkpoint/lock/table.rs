//! The table of a lock: sets of what is locked, and rules that drop what stands in them.

use super::nft::{Batch, make};
use super::{ICMP, ICMPV6, TCP, UDP};
use std::time::Duration;

/// Elements in a message: the attribute that holds them has a length of 16 bits.
const MESSAGE: usize = 500;

/// Messages of nf_tables.
pub(super) mod message {
    pub(in super::super) const NEW_TABLE: u8 = 0;
    pub(in super::super) const DEL_TABLE: u8 = 2;
    pub(in super::super) const NEW_CHAIN: u8 = 3;
    pub(in super::super) const NEW_RULE: u8 = 6;
    pub(in super::super) const NEW_SET: u8 = 9;
    pub(in super::super) const NEW_ELEMENTS: u8 = 12;
}

/// The sets of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Set {
    /// Protocol, our address, our port, the peer's address, its port.
    Flows4,
    Flows6,
    /// Protocol, our address, our port.
    Addresses4,
    Addresses6,
    /// Protocol, our port, over IPv4.
    Ports4,
    /// The same, over both.
    Ports,
}

impl Set {
    pub(super) const ALL: [Set; 6] = [Set::Flows4, Set::Flows6, Set::Addresses4, Set::Addresses6, Set::Ports4, Set::Ports];

    pub(super) fn name(self) -> &'static str {
        match self {
            Set::Flows4 => "flows4",
            Set::Flows6 => "flows6",
            Set::Addresses4 => "addresses4",
            Set::Addresses6 => "addresses6",
            Set::Ports4 => "ports4",
            Set::Ports => "ports",
        }
    }

    /// Types of the key's parts, as the `nft` program numbers them, and their lengths.
    fn key(self) -> &'static [(u32, u32)] {
        const PROTOCOL: (u32, u32) = (12, 4);
        const V4: (u32, u32) = (7, 4);
        const V6: (u32, u32) = (8, 16);
        const PORT: (u32, u32) = (13, 4);
        match self {
            Set::Flows4 => &[PROTOCOL, V4, PORT, V4, PORT],
            Set::Flows6 => &[PROTOCOL, V6, PORT, V6, PORT],
            Set::Addresses4 => &[PROTOCOL, V4, PORT],
            Set::Addresses6 => &[PROTOCOL, V6, PORT],
            Set::Ports4 | Set::Ports => &[PROTOCOL, PORT],
        }
    }
}

/// Which way packets go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

pub(super) fn make_table(batch: &mut Batch, table: &str, time_out: Duration) {
    /// The elements have a time-out.
    const TIMEOUT: u32 = 0x10;
    make(batch, message::NEW_TABLE).name(1, table);
    for set in Set::ALL {
        let key = set.key();
        let ty = key.iter().fold(0, |ty, (part, _)| ty << 6 | part);
        let len = key.iter().map(|(_, len)| len).sum();
        make(batch, message::NEW_SET).name(1, table).name(2, set.name()).word(3, TIMEOUT).word(4, ty).word(5, len);
        batch.word(10, set as u32 + 1).bytes(11, &(time_out.as_millis() as u64).max(1).to_be_bytes());
    }
    for (name, hook, way) in [("input", 1, Way::In), ("output", 3, Way::Out)] {
        /// Before the rules of others.
        const PRIORITY: i32 = -500;
        make(batch, message::NEW_CHAIN).name(1, table).name(3, name);
        batch.nested(4, |b| {
            b.word(1, hook).word(2, PRIORITY as u32);
        });
        // Accept what no rule drops.
        batch.word(5, 1).name(7, "filter");
        for protocol in [TCP, UDP] {
            for set in [Set::Flows4, Set::Flows6] {
                rule(batch, table, name, protocol, set, way);
            }
            if way == Way::In {
                for set in [Set::Addresses4, Set::Addresses6, Set::Ports4, Set::Ports] {
                    rule(batch, table, name, protocol, set, way);
                }
            }
        }
        for (protocol, sets) in [(ICMP, [Set::Addresses4, Set::Ports4]), (ICMPV6, [Set::Addresses6, Set::Ports])] {
            sets.into_iter().for_each(|set| rule(batch, table, name, protocol, set, way));
        }
    }
}

/// Registers of four bytes.
const REG: u32 = 8;
const VERDICT: u32 = 0;
/// Bases of offsets into a packet.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// Drops the packets of a protocol that stand in a set.
fn rule(batch: &mut Batch, table: &str, chain: &str, protocol: u8, set: Set, way: Way) {
    let key = set.key();
    let is_v6 = matches!(set, Set::Flows6 | Set::Addresses6);
    let is_echo = matches!(protocol, ICMP | ICMPV6);
    // Offset and length of the source's address, and of the destination's.
    let (addresses, len) = if is_v6 { ([8, 24], 16) } else { ([12, 16], 4) };
    // Ours and the peer's, in this direction.
    let (ours, peers) = if way == Way::In { (1, 0) } else { (0, 1) };
    make(batch, message::NEW_RULE).name(1, table).name(2, chain);
    batch.nested(4, |b| {
        if set != Set::Ports {
            // NFPROTO_IPV4, NFPROTO_IPV6.
            meta(b, 15, REG);
            compare(b, REG, if is_v6 { 10 } else { 2 });
        }
        meta(b, 16, REG);
        compare(b, REG, protocol);
        let mut at = REG + 1;
        if key.len() > 2 {
            payload(b, at, NETWORK, addresses[ours], len);
            at += len / 4;
        }
        // An echo request has its identifier at one place in both directions.
        payload(b, at, TRANSPORT, if is_echo { 4 } else { 2 * ours as u32 }, 2);
        at += 1;
        if key.len() == 5 {
            payload(b, at, NETWORK, addresses[peers], len);
            at += len / 4;
            payload(b, at, TRANSPORT, 2 * peers as u32, 2);
        }
        expression(b, "lookup", |b| {
            b.name(1, set.name()).word(2, REG).word(4, set as u32 + 1);
        });
        expression(b, "immediate", |b| {
            b.word(1, VERDICT).nested(2, |b| {
                // NF_DROP.
                b.nested(2, |b| {
                    b.word(1, 0);
                });
            });
        });
    });
}

fn expression(b: &mut Batch, name: &str, data: impl FnOnce(&mut Batch)) {
    b.nested(1, |b| {
        b.name(1, name).nested(2, data);
    });
}

fn meta(b: &mut Batch, key: u32, register: u32) {
    expression(b, "meta", |b| {
        b.word(1, register).word(2, key);
    });
}

fn compare(b: &mut Batch, register: u32, value: u8) {
    expression(b, "cmp", |b| {
        b.word(1, register).word(2, 0).nested(3, |b| {
            b.bytes(1, &[value]);
        });
    });
}

fn payload(b: &mut Batch, register: u32, base: u32, offset: u32, len: u32) {
    expression(b, "payload", |b| {
        b.word(1, register).word(2, base).word(3, offset).word(4, len);
    });
}

/// Adds elements, which are sorted by their sets.
pub(super) fn add_elements(batch: &mut Batch, table: &str, elements: &[(Set, Vec<u8>)]) {
    for run in elements.chunk_by(|(a, _), (b, _)| a == b) {
        for chunk in run.chunks(MESSAGE) {
            make(batch, message::NEW_ELEMENTS).name(1, table).name(2, chunk[0].0.name());
            batch.nested(3, |b| {
                for (_, key) in chunk {
                    b.nested(1, |b| {
                        b.nested(1, |b| {
                            b.bytes(1, key);
                        });
                    });
                }
            });
        }
    }
}
