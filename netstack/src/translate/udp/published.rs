//! Published UDP ports: flows that clients open.

use super::{CLIENT, Client, Udp};
use crate::edge::{Datagram, Edge, SockId, Token, TokenKind};
use crate::router::Router;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use core::net::IpAddr;

/// How many ports are tried for a client that appears under our address and whose own port is taken.
const PORT_TRIES: u32 = 64;

/// The socket of a published port.
#[derive(Debug)]
pub(super) struct Listener {
    publish: usize,
    pub(super) sock: SockId,
    local: Endpoint,
    /// In the backlog.
    pub(super) waits: bool,
}

impl Udp {
    /// Adds the socket of a published port; returns the token of its events.
    pub(crate) fn listening(&mut self, publish: usize, sock: SockId, local: Endpoint) -> Token {
        self.listeners.push(Listener { publish, sock, local, waits: false });
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
        if let Some(&slot) = self.clients.get(&(listener, d.from)) {
            if let Some(client) = self.flows.get_mut(slot).and_then(|f| f.client.as_mut()) {
                client.local = local;
            }
            return Ok(slot);
        }
        let l = self.listeners.get(listener as usize).ok_or(DropReason::NoService)?;
        let sock = l.sock;
        let guest = guest_endpoint(r, l, d.from.addr)?;
        if d.from.port == 0 || is_many(d.from.addr) {
            return Err(DropReason::MartianSource);
        }
        let far = self.client_as_seen(r, guest, d.from)?;
        let tuple = Tuple { src: guest, dst: far, proto: proto::UDP };
        // The guest cannot tell two conversations with one endpoint apart: the newer one goes on.
        if let Some(&old) = self.index.get(&tuple) {
            self.close(old, edge);
        }
        if self.clients.len() >= self.max_clients {
            let oldest = self.unreplied[CLIENT].oldest().ok_or(DropReason::FlowLimit)?;
            self.close(oldest, edge);
        }
        let token = self.make_room(&[CLIENT], edge)?;
        self.insert(r, token, tuple, d.from, sock, Some(Client { listener, local }))
    }

    /// The address and port under which the guest sees a client: its own where the guest can answer to them, else the
    /// gateway's address, and another port if that one is taken.
    fn client_as_seen(&self, r: &mut Router, guest: Endpoint, client: Endpoint) -> Result<Endpoint, DropReason> {
        if !r.hides(client.addr) {
            return Ok(client);
        }
        let gateway = r.gateway_of(client.addr).ok_or(DropReason::FamilyDisabled)?;
        let mut seen = Endpoint::new(gateway, client.port);
        for _ in 0..PORT_TRIES {
            if !self.index.contains_key(&Tuple { src: guest, dst: seen, proto: proto::UDP }) {
                return Ok(seen);
            }
            seen.port = 1024 + r.rng.below(65_536 - 1024) as u16;
        }
        Err(DropReason::FlowLimit)
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
