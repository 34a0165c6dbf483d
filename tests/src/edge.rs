//! The edge of a stack under test.

use crate::host::{FakeHost, PeekResult};
use crate::link::{Captured, FakeLink};
use crate::payload::{PayloadPool, SlotKind};
use core::net::IpAddr;
use hibernet_netstack::Time;
use hibernet_netstack::edge::{
    Close, Datagram, ErrorReport, FrameSink, Gso, HandedFrame, HostSockets, LinkId, LinkInfo, Payload, PayloadStore, Peek,
    RxChecksum, SendOpts, SockError, SockId, Source, TcpStatus, Token, TxError, TxFrame,
};
use hibernet_netstack::tuple::Endpoint;
use std::collections::VecDeque;

/// Payload in memory, links that record, and a [`FakeHost`].
#[derive(Debug, Default)]
pub struct FakeEdge {
    /// Payload slots.
    pub pool: PayloadPool,
    /// Guest links, in the order in which the stack has them.
    pub links: Vec<FakeLink>,
    /// The host's sockets.
    pub host: FakeHost,
    /// Calls of [`HostSockets::flush`].
    pub flushes: u64,
    /// Frames for other workers, not taken there yet.
    pub handed: VecDeque<Handed>,
    /// How many of them there may be.
    pub handed_room: usize,
    /// The payload that may stay in its socket until it is transmitted or released.
    pub put_off: Option<(SockId, Payload)>,
    /// Frames are in memory that guests share, and there is no room for a copy of one.
    pub stays_shared: bool,
}

/// A frame for another worker.
#[derive(Debug)]
pub struct Handed {
    /// Whose it is.
    pub to: u8,
    /// Where it came from.
    pub link: LinkId,
    /// All of it.
    pub bytes: Vec<u8>,
    /// State of its transport checksum.
    pub checksum: RxChecksum,
    /// Segmentation left undone.
    pub gso: Option<Gso>,
}

impl FakeEdge {
    /// Adds a link.
    pub fn add_link(&mut self, info: LinkInfo) {
        self.links.push(FakeLink::new(info));
    }

    /// # Panics
    /// If what was to stay in this socket for a moment is still there.
    fn assert_not_put_off(&self, sock: SockId) {
        let left = self.put_off.filter(|(s, p)| *s == sock && self.pool.is_live(p.slot));
        assert_eq!(left, None, "{sock:?} is used before what was peeked of it is transmitted or released");
    }

    /// Virtual time; told by the driver.
    pub fn now(&self) -> Time {
        self.host.now
    }
}

impl PayloadStore for FakeEdge {
    fn read(&self, p: Payload, out: &mut [u8]) -> usize {
        let bytes = self.pool.bytes(p);
        let n = bytes.len().min(out.len());
        out[..n].copy_from_slice(&bytes[..n]);
        n
    }

    fn checksum(&self, p: Payload) -> u16 {
        self.pool.checksum(p)
    }

    fn make_private(&mut self, _: Payload) -> bool {
        !self.stays_shared
    }

    fn stash(&mut self, bytes: &[u8]) -> Option<Payload> {
        self.pool.stash(bytes)
    }

    fn append(&mut self, to: &mut Payload, more: Payload) -> bool {
        self.pool.append(to, more)
    }

    fn release(&mut self, p: Payload) {
        self.pool.release(p);
    }
}

impl FrameSink for FakeEdge {
    fn transmit(&mut self, link: LinkId, frame: TxFrame<'_>) -> Result<(), TxError> {
        if let Some((_, whole)) = self.put_off
            && whole.slot == frame.body.slot
        {
            assert_eq!((frame.body, frame.keep_body), (whole, false), "not all of what was peeked for one frame");
        }
        let mut bytes = frame.head.to_vec();
        bytes.extend_from_slice(self.pool.bytes(frame.body));
        if !frame.keep_body {
            self.pool.release(frame.body);
        }
        let at = self.now();
        self.links[usize::from(link.0)].take(Captured { at, bytes, checksum: frame.checksum, gso: frame.gso })
    }

    fn hand_over(&mut self, to: u8, frame: HandedFrame<'_>) -> bool {
        if self.handed.len() >= self.handed_room {
            return false;
        }
        let HandedFrame { link, head, body, checksum, gso } = frame;
        let bytes = [head, self.pool.bytes(body)].concat();
        self.handed.push_back(Handed { to, link, bytes, checksum, gso });
        true
    }
}

impl HostSockets for FakeEdge {
    fn reserve(&mut self, _protocol: u8, _to: Endpoint, from: Source) -> bool {
        self.host.can_have(from)
    }

    fn tcp_connect(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        self.host.tcp_connect(token, to, from)
    }

