//! Sources that rules demand of the host's sockets.

use super::netfilter::Stop;
use super::{Addrs, Router};
use crate::conntrack::{Conn, CtTuple, Dir, Status, Track};
use crate::edge::{Edge, Source, SourcePort};
use crate::iptables::{Hook, Iface, Stage};
use crate::nat::{AddrType, Addresses};
use crate::packet::Packet;
use crate::skb::Skb;
use crate::tuple::Endpoint;
use crate::verdict::DropReason;
use core::cell::RefCell;
use core::net::IpAddr;

/// Says whether a new connection can have a source port that rules name; see [`Addresses::grants`].
pub(super) type Grants<'a> = &'a mut dyn FnMut(&Conn, &CtTuple) -> bool;

/// What translation asks.
pub(super) struct Asked<'a> {
    addrs: Addrs<'a>,
    grants: RefCell<Grants<'a>>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(addrs: Addrs<'a>, grants: Grants<'a>) -> Self {
        Asked { addrs, grants: RefCell::new(grants) }
    }
}

impl Addresses for Asked<'_> {
    fn kind(&self, addr: IpAddr, on: Option<Iface>) -> AddrType {
        self.addrs.kind(addr, on)
    }

    fn primary(&self, out: Iface, v6: bool) -> Option<IpAddr> {
        self.addrs.primary(out, v6)
    }

    fn first(&self, input: Iface, v6: bool) -> Option<IpAddr> {
        self.addrs.first(input, v6)
    }

    fn way(&self, to: IpAddr) -> Option<Iface> {
        self.addrs.way(to)
    }

    fn mtu(&self, on: Iface) -> u32 {
        self.addrs.mtu(on)
    }

    fn grants(&self, conn: &Conn, reply: &CtTuple) -> bool {
        self.grants.borrow_mut()(conn, reply)
    }
}

impl Router {
    /// POSTROUTING of a packet that a host socket will carry to the host-side address `to`: where rules demand a source port, the host is asked for
    /// it. SNAT to an address that is not the host's cannot be.
    pub(crate) fn post_routing_to_host<E: Edge>(&mut self, skb: &mut Skb<'_>, to: IpAddr, edge: &mut E) -> Result<(), Stop> {
        self.pass(Stage::PostRouting, skb, &*edge)?;
        // Rules read payload and ask for ports in turn.
        let edge = RefCell::new(edge);
        let mut grants = |conn: &Conn, reply: &CtTuple| {
            let addr = conn.status.has(Status::SRC_ADDR_GIVEN).then(|| reply.dst_ip());
            let from = Source { addr, port: SourcePort::Demand(reply.dport) };
            edge.try_borrow_mut().is_ok_and(|mut e| e.reserve(reply.proto, Endpoint::new(to, reply.sport), from))
        };
        self.translate_on(Hook::PostRouting, skb, &edge, &mut grants)?;
        if let Track::Fresh { conn, .. } = &skb.track
            && conn.status.has(Status::SRC_ADDR_GIVEN)
            && !self.addrs().is_host(skb.src)
        {
            return Err(Stop::Drop(DropReason::NatAddress));
        }
        self.confirm(skb)
    }

    /// What rules demand of the host socket that is to carry a packet's connection.
    pub(crate) fn source_for(&self, p: &Packet<'_>) -> Source {
        let conn = p.conn.filter(|(_, info)| info.dir() == Dir::Original).and_then(|(id, _)| self.netfilter.conntrack.get(id));
        let status = conn.map_or(Status::default(), |c| c.status);
        let tuple = p.tuple();
        Source {
            addr: status.has(Status::SRC_ADDR_GIVEN).then_some(tuple.src.addr),
            port: if status.has(Status::SRC_PORT_GIVEN) { SourcePort::Demand(tuple.src.port) } else { SourcePort::Any },
        }
    }

    /// The host did not give a packet's connection the source that rules demand after all: it is as if the packet had never come.
    pub(crate) fn source_refused(&self, p: &Packet<'_>) -> DropReason {
        if let Some((id, _)) = p.conn {
            self.netfilter.conntrack.remove(id);
        }
        DropReason::NatExhausted
    }
}
