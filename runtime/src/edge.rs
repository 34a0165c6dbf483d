//! The edge of the stack: payload memory, and what stands behind the traits of `hibernet_netstack::edge`.

use crate::link::Link;
use crate::slots::{SLOT_SIZE, Slots};
use crate::sock::{Sockets, is_unread};
use crate::worker::Inbox;
use hibernet_netstack::edge::{
    Close, Datagram, ErrorReport, FrameSink, HandedFrame, HostSockets, LinkId, Payload, PayloadStore, Peek, SendOpts, SockError,
    SockId, Source, TcpStatus, Token, TxError, TxFrame,
};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::checksum::Sum;
use std::net::IpAddr;
use std::sync::Arc;

/// What a worker's stack acts with: payload memory, links, host sockets.
pub struct RuntimeEdge {
    /// Payload memory, shared by links and sockets.
    pub slots: Slots,
    /// Links, by their number in the stack; none where nobody is any more.
    pub links: Vec<Option<Box<dyn Link>>>,
    /// Host sockets.
    pub sockets: Sockets,
    /// What all workers of the network have for each other, this one's included; none if there is but one.
    pub(crate) inboxes: Vec<Arc<Inbox>>,
}

impl RuntimeEdge {
    /// Of a network's only worker.
    pub fn new(slots: Slots, links: Vec<Option<Box<dyn Link>>>, sockets: Sockets) -> RuntimeEdge {
        RuntimeEdge { slots, links, sockets, inboxes: Vec::new() }
    }
}

impl std::fmt::Debug for RuntimeEdge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeEdge")
            .field("slots_in_use", &self.slots.in_use())
            .field("links", &self.links.len())
            .field("sockets", &self.sockets)
            .finish()
    }
}

impl PayloadStore for RuntimeEdge {
    fn read(&self, p: Payload, out: &mut [u8]) -> usize {
        if is_unread(p.slot) {
            return self.sockets.look_at_unread(p, |bytes| {
                let n = bytes.len().min(out.len());
                out[..n].copy_from_slice(&bytes[..n]);
                n
            });
        }
        self.slots.read(p, out)
    }

    fn checksum(&self, p: Payload) -> u16 {
        if is_unread(p.slot) {
            return self.sockets.look_at_unread(p, |bytes| Sum::default().bytes(bytes).fold());
        }
        if self.slots.lent(p).is_none() {
            return Sum::default().bytes(self.slots.bytes(p)).fold();
        }
        // Of an even length, so that only the last part may be odd.
        let mut part = [0; 4096];
        let parts = (0..p.len()).step_by(part.len());
        let sum = parts.fold(Sum::default(), |sum, at| {
            let n = self.slots.read(p.slice(at, part.len()), &mut part);
            sum.bytes(&part[..n])
        });
        sum.fold()
    }

    fn make_private(&mut self, p: Payload) -> bool {
        self.slots.private(p).is_some()
    }

    fn stash(&mut self, bytes: &[u8]) -> Option<Payload> {
        if bytes.len() > SLOT_SIZE {
            return None;
        }
        let slot = self.slots.take()?;
        self.slots.slot_mut(slot)[..bytes.len()].copy_from_slice(bytes);
        Some(Payload { slot, offset: 0, len: bytes.len() as u32 })
    }

    fn append(&mut self, to: &mut Payload, more: Payload) -> bool {
        self.slots.append(to, more)
    }

    fn release(&mut self, p: Payload) {
        self.slots.give(p.slot);
    }
}

impl FrameSink for RuntimeEdge {
    fn transmit(&mut self, link: LinkId, frame: TxFrame<'_>) -> Result<(), TxError> {
        // No link has what another one lends.
        let body = self.slots.private(frame.body).ok_or(TxError::Full)?;
        let frame = TxFrame { body, keep_body: frame.keep_body || body != frame.body, ..frame };
        match self.links.get_mut(usize::from(link.0)).and_then(Option::as_mut) {
            Some(l) if is_unread(frame.body.slot) => {
                if !frame.keep_body
                    && let Some(mut body) = self.sockets.take_unread(frame.body)
                {
                    return l.send_unread(&mut self.slots, frame, &mut body);
                }
                let body = self.sockets.read_unread(&mut self.slots, frame.body).ok_or(TxError::Full)?;
                l.send(&mut self.slots, TxFrame { body, keep_body: false, ..frame })
            }
            Some(l) => l.send(&mut self.slots, frame),
            None => {
                if !frame.keep_body {
                    self.slots.give(frame.body.slot);
                }
                Err(TxError::Down)
            }
        }
    }

