//! UDP flows.
//!
//! A flow is a pair of endpoints as the guest sees them. One that the guest opened has a connected host socket of
//! its own; those of clients of a published port share that port's socket. Flows end by time: 30 s, or 180 s once
//! both sides have sent more than once (RFC 4787 section 4.3 wants two minutes at least for the latter).

mod errors;
mod published;
mod receive;
mod state;
mod take_over;

use super::host_error::refuse;
use crate::config::Limits;
use crate::edge::{Close, Edge, GsoKind, SendOpts, SockError, SockId, Source, SourcePort, Token, TokenKind};
use crate::flow::{Index, Lru, Slab};
use crate::packet::Packet;
use crate::rng::{Key, Rng};
use crate::router::{Router, Via};
use crate::time::Time;
use crate::timers::Deadline;
use crate::tuple::{Endpoint, Tuple};
use crate::verdict::DropReason;
use core::net::IpAddr;
use core::time::Duration;
use published::Listener;
use serde::{Deserialize, Serialize};
pub use state::UdpState;
use std::collections::{HashMap, VecDeque};

/// How long a flow lives after its last datagram, until both sides have sent more than once.
const IDLE: Duration = Duration::from_secs(30);
/// And afterwards.
const IDLE_STREAM: Duration = Duration::from_secs(180);
/// Longer packets the host may fragment, whatever the guest says. Its kernel sets don't-fragment on all that its link carries,
/// which may be far more than any way out does; over an Ethernet link it would have fragmented these itself. Shorter ones
/// that do not fit the path are refused and reported, as path MTU discovery wants.
const ETHERNET_MTU: u32 = 1500;
/// Segments of a super-datagram, either way: Linux's UDP_MAX_SEGMENTS before 6.9.
const MAX_SEGMENTS: usize = 64;

/// All UDP flows.
#[derive(Debug)]
pub(crate) struct Udp {
    flows: Slab<Flow>,
    index: Index,
    /// Flows whose other side has not answered, the guest's and clients': the first to go when room is needed.
    unreplied: [Lru; 2],
    listeners: Vec<Listener>,
    /// Flows of published ports, by the client's endpoint, the listener and our address.
    clients: HashMap<(Endpoint, Client), u32, Key>,
    /// Flows of published ports, at most half of all, so that outsiders cannot use up the guest's.
    max_clients: usize,
    /// Sockets that had more to read than one turn takes.
    backlog: VecDeque<Token>,
}

#[derive(Debug)]
struct Flow {
    token: Token,
    /// Of the guest's datagrams, as translated: at a published port the source is the host's address.
    tuple: Tuple,
    /// How datagrams reach the guest.
    via: Via,
    /// The other side, as the host knows it.
    remote: Endpoint,
    sock: SockId,
    client: Option<Client>,
    /// Datagrams each way, as far as it matters: none, one, more.
    from_guest: u8,
    from_host: u8,
    /// Of the guest's last datagram; for quoting it.
    hop_limit: u8,
    tos: u8,
    deadline: Deadline,
    /// In the backlog.
    waits: bool,
}

/// Of a flow that a client of a published port opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Client {
    listener: u32,
    /// The address of ours that the client uses; answers leave from there.
    local: Option<IpAddr>,
}

/// Kinds of flows: opened by the guest, or by a client of a published port.
const GUEST: usize = 0;
const CLIENT: usize = 1;

impl Flow {
    fn new(token: Token, tuple: Tuple, remote: Endpoint, sock: SockId, via: Via, client: Option<Client>) -> Self {
        Flow {
            token,
            tuple,
            via,
            remote,
            sock,
            client,
            from_guest: 0,
            from_host: 0,
            hop_limit: 64,
            tos: 0,
            deadline: Deadline::default(),
            waits: false,
        }
    }

    fn kind(&self) -> usize {
        if self.client.is_some() { CLIENT } else { GUEST }
    }

    fn replied(&self) -> bool {
        match self.client {
            None => self.from_host > 0,
            Some(_) => self.from_guest > 0,
        }
    }
}

