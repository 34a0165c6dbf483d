//! Several workers that serve one network, each with a stack and an edge of its own.
//!
//! Tracked connections, rules and what rules remember are shared; each worker counts for itself. A flow has one owner: the worker to which its first packet
//! came, if that is the guest's and of TCP or UDP. All the rest is the first worker's (the leader's): flows that are opened from outside, echoes, our own
//! services, fragments, and new flows while rules decide which connection packets belong to (CT). Connections know their flow and so its owner; a
//! frame that arrives elsewhere is [handed over](crate::edge::FrameSink::hand_over).
//!
//! What an operator does goes through the leader while the others stand still: it takes over what they counted ([`Stack::absorb`]), and they follow what was
//! changed ([`Stack::follow`]). Before a state is saved the leader takes over all flows ([`Stack::take_over`]), so an image knows nothing of workers, and
//! may go on with more or fewer of them.

use crate::conntrack::{ConnId, Dir, Found};
use crate::edge::{Edge, Gso, HandedFrame, LinkId, Payload, RxChecksum, RxFrame, SockId, Token, TokenKind};
use crate::packet::{L4, Packet};
use crate::router::{Attach, Router};
use crate::skb::{Cast, Skb};
use crate::stack::Stack;
use crate::time::Time;
use crate::verdict::DropReason;

/// Workers that one network can have.
pub const MAX_WORKERS: u8 = 16;

/// The worker that does what is not spread among all.
pub const LEADER: u8 = 0;

/// A worker's place among those that serve a network.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    /// Which one it is.
    pub(crate) me: u8,
    /// How many there are; 0 and 1 are one.
    all: u8,
    /// New flows stay where their first packet came.
    spread: bool,
}

/// Whose a packet from a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This worker's.
    Mine,
    /// This worker's if it is the first to say so.
    Nobodys,
    /// Another one's.
    Of(u8),
}

/// A packet as the frame that it came in, or could have come in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AsFrame<'a> {
    /// Its first bytes, if they are not those of `body`.
    pub(crate) head: &'a [u8],
    pub(crate) body: Payload,
}

impl Router {
    /// Sets when new flows are spread: to be called when rules were replaced.
    pub(crate) fn spread_flows(&mut self) {
        self.place.spread = !self.decides_tracking();
    }

    /// Whose a packet is, and how its connection is found.
    pub(crate) fn whose(&self, p: &Packet<'_>, skb: &Skb<'_>) -> (Whose, Attach<'static>) {
        let Place { me, all, spread } = self.place;
        if all <= 1 {
            return (Whose::Mine, Attach::LookUp);
        }
        // An image may name workers that there are no more.
        let of = |worker| match if worker < all { worker } else { LEADER } {
            worker if worker == me => Whose::Mine,
            worker => Whose::Of(worker),
        };
        let is_flows = matches!(p.l4, L4::Tcp(..) | L4::Udp(_));
        let found = self.netfilter.conntrack.flow_of(self.now, skb);
        let whose = match found {
            Some(Found { flow: Some(flow), .. }) => of(flow.worker()),
            // Between two links: no flow is needed.
            _ if self.route(p.ip.dst).is_some() => Whose::Mine,
            // What is opened from outside is the leader's, who may be about to say so.
            Some(Found { dir: Dir::Reply, .. }) => of(LEADER),
            _ if is_flows && spread && p.cast == Cast::Unicast && !self.is_local(p.ip.dst) => Whose::Nobodys,
            _ => of(LEADER),
        };
        // Where rules decide which connection it is, they were not asked yet.
        let known = found.filter(|_| is_flows && spread);
        (whose, known.map_or(Attach::LookUp, |f| Attach::Flow(f.id, f.dir)))
    }

    /// Takes what is nobody's: see [`crate::conntrack::Conntrack::claim`]. Of what the connection was claimed for.
    pub(crate) fn claim(&self, whose: Whose, p: &Packet<'_>, skb: &Skb<'_>) -> Result<Option<Claim>, DropReason> {
        let (Whose::Nobodys, Some((id, _))) = (whose, skb.track.known()) else { return Ok(None) };
        let kind = if matches!(p.l4, L4::Tcp(..)) { TokenKind::Tcp } else { TokenKind::Udp };
        match self.netfilter.conntrack.claim(id, kind, self.place.me) {
            true => Ok(Some(Claim { id, kind })),
            false => Err(DropReason::ConntrackClash),
        }
    }

