//! A segment of a tracked connection.

use super::table::{self, Next};
use super::window::{self, Window};
use super::{SegKind, Segment, TcpSide, TcpState, TcpTrack, note, side};
use crate::conntrack::config::{CtConfig, TcpTimeouts};
use crate::conntrack::conn::{Dir, Status};
use crate::conntrack::proto::Invalid;
use crate::wire::tcp::Seq;
use core::time::Duration;

/// A FIN or RST outside of the window is no reason to hurry if the connection ends sooner than this anyway.
const HURRY_ABOVE: Duration = Duration::from_secs(120);

/// How a segment went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Outcome {
    /// It belongs to the connection, and renews it for so long.
    Accept(Option<Duration>),
    /// It is INVALID; the connection may have to end sooner.
    Invalid {
        /// Why.
        why: Invalid,
        /// What is left to it, if not what it had.
        lower: Option<Duration>,
    },
    /// It begins another connection of the same tuples.
    Repeat,
    /// It ends a connection that never came to be.
    DeleteAccept,
}

const fn invalid(why: Invalid) -> Outcome {
    Outcome::Invalid { why, lower: None }
}

/// What the state machine makes of a segment.
enum Ruling {
    /// Goes to the state if the windows agree. The state that it leaves is given, too: it may have been corrected.
    Check(TcpState, TcpState),
    /// Goes to the state whatever the windows say.
    Skip(TcpState, TcpState),
    /// Ends here.
    Done(Outcome),
}

/// Brings a connection up to date with a segment. `left` is how long it would live without.
pub(in super::super) fn packet(
    cfg: &CtConfig,
    t: &mut TcpTrack,
    status: &mut Status,
    left: Duration,
    dir: Dir,
    seg: &Segment<'_>,
) -> Outcome {
    let (old, new) = match rule(cfg, t, *status, dir, seg) {
        Ruling::Done(outcome) => return outcome,
        Ruling::Skip(old, new) => (old, new),
        Ruling::Check(old, new) => match window::check(cfg, t, dir, seg) {
            Window::Inside => (old, new),
            Window::Aside => return Outcome::Accept(None),
            Window::Outside(why) => {
                let lower = t.outside(&cfg.timeouts.tcp, *status, left, dir, seg.kind);
                return Outcome::Invalid { why, lower };
            }
        },
    };
    t.last_kind = seg.kind;
    t.last_dir = dir;
    t.state = new;
    if old != new && new == TcpState::FinWait {
        t.sides[dir as usize].flags |= side::CLOSE_INIT;
    }
    let timeout = t.timeout(cfg, seg.kind);
    if !status.has(Status::SEEN_REPLY) {
        return match (seg.kind, old, new) {
            (SegKind::Rst, ..) => Outcome::DeleteAccept,
            // Or else whoever uses a port again and again would keep the connection, and its translation, forever.
            (SegKind::Syn, TcpState::SynSent, _) => Outcome::Accept(None),
            (_, _, TcpState::Established) => Outcome::Accept(Some(timeout.min(cfg.timeouts.tcp.unacknowledged))),
            _ => Outcome::Accept(Some(timeout)),
        };
    }
    if matches!(old, TcpState::SynRecv | TcpState::Established) && new == TcpState::Established {
        status.set(Status::ASSURED);
    }
    Outcome::Accept(Some(timeout))
}

fn rule(cfg: &CtConfig, t: &mut TcpTrack, status: Status, dir: Dir, seg: &Segment<'_>) -> Ruling {
    let old = t.state;
    let new = match table::next(dir, seg.kind, old) {
        Next::Invalid => return Ruling::Done(invalid(Invalid::TcpState)),
        Next::Ignore => return t.ignore(dir, seg),
        Next::To(new) => new,
    };
    match new {
        TcpState::SynSent if matches!(old, TcpState::TimeWait | TcpState::Close) => {
            // Another connection, if this one surely is over: RFC 9293 section 3.6.1, RFC 6191.
            let closed = (t.sides[0].flags | t.sides[1].flags) & side::CLOSE_INIT != 0;
            if closed || t.last(dir, SegKind::Rst) { Ruling::Done(Outcome::Repeat) } else { t.ignore(dir, seg) }
        }
        TcpState::TimeWait
            if old == TcpState::LastAck
                && seg.kind == SegKind::Ack
                && t.last(dir.other(), SegKind::Syn)
                && t.notes & note::EXPECT_CHALLENGE != 0 =>
        {
            // RFC 5961 section 4.2: it answers the SYN that we let pass, and does not acknowledge the FIN.
            t.notes &= !note::EXPECT_CHALLENGE;
            Ruling::Done(Outcome::Accept(None))
        }
        TcpState::SynSent2 => {
            t.notes |= note::SIMULTANEOUS_OPEN;
            Ruling::Check(old, new)
        }
        TcpState::SynRecv if dir == Dir::Reply && seg.kind == SegKind::Ack && t.notes & note::SIMULTANEOUS_OPEN != 0 => {
            Ruling::Check(old, TcpState::Established)
        }
        TcpState::Close if seg.kind == SegKind::Rst => t.reset(cfg, status, dir, seg),
        _ => Ruling::Check(old, new),
    }
}

impl TcpTrack {
    /// Whether the last segment was of this kind and went this way.
    fn last(&self, dir: Dir, kind: SegKind) -> bool {
        self.last_dir == dir && self.last_kind == kind
    }

