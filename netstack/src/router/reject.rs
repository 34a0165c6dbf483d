//! What the sender of a rejected packet is told.

use super::netfilter::Stop;
use super::{Attach, Bare, Router};
use crate::conntrack::Track;
use crate::edge::Edge;
use crate::iptables::{Iface, RejectWith};
use crate::packet::{L4, Packet};
use crate::skb::Skb;
use crate::verdict::DropReason;
use crate::wire::IcmpQuote;
use crate::wire::icmp::{v4, v6};

impl Router {
    /// A packet of a guest's was stopped by the rules: tells its sender, if that is what they say. Returns the reason to count.
    pub(crate) fn stopped<E: Edge>(&mut self, edge: &mut E, p: &Packet<'_>, skb: &Skb<'_>, stop: Stop) -> DropReason {
        let Stop::Reject(with) = stop else { return stop.into() };
        // As Linux: nobody is told about what may not be his.
        if let Some(why) = p.fault {
            return why;
        }
        match with {
            RejectWith::TcpReset => self.reset(edge, p, skb),
            RejectWith::Icmp(code) => self.send_unreachable(edge, p, skb, v4::UNREACHABLE, code),
            RejectWith::Icmp6(code) => self.send_unreachable(edge, p, skb, v6::UNREACHABLE, code),
        }
        // The safe reach has a reason of its own, whoever enforces it.
        match self.host_destination(skb.dst, skb.dport) {
            Err(DropReason::ReachDenied) if skb.output == Some(Iface::Host0) => DropReason::ReachDenied,
            _ => DropReason::Rejected,
        }
    }

    fn send_unreachable<E: Edge>(&mut self, edge: &mut E, p: &Packet<'_>, skb: &Skb<'_>, ty: u8, code: u8) {
        self.icmp_quote_about(edge, p, IcmpQuote { ty, code, rest: 0 }, skb);
    }

    /// RST in place of a segment (RFC 9293 section 3.10.7.1), from its destination. The connection is closed by it.
    fn reset<E: Edge>(&mut self, edge: &mut E, p: &Packet<'_>, skb: &Skb<'_>) {
        let L4::Tcp(h, _) = &skb.l4 else { return };
        let Some(reset) = Bare::reset_for(skb.tuple(), h, p.payload.len, 0) else { return };
        if let Track::Known { id, .. } = skb.track {
            self.netfilter.close(self.now, id);
        }
        reset.send(self, edge, None, Attach::About(&skb.track));
    }
}