    fn tcp_adopt(&mut self, sock: SockId, token: Token) -> Result<(), SockError> {
        self.host.tcp_adopt(sock, token)
    }

    fn tcp_send(&mut self, sock: SockId, data: Payload) -> Result<usize, SockError> {
        let bytes = self.pool.bytes(data);
        self.host.tcp_send(sock, bytes)
    }

    fn tcp_send_bytes(&mut self, sock: SockId, data: &[u8]) -> Result<usize, SockError> {
        self.host.tcp_send(sock, data)
    }

    fn tcp_peek(&mut self, sock: SockId, offset: u32, max: u32) -> Result<Peek, SockError> {
        self.assert_not_put_off(sock);
        Ok(match self.host.tcp_peek(sock, offset, max)? {
            PeekResult::Data(bytes) => Peek::Data(self.pool.put(SlotKind::Socket, bytes)),
            PeekResult::Empty => Peek::Empty,
            PeekResult::Eof => Peek::Eof,
        })
    }

    fn tcp_peek_run(&mut self, sock: SockId, offset: u32, max: u32, _: u32, whole: Option<LinkId>) -> Result<Peek, SockError> {
        let peeked = self.tcp_peek(sock, offset, max)?;
        if let (Peek::Data(p), Some(link)) = (peeked, whole) {
            assert!(usize::from(link.0) < self.links.len(), "{link:?} is none");
            self.put_off = Some((sock, p));
        }
        Ok(peeked)
    }

    fn tcp_consume(&mut self, sock: SockId, n: u32) -> Result<(), SockError> {
        self.assert_not_put_off(sock);
        self.host.tcp_consume(sock, n)
    }

    fn tcp_unread(&mut self, sock: SockId) -> u32 {
        self.host.tcp(sock).unconsumed() as u32
    }

    fn tcp_shutdown(&mut self, sock: SockId) -> Result<(), SockError> {
        self.host.tcp_shutdown(sock)
    }

    fn tcp_space(&mut self, sock: SockId) -> u32 {
        self.host.tcp_space(sock)
    }

    fn tcp_unacked(&mut self, sock: SockId) -> u32 {
        self.host.tcp_unacked(sock)
    }

    fn tcp_status(&mut self, sock: SockId) -> TcpStatus {
        self.host.tcp_status(sock)
    }

    fn udp_open(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        self.host.udp_open(token, to, from)
    }

    fn udp_send(&mut self, sock: SockId, data: Payload, opts: &SendOpts) -> Result<(), SockError> {
        let bytes = self.pool.bytes(data).to_vec();
        self.host.udp_send(sock, bytes, *opts)
    }

    fn udp_recv(&mut self, sock: SockId, out: &mut [Option<Datagram>]) -> Result<usize, SockError> {
        self.host.recv_error(sock)?;
        let mut n = 0;
        while n < out.len() {
            let Some(d) = self.host.udp_recv(sock)? else { break };
            let payload = self.pool.put(SlotKind::Socket, d.data);
            out[n] = Some(Datagram { payload, from: d.from, to: d.to, segment: d.segment, hop_limit: d.hop_limit });
            n += 1;
        }
        Ok(n)
    }

    fn ping_open(&mut self, token: Token, to: IpAddr, ident: u16, from: Option<IpAddr>) -> Result<SockId, SockError> {
        self.host.ping_open(token, to, ident, from)
    }

    fn ping_send(&mut self, sock: SockId, seq: u16, data: Payload, opts: &SendOpts) -> Result<(), SockError> {
        let bytes = self.pool.bytes(data).to_vec();
        self.host.ping_send(sock, seq, bytes, *opts)
    }

    fn ping_recv(&mut self, sock: SockId) -> Result<Option<(u16, Datagram)>, SockError> {
        self.host.recv_error(sock)?;
        Ok(self.host.ping_recv(sock)?.map(|(seq, d)| {
            let payload = self.pool.put(SlotKind::Socket, d.data);
            (seq, Datagram { payload, from: d.from, to: d.to, segment: None, hop_limit: d.hop_limit })
        }))
    }

    fn take_error(&mut self, sock: SockId) -> Option<SockError> {
        self.host.take_error(sock)
    }

    fn take_report(&mut self, sock: SockId) -> Option<ErrorReport> {
        let r = self.host.take_report(sock)?;
        let payload = self.pool.put(SlotKind::Socket, r.payload);
        Some(ErrorReport { icmp: r.icmp, offender: r.offender, destination: r.destination, payload })
    }

    fn close(&mut self, sock: SockId, how: Close) {
        self.assert_not_put_off(sock);
        self.host.close(sock, how);
    }

    fn flush(&mut self) {
        self.flushes += 1;
    }
}
