//! TCP flows: guest segments on one side, host sockets on the other.
//!
//! There is no TCP implementation here but half of one: towards the guest we are a TCP endpoint; the other half is the
//! host kernel's. What the host received stays in its socket until the guest acknowledged it, so the kernel is our
//! retransmission queue. `flow` describes the states, `input` what a guest's segment does, `output` what is sent to
//! the guest, `host` what events at the socket do, `timer` what the passing of time does.

mod flow;
mod hold;
mod host;
mod input;
mod isn;
mod output;
mod rtt;
mod state;
mod take_over;
mod timer;
mod wake;

use crate::config::Limits;
use crate::edge::{Close, Edge, LinkId, Ready, SockError, SockId, Source, Token, TokenKind};
use crate::flow::{Index, Slab};
use crate::packet::{L4, Packet};
use crate::rng::Rng;
use crate::router::{Bare, Router, Via};
use crate::time::Time;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::icmp::IcmpError;
use crate::wire::tcp::{self, Flags, Seq};
use core::net::IpAddr;
use core::time::Duration;
use flow::{Events, Flow};
use hold::Hold;
use isn::Isn;
pub use state::{TcpStage, TcpState};
use std::collections::VecDeque;
use wake::Quoted;

/// Scale of the windows that we offer: up to 8 MiB.
const WINDOW_SCALE: u8 = 7;
/// RFC 7323 section 2.3: a larger scale is taken as this.
const MAX_WINDOW_SCALE: u8 = 14;
/// Linux's TCP_MIN_MSS less options: smaller offers are taken as this.
const MIN_MSS: u16 = 48;
/// Flows that try again at a time when a link takes frames.
const WAKE: usize = 16;
/// Memory that is kept for gathering: for so many flows that send in one batch, of so many bytes each.
const SPARE_HOLDS: usize = 8;
const SPARE_CAPACITY: usize = 128 << 10;
/// How long a connect may take (longer than the host's own limit).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(240);

/// All TCP flows.
#[derive(Debug)]
pub(crate) struct Tcp {
    flows: Slab<Flow>,
    index: Index,
    shared: Shared,
    /// Flows being settled; kept for its memory.
    settling: Vec<u32>,
}

/// What flows share.
#[derive(Debug)]
struct Shared {
    limits: Limits,
    isn: Isn,
    /// Flows to be settled at the end of the batch.
    unsettled: Vec<u32>,
    /// The flow that is settled is the only one.
    alone: bool,
    /// Flows that a link has refused a frame of, in this order; and others that have ended.
    waiting: VecDeque<u32>,
    /// Flows that are not established.
    half_open: u32,
    /// Bytes held for all flows.
    held: u64,
    /// Empty ones, for their memory.
    #[expect(clippy::vec_box, reason = "flows have them in boxes, and would allocate one for each batch")]
    spare: Vec<Box<Hold>>,
}

impl Shared {
    /// Keeps the memory of a hold that is empty, unless there is enough of it.
    fn keep_spare(&mut self, mut empty: Box<Hold>) {
        empty.fin = None;
        if self.spare.len() < SPARE_HOLDS && empty.queue.capacity() <= SPARE_CAPACITY {
            self.spare.push(empty);
        }
    }
}

/// What a flow needs from around it.
struct Cx<'a, E> {
    r: &'a mut Router,
    edge: &'a mut E,
    shared: &'a mut Shared,
}

/// What becomes of a flow after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It lives on.
    Keep,
    /// It is over, in good order.
    Finished,
    /// The guest reset it or is gone: the peer gets RST.
    ResetHost,
    /// The peer reset it or is gone: the guest gets RST.
    ResetGuest,
    /// Both get RST.
    ResetBoth,
    /// The connect failed; the guest is told why.
    ConnectFailed(SockError),
}

