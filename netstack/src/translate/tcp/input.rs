//! Segments from the guest, RFC 9293 section 3.10.7, RFC 5961.

use super::flow::{Events, Flow};
use super::{Cx, Fate, MAX_WINDOW_SCALE, MIN_MSS, WINDOW_SCALE, send_bare};
use crate::edge::{Edge, Payload};
use crate::packet::Packet;
use crate::router::Router;
use crate::time::Time;
use crate::verdict::DropReason;
use crate::wire::tcp::{Flags, Header, Options, Seq};
use crate::wire::{ipv4, ipv6};

/// Idle time after which we look whether the guest is still there (Linux's tcp_keepalive_time).
pub(super) const IDLE: core::time::Duration = core::time::Duration::from_secs(7200);
/// After so many retransmissions without an answer the guest counts as away.
const AWAY: u8 = 3;
/// Segments with less are gathered over a batch, and the socket gets them at once: a call costs more than a copy of so little.
const GATHER_BELOW: u32 = 4096;
/// Most that is gathered.
const GATHER_MOST: u32 = 64 << 10;
/// What may have been promised beyond the window's edge: by rounding it up, and by a unit that kept it from closing.
const ROUNDING: u32 = (2 << WINDOW_SCALE) - 1;

impl Flow {
    /// A segment from the guest. What it makes necessary is sent when the flow is settled.
    pub(super) fn segment<E: Edge>(
        &mut self,
        cx: &mut Cx<'_, E>,
        p: &Packet<'_>,
        h: &Header,
        options: &Options,
    ) -> Result<Fate, DropReason> {
        if !self.events.has(Events::CONNECTED) {
            return self.segment_while_connecting(h);
        }
        if !self.events.has(Events::ESTABLISHED) && self.events.has(Events::INBOUND) {
            return self.segment_in_syn_sent(cx, h, options);
        }
        let data_len = p.payload.len + u32::from(h.flags.has(Flags::FIN));
        if h.flags.has(Flags::RST) {
            return self.reset_by_guest(h);
        }
        if h.flags.has(Flags::SYN) {
            if !self.events.has(Events::ESTABLISHED) && h.seq == self.rcv_irs && !h.flags.has(Flags::ACK) {
                self.send_syn_ack(cx);
                return Ok(Fate::Keep);
            }
            self.events.add(Events::ACK_NOW);
            return Err(DropReason::TcpUnacceptable);
        }
        if !h.flags.has(Flags::ACK) {
            return Err(DropReason::TcpUnacceptable);
        }
        if !self.events.has(Events::ESTABLISHED) {
            if h.ack != self.snd_nxt {
                send_bare(cx.r, cx.edge, &self.via, self.tuple.reversed(), h.ack, Seq(0), Flags::RST);
                return Err(DropReason::TcpUnacceptable);
            }
            self.establish(cx, h);
        }
        self.heard = cx.r.now;
        if h.ack.after(self.snd_nxt) {
            self.events.add(Events::ACK_NOW);
            return Err(DropReason::TcpUnacceptable);
        }
        self.acknowledged(cx, h, data_len);
        if data_len == 0 {
            // A keep-alive, or a probe: RFC 9293 section 3.8.4 wants an answer.
            if h.seq.before(self.rcv_nxt) {
                self.events.add(Events::ACK_NOW);
            }
            return Ok(Fate::Keep);
        }
        self.data(cx, h.seq, p.payload, h.flags.has(Flags::FIN))
    }

    /// The guest's own SYN waits for the host's connect.
    fn segment_while_connecting(&mut self, h: &Header) -> Result<Fate, DropReason> {
        if h.flags.has(Flags::RST) && (h.seq == self.rcv_nxt || h.seq == self.rcv_irs) {
            return Ok(Fate::ResetHost);
        }
        if h.flags.has(Flags::SYN) && h.seq == self.rcv_irs {
            return Ok(Fate::Keep);
        }
        Err(DropReason::TcpUnacceptable)
    }

