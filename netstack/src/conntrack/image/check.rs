//! What must hold for a connection that comes from outside: everything that the rest of the stack relies on.

use super::record::Record;
use crate::conntrack::config::MAX_TIMEOUT;
use crate::conntrack::conn::{Conn, Dir, Proto, Status};
use crate::conntrack::gre;
use crate::conntrack::icmp;
use crate::conntrack::tcp::side;
use crate::conntrack::tuple::{self, CtTuple};
use crate::conntrack::udp::STREAM_AFTER;
use crate::edge::TokenKind;
use crate::time::Time;
use crate::tuple::proto;

/// Largest window scale.
const MAX_SCALE: u8 = 14;

/// All bits of a status.
const KNOWN: u16 = Status::SEEN_REPLY.0
    | Status::ASSURED.0
    | Status::CONFIRMED.0
    | Status::SRC_NAT.0
    | Status::DST_NAT.0
    | Status::SRC_NAT_DONE.0
    | Status::DST_NAT_DONE.0
    | Status::DYING.0
    | Status::NAT_CLASH.0
    | Status::SRC_ADDR_GIVEN.0
    | Status::SRC_PORT_GIVEN.0;

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are no whole number of records.
    #[error("bytes that are no whole record")]
    Length,
    /// It is of the other family, or of none.
    #[error("address family {0}")]
    Family(u8),
    /// Something that must be 0 is not.
    #[error("reserved bytes are not 0")]
    Reserved,
    /// The slot is beyond the end.
    #[error("slot of {0} that there can be")]
    Slot(u32),
    /// The slot is not above that of the record before.
    #[error("slots are not in order")]
    Order,
    /// Another record has the same slot.
    #[error("slot of another connection")]
    SlotTaken,
    /// An even generation, as empty slots have, or one that is newer than the newest.
    #[error("generation {0} of an empty slot, or too new")]
    Generation(u32),
    /// A state of a protocol that there is not.
    #[error("protocol state of unknown kind {0}")]
    Kind(u8),
    /// The state is of another protocol than the tuples.
    #[error("protocol state does not go with IP protocol {0}")]
    Protocol(u8),
    /// The tuples are of two protocols.
    #[error("tuples of two protocols")]
    Protocols,
    /// Ports where the protocol has none, or an ICMP message with which no connection begins.
    #[error("ports or ICMP type do not go with the protocol")]
    Ports,
    /// The reply tuple is not what answers the original one, and translation does not account for it; or it is said to be translated and is not.
    #[error("tuples and translation disagree")]
    Translation,
    /// Another connection has this tuple.
    #[error("tuple of the {0:?} direction is another connection's")]
    TupleTaken(Dir),
    /// Bits of the status that are unknown, or do not go together.
    #[error("status {0:#06x}")]
    Status(u16),
    /// It times out, or becomes a stream, later than anything can.
    #[error("a time that cannot be")]
    Time,
    /// A TCP state that there is not.
    #[error("TCP state {0}")]
    TcpState(u8),
    /// Direction or kind of the last segment.
    #[error("direction or kind of the last TCP segment")]
    TcpLast,
    /// A window scale above 14.
    #[error("window scale {0}")]
    TcpScale(u8),
    /// Unknown flags of a TCP sender.
    #[error("flags {0:#04x} of a TCP sender")]
    TcpFlags(u8),
    /// A flow that there is not, or of another protocol.
    #[error("flow of no kind, or of another protocol")]
    Flow,
    /// A number among connections of the same source, though the source is not translated.
    #[error("number among translated connections")]
    Number,
}

impl Record {
    /// Checks what can be checked without other records: `now` is stack time, `slots` how many there can be, `generation` that of the head.
    pub(super) fn check(&self, now: Time, slots: u32, generation: u32) -> Result<(), RecordError> {
        if self.id.index >= slots {
            return Err(RecordError::Slot(slots));
        }
        if self.id.generation & 1 == 0 || self.id.generation & !1 > generation {
            return Err(RecordError::Generation(self.id.generation));
        }
        if self.number != 0 && !self.conn.status.has(Status::SRC_NAT) {
            return Err(RecordError::Number);
        }
        check_conn(&self.conn, now)
    }
}

