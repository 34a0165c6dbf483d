//! TCP flows as they are saved.

use super::flow::{Events, Flow};
use super::hold::Hold;
use super::rtt::Rtt;
use super::{MAX_WINDOW_SCALE, Tcp};
use crate::edge::{Edge, SockId, Token, TokenKind};
use crate::flow::{Slab, SlabState};
use crate::router::{Router, Via};
use crate::state::{FlowInfo, Invalid, invalid};
use crate::time::Time;
use crate::tuple::{Tuple, proto};
use crate::wire::tcp::Seq;
use core::time::Duration;
use hibernet_snapshot::Bytes;
use serde::{Deserialize, Serialize};

/// Largest payload of a segment to the guest.
const MAX_MSS: u16 = u16::MAX - 40;

/// All TCP flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpState {
    flows: SlabState<FlowState>,
    /// Flows that were to be settled at once, in their order.
    unsettled: Vec<u32>,
}

/// A TCP flow. Fields are those of the live one; instants are stack time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FlowState {
    tuple: Tuple,
    sock: SockId,
    via: Via,
    due: Time,
    events: u32,
    snd_una: Seq,
    snd_nxt: Seq,
    snd_wnd: u32,
    snd_scale: u8,
    snd_wnd_max: u32,
    snd_wl1: Seq,
    mss: u16,
    unconsumed: u32,
    queued_since_empty: u32,
    fin_seq: Seq,
    dup_acks: u8,
    recover: Option<Seq>,
    backoff: u8,
    rtt: Rtt,
    timing: Option<(Seq, Time)>,
    rcv_irs: Seq,
    rcv_nxt: Seq,
    rcv_acked: Seq,
    rcv_edge: Seq,
    rcv_promised: Seq,
    rcv_scale: u8,
    rcv_segments: u8,
    ack_backoff: u8,
    space: u32,
    asked_at: Seq,
    hold: Option<HoldState>,
    ack_at: Time,
    resend_at: Time,
    consume_at: Time,
    alive_at: Time,
    heard: Time,
    stalled_since: Time,
}

/// Bytes of the guest that wait for the host socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HoldState {
    queue: Bytes,
    pieces: Vec<(Seq, Bytes)>,
    fin: Option<Seq>,
}

impl Hold {
    fn save(&self) -> HoldState {
        let pieces = self.pieces().iter().map(|(at, bytes)| (*at, Bytes(bytes.clone()))).collect();
        HoldState { queue: Bytes(self.queue.iter().copied().collect()), pieces, fin: self.fin }
    }

    fn restore(state: HoldState) -> Result<Self, Invalid> {
        let pieces: Vec<(Seq, Vec<u8>)> = state.pieces.into_iter().map(|(at, bytes)| (at, bytes.0)).collect();
        let disjoint = pieces.windows(2).all(|w| (w[0].0 + w[0].1.len() as u32).before(w[1].0 + 1));
        if !disjoint || pieces.iter().any(|(_, d)| d.is_empty()) {
            return Err(invalid("held pieces that overlap"));
        }
        Ok(Hold::from_parts(state.queue.0.into(), pieces, state.fin))
    }
}

impl Flow {
    fn save(&self) -> FlowState {
        FlowState {
            tuple: self.tuple,
            sock: self.sock,
            via: self.via,
            due: self.deadline.due(),
            events: self.events.bits(),
            snd_una: self.snd_una,
            snd_nxt: self.snd_nxt,
            snd_wnd: self.snd_wnd,
            snd_scale: self.snd_scale,
            snd_wnd_max: self.snd_wnd_max,
            snd_wl1: self.snd_wl1,
            mss: self.mss,
            unconsumed: self.unconsumed,
            queued_since_empty: self.queued_since_empty,
            fin_seq: self.fin_seq,
            dup_acks: self.dup_acks,
            recover: self.recover,
            backoff: self.backoff,
            rtt: self.rtt,
            timing: self.timing,
            rcv_irs: self.rcv_irs,
            rcv_nxt: self.rcv_nxt,
            rcv_acked: self.rcv_acked,
            rcv_edge: self.rcv_edge,
            rcv_promised: self.rcv_promised,
            rcv_scale: self.rcv_scale,
            rcv_segments: self.rcv_segments,
            ack_backoff: self.ack_backoff,
            space: self.space,
            asked_at: self.asked_at,
            hold: self.hold.as_ref().map(|h| h.save()),
            ack_at: self.ack_at,
            resend_at: self.resend_at,
            consume_at: self.consume_at,
            alive_at: self.alive_at,
            heard: self.heard,
            stalled_since: self.stalled_since,
        }
    }

