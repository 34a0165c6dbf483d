//! The DNS forwarder: UDP queries to our DNS addresses go to the host's resolvers. (TCP goes through the TCP translator.)
//!
//! RFC 5625 is followed: messages pass unread but for header and question, EDNS included. As RFC 5452 wants, each
//! query has a socket, so a source port, and an identifier of its own, and only what the asked resolver says to this
//! question counts as its answer.

use super::names;
use crate::edge::{Close, Datagram, Edge, Payload, Ready, SendOpts, SockError, SockId, Source, Token, TokenKind};
use crate::flow::Slab;
use crate::packet::Packet;
use crate::router::{Attach, Outgoing, Router};
use crate::time::Time;
use crate::timers::Deadline;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::dns::{self, Message};
use crate::wire::{Writer, udp};
use core::time::Duration;

/// Port of the service.
pub(super) const PORT: u16 = 53;
/// How long a resolver may take before the next one is asked.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// How often resolvers are asked for one query.
pub(super) const MAX_TRIES: u8 = 4;
/// Longest query, in bytes; a common query has less than 100.
pub(super) const MAX_QUERY: usize = 4096;
/// Header and longest question.
const MAX_START: usize = dns::HEADER_LEN + dns::MAX_NAME + 4;

/// The queries in flight.
#[derive(Debug)]
pub(super) struct Forwarder {
    pub(super) queries: Slab<Query>,
}

/// A query in flight.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) token: Token,
    pub(super) guest: Endpoint,
    /// Our address and port that it was sent to, where its answer must come from.
    pub(super) ours: Endpoint,
    /// The message as the guest sent it.
    pub(super) message: Box<[u8]>,
    pub(super) start: Message,
    /// Identifier towards the resolver.
    pub(super) id: u16,
    pub(super) asked: Option<(SockId, Endpoint)>,
    /// Place in the list of resolvers of the one to be asked next.
    pub(super) next: usize,
    pub(super) tries: u8,
    /// Tries that ended with an error, not with silence.
    pub(super) failed: u8,
    pub(super) deadline: Deadline,
}

impl Forwarder {
    pub(super) fn new(max: u32) -> Self {
        Forwarder { queries: Slab::new(max) }
    }

    /// A datagram to our DNS port.
    pub(super) fn input<E: Edge>(
        &mut self,
        r: &mut Router,
        p: &Packet<'_>,
        payload: Payload,
        edge: &mut E,
    ) -> Result<(), DropReason> {
        let mut buf = [0; MAX_QUERY];
        if payload.len() > buf.len() {
            return Err(DropReason::BadDns);
        }
        if p.ip.src.is_unspecified() {
            return Err(DropReason::MartianSource);
        }
        let n = edge.read(payload, &mut buf);
        let message = &buf[..n];
        let Tuple { src: guest, dst: ours, .. } = p.tuple();
        let start = match Message::parse(message) {
            Ok(m) if !m.is_response() => m,
            Ok(_) => return Err(DropReason::BadDns),
            Err(_) => {
                refuse(r, edge, ours, guest, message, None, Message::FORMERR);
                return Err(DropReason::BadDns);
            }
        };
        if self.queries.iter().any(|(_, q)| q.guest == guest && q.is_same(message, &start)) {
            return Err(DropReason::DnsDuplicate);
        }
        if answer(r, edge, ours, guest, message, &start) {
            r.stats.dns_queries += 1;
            r.stats.dns_answers += 1;
            return Ok(());
        }
        let made = self.queries.insert(|index, generation| Query {
            token: Token::new(TokenKind::Dns, index, generation),
            guest,
            ours,
            message: message.into(),
            start,
            id: 0,
            asked: None,
            next: 0,
            tries: 0,
            failed: 0,
            deadline: Deadline::default(),
        });
        let index = made.ok_or(DropReason::DnsLimit)?;
        r.stats.dns_queries += 1;
        self.ask_next(r, index, edge);
        Ok(())
    }

