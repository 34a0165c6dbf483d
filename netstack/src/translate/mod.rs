//! Translation between the guest's packets and host sockets.

pub(crate) mod fragments;
mod host_error;
pub mod icmp;
pub mod tcp;
pub mod udp;

use crate::config::Limits;
use crate::edge::{Edge, LinkId, Ready, SockId, Token, TokenKind};
use crate::iptables::{Family, Program};
use crate::packet::{L4, Packet};
use crate::rng::Rng;
use crate::router::{Router, Via};
use crate::time::Time;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::icmp::IcmpError;
use core::net::IpAddr;

/// All flows.
#[derive(Debug)]
pub(crate) struct Translator {
    pub(crate) tcp: tcp::Tcp,
    pub(crate) udp: udp::Udp,
    pub(crate) icmp: icmp::Icmp,
}

impl Translator {
    pub(crate) fn new(limits: &Limits, rng: &mut Rng) -> Self {
        Translator { tcp: tcp::Tcp::new(limits, rng), udp: udp::Udp::new(limits, rng), icmp: icmp::Icmp::new(limits, rng) }
    }

    /// Numbers of TCP, UDP and ICMP flows.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.tcp.len(), self.udp.len(), self.icmp.len())
    }

    /// Whether a flow that was opened from outside has this tuple of packets from the guest.
    pub(crate) fn knows(&self, tuple: &Tuple) -> bool {
        match tuple.proto {
            proto::TCP => self.tcp.knows(tuple),
            proto::UDP => self.udp.knows(tuple),
            _ => false,
        }
    }

    /// A packet from the guest that leaves through `host0` to the host-side address `to`.
    pub(crate) fn forward<E: Edge>(
        &mut self,
        r: &mut Router,
        p: &Packet<'_>,
        to: IpAddr,
        edge: &mut E,
    ) -> Result<(), DropReason> {
        match p.l4 {
            L4::Tcp(..) => self.tcp.forward(r, p, to, edge),
            L4::Udp(_) => self.udp.forward(r, p, to, edge),
            L4::Icmp(_) | L4::Icmpv6(_) => self.icmp.forward(r, p, to, edge),
            L4::Other => {
                r.icmp_error(edge, p, IcmpError::ProtocolUnreachable);
                Err(DropReason::UnknownProtocol)
            }
        }
    }

    /// Answers a TCP segment that nobody takes with RST (RFC 9293 section 3.10.7.1).
    pub(crate) fn refuse_tcp<E: Edge>(&mut self, r: &mut Router, p: &Packet<'_>, edge: &mut E) -> Result<(), DropReason> {
        self.tcp.refuse(r, p, edge);
        Err(DropReason::NoService)
    }

    /// An event at a flow's socket.
    pub(crate) fn socket_ready<E: Edge>(&mut self, r: &mut Router, token: Token, ready: Ready, edge: &mut E) {
        match token.kind() {
            TokenKind::Tcp => self.tcp.socket_ready(r, token, ready, edge),
            TokenKind::Udp | TokenKind::UdpListener => self.udp.socket_ready(r, token, ready, edge),
            TokenKind::Icmp => self.icmp.socket_ready(r, token, ready, edge),
            _ => {}
        }
    }

    /// A connection to a published port.
    pub(crate) fn accepted<E: Edge>(&mut self, r: &mut Router, sock: SockId, peer: Endpoint, local: Endpoint, edge: &mut E) {
        self.tcp.accepted(r, sock, peer, local, edge);
    }

    /// A published UDP port's socket.
    pub(crate) fn udp_listening(&mut self, sock: SockId, local: Endpoint) -> Token {
        self.udp.listening(sock, local)
    }

    /// A flow's deadline.
    pub(crate) fn timer<E: Edge>(&mut self, r: &mut Router, token: Token, queued: Time, edge: &mut E) {
        match token.kind() {
            TokenKind::Tcp => self.tcp.timer(r, token, queued, edge),
            TokenKind::Udp => self.udp.timer(r, token, queued, edge),
            TokenKind::Icmp => self.icmp.timer(r, token, queued, edge),
            _ => {}
        }
    }

    /// Ends a flow at once, with resets to both sides where there is such a thing.
    pub(crate) fn reset<E: Edge>(&mut self, r: &mut Router, token: Token, edge: &mut E) {
        match token.kind() {
            TokenKind::Tcp => self.tcp.reset(r, token, edge),
            TokenKind::Udp => self.udp.reset(r, token, edge),
            TokenKind::Icmp => self.icmp.reset(r, token, edge),
            _ => {}
        }
    }

    /// The live flows of the guest behind a link.
    pub(crate) fn behind(&self, link: LinkId) -> Vec<Token> {
        let flows = self.tcp.connections().chain(self.udp.connections()).chain(self.icmp.connections());
        flows.filter(|(_, via)| via.link == link).map(|(token, _)| token).collect()
    }

    /// The live flows of a family whose connection `program` would not let begin.
    pub(crate) fn forbidden(&self, r: &mut Router, family: Family, program: &Program) -> Vec<Token> {
        let flows = self.tcp.connections().chain(self.udp.connections()).chain(self.icmp.connections());
        let may_not = |&(_, via): &(Token, Via)| !r.may_begin(&via, family, program);
        flows.filter(may_not).map(|(token, _)| token).collect()
    }

    /// Tracking begins: what lives already is tracked from now on.
    pub(crate) fn adopt(&mut self, r: &mut Router) {
        self.tcp.adopt(r);
        self.udp.adopt(r);
        self.icmp.adopt(r);
    }

    /// The end of a batch. Returns whether work is left.
    pub(crate) fn flush<E: Edge>(&mut self, r: &mut Router, edge: &mut E) -> bool {
        let tcp = self.tcp.flush(r, edge);
        let udp = self.udp.flush(r, edge);
        let icmp = self.icmp.flush(r, edge);
        tcp || udp || icmp
    }
}
