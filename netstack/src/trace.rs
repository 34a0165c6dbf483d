//! Tracing: which packets an operator wants to follow, and what happens to them.
//!
//! A packet is traced if a TRACE rule says so, or if it fits a [`Filter`] when it enters. Filters are answered no faster than somebody could
//! read; without one, and without TRACE rules, nothing of this costs anything.

use crate::conntrack::filter::AddrArg;
use crate::iptables::Iface;
use crate::router::{RateLimit, Traced};
use crate::skb::Skb;
use crate::time::Time;
use crate::verdict::DropReason;
use core::time::Duration;

/// Packets that are traced at once for a filter, and how much later one more.
const BURST: u32 = 16;
const EVERY: Duration = Duration::from_millis(10);

/// Which packets to trace, by what they are when they enter: all that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// IPv6, or IPv4.
    pub v6: Option<bool>,
    /// IP protocol.
    pub proto: Option<u8>,
    /// Source.
    pub src: Option<AddrArg>,
    /// Destination.
    pub dst: Option<AddrArg>,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// Either port.
    pub port: Option<u16>,
    /// Where it came in.
    pub input: Option<Iface>,
}

impl Filter {
    fn fits(&self, skb: &Skb<'_>) -> bool {
        let is = |wanted: Option<u16>, port: u16| wanted.is_none_or(|p| p == port);
        self.v6.is_none_or(|v6| v6 == skb.is_v6())
            && self.proto.is_none_or(|p| p == skb.protocol)
            && self.input.is_none_or(|i| skb.input == Some(i))
            && is(self.sport, skb.sport)
            && is(self.dport, skb.dport)
            && self.port.is_none_or(|p| p == skb.sport || p == skb.dport)
            && self.src.is_none_or(|p| p.matches(skb.src))
            && self.dst.is_none_or(|p| p.matches(skb.dst))
    }
}

/// Something that happened to a traced packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Number of the packet: that of any other one is another one.
    pub packet: u32,
    /// What happened.
    pub what: Step,
}

/// What happened to a traced packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It met a rule, before that acted, or the end of a chain.
    Rule(Traced),
    /// It is to leave there, or is for the gateway itself.
    Route(Option<Iface>),
    /// It has gone where it was routed to, or this is why it has not.
    End(Result<(), DropReason>),
}

impl Event {
    /// The kernel's line, if this is something of which the kernel has one.
    pub fn line(&self) -> Option<String> {
        if let Step::Rule(r) = &self.what { Some(r.to_string()) } else { None }
    }
}

/// Numbers packets, and picks those to be traced.
#[derive(Debug)]
pub(crate) struct Tracing {
    filter: Option<Filter>,
    limit: RateLimit,
    /// Number of the packet that entered last.
    pub(crate) packet: u32,
    /// That of the packet which a link brought, if it is traced.
    received: Option<u32>,
}

impl Default for Tracing {
    fn default() -> Self {
        Tracing { filter: None, limit: RateLimit::new(EVERY, BURST), packet: 0, received: None }
    }
}

impl Tracing {
    pub(crate) fn set(&mut self, filter: Option<Filter>) {
        self.filter = filter;
    }

    /// A packet enters; it is traced if it fits, and there is time for it. Whether it is one too many.
    pub(crate) fn enters(&mut self, now: Time, skb: &mut Skb<'_>) -> bool {
        self.packet = self.packet.wrapping_add(1);
        let Some(filter) = &self.filter else { return false };
        if !filter.fits(skb) {
            return false;
        }
        skb.traced = self.limit.take(now);
        !skb.traced
    }

    /// The packet that entered last was brought by a link, and is traced.
    pub(crate) fn is_received(&mut self) {
        self.received = Some(self.packet);
    }

    /// Number of that packet, once.
    pub(crate) fn take_received(&mut self) -> Option<u32> {
        self.received.take()
    }
}
