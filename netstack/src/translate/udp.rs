//! Udp flows.

use crate::config::Limits;
use crate::edge::{Edge, Ready, Token};
use crate::packet::Packet;
use crate::rng::Rng;
use crate::router::Router;
use crate::time::Time;
use crate::verdict::DropReason;
use core::net::IpAddr;

/// All udp flows.
#[derive(Debug)]
pub(crate) struct Udp {}

impl Udp {
    pub(crate) fn new(_limits: &Limits, _rng: &mut Rng) -> Self {
        Udp {}
    }

    pub(crate) fn len(&self) -> usize {
        0
    }

    pub(crate) fn to_host<E: Edge>(
        &mut self,
        _r: &mut Router,
        _p: &Packet<'_>,
        _to: IpAddr,
        _edge: &mut E,
    ) -> Result<(), DropReason> {
        Err(DropReason::NoService)
    }

    pub(crate) fn socket_ready<E: Edge>(&mut self, _r: &mut Router, _token: Token, _ready: Ready, _edge: &mut E) {}

    pub(crate) fn timer<E: Edge>(&mut self, _r: &mut Router, _token: Token, _queued: Time, _edge: &mut E) {}
}

impl Udp {
    pub(crate) fn knows(&self, _tuple: &crate::tuple::Tuple) -> bool {
        false
    }

    pub(crate) fn listening(&mut self, _publish: usize, _sock: crate::edge::SockId, _local: crate::tuple::Endpoint) -> Token {
        Token::new(crate::edge::TokenKind::UdpListener, 0, 0)
    }

    pub(crate) fn flush<E: Edge>(&mut self, _r: &mut Router, _edge: &mut E) -> bool {
        false
    }
}
