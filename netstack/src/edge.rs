//! The edge of the stack: what the outside must provide.
//!
//! The stack decides; an [`Edge`] acts. It owns links, host sockets and every byte of payload. The stack
//! sees payload only as a [`Payload`] handle, so that bulk data goes between a socket and a frame with no
//! copy but the kernel's, and so that memory that a guest can change meanwhile is never parsed in place.
//!
//! Handles live until the end of the call into the stack in which they were obtained (frames), or until
//! they are transmitted or released (peeked, received and stashed payload). All calls are non-blocking.

pub use crate::token::{NoToken, Token, TokenKind};
use crate::tuple::Endpoint;
use crate::wire::{IcmpQuote, Mac};
use core::net::IpAddr;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// A range of bytes that the edge owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Which buffer; [`Payload::NO_SLOT`] for an empty payload without one.
    pub slot: u32,
    /// First byte in the buffer.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Payload {
    /// Slot of [`Payload::EMPTY`].
    pub const NO_SLOT: u32 = u32::MAX;
    /// No bytes.
    pub const EMPTY: Payload = Payload { slot: Self::NO_SLOT, offset: 0, len: 0 };

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part from byte `from`, at most `len` long; clamped to the payload.
    pub fn slice(&self, from: usize, len: usize) -> Payload {
        let from = from.min(self.len());
        let len = len.min(self.len() - from);
        Payload { slot: self.slot, offset: self.offset + from as u32, len: len as u32 }
    }
}

/// Number of a guest link of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkId(pub u8);

/// Segmentation that the receiver of a frame is to do (or that the sender left undone).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// TCP or UDP.
    pub kind: GsoKind,
    /// Payload bytes per segment.
    pub size: u16,
}

/// Kinds of segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP (USO), either family.
    Udp,
}

/// What is known of the transport checksum of a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksum {
    /// Nothing: it must be verified.
    Unverified,
    /// Verified, or never computed because the frame did not cross a wire (virtio-net's NEEDS_CSUM).
    Trusted,
}

/// A frame from the guest.
#[derive(Clone, Copy, Debug)]
pub struct RxFrame<'a> {
    /// Where it came from.
    pub link: LinkId,
    /// The first bytes of the frame, at most [`HEAD_MAX`], in memory that nobody else can change.
    pub head: &'a [u8],
    /// The whole frame.
    pub frame: Payload,
    /// State of its transport checksum.
    pub checksum: RxChecksum,
    /// Segmentation left undone.
    pub gso: Option<Gso>,
}

/// How many bytes of a frame are copied for parsing. What does not fit (chains of extension headers) is dropped.
pub const HEAD_MAX: usize = 256;

/// Completion of a checksum that the link is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxChecksum {
    /// Where summing starts, from the start of the frame.
    pub start: u16,
    /// Where the result goes, from `start`.
    pub offset: u16,
}

/// A frame for the guest: `head` followed by `body`.
#[derive(Clone, Copy, Debug)]
pub struct TxFrame<'a> {
    /// Headers, or a whole small frame.
    pub head: &'a [u8],
    /// What follows. The link keeps or copies it: after the call the handle is gone, whatever the result,
    /// unless `keep_body`.
    pub body: Payload,
    /// The body's handle stays valid (it is part of a frame being forwarded, or more pieces follow).
    pub keep_body: bool,
    /// Checksum to be completed. Only if the link's capabilities have it.
    pub checksum: Option<TxChecksum>,
    /// Segmentation to be done. Only if the link's capabilities have it.
    pub gso: Option<Gso>,
}

/// Why a frame was not taken by a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxError {
    /// No room now.
    #[error("the link's queue is full")]
    Full,
    /// Closed, or administratively down.
    #[error("the link is down")]
    Down,
    /// Longer than the link can carry.
    #[error("the frame is larger than the link can carry")]
    TooBig,
}

/// TCP super-segments that a link carries. In saved state only whether there are any: the link that takes its place says which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum Tso {
    /// None.
    #[default]
    None,
    /// Those over IPv4.
    V4,
    /// Those of both families.
    Both,
}

impl Tso {
    /// Whether those of this family are carried.
    pub const fn carries(self, v6: bool) -> bool {
        match self {
            Tso::None => false,
            Tso::V4 => !v6,
            Tso::Both => true,
        }
    }
}

