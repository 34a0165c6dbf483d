//! The bytes of a connection; [`super`] has the layout.

use super::Family;
use super::check::RecordError;
use crate::conntrack::acct::Counts;
use crate::conntrack::conn::{Conn, ConnId, Dir, Proto, Status};
use crate::conntrack::tcp::{SegKind, TcpSide, TcpState, TcpTrack};
use crate::conntrack::tuple::{Addr, CtTuple};
use crate::edge::Token;
use crate::time::Time;

/// Version of the records and of [`Head`](super::Head).
pub const VERSION: u32 = 1;

/// Bytes of the record of an IPv4 connection.
pub const RECORD_V4: usize = 128;

/// Bytes of the record of an IPv6 connection.
pub const RECORD_V6: usize = RECORD_V4 + UPPER;

/// What the record of an IPv6 connection has more.
pub(super) const UPPER: usize = 48;

/// Bytes of the record of what a connection carried: its slot and generation, 4 each; packets and bytes of the original direction, and of
/// the reply's, 8 each.
pub const COUNTS: usize = 40;

/// The record of what a connection carried.
pub(super) fn counts(core: &Core, counts: [Counts; 2]) -> [u8; COUNTS] {
    let mut record = [0; COUNTS];
    record[..8].copy_from_slice(&core[INDEX..INDEX + 8]);
    let [o, r] = counts;
    for (n, word) in [o.packets, o.bytes, r.packets, r.bytes].into_iter().enumerate() {
        put(&mut record, 8 + 8 * n, word.to_le_bytes());
    }
    record
}

/// Reads it.
pub(super) fn read_counts(record: &[u8; COUNTS]) -> (ConnId, [Counts; 2]) {
    let word = |n: usize| u64_at(record, 8 + 8 * n);
    let of = |n: usize| Counts { packets: word(n), bytes: word(n + 1) };
    (ConnId { index: u32_at(record, 0), generation: u32_at(record, 4) }, [of(0), of(2)])
}

/// Bytes of a record of this family.
#[must_use]
pub const fn record_size(family: Family) -> usize {
    match family {
        Family::V4 => RECORD_V4,
        Family::V6 => RECORD_V6,
    }
}

const INDEX: usize = 0;
const GENERATION: usize = 4;
const EXPIRES: usize = 8;
const FLOW: usize = 16;
const MARK: usize = 24;
const STATUS: usize = 28;
const KIND: usize = 30;
const FAMILY: usize = 31;
const TUPLES: usize = 32;
const TUPLE: usize = 16;
const STATE: usize = 64;
const SIDE: usize = 18;
const LAST: usize = STATE + 2 * SIDE;
const NUMBER: usize = 120;
const RESERVED: usize = 124;

const GENERIC: u8 = 0;
const TCP: u8 = 1;
const UDP: u8 = 2;
const ICMP: u8 = 3;

/// The part that the records of both families have.
pub(super) type Core = [u8; RECORD_V4];
/// The rest of an IPv6 address each.
pub(super) type Upper = [u8; UPPER];

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: ConnId,
    pub(super) conn: Conn,
    /// Number by which connections of the same source are ordered.
    pub(super) number: u32,
}

#[inline(always)]
fn put<const N: usize>(to: &mut [u8], at: usize, bytes: [u8; N]) {
    to[at..at + N].copy_from_slice(&bytes);
}

#[inline(always)]
fn get<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[at..at + N]);
    bytes
}

#[inline(always)]
fn u16_at(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(from, at))
}

#[inline(always)]
fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(from, at))
}

#[inline(always)]
fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(from, at))
}

/// Slot of a record.
pub(super) fn slot_of(core: &Core) -> u32 {
    u32_at(core, INDEX)
}

/// Writes a connection; of an IPv6 one without [`write_upper`].
#[inline(always)]
pub(super) fn write(core: &mut Core, id: ConnId, conn: &Conn, number: u32) {
    *core = [0; RECORD_V4];
    put(core, INDEX, id.index.to_le_bytes());
    put(core, GENERATION, id.generation.to_le_bytes());
    put(core, EXPIRES, conn.expires.as_nanos().to_le_bytes());
    put(core, FLOW, conn.flow.map_or(0, Token::bits).to_le_bytes());
    put(core, MARK, conn.mark.to_le_bytes());
    put(core, STATUS, conn.status.0.to_le_bytes());
    core[FAMILY] = if conn.tuples[0].v6 { 6 } else { 4 };
    for (n, t) in conn.tuples.iter().enumerate() {
        let at = TUPLES + n * TUPLE;
        put(core, at, t.src.0[3].to_le_bytes());
        put(core, at + 4, t.dst.0[3].to_le_bytes());
        put(core, at + 8, t.sport.to_le_bytes());
        put(core, at + 10, t.dport.to_le_bytes());
        put(core, at + 12, t.zone.to_le_bytes());
        core[at + 14] = t.proto;
    }
    core[KIND] = match &conn.proto {
        Proto::Tcp(t) => {
            write_tcp(core, t);
            TCP
        }
        Proto::Udp { stream_after } => {
            put(core, STATE, stream_after.as_nanos().to_le_bytes());
            UDP
        }
        Proto::Icmp => ICMP,
        Proto::Generic => GENERIC,
    };
    put(core, NUMBER, number.to_le_bytes());
}