fn check_conn(c: &Conn, now: Time) -> Result<(), RecordError> {
    let [original, reply] = &c.tuples;
    if original.proto != reply.proto {
        return Err(RecordError::Protocols);
    }
    let kind = match (original.proto, original.v6) {
        (proto::TCP, _) => matches!(c.proto, Proto::Tcp(_)),
        (proto::UDP, _) => matches!(c.proto, Proto::Udp { .. }),
        (proto::ICMP, false) | (proto::ICMPV6, true) => c.proto == Proto::Icmp,
        (proto::ICMP | proto::ICMPV6, _) => false,
        _ => c.proto == Proto::Generic,
    };
    if !kind {
        return Err(RecordError::Protocol(original.proto));
    }
    check_status(c)?;
    check_tuples(c.status, original, reply)?;
    if c.expires > now + MAX_TIMEOUT {
        return Err(RecordError::Time);
    }
    match &c.proto {
        Proto::Tcp(t) => {
            let scales = [t.sides[0].scale, t.sides[1].scale, t.noted_scale];
            if let Some(&scale) = scales.iter().find(|&&s| s > MAX_SCALE) {
                return Err(RecordError::TcpScale(scale));
            }
            if let Some(s) = t.sides.iter().find(|s| s.flags & !side::ALL != 0) {
                return Err(RecordError::TcpFlags(s.flags));
            }
        }
        Proto::Udp { stream_after } if *stream_after > now + STREAM_AFTER => return Err(RecordError::Time),
        _ => {}
    }
    let fits = |kind| match kind {
        TokenKind::Tcp => matches!(c.proto, Proto::Tcp(_)),
        TokenKind::Udp => matches!(c.proto, Proto::Udp { .. }),
        TokenKind::Icmp => c.proto == Proto::Icmp,
        _ => false,
    };
    if c.flow.is_none_or(|f| fits(f.kind())) { Ok(()) } else { Err(RecordError::Flow) }
}

fn check_status(c: &Conn) -> Result<(), RecordError> {
    let s = c.status;
    let given = s.has(Status::SRC_ADDR_GIVEN) || s.has(Status::SRC_PORT_GIVEN);
    let wrong = s.0 & !KNOWN != 0
        || !s.has(Status::CONFIRMED)
        || s.has(Status::SRC_NAT) && !s.has(Status::SRC_NAT_DONE)
        || s.has(Status::DST_NAT) && !s.has(Status::DST_NAT_DONE)
        || given && !s.has(Status::SRC_NAT_DONE)
        || s.has(Status::NAT_CLASH) && !matches!(c.proto, Proto::Udp { .. });
    if wrong { Err(RecordError::Status(s.0)) } else { Ok(()) }
}

fn check_tuples(status: Status, original: &CtTuple, reply: &CtTuple) -> Result<(), RecordError> {
    let is_icmp = matches!(original.proto, proto::ICMP | proto::ICMPV6);
    let has_keys = original.has_ports() || is_icmp || original.proto == gre::PROTOCOL;
    let bare = |t: &CtTuple| t.sport == 0 && t.dport == 0;
    if !(has_keys || bare(original) && bare(reply)) || is_icmp && !icmp::asks(original.icmp_type_code().0, original.v6) {
        return Err(RecordError::Ports);
    }
    let Some(plain) = tuple::invert(original) else { return Err(RecordError::Ports) };
    let [source, destination] = [status.has(Status::SRC_NAT), status.has(Status::DST_NAT)];
    let fits = if is_icmp {
        // Either end may change the identifier, and one may change it back.
        let ident = reply.sport != plain.sport;
        (reply.dst == plain.dst || source)
            && (reply.src == plain.src || destination)
            && (!ident || source || destination)
            && reply.dport == plain.dport
    } else {
        let keys = original.has_ports() || (reply.sport, reply.dport) == (plain.sport, plain.dport);
        let source_differs = (reply.dst, reply.dport) != (plain.dst, plain.dport);
        let destination_differs = (reply.src, reply.sport) != (plain.src, plain.sport);
        keys && source_differs == source && destination_differs == destination
    };
    if fits { Ok(()) } else { Err(RecordError::Translation) }
}