    /// An event at a query's socket.
    pub(super) fn ready<E: Edge>(&mut self, r: &mut Router, token: Token, ready: Ready, edge: &mut E) {
        let Some(q) = self.queries.get_live(token.index(), token.generation()) else { return };
        let Some((sock, _)) = q.asked else { return };
        let mut failed = false;
        if ready.readable {
            match q.receive(r, sock, edge) {
                Ok(true) => {
                    r.stats.dns_answers += 1;
                    return self.end(r, token.index(), edge);
                }
                Ok(false) => {}
                Err(_) => failed = true,
            }
        }
        if ready.error {
            // Whatever it says: this resolver does not answer.
            while let Some(report) = edge.take_report(sock) {
                edge.release(report.payload);
            }
            failed = true;
        }
        if failed {
            q.failed += 1;
            self.ask_next(r, token.index(), edge);
        }
    }

    /// A query's deadline.
    pub(super) fn timer<E: Edge>(&mut self, r: &mut Router, token: Token, queued: Time, edge: &mut E) {
        let Some(q) = self.queries.get_live(token.index(), token.generation()) else { return };
        if r.timers.fired(&mut q.deadline, token, queued, r.now) {
            self.ask_next(r, token.index(), edge);
        }
    }

    /// Asks the next resolver; if there is no point in more tries, the guest is told.
    fn ask_next<E: Edge>(&mut self, r: &mut Router, index: u32, edge: &mut E) {
        let Some(q) = self.queries.get_mut(index) else { return };
        // Once as many tries failed outright as there are resolvers, none of them will do better.
        while q.tries < MAX_TRIES && usize::from(q.failed) < r.cfg.resolvers.len() {
            let to = Endpoint::new(r.cfg.resolvers[q.next % r.cfg.resolvers.len()], PORT);
            q.next = (q.next + 1) % r.cfg.resolvers.len();
            q.tries += 1;
            if q.ask(r, to, edge).is_ok() {
                r.timers.set(&mut q.deadline, q.token, r.now + TRY_TIMEOUT);
                return;
            }
            q.failed += 1;
        }
        refuse(r, edge, q.ours, q.guest, &q.message, Some(&q.start), Message::SERVFAIL);
        self.end(r, index, edge);
    }

    fn end<E: Edge>(&mut self, r: &mut Router, index: u32, edge: &mut E) {
        if let Some(mut q) = self.queries.remove(index) {
            r.timers.cancel(&mut q.deadline);
            q.close(edge);
        }
    }
}

impl Query {
    /// Whether a message of the same guest endpoint is this query once more.
    fn is_same(&self, message: &[u8], start: &Message) -> bool {
        let end = usize::from(self.start.question_end);
        self.start.id == start.id && self.start.question_end == start.question_end && self.message[2..end] == message[2..end]
    }

    fn close<E: Edge>(&mut self, edge: &mut E) {
        if let Some((sock, _)) = self.asked.take() {
            edge.close(sock, Close::Graceful);
        }
    }

    /// Sends the query to a resolver; again from the same socket if that is the one that was asked before, so that its late
    /// answer still counts.
    fn ask<E: Edge>(&mut self, r: &mut Router, to: Endpoint, edge: &mut E) -> Result<(), SockError> {
        let sock = match self.asked {
            Some((sock, asked)) if asked == to => sock,
            _ => {
                self.close(edge);
                self.id = r.rng.u32() as u16;
                let sock = edge.udp_open(self.token, to, Source::ANY)?;
                self.asked = Some((sock, to));
                sock
            }
        };
        let guest_id = self.start.id;
        self.message[..2].copy_from_slice(&self.id.to_be_bytes());
        let stashed = edge.stash(&self.message);
        self.message[..2].copy_from_slice(&guest_id.to_be_bytes());
        let data = stashed.ok_or(SockError::NoResources)?;
        let opts = SendOpts { hop_limit: super::HOP_LIMIT, tos: 0, segment: None, to: None, from: None, dont_fragment: false };
        let sent = edge.udp_send(sock, data, &opts);
        edge.release(data);
        sent
    }

