//! Segments to the guest.

use super::flow::{Events, Flow};
use super::{Cx, Fate, WINDOW_SCALE, is_passing, send_bare};
use crate::edge::{Edge, Payload, Peek};
use crate::router::{Outgoing, Router};
use crate::time::Time;
use crate::verdict::DropReason;
use crate::wire::tcp::{Flags, HEADER_LEN, Header, Seq};
use crate::wire::{ipv4, ipv6};
use core::time::Duration;

/// So many segments are acknowledged at once, as are two full ones or so many bytes.
pub(super) const ACK_SEGMENTS: u8 = 4;
const ACK_BYTES: u32 = 32 << 10;
/// How long a small segment waits for an answer to carry its acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// Longest interval at which the socket is asked what the peer acknowledged.
const ACK_POLL_MAX: Duration = Duration::from_millis(128);
/// Acknowledged bytes of small exchanges stay in the socket's queue for a while: fewer calls. Not after so many bytes of
/// the kernel's memory came since the queue was empty: it is freed buffer by buffer, so a few bytes at the end of one
/// can keep the receive window closed.
const CONSUME_AT: u32 = 16 << 10;
/// And not longer than this, nor than the grid of deadlines adds: what they cost the kernel is an estimate, and the receive buffer
/// may be smaller than all that. A closed window opens only by consuming, since nothing comes that would be an event.
const CONSUME_AFTER: Duration = Duration::from_millis(200);
/// What a received segment costs the kernel beside its data.
const SEGMENT_COST: u32 = 768;
/// Frames per flow and turn; then other flows have theirs.
const FRAMES_PER_TURN: u32 = 32;
/// Bytes of a turn where no other flow waits, if those are more.
const BYTES_ALONE: u32 = 192 << 10;
/// After so many bytes from the guest, or with less room than this for holding, the socket is asked for its room before a
/// window is offered.
const ASK_EVERY: u32 = 32 << 10;
/// A guest that may send less than this, or than a segment, hears at once when it may send much more.
const WINDOW_LOW: u32 = 32 << 10;
/// Most bytes read from a socket for several frames.
const BULK: u32 = 64 << 10;
/// How long to wait when the link takes no more frames, unless it tells before that it does.
const LINK_RETRY: Duration = Duration::from_millis(5);
/// And when there is nobody at its other end, or it is down: that it is up again is mostly told.
const LINK_AWAY: Duration = Duration::from_millis(100);

/// What follows a segment's header.
#[derive(Clone, Copy, Debug)]
struct Body {
    data: Payload,
    /// More pieces of the same buffer follow.
    keep: bool,
}

impl From<Payload> for Body {
    fn from(data: Payload) -> Body {
        Body { data, keep: false }
    }
}

impl Flow {
    /// Sends what is to be sent: what was gathered for the host; consumes, fills the guest's window, acknowledges.
    pub(super) fn settle<E: Edge>(&mut self, cx: &mut Cx<'_, E>) -> Fate {
        if !self.events.has(Events::ESTABLISHED) {
            return Fate::Keep;
        }
        if self.events.has(Events::GATHERED) {
            self.send_held(cx);
        }
        // Before the end, what is left goes too: data in the queue would be announced with every event.
        let much = self.queued_since_empty >= CONSUME_AT || self.events.has(Events::FIN_FROM_GUEST);
        if self.unconsumed > 0 && (much || self.consume_at <= cx.r.now) {
            let n = core::mem::take(&mut self.unconsumed);
            self.consume_at = Time::NEVER;
            if cx.edge.tcp_consume(self.sock, n).is_err() {
                return Fate::ResetGuest;
            }
            // What came meanwhile may share the last buffer, which is then still there, however much of it was consumed.
            let drained = !self.in_flight() && !self.events.has(Events::READABLE);
            if drained && self.queued_since_empty >= CONSUME_AT && cx.edge.tcp_unread(self.sock) == 0 {
                self.queued_since_empty = 0;
            }
        } else if self.unconsumed > 0 && self.consume_at == Time::NEVER {
            self.consume_at = cx.r.now + CONSUME_AFTER;
        }
        self.shut_down(cx);
        if let fate @ (Fate::ResetGuest | Fate::Finished) = self.fill_window(cx) {
            return fate;
        }
        if self.is_finished() {
            if self.rcv_acked != self.rcv_nxt {
                self.send_ack(cx, self.rcv_nxt);
            }
            return Fate::Finished;
        }
        self.acknowledge(cx);
        Fate::Keep
    }

