//! Windows: whether a segment lies where its receiver would take it.
//!
//! After G. van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2001), with what Linux made of it. Four bounds:
//!
//! | | holds for | a segment beyond it |
//! |---|---|---|
//! | I | sequence number ≤ what the receiver has room for | INVALID; if it goes beyond by less than a window, passes and is remembered |
//! | II | end > what was sent − the receiver's largest window | passes, changes nothing: a late retransmission |
//! | III | acknowledgement ≤ what the other end sent | INVALID |
//! | IV | acknowledgement > what the other end sent − the largest window, at least 66,000 | passes, changes nothing |

use super::{SegKind, Segment, TcpSide, TcpState, TcpTrack, side};
use crate::conntrack::config::CtConfig;
use crate::conntrack::conn::Dir;
use crate::conntrack::proto::Invalid;
use crate::wire::tcp::{Flags, Seq};

/// Acknowledgements this far behind are taken whatever the windows are.
const MIN_ACK_WINDOW: u32 = 66_000;

/// Largest shift that RFC 7323 section 2.3 allows.
const MAX_SCALE: u8 = 14;

/// What the windows say of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// It may change the connection's state.
    Inside,
    /// It passes, but changes nothing.
    Aside,
    /// It is INVALID.
    Outside(Invalid),
}

impl TcpSide {
    /// Takes over what a SYN or SYN-ACK of this side says.
    pub(super) fn start(&mut self, seg: &Segment<'_>) {
        self.end = seg.end.0;
        self.max_end = seg.end.0;
        self.max_win = u32::from(seg.window).max(1);
        self.take_options(seg);
    }

    /// Options of a SYN replace those of an earlier one; a SYN without any leaves them.
    fn take_options(&mut self, seg: &Segment<'_>) {
        if !seg.option_bytes.is_empty() {
            (self.flags, self.scale) = syn_options(seg, self.flags & side::BE_LIBERAL);
        }
    }

    /// How far an acknowledgement of this side may lag.
    fn max_ack_window(&self) -> u32 {
        self.max_win.max(MIN_ACK_WINDOW)
    }
}

/// Flags and window scale that the options of a SYN stand for, added to `flags`.
pub(super) fn syn_options(seg: &Segment<'_>, mut flags: u8) -> (u8, u8) {
    if seg.options.sack_permitted {
        flags |= side::SACK_PERM;
    }
    let scale = match seg.options.window_scale {
        Some(scale) => {
            flags |= side::WINDOW_SCALE;
            scale.min(MAX_SCALE)
        }
        None => 0,
    };
    (flags, scale)
}

/// A side seen first in the middle of its connection.
pub(super) fn pick_up(side: &mut TcpSide, seg: &Segment<'_>) {
    side.end = seg.end.0;
    side.max_win = (u32::from(seg.window) << side.scale).max(1);
    side.max_end = (seg.end + side.max_win).0;
}

/// Checks a segment against the windows and, if it lies inside, moves them.
pub(super) fn check(cfg: &CtConfig, t: &mut TcpTrack, dir: Dir, seg: &Segment<'_>) -> Window {
    let (mut sender, mut receiver) = (t.sides[dir as usize], t.sides[dir.other() as usize]);
    let verdict = check_sides(cfg, t, &mut sender, &mut receiver, dir, seg);
    t.sides[dir as usize] = sender;
    t.sides[dir.other() as usize] = receiver;
    verdict
}

