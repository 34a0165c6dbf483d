//! TCP connections: the state machine and the windows, as Linux's nf_conntrack_proto_tcp.c has them.
//!
//! Everything here is a plain value, so that a connection can be saved and goes on after a restore with its windows.

mod sack;
mod step;
mod table;
mod window;

pub use table::SegKind;

pub(super) use step::{Outcome, packet};

use super::config::CtConfig;
use super::conn::Dir;
use super::proto::Invalid;
use crate::skb::Skb;
use crate::wire::tcp::{Flags, HEADER_LEN, Header, Options, Seq};
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// State of a tracked TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum TcpState {
    /// Nothing seen.
    #[default]
    None,
    /// SYN seen.
    SynSent,
    /// SYN and SYN-ACK seen.
    SynRecv,
    /// Established.
    Established,
    /// FIN seen.
    FinWait,
    /// FIN acknowledged.
    CloseWait,
    /// FIN seen from both.
    LastAck,
    /// Both FINs acknowledged.
    TimeWait,
    /// Reset.
    Close,
    /// SYN seen from both.
    SynSent2,
}

impl TcpState {
    /// Whether the connection is on its way out: it may be dropped early, though it be ASSURED.
    #[must_use]
    pub const fn is_closing(self) -> bool {
        matches!(self, TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck | TcpState::TimeWait | TcpState::Close)
    }

    /// Name as `conntrack -L` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            TcpState::None => "NONE",
            TcpState::SynSent => "SYN_SENT",
            TcpState::SynRecv => "SYN_RECV",
            TcpState::Established => "ESTABLISHED",
            TcpState::FinWait => "FIN_WAIT",
            TcpState::CloseWait => "CLOSE_WAIT",
            TcpState::LastAck => "LAST_ACK",
            TcpState::TimeWait => "TIME_WAIT",
            TcpState::Close => "CLOSE",
            TcpState::SynSent2 => "SYN_SENT2",
        }
    }

    /// All states, in the order of their numbers.
    pub const ALL: [TcpState; 10] = [
        TcpState::None,
        TcpState::SynSent,
        TcpState::SynRecv,
        TcpState::Established,
        TcpState::FinWait,
        TcpState::CloseWait,
        TcpState::LastAck,
        TcpState::TimeWait,
        TcpState::Close,
        TcpState::SynSent2,
    ];
}

/// Bits of [`TcpSide::flags`], numbered as Linux's `IP_CT_TCP_FLAG_*`.
pub mod side {
    /// Its SYN carried a window scale.
    pub const WINDOW_SCALE: u8 = 0x01;
    /// It takes selective acknowledgements.
    pub const SACK_PERM: u8 = 0x02;
    /// It sent the first FIN.
    pub const CLOSE_INIT: u8 = 0x04;
    /// Nothing it sends is outside of the windows.
    pub const BE_LIBERAL: u8 = 0x08;
    /// Something it sent is not acknowledged.
    pub const DATA_UNACKED: u8 = 0x10;
    /// `max_ack` is known.
    pub const MAXACK_SET: u8 = 0x20;
    /// All of them.
    pub const ALL: u8 = 0x3f;
}

/// Bits of [`TcpTrack::notes`], beside those of [`side`] that an ignored SYN's options gave.
pub mod note {
    /// The next ACK against the ignored SYN is a challenge (RFC 5961).
    pub const EXPECT_CHALLENGE: u8 = 0x40;
    /// Both ends sent a SYN.
    pub const SIMULTANEOUS_OPEN: u8 = 0x80;
}

/// One sender's side of a connection. Sequence numbers are as the packets have them, modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpSide {
    /// Highest sequence number sent, and one.
    pub end: u32,
    /// Highest that the receiver has room for.
    pub max_end: u32,
    /// Largest window offered, scaled; 0 if nothing was seen of this side.
    pub max_win: u32,
    /// Highest acknowledgement sent.
    pub max_ack: u32,
    /// Window scale, 0-14.
    pub scale: u8,
    /// Bits of [`side`].
    pub flags: u8,
}