    /// Sends host data as far as the guest's window goes, then the FIN.
    fn fill_window<E: Edge>(&mut self, cx: &mut Cx<'_, E>) -> Fate {
        if self.events.has(Events::LINK_FULL) {
            return Fate::Keep;
        }
        if self.events.has(Events::RESET_BY_HOST) && self.events.has(Events::FIN_FROM_HOST) && !self.in_flight() {
            return Fate::ResetGuest;
        }
        let most = self.largest_payload(cx.r);
        let turn = (FRAMES_PER_TURN * most).max(if cx.shared.alone { BYTES_ALONE } else { 0 });
        let mut moved = 0;
        while self.events.has(Events::READABLE) && !self.events.has(Events::FIN_FROM_HOST) {
            let used = self.snd_nxt.minus(self.snd_una);
            let room = self.snd_wnd.saturating_sub(used);
            if room == 0 {
                if !self.in_flight() && self.resend_at == Time::NEVER {
                    self.resend_at = cx.r.now + self.rtt.rto(0);
                }
                break;
            }
            // RFC 9293 section 3.8.6.2.1: no small piece while an acknowledgement will open more of the window.
            if room < u32::from(self.mss) && used > 0 && room < self.snd_wnd_max / 2 {
                break;
            }
            if moved >= turn {
                cx.settle_later(self);
                break;
            }
            // Where the link does not cut them, many segments are read at once.
            let want = if room < most { room } else { (room / most).min(BULK / most).max(1) * most };
            // Whoever has sent a little and no more is not asked for more at once.
            let more = if moved == 0 { 0 } else { (room - want).min(turn - moved) };
            let whole = (want <= most).then_some(self.via.link);
            match cx.edge.tcp_peek_run(self.sock, self.offset(self.snd_nxt), want, more, whole) {
                Ok(Peek::Data(body)) => {
                    let len = body.len;
                    let push = if len < want { Flags::PSH } else { Flags(0) };
                    if self.send_pieces(cx, body, most, push).is_err() {
                        return Fate::Keep;
                    }
                    moved += len;
                    // The rest will be announced; only the end is not announced twice.
                    if len < want && !self.events.has(Events::PEER_CLOSED) {
                        self.events.clear(Events::READABLE);
                    }
                }
                Ok(Peek::Empty) if self.events.has(Events::RESET_BY_HOST) => return Fate::ResetGuest,
                Ok(Peek::Empty) => {
                    self.events.clear(Events::READABLE);
                }
                Ok(Peek::Eof) if self.events.has(Events::RESET_BY_HOST) => return Fate::ResetGuest,
                Ok(Peek::Eof) => {
                    self.events.add(Events::FIN_FROM_HOST);
                    self.fin_seq = self.snd_nxt;
                }
                Err(_) => return Fate::ResetGuest,
            }
        }
        if self.events.has(Events::FIN_FROM_HOST) && !self.events.has(Events::FIN_SENT) {
            let sent = self.emit(cx, self.fin_seq, self.rcv_nxt, Flags::FIN | Flags::ACK, &[], Payload::EMPTY);
            if sent.is_ok() {
                self.events.add(Events::FIN_SENT);
                self.sent(cx.r, 1);
            }
        }
        Fate::Keep
    }

    /// Sends data from the host, in frames of at most `most` bytes; `push` for the last of them.
    fn send_pieces<E: Edge>(&mut self, cx: &mut Cx<'_, E>, body: Payload, most: u32, push: Flags) -> Result<(), DropReason> {
        let mut at = 0;
        while at < body.len {
            let piece = body.slice(at as usize, most as usize);
            let is_last = at + piece.len == body.len;
            let flags = Flags::ACK | if is_last { push } else { Flags(0) };
            if let Err(why) = self.emit(cx, self.snd_nxt, self.rcv_nxt, flags, &[], Body { data: piece, keep: !is_last }) {
                if !is_last {
                    cx.edge.release(body);
                }
                return Err(why);
            }
            self.moved(cx.r, false);
            if self.timing.is_none() {
                self.timing = Some((self.snd_nxt + piece.len, cx.r.now));
            }
            self.sent(cx.r, piece.len);
            self.queued_since_empty = self.queued_since_empty.saturating_add(piece.len + SEGMENT_COST);
            at += piece.len;
        }
        Ok(())
    }

