//! What is written down of host sockets: plain data.

use super::udp::PathMtu;
use super::{Bytes, INDEX_BITS, SocketStats};
use crate::sys::tcp::{self, CLOSE, TcpInfo};
use hibernet_netstack::edge::SockId;
use hibernet_netstack::tuple::Endpoint;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// Everything about the sockets of a worker but the sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketsState {
    /// Slots in their order.
    pub slots: Vec<SlotState>,
    /// The free ones among them; the last is given out first.
    pub free: Vec<u32>,
    /// Events that are not the kernel's and were not handed out, at most one for each socket.
    pub notices: Vec<Notice>,
    /// Counters.
    pub stats: SocketStats,
}

impl SocketsState {
    /// All sockets with their kind.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (SockId, &SocketKind)> {
        (0..).zip(&self.slots).filter_map(|(i, s)| Some((s.id(i), &s.socket.as_ref()?.kind)))
    }

    /// Datagrams that were taken out of sockets and not handed out.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (SockId, &[QueuedDatagram])> {
        self.kinds().filter_map(|(id, kind)| match kind {
            SocketKind::Udp(u) if !u.waiting.is_empty() => Some((id, &u.waiting[..])),
            _ => None,
        })
    }

    /// Adds datagrams that were taken out of sockets behind those that wait already.
    pub(crate) fn set_waiting(&mut self, mut taken: HashMap<SockId, Vec<QueuedDatagram>>) {
        for (i, slot) in (0..).zip(&mut self.slots) {
            let id = slot.id(i);
            if let Some(SocketState { kind: SocketKind::Udp(u), .. }) = &mut slot.socket {
                u.waiting.extend(taken.remove(&id).into_iter().flatten());
            }
        }
    }
}

impl SlotState {
    /// The handle of the socket in it.
    fn id(&self, index: u32) -> SockId {
        SockId(u32::from(self.generation) << INDEX_BITS | index)
    }
}

/// A slot. Without a socket it is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Generation of the socket, or of the last one.
    pub generation: u16,
    /// The socket.
    pub socket: Option<SocketState>,
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketState {
    /// Bits of its [`Token`](hibernet_netstack::edge::Token); `None` if nobody gets its events yet.
    pub token: Option<u64>,
    /// The error queue may hold something.
    pub reports: bool,
    /// The kernel's number of the socket; 0 if unknown, or if it has no descriptor of its own.
    pub cookie: u64,
    /// What is special to its kind.
    pub kind: SocketKind,
}

/// A socket by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketKind {
    /// TCP.
    Tcp(TcpState),
    /// UDP.
    Udp(UdpState),
    /// A ping socket.
    Ping(PingState),
    /// A flow on a raw socket, which is shared.
    RawPing(RawPingState),
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpState {
    /// The socket's family is IPv6's.
    pub v6: bool,
    /// Bytes wait behind an urgent mark.
    pub at_mark: bool,
    /// Urgent data came at some time.
    pub urgent: bool,
    /// The peer has ended its stream, whether or not the socket knows it.
    pub ended: bool,
    /// Where its streams stand.
    pub fingerprint: Fingerprint,
}

/// A UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpState {
    /// The socket's family is IPv6's.
    pub v6: bool,
    /// Whom it is connected to; `None` for a published port.
    pub peer: Option<Endpoint>,
    /// Options of the IP header.
    pub header: HeaderState,
    /// Interfaces behind which link-local clients are, the latest last.
    pub scopes: Vec<Scope>,
    /// The kernel cuts super-datagrams for it.
    pub segments: bool,
    /// Error number of a gathered datagram, not handed out.
    pub pending: Option<i32>,
    /// Datagrams that were taken out of the kernel and not handed out, the first first.
    pub waiting: Vec<QueuedDatagram>,
}