impl From<bool> for Tso {
    fn from(all: bool) -> Tso {
        if all { Tso::Both } else { Tso::None }
    }
}

impl From<Tso> for bool {
    fn from(t: Tso) -> bool {
        t != Tso::None
    }
}

/// What a link can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// It completes transport checksums on transmit.
    pub checksum: bool,
    /// It carries TCP segments of up to 64 KiB.
    pub tso: Tso,
    /// It carries UDP datagrams to be cut into equal ones.
    pub uso: bool,
    /// MAC address of the guest's side, if known beforehand.
    pub guest_mac: Option<Mac>,
    /// Most bytes of one connection that should be on their way from the guest at a time, because the link's queue loses more or
    /// because more is slower; `u32::MAX` for no limit. The window that the guest is offered is no larger. At least 65,535.
    pub in_flight: u32,
}

/// Payload memory.
pub trait PayloadStore {
    /// Copies the start of `p` to `out`; returns how many bytes, the smaller of both lengths.
    fn read(&self, p: Payload, out: &mut [u8]) -> usize;

    /// One's-complement sum of the bytes as big-endian 16-bit words, an odd last byte padded with zero. Not inverted; folded to 16 bits.
    fn checksum(&self, p: Payload) -> u16;

    /// Has nobody change `p` from now on, part of a frame in memory that its guest shares: what is judged is what is sent. Whether there is room for that.
    fn make_private(&mut self, p: Payload) -> bool;

    /// Copies bytes into a buffer of the edge's; `None` if there is no room.
    fn stash(&mut self, bytes: &[u8]) -> Option<Payload>;

    /// Copies `more` behind `to`, two datagrams received in this call, and releases `more`. False if there is no room, or the
    /// store does not do this; then nothing has changed.
    fn append(&mut self, to: &mut Payload, more: Payload) -> bool {
        let _ = (to, more);
        false
    }

    /// Gives back a payload that was stashed, peeked or received and will not be transmitted.
    fn release(&mut self, p: Payload);
}

/// The guest's side.
pub trait FrameSink: PayloadStore {
    /// Sends a frame. Order is kept per link.
    fn transmit(&mut self, link: LinkId, frame: TxFrame<'_>) -> Result<(), TxError>;

    /// Takes a frame from a guest, `head` and then all of `body`, to the worker whose it is, where it goes to [`Stack::receive_handed`]; whether that has
    /// room for it. The bytes are copied. Called only if there are [several workers](crate::workers).
    ///
    /// [`Stack::receive_handed`]: crate::Stack::receive_handed
    fn hand_over(&mut self, to: u8, frame: HandedFrame<'_>) -> bool {
        let _ = (to, frame);
        false
    }
}

/// A frame from a guest that goes to another worker.
#[derive(Clone, Copy, Debug)]
pub struct HandedFrame<'a> {
    /// Where it came from.
    pub link: LinkId,
    /// Its first bytes, if they are not those of `body`.
    pub head: &'a [u8],
    /// The rest. The handle stays valid.
    pub body: Payload,
    /// State of its transport checksum.
    pub checksum: RxChecksum,
    /// Segmentation left undone.
    pub gso: Option<Gso>,
}

/// Handle of a host socket, given out by the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SockId(pub u32);

/// What happened at a socket. Edge-triggered: the stack must go on until a call says that it would block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Data, a datagram, or the peer's FIN may be read.
    pub readable: bool,
    /// Connected, or room to send again.
    pub writable: bool,
    /// The peer closed its sending side.
    pub peer_closed: bool,
    /// An error is pending (see [`HostSockets::take_error`]).
    pub error: bool,
}

/// An error of a host socket, in the terms in which the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SockError {
    /// The peer refused (RST to a SYN, or port unreachable).
    #[error("connection refused")]
    Refused,
    /// The peer reset the connection.
    #[error("connection reset")]
    Reset,
    /// No answer in time.
    #[error("timed out")]
    TimedOut,
    /// Network unreachable, or no route.
    #[error("network unreachable")]
    NetUnreachable,
    /// Host unreachable.
    #[error("host unreachable")]
    HostUnreachable,
    /// The host's policy forbids it (EPERM, EACCES).
    #[error("not permitted")]
    Prohibited,
    /// The datagram is too long for the path; its MTU in bytes if known.
    #[error("message too long")]
    TooBig(Option<u16>),
    /// Descriptors, buffers or ports ran out.
    #[error("out of host resources")]
    NoResources,
    /// The address cannot be used (family switched off, address not there).
    #[error("address not available")]
    NotAvailable,
    /// Anything else, with the host's error number.
    #[error("host error {0}")]
    Other(i32),
}