    /// Notes that `len` sequence numbers were used.
    fn sent(&mut self, r: &Router, len: u32) {
        if !self.in_flight() {
            self.stalled_since = r.now;
            self.resend_at = Time::NEVER;
        }
        self.snd_nxt = self.snd_nxt + len;
        if self.resend_at == Time::NEVER {
            self.resend_at = r.now + self.rtt.rto(self.backoff);
        }
    }

    /// Most bytes of data in one frame: whole segments, as many as an IP packet holds if the link cuts them.
    fn largest_payload(&self, r: &Router) -> u32 {
        let mss = u32::from(self.mss);
        let v6 = self.tuple.src.addr.is_ipv6();
        if !r.links.get(usize::from(self.via.link.0)).is_some_and(|l| l.info.tso.carries(v6)) {
            return mss;
        }
        let headers = if !v6 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN } + HEADER_LEN;
        let room = 65_535 - headers as u32;
        (room / mss * mss).max(mss)
    }

    /// Sends again from the first byte that the guest lacks, one frame. If the link does not take it, the deadline, which the
    /// caller has set before, becomes an earlier one.
    pub(super) fn resend<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        self.timing = None;
        self.events.clear(Events::RESEND);
        let end = if self.events.has(Events::FIN_SENT) { self.fin_seq } else { self.snd_nxt };
        let data = if end.after(self.snd_una) { end.minus(self.snd_una) } else { 0 };
        let len = data.min(self.largest_payload(cx.r)).min(self.snd_wnd.max(1));
        if len > 0 {
            let Ok(Peek::Data(body)) = cx.edge.tcp_peek(self.sock, self.offset(self.snd_una), len) else { return };
            if self.send_data(cx, self.snd_una, body, Flags::PSH).is_err() {
                self.events.add(Events::RESEND);
                return;
            }
        }
        if len == data && self.events.has(Events::FIN_SENT) {
            let sent = self.emit(cx, self.fin_seq, self.rcv_nxt, Flags::FIN | Flags::ACK, &[], Payload::EMPTY);
            if sent.is_err() {
                self.events.add(Events::RESEND);
            }
        }
    }

    /// A data segment, or super-segment.
    fn send_data<E: Edge>(&mut self, cx: &mut Cx<'_, E>, seq: Seq, body: Payload, push: Flags) -> Result<(), DropReason> {
        self.emit(cx, seq, self.rcv_nxt, Flags::ACK | push, &[], body)
    }

    /// A segment that asks for an acknowledgement without carrying data.
    pub(super) fn probe<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        // Sent again later if the link is full: a probe has its deadline.
        let _ = self.emit(cx, self.snd_una - 1, self.rcv_nxt, Flags::ACK, &[], Payload::EMPTY);
    }

    /// Acknowledges what the guest sent, now or later: at once what is much or out of order; what is little together
    /// with the answer, or when the peer has acknowledged it.
    fn acknowledge<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        let owed = self.rcv_nxt.minus(self.rcv_acked);
        let much = owed >= ACK_BYTES.min(2 * u32::from(self.mss)) || self.rcv_segments >= ACK_SEGMENTS;
        if self.events.has(Events::ACK_NOW) || owed > 0 && much || self.window_should_open(cx) {
            self.send_ack(cx, self.rcv_nxt);
        } else if owed > 0 && self.ack_at == Time::NEVER {
            self.ack_at = cx.r.now + ACK_DELAY;
        }
        self.watch_window(cx);
    }

    /// The wait for an answer is over: acknowledges what the peer has acknowledged.
    pub(super) fn acknowledge_as_peer<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        if self.rcv_acked == self.rcv_nxt {
            return;
        }
        let waiting = match self.events.has(Events::FIN_FROM_GUEST) {
            true => 0,
            false => cx.edge.tcp_unacked(self.sock) + self.held(),
        };
        let upto = (self.rcv_nxt - waiting).max(self.rcv_acked);
        if upto != self.rcv_acked {
            self.send_ack(cx, upto);
            self.ack_backoff = 0;
        }
        if self.rcv_acked != self.rcv_nxt {
            self.ack_at = cx.r.now + self.poll_interval();
        }
    }

    /// A pure acknowledgement.
    fn send_ack<E: Edge>(&mut self, cx: &mut Cx<'_, E>, ack: Seq) {
        if self.emit(cx, self.snd_nxt, ack, Flags::ACK, &[], Payload::EMPTY).is_err() {
            self.events.add(Events::ACK_NOW);
        }
    }

    /// Our SYN to the guest.
    pub(super) fn send_syn<E: Edge>(&mut self, cx: &mut Cx<'_, E>) -> Result<(), DropReason> {
        self.rcv_scale = WINDOW_SCALE;
        self.handshake(cx, Flags::SYN)
    }

    /// Our SYN-ACK.
    pub(super) fn send_syn_ack<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        // A deadline repeats it.
        let _ = self.handshake(cx, Flags::SYN | Flags::ACK);
    }

    fn handshake<E: Edge>(&mut self, cx: &mut Cx<'_, E>, flags: Flags) -> Result<(), DropReason> {
        let headers = if self.tuple.src.addr.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN } + HEADER_LEN;
        let mtu = cx.r.links.get(usize::from(self.via.link.0)).map_or(1280, |l| l.info.mtu);
        let mss = mtu.saturating_sub(headers as u16).to_be_bytes();
        // Kind, length and value of MSS; then a no-operation and the window scale.
        let options = [2, 4, mss[0], mss[1], 1, 3, 3, self.rcv_scale];
        let options = if self.rcv_scale > 0 { &options[..] } else { &options[..4] };
        let first = !self.events.has(Events::SYN_SENT);
        let iss = if first { self.snd_nxt } else { self.snd_una };
        let now = cx.r.now;
        if first {
            self.events.add(Events::SYN_SENT);
            self.snd_nxt = iss + 1;
            self.timing = Some((self.snd_nxt, now));
        } else {
            self.timing = None;
        }
        let sent = self.emit(cx, iss, self.rcv_nxt, flags, options, Payload::EMPTY);
        // A link that is full for a moment costs a moment. Any other failure is like a loss: the deadline repeats it.
        self.resend_at = now + if sent == Err(DropReason::LinkFull) { LINK_RETRY } else { self.rtt.rto(self.backoff) };
        if sent != Err(DropReason::LinkFull) {
            self.events.clear(Events::LINK_FULL);
        }
        sent
    }

    /// RST to the guest, as the answer to whatever state it is in.
    pub(super) fn send_reset<E: Edge>(&self, r: &mut Router, edge: &mut E) {
        send_bare(r, edge, &self.via, self.tuple.reversed(), self.snd_nxt, self.rcv_nxt, Flags::RST | Flags::ACK);
    }

    /// Builds and sends a segment.
    fn emit<E: Edge>(
        &mut self,
        cx: &mut Cx<'_, E>,
        seq: Seq,
        ack: Seq,
        flags: Flags,
        options: &[u8],
        body: impl Into<Body>,
    ) -> Result<(), DropReason> {
        let Body { data: body, keep } = body.into();
        // For a guest that sends little, what may be held is window enough.
        let ask = self.rcv_nxt.minus(self.asked_at) >= ASK_EVERY || self.hold_room(cx.shared) < ASK_EVERY;
        if ask && self.events.has(Events::ESTABLISHED) {
            self.ask_space(cx);
        }
        let window = self.offer_window(cx, ack, flags.has(Flags::SYN));
        let tuple = self.tuple.reversed();
        let header_len = HEADER_LEN + options.len();
        let mut l4 = [0; HEADER_LEN + 8];
        Header {
            src_port: tuple.src.port,
            dst_port: tuple.dst.port,
            seq,
            ack: if flags.has(Flags::ACK) { ack } else { Seq(0) },
            header_len: header_len as u8,
            flags,
            window,
            checksum: 0,
            urgent: 0,
        }
        .emit(&mut l4);
        l4[HEADER_LEN..header_len].copy_from_slice(options);
        let out = Outgoing {
            input: self.via.input,
            tuple,
            hop_limit: 64,
            tos: 0,
            dont_fragment: true,
            l4: &l4[..header_len],
            body,
            keep_body: keep,
            gso: (body.len > u32::from(self.mss)).then_some(self.mss),
            attach: self.via.attach(),
        };
        match cx.r.send(cx.edge, &out) {
            Ok(conn) => self.via.sent(cx.r, conn, self.token),
            Err(why) if is_passing(why) => {
                self.events.add(Events::LINK_FULL);
                self.resend_at = self.resend_at.min(cx.r.now + if why == DropReason::LinkDown { LINK_AWAY } else { LINK_RETRY });
                cx.wait_for_link(self);
                return Err(why);
            }
            // As if it were lost on the way: a deadline repeats it.
            Err(_) if !flags.has(Flags::SYN) => {}
            Err(why) => return Err(why),
        }
        if flags.has(Flags::ACK) {
            self.rcv_acked = ack;
            self.rcv_segments = 0;
            self.ack_at = Time::NEVER;
            self.events.clear(Events::ACK_NOW);
        }
        Ok(())
    }

    /// The window field for a segment that acknowledges `ack`: what the socket takes and what may be held. The right
    /// edge never moves back (RFC 9293 section 3.8.6.2.2 wants it to move in steps worth a segment).
    fn offer_window<E: Edge>(&mut self, cx: &mut Cx<'_, E>, ack: Seq, syn: bool) -> u16 {
        if syn {
            let window = self.hold_room(cx.shared).min(65_535);
            self.rcv_edge = self.rcv_nxt + window;
            self.rcv_promised = self.rcv_edge;
            return window as u16;
        }
        let edge = self.rcv_nxt + self.room(cx);
        if edge.after(self.rcv_edge) && edge.minus(self.rcv_edge) >= ACK_BYTES.min(u32::from(self.mss)) {
            self.rcv_edge = edge;
        }
        let offered = self.rcv_edge.max(ack).minus(ack);
        // Rounded up, so that the edge does not creep back as the acknowledgement moves (RFC 7323 section 2.4); what that
        // adds is taken too.
        let field = offered.div_ceil(1 << self.rcv_scale).min(65_535);
        if field == 0 && ack.before(self.rcv_promised) {
            // Never closed over what may be in flight: not every sender resends that into a closed window. The unit is
            // taken too.
            return 1;
        }
        self.rcv_promised = self.rcv_promised.max(ack + (field << self.rcv_scale));
        field as u16
    }

    /// What may be offered beyond `rcv_nxt`. What rounding put into the hold beyond its limit counts against the socket's room.
    fn room<E: Edge>(&self, cx: &Cx<'_, E>) -> u32 {
        let (limits, held) = (&cx.shared.limits, self.held() + self.held_out_of_order());
        let own = i64::from(limits.tcp_hold) - i64::from(held);
        let all = i64::try_from(limits.tcp_hold_total).unwrap_or(i64::MAX).saturating_sub_unsigned(cx.shared.held);
        let link = cx.r.links.get(usize::from(self.via.link.0));
        let in_flight = link.map_or(u32::MAX, |l| l.info.in_flight).max(65_535).max(2 * u32::from(self.mss));
        let most = (65_535 << self.rcv_scale).min(i64::from(in_flight));
        // Within 0 and `most`, so the cast loses nothing.
        (i64::from(self.space) + own.min(all)).clamp(0, most) as u32
    }

    /// What the guest may still send.
    fn window_left(&self) -> u32 {
        // What rounding promised beyond the edge may have been used.
        self.rcv_edge.max(self.rcv_nxt).minus(self.rcv_nxt)
    }

    /// Whether the guest ought to hear that its window grew: it stands nearly still, and much more can be offered. Then
    /// the edge is moved.
    fn window_should_open<E: Edge>(&mut self, cx: &mut Cx<'_, E>) -> bool {
        let left = self.window_left();
        if left >= WINDOW_LOW.max(self.mss.into()) {
            return false;
        }
        if self.space < u32::from(self.mss) {
            self.space = cx.edge.tcp_space(self.sock);
        }
        let room = self.room(cx);
        if left >= room / 2 {
            return false;
        }
        // Where there is room for less than two segments even when the peer has everything (memory for the hold ran out,
        // the segments are as large as the socket's buffer), half of it is enough: RFC 9293 section 3.8.6.2.2.
        let much = room >= left + 2 * u32::from(self.mss) || {
            let queued = self.held() + cx.edge.tcp_unacked(self.sock);
            room - left >= room.saturating_add(queued) / 2
        };
        if much {
            self.rcv_edge = self.rcv_nxt + room;
            self.ack_backoff = 0;
        }
        much
    }

    /// The window is nearly closed, and no event will tell that the peer took something, since the socket was never
    /// asked for more than it had room for: looks again soon.
    fn watch_window<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        let waits = self.ack_at == Time::NEVER && self.held() == 0 && self.window_left() < ACK_BYTES.min(self.mss.into());
        if waits && !self.events.has(Events::FIN_FROM_GUEST) && cx.edge.tcp_unacked(self.sock) > 0 {
            self.ack_at = cx.r.now + self.poll_interval();
        }
    }

    /// How long to wait before the socket is asked again what the peer took; longer each time.
    fn poll_interval(&mut self) -> Duration {
        let interval = (ACK_DELAY * (1 << self.ack_backoff.min(6))).min(ACK_POLL_MAX);
        self.ack_backoff = self.ack_backoff.saturating_add(1);
        interval
    }
}
