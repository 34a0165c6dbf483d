//! What host sockets report about datagrams of the guest's.

use super::{Flow, Udp};
use crate::edge::{Edge, Payload, SockError, SockId, Token, TokenKind};
use crate::router::Router;
use crate::translate::host_error::{icmp_for, offender_for, passes, quoted_ip};
use crate::tuple::proto;
use crate::wire::checksum::Sum;
use crate::wire::{IcmpQuote, udp};
use core::net::IpAddr;

/// Reports taken from a socket in one turn. The kernel's queue is bounded too, by the socket's buffer.
const MAX_REPORTS: usize = 64;
/// Longest quote: what an ICMPv6 error of 1280 bytes holds.
const QUOTE: usize = 1280 - 40 - 8;

impl Udp {
    /// Passes the error reports of a socket on to the guest; returns their number.
    pub(super) fn reports<E: Edge>(&mut self, r: &mut Router, token: Token, sock: SockId, edge: &mut E) -> usize {
        let (mut n, mut last) = (0, None);
        while n < MAX_REPORTS
            && let Some(report) = edge.take_report(sock)
        {
            n += 1;
            // The host's own errors come once per attempt.
            let this = (report.icmp, report.offender, report.destination);
            if last.replace(this) == Some(this) && report.offender.is_none() {
                edge.release(report.payload);
                continue;
            }
            let listener = match token.kind() {
                TokenKind::UdpListener => Some(token.index()),
                _ => self.flows.get_live(token.index(), token.generation()).and_then(|f| f.client).map(|c| c.listener),
            };
            let one = listener.is_none().then_some(token.index());
            // A listener's socket is shared: the report may be about any of its clients.
            let many = listener.into_iter().flat_map(|l| self.flows_with(l, report.destination));
            for flow in one.into_iter().chain(many).filter_map(|slot| self.flows.get(slot)) {
                tell(r, flow, report.icmp, report.offender, report.payload, edge);
            }
            edge.release(report.payload);
        }
        n
    }

    /// An error without a report.
    pub(super) fn plain_error<E: Edge>(&mut self, r: &mut Router, token: Token, e: SockError, edge: &mut E) {
        if token.kind() == TokenKind::UdpListener {
            return;
        }
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else { return };
        let v6 = flow.tuple.src.addr.is_ipv6();
        if let Some(icmp) = icmp_for(e, v6) {
            tell(r, flow, icmp.quote(v6), None, Payload::EMPTY, edge);
        }
    }
}

/// Sends the guest an ICMP error about a datagram of a flow that starts with `payload`.
fn tell<E: Edge>(r: &mut Router, flow: &Flow, icmp: IcmpQuote, offender: Option<IpAddr>, payload: Payload, edge: &mut E) {
    let (guest, far) = (flow.tuple.src, flow.tuple.dst);
    if !passes(icmp, guest.addr.is_ipv6()) {
        return;
    }
    let Some(from) = offender_for(r, offender, flow.remote.addr, far.addr) else { return };
    let mut quote = [0; QUOTE];
    let at = quoted_ip(&mut quote, &flow.tuple, icmp, flow.hop_limit, flow.tos, udp::HEADER_LEN + payload.len());
    let len = (udp::HEADER_LEN + payload.len()).min(65_535);
    let (head, data) = quote[at..].split_at_mut(udp::HEADER_LEN);
    udp::Header { src_port: guest.port, dst_port: far.port, len: len as u16, checksum: 0 }.emit(head);
    // Probing tools tell their datagrams apart by it. Right if the whole payload is known, as with theirs.
    let sum = Sum::default()
        .pseudo(guest.addr, far.addr, proto::UDP, len as u32)
        .bytes(head)
        .word(edge.checksum(payload))
        .finish_for(proto::UDP);
    head[6..8].copy_from_slice(&sum.to_be_bytes());
    let n = at + udp::HEADER_LEN + edge.read(payload, data);
    r.send_icmp_error(edge, flow.via.input, from, guest.addr, icmp, &quote[..n]);
}