    fn hand_over(&mut self, to: u8, frame: HandedFrame<'_>) -> bool {
        let Some(body) = self.slots.private(frame.body) else { return false };
        self.inboxes.get(usize::from(to)).is_some_and(|inbox| inbox.put(&self.slots, &HandedFrame { body, ..frame }))
    }
}

impl HostSockets for RuntimeEdge {
    fn reserve(&mut self, protocol: u8, to: Endpoint, from: Source) -> bool {
        self.sockets.reserve(protocol, to, from)
    }

    fn tcp_connect(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        self.sockets.tcp_connect(token, to, from)
    }

    fn tcp_adopt(&mut self, sock: SockId, token: Token) -> Result<(), SockError> {
        self.sockets.tcp_adopt(sock, token)
    }

    fn tcp_send(&mut self, sock: SockId, data: Payload) -> Result<usize, SockError> {
        match self.slots.lent(data) {
            Some(lent) => self.sockets.tcp_send_lent(sock, lent),
            None => self.sockets.tcp_send(sock, self.slots.bytes(data)),
        }
    }

    fn tcp_send_bytes(&mut self, sock: SockId, data: &[u8]) -> Result<usize, SockError> {
        self.sockets.tcp_send(sock, data)
    }

    fn tcp_peek(&mut self, sock: SockId, offset: u32, max: u32) -> Result<Peek, SockError> {
        self.sockets.tcp_peek(&mut self.slots, sock, offset, max)
    }

    fn tcp_peek_run(&mut self, sock: SockId, offset: u32, max: u32, more: u32, whole: Option<LinkId>) -> Result<Peek, SockError> {
        let link = whole.and_then(|l| self.links.get(usize::from(l.0))?.as_ref());
        let in_place = link.is_some_and(|l| l.reads_in_place());
        self.sockets.tcp_peek_run(&mut self.slots, sock, offset, max, more, in_place)
    }

    fn tcp_consume(&mut self, sock: SockId, n: u32) -> Result<(), SockError> {
        self.sockets.tcp_consume(&mut self.slots, sock, n)
    }

    fn tcp_unread(&mut self, sock: SockId) -> u32 {
        self.sockets.tcp_unread(sock)
    }

    fn tcp_shutdown(&mut self, sock: SockId) -> Result<(), SockError> {
        self.sockets.tcp_shutdown(sock)
    }

    fn tcp_space(&mut self, sock: SockId) -> u32 {
        self.sockets.tcp_space(sock)
    }

    fn tcp_unacked(&mut self, sock: SockId) -> u32 {
        self.sockets.tcp_unacked(sock)
    }

    fn tcp_status(&mut self, sock: SockId) -> TcpStatus {
        self.sockets.tcp_status(sock)
    }

    fn udp_open(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        self.sockets.udp_open(token, to, from)
    }

    fn udp_send(&mut self, sock: SockId, data: Payload, opts: &SendOpts) -> Result<(), SockError> {
        // It may be gathered, and sent when it is lent no longer.
        let data = self.slots.private(data).ok_or(SockError::NoResources)?;
        self.sockets.udp_send(&mut self.slots, sock, data, opts)
    }

    fn udp_recv(&mut self, sock: SockId, out: &mut [Option<Datagram>]) -> Result<usize, SockError> {
        self.sockets.udp_recv(&mut self.slots, sock, out)
    }

    fn ping_open(&mut self, token: Token, to: IpAddr, ident: u16, from: Option<IpAddr>) -> Result<SockId, SockError> {
        self.sockets.ping_open(token, to, ident, from)
    }

    fn ping_send(&mut self, sock: SockId, seq: u16, data: Payload, opts: &SendOpts) -> Result<(), SockError> {
        let data = self.slots.private(data).ok_or(SockError::NoResources)?;
        self.sockets.ping_send(&self.slots, sock, seq, data, opts)
    }

    fn ping_recv(&mut self, sock: SockId) -> Result<Option<(u16, Datagram)>, SockError> {
        self.sockets.ping_recv(&mut self.slots, sock)
    }

    fn take_error(&mut self, sock: SockId) -> Option<SockError> {
        self.sockets.take_error(sock)
    }

    fn take_report(&mut self, sock: SockId) -> Option<ErrorReport> {
        self.sockets.take_report(&mut self.slots, sock)
    }

    fn close(&mut self, sock: SockId, how: Close) {
        self.sockets.close(&mut self.slots, sock, how);
    }

    fn flush(&mut self) {
        self.sockets.flush(&mut self.slots);
        self.sockets.release_reserved();
    }
}