#[inline]
fn write_tcp(core: &mut Core, t: &TcpTrack) {
    for (n, side) in t.sides.iter().enumerate() {
        let at = STATE + n * SIDE;
        put(core, at, side.end.to_le_bytes());
        put(core, at + 4, side.max_end.to_le_bytes());
        put(core, at + 8, side.max_win.to_le_bytes());
        put(core, at + 12, side.max_ack.to_le_bytes());
        core[at + 16] = side.scale;
        core[at + 17] = side.flags;
    }
    put(core, LAST, [t.state as u8, t.last_dir as u8, t.last_kind as u8, t.retrans]);
    put(core, LAST + 4, t.last_seq.to_le_bytes());
    put(core, LAST + 8, t.last_ack.to_le_bytes());
    put(core, LAST + 12, t.last_end.to_le_bytes());
    put(core, LAST + 16, t.last_win.to_le_bytes());
    put(core, LAST + 18, [t.noted_scale, t.notes]);
}

/// Writes the rest of an IPv6 connection.
pub(super) fn write_upper(upper: &mut Upper, conn: &Conn) {
    let addrs = conn.tuples.iter().flat_map(|t| [t.src, t.dst]);
    for (n, word) in addrs.flat_map(|a| [a.0[0], a.0[1], a.0[2]]).enumerate() {
        put(upper, n * 4, word.to_le_bytes());
    }
}

/// Reads a record of this family. What its values mean together is for [`super::check`].
pub(super) fn read(family: Family, bytes: &[u8]) -> Result<Record, RecordError> {
    let Some((core, upper)) = bytes.split_first_chunk::<RECORD_V4>() else { return Err(RecordError::Length) };
    let v6 = match (core[FAMILY], family, upper.len()) {
        (4, Family::V4, 0) => false,
        (6, Family::V6, UPPER) => true,
        (_, _, 0 | UPPER) => return Err(RecordError::Family(core[FAMILY])),
        _ => return Err(RecordError::Length),
    };
    let tuples = [read_tuple(core, upper, 0, v6)?, read_tuple(core, upper, 1, v6)?];
    let used = match core[KIND] {
        GENERIC | ICMP => 0,
        TCP => NUMBER - STATE,
        UDP => 8,
        kind => return Err(RecordError::Kind(kind)),
    };
    let blank = |from: usize, to: usize| core[from..to].iter().all(|&b| b == 0);
    if !blank(STATE + used, NUMBER) || !blank(RESERVED, RECORD_V4) {
        return Err(RecordError::Reserved);
    }
    let proto = match core[KIND] {
        TCP => Proto::Tcp(read_tcp(core)?),
        UDP => Proto::Udp { stream_after: Time::from_nanos(u64_at(core, STATE)) },
        ICMP => Proto::Icmp,
        _ => Proto::Generic,
    };
    let flow = match u64_at(core, FLOW) {
        0 => None,
        bits => Some(Token::from_bits(bits).ok_or(RecordError::Flow)?),
    };
    let conn = Conn {
        tuples,
        status: Status(u16_at(core, STATUS)),
        mark: u32_at(core, MARK),
        expires: Time::from_nanos(u64_at(core, EXPIRES)),
        proto,
        flow,
    };
    let id = ConnId { index: slot_of(core), generation: u32_at(core, GENERATION) };
    Ok(Record { id, conn, number: u32_at(core, NUMBER) })
}

#[inline(always)]
fn read_tuple(core: &Core, upper: &[u8], n: usize, v6: bool) -> Result<CtTuple, RecordError> {
    let at = TUPLES + n * TUPLE;
    if core[at + 15] != 0 {
        return Err(RecordError::Reserved);
    }
    let addr = |which: usize| {
        let last = u32_at(core, at + which * 4);
        match v6 {
            // As `Addr` has it.
            false => Addr([0, 0, 0xffff, last]),
            true => {
                let word = |w: usize| u32_at(upper, (n * 2 + which) * 12 + w * 4);
                Addr([word(0), word(1), word(2), last])
            }
        }
    };
    Ok(CtTuple {
        src: addr(0),
        dst: addr(1),
        sport: u16_at(core, at + 8),
        dport: u16_at(core, at + 10),
        zone: u16_at(core, at + 12),
        proto: core[at + 14],
        v6,
    })
}

fn read_tcp(core: &Core) -> Result<TcpTrack, RecordError> {
    let side = |n: usize| {
        let at = STATE + n * SIDE;
        TcpSide {
            end: u32_at(core, at),
            max_end: u32_at(core, at + 4),
            max_win: u32_at(core, at + 8),
            max_ack: u32_at(core, at + 12),
            scale: core[at + 16],
            flags: core[at + 17],
        }
    };
    let [state, last_dir, last_kind, retrans] = get(core, LAST);
    let [noted_scale, notes] = get(core, LAST + 18);
    Ok(TcpTrack {
        sides: [side(0), side(1)],
        state: *TcpState::ALL.get(usize::from(state)).ok_or(RecordError::TcpState(state))?,
        last_dir: match last_dir {
            0 => Dir::Original,
            1 => Dir::Reply,
            _ => return Err(RecordError::TcpLast),
        },
        last_kind: *SegKind::ALL.get(usize::from(last_kind)).ok_or(RecordError::TcpLast)?,
        retrans,
        last_seq: u32_at(core, LAST + 4),
        last_ack: u32_at(core, LAST + 8),
        last_end: u32_at(core, LAST + 12),
        last_win: u16_at(core, LAST + 16),
        noted_scale,
        notes,
    })
}
