//! The services on the stack's own addresses: ARP, neighbour discovery, echo, DHCP, DNS.

mod arp;
mod dhcp4;
mod dhcp6;
mod dns;
mod echo;
mod names;
mod ndp;
mod neighbour;
mod state;

pub use state::GatewayState;

use crate::config::Config;
use crate::edge::{Edge, LinkId, Payload, Ready, Token, TokenKind};
use crate::packet::{L4, Packet};
use crate::router::{Attach, Outgoing, Router};
use crate::time::Time;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::icmp::{self, IcmpError};
use crate::wire::udp;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Hop limit of what we send, but for neighbour discovery.
const HOP_LIMIT: u8 = 64;

/// State of the services.
#[derive(Debug)]
pub(crate) struct Gateway {
    adverts: ndp::Adverts,
    dns: dns::Forwarder,
}

impl Gateway {
    pub(crate) fn new(cfg: &Config) -> Self {
        Gateway { adverts: ndp::Adverts::default(), dns: dns::Forwarder::new(cfg.limits.dns_queries) }
    }

    /// A link came up: makes us known to the guest, and asks who it is.
    pub(crate) fn link_up<E: Edge>(&mut self, r: &mut Router, link: LinkId, edge: &mut E) {
        neighbour::announce(r, link, edge);
        self.adverts.link_up(r, link, edge);
        let guests = [r.v4_on(link).map(|c| IpAddr::V4(c.guest)), r.v6_on(link).map(|c| IpAddr::V6(c.guest))];
        for guest in guests.into_iter().flatten() {
            if r.links[usize::from(link.0)].neighbours.lookup(guest).is_none() {
                r.ask_neighbour(edge, link, guest);
            }
        }
    }

    /// A link goes.
    pub(crate) fn link_down(&mut self, r: &mut Router, link: LinkId) {
        self.adverts.link_down(r, link);
    }

    /// An ARP packet.
    pub(crate) fn arp<E: Edge>(&mut self, r: &mut Router, link: LinkId, b: &[u8], edge: &mut E) -> Result<(), DropReason> {
        arp::input(r, link, b, edge)
    }

    /// A packet other than TCP for one of our addresses, a broadcast or a multicast.
    pub(crate) fn input<E: Edge>(&mut self, r: &mut Router, p: &Packet<'_>, edge: &mut E) -> Result<(), DropReason> {
        match p.l4 {
            L4::Icmp(h) => echo::input(r, p, &h, edge),
            L4::Icmpv6(h) if (icmp::v6::ROUTER_SOLICIT..=icmp::v6::NEIGHBOR_ADVERT).contains(&h.ty) => {
                ndp::input(&mut self.adverts, r, p, &h, edge)
            }
            L4::Icmpv6(h) => echo::input(r, p, &h, edge),
            L4::Udp(h) => self.udp(r, p, &h, edge),
            _ => no_service(r, p, IcmpError::ProtocolUnreachable, DropReason::UnknownProtocol, edge),
        }
    }

    /// A UDP packet; a super-segment is as many datagrams.
    fn udp<E: Edge>(&mut self, r: &mut Router, p: &Packet<'_>, h: &udp::Header, edge: &mut E) -> Result<(), DropReason> {
        let step = p.gso.map_or(p.payload.len(), |g| usize::from(g.size)).max(1);
        for at in (0..p.payload.len().max(1)).step_by(step) {
            let payload = p.payload.slice(at, step);
            let done = match h.dst_port {
                dns::PORT if r.is_dns(p.ip.dst) => self.dns.input(r, p, payload, edge),
                dhcp4::PORT if p.ip.dst.is_ipv4() => dhcp4::input(r, p, payload, edge),
                dhcp6::PORT if dhcp6::listens(r, p.ip.dst) => dhcp6::input(r, p, payload, edge),
                _ => return no_service(r, p, IcmpError::PortUnreachable, DropReason::NoService, edge),
            };
            if let Err(why) = done {
                r.drop(why);
            }
        }
        Ok(())
    }

    /// An event at the socket of a DNS query.
    pub(crate) fn dns_ready<E: Edge>(&mut self, r: &mut Router, token: Token, ready: Ready, edge: &mut E) {
        self.dns.ready(r, token, ready, edge);
    }

    /// A deadline.
    pub(crate) fn timer<E: Edge>(&mut self, r: &mut Router, token: Token, queued: Time, edge: &mut E) {
        match token.kind() {
            TokenKind::Gateway => self.adverts.timer(r, token, queued, edge),
            TokenKind::Dns => self.dns.timer(r, token, queued, edge),
            _ => {}
        }
    }
}

/// Whether a packet is for any DHCP server there is.
pub(crate) fn is_dhcp_broadcast(p: &Packet<'_>) -> bool {
    matches!(p.l4, L4::Udp(h) if h.dst_port == dhcp4::PORT) && p.ip.dst == Ipv4Addr::BROADCAST
}

/// Nobody listens. Said to who sent to one address of ours, not to who sent to many.
fn no_service<E: Edge>(
    r: &mut Router,
    p: &Packet<'_>,
    error: IcmpError,
    why: DropReason,
    edge: &mut E,
) -> Result<(), DropReason> {
    if !r.is_ours(p.ip.dst) {
        return Err(DropReason::NoService);
    }
    r.icmp_error(edge, p, error);
    Err(why)
}

/// An ICMPv6 message of our own making.
fn icmpv6<'a>(from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, l4: &'a [u8]) -> Outgoing<'a> {
    Outgoing {
        input: None,
        tuple: Tuple { src: Endpoint::new(from.into(), 0), dst: Endpoint::new(to.into(), 0), proto: proto::ICMPV6 },
        hop_limit,
        tos: 0,
        dont_fragment: true,
        l4,
        body: Payload::EMPTY,
        keep_body: false,
        gso: None,
        attach: Attach::LookUp,
    }
}
