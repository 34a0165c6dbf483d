//! What is written down of host sockets that are opened anew.

pub use crate::sock::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// Most bytes of a queue.
pub const MAX_QUEUE: usize = 64 << 20;

/// An address of a socket, in the form that the socket's family has: an IPv6 socket that carries IPv4 has mapped ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAddr {
    /// Address.
    pub ip: IpAddr,
    /// Port, or the identifier of a ping socket.
    pub port: u16,
    /// Number of the interface that a link-local address is behind, else 0.
    pub scope: u32,
}

impl From<SocketAddr> for HostAddr {
    fn from(a: SocketAddr) -> Self {
        let scope = if let SocketAddr::V6(a) = a { a.scope_id() } else { 0 };
        HostAddr { ip: a.ip(), port: a.port(), scope }
    }
}

impl From<HostAddr> for SocketAddr {
    fn from(a: HostAddr) -> Self {
        match a.ip {
            IpAddr::V4(ip) => (ip, a.port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, a.port, 0, a.scope).into(),
        }
    }
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// A TCP connection as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpSocketImage {
    /// Our address.
    pub local: HostAddr,
    /// The peer's.
    pub peer: HostAddr,
    /// State, as in [`crate::sys::tcp`]. In SYN_SENT only addresses and options count.
    pub state: u8,
    /// Sequence number of the first byte of `send`.
    pub send_seq: u32,
    /// Sequence number of the first byte of `receive`.
    pub receive_seq: u32,
    /// What the peer has not acknowledged, without FIN.
    pub send: Bytes,
    /// How many bytes at the end of `send` were never sent.
    pub unsent: u32,
    /// What was received and not consumed, without FIN.
    pub receive: Bytes,
    /// What was agreed upon when the connection began.
    pub agreed: AgreedImage,
    /// Windows, see [`crate::sys::repair::Window`].
    pub window: [u32; 5],
    /// Options.
    pub options: TcpOptions,
}

impl TcpSocketImage {
    /// Whether the peer has ended its stream. The socket that is restored does not know: it is ESTABLISHED (or in FIN_WAIT) and will
    /// report no end. Its owner must behave as if it had one behind the last byte of `receive`, which [`crate::sock`] does
    /// for a socket that is [`Supplied::Rebuilt`](crate::sock::Supplied::Rebuilt). When the owner ends its side too and closes, the kernel
    /// drops the connection quietly after `net.ipv4.tcp_fin_timeout`.
    pub fn peer_finished(&self) -> bool {
        crate::sys::tcp::peer_finished(self.state)
    }
}

/// What two TCPs agreed upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreedImage {
    /// Longest segment that the peer takes.
    pub mss: u16,
    /// Shifts of the peer's windows, and of ours.
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// The clock of our time stamps.
    pub timestamp: Option<u32>,
}

/// Options of a TCP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpOptions {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// `SO_OOBINLINE`.
    pub oob_inline: bool,
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// Idle time, interval (both in seconds) and count of keep-alives, if there are any.
    pub keep_alive: Option<(u32, u32, u32)>,
    /// Size of the send buffer as the kernel counts it, where it was set; else it follows the traffic.
    pub send_buffer: Option<u32>,
    /// Size of the receive buffer, likewise.
    pub receive_buffer: Option<u32>,
}
