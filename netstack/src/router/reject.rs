//! What the sender of a rejected packet is told.

use super::netfilter::Stop;
use super::{Attach, Outgoing, Router};
use crate::conntrack::Track;
use crate::edge::{Edge, Payload};
use crate::iptables::{Iface, RejectWith};
use crate::packet::{L4, Packet};
use crate::skb::Skb;
use crate::verdict::DropReason;
use crate::wire::IcmpQuote;
use crate::wire::icmp::{v4, v6};
use crate::wire::tcp::{self, Flags, Seq};

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
        self.icmp_quote_about(edge, p, IcmpQuote { ty, code, rest: 0 }, Some(skb));
    }

    /// RST in place of a segment (RFC 9293 section 3.10.7.1), from its destination. The connection is closed by it.
    fn reset<E: Edge>(&mut self, edge: &mut E, p: &Packet<'_>, skb: &Skb<'_>) {
        let L4::Tcp(h, _) = skb.l4 else { return };
        if h.flags.has(Flags::RST) {
            return;
        }
        let (seq, ack, flags) = if h.flags.has(Flags::ACK) {
            (h.ack, Seq(0), Flags::RST)
        } else {
            let len = p.payload.len + u32::from(h.flags.has(Flags::SYN)) + u32::from(h.flags.has(Flags::FIN));
            (Seq(0), h.seq + len, Flags::RST | Flags::ACK)
        };
        let tuple = skb.tuple().reversed();
        if let Track::Known { id, .. } = skb.track {
            self.netfilter.close(self.now, id);
        }
        let mut l4 = [0; tcp::HEADER_LEN];
        tcp::Header {
            src_port: skb.dport,
            dst_port: skb.sport,
            seq,
            ack,
            header_len: tcp::HEADER_LEN as u8,
            flags,
            window: 0,
            checksum: 0,
            urgent: 0,
        }
        .emit(&mut l4);
        let out = Outgoing {
            input: None,
            tuple,
            hop_limit: 64,
            tos: 0,
            dont_fragment: true,
            l4: &l4,
            body: Payload::EMPTY,
            keep_body: false,
            gso: None,
            attach: Attach::About(&skb.track),
        };
        // A drop is counted there.
        let _ = self.send(edge, &out);
    }
}