impl Tcp {
    pub(crate) fn new(limits: &Limits, rng: &mut Rng) -> Self {
        Tcp {
            flows: Slab::new(limits.tcp_flows),
            index: Index::with_hasher(rng.key()),
            shared: Shared {
                limits: *limits,
                isn: Isn::new(rng),
                unsettled: Vec::new(),
                alone: false,
                waiting: VecDeque::new(),
                half_open: 0,
                held: 0,
                spare: Vec::with_capacity(SPARE_HOLDS),
            },
            settling: Vec::new(),
        }
    }

    /// Number of flows.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether a flow that was opened from outside has this tuple of packets from the guest.
    pub(crate) fn knows(&self, tuple: &Tuple) -> bool {
        self.index.get(tuple).and_then(|&i| self.flows.get(i)).is_some_and(|f| f.events.has(Events::INBOUND))
    }

    /// A segment from the guest; a new flow leads to the host-side address `to`.
    pub(crate) fn forward<E: Edge>(
        &mut self,
        r: &mut Router,
        p: &Packet<'_>,
        to: IpAddr,
        edge: &mut E,
    ) -> Result<(), DropReason> {
        let L4::Tcp(h, options) = &p.l4 else { return Err(DropReason::Malformed) };
        let tuple = p.tuple();
        let Some(&index) = self.index.get(&tuple) else {
            if h.flags.0 & (Flags::SYN | Flags::ACK | Flags::RST | Flags::FIN).0 == Flags::SYN.0 {
                return self.open(r, p, h, options, to, edge);
            }
            self.refuse(r, p, edge);
            return Err(DropReason::TcpUnacceptable);
        };
        let Some(flow) = self.flows.get_mut(index) else { return Err(DropReason::TcpUnacceptable) };
        flow.via.heard(r, p, flow.token);
        let mut cx = Cx { r, edge, shared: &mut self.shared };
        let done = flow.segment(&mut cx, p, h, options);
        let (fate, why) = match done {
            Ok(fate) => (fate, Ok(())),
            Err(why) => (Fate::Keep, Err(why)),
        };
        cx.settle_later(flow);
        self.end(index, fate, r, edge);
        why
    }

    /// Answers a segment that belongs to no flow with RST, unless it is one itself (RFC 9293 section 3.10.7.1).
    pub(crate) fn refuse<E: Edge>(&mut self, r: &mut Router, p: &Packet<'_>, edge: &mut E) {
        let L4::Tcp(h, _) = &p.l4 else { return };
        let via = Via::opened_by(r, p);
        if let Some(reset) = Bare::reset_for(p.tuple(), h, p.payload.len, p.ip.tos) {
            reset.send(r, edge, via.input, via.attach());
        }
    }

    /// The guest opens a connection.
    fn open<E: Edge>(
        &mut self,
        r: &mut Router,
        p: &Packet<'_>,
        h: &tcp::Header,
        options: &tcp::Options,
        to: IpAddr,
        edge: &mut E,
    ) -> Result<(), DropReason> {
        let tuple = p.tuple();
        if self.shared.half_open >= self.shared.limits.tcp_half_open {
            // Not refused: the guest sends its SYN again, and connects in progress end.
            return Err(DropReason::FlowLimit);
        }
        if self.flows.is_full() {
            self.refuse(r, p, edge);
            return Err(DropReason::FlowLimit);
        }
        let iss = self.shared.isn.generate(&tuple, r.now);
        let (now, via) = (r.now, Via::opened_by(r, p));
        let index = self.flows.insert(|i, g| Flow::new(Token::new(TokenKind::Tcp, i, g), tuple, SockId(0), via, iss, now));
        let Some((index, flow)) = index.and_then(|i| Some((i, self.flows.get_mut(i)?))) else {
            return Err(DropReason::FlowLimit);
        };
        let from = r.source_for(p);
        match edge.tcp_connect(flow.token, Endpoint::new(to, tuple.dst.port), from) {
            Ok(sock) => flow.sock = sock,
            Err(SockError::NotAvailable) if from != Source::ANY => {
                self.flows.remove(index);
                return Err(r.source_refused(p));
            }
            Err(e) => {
                flow.rcv_irs = h.seq;
                report_connect_failure(r, edge, flow, e);
                self.flows.remove(index);
                r.stats.tcp_connect_failed += 1;
                return Err(if e == SockError::NoResources { DropReason::HostResources } else { DropReason::HostRefused });
            }
        }
        flow.rcv_irs = h.seq;
        flow.rcv_nxt = h.seq + 1;
        flow.rcv_acked = flow.rcv_nxt;
        flow.rcv_edge = flow.rcv_nxt;
        flow.rcv_promised = flow.rcv_nxt;
        flow.snd_wnd = u32::from(h.window);
        flow.snd_wl1 = h.seq;
        flow.take_syn_options(r, options);
        flow.alive_at = now + CONNECT_TIMEOUT;
        flow.events.add(Events::HALF_OPEN);
        self.shared.half_open += 1;
        r.stats.tcp_out += 1;
        r.moved = r.now;
        let due = flow.due();
        r.timers.set(&mut flow.deadline, flow.token, due);
        flow.via.heard(r, p, flow.token);
        self.index.insert(tuple, index);
        Ok(())
    }