    /// A segment that we let pass, because the ends may be in step while we are not. What it says is noted, so that
    /// the answer tells.
    fn ignore(&mut self, dir: Dir, seg: &Segment<'_>) -> Ruling {
        if seg.kind == SegKind::SynAck && self.last(dir.other(), SegKind::Syn) && seg.ack.0 == self.last_end {
            // It answers a SYN that was ignored: a new connection, of which we go on with what was noted.
            self.notes &= !note::EXPECT_CHALLENGE;
            self.sides[dir.other() as usize] = TcpSide {
                end: self.last_end,
                max_end: self.last_end,
                max_win: u32::from(self.last_win).max(1),
                max_ack: self.sides[dir.other() as usize].max_ack,
                scale: self.noted_scale,
                flags: self.notes & side::ALL,
            };
            let sender = &mut self.sides[dir as usize];
            *sender = TcpSide { flags: sender.flags & side::BE_LIBERAL, ..TcpSide::default() };
            return Ruling::Check(TcpState::SynSent, TcpState::SynRecv);
        }
        self.last_kind = seg.kind;
        self.last_dir = dir;
        self.last_seq = seg.seq.0;
        self.last_end = seg.end.0;
        self.last_win = seg.window;
        match (seg.kind, dir, self.state) {
            (SegKind::Syn, Dir::Original, state) => {
                (self.notes, self.noted_scale) = window::syn_options(seg, 0);
                if state == TcpState::LastAck {
                    self.notes |= note::EXPECT_CHALLENGE;
                }
            }
            (SegKind::Ack, Dir::Reply, TcpState::SynSent) => self.last_ack = seg.ack.0,
            _ => {}
        }
        Ruling::Done(Outcome::Accept(None))
    }

    /// A reset: believed if its sequence number is the one that its receiver expects (RFC 5961 section 3.2).
    fn reset(&self, cfg: &CtConfig, status: Status, dir: Dir, seg: &Segment<'_>) -> Ruling {
        let old = self.state;
        let mut new = TcpState::Close;
        if old.is_closing() {
            // The tuple may be in use again, and what we know be out of date.
            return Ruling::Skip(old, new);
        }
        let peer = &self.sides[dir.other() as usize];
        if peer.flags & side::MAXACK_SET != 0 && self.last_kind != SegKind::Syn {
            let expected = Seq(peer.max_ack);
            let established = old == TcpState::Established && status.has(Status::ASSURED);
            if seg.seq == Seq(0) && !established {
                return Ruling::Check(old, new);
            }
            if seg.seq.before(expected) && !cfg.tcp_ignore_invalid_rst {
                return Ruling::Done(invalid(Invalid::TcpRst));
            }
            let follows_data = self.last(dir, SegKind::Ack) && seg.seq.0 == self.last_end;
            if !established || seg.seq == expected || follows_data {
                return Ruling::Check(old, new);
            }
            // The receiver will challenge it, and the answer to that tells.
            new = old;
        }
        let answers_ignored = seg.ack.0 == self.last_end
            && (status.has(Status::SEEN_REPLY) && self.last(dir.other(), SegKind::Syn)
                || !status.has(Status::ASSURED) && self.last_kind == SegKind::Ack);
        let answers_challenge = old == TcpState::SynSent && self.last(Dir::Reply, SegKind::Ack) && seg.seq.0 == self.last_ack;
        match answers_ignored || answers_challenge {
            true => Ruling::Skip(old, new),
            false => Ruling::Check(old, new),
        }
    }

    /// A segment outside of the windows. If both ends try to end the connection and we believe neither, it is we who are wrong:
    /// it need not live for days.
    fn outside(&mut self, timeouts: &TcpTimeouts, status: Status, left: Duration, dir: Dir, kind: SegKind) -> Option<Duration> {
        if !status.has(Status::ASSURED) || !matches!(kind, SegKind::Rst | SegKind::Fin) {
            return None;
        }
        if self.last_dir == dir || !matches!(self.last_kind, SegKind::Rst | SegKind::Fin) {
            self.last_kind = kind;
            self.last_dir = dir;
            return None;
        }
        (left >= HURRY_ABOVE && left > timeouts.unacknowledged).then_some(timeouts.unacknowledged)
    }

    /// How long the connection lives after a segment, in the state that it is in now.
    fn timeout(&self, cfg: &CtConfig, kind: SegKind) -> Duration {
        let timeouts = &cfg.timeouts.tcp;
        let full = timeouts.of(self.state);
        let unacked = (self.sides[0].flags | self.sides[1].flags) & side::DATA_UNACKED != 0;
        if self.retrans >= cfg.tcp_max_retrans && full > timeouts.max_retrans {
            timeouts.max_retrans
        } else if kind == SegKind::Rst {
            // Short even if it was not believed: whoever gets it may answer with a challenge, which renews.
            timeouts.close
        } else if unacked && full > timeouts.unacknowledged {
            timeouts.unacknowledged
        } else if self.last_win == 0 {
            full.min(timeouts.max_retrans)
        } else {
            full
        }
    }

    /// Counts how often the same acknowledgement came in a row. (Linux's counter starts again from 0 after 255.)
    pub(super) fn count_retransmission(&mut self, dir: Dir, seq: Seq, ack: Seq, end: Seq, window: u16) {
        let same =
            self.last_dir == dir && (self.last_seq, self.last_ack, self.last_end, self.last_win) == (seq.0, ack.0, end.0, window);
        if same {
            self.retrans = self.retrans.saturating_add(1);
            return;
        }
        self.last_dir = dir;
        (self.last_seq, self.last_ack, self.last_end, self.last_win) = (seq.0, ack.0, end.0, window);
        self.retrans = 0;
    }
}