    /// Our SYN waits for the guest's SYN-ACK (RFC 9293 section 3.10.7.3).
    fn segment_in_syn_sent<E: Edge>(&mut self, cx: &mut Cx<'_, E>, h: &Header, options: &Options) -> Result<Fate, DropReason> {
        let acks_syn = h.flags.has(Flags::ACK) && h.ack == self.snd_nxt;
        if h.flags.has(Flags::RST) {
            return if acks_syn { Ok(Fate::ResetHost) } else { Err(DropReason::TcpUnacceptable) };
        }
        if !acks_syn || !h.flags.has(Flags::SYN) {
            if h.flags.has(Flags::ACK) && !acks_syn {
                send_bare(cx.r, cx.edge, &self.via, self.tuple.reversed(), h.ack, Seq(0), Flags::RST);
            }
            return Err(DropReason::TcpUnacceptable);
        }
        self.rcv_irs = h.seq;
        self.rcv_nxt = h.seq + 1;
        self.rcv_acked = self.rcv_nxt;
        self.rcv_edge = self.rcv_nxt;
        self.rcv_promised = self.rcv_nxt;
        self.take_syn_options(cx.r, options);
        self.establish(cx, h);
        // The window of a SYN is never scaled.
        self.snd_wnd = u32::from(h.window);
        self.snd_wnd_max = self.snd_wnd;
        self.events.add(Events::ACK_NOW);
        Ok(Fate::Keep)
    }

    /// Options of the guest's SYN or SYN-ACK.
    pub(super) fn take_syn_options(&mut self, r: &Router, options: &Options) {
        let (headers, default) =
            if self.tuple.src.addr.is_ipv4() { (ipv4::HEADER_LEN + 20, 536) } else { (ipv6::HEADER_LEN + 20, 1220) };
        let mtu = r.links.get(usize::from(self.via.link.0)).map_or(1280, |l| l.info.mtu);
        let most = mtu.saturating_sub(headers as u16).max(MIN_MSS);
        self.mss = options.mss.unwrap_or(default).clamp(MIN_MSS, most);
        (self.snd_scale, self.rcv_scale) = match options.window_scale {
            Some(scale) => (scale.min(MAX_WINDOW_SCALE), WINDOW_SCALE),
            None => (0, 0),
        };
    }

    /// The handshake with the guest is complete.
    fn establish<E: Edge>(&mut self, cx: &mut Cx<'_, E>, h: &Header) {
        self.events.add(Events::ESTABLISHED);
        if self.events.clear(Events::HALF_OPEN) {
            cx.shared.half_open -= 1;
        }
        let now = cx.r.now;
        if let Some((_, sent)) = self.timing.take() {
            self.rtt.sample(now.since(sent));
        }
        self.snd_una = h.ack;
        self.snd_wnd = u32::from(h.window) << self.snd_scale;
        self.snd_wnd_max = self.snd_wnd;
        self.snd_wl1 = h.seq;
        self.asked_at = self.rcv_nxt;
        self.backoff = 0;
        self.resend_at = Time::NEVER;
        self.events.clear(Events::LINK_FULL);
        self.alive_at = now + IDLE;
        self.heard = now;
        self.stalled_since = now;
    }

    /// RFC 5961 section 3.2: only an exact sequence number resets; one in the window is challenged.
    fn reset_by_guest(&mut self, h: &Header) -> Result<Fate, DropReason> {
        if self.events.has(Events::FIN_FROM_GUEST) && self.events.has(Events::FIN_ACKED) {
            // The guest closed in good order and has forgotten the connection: it says so when an old duplicate makes us
            // acknowledge again. What is held still goes to the peer.
            return Err(DropReason::TcpUnacceptable);
        }
        if h.seq == self.rcv_nxt || h.seq == self.rcv_acked {
            let fin_only = self.events.has(Events::FIN_SENT) && self.snd_una == self.fin_seq;
            if self.events.has(Events::FIN_FROM_GUEST) && fin_only {
                // It had everything, and its acknowledgement of our FIN was lost: as good as that.
                self.snd_una = self.snd_nxt;
                self.resend_at = Time::NEVER;
                self.events.add(Events::FIN_ACKED);
                return Ok(Fate::Keep);
            }
            return Ok(Fate::ResetHost);
        }
        if h.seq.after(self.rcv_nxt) && h.seq.before(self.rcv_edge) {
            self.events.add(Events::ACK_NOW);
        }
        Err(DropReason::TcpUnacceptable)
    }