    /// Reads all that came. Returns whether the answer was among it, and went to the guest.
    fn receive<E: Edge>(&self, r: &mut Router, sock: SockId, edge: &mut E) -> Result<bool, SockError> {
        let mut answered = false;
        loop {
            let mut datagrams = [None; 4];
            let n = match edge.udp_recv(sock, &mut datagrams) {
                Ok(n) => n,
                Err(_) if answered => return Ok(true),
                Err(e) => return Err(e),
            };
            for d in datagrams.into_iter().flatten() {
                let answer = if answered { None } else { self.find_answer(r, &d, edge) };
                match answer {
                    Some(answer) => {
                        answered = true;
                        self.relay(r, answer, edge);
                    }
                    None => edge.release(d.payload),
                }
            }
            if n < datagrams.len() {
                return Ok(answered);
            }
        }
    }

    /// The answer in what was received as one piece, of which each segment is a datagram.
    fn find_answer<E: Edge>(&self, r: &mut Router, d: &Datagram, edge: &E) -> Option<Payload> {
        let step = d.segment.map_or(d.payload.len(), usize::from).max(1);
        for at in (0..d.payload.len().max(1)).step_by(step) {
            let piece = d.payload.slice(at, step);
            let mut start = [0; MAX_START];
            let n = edge.read(piece, &mut start);
            if self.asked.is_some_and(|(_, to)| to == d.from) && self.is_answer(&start[..n]) {
                return Some(piece);
            }
            r.drop(DropReason::BadDns);
        }
        None
    }

    /// Whether a message that starts with `b` answers this query.
    fn is_answer(&self, b: &[u8]) -> bool {
        let Ok(m) = Message::parse(b) else { return false };
        if !m.is_response() || m.id != self.id {
            return false;
        }
        if m.questions == 0 {
            // Old servers tell errors, of EDNS above all, with the bare header.
            return m.rcode() != 0 || self.start.questions == 0;
        }
        let (asked, told) = (usize::from(self.start.question_end), usize::from(m.question_end));
        if self.start.questions == 0 || asked != told {
            return false;
        }
        // Type and class behind the name; case of the name does not matter (RFC 4343).
        let class = asked - 4;
        self.message[class..asked] == b[class..told]
            && self.message[dns::HEADER_LEN..class].eq_ignore_ascii_case(&b[dns::HEADER_LEN..class])
    }

    /// Hands an answer to the guest, under the guest's identifier. All but its header stays in the edge's buffer.
    fn relay<E: Edge>(&self, r: &mut Router, answer: Payload, edge: &mut E) {
        let mut l4 = [0; udp::HEADER_LEN + dns::HEADER_LEN];
        edge.read(answer, &mut l4[udp::HEADER_LEN..]);
        l4[udp::HEADER_LEN..udp::HEADER_LEN + 2].copy_from_slice(&self.start.id.to_be_bytes());
        send(r, edge, self.ours, self.guest, &mut l4, answer.slice(dns::HEADER_LEN, answer.len()));
    }
}

/// Sends a datagram to the guest: `l4` has room for the UDP header and the data that `body` goes on with.
fn send<E: Edge>(r: &mut Router, edge: &mut E, from: Endpoint, to: Endpoint, l4: &mut [u8], body: Payload) {
    let len = u16::try_from(l4.len() + body.len()).unwrap_or(u16::MAX);
    udp::Header { src_port: from.port, dst_port: to.port, len, checksum: 0 }.emit(l4);
    let out = Outgoing {
        input: None,
        tuple: Tuple { src: from, dst: to, proto: proto::UDP },
        hop_limit: super::HOP_LIMIT,
        tos: 0,
        dont_fragment: false,
        l4,
        body,
        keep_body: false,
        gso: None,
        attach: Attach::LookUp,
    };
    // A drop is counted by the router; the guest asks again.
    let _ = r.send(edge, &out);
}

