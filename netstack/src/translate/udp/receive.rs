//! Datagrams from host sockets to the guest.

use super::{Flow, MAX_SEGMENTS, Udp};
use crate::edge::{Datagram, Edge, Payload, Ready, Token, TokenKind};
use crate::router::{Outgoing, Router};
use crate::verdict::DropReason;
use crate::wire::{ipv4, ipv6, udp};

/// Datagrams taken from a socket in one turn.
const BATCH: usize = 32;
/// Sockets served in one [`Udp::flush`].
const TURNS: usize = 16;
/// Errors without a report that are taken as earlier datagrams' before the socket is left until its next event.
const MAX_ERRORS: usize = 4;

impl Udp {
    /// An event at a flow's or a published port's socket.
    pub(crate) fn socket_ready<E: Edge>(&mut self, r: &mut Router, token: Token, ready: Ready, edge: &mut E) {
        if (ready.readable || ready.error) && !self.waits(token).is_none_or(|w| *w) && self.serve(r, token, edge) {
            self.queue(token);
        }
    }

    /// Goes on where a turn ended. Returns whether there is still more.
    pub(crate) fn flush<E: Edge>(&mut self, r: &mut Router, edge: &mut E) -> bool {
        for _ in 0..self.backlog.len().min(TURNS) {
            let Some(token) = self.backlog.pop_front() else { break };
            let Some(waits) = self.waits(token) else { continue };
            *waits = false;
            if self.serve(r, token, edge) {
                self.queue(token);
            }
        }
        !self.backlog.is_empty()
    }

    fn waits(&mut self, token: Token) -> Option<&mut bool> {
        match token.kind() {
            TokenKind::UdpListener => self.listeners.get_mut(token.index() as usize).map(|l| &mut l.waits),
            _ => self.flows.get_live(token.index(), token.generation()).map(|f| &mut f.waits),
        }
    }

    fn queue(&mut self, token: Token) {
        if let Some(waits) = self.waits(token) {
            *waits = true;
            self.backlog.push_back(token);
        }
    }

    /// One turn of a socket: its error reports and a batch of datagrams. Returns whether there may be more.
    fn serve<E: Edge>(&mut self, r: &mut Router, token: Token, edge: &mut E) -> bool {
        let sock = match token.kind() {
            TokenKind::UdpListener => self.listeners.get(token.index() as usize).map(|l| l.sock),
            _ => self.flows.get_live(token.index(), token.generation()).map(|f| f.sock),
        };
        let Some(sock) = sock else { return false };
        self.reports(r, token, sock, edge);
        let mut batch: [Option<Datagram>; BATCH] = [None; BATCH];
        for _ in 0..MAX_ERRORS {
            match edge.udp_recv(sock, &mut batch) {
                Ok(n) => {
                    self.deliver(r, token, batch.into_iter().take(n).flatten(), edge);
                    return n == BATCH;
                }
                // What an earlier datagram met with. The report says it better, if there is one.
                Err(_) if self.reports(r, token, sock, edge) > 0 => return true,
                Err(e) => self.plain_error(r, token, e, edge),
            }
        }
        false
    }

    /// Sends what came from a socket to the guest: datagrams in a row that look like segments of one as such.
    fn deliver<E: Edge>(&mut self, r: &mut Router, token: Token, batch: impl Iterator<Item = Datagram>, edge: &mut E) {
        let mut held: Option<(u32, Datagram)> = None;
        for d in batch {
            let slot = match self.accept(r, token, &d, edge) {
                Ok(slot) => slot,
                Err(why) => {
                    r.drop(why);
                    edge.release(d.payload);
                    continue;
                }
            };
            if let Some((of, head)) = &mut held
                && *of == slot
                && self.flows.get(slot).is_some_and(|f| join(r, f, head, &d, edge))
            {
                continue;
            }
            if let Some((of, before)) = held.replace((slot, d)) {
                self.emit(r, of, before, edge);
            }
        }
        if let Some((of, last)) = held {
            self.emit(r, of, last, edge);
        }
    }