/// An ICMP error or local error about something that a datagram socket sent.
#[derive(Clone, Copy, Debug)]
pub struct ErrorReport {
    /// What it says, as an ICMP message of the socket's family.
    pub icmp: IcmpQuote,
    /// Who sent it; `None` if the error is the host's own.
    pub offender: Option<IpAddr>,
    /// Where the datagram had been sent to, if known.
    pub destination: Option<Endpoint>,
    /// Start of the payload of the datagram that caused it, as far as it was quoted. For ping sockets from the ICMP header
    /// of the echo request on, as it was on the wire: type, code, checksum, identifier, sequence number, data.
    pub payload: Payload,
}

/// Result of a peek.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// Bytes at the offset asked for. If they are fewer than asked for, no more are there now; `readable` announces more.
    Data(Payload),
    /// Nothing there yet.
    Empty,
    /// The peer's FIN stands at the offset asked for.
    Eof,
}

/// State of a TCP socket, from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpStatus {
    /// The window that the peer offers, in bytes; `None` if the host does not say.
    pub peer_window: Option<u32>,
    /// Smoothed round-trip time to the peer.
    pub rtt: Duration,
    /// MSS towards the peer.
    pub mss: u16,
    /// Whether the connection is established.
    pub established: bool,
}

/// How to end a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Unsent data is still sent, then FIN.
    Graceful,
    /// RST to the peer, for TCP; the same as graceful for others.
    Reset,
}

/// A datagram from a host socket.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// The bytes. To be transmitted or released.
    pub payload: Payload,
    /// Sender. The port is the echo identifier for ping sockets.
    pub from: Endpoint,
    /// The local address that it was sent to, if known.
    pub to: Option<IpAddr>,
    /// Equal datagrams were merged; this is the length of each but the last (UDP GRO).
    pub segment: Option<u16>,
    /// TTL or hop limit with which it came, if known.
    pub hop_limit: Option<u8>,
}

/// How a datagram is sent.
#[derive(Clone, Copy, Debug)]
pub struct SendOpts {
    /// TTL or hop limit to use.
    pub hop_limit: u8,
    /// Type-of-service byte.
    pub tos: u8,
    /// Cut into datagrams of this length (UDP GSO).
    pub segment: Option<u16>,
    /// Destination for an unconnected socket.
    pub to: Option<Endpoint>,
    /// Source address for an unconnected socket.
    pub from: Option<IpAddr>,
    /// Don't-fragment was set on the guest's packet.
    pub dont_fragment: bool,
}

/// Where a flow's socket is to send from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// An address of the host's; `None` for the one that the host takes.
    pub addr: Option<IpAddr>,
    /// The port.
    pub port: SourcePort,
}

impl Source {
    /// Whatever the host takes.
    pub const ANY: Source = Source { addr: None, port: SourcePort::Any };

    /// This port if it can be had.
    pub const fn wish(port: u16) -> Source {
        Source { addr: None, port: SourcePort::Wish(port) }
    }
}

/// The port that a flow's socket is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourcePort {
    /// Any.
    #[default]
    Any,
    /// This one if it can be had, else any.
    Wish(u16),
    /// This one and no other: a rule says so.
    Demand(u16),
}

/// The host's side.
///
/// Every flow socket reports edge-triggered events for its token: readable, writable, peer closed, error.
pub trait HostSockets: PayloadStore {
    /// Finds out whether a socket of `protocol` (TCP or UDP) to `to` can have the source that is demanded, and keeps it for the open that
    /// follows in the same call into the stack. What is not opened is given back: by the next call of this method, or by [`HostSockets::flush`].
    fn reserve(&mut self, protocol: u8, to: Endpoint, from: Source) -> bool;

