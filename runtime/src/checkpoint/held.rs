//! The descriptors of a frozen worker, and handing them to another process.

use crate::link::Connection;
use crate::sandbox::fds::{self, FdsError};
use crate::slots::SLOT_SIZE;
use crate::sys::socket;
use hibernet_netstack::edge::SockId;
use hibernet_snapshot::GenerationId;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// Most descriptors of a kind that are taken over.
const MOST: usize = 1 << 20;

/// The descriptors of a frozen worker. Whoever has them keeps its connections alive.
#[derive(Debug, Default)]
pub struct Held {
    /// The freeze to which they belong; `None` if there are none, and nothing is to be compared.
    pub generation: Option<GenerationId>,
    /// Sockets of flows, of DNS queries, and of published UDP ports.
    pub sockets: Vec<(SockId, OwnedFd)>,
    /// Listeners of published TCP ports: the index in the configuration's list, and the socket.
    pub tcp_listeners: Vec<(usize, OwnedFd)>,
    /// Shared raw ICMP socket.
    pub raw_icmp4: Option<OwnedFd>,
    /// Shared raw ICMPv6 socket.
    pub raw_icmp6: Option<OwnedFd>,
    /// Connections of links whose peers come and go: number of the link, and its connection.
    pub links: Vec<(u8, Connection)>,
}

impl Held {
    /// Has peers hear of a reset, not of an end in good order, when the sockets are closed.
    pub(crate) fn reset_on_close(&self) {
        for (_, fd) in &self.sockets {
            // Datagram sockets do not mind.
            let _ = socket::set_linger_reset(fd.as_fd());
        }
    }

    /// Copies of all.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn try_clone(&self) -> std::io::Result<Held> {
        Ok(Held {
            generation: self.generation,
            sockets: self.sockets.iter().map(|(id, fd)| Ok((*id, fd.try_clone()?))).collect::<std::io::Result<_>>()?,
            tcp_listeners: self.tcp_listeners.iter().map(|(i, fd)| Ok((*i, fd.try_clone()?))).collect::<std::io::Result<_>>()?,
            raw_icmp4: self.raw_icmp4.as_ref().map(OwnedFd::try_clone).transpose()?,
            raw_icmp6: self.raw_icmp6.as_ref().map(OwnedFd::try_clone).transpose()?,
            links: self.links.iter().map(|(n, c)| Ok((*n, c.try_clone()?))).collect::<std::io::Result<_>>()?,
        })
    }

    /// Hands copies of all descriptors to the process at the other end of a Unix socket that keeps messages apart, which calls
    /// [`Held::receive`]. Until `deadline` at the latest.
    ///
    /// # Errors
    /// If the other side is gone or does not answer, or limits of open files are too low.
    pub fn send(&self, socket: impl AsFd, deadline: Instant) -> Result<(), FdsError> {
        let socket = socket.as_fd();
        fds::send_message(socket, &self.generation.map_or([0; 16], |g| g.0), &[], deadline)?;
        fds::send(socket, self.sockets.iter().map(|(id, fd)| (id.0, fd.as_fd())), deadline)?;
        fds::send(socket, self.tcp_listeners.iter().map(|(i, fd)| (*i as u32, fd.as_fd())), deadline)?;
        let raw = [(4, &self.raw_icmp4), (6, &self.raw_icmp6)];
        let raw: Vec<_> = raw.into_iter().filter_map(|(n, fd)| Some((n, fd.as_ref()?.as_fd()))).collect();
        fds::send(socket, raw, deadline)?;
        fds::send(socket, self.links.iter().map(|(n, c)| (u32::from(*n), c.fd.as_fd())), deadline)?;
        for (_, c) in &self.links {
            send_bytes(socket, &c.received, deadline)?;
            send_bytes(socket, &c.unsent, deadline)?;
        }
        Ok(())
    }

    /// What [`Held::send`] hands over.
    ///
    /// # Errors
    /// If the other side is gone or does not speak this language, or the limit of open files is too low.
    pub fn receive(socket: impl AsFd, deadline: Instant) -> Result<Held, FdsError> {
        let socket = socket.as_fd();
        let mut generation = [0; 16];
        if fds::receive_message(socket, &mut generation, &mut Vec::new(), deadline)? != generation.len() {
            return Err(FdsError::Garbled);
        }
        let mut held = Held { generation: (generation != [0; 16]).then_some(GenerationId(generation)), ..Held::default() };
        held.sockets = fds::receive(socket, MOST, deadline)?.into_iter().map(|(id, fd)| (SockId(id), fd)).collect();
        held.tcp_listeners = fds::receive(socket, MOST, deadline)?.into_iter().map(|(i, fd)| (i as usize, fd)).collect();
        for (n, fd) in fds::receive(socket, 2, deadline)? {
            let place = if n == 4 { &mut held.raw_icmp4 } else { &mut held.raw_icmp6 };
            *place = Some(fd);
        }
        for (n, fd) in fds::receive(socket, usize::from(u8::MAX), deadline)? {
            let n = u8::try_from(n).map_err(|_| FdsError::Garbled)?;
            held.links.push((n, Connection { fd, received: Vec::new(), unsent: Vec::new() }));
        }
        for (_, c) in &mut held.links {
            c.received = receive_bytes(socket, deadline)?;
            c.unsent = receive_bytes(socket, deadline)?;
        }
        Ok(held)
    }
}

/// Bytes of one message.
const PIECE: usize = 32 << 10;
/// Most bytes that a link has of either kind.
const MOST_BYTES: usize = SLOT_SIZE;

/// Sends bytes behind their length, in messages of bounded size.
fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], deadline: Instant) -> Result<(), FdsError> {
    fds::send_message(socket, &(bytes.len() as u64).to_le_bytes(), &[], deadline)?;
    bytes.chunks(PIECE).try_for_each(|piece| fds::send_message(socket, piece, &[], deadline))
}

fn receive_bytes(socket: BorrowedFd<'_>, deadline: Instant) -> Result<Vec<u8>, FdsError> {
    let mut len = [0; 8];
    if fds::receive_message(socket, &mut len, &mut Vec::new(), deadline)? != len.len() {
        return Err(FdsError::Garbled);
    }
    let len = usize::try_from(u64::from_le_bytes(len)).ok().filter(|n| *n <= MOST_BYTES).ok_or(FdsError::Garbled)?;
    let mut bytes = vec![0; len];
    for piece in bytes.chunks_mut(PIECE) {
        if fds::receive_message(socket, piece, &mut Vec::new(), deadline)? != piece.len() {
            return Err(FdsError::Garbled);
        }
    }
    Ok(bytes)
}
