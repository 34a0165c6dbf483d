//! Reassembly of fragments from the guest.

use crate::config::Limits;
use crate::edge::{Edge, LinkId, Payload, Token};
use crate::router::Router;
use crate::time::Time;
use crate::verdict::DropReason;
use crate::wire::ip;

/// A datagram put together from fragments.
#[derive(Debug)]
pub(crate) struct Whole {
    /// Header of the whole datagram; no fragment any more.
    pub(crate) ip: ip::Header,
    /// The first bytes from the IP header on: at least all headers, at most [`crate::edge::HEAD_MAX`].
    pub(crate) head: Vec<u8>,
    /// What follows the IP header, stashed at the edge. To be released.
    pub(crate) datagram: Payload,
}

/// Datagrams under reassembly.
#[derive(Debug)]
pub(crate) struct Reassembly {}

impl Reassembly {
    pub(crate) fn new(_limits: &Limits) -> Self {
        Reassembly {}
    }

    /// Adds a fragment; returns the datagram if it is complete.
    pub(crate) fn add<E: Edge>(
        &mut self,
        _r: &mut Router,
        _link: LinkId,
        _ip: &ip::Header,
        _head: &[u8],
        _datagram: Payload,
        _edge: &mut E,
    ) -> Result<Option<Whole>, DropReason> {
        Err(DropReason::FragmentLimit)
    }

    /// A datagram's time is over.
    pub(crate) fn timer<E: Edge>(&mut self, _r: &mut Router, _token: Token, _queued: Time, _edge: &mut E) {}
}
