//! Where front ends come from.

use super::session::Session;
use super::{LISTENER, SESSION, VhostUserLink};
use crate::link::LinkError;
use crate::link::datagram::ring;
use hibernet_netstack::wire::Mac;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, accept_with, recvmsg};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// Where the next front end comes from when there is none.
#[derive(Debug)]
pub(super) enum Peers {
    /// There is only the one that is there.
    None,
    /// They connect to this socket.
    Listener {
        socket: OwnedFd,
        /// The first front end is the last.
        one_off: bool,
    },
    /// They listen. Somebody else connects, who can reach them, and hands the connections over here; who has none rings.
    Handed(OwnedFd),
}

impl Peers {
    fn socket(&self) -> Option<&OwnedFd> {
        match self {
            Peers::None => None,
            Peers::Listener { socket, .. } | Peers::Handed(socket) => Some(socket),
        }
    }
}

impl VhostUserLink {
    /// Behind a listening, non-blocking Unix stream socket; with `one_off` the link is gone when the first front end has left. Packets are at most `mtu` bytes,
    /// or less if the front end says so.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn listening(listener: OwnedFd, one_off: bool, mtu: u16, guest_mac: Option<Mac>) -> io::Result<VhostUserLink> {
        let mut link = VhostUserLink::without_session(mtu, guest_mac)?;
        link.poll.add(&listener, LISTENER)?;
        link.peers = Peers::Listener { socket: listener, one_off };
        Ok(link)
    }

    /// Of front ends that listen: behind a socket that keeps message boundaries, over which somebody hands connected Unix stream sockets, one beside the single
    /// byte of each message. A message of one byte goes the other way for each that is wanted: when the link begins, and when a front end has gone. The link
    /// is gone when nobody has the other end any more.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn handed(socket: OwnedFd, mtu: u16, guest_mac: Option<Mac>) -> io::Result<VhostUserLink> {
        let mut link = VhostUserLink::without_session(mtu, guest_mac)?;
        link.poll.add(&socket, LISTENER)?;
        link.peers = Peers::Handed(socket);
        // It asks when it is served, not before: it may be made while another one still serves the guest.
        link.more.signal();
        Ok(link)
    }

    /// Over a connection, a non-blocking Unix stream socket. The link is gone when it ends.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn connected(socket: OwnedFd, mtu: u16, guest_mac: Option<Mac>) -> io::Result<VhostUserLink> {
        let mut link = VhostUserLink::without_session(mtu, guest_mac)?;
        link.poll.add(&socket, SESSION)?;
        link.session = Some(Session::new(socket));
        Ok(link)
    }

    /// Takes the next front end, if there is one; else asks for one where they have to be asked for.
    pub(super) fn next_peer(&mut self) -> Result<(), LinkError> {
        let found = match &self.peers {
            _ if self.session.is_some() => return Ok(()),
            Peers::None => return Ok(()),
            Peers::Listener { socket, .. } => accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK),
            Peers::Handed(socket) => match receive(socket) {
                Ok(None) => return Err(LinkError::Closed),
                Ok(Some(connection)) => Ok(connection),
                Err(e) => {
                    if e == Errno::AGAIN {
                        ring(socket);
                    }
                    Err(e)
                }
            },
        };
        match found {
            Ok(socket) => self.begin_session(socket),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(e) => {
                self.stats.rx_errors += 1;
                self.trouble(format_args!("cannot take a front end's connection: {e}"));
            }
        }
        Ok(())
    }

    fn begin_session(&mut self, socket: OwnedFd) {
        if let Err(e) = self.poll.add(&socket, SESSION) {
            return self.trouble(format_args!("cannot watch a front end: {e}"));
        }
        // Others wait until this one has gone.
        if let Some(s) = self.peers.socket() {
            self.poll.remove(s);
        }
        if let Peers::Listener { one_off: true, .. } = self.peers {
            self.peers = Peers::None;
        }
        self.session = Some(Session::new(socket));
        self.troubles = 0;
    }

    /// The front end has gone: waits for the next, if any can come.
    pub(super) fn await_peer(&mut self) -> Result<(), LinkError> {
        let socket = self.peers.socket().ok_or(LinkError::Closed)?;
        self.poll.add(socket, LISTENER)?;
        match self.peers {
            Peers::Handed(_) => self.next_peer(),
            _ => Ok(()),
        }
    }
}

/// A connection that was handed over; `None`: there will be no more.
fn receive(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
        // So it is if what we asked for was never looked at.
        Err(Errno::CONNRESET) => return Ok(None),
        got => got?,
    };
    for m in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = m {
            return Ok(fds.last());
        }
    }
    // One without a connection is as none.
    if got.bytes == 0 { Ok(None) } else { Err(Errno::AGAIN) }
}
