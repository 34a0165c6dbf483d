//! TCP flows.

use crate::config::Limits;
use crate::edge::{Edge, Ready, SockId, Token};
use crate::packet::Packet;
use crate::rng::Rng;
use crate::router::Router;
use crate::time::Time;
use crate::tuple::{Endpoint, Tuple};
use crate::verdict::DropReason;
use core::net::IpAddr;

/// All TCP flows.
#[derive(Debug)]
pub(crate) struct Tcp {}

impl Tcp {
    pub(crate) fn new(_limits: &Limits, _rng: &mut Rng) -> Self {
        Tcp {}
    }
    pub(crate) fn len(&self) -> usize {
        0
    }
    pub(crate) fn knows(&self, _tuple: &Tuple) -> bool {
        false
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
    pub(crate) fn refuse<E: Edge>(&mut self, _r: &mut Router, _p: &Packet<'_>, _edge: &mut E) {}
    pub(crate) fn socket_ready<E: Edge>(&mut self, _r: &mut Router, _token: Token, _ready: Ready, _edge: &mut E) {}
    pub(crate) fn accepted<E: Edge>(
        &mut self,
        _r: &mut Router,
        _publish: usize,
        _sock: SockId,
        _peer: Endpoint,
        _local: Endpoint,
        _edge: &mut E,
    ) {
    }
    pub(crate) fn timer<E: Edge>(&mut self, _r: &mut Router, _token: Token, _queued: Time, _edge: &mut E) {}
    pub(crate) fn flush<E: Edge>(&mut self, _r: &mut Router, _edge: &mut E) -> bool {
        false
    }
}