    /// What a segment says about our data and about the guest's window.
    fn acknowledged<E: Edge>(&mut self, cx: &mut Cx<'_, E>, h: &Header, data_len: u32) {
        if h.ack.before(self.snd_una) {
            return;
        }
        let now = cx.r.now;
        let window = u32::from(h.window) << self.snd_scale;
        let same_window = window == self.snd_wnd;
        let opened = self.snd_wnd == 0 && window > 0;
        self.events.clear(Events::LINK_FULL);
        // A closed window may be opened by any segment: a guest that went back to send again has numbers below SND.WL1,
        // for as long as we do not take what it sends.
        if !h.seq.before(self.snd_wl1) || self.snd_wnd == 0 {
            self.snd_wl1 = self.snd_wl1.max(h.seq);
            self.snd_wnd = window;
            self.snd_wnd_max = self.snd_wnd_max.max(window);
        }
        if h.ack == self.snd_una {
            // RFC 5681 section 2: a duplicate carries nothing and changes nothing.
            if self.in_flight() && data_len == 0 && same_window && h.seq == self.rcv_nxt {
                self.dup_acks = self.dup_acks.saturating_add(1);
                if self.dup_acks == 3 && self.recover.is_none() {
                    self.recover = Some(self.snd_nxt);
                    cx.r.stats.tcp_fast_retransmit += 1;
                    self.resend(cx);
                }
            }
            if !self.in_flight() {
                // An answer to a probe of a closed window: the guest lives, so the wait is as long as it likes.
                self.stalled_since = now;
                if self.snd_wnd > 0 {
                    self.backoff = 0;
                }
                if opened {
                    self.resend_at = Time::NEVER;
                }
            } else if self.backoff >= AWAY {
                // A guest that was away is back; it need not wait for the rest of a long time-out.
                self.backoff = 0;
                self.resend_at = now + self.rtt.rto(0);
                self.resend(cx);
            }
            return;
        }
        let mut data = h.ack.minus(self.snd_una);
        if self.events.has(Events::FIN_SENT) && h.ack == self.fin_seq + 1 {
            data -= 1;
            self.events.add(Events::FIN_ACKED);
        }
        self.unconsumed += data;
        self.snd_una = h.ack;
        self.dup_acks = 0;
        self.backoff = 0;
        self.stalled_since = now;
        if let Some((seq, sent)) = self.timing
            && h.ack.at_or_after(seq)
        {
            self.rtt.sample(now.since(sent));
            self.timing = None;
        }
        self.resend_at = if self.in_flight() { now + self.rtt.rto(0) } else { Time::NEVER };
        self.events.clear(Events::RESEND);
        match self.recover {
            Some(end) if h.ack.before(end) => self.resend(cx),
            _ => self.recover = None,
        }
    }

    /// Data and FIN of a segment.
    fn data<E: Edge>(
        &mut self,
        cx: &mut Cx<'_, E>,
        mut seq: Seq,
        mut payload: Payload,
        mut fin: bool,
    ) -> Result<Fate, DropReason> {
        if self.events.has(Events::FIN_FROM_GUEST) {
            self.events.add(Events::ACK_NOW);
            return Err(DropReason::TcpDuplicate);
        }
        if seq.before(self.rcv_nxt) {
            let old = self.rcv_nxt.minus(seq);
            if old > payload.len || old == payload.len && !fin {
                self.events.add(Events::ACK_NOW);
                // A keep-alive with a byte of garbage is no duplicate worth counting.
                return if payload.len <= 1 { Ok(Fate::Keep) } else { Err(DropReason::TcpDuplicate) };
            }
            payload = payload.slice(old as usize, payload.len());
            seq = self.rcv_nxt;
        }
        let edge = self.rcv_edge + ROUNDING;
        let room = if edge.after(seq) { edge.minus(seq) } else { 0 };
        if payload.len > room {
            self.events.add(Events::ACK_NOW);
            if room == 0 {
                return Err(DropReason::TcpUnacceptable);
            }
            payload = payload.slice(0, room as usize);
            fin = false;
        }
        if self.events.has(Events::RESET_BY_HOST) {
            return Err(DropReason::TcpUnacceptable);
        }
        if seq != self.rcv_nxt {
            self.events.add(Events::ACK_NOW);
            return self.keep_for_later(cx, seq, payload, fin);
        }
        if !payload.is_empty() {
            self.moved(cx.r, true);
        }
        let taken = self.deliver(cx, payload);
        self.rcv_segments = self.rcv_segments.saturating_add(1);
        if taken > u32::from(self.mss) {
            self.rcv_segments = self.rcv_segments.max(super::output::ACK_SEGMENTS);
        }
        let all = taken == payload.len;
        self.rcv_nxt = self.rcv_nxt + taken;
        let held_fin = self.hold.as_ref().and_then(|h| h.fin);
        if all && self.held_out_of_order() > 0 {
            self.close_gaps(cx);
        }
        if fin && all && self.rcv_nxt == seq + payload.len || held_fin == Some(self.rcv_nxt) {
            self.rcv_nxt = self.rcv_nxt + 1;
            // Its acknowledgement waits a little for the peer's FIN, which mostly follows at once.
            self.events.add(Events::FIN_FROM_GUEST);
        }
        if !all {
            self.events.add(Events::ACK_NOW);
            return Err(DropReason::TcpHoldLimit);
        }
        Ok(Fate::Keep)
    }

