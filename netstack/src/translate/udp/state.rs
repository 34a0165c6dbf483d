//! UDP flows as they are saved.

use super::published::{Listener, MAX_USED};
use super::{CLIENT, Client, Flow, GUEST, Udp};
use crate::edge::{SockId, Token, TokenKind};
use crate::flow::{Lru, Slab, SlabState};
use crate::router::{Router, Via};
use crate::state::{FlowInfo, Invalid, invalid};
use crate::time::Time;
use crate::tuple::{Endpoint, Tuple, proto};
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// All UDP flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpState {
    flows: SlabState<FlowState>,
    unreplied: [Vec<u32>; 2],
    listeners: Vec<ListenerState>,
    backlog: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FlowState {
    tuple: Tuple,
    via: Via,
    remote: Endpoint,
    sock: SockId,
    client: Option<Client>,
    from_guest: u8,
    from_host: u8,
    hop_limit: u8,
    tos: u8,
    due: Time,
    waits: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ListenerState {
    sock: SockId,
    local: Endpoint,
    used: Vec<Option<IpAddr>>,
    waits: bool,
}

impl Flow {
    fn save(&self) -> FlowState {
        FlowState {
            tuple: self.tuple,
            via: self.via,
            remote: self.remote,
            sock: self.sock,
            client: self.client,
            from_guest: self.from_guest,
            from_host: self.from_host,
            hop_limit: self.hop_limit,
            tos: self.tos,
            due: self.deadline.due(),
            waits: self.waits,
        }
    }

    fn restore(s: FlowState, token: Token) -> Result<Self, Invalid> {
        let families = [s.tuple.src.addr, s.tuple.dst.addr].map(|a| a.is_ipv4());
        if s.tuple.proto != proto::UDP || families[0] != families[1] {
            return Err(invalid("a UDP flow between addresses that cannot be"));
        }
        Ok(Flow {
            from_guest: s.from_guest,
            from_host: s.from_host,
            hop_limit: s.hop_limit,
            tos: s.tos,
            waits: s.waits,
            ..Flow::new(token, s.tuple, s.remote, s.sock, s.via, s.client)
        })
    }
}

impl Udp {
    /// The flows as they stand between two calls into the stack.
    pub(crate) fn save(&self) -> UdpState {
        UdpState {
            flows: self.flows.save(Flow::save),
            unreplied: [self.unreplied[GUEST].save(), self.unreplied[CLIENT].save()],
            listeners: self
                .listeners
                .iter()
                .map(|l| ListenerState { sock: l.sock, local: l.local, used: l.used.clone(), waits: l.waits })
                .collect(),
            backlog: self.backlog.iter().copied().filter(|&t| self.is_waiting(t)).collect(),
        }
    }

    /// Puts saved flows into place of none.
    pub(crate) fn restore(&mut self, state: UdpState, max: u32, r: &mut Router) -> Result<(), Invalid> {
        let due: Vec<_> = state.flows.values().map(|(i, s)| (i, s.due)).collect();
        let listeners = state.listeners.len() as u32;
        let make = |i, g, s: FlowState| {
            r.check_via(&s.via)?;
            match s.client {
                Some(c) if c.listener >= listeners => Err(invalid("a client of a published port that is not there")),
                _ => Flow::restore(s, Token::new(TokenKind::Udp, i, g)),
            }
        };
        self.flows = Slab::restore(state.flows, max, make)?;
        for (i, due) in due {
            let Some(flow) = self.flows.get_mut(i) else { continue };
            let doubled = flow.client.is_some_and(|c| self.clients.insert((flow.remote, c), i).is_some());
            if self.index.insert(flow.tuple, i).is_some() || doubled {
                return Err(invalid("two UDP flows with one tuple"));
            }
            flow.via.resume(r, flow.token);
            r.timers.set(&mut flow.deadline, flow.token, due);
        }
        if self.clients.len() > self.max_clients {
            return Err(invalid("more clients of published ports than there may be"));
        }
        for (kind, slots) in state.unreplied.iter().enumerate() {
            let flows = &self.flows;
            let belongs = |slot| flows.get(slot).is_some_and(|f| f.kind() == kind && !f.replied());
            self.unreplied[kind] = Lru::restore(slots, belongs)?;
        }
        for l in state.listeners {
            if l.used.len() > MAX_USED {
                return Err(invalid("more addresses of a published port than are remembered"));
            }
            self.listeners.push(Listener { sock: l.sock, local: l.local, used: l.used, waits: l.waits });
        }
        for token in state.backlog {
            if !self.is_waiting(token) || self.backlog.contains(&token) {
                return Err(invalid("a UDP socket that is to be read and does not wait"));
            }
            self.backlog.push_back(token);
        }
        let waiting = self.flows.iter().filter(|(_, f)| f.waits).count() + self.listeners.iter().filter(|l| l.waits).count();
        if waiting != self.backlog.len() {
            return Err(invalid("a UDP socket that waits to be read and is not listed"));
        }
        Ok(())
    }

    fn is_waiting(&self, token: Token) -> bool {
        match token.kind() {
            TokenKind::UdpListener => self.listeners.get(token.index() as usize).is_some_and(|l| l.waits),
            _ => self.flows.get(token.index()).is_some_and(|f| f.token == token && f.waits),
        }
    }

    /// What there is to tell of each flow.
    pub(crate) fn list(&self) -> impl Iterator<Item = FlowInfo> {
        self.flows.iter().map(|(_, f)| FlowInfo {
            token: f.token,
            sock: f.sock,
            tuple: f.tuple,
            inbound: f.client.is_some(),
            shared_socket: f.client.is_some(),
            tcp: None,
        })
    }

    /// Sockets of published ports, with what they are bound to.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (Token, SockId, Endpoint)> {
        (0..).zip(&self.listeners).map(|(i, l)| (Token::new(TokenKind::UdpListener, i, 0), l.sock, l.local))
    }

    /// Gives a published port another socket.
    pub(crate) fn set_listener(&mut self, token: Token, sock: SockId) {
        let Some(l) = self.listeners.get_mut(token.index() as usize) else { return };
        l.sock = sock;
        for (_, flow) in self.flows.iter_mut().filter(|(_, f)| f.client.is_some_and(|c| c.listener == token.index())) {
            flow.sock = sock;
        }
    }
}
