//! ICMP echo flows: the guest pings, over ping sockets of the host.
//!
//! A flow is a guest address, an identifier and a destination. The host gives the socket an identifier of its own,
//! so the guest's is put back into everything that returns.

mod receive;
mod state;

use super::host_error::refuse;
use crate::config::Limits;
use crate::edge::{Close, Edge, Ready, SendOpts, SockError, SockId, Token, TokenKind};
use crate::flow::{Index, Lru, Slab};
use crate::packet::{L4, Packet};
use crate::rng::Rng;
use crate::router::{Router, Via};
use crate::time::Time;
use crate::timers::Deadline;
use crate::tuple::Tuple;
use crate::verdict::DropReason;
use crate::wire::icmp::{v4, v6};
use core::net::IpAddr;
use core::time::Duration;
pub use state::IcmpState;
use std::collections::VecDeque;

/// How long a flow lives after its last message. RFC 5508 section 3.2 wants 60 s at least.
const IDLE: Duration = Duration::from_secs(60);

/// All ICMP echo flows.
#[derive(Debug)]
pub(crate) struct Icmp {
    flows: Slab<Flow>,
    index: Index,
    /// Flows that were never answered: the first to go when room is needed.
    unreplied: Lru,
    /// Sockets that had more to read than one turn takes.
    backlog: VecDeque<Token>,
}

#[derive(Debug)]
struct Flow {
    token: Token,
    /// Of the guest's requests, as translated; the source port is the identifier.
    tuple: Tuple,
    /// How replies reach the guest.
    via: Via,
    /// The destination, as the host knows it.
    remote: IpAddr,
    sock: SockId,
    /// Of the guest's last request; for quoting it.
    hop_limit: u8,
    tos: u8,
    seq: u16,
    replied: bool,
    deadline: Deadline,
    /// In the backlog.
    waits: bool,
}

impl Icmp {
    pub(crate) fn new(limits: &Limits, rng: &mut Rng) -> Self {
        Icmp {
            flows: Slab::new(limits.icmp_flows),
            index: Index::with_hasher(rng.key()),
            unreplied: Lru::default(),
            backlog: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// An ICMP message of the guest's, for `to` on the host's side.
    pub(crate) fn forward<E: Edge>(
        &mut self,
        r: &mut Router,
        p: &Packet<'_>,
        to: IpAddr,
        edge: &mut E,
    ) -> Result<(), DropReason> {
        let h = match p.l4 {
            L4::Icmp(h) if h.ty == v4::ECHO_REQUEST && h.code == 0 => h,
            L4::Icmpv6(h) if h.ty == v6::ECHO_REQUEST && h.code == 0 => h,
            _ => return Err(DropReason::IcmpUnhandled),
        };
        let slot = match self.index.get(&p.tuple()) {
            Some(&slot) => slot,
            None => self.open(r, p, to, edge)?,
        };
        let Some(flow) = self.flows.get_mut(slot) else { return Err(DropReason::FlowLimit) };
        flow.hop_limit = p.ip.hop_limit;
        flow.tos = p.ip.tos;
        flow.seq = h.seq();
        flow.via.heard(r, p, flow.token);
        let (token, sock) = (flow.token, flow.sock);
        if !flow.replied {
            self.unreplied.touch(slot);
        }
        r.moved = r.now;
        r.timers.set(&mut flow.deadline, token, r.now + IDLE);
        let opts = SendOpts {
            hop_limit: p.ip.hop_limit.saturating_sub(1).max(1),
            tos: p.ip.tos,
            segment: None,
            to: None,
            from: None,
            dont_fragment: p.ip.dont_fragment,
        };
        // As with UDP: the errors of earlier requests come first.
        let mut again = true;
        while let Err(e) = edge.ping_send(sock, h.seq(), p.payload, &opts) {
            if self.reports(r, token, sock, edge) == 0 {
                return Err(refuse(r, p, e, edge));
            }
            // The report has told the guest already. What is too long will be too long again.
            if !again || matches!(e, SockError::TooBig(_)) {
                return Err(DropReason::HostRefused);
            }
            again = false;
        }
        Ok(())
    }

    fn open<E: Edge>(&mut self, r: &mut Router, p: &Packet<'_>, to: IpAddr, edge: &mut E) -> Result<u32, DropReason> {
        if self.flows.is_full() {
            let oldest = self.unreplied.oldest().ok_or(DropReason::FlowLimit)?;
            self.close(r, oldest, edge);
        }
        let tuple = p.tuple();
        let (index, generation) = self.flows.next().ok_or(DropReason::FlowLimit)?;
        let token = Token::new(TokenKind::Icmp, index, generation);
        let from = r.source_for(p).addr;
        let sock = match edge.ping_open(token, to, tuple.src.port, from) {
            Err(SockError::NotAvailable) if from.is_some() => return Err(r.source_refused(p)),
            opened => opened.map_err(|e| refuse(r, p, e, edge))?,
        };
        let make = |_, _| Flow {
            token,
            tuple,
            via: Via::opened_by(r, p),
            remote: to,
            sock,
            hop_limit: p.ip.hop_limit,
            tos: p.ip.tos,
            seq: 0,
            replied: false,
            deadline: Deadline::default(),
            waits: false,
        };
        let slot = self.flows.insert(make).ok_or(DropReason::FlowLimit)?;
        self.index.insert(tuple, slot);
        r.stats.icmp_flows += 1;
        Ok(slot)
    }

    fn close<E: Edge>(&mut self, r: &mut Router, slot: u32, edge: &mut E) {
        let Some(mut flow) = self.flows.remove(slot) else { return };
        r.timers.cancel(&mut flow.deadline);
        self.index.remove(&flow.tuple);
        self.unreplied.remove(slot);
        edge.close(flow.sock, Close::Graceful);
        flow.via.leave(r);
    }

    /// An event at a flow's socket.
    pub(crate) fn socket_ready<E: Edge>(&mut self, r: &mut Router, token: Token, ready: Ready, edge: &mut E) {
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else { return };
        if (ready.readable || ready.error) && !flow.waits && self.serve(r, token, edge) {
            self.queue(token);
        }
    }

    /// Goes on where a turn ended. Returns whether there is still more.
    pub(crate) fn flush<E: Edge>(&mut self, r: &mut Router, edge: &mut E) -> bool {
        for _ in 0..self.backlog.len().min(receive::TURNS) {
            let Some(token) = self.backlog.pop_front() else { break };
            if self.serve(r, token, edge) {
                self.queue(token);
            } else if let Some(flow) = self.flows.get_live(token.index(), token.generation()) {
                flow.waits = false;
            }
        }
        !self.backlog.is_empty()
    }

    fn queue(&mut self, token: Token) {
        if let Some(flow) = self.flows.get_live(token.index(), token.generation()) {
            flow.waits = true;
            self.backlog.push_back(token);
        }
    }

    /// Ends a flow.
    pub(crate) fn reset<E: Edge>(&mut self, r: &mut Router, token: Token, edge: &mut E) {
        if self.flows.get_live(token.index(), token.generation()).is_some() {
            self.close(r, token.index(), edge);
        }
    }

    /// All flows, and how their packets reach the guest.
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

    /// A flow's time may be over.
    pub(crate) fn timer<E: Edge>(&mut self, r: &mut Router, token: Token, queued: Time, edge: &mut E) {
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else { return };
        if r.timers.fired(&mut flow.deadline, token, queued, r.now) {
            self.close(r, token.index(), edge);
        }
    }
}
