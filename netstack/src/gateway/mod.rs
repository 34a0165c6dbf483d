//! The services on the stack's own addresses: ARP, neighbour discovery, echo, DHCP, DNS.

use crate::config::Config;
use crate::edge::{Edge, LinkId, Ready, Token};
use crate::packet::Packet;
use crate::router::Router;
use crate::time::Time;
use crate::verdict::DropReason;

/// State of the services.
#[derive(Debug)]
pub(crate) struct Gateway {}

impl Gateway {
    pub(crate) fn new(_cfg: &Config) -> Self {
        Gateway {}
    }

    /// A link came up.
    pub(crate) fn link_up<E: Edge>(&mut self, _r: &mut Router, _link: LinkId, _edge: &mut E) {}

    /// An ARP packet.
    pub(crate) fn arp<E: Edge>(&mut self, _r: &mut Router, _link: LinkId, _b: &[u8], _edge: &mut E) -> Result<(), DropReason> {
        Err(DropReason::NoService)
    }

    /// A packet other than TCP for one of our addresses, a broadcast or a multicast.
    pub(crate) fn input<E: Edge>(&mut self, _r: &mut Router, _p: &Packet<'_>, _edge: &mut E) -> Result<(), DropReason> {
        Err(DropReason::NoService)
    }

    /// An event at the socket of a DNS query.
    pub(crate) fn dns_ready<E: Edge>(&mut self, _r: &mut Router, _token: Token, _ready: Ready, _edge: &mut E) {}

    /// A deadline.
    pub(crate) fn timer<E: Edge>(&mut self, _r: &mut Router, _token: Token, _queued: Time, _edge: &mut E) {}
}