/// Answers a query for a guest's name, or for that of its address. Whether it was one.
fn answer<E: Edge>(r: &mut Router, edge: &mut E, from: Endpoint, to: Endpoint, query: &[u8], start: &Message) -> bool {
    let mut message = [0; udp::HEADER_LEN + MAX_START + dns::RECORD_LEN + dns::EDNS_LEN];
    let mut w = Writer::new(&mut message);
    w.zeros(udp::HEADER_LEN);
    if !names::answer(r, query, start, &mut w) {
        return false;
    }
    let n = w.len();
    send(r, edge, from, to, &mut message[..n], Payload::EMPTY);
    true
}

/// Answers a query with an error of our own.
fn refuse<E: Edge>(
    r: &mut Router,
    edge: &mut E,
    from: Endpoint,
    to: Endpoint,
    query: &[u8],
    start: Option<&Message>,
    rcode: u16,
) {
    let mut message = [0; udp::HEADER_LEN + MAX_START + dns::EDNS_LEN];
    let mut w = Writer::new(&mut message);
    w.zeros(udp::HEADER_LEN);
    if dns::put_error(query, start, rcode, &mut w) {
        let n = w.len();
        send(r, edge, from, to, &mut message[..n], Payload::EMPTY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    fn query(message: &[u8], id: u16) -> Query {
        let at = Endpoint::new(core::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
        Query {
            token: Token::new(TokenKind::Dns, 0, 0),
            guest: at,
            ours: at,
            message: message.into(),
            start: Message::parse(message).unwrap(),
            id,
            asked: None,
            next: 0,
            tries: 0,
            failed: 0,
            deadline: Deadline::default(),
        }
    }

    fn message(id: u16, flags: u16, question: &[u8]) -> Vec<u8> {
        let mut b = id.to_be_bytes().to_vec();
        b.extend(flags.to_be_bytes());
        b.extend([0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
        b.extend(question);
        b
    }

    #[test]
    fn only_a_response_with_this_identifier_and_question_is_the_answer() {
        let q = query(&message(1, 0x0100, b"\x02ab\0\0\x01\0\x01"), 7);
        assert!(q.is_answer(&message(7, 0x8180, b"\x02ab\0\0\x01\0\x01")));
        assert!(q.is_answer(&message(7, 0x8180, b"\x02Ab\0\0\x01\0\x01")), "case");
        assert!(q.is_answer(&message(7, 0x8181, b"")), "bare error");
        for (what, bad) in [
            ("identifier of the guest", message(1, 0x8180, b"\x02ab\0\0\x01\0\x01")),
            ("query", message(7, 0x0180, b"\x02ab\0\0\x01\0\x01")),
            ("name", message(7, 0x8180, b"\x02ac\0\0\x01\0\x01")),
            ("longer name", message(7, 0x8180, b"\x02ab\x01c\0\0\x01\0\x01")),
            ("type", message(7, 0x8180, b"\x02ab\0\0\x1c\0\x01")),
            ("class", message(7, 0x8180, b"\x02ab\0\0\x01\0\x03")),
            ("no question", message(7, 0x8180, b"")),
            ("short", message(7, 0x8180, b"\x02ab\0\0\x01\0")),
        ] {
            assert!(!q.is_answer(&bad), "{what}");
        }
    }

    #[test]
    fn types_are_not_compared_as_letters() {
        let q = query(&message(1, 0x0100, b"\x01a\0\0\x41\0\x01"), 7);
        assert!(!q.is_answer(&message(7, 0x8180, b"\x01a\0\0\x61\0\x01")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(b in proptest::collection::vec(any::<u8>(), 0..300)) {
            query(&message(1, 0x0100, b"\x02ab\0\0\x01\0\x01"), 7).is_answer(&b);
        }
    }
}
