//! Icmp flows.

use crate::config::Limits;
use crate::edge::{Edge, Ready, Token};
use crate::packet::Packet;
use crate::rng::Rng;
use crate::router::Router;
use crate::time::Time;
use crate::verdict::DropReason;
use core::net::IpAddr;

/// All icmp flows.
#[derive(Debug)]
pub(crate) struct Icmp {}

impl Icmp {
    pub(crate) fn new(_limits: &Limits, _rng: &mut Rng) -> Self {
        Icmp {}
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