    /// Starts a connect. Its end is an event: `writable`, or `error`. A source that cannot be had is [`SockError::NotAvailable`].
    fn tcp_connect(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError>;

    /// Makes an accepted socket (see `Stack::accepted`) report events for `token` from now on.
    fn tcp_adopt(&mut self, sock: SockId, token: Token) -> Result<(), SockError>;

    /// Sends; returns how many bytes were taken, 0 if it would block (then `writable` will be reported).
    fn tcp_send(&mut self, sock: SockId, data: Payload) -> Result<usize, SockError>;

    /// As [`HostSockets::tcp_send`], from the stack's own memory.
    fn tcp_send_bytes(&mut self, sock: SockId, data: &[u8]) -> Result<usize, SockError>;

    /// Reads up to `max` bytes that stand `offset` bytes after the first unconsumed one, and leaves them there.
    fn tcp_peek(&mut self, sock: SockId, offset: u32, max: u32) -> Result<Peek, SockError>;

    /// As [`HostSockets::tcp_peek`], for one who will go on right behind what is peeked, with pieces of the same length up to `more` bytes: the edge may
    /// read those at once.
    ///
    /// With `whole`, all that is peeked is the body of one frame that most likely goes out of this link, and nothing of the socket is peeked at, consumed or
    /// closed before that is transmitted or released: the edge may leave the bytes where they are until it knows where they go. They never change.
    fn tcp_peek_run(&mut self, sock: SockId, offset: u32, max: u32, more: u32, whole: Option<LinkId>) -> Result<Peek, SockError> {
        let _ = (more, whole);
        self.tcp_peek(sock, offset, max)
    }

    /// Throws `n` bytes away that were peeked before.
    fn tcp_consume(&mut self, sock: SockId, n: u32) -> Result<(), SockError>;

    /// Bytes that the socket has received and that were not consumed, those included of which no event has told yet. Not zero if
    /// the host does not say.
    fn tcp_unread(&mut self, sock: SockId) -> u32;

    /// Ends the sending side (FIN after what was sent).
    fn tcp_shutdown(&mut self, sock: SockId) -> Result<(), SockError>;

    /// Bytes that the socket will surely still take, from its buffer's size and what its queue occupies.
    fn tcp_space(&mut self, sock: SockId) -> u32;

    /// Bytes that the socket took and the peer has not acknowledged.
    fn tcp_unacked(&mut self, sock: SockId) -> u32;

    /// State of the connection.
    fn tcp_status(&mut self, sock: SockId) -> TcpStatus;

    /// Opens a socket for datagrams to `to`. A source that cannot be had is [`SockError::NotAvailable`].
    fn udp_open(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError>;

    /// Sends a datagram. The edge may gather several until [`HostSockets::flush`]; an error of a gathered
    /// datagram is reported as an event.
    fn udp_send(&mut self, sock: SockId, data: Payload, opts: &SendOpts) -> Result<(), SockError>;

    /// Receives up to `out.len()` datagrams; returns how many. Fewer than asked for: there are no more now. A socket opened
    /// for one destination yields only datagrams from there.
    fn udp_recv(&mut self, sock: SockId, out: &mut [Option<Datagram>]) -> Result<usize, SockError>;

    /// Opens a socket for echo requests of the family of `to`. `ident` is the guest's identifier, a wish. `from` is an address of the host's that
    /// they must have; one that cannot be had is [`SockError::NotAvailable`], now or when something is sent.
    fn ping_open(&mut self, token: Token, to: IpAddr, ident: u16, from: Option<IpAddr>) -> Result<SockId, SockError>;

    /// Sends an echo request to the address given at opening. `data` is what follows identifier and sequence number.
    fn ping_send(&mut self, sock: SockId, seq: u16, data: Payload, opts: &SendOpts) -> Result<(), SockError>;

    /// Receives an echo reply: sequence number, and datagram whose payload follows identifier and sequence number.
    fn ping_recv(&mut self, sock: SockId) -> Result<Option<(u16, Datagram)>, SockError>;

    /// Pending error of a stream socket, cleared by the call.
    fn take_error(&mut self, sock: SockId) -> Option<SockError>;

    /// Next report from the error queue of a datagram socket.
    fn take_report(&mut self, sock: SockId) -> Option<ErrorReport>;

    /// Ends a socket; no event for it follows.
    fn close(&mut self, sock: SockId, how: Close);

    /// Sends what [`HostSockets::udp_send`] gathered.
    fn flush(&mut self);
}

/// Both sides.
pub trait Edge: FrameSink + HostSockets {}

impl<T: FrameSink + HostSockets> Edge for T {}