    /// A client connected to a published port: a SYN from its address to the one that it connected to comes in at `host0`, or is
    /// sent by us where the client is on the host itself, and rules lead it to the guest. One that they do not is reset.
    pub(crate) fn accepted<E: Edge>(&mut self, r: &mut Router, sock: SockId, peer: Endpoint, local: Endpoint, edge: &mut E) {
        let tuple = Tuple { src: local, dst: peer, proto: proto::TCP };
        // Since the host's kernel gave these ends out again, a flow that has them is dead.
        if let Some(&old) = self.index.get(&tuple) {
            self.end(old, Fate::ResetBoth, r, edge);
        }
        let iss = self.shared.isn.generate(&tuple, r.now);
        let (now, via) = (r.now, Via::from_outside(r.hides(peer.addr)));
        let limit = self.shared.half_open >= self.shared.limits.tcp_half_open;
        let index = if limit {
            None
        } else {
            self.flows.insert(|i, g| Flow::new(Token::new(TokenKind::Tcp, i, g), tuple, sock, via, iss, now))
        };
        let Some((index, flow)) = index.and_then(|i| Some((i, self.flows.get_mut(i)?))) else {
            r.drop(DropReason::FlowLimit);
            edge.close(sock, Close::Reset);
            return;
        };
        flow.events.add(Events::INBOUND);
        flow.events.add(Events::CONNECTED);
        flow.events.add(Events::HALF_OPEN);
        self.shared.half_open += 1;
        self.index.insert(tuple, index);
        r.stats.tcp_in += 1;
        r.moved = r.now;
        let mut fate = Fate::Keep;
        if edge.tcp_adopt(sock, flow.token).is_err() {
            r.drop(DropReason::HostResources);
            fate = Fate::ResetHost;
        } else {
            let mut cx = Cx { r, edge, shared: &mut self.shared };
            if flow.send_syn(&mut cx).is_err_and(|why| !is_passing(why)) {
                fate = Fate::ResetHost;
            }
            let due = flow.due();
            r.timers.set(&mut flow.deadline, flow.token, due);
        }
        self.end(index, fate, r, edge);
    }

    /// Something happened at a flow's socket.
    pub(crate) fn socket_ready<E: Edge>(&mut self, r: &mut Router, token: Token, ready: Ready, edge: &mut E) {
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else { return };
        let mut cx = Cx { r, edge, shared: &mut self.shared };
        let fate = flow.host_ready(&mut cx, ready);
        cx.settle_later(flow);
        self.end(token.index(), fate, r, edge);
    }

    /// A deadline came up.
    pub(crate) fn timer<E: Edge>(&mut self, r: &mut Router, token: Token, queued: Time, edge: &mut E) {
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else { return };
        let now = r.now;
        if !r.timers.fired(&mut flow.deadline, token, queued, now) {
            return;
        }
        let mut cx = Cx { r, edge, shared: &mut self.shared };
        let fate = flow.expired(&mut cx);
        cx.settle_later(flow);
        self.end(token.index(), fate, r, edge);
    }

