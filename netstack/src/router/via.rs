//! What ties a flow to the guest and to its tracked connection.

use super::Router;
use crate::conntrack::{ConnId, Dir, Track};
use crate::edge::{LinkId, Token};
use crate::iptables::Iface;
use crate::packet::Packet;
use serde::{Deserialize, Serialize};

/// How the tracked connection of a packet that we send is found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attach<'a> {
    /// By its addresses and ports.
    LookUp,
    /// The sender knows it.
    Flow(ConnId, Dir),
    /// An answer in place of a packet that went no further: RELATED to that one's connection, or looked up if that had none. Its
    /// addresses, and those that it quotes, are the packet's as translated so far; the hooks translate them back.
    About(&'a Track),
    /// It has none: what tracking would look at is wrong.
    Invalid,
}

/// How a flow's packets reach the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    /// Where they come in: `host0`, or nowhere if the flow's far end is one of our own addresses.
    pub(crate) input: Option<Iface>,
    /// The link behind which the guest is.
    pub(crate) link: LinkId,
    /// The flow's tracked connection.
    pub(crate) conn: Option<ConnId>,
    /// Direction in it of the packets to the guest.
    dir: Dir,
}

impl Router {
    /// Ties a connection to the flow of this worker's that carries it: while it lives, the connection does not expire. False if the connection is gone.
    pub(crate) fn pin(&self, id: ConnId, flow: Token) -> bool {
        self.netfilter.conntrack.pin(id, flow.of_worker(self.place.me))
    }
}

impl Via {
    /// Of a flow that a packet of the guest's opens.
    pub(crate) fn opened_by(r: &Router, p: &Packet<'_>) -> Self {
        let input = (!r.is_local(p.ip.dst)).then_some(Iface::Host0);
        Via { input, link: p.link, conn: None, dir: Dir::Reply }
    }

    /// Of a flow that somebody outside opens; `ours` if that is the host itself.
    pub(crate) const fn from_outside(ours: bool) -> Self {
        let input = if ours { None } else { Some(Iface::Host0) };
        Via { input, link: LinkId(0), conn: None, dir: Dir::Original }
    }

    /// Whether somebody outside opened the flow.
    pub(crate) fn is_from_outside(&self) -> bool {
        self.dir == Dir::Original
    }

    /// For [`Outgoing::attach`].
    pub(crate) fn attach(&self) -> Attach<'static> {
        self.conn.map_or(Attach::LookUp, |id| Attach::Flow(id, self.dir))
    }

    /// Notes where the guest's packets come from, and their connection.
    pub(crate) fn heard(&mut self, r: &Router, p: &Packet<'_>, token: Token) {
        self.link = p.link;
        if let Some((id, info)) = p.conn
            && self.conn != Some(id)
        {
            self.leave(r);
            self.dir = info.dir().other();
            self.conn = Some(id);
            r.pin(id, token);
        }
    }

    /// Notes the connection that a packet to the guest made or found.
    pub(crate) fn sent(&mut self, r: &Router, conn: Option<(ConnId, Dir)>, token: Token) {
        if let Some((id, dir)) = conn
            && self.conn != Some(id)
        {
            self.leave(r);
            self.dir = dir;
            self.conn = Some(id);
            r.pin(id, token);
        }
    }

    /// The flow is over: its connection ages from now on.
    pub(crate) fn leave(&mut self, r: &Router) {
        if let Some(id) = self.conn.take() {
            r.netfilter.unpin(r.now, id);
        }
    }
}
