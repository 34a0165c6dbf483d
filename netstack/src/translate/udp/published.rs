//! Published UDP ports: flows that clients open.

use super::{CLIENT, Client, Flow, Udp};
use crate::edge::{Datagram, Edge, SockId, Token, TokenKind};
use crate::router::{Router, Via};
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use core::net::IpAddr;

/// How many of the host's addresses a listener remembers; what was sent from others is not found by error reports.
pub(super) const MAX_USED: usize = 64;

/// The socket of a published port.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) sock: SockId,
    pub(super) local: Endpoint,
    /// Addresses of the host that clients have used.
    pub(super) used: Vec<Option<IpAddr>>,
    /// In the backlog.
    pub(super) waits: bool,
}

impl Udp {
    /// Adds the socket of a published port; returns the token of its events.
    pub(crate) fn listening(&mut self, sock: SockId, local: Endpoint) -> Token {
        self.listeners.push(Listener { sock, local, used: Vec::new(), waits: false });
        Token::new(TokenKind::UdpListener, (self.listeners.len() - 1) as u32, 0)
    }

    /// The flow to which a datagram at a published port belongs; a new one for a new client.
    pub(super) fn client_flow<E: Edge>(
        &mut self,
        r: &mut Router,
        listener: u32,
        d: &Datagram,
        edge: &mut E,
    ) -> Result<u32, DropReason> {
        // A group's address cannot be an answer's source.
        let local = d.to.filter(|a| !is_many(*a));
        if let Some(&slot) = self.clients.get(&(d.from, Client { listener, local })) {
            return Ok(slot);
        }
        let l = self.listeners.get_mut(listener as usize).ok_or(DropReason::NoService)?;
        if !l.used.contains(&local) && l.used.len() < MAX_USED {
            l.used.push(local);
        }
        let (sock, port) = (l.sock, l.local.port);
        if d.from.port == 0 || is_many(d.from.addr) {
            return Err(DropReason::MartianSource);
        }
        r.gateway_of(d.from.addr).ok_or(DropReason::FamilyDisabled)?;
        let here = local
            .filter(|a| a.is_ipv6() == d.from.addr.is_ipv6())
            .or_else(|| r.addrs().host_primary(d.from.addr.is_ipv6()))
            .ok_or(DropReason::NoRoute)?;
        let tuple = Tuple { src: Endpoint::new(here, port), dst: d.from, proto: proto::UDP };
        if let Some(&old) = self.index.get(&tuple) {
            self.close(r, old, edge);
        }
        if self.clients.len() >= self.max_clients {
            let oldest = self.unreplied[CLIENT].oldest().ok_or(DropReason::FlowLimit)?;
            self.close(r, oldest, edge);
        }
        let token = self.make_room(r, &[CLIENT], edge)?;
        let via = Via::from_outside(r.hides(d.from.addr));
        self.insert(r, Flow::new(token, tuple, d.from, sock, via, Some(Client { listener, local })))
    }

    /// The flows of a listener with a client, one for each address of ours that it uses.
    pub(super) fn flows_with(&self, listener: u32, client: Option<Endpoint>) -> impl Iterator<Item = u32> {
        let used = self.listeners.get(listener as usize).map_or(&[][..], |l| &l.used);
        let client = client.into_iter();
        client
            .flat_map(move |c| used.iter().filter_map(move |&local| self.clients.get(&(c, Client { listener, local })).copied()))
    }
}

fn is_many(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unspecified(),
    }
}
