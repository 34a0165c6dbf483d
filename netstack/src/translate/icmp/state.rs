//! Echo flows as they are saved.

use super::{Flow, Icmp};
use crate::edge::{SockId, Token, TokenKind};
use crate::flow::{Lru, Slab, SlabState};
use crate::router::{Router, Via};
use crate::state::{FlowInfo, Invalid, invalid};
use crate::time::Time;
use crate::timers::Deadline;
use crate::tuple::{Tuple, proto};
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// All echo flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpState {
    flows: SlabState<FlowState>,
    unreplied: Vec<u32>,
    backlog: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FlowState {
    tuple: Tuple,
    via: Via,
    remote: IpAddr,
    sock: SockId,
    hop_limit: u8,
    tos: u8,
    seq: u16,
    replied: bool,
    due: Time,
    waits: bool,
}

impl Flow {
    fn save(&self) -> FlowState {
        FlowState {
            tuple: self.tuple,
            via: self.via,
            remote: self.remote,
            sock: self.sock,
            hop_limit: self.hop_limit,
            tos: self.tos,
            seq: self.seq,
            replied: self.replied,
            due: self.deadline.due(),
            waits: self.waits,
        }
    }

    fn restore(s: FlowState, token: Token) -> Result<Self, Invalid> {
        let v4 = s.tuple.src.addr.is_ipv4();
        let fits = s.tuple.proto == if v4 { proto::ICMP } else { proto::ICMPV6 };
        if !fits || s.tuple.dst.addr.is_ipv4() != v4 || s.remote.is_ipv4() != v4 {
            return Err(invalid("an echo flow between addresses that cannot be"));
        }
        Ok(Flow {
            token,
            tuple: s.tuple,
            via: s.via,
            remote: s.remote,
            sock: s.sock,
            hop_limit: s.hop_limit,
            tos: s.tos,
            seq: s.seq,
            replied: s.replied,
            deadline: Deadline::default(),
            waits: s.waits,
        })
    }
}

impl Icmp {
    /// The flows as they stand between two calls into the stack.
    pub(crate) fn save(&self) -> IcmpState {
        IcmpState {
            flows: self.flows.save(Flow::save),
            unreplied: self.unreplied.save(),
            backlog: self.backlog.iter().copied().filter(|&t| self.is_waiting(t)).collect(),
        }
    }

    /// Puts saved flows into place of none.
    pub(crate) fn restore(&mut self, state: IcmpState, max: u32, r: &mut Router) -> Result<(), Invalid> {
        let due: Vec<_> = state.flows.values().map(|(i, s)| (i, s.due)).collect();
        let make = |i, g, s: FlowState| {
            r.check_via(&s.via)?;
            Flow::restore(s, Token::new(TokenKind::Icmp, i, g))
        };
        self.flows = Slab::restore(state.flows, max, make)?;
        for (i, due) in due {
            let Some(flow) = self.flows.get_mut(i) else { continue };
            if self.index.insert(flow.tuple, i).is_some() {
                return Err(invalid("two echo flows with one tuple"));
            }
            flow.via.resume(r, flow.token);
            r.timers.set(&mut flow.deadline, flow.token, due);
        }
        let flows = &self.flows;
        let belongs = |slot| flows.get(slot).is_some_and(|f| !f.replied);
        self.unreplied = Lru::restore(&state.unreplied, belongs)?;
        for token in state.backlog {
            if !self.is_waiting(token) || self.backlog.contains(&token) {
                return Err(invalid("a ping socket that is to be read and does not wait"));
            }
            self.backlog.push_back(token);
        }
        if self.flows.iter().filter(|(_, f)| f.waits).count() != self.backlog.len() {
            return Err(invalid("a ping socket that waits to be read and is not listed"));
        }
        Ok(())
    }

    fn is_waiting(&self, token: Token) -> bool {
        self.flows.get(token.index()).is_some_and(|f| f.token == token && f.waits)
    }

    /// What there is to tell of each flow.
    pub(crate) fn list(&self) -> impl Iterator<Item = FlowInfo> {
        self.flows.iter().map(|(_, f)| FlowInfo {
            token: f.token,
            sock: f.sock,
            tuple: f.tuple,
            inbound: false,
            shared_socket: false,
            tcp: None,
        })
    }
}
