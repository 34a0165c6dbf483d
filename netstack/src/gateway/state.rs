//! The gateway's services as they are saved. DHCP and neighbour discovery have nothing to remember.

use super::Gateway;
use super::dns::{MAX_QUERY, MAX_TRIES, Query};
use super::ndp::Adverts;
use crate::edge::{LinkId, SockId, Token, TokenKind};
use crate::flow::{Slab, SlabState};
use crate::router::Router;
use crate::state::{Invalid, invalid};
use crate::time::Time;
use crate::timers::Deadline;
use crate::tuple::Endpoint;
use crate::wire::dns::Message;
use serde::{Deserialize, Serialize};

/// State of the services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayState {
    /// By link, when the next unsolicited router advertisement is due.
    adverts: Vec<Time>,
    queries: SlabState<QueryState>,
}

/// A DNS query in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueryState {
    guest: Endpoint,
    ours: Endpoint,
    message: Vec<u8>,
    id: u16,
    asked: Option<(SockId, Endpoint)>,
    next: u32,
    tries: u8,
    failed: u8,
    due: Time,
}

impl Query {
    fn save(&self) -> QueryState {
        QueryState {
            guest: self.guest,
            ours: self.ours,
            message: self.message.to_vec(),
            id: self.id,
            asked: self.asked,
            next: self.next as u32,
            tries: self.tries,
            failed: self.failed,
            due: self.deadline.due(),
        }
    }

    fn restore(s: QueryState, token: Token) -> Result<Self, Invalid> {
        let families = s.guest.addr.is_ipv4() != s.ours.addr.is_ipv4();
        if s.message.len() > MAX_QUERY || families || s.tries > MAX_TRIES || s.failed > s.tries {
            return Err(invalid("a DNS query that cannot be"));
        }
        let start = Message::parse(&s.message).map_err(|_| invalid("a DNS query that is no message"))?;
        Ok(Query {
            token,
            guest: s.guest,
            ours: s.ours,
            message: s.message.into(),
            start,
            id: s.id,
            asked: s.asked,
            next: s.next as usize,
            tries: s.tries,
            failed: s.failed,
            deadline: Deadline::default(),
        })
    }
}

impl Gateway {
    /// The services as they stand between two calls into the stack.
    pub(crate) fn save(&self) -> GatewayState {
        GatewayState {
            adverts: self.adverts.links.iter().map(Deadline::due).collect(),
            queries: self.dns.queries.save(Query::save),
        }
    }

    /// Puts saved services into place of new ones.
    pub(crate) fn restore(&mut self, state: GatewayState, r: &mut Router) -> Result<(), Invalid> {
        if state.adverts.len() > r.links.len() {
            return Err(invalid("router advertisements on a link that is not there"));
        }
        for (i, due) in state.adverts.into_iter().enumerate() {
            let mut deadline = Deadline::default();
            r.timers.set(&mut deadline, Adverts::token(LinkId(i as u8)), due);
            self.adverts.links.push(deadline);
        }
        let due: Vec<_> = state.queries.values().map(|(i, s)| (i, s.due)).collect();
        let make = |i, g, s| Query::restore(s, Token::new(TokenKind::Dns, i, g));
        self.dns.queries = Slab::restore(state.queries, r.cfg.limits.dns_queries, make)?;
        for (i, due) in due {
            if let Some(q) = self.dns.queries.get_mut(i) {
                r.timers.set(&mut q.deadline, q.token, due);
            }
        }
        Ok(())
    }

    /// Has the queries whose socket is gone asked again.
    pub(crate) fn forget_sockets(&mut self, r: &mut Router, is_there: &dyn Fn(SockId) -> bool) {
        let now = r.now;
        for (_, q) in self.dns.queries.iter_mut() {
            if q.asked.is_some_and(|(sock, _)| !is_there(sock)) {
                q.asked = None;
                r.timers.set(&mut q.deadline, q.token, now);
            }
        }
    }

    /// Whether no query waits for an answer.
    pub(crate) fn is_quiet(&self) -> bool {
        self.dns.queries.is_empty()
    }

    /// Sockets of queries in flight.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (Token, SockId)> {
        self.dns.queries.iter().filter_map(|(_, q)| Some((q.token, q.asked?.0)))
    }
}
