//! The far end of a TCP socket, in the test's hands.

use super::tcp::Tuning;
use super::{FakeHost, TcpSocket};
use hibernet_netstack::edge::{SockError, SockId};

/// Moves the peer of a TCP socket. What it does becomes an event of the socket, delivered at the driver's next step.
#[derive(Debug)]
pub struct Peer<'a> {
    host: &'a mut FakeHost,
    sock: SockId,
}

impl FakeHost {
    /// The peer of a TCP socket.
    pub fn peer(&mut self, sock: SockId) -> Peer<'_> {
        Peer { host: self, sock }
    }
}

impl Peer<'_> {
    /// Data from the peer.
    pub fn send(&mut self, data: &[u8]) -> &mut Self {
        self.host.tcp_mut(self.sock).peer_send(data);
        self.host.notify(self.sock);
        self
    }

    /// The peer ends its sending side.
    pub fn fin(&mut self) -> &mut Self {
        self.host.tcp_mut(self.sock).peer_fin();
        self.host.notify(self.sock);
        self
    }

    /// The peer resets: what it sent before may still be read, then comes the error.
    pub fn reset(&mut self) -> &mut Self {
        self.host.tcp_mut(self.sock).peer_reset();
        self.host.notify(self.sock);
        self
    }

    /// The connection dies of an error (time-out, unreachable).
    pub fn fail(&mut self, error: SockError) -> &mut Self {
        let t = self.host.tcp_mut(self.sock);
        t.peer_reset();
        t.set_error(error);
        self.host.notify(self.sock);
        self
    }

    /// Ends a connect that hangs.
    pub fn finish_connect(&mut self, outcome: Result<(), SockError>) -> &mut Self {
        let now = self.host.now;
        self.host.tcp_mut(self.sock).finish_connect(outcome, now);
        self.host.rearm(self.sock);
        self
    }

    /// Changes how the socket and its peer behave.
    pub fn tune(&mut self, change: impl FnOnce(&mut Tuning)) -> &mut Self {
        change(&mut self.host.tcp_mut(self.sock).tuning);
        self.host.tcp_mut(self.sock).retuned();
        self.host.rearm(self.sock);
        self
    }

    /// The socket.
    pub fn socket(&self) -> &TcpSocket {
        self.host.tcp(self.sock)
    }

    /// Takes what the peer has received.
    pub fn take_received(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.host.tcp_mut(self.sock).received)
    }
}