    /// Sends a flow's datagram to the guest.
    fn emit<E: Edge>(&mut self, r: &mut Router, slot: u32, d: Datagram, edge: &mut E) {
        match self.flows.get_mut(slot) {
            Some(flow) => emit(r, flow, d, edge),
            None => edge.release(d.payload),
        }
    }

    /// Finds the flow of a datagram, or makes it.
    fn accept<E: Edge>(&mut self, r: &mut Router, token: Token, d: &Datagram, edge: &mut E) -> Result<u32, DropReason> {
        let slot = match token.kind() {
            TokenKind::UdpListener => self.client_flow(r, token.index(), d, edge)?,
            _ => token.index(),
        };
        self.used(r, slot, false);
        Ok(slot)
    }
}

/// Whether the link to the guest takes a super-datagram of `len` bytes of data, `size` in each segment.
fn takes(r: &Router, flow: &Flow, len: usize, size: usize) -> bool {
    let headers = udp::HEADER_LEN + if flow.tuple.src.addr.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let link = r.links.get(usize::from(flow.via.link.0)).map(|l| l.info);
    link.is_some_and(|l| l.uso && l.checksum && headers + size <= usize::from(l.mtu)) && headers + len <= 65_535
}

/// Makes a datagram the next segment of the one before it, if it can be that: copying it costs less than a frame of its own.
fn join<E: Edge>(r: &Router, flow: &Flow, head: &mut Datagram, d: &Datagram, edge: &mut E) -> bool {
    let size = head.segment.map_or(head.payload.len(), usize::from);
    let (have, more) = (head.payload.len(), d.payload.len());
    // Only the last segment may be shorter, and none empty.
    let fits = d.segment.is_none() && more > 0 && more <= size && have.is_multiple_of(size) && have / size < MAX_SEGMENTS;
    if !fits || d.hop_limit != head.hop_limit || !takes(r, flow, have + more, size) {
        return false;
    }
    let joined = edge.append(&mut head.payload, d.payload);
    if joined {
        head.segment = Some(size as u16);
    }
    joined
}

/// Sends a datagram, or several that the host merged, to the guest.
fn emit<E: Edge>(r: &mut Router, flow: &mut Flow, d: Datagram, edge: &mut E) {
    let len = d.payload.len();
    // One hop less, as a router does; no packet arrives with none left.
    let hop_limit = d.hop_limit.map_or(64, |h| h.saturating_sub(1).max(1));
    let size = match d.segment {
        Some(size) if size > 0 && usize::from(size) < len => usize::from(size),
        _ => {
            if send(r, edge, flow, hop_limit, d.payload, false, None) {
                r.stats.udp_to_guest += 1;
            }
            return;
        }
    };
    if takes(r, flow, len, size) {
        if send(r, edge, flow, hop_limit, d.payload, false, Some(size as u16)) {
            r.stats.udp_to_guest += len.div_ceil(size) as u64;
        }
        return;
    }
    let mut at = 0;
    while at < len {
        if send(r, edge, flow, hop_limit, d.payload.slice(at, size), true, None) {
            r.stats.udp_to_guest += 1;
        }
        at += size;
    }
    edge.release(d.payload);
}

fn send<E: Edge>(
    r: &mut Router,
    edge: &mut E,
    flow: &mut Flow,
    hop_limit: u8,
    body: Payload,
    keep_body: bool,
    gso: Option<u16>,
) -> bool {
    let tuple = flow.tuple.reversed();
    let mut l4 = [0; udp::HEADER_LEN];
    let len = (udp::HEADER_LEN + body.len()) as u16;
    udp::Header { src_port: tuple.src.port, dst_port: tuple.dst.port, len, checksum: 0 }.emit(&mut l4);
    let out = Outgoing {
        input: flow.via.input,
        tuple,
        hop_limit,
        tos: 0,
        dont_fragment: false,
        l4: &l4,
        body,
        keep_body,
        gso,
        attach: flow.via.attach(),
    };
    let sent = r.send(edge, &out);
    sent.is_ok_and(|conn| {
        flow.via.sent(r, conn, flow.token);
        true
    })
}
