//! Echo replies, and errors about requests, to the guest.

use super::{Flow, IDLE, Icmp};
use crate::edge::{Datagram, Edge, ErrorReport, Payload, SockError, SockId, Token};
use crate::router::{Outgoing, Router};
use crate::translate::host_error::{icmp_for, offender_for, passes, quoted_ip};
use crate::wire::be16;
use crate::wire::checksum::Sum;
use crate::wire::icmp::{HEADER_LEN, Header, v4, v6};

/// Replies and reports taken from a socket in one turn.
const BATCH: usize = 32;
/// Sockets served in one [`Icmp::flush`].
pub(super) const TURNS: usize = 16;
/// Errors without a report that are taken as earlier requests' before the socket is left until its next event.
const MAX_ERRORS: usize = 4;
/// Longest quote: what an ICMPv6 error of 1280 bytes holds.
const QUOTE: usize = 1280 - 40 - 8;

impl Icmp {
    /// One turn of a socket. Returns whether there may be more.
    pub(super) fn serve<E: Edge>(&mut self, r: &mut Router, token: Token, edge: &mut E) -> bool {
        let Some(sock) = self.flows.get_live(token.index(), token.generation()).map(|f| f.sock) else { return false };
        self.reports(r, token, sock, edge);
        let (mut replies, mut errors) = (0, 0);
        while replies < BATCH {
            match edge.ping_recv(sock) {
                Ok(Some((seq, d))) => {
                    replies += 1;
                    self.reply(r, token, seq, d, edge);
                }
                Ok(None) => return false,
                // What an earlier request met with. The report says it better, if there is one.
                Err(_) if self.reports(r, token, sock, edge) > 0 => return true,
                Err(_) if errors == MAX_ERRORS => return false,
                Err(e) => {
                    errors += 1;
                    self.plain_error(r, token, e, edge);
                }
            }
        }
        true
    }

    fn reply<E: Edge>(&mut self, r: &mut Router, token: Token, seq: u16, d: Datagram, edge: &mut E) {
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else {
            edge.release(d.payload);
            return;
        };
        if !flow.replied {
            flow.replied = true;
            self.unreplied.remove(token.index());
        }
        r.timers.set(&mut flow.deadline, token, r.now + IDLE);
        let mut l4 = [0; HEADER_LEN];
        let ty = if flow.tuple.dst.addr.is_ipv4() { v4::ECHO_REPLY } else { v6::ECHO_REPLY };
        echo(ty, flow.tuple.src.port, seq).emit(&mut l4);
        let out = Outgoing {
            input: flow.via.input,
            tuple: flow.tuple.reversed(),
            // One hop less, as a router does; no packet arrives with none left.
            hop_limit: d.hop_limit.map_or(64, |h| h.saturating_sub(1).max(1)),
            tos: 0,
            dont_fragment: false,
            l4: &l4,
            body: d.payload,
            keep_body: false,
            gso: None,
            attach: flow.via.attach(),
        };
        // A drop is counted there.
        if let Ok(conn) = r.send(edge, &out) {
            flow.via.sent(r, conn, token);
        }
    }

    /// Passes the error reports of a socket on to the guest; returns their number.
    pub(super) fn reports<E: Edge>(&mut self, r: &mut Router, token: Token, sock: SockId, edge: &mut E) -> usize {
        let (mut n, mut last) = (0, None);
        while n < BATCH
            && let Some(report) = edge.take_report(sock)
        {
            n += 1;
            // The host's own errors come once per attempt.
            let this = (report.icmp, report.offender);
            let repeated = last.replace(this) == Some(this) && report.offender.is_none();
            if !repeated && let Some(flow) = self.flows.get_live(token.index(), token.generation()) {
                tell(r, flow, &report, edge);
            }
            edge.release(report.payload);
        }
        n
    }

    /// An error without a report.
    fn plain_error<E: Edge>(&mut self, r: &mut Router, token: Token, e: SockError, edge: &mut E) {
        let Some(flow) = self.flows.get_live(token.index(), token.generation()) else { return };
        let v6 = flow.tuple.src.addr.is_ipv6();
        if let Some(icmp) = icmp_for(e, v6) {
            let report = ErrorReport { icmp: icmp.quote(v6), offender: None, destination: None, payload: Payload::EMPTY };
            tell(r, flow, &report, edge);
        }
    }
}

const fn echo(ty: u8, ident: u16, seq: u16) -> Header {
    Header { ty, code: 0, checksum: 0, rest: (ident as u32) << 16 | seq as u32 }
}

/// Sends the guest an ICMP error about an echo request of a flow.
fn tell<E: Edge>(r: &mut Router, flow: &Flow, report: &ErrorReport, edge: &mut E) {
    let guest = flow.tuple.src;
    let is_v6 = guest.addr.is_ipv6();
    if !passes(report.icmp, is_v6) {
        return;
    }
    let Some(from) = offender_for(r, report.offender, flow.remote, flow.tuple.dst.addr) else { return };
    let mut quote = [0; QUOTE];
    let l4_len = report.payload.len().max(HEADER_LEN);
    let at = quoted_ip(&mut quote, &flow.tuple, report.icmp, flow.hop_limit, flow.tos, l4_len);
    let known = edge.read(report.payload, &mut quote[at..]);
    let request = &mut quote[at..at + HEADER_LEN];
    let seq = if known >= HEADER_LEN { be16(request, 6) } else { flow.seq };
    let checksum = if known >= HEADER_LEN { with_ident(be16(request, 2), be16(request, 4), guest.port) } else { 0 };
    let ty = if is_v6 { v6::ECHO_REQUEST } else { v4::ECHO_REQUEST };
    Header { checksum, ..echo(ty, guest.port, seq) }.emit(request);
    let n = at + known.max(HEADER_LEN);
    r.send_icmp_error(edge, flow.via.input, from, guest.addr, report.icmp, &quote[..n]);
}

/// A checksum after the identifier changed, RFC 1624.
fn with_ident(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::default().word(!checksum).word(!old).word(new).finish()
}