    fn restore(s: FlowState, token: Token) -> Result<Self, Invalid> {
        let events = Events::from_bits(s.events).ok_or(invalid("unknown events of a TCP flow"))?;
        if s.tuple.proto != proto::TCP || s.tuple.src.addr.is_ipv4() != s.tuple.dst.addr.is_ipv4() {
            return Err(invalid("a TCP flow between addresses that cannot be"));
        }
        if s.snd_scale > MAX_WINDOW_SCALE || s.rcv_scale > MAX_WINDOW_SCALE || s.mss == 0 || s.mss > MAX_MSS || !s.rtt.is_sane() {
            return Err(invalid("options of a TCP flow that cannot be"));
        }
        if s.snd_una.after(s.snd_nxt) || s.rcv_acked.after(s.rcv_nxt) {
            return Err(invalid("sequence numbers of a TCP flow that contradict each other"));
        }
        let hold = s.hold.map(|h| Hold::restore(h).map(Box::new)).transpose()?;
        let mut flow = Flow::new(token, s.tuple, s.sock, s.via, s.snd_una, s.heard);
        flow.events = events;
        flow.snd_nxt = s.snd_nxt;
        flow.snd_wnd = s.snd_wnd;
        flow.snd_scale = s.snd_scale;
        flow.snd_wnd_max = s.snd_wnd_max;
        flow.snd_wl1 = s.snd_wl1;
        flow.mss = s.mss;
        flow.unconsumed = s.unconsumed;
        flow.queued_since_empty = s.queued_since_empty;
        flow.fin_seq = s.fin_seq;
        flow.dup_acks = s.dup_acks;
        flow.recover = s.recover;
        flow.backoff = s.backoff;
        flow.rtt = s.rtt;
        flow.timing = s.timing;
        flow.rcv_irs = s.rcv_irs;
        flow.rcv_nxt = s.rcv_nxt;
        flow.rcv_acked = s.rcv_acked;
        flow.rcv_edge = s.rcv_edge;
        flow.rcv_promised = s.rcv_promised;
        flow.rcv_scale = s.rcv_scale;
        flow.rcv_segments = s.rcv_segments;
        flow.ack_backoff = s.ack_backoff;
        flow.space = s.space;
        flow.asked_at = s.asked_at;
        flow.hold = hold;
        flow.ack_at = s.ack_at;
        flow.resend_at = s.resend_at;
        flow.consume_at = s.consume_at;
        flow.alive_at = s.alive_at;
        flow.stalled_since = s.stalled_since;
        Ok(flow)
    }
}

impl Tcp {
    /// The flows as they stand between two calls into the stack.
    pub(crate) fn save(&self) -> TcpState {
        TcpState { flows: self.flows.save(Flow::save), unsettled: self.shared.unsettled.clone() }
    }

    /// Puts saved flows into place of none.
    pub(crate) fn restore(&mut self, state: TcpState, r: &mut Router) -> Result<(), Invalid> {
        let due: Vec<_> = state.flows.values().map(|(i, s)| (i, s.due)).collect();
        let make = |i, g, s: FlowState| {
            r.check_via(&s.via)?;
            Flow::restore(s, Token::new(TokenKind::Tcp, i, g))
        };
        self.flows = Slab::restore(state.flows, self.shared.limits.tcp_flows, make)?;
        for (i, due) in due {
            let Some(flow) = self.flows.get_mut(i) else { continue };
            if self.index.insert(flow.tuple, i).is_some() {
                return Err(invalid("two TCP flows with one tuple"));
            }
            self.shared.half_open += u32::from(flow.events.has(Events::HALF_OPEN));
            flow.recount(&mut self.shared);
            flow.via.resume(r, flow.token);
            r.timers.set(&mut flow.deadline, flow.token, due);
        }
        let mut listed = 0;
        for &i in &state.unsettled {
            match self.flows.get_mut(i) {
                Some(f) if f.events.has(Events::UNSETTLED) && !self.shared.unsettled.contains(&i) => {
                    listed += 1;
                    // Which of it was gathered is not said; a socket that takes nothing may be offered it once more.
                    if f.held() > 0 {
                        f.events.add(Events::GATHERED);
                    }
                }
                _ => return Err(invalid("a TCP flow that is to be settled and is not there")),
            }
            self.shared.unsettled.push(i);
        }
        if self.flows.iter().filter(|(_, f)| f.events.has(Events::UNSETTLED)).count() != listed {
            return Err(invalid("a TCP flow that is to be settled and is not listed"));
        }
        Ok(())
    }