    /// A segment behind a gap.
    fn keep_for_later<E: Edge>(&mut self, cx: &mut Cx<'_, E>, seq: Seq, payload: Payload, fin: bool) -> Result<Fate, DropReason> {
        let limits = &cx.shared.limits;
        if cx.shared.held + u64::from(payload.len) > limits.tcp_hold_total || payload.len > limits.tcp_out_of_order {
            return Err(DropReason::TcpReassemblyLimit);
        }
        let mut bytes = vec![0; payload.len()];
        let n = cx.edge.read(payload, &mut bytes);
        let hold = self.hold.get_or_insert_default();
        if hold.insert(seq, &bytes[..n], limits.tcp_out_of_order).is_none() {
            return Err(DropReason::TcpReassemblyLimit);
        }
        if fin {
            hold.fin = Some(seq + payload.len);
        }
        self.recount(cx.shared);
        cx.r.stats.tcp_out_of_order += 1;
        Ok(Fate::Keep)
    }

    /// Takes over in-order bytes: to the host socket, and what it does not take into the hold. What is small is gathered there for the end of the batch.
    /// Returns how many were taken.
    fn deliver<E: Edge>(&mut self, cx: &mut Cx<'_, E>, payload: Payload) -> u32 {
        let small = payload.len < GATHER_BELOW;
        let no_more = self.events.has(Events::GATHERED) && (!small || self.held() + payload.len > GATHER_MOST);
        // The window counts on the room in the socket too.
        if self.held() > 0 && (no_more || payload.len > self.hold_room(cx.shared)) {
            self.send_held(cx);
        }
        if self.events.has(Events::RESET_BY_HOST) {
            return payload.len;
        }
        let mut sent = 0;
        if self.held() == 0 && !payload.is_empty() {
            if small && payload.len <= self.hold_room(cx.shared) {
                self.events.add(Events::GATHERED);
            } else {
                match cx.edge.tcp_send(self.sock, payload) {
                    Ok(n) => sent = n as u32,
                    Err(_) => {
                        // The peer reset; what the guest sent is lost with the connection, as it would be in the kernel.
                        self.reset_by_host(cx);
                        return payload.len;
                    }
                }
                self.space = if sent < payload.len { 0 } else { self.space.saturating_sub(sent) };
            }
        }
        let rest = payload.slice(sent as usize, payload.len());
        let kept = self.hold_payload(cx, rest);
        sent + kept
    }

    /// Copies the start of `rest` into the hold, as much as it may take.
    fn hold_payload<E: Edge>(&mut self, cx: &mut Cx<'_, E>, rest: Payload) -> u32 {
        let n = rest.len.min(self.hold_room(cx.shared) + ROUNDING);
        if n == 0 {
            return 0;
        }
        let queue = &mut self.hold.get_or_insert_with(|| cx.shared.spare.pop().unwrap_or_default()).queue;
        let at = queue.len();
        queue.resize(at + n as usize, 0);
        let (front, back) = queue.as_mut_slices();
        let skip = at.min(front.len());
        let copied = cx.edge.read(rest.slice(0, n as usize), &mut front[skip..]);
        if copied < n as usize {
            let at_back = at - skip;
            cx.edge.read(rest.slice(copied, n as usize - copied), &mut back[at_back..]);
        }
        self.recount(cx.shared);
        if !self.events.has(Events::GATHERED) {
            cx.r.stats.tcp_held_bytes += u64::from(n);
        }
        n
    }

    /// Takes over pieces that follow now that a gap closed.
    fn close_gaps<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        while let Some(piece) = self.hold.as_mut().and_then(|h| h.take(self.rcv_nxt)) {
            // In-order bytes may always replace those held beyond the gap: the total does not grow.
            self.rcv_nxt = self.rcv_nxt + piece.len() as u32;
            if let Some(hold) = &mut self.hold {
                hold.queue.extend(&piece);
            }
            self.events.add(Events::ACK_NOW);
        }
        self.recount(cx.shared);
        self.send_held(cx);
    }
}
