//! Flows, and whose they are: a connection knows the flow that carries it, and a flow hears when its connection is gone.

use super::conn::{Conn, ConnId, Dir};
use super::proto::Kind;
use super::sync::{AtomicU32, Mutex, Ordering, lock};
use super::table::Conntrack;
use super::{icmp, tuple};
use crate::edge::{Token, TokenKind};
use crate::skb::Skb;
use crate::time::Time;

/// Flows whose connection is gone, and that were not told.
#[derive(Debug)]
pub(super) struct Closed {
    list: Mutex<Vec<Token>>,
    /// Workers that have flows in it, a bit for each: who has none takes no lock.
    whose: AtomicU32,
}

impl Closed {
    pub(super) fn new() -> Self {
        Closed { list: Mutex::new(Vec::new()), whose: AtomicU32::new(0) }
    }

    pub(super) fn push(&self, flow: Token) {
        let mut list = lock(&self.list);
        list.push(flow);
        self.whose.fetch_or(1 << flow.worker(), Ordering::Release);
    }

    /// A copy of them all.
    pub(super) fn all(&self) -> Vec<Token> {
        lock(&self.list).clone()
    }
}

/// The mark of a connection that a worker is about to make a flow for.
const fn claim(kind: TokenKind, worker: u8) -> Token {
    Token::new(kind, u32::MAX, u32::MAX).of_worker(worker)
}

/// A connection, the direction of a packet in it, and its flow if it has one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) id: ConnId,
    pub(crate) dir: Dir,
    pub(crate) flow: Option<Token>,
}

impl Conntrack {
    /// Ties a flow to a connection. A TCP flow pins it: it neither times out nor is dropped early while the flow lives. Flows of
    /// other protocols only hear when their connection goes ([`Conntrack::take_closed`]). False if the connection is gone.
    pub fn pin(&self, id: ConnId, flow: Token) -> bool {
        self.modify(id, |c| c.flow = Some(flow)).is_some()
    }

    /// The flow of a connection ended: the connection ages by its state, from its last packet on.
    pub fn unpin(&self, _now: Time, id: ConnId) {
        self.modify(id, |c| c.flow = None);
    }

    /// Takes the tokens of a worker's flows whose connection timed out or was removed since the last call: the flows are to be closed, those of
    /// TCP reset on both sides. They are added to `out`.
    pub fn take_closed(&self, worker: u8, out: &mut Vec<Token>) {
        let mine = 1 << worker;
        if self.closed.whose.load(Ordering::Acquire) & mine == 0 {
            return;
        }
        let mut list = lock(&self.closed.list);
        list.retain(|t| {
            let others = t.worker() != worker;
            if !others {
                out.push(*t);
            }
            others
        });
        self.closed.whose.fetch_and(!mine, Ordering::Release);
    }

    /// The connection of a packet that no rule has seen yet (one in another zone than 0 is not found); that of the quoted packet for an ICMP error.
    pub(crate) fn flow_of(&self, now: Time, skb: &Skb<'_>) -> Option<Found> {
        let wanted = match icmp::kind(&skb.l4) {
            Ok(Kind::IcmpError) => icmp::quoted(skb).ok()?.expected,
            _ => tuple::of(skb)?,
        };
        self.hold(now, &wanted).map(|(held, dir)| Found { id: held.id, dir, flow: held.conn.flow })
    }

    /// A worker is to make a flow for a connection that has none: from here on no other one does. False if another one was faster; true also if the
    /// connection is gone meanwhile. To be followed by [`Conntrack::pin`] or [`Conntrack::give_up`].
    pub(crate) fn claim(&self, id: ConnId, kind: TokenKind, worker: u8) -> bool {
        let mine = |c: &mut Conn| match c.flow {
            None => {
                c.flow = Some(claim(kind, worker));
                true
            }
            Some(flow) => flow.worker() == worker,
        };
        self.modify(id, mine).unwrap_or(true)
    }

    /// A worker that claimed a connection has made a flow for it, or will not.
    pub(crate) fn give_up(&self, id: ConnId, kind: TokenKind, worker: u8) {
        self.modify(id, |c| {
            if c.flow == Some(claim(kind, worker)) {
                c.flow = None;
            }
        });
    }
}