impl Udp {
    pub(crate) fn new(limits: &Limits, rng: &mut Rng) -> Self {
        Udp {
            flows: Slab::new(limits.udp_flows),
            index: Index::with_hasher(rng.key()),
            unreplied: Default::default(),
            listeners: Vec::new(),
            clients: HashMap::with_hasher(rng.key()),
            max_clients: (limits.udp_flows / 2).max(1) as usize,
            backlog: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether datagrams of this tuple belong to a flow that a client of a published port opened.
    pub(crate) fn knows(&self, tuple: &Tuple) -> bool {
        self.index.get(tuple).and_then(|&slot| self.flows.get(slot)).is_some_and(|f| f.client.is_some())
    }

    /// A datagram of the guest's, for `to` on the host's side unless it belongs to a flow already.
    pub(crate) fn forward<E: Edge>(
        &mut self,
        r: &mut Router,
        p: &Packet<'_>,
        to: IpAddr,
        edge: &mut E,
    ) -> Result<(), DropReason> {
        let tuple = p.tuple();
        let slot = match self.index.get(&tuple) {
            Some(&slot) => slot,
            None => self.open(r, p, to, edge)?,
        };
        let Some(flow) = self.flows.get_mut(slot) else { return Err(DropReason::FlowLimit) };
        flow.hop_limit = p.ip.hop_limit;
        flow.tos = p.ip.tos;
        flow.via.heard(r, p, flow.token);
        let (token, sock) = (flow.token, flow.sock);
        let opts = SendOpts {
            hop_limit: p.ip.hop_limit.saturating_sub(1).max(1),
            tos: p.ip.tos,
            segment: None,
            to: flow.client.map(|_| flow.remote),
            from: flow.client.and_then(|c| c.local),
            dont_fragment: p.ip.dont_fragment && packet_len(p) <= ETHERNET_MTU,
        };
        self.used(r, slot, true);
        // A datagram socket first returns the errors of earlier datagrams. They go to the guest as what they are,
        // and this datagram gets its turn.
        let mut again = true;
        loop {
            let e = match send(edge, sock, p, opts) {
                Ok(n) => {
                    r.stats.udp_to_host += n;
                    return Ok(());
                }
                Err(e) => e,
            };
            if self.reports(r, token, sock, edge) == 0 {
                return Err(refuse(r, p, e, edge));
            }
            // The report has told the guest already. What is too long will be too long again.
            if !again || matches!(e, SockError::TooBig(_)) {
                return Err(DropReason::HostRefused);
            }
            again = false;
        }
    }

    fn open<E: Edge>(&mut self, r: &mut Router, p: &Packet<'_>, to: IpAddr, edge: &mut E) -> Result<u32, DropReason> {
        let tuple = p.tuple();
        if tuple.dst.port == 0 {
            return Err(DropReason::Malformed);
        }
        let remote = Endpoint::new(to, tuple.dst.port);
        let demanded = r.source_for(p);
        let mut from = demanded;
        if from.port == SourcePort::Any && tuple.src.port != 0 {
            from.port = SourcePort::Wish(tuple.src.port);
        }
        let mut token = self.make_room(r, &[GUEST, CLIENT], edge)?;
        let mut sock = edge.udp_open(token, remote, from);
        // The host may have fewer sockets than we have flows.
        if sock == Err(SockError::NoResources)
            && let Some(oldest) = self.unreplied[GUEST].oldest()
        {
            self.close(r, oldest, edge);
            token = self.make_room(r, &[], edge)?;
            sock = edge.udp_open(token, remote, from);
        }
        if sock == Err(SockError::NotAvailable) && demanded != Source::ANY {
            return Err(r.source_refused(p));
        }
        let sock = sock.map_err(|e| refuse(r, p, e, edge))?;
        self.insert(r, Flow::new(token, tuple, remote, sock, Via::opened_by(r, p), None))
    }

    /// Makes sure that a flow fits, at the cost of unreplied ones of these kinds, and returns the token that it will have.
    fn make_room<E: Edge>(&mut self, r: &mut Router, kinds: &[usize], edge: &mut E) -> Result<Token, DropReason> {
        if self.flows.is_full() {
            let oldest = kinds.iter().find_map(|&k| self.unreplied[k].oldest()).ok_or(DropReason::FlowLimit)?;
            self.close(r, oldest, edge);
        }
        let (index, generation) = self.flows.next().ok_or(DropReason::FlowLimit)?;
        Ok(Token::new(TokenKind::Udp, index, generation))
    }

    /// Adds the flow whose token [`Udp::make_room`] returned.
    fn insert(&mut self, r: &mut Router, flow: Flow) -> Result<u32, DropReason> {
        let (tuple, key) = (flow.tuple, flow.client.map(|c| (flow.remote, c)));
        let slot = self.flows.insert(|_, _| flow).ok_or(DropReason::FlowLimit)?;
        self.index.insert(tuple, slot);
        if let Some(key) = key {
            self.clients.insert(key, slot);
        }
        r.stats.udp_flows += 1;
        Ok(slot)
    }

    /// A datagram passed: the flow lives on.
    fn used(&mut self, r: &mut Router, slot: u32, from_guest: bool) {
        let Some(flow) = self.flows.get_mut(slot) else { return };
        r.moved = r.now;
        let count = if from_guest { &mut flow.from_guest } else { &mut flow.from_host };
        *count = count.saturating_add(1);
        let idle = if flow.from_guest > 1 && flow.from_host > 1 { IDLE_STREAM } else { IDLE };
        let due = r.now + idle;
        let unreplied = &mut self.unreplied[flow.kind()];
        match flow.replied() {
            false => unreplied.touch(slot),
            true => unreplied.remove(slot),
        }
        r.timers.set(&mut flow.deadline, flow.token, due);
    }

    fn close<E: Edge>(&mut self, r: &mut Router, slot: u32, edge: &mut E) {
        let Some(mut flow) = self.flows.remove(slot) else { return };
        r.timers.cancel(&mut flow.deadline);
        self.index.remove(&flow.tuple);
        self.unreplied[flow.kind()].remove(slot);
        match flow.client {
            Some(c) => {
                self.clients.remove(&(flow.remote, c));
            }
            None => edge.close(flow.sock, Close::Graceful),
        }
        flow.via.leave(r);
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
        if !r.timers.fired(&mut flow.deadline, token, queued, r.now) {
            return;
        }
        // A tracked flow lives as long as its connection.
        match flow.via.conn.and_then(|id| r.netfilter.expires(id)) {
            Some(due) if due > r.now => r.timers.set(&mut flow.deadline, token, due),
            _ => self.close(r, token.index(), edge),
        }
    }
}

/// Size of the datagrams in a super-datagram, if it is one.
fn segment_size(p: &Packet<'_>) -> Option<u16> {
    p.gso.filter(|g| g.kind == GsoKind::Udp && g.size > 0 && usize::from(g.size) < p.payload.len()).map(|g| g.size)
}

/// Length of the packet; of each packet in a super-datagram.
fn packet_len(p: &Packet<'_>) -> u32 {
    let beyond = segment_size(p).map_or(0, |size| p.payload.len() as u32 - u32::from(size));
    p.ip.total_len.saturating_sub(beyond)
}

/// Hands a packet's datagrams to the host; returns their number.
fn send<E: Edge>(edge: &mut E, sock: SockId, p: &Packet<'_>, mut opts: SendOpts) -> Result<u64, SockError> {
    let Some(size) = segment_size(p) else {
        return edge.udp_send(sock, p.payload, &opts).map(|()| 1);
    };
    let (step, mut at) = (usize::from(size) * MAX_SEGMENTS, 0);
    while at < p.payload.len() {
        let part = p.payload.slice(at, step);
        opts.segment = (part.len() > usize::from(size)).then_some(size);
        edge.udp_send(sock, part, &opts)?;
        at += step;
    }
    Ok(p.payload.len().div_ceil(usize::from(size)) as u64)
}