fn check_sides(
    cfg: &CtConfig,
    t: &mut TcpTrack,
    sender: &mut TcpSide,
    receiver: &mut TcpSide,
    dir: Dir,
    seg: &Segment<'_>,
) -> Window {
    let (mut seq, mut end, mut ack) = (seg.seq, seg.end, seg.ack);
    let mut sack = if receiver.flags & side::SACK_PERM != 0 { seg.highest_sack() } else { ack };
    let is_syn = seg.flags.has(Flags::SYN);

    if sender.max_win == 0 && !is_syn {
        pick_up(sender, seg);
        if receiver.max_win == 0 {
            // Nothing is known of the other side either: let this acknowledgement be right.
            receiver.end = sack.0;
            receiver.max_end = sack.0;
        } else if sack == Seq(receiver.end) + 1 {
            // An answer to a keep-alive, which repeated the byte before.
            receiver.end = receiver.end.wrapping_add(1);
        }
    } else if sender.max_win == 0
        || is_syn && seg.end.after(Seq(sender.end)) && matches!(t.state, TcpState::SynSent | TcpState::SynRecv)
    {
        // The first SYN of this side, or another one while the connection is not made yet.
        let first = sender.max_win == 0;
        sender.start(seg);
        if dir == Dir::Reply && sender.flags & receiver.flags & side::WINDOW_SCALE == 0 {
            // RFC 7323 section 2.2: both or none.
            sender.scale = 0;
            receiver.scale = 0;
        }
        if !seg.flags.has(Flags::ACK) && (first || dir == Dir::Reply) {
            return Window::Inside;
        }
    }

    let resets = seg.flags.has(Flags::RST);
    // Without an acknowledgement, or with the zero that broken stacks put into resets, take the expected one.
    if !seg.flags.has(Flags::ACK) || resets && ack == Seq(0) {
        ack = Seq(receiver.end);
        sack = ack;
    }
    // A reset in answer to a SYN carries no sequence number: RFC 9293 section 3.5.2.
    if resets && seq == Seq(0) && t.state == TcpState::SynSent {
        seq = Seq(sender.end);
        end = seq;
    }

    if let Err(verdict) = bounds(sender, receiver, seq, end, sack) {
        let liberal = cfg.tcp_be_liberal || sender.flags & side::BE_LIBERAL != 0;
        return if liberal { Window::Inside } else { verdict };
    }
    advance(sender, receiver, seg, end, ack, sack);
    if seg.kind == SegKind::Ack {
        t.count_retransmission(dir, seq, ack, end, seg.window);
    }
    Window::Inside
}

/// The four bounds.
fn bounds(sender: &mut TcpSide, receiver: &TcpSide, seq: Seq, end: Seq, sack: Seq) -> Result<(), Window> {
    let ack_floor = Seq(receiver.end) - sender.max_ack_window() - 1;
    let end_floor = Seq(sender.end) - receiver.max_win - 1;
    let acks_sent = Seq(receiver.end).at_or_after(sack);
    if seq.after(Seq(sender.max_end)) {
        // Some ends send more than they may, and their peers take it. The acknowledgement must not be found wrong then.
        let over = end.minus(Seq(sender.max_end)).wrapping_add(1);
        let by_little = receiver.max_win != 0 && end.after(end_floor) && over <= receiver.max_win;
        if by_little && acks_sent && sack.after(ack_floor) {
            sender.end = end.0;
            sender.flags |= side::DATA_UNACKED;
            return Err(Window::Aside);
        }
        return Err(Window::Outside(Invalid::TcpSeqOver));
    }
    if !acks_sent {
        return Err(Window::Outside(Invalid::TcpAckOver));
    }
    if receiver.max_win != 0 && !end.after(end_floor) || !sack.after(ack_floor) {
        return Err(Window::Aside);
    }
    Ok(())
}

/// Moves the windows by a segment that lies inside of them.
fn advance(sender: &mut TcpSide, receiver: &mut TcpSide, seg: &Segment<'_>, end: Seq, ack: Seq, sack: Seq) {
    // RFC 7323 section 2.2: the window of a SYN is not scaled.
    let scale = if seg.flags.has(Flags::SYN) { 0 } else { sender.scale };
    let win = u32::from(seg.window) << scale;
    sender.max_win = sender.max_win.max(win.wrapping_add(sack.minus(ack)));
    if end.after(Seq(sender.end)) {
        sender.end = end.0;
        sender.flags |= side::DATA_UNACKED;
    }
    if seg.flags.has(Flags::ACK) {
        if sender.flags & side::MAXACK_SET == 0 || ack.after(Seq(sender.max_ack)) {
            sender.max_ack = ack.0;
        }
        sender.flags |= side::MAXACK_SET;
    }
    if receiver.max_win != 0 && end.after(Seq(sender.max_end)) {
        receiver.max_win = receiver.max_win.wrapping_add(end.minus(Seq(sender.max_end)));
    }
    let room = sack + win;
    if room.at_or_after(Seq(receiver.max_end)) {
        // A closed window is probed with one byte.
        receiver.max_end = room.0.wrapping_add(u32::from(win == 0));
    }
    if ack == Seq(receiver.end) {
        receiver.flags &= !side::DATA_UNACKED;
    }
}