    /// The flow that a connection was claimed for is there, or will not be.
    pub(crate) fn end_claim(&self, claim: Option<Claim>) {
        if let Some(Claim { id, kind }) = claim {
            self.netfilter.conntrack.give_up(id, kind, self.place.me);
        }
    }
}

/// A connection for which this worker is about to make a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    id: ConnId,
    kind: TokenKind,
}

impl Stack {
    /// A stack for another worker of this one's network, which is number `worker` from 1 to [`MAX_WORKERS`] - 1. This one becomes the leader, and those that
    /// have been made before are to [follow](Stack::follow) it once more; from here on all packets are tracked. The configuration's limits are each
    /// worker's own. `seed` as for [`Stack::new`].
    pub fn share(&mut self, worker: u8, seed: [u8; 16]) -> Stack {
        if self.router.begin_tracking() {
            self.translator.adopt(&mut self.router);
        }
        let worker = worker.min(MAX_WORKERS - 1);
        self.router.place.all = self.router.place.all.max(worker + 1);
        self.router.spread_flows();
        let mut other = Stack::without_rules(self.router.cfg.clone(), seed);
        let r = &mut other.router;
        r.now = self.router.now;
        r.moved = self.router.moved;
        r.netfilter.share(&self.router.netfilter);
        other.follow(self);
        other.router.place.me = worker;
        other
    }

    /// Takes over the flows of another worker's stack, whose sockets come along: `socket` hands one over, its handle there and the token that it has
    /// from now on, and says its handle here. What does not fit, or has no socket here, stays there and is to be [reset](Stack::reset_all).
    pub fn take_over(&mut self, other: &mut Stack, socket: &mut dyn FnMut(SockId, Token) -> Option<SockId>) {
        let (mine, theirs) = (&mut self.translator, &mut other.translator);
        mine.tcp.take_over(&mut self.router, &mut theirs.tcp, &mut other.router, socket);
        mine.udp.take_over(&mut self.router, &mut theirs.udp, &mut other.router, socket);
    }

    /// Resets all flows on both sides.
    pub fn reset_all<E: Edge>(&mut self, now: Time, edge: &mut E) {
        self.router.now = now;
        let tokens: Vec<Token> = self.flows().map(|f| f.token).collect();
        for token in tokens {
            self.translator.reset(&mut self.router, token, edge);
        }
    }

    /// Which worker's it is.
    pub fn worker(&self) -> u8 {
        self.router.place.me
    }

    /// Does as the leader from here on, where that was changed: rules, sets, addresses, links, configuration. Flows that rules forbid are
    /// [another question](Stack::cut).
    pub fn follow(&mut self, leader: &Stack) {
        let (r, l) = (&mut self.router, &leader.router);
        r.cfg.clone_from(&l.cfg);
        r.host_addrs.clone_from(&l.host_addrs);
        r.wall = l.wall;
        r.follow_links(l);
        r.follow_rules(l);
        (r.place.all, r.place.spread) = (l.place.all, l.place.spread);
        r.forget_verdicts();
    }

    /// Moves to this stack, the leader's, what another worker's counted, logged and traced.
    pub fn absorb(&mut self, other: &mut Stack) {
        let (r, o) = (&mut self.router, &mut other.router);
        r.stats.absorb(&mut o.stats);
        r.moved = r.moved.max(o.moved);
        r.netfilter.absorb(&mut o.netfilter);
    }

    /// A frame that another worker handed over.
    pub fn receive_handed<E: Edge>(&mut self, now: Time, frame: &RxFrame<'_>, edge: &mut E) {
        self.router.now = now;
        let done = self.ethernet(frame, true, edge);
        self.end_of_received(done);
    }

    /// Hands a packet over to the worker whose it is.
    pub(crate) fn hand_over<E: Edge>(
        &mut self,
        to: u8,
        link: LinkId,
        frame: AsFrame<'_>,
        checksum: RxChecksum,
        gso: Option<Gso>,
        edge: &mut E,
    ) -> Result<(), DropReason> {
        let AsFrame { head, body } = frame;
        let handed = HandedFrame { link, head, body, checksum, gso };
        if !edge.hand_over(to, handed) {
            return Err(DropReason::WorkerBusy);
        }
        self.router.stats.handed_over += 1;
        Ok(())
    }
}
