//! Sockets with a source of the stack's choice.

use super::Sockets;
use super::error::sock_error;
use crate::sys::addr::unspecified;
use crate::sys::socket::{self, set_option};
use hibernet_netstack::edge::{SockError, Source, SourcePort};
use hibernet_netstack::tuple::{Endpoint, proto};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

/// A socket that has the source that was asked for, and waits to be opened.
#[derive(Debug)]
pub(super) struct Reserved {
    protocol: u8,
    to: Endpoint,
    from: Source,
    fd: OwnedFd,
}

impl Sockets {
    /// See [`HostSockets::reserve`](hibernet_netstack::edge::HostSockets::reserve).
    pub fn reserve(&mut self, protocol: u8, to: Endpoint, from: Source) -> bool {
        self.reserved = None;
        self.reserved = bound(protocol, to, from).ok().map(|fd| Reserved { protocol, to, from, fd });
        self.reserved.is_some()
    }

    /// Gives back what was reserved and not opened.
    pub fn release_reserved(&mut self) {
        self.reserved = None;
    }

    /// A socket for a flow, not connected yet: the reserved one if it is the one that is wanted.
    pub(super) fn socket_from(&mut self, protocol: u8, to: Endpoint, from: Source) -> Result<OwnedFd, SockError> {
        match self.reserved.take() {
            Some(r) if (r.protocol, r.to, r.from) == (protocol, to, from) => Ok(r.fd),
            _ => bound(protocol, to, from),
        }
    }
}

/// A socket towards `to`, bound as `from` says.
fn bound(protocol: u8, to: Endpoint, from: Source) -> Result<OwnedFd, SockError> {
    let kind = if protocol == proto::TCP { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
    let fd = socket::socket(socket::family(to.addr), kind, 0).map_err(|e| sock_error(&e))?;
    if from == Source::ANY {
        return Ok(fd);
    }
    let s = fd.as_fd();
    let addr = from.addr.unwrap_or(unspecified(to.addr));
    let port = match from.port {
        SourcePort::Any => 0,
        SourcePort::Wish(port) | SourcePort::Demand(port) => port,
    };
    if port != 0 {
        // Flows of one source port share the host's; each socket is connected, so each gets its own peer's data. Sockets of others that do
        // not share theirs are in the way nevertheless.
        let _ = set_option(s, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
        if to.addr.is_ipv6() {
            let _ = set_option(s, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
        }
        match (socket::bind(s, SocketAddr::new(addr, port)), from.port) {
            (Ok(()), _) => return Ok(fd),
            (Err(_), SourcePort::Demand(_)) => return Err(SockError::NotAvailable),
            // Taken by somebody else or privileged: any port will do.
            (Err(_), _) => {}
        }
    }
    if from.addr.is_some() {
        // The port is chosen when the destination is known, so that ports are not used up.
        let _ = set_option(s, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
        socket::bind(s, SocketAddr::new(addr, 0)).map_err(|_| SockError::NotAvailable)?;
    }
    Ok(fd)
}
