//! Published UDP ports: flows that clients open.

use super::{CLIENT, Client, Udp};
use crate::edge::{Datagram, Edge, SockId, Token, TokenKind};
use crate::router::Router;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use core::net::IpAddr;

/// How many ports are tried for a client whose own port is taken.
const PORT_TRIES: u32 = 64;
/// How many of the host's addresses a listener remembers; what was sent from others is not found by error reports.
const MAX_USED: usize = 64;

/// The socket of a published port.
#[derive(Debug)]
pub(super) struct Listener {
    publish: usize,
    pub(super) sock: SockId,
    local: Endpoint,
    /// Addresses of the host that clients have used.
    used: Vec<Option<IpAddr>>,
    /// In the backlog.
    pub(super) waits: bool,
}

impl Udp {
    /// Adds the socket of a published port; returns the token of its events.
    pub(crate) fn listening(&mut self, publish: usize, sock: SockId, local: Endpoint) -> Token {
        self.listeners.push(Listener { publish, sock, local, used: Vec::new(), waits: false });
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
        let sock = l.sock;
        let guest = guest_endpoint(r, l, d.from.addr)?;
        if d.from.port == 0 || is_many(d.from.addr) {
            return Err(DropReason::MartianSource);
        }
        let far = self.client_as_seen(r, guest, d.from)?;
        let tuple = Tuple { src: guest, dst: far, proto: proto::UDP };
        // A flow of the guest's own to that client: this is its answer, or takes its place.
        if let Some(&old) = self.index.get(&tuple) {
            self.close(r, old, edge);
        }
        if self.clients.len() >= self.max_clients {
            let oldest = self.unreplied[CLIENT].oldest().ok_or(DropReason::FlowLimit)?;
            self.close(r, oldest, edge);
        }
        let token = self.make_room(r, &[CLIENT], edge)?;
        self.insert(r, token, tuple, d.from, sock, Some(Client { listener, local }))
    }

    /// The address and port under which the guest sees a client: its own address where the guest can answer to it, else the
    /// gateway's, and another port if it is taken: by a client that appears alike, or the same at another address of ours.
    fn client_as_seen(&self, r: &mut Router, guest: Endpoint, client: Endpoint) -> Result<Endpoint, DropReason> {
        let hidden = r.hides(client.addr);
        let addr = if hidden { r.gateway_of(client.addr).ok_or(DropReason::FamilyDisabled)? } else { client.addr };
        let mut seen = Endpoint::new(addr, client.port);
        for _ in 0..PORT_TRIES {
            let tuple = Tuple { src: guest, dst: seen, proto: proto::UDP };
            let own = !hidden && seen == client && !self.knows(&tuple);
            if own || !self.index.contains_key(&tuple) {
                return Ok(seen);
            }
            seen.port = 1024 + r.rng.below(65_536 - 1024) as u16;
        }
        Err(DropReason::FlowLimit)
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

/// Where the datagrams of a listener go.
fn guest_endpoint(r: &Router, l: &Listener, client: IpAddr) -> Result<Endpoint, DropReason> {
    let publish = r.cfg.publish.get(l.publish).ok_or(DropReason::NoService)?;
    let above = l.local.port.checked_sub(publish.host_ports.0).ok_or(DropReason::NoService)?;
    let port = publish.guest_port.checked_add(above).ok_or(DropReason::NoService)?;
    let addr = match client {
        IpAddr::V4(_) => r.cfg.v4.map(|c| c.guest.into()),
        IpAddr::V6(_) => r.cfg.v6.map(|c| c.guest.into()),
    };
    Ok(Endpoint::new(addr.ok_or(DropReason::FamilyDisabled)?, port))
}
