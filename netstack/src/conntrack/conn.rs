//! What is known of one connection.

use super::tuple::CtTuple;
use crate::edge::Token;
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// Direction of a packet within its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Dir {
    /// As the first packet went.
    #[default]
    Original = 0,
    /// Against it.
    Reply = 1,
}

impl Dir {
    /// The other direction.
    #[must_use]
    pub const fn other(self) -> Dir {
        match self {
            Dir::Original => Dir::Reply,
            Dir::Reply => Dir::Original,
        }
    }
}

/// Names a tracked connection: slot and generation. A slot that was given out again has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnId {
    /// Slot in the arena.
    pub index: u32,
    /// Generation of the slot.
    pub generation: u32,
}

/// Bits that say what happened to a connection; as `IPS_*` of Linux's nf_conntrack_common.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Packets were seen in both directions.
    pub const SEEN_REPLY: Status = Status(1 << 1);
    /// Not to be dropped early.
    pub const ASSURED: Status = Status(1 << 2);
    /// In the table.
    pub const CONFIRMED: Status = Status(1 << 3);
    /// Its source is translated (in the original direction).
    pub const SRC_NAT: Status = Status(1 << 4);
    /// Its destination is translated (in the original direction).
    pub const DST_NAT: Status = Status(1 << 5);
    /// Source translation was decided, be it that there is none.
    pub const SRC_NAT_DONE: Status = Status(1 << 7);
    /// Destination translation was decided, be it that there is none.
    pub const DST_NAT_DONE: Status = Status(1 << 8);
    /// To be removed: found by no look-up any more.
    pub const DYING: Status = Status(1 << 9);

    /// Its first packet clashed with another connection's: only its replies find it, and nothing renews it. [`Conntrack::confirm`] says more.
    ///
    /// [`Conntrack::confirm`]: super::Conntrack::confirm
    pub const NAT_CLASH: Status = Status(1 << 12);

    /// A rule named the address to which its source is translated: a host socket that carries it must have that. (Not of Linux's; nor
    /// is the next one.)
    pub const SRC_ADDR_GIVEN: Status = Status(1 << 14);
    /// A rule named the ports to one of which its source port is translated: a host socket must have that.
    pub const SRC_PORT_GIVEN: Status = Status(1 << 15);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Status) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the bits of `other`.
    pub const fn set(&mut self, other: Status) {
        self.0 |= other.0;
    }

    /// Clears the bits of `other`.
    pub const fn clear(&mut self, other: Status) {
        self.0 &= !other.0;
    }
}

/// A tracked connection, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conn {
    /// The tuples of both directions, by [`Dir`]. The reply's is the inverse of the original as translated.
    pub tuples: [CtTuple; 2],
    /// What happened to it.
    pub status: Status,
    /// Connection mark.
    pub mark: u32,
    /// When it times out, unless something renews it.
    pub expires: Time,
    /// State of its protocol.
    pub proto: Proto,
    /// Its flow, if there is one. One of TCP pins it: neither reaped nor dropped early while that lives.
    pub flow: Option<Token>,
}

/// State of a connection's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// TCP.
    Tcp(super::tcp::TcpTrack),
    /// UDP; a stream once packets went both ways after this time.
    Udp {
        /// Two seconds after the first packet.
        stream_after: Time,
    },
    /// ICMP and ICMPv6 queries.
    Icmp,
    /// Anything else.
    Generic,
}

/// What tracking says about a packet: the states of `--ctstate`, and the direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtInfo {
    /// First packet, or more of them before any reply.
    New,
    /// Original direction, replies were seen.
    Established,
    /// Reply direction.
    EstablishedReply,
    /// An ICMP error that goes with the original direction.
    Related,
    /// An ICMP error that goes with the reply direction.
    RelatedReply,
}

impl CtInfo {
    /// Direction of the packet.
    pub const fn dir(self) -> Dir {
        match self {
            CtInfo::New | CtInfo::Established | CtInfo::Related => Dir::Original,
            CtInfo::EstablishedReply | CtInfo::RelatedReply => Dir::Reply,
        }
    }

    /// Whether the packet is an ICMP error about the connection.
    pub const fn is_related(self) -> bool {
        matches!(self, CtInfo::Related | CtInfo::RelatedReply)
    }
}

/// What connection tracking knows of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Track {
    /// Tracking has not seen it, or found it INVALID.
    #[default]
    None,
    /// A rule exempted it, or its kind is never tracked (neighbour discovery).
    Untracked,
    /// The first packet of a connection that is not in the table before it is confirmed. (An ICMP error that we send
    /// about it carries a copy and is `related`.)
    Fresh {
        /// The connection to be.
        conn: Conn,
        /// An ICMP error about the first packet: it changes and confirms nothing.
        related: bool,
        /// How long the first packet was, in bytes.
        len: u32,
    },
    /// A packet of a connection in the table.
    Known {
        /// Which.
        id: ConnId,
        /// How it belongs to it.
        info: CtInfo,
        /// Its status when tracking looked at it. What it says of translation is final: that never changes once a connection
        /// is in the table.
        status: Status,
    },
}

impl Track {
    /// State and direction; `None` for INVALID and UNTRACKED packets.
    pub const fn info(&self) -> Option<CtInfo> {
        match self {
            Track::None | Track::Untracked => None,
            Track::Fresh { related: true, .. } => Some(CtInfo::RelatedReply),
            Track::Fresh { .. } => Some(CtInfo::New),
            Track::Known { info, .. } => Some(*info),
        }
    }
}
