//! A socket at a path, with a frame in each datagram and a peer that may go and come again: QEMU's `-netdev dgram`, and monitors that speak as vfkit does.
//!
//! Whoever serves the link is confined and can reach no path. While there is no peer somebody else, who can, has the socket: the *host*. It waits for the
//! first datagram, connects the socket to whoever sent it, and rings. From then on the socket is ours, until a datagram finds nobody any more; then we ring.

use super::poll::{ANY, Poll};
use super::socket::SocketLink;
use super::{Link, LinkError, LinkNews, LinkStats, RxBatch, release};
use crate::slots::Slots;
use hibernet_netstack::edge::{LinkInfo, TxError, TxFrame};
use hibernet_netstack::wire::Mac;
use rustix::net::{RecvFlags, SendFlags, getpeername, recv, send};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A bell says nothing but that something has changed.
const RING: &[u8] = &[1];

/// Rings for whoever has the other end of the bell. That it has rung often already is as good.
pub(crate) fn ring(bell: impl AsFd) {
    let _ = send(bell, RING, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Whether the bell has rung since it was asked last.
pub(crate) fn has_rung(bell: impl AsFd) -> bool {
    let mut any = false;
    while recv(&bell, &mut [0; 8], RecvFlags::DONTWAIT).is_ok_and(|(n, _)| n > 0) {
        any = true;
    }
    any
}

/// Whether a datagram socket has a peer.
pub(crate) fn has_peer(fd: impl AsFd) -> bool {
    getpeername(fd).is_ok_and(|a| a.is_some())
}

/// For what the socket is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// It is not: there is no peer.
    No,
    /// Datagrams, and room where that is wanting.
    For { room: bool },
}

/// A link over a datagram socket whose peer may come and go.
#[derive(Debug)]
pub struct DatagramLink {
    poll: Poll,
    socket: SocketLink,
    bell: OwnedFd,
    watched: Watched,
    /// What the socket does not count: that there is nobody.
    stats: LinkStats,
    news: Option<LinkNews>,
    stopped: bool,
}

impl DatagramLink {
    /// Over a datagram socket, connected or not, and the bell whose other end the host has: one of a pair of sockets. `mtu` in bytes.
    ///
    /// # Errors
    /// `InvalidInput` if it is no datagram socket; others if descriptors ran out.
    pub fn new(fd: OwnedFd, bell: OwnedFd, mtu: u16, guest_mac: Option<Mac>) -> io::Result<DatagramLink> {
        let socket = SocketLink::messages(fd, mtu, guest_mac)?;
        let poll = Poll::new()?;
        poll.add(&bell, ANY)?;
        let (watched, stats) = (Watched::No, LinkStats::default());
        let mut link = DatagramLink { poll, socket, bell, watched, stats, news: None, stopped: false };
        link.look_for_peer()?;
        // One that was there before is no news.
        link.news = None;
        Ok(link)
    }

    fn is_alone(&self) -> bool {
        self.watched == Watched::No
    }

    /// The host may have found a peer, or seen it end.
    fn look_for_peer(&mut self) -> io::Result<()> {
        match (has_peer(self.socket.fd()), self.is_alone()) {
            (true, true) => {
                self.poll.add(self.socket.fd(), ANY)?;
                self.watched = Watched::For { room: false };
                self.news = Some(LinkNews::Connected);
            }
            (false, false) => self.be_alone("it has ended".into()),
            _ => {}
        }
        Ok(())
    }

    /// Has the host look for a peer.
    fn lose(&mut self, why: String) {
        if !self.is_alone() {
            self.be_alone(why);
            ring(&self.bell);
        }
    }

    fn be_alone(&mut self, why: String) {
        // What comes now is for the host to see first.
        self.poll.remove(self.socket.fd());
        self.watched = Watched::No;
        self.stats.rx_down += 1;
        self.news = Some(LinkNews::Disconnected(why));
    }

    /// Has the descriptor be readable also when the peer takes more.
    fn watch_room(&mut self) {
        let room = self.socket.waits();
        if self.watched == (Watched::For { room: !room }) && self.poll.watch_room(self.socket.fd(), ANY, room) {
            self.watched = Watched::For { room };
        }
    }
}

impl Link for DatagramLink {
    fn info(&self) -> LinkInfo {
        self.socket.info()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        if self.stopped {
            return Err(LinkError::Closed);
        }
        if has_rung(&self.bell) {
            self.look_for_peer()?;
        }
        if self.is_alone() {
            return Ok(());
        }
        match self.socket.recv_batch(slots, out) {
            Err(LinkError::Closed) => {
                self.lose("it has closed the connection".into());
                Ok(())
            }
            other => other,
        }
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        if self.is_alone() {
            release(slots, &frame);
            return Err(self.stats.refused(TxError::Down));
        }
        self.socket.send(slots, frame)
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        if let Err(e) = self.socket.flush(slots) {
            self.lose(format!("a frame found nobody: {e}"));
        }
        self.watch_room();
        Ok(())
    }

    fn has_room(&self) -> bool {
        !self.is_alone() && self.socket.has_room()
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.stopped = true;
        self.socket.stop(slots);
    }

    fn stats(&self) -> LinkStats {
        self.socket.stats().plus(self.stats)
    }

    fn take_news(&mut self) -> Option<LinkNews> {
        self.news.take()
    }
}