/// A datagram that was received and not handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedDatagram {
    /// The bytes.
    pub bytes: Bytes,
    /// Sender.
    pub from: Endpoint,
    /// Number of the interface that a link-local sender is behind, else 0.
    pub scope: u32,
    /// The local address that it was sent to, if known.
    pub to: Option<IpAddr>,
    /// TTL or hop limit with which it came, if known.
    pub hop_limit: Option<u8>,
    /// Equal datagrams were merged; this is the length of each but the last.
    pub segment: Option<u16>,
}

/// Options of the IP header that a datagram socket sends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderState {
    /// TTL or hop limit, if it was set.
    pub hop_limit: Option<u8>,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// What becomes of datagrams that are longer than the path's MTU.
    pub path_mtu: PathMtu,
}

/// The interface behind which a link-local client is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The client.
    pub addr: Ipv6Addr,
    /// Number of the interface.
    pub interface: u32,
}

/// A ping socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingState {
    /// Who is asked.
    pub to: IpAddr,
    /// The identifier, which is the socket's port.
    pub ident: u16,
    /// Options of the IP header.
    pub header: HeaderState,
}

/// A flow of echo requests on a raw socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawPingState {
    /// Who is asked.
    pub to: IpAddr,
    /// The source that requests must have.
    pub from: Option<IpAddr>,
    /// The identifier.
    pub ident: u16,
}

/// An event that is not the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The socket.
    pub id: u32,
    /// See [`Ready::readable`](hibernet_netstack::edge::Ready::readable).
    pub readable: bool,
    /// See [`Ready::peer_closed`](hibernet_netstack::edge::Ready::peer_closed).
    pub peer_closed: bool,
    /// See [`Ready::error`](hibernet_netstack::edge::Ready::error).
    pub error: bool,
}

/// Where the streams of a TCP socket stand, in numbers that only its owner changes, whatever the peer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// State of the connection when the numbers were read.
    pub state: u8,
    /// Bytes written, a FIN included.
    pub written: u64,
    /// Bytes consumed.
    pub consumed: u64,
}

/// How often the numbers are read again because the peer moved them meanwhile.
const ATTEMPTS: usize = 1000;

impl Fingerprint {
    /// Reads it.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Fingerprint> {
        let mut before = TcpInfo::of(fd)?;
        for _ in 0..ATTEMPTS {
            let read = Fingerprint::at(fd, &before)?;
            // What moves from one of two numbers to the other would be missed, or counted twice.
            let after = TcpInfo::of(fd)?;
            if (after.bytes_acked, after.bytes_received, after.state) == (before.bytes_acked, before.bytes_received, before.state)
            {
                return Ok(read);
            }
            before = after;
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn at(fd: BorrowedFd<'_>, info: &TcpInfo) -> io::Result<Fingerprint> {
        // After a reset nothing arrives any more, but the state does not say whether a FIN had.
        let fin = u64::from(tcp::peer_finished(info.state) && info.state != CLOSE);
        Ok(Fingerprint {
            state: info.state,
            written: info.bytes_acked.wrapping_add(u64::from(tcp::unacknowledged(fd)?)),
            consumed: info.bytes_received.wrapping_sub(u64::from(tcp::unread(fd)?)).wrapping_sub(fin),
        })
    }

    /// Whether `later` can be the same socket with the same bytes written and consumed.
    pub fn is_continued_by(&self, later: &Fingerprint) -> bool {
        let written = later.written.wrapping_sub(self.written);
        let consumed = later.consumed.wrapping_sub(self.consumed);
        // The SYN counts as a byte that is written, from the time it is acknowledged.
        let connected = self.state == tcp::SYN_SENT && later.state != tcp::SYN_SENT;
        // The FIN, if there was one, counts as received.
        let ended = later.state == CLOSE;
        (written == 0 || connected && written == 1) && (consumed == 0 || ended && consumed == 1)
    }

    /// Whether a socket goes on from here.
    pub(super) fn is_of(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        // Mostly the peer is quiet, and one look does.
        Ok(self.is_continued_by(&Fingerprint::at(fd, &TcpInfo::of(fd)?)?) || self.is_continued_by(&Fingerprint::of(fd)?))
    }
}