    /// A link takes frames again: some of the flows that wait for it try again, those first that have waited longest. Whether there were any.
    pub(crate) fn link_has_room<E: Edge>(&mut self, r: &mut Router, link: LinkId, edge: &mut E) -> bool {
        let mut woken = 0;
        for _ in 0..self.shared.waiting.len() {
            if woken == WAKE {
                break;
            }
            let Some(index) = self.shared.waiting.pop_front() else { break };
            let Some(flow) = self.flows.get_mut(index).filter(|f| f.events.has(Events::LISTED)) else { continue };
            if flow.via.link != link {
                self.shared.waiting.push_back(index);
                continue;
            }
            flow.events.clear(Events::LISTED);
            if !flow.events.has(Events::LINK_FULL) {
                continue;
            }
            woken += 1;
            flow.resend_at = r.now;
            let mut cx = Cx { r, edge, shared: &mut self.shared };
            let fate = flow.expired(&mut cx);
            cx.settle_later(flow);
            self.end(index, fate, r, edge);
        }
        woken > 0
    }

    /// Whether flows wait for a link to take frames.
    pub(crate) fn waits_for_link(&self) -> bool {
        !self.shared.waiting.is_empty()
    }

    /// The end of a batch: flows send what they have to. Returns whether some want to go on at once.
    pub(crate) fn flush<E: Edge>(&mut self, r: &mut Router, edge: &mut E) -> bool {
        let mut settling = core::mem::take(&mut self.settling);
        core::mem::swap(&mut settling, &mut self.shared.unsettled);
        self.shared.alone = settling.len() == 1;
        // Connections that end come last: somebody waits for what the others have to send.
        for ending in [false, true] {
            for &index in &settling {
                let Some(flow) = self.flows.get_mut(index) else { continue };
                if flow.events.has(Events::FIN_FROM_GUEST) != ending || !flow.events.clear(Events::UNSETTLED) {
                    continue;
                }
                let mut cx = Cx { r, edge, shared: &mut self.shared };
                let fate = flow.settle(&mut cx);
                if fate == Fate::Keep {
                    let due = flow.due();
                    r.timers.set(&mut flow.deadline, flow.token, due);
                } else {
                    self.end(index, fate, r, edge);
                }
            }
        }
        settling.clear();
        self.settling = settling;
        !self.shared.unsettled.is_empty()
    }

    /// Ends a flow with resets to both sides.
    pub(crate) fn reset<E: Edge>(&mut self, r: &mut Router, token: Token, edge: &mut E) {
        if self.flows.get_live(token.index(), token.generation()).is_some() {
            self.end(token.index(), Fate::ResetBoth, r, edge);
        }
    }

    /// Ends a flow of which we know less than the guest, so that a reset of ours would not be in its window. A segment that is older than any
    /// has it say where it stands, and that is answered with the reset of a connection that nobody knows (RFC 9293 section 3.10.7.4).
    pub(crate) fn forget<E: Edge>(&mut self, r: &mut Router, token: Token, edge: &mut E) {
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else { return };
        if !flow.events.has(Events::ESTABLISHED) {
            return self.reset(r, token, edge);
        }
        let (via, tuple, seq, ack) = (flow.via, flow.tuple.reversed(), flow.snd_una - 1, flow.rcv_nxt);
        self.end(token.index(), Fate::ResetHost, r, edge);
        send_bare(r, edge, &via, tuple, seq, ack, Flags::ACK);
    }