/// All that is known of a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTrack {
    /// By direction of the sender.
    pub sides: [TcpSide; 2],
    /// State.
    pub state: TcpState,
    /// Direction of the last segment.
    pub last_dir: Dir,
    /// Kind of the last segment.
    pub last_kind: SegKind,
    /// How often the last acknowledgement was repeated.
    pub retrans: u8,
    /// Sequence number of the last ACK inside of the windows, or ignored segment.
    pub last_seq: u32,
    /// Acknowledgement of it.
    pub last_ack: u32,
    /// End of it.
    pub last_end: u32,
    /// Window of it, unscaled.
    pub last_win: u16,
    /// Window scale of an ignored SYN.
    pub noted_scale: u8,
    /// Flags of an ignored SYN, and bits of [`note`].
    pub notes: u8,
}

const _: () = assert!(size_of::<TcpTrack>() <= 64);

impl TcpTrack {
    /// An established connection of which no segment was seen: its windows are learned from the next segment each way, and
    /// never enforced.
    pub fn picked_up() -> Self {
        let side = TcpSide { flags: side::SACK_PERM | side::BE_LIBERAL, ..TcpSide::default() };
        TcpTrack { sides: [side; 2], state: TcpState::Established, ..TcpTrack::default() }
    }
}

/// What tracking looks at of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    kind: SegKind,
    flags: Flags,
    seq: Seq,
    /// After its last byte, SYN and FIN; of a super-segment as of the segments that it will be.
    end: Seq,
    ack: Seq,
    window: u16,
    options: &'a Options,
    option_bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    pub(super) fn new(h: &Header, options: &'a Options, skb: &Skb<'a>) -> Self {
        let payload = skb.l4_len.saturating_sub(u32::from(h.header_len));
        let len = payload + u32::from(h.flags.has(Flags::SYN)) + u32::from(h.flags.has(Flags::FIN));
        Segment {
            kind: SegKind::of(h.flags),
            flags: h.flags,
            seq: h.seq,
            end: h.seq + len,
            ack: h.ack,
            window: h.window,
            options,
            option_bytes: skb.l4_bytes.get(HEADER_LEN..usize::from(h.header_len)).unwrap_or_default(),
        }
    }

    /// Highest byte acknowledged, be it selectively, and one.
    fn highest_sack(&self) -> Seq {
        sack::highest_edge(self.option_bytes, self.ack)
    }
}

/// What is wrong with a segment by itself.
pub(super) fn check(h: &Header, l4_len: u32) -> Result<(), Invalid> {
    if usize::from(h.header_len) < HEADER_LEN || u32::from(h.header_len) > l4_len {
        return Err(Invalid::Truncated);
    }
    if table::flags_make_sense(h.flags) { Ok(()) } else { Err(Invalid::TcpFlags) }
}

/// The state with which a connection begins, by its first segment: a SYN, or, if `tcp_loose` says so, an ACK. Then nothing
/// is known of the windows' scales, so windows are not enforced.
pub(super) fn begin(cfg: &CtConfig, seg: &Segment<'_>) -> Result<(TcpTrack, Duration), Invalid> {
    let mut t = TcpTrack { last_kind: SegKind::None, ..TcpTrack::default() };
    match seg.kind {
        SegKind::Syn => {
            t.sides[0].start(seg);
        }
        SegKind::Ack if cfg.tcp_loose => {
            window::pick_up(&mut t.sides[0], seg);
            t.sides[0].flags = side::SACK_PERM | side::BE_LIBERAL;
            t.sides[1].flags = t.sides[0].flags;
        }
        _ => return Err(Invalid::TcpStart),
    }
    let mut status = super::conn::Status::default();
    match packet(cfg, &mut t, &mut status, Duration::ZERO, Dir::Original, seg) {
        Outcome::Accept(timeout) => Ok((t, timeout.unwrap_or_default())),
        Outcome::Invalid { why, .. } => Err(why),
        Outcome::Repeat | Outcome::DeleteAccept => Err(Invalid::TcpStart),
    }
}