    /// What there is to tell of each flow.
    pub(crate) fn list(&self) -> impl Iterator<Item = FlowInfo> {
        self.flows.iter().map(|(_, f)| FlowInfo {
            token: f.token,
            sock: f.sock,
            tuple: f.tuple,
            inbound: f.events.has(Events::INBOUND),
            shared_socket: false,
            tcp: Some(f.stage()),
        })
    }

    /// Whether nothing is under way on any flow.
    pub(crate) fn is_quiet(&self) -> bool {
        self.flows.iter().all(|(_, f)| f.is_quiet())
    }

    /// Takes out of the sockets what the guest has acknowledged already, so that they are readable only for what it has not.
    pub(crate) fn consume_acknowledged<E: Edge>(&mut self, edge: &mut E) {
        for (_, flow) in self.flows.iter_mut().filter(|(_, f)| f.unconsumed > 0) {
            // A socket that refuses is found out about when the flow goes on.
            if edge.tcp_consume(flow.sock, flow.unconsumed).is_ok() {
                (flow.unconsumed, flow.consume_at) = (0, Time::NEVER);
            }
        }
    }

    /// Flows go on after a sleep: their sockets are asked for what came meanwhile, the guest is told where we stand, and what both sides
    /// have sent in vain is sent again soon.
    pub(crate) fn thaw<E: Edge>(&mut self, r: &mut Router, asleep: Duration, edge: &mut E) {
        for (i, flow) in self.flows.iter_mut() {
            flow.undo_back_off(r, edge, asleep);
            if flow.events.has(Events::CONNECTED) {
                flow.events.add(Events::READABLE);
            }
            if flow.events.has(Events::ESTABLISHED) {
                flow.events.add(Events::ACK_NOW);
                flow.backoff = 0;
                if flow.in_flight() {
                    flow.resend_at = flow.resend_at.min(r.now + flow.rtt.rto(0));
                }
            }
            if !flow.events.has(Events::UNSETTLED) {
                flow.events.add(Events::UNSETTLED);
                self.shared.unsettled.push(i);
            }
        }
    }
}

impl Flow {
    /// How far the flow is.
    fn stage(&self) -> TcpStage {
        TcpStage {
            connected: self.events.has(Events::CONNECTED),
            established: self.events.has(Events::ESTABLISHED),
            closed_by_guest: self.events.has(Events::FIN_FROM_GUEST),
            closed_by_host: self.events.has(Events::FIN_FROM_HOST) || self.events.has(Events::PEER_CLOSED),
            end_acknowledged: self.events.has(Events::FIN_ACKED),
            reset_by_host: self.events.has(Events::RESET_BY_HOST),
            to_guest: self.snd_nxt.minus(self.snd_una),
            to_host: self.held(),
        }
    }
}

/// How far a TCP flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpStage {
    /// The host socket is connected.
    pub connected: bool,
    /// The handshake with the guest is done.
    pub established: bool,
    /// The guest closed its sending side.
    pub closed_by_guest: bool,
    /// The peer closed its sending side.
    pub closed_by_host: bool,
    /// The guest has acknowledged that.
    pub end_acknowledged: bool,
    /// The peer reset the connection; the guest has not had everything yet.
    pub reset_by_host: bool,
    /// Bytes in flight to the guest.
    pub to_guest: u32,
    /// Bytes held for the host socket.
    pub to_host: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(pieces: &[(u32, usize)]) -> HoldState {
        let pieces = pieces.iter().map(|(at, len)| (Seq(*at), Bytes(vec![1; *len]))).collect();
        HoldState { queue: Bytes(vec![2, 3]), pieces, fin: Some(Seq(99)) }
    }

    #[test]
    fn what_is_held_is_held_again() {
        for pieces in [&[][..], &[(10, 5)], &[(10, 5), (15, 1), (40, 2)], &[(u32::MAX - 1, 4), (3, 1)]] {
            let state = hold(pieces);
            let restored = Hold::restore(state.clone()).unwrap();
            assert_eq!(restored.out_of_order() as usize, pieces.iter().map(|p| p.1).sum::<usize>());
            assert_eq!(restored.save(), state);
        }
    }

    #[test]
    fn pieces_that_overlap_or_are_empty_are_refused() {
        for pieces in [&[(10, 0)][..], &[(10, 5), (14, 1)], &[(40, 2), (10, 5)], &[(10, 5), (10, 5)]] {
            assert!(Hold::restore(hold(pieces)).is_err(), "{pieces:?}");
        }
    }
}