    /// All flows, and how their segments reach the guest.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (Token, Via)> {
        self.flows.iter().map(|(_, f)| (f.token, f.via))
    }

    /// Tracks the flows that are not.
    pub(crate) fn adopt(&mut self, r: &mut Router) {
        for (_, flow) in self.flows.iter_mut() {
            if flow.via.conn.is_none() {
                let conn = r.adopt(&flow.tuple, &flow.via);
                flow.via.sent(r, conn, flow.token);
            }
        }
    }

    /// Carries out a flow's fate.
    fn end<E: Edge>(&mut self, index: u32, fate: Fate, r: &mut Router, edge: &mut E) {
        if fate == Fate::Keep {
            return;
        }
        let Some(mut flow) = self.flows.remove(index) else { return };
        r.timers.cancel(&mut flow.deadline);
        if flow.events.has(Events::GATHERED) {
            // The peer gets what came before the reset.
            flow.send_held(&mut Cx { r, edge, shared: &mut self.shared });
        }
        self.index.remove(&flow.tuple);
        if flow.events.clear(Events::HALF_OPEN) {
            self.shared.half_open -= 1;
        }
        self.shared.held -= u64::from(flow.counted);
        if matches!(fate, Fate::ResetGuest | Fate::ResetBoth) {
            flow.send_reset(r, edge);
        }
        if let Fate::ConnectFailed(e) = fate {
            report_connect_failure(r, edge, &flow, e);
            r.stats.tcp_connect_failed += 1;
        }
        if fate != Fate::Finished {
            r.stats.tcp_reset += 1;
        } else if flow.unconsumed > 0 {
            // A kernel that finds unread data at close sends RST.
            let _ = edge.tcp_consume(flow.sock, flow.unconsumed);
        }
        edge.close(flow.sock, if fate == Fate::Finished { Close::Graceful } else { Close::Reset });
        flow.via.leave(r);
    }
}

impl<E> Cx<'_, E> {
    /// Puts a flow into the list of those to be settled at the end of the batch.
    fn settle_later(&mut self, flow: &mut Flow) {
        if !flow.events.has(Events::UNSETTLED) {
            flow.events.add(Events::UNSETTLED);
            self.shared.unsettled.push(flow.token.index());
        }
    }

    /// Puts a flow into the list of those that try again when a link takes frames.
    fn wait_for_link(&mut self, flow: &mut Flow) {
        if !flow.events.has(Events::LISTED) {
            flow.events.add(Events::LISTED);
            // A link that never tells leaves them there, also those that have ended: more would only be more of those.
            if self.shared.waiting.len() >= 2 * self.shared.limits.tcp_flows as usize {
                self.shared.waiting.pop_front();
            }
            self.shared.waiting.push_back(flow.token.index());
        }
    }
}

/// Sends a segment without data or options.
fn send_bare<E: Edge>(r: &mut Router, edge: &mut E, via: &Via, tuple: Tuple, seq: Seq, ack: Seq, flags: Flags) {
    Bare { tuple, seq, ack, flags, tos: 0 }.send(r, edge, via.input, via.attach());
}

/// Tells the guest why its connect failed: RST where the peer refused, else the ICMP error that fits.
fn report_connect_failure<E: Edge>(r: &mut Router, edge: &mut E, flow: &Flow, e: SockError) {
    let error = match e {
        SockError::NetUnreachable | SockError::NotAvailable => IcmpError::NetUnreachable,
        SockError::HostUnreachable | SockError::TimedOut => IcmpError::HostUnreachable,
        SockError::Prohibited => IcmpError::Prohibited,
        _ => {
            send_bare(r, edge, &flow.via, flow.tuple.reversed(), Seq(0), flow.rcv_irs + 1, Flags::RST | Flags::ACK);
            return;
        }
    };
    let Some(from) = r.addrs().gateway_on(flow.via.link, flow.tuple.src.addr.is_ipv6()) else { return };
    let Some(syn) = Quoted::new(flow, flow.rcv_irs, Flags::SYN) else { return };
    let quote = error.quote(flow.tuple.src.addr.is_ipv6());
    r.send_icmp_error(edge, None, from, flow.tuple.src.addr, quote, syn.bytes());
}

/// Whether what kept a segment from the guest will be over in a moment.
fn is_passing(why: DropReason) -> bool {
    matches!(why, DropReason::LinkFull | DropReason::LinkDown | DropReason::Unresolved | DropReason::HostResources)
}
