//! Listeners of published TCP ports.

use super::Worker;
use crate::sock::prepare_tcp;
use crate::sys::socket;
use event_manager::{EventOps, Events};
use hibernet_netstack::Time;
use hibernet_netstack::edge::{Close, HostSockets};
use hibernet_netstack::tuple::Endpoint;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use vmm_sys_util::epoll::EventSet;

/// Connections accepted per wake-up of one listener.
const MAX_ACCEPTS: usize = 64;
/// After how long listeners that ran out of descriptors are asked again, if no socket of ours was closed before.
const RETRY: Duration = Duration::from_secs(1);

/// A listening socket of a published port.
#[derive(Debug)]
pub(super) struct Listener {
    /// Index of the published port in the configuration.
    publish: usize,
    fd: OwnedFd,
}

impl Listener {
    pub(super) fn new(publish: usize, fd: OwnedFd) -> io::Result<Self> {
        socket::set_nonblocking(&fd)?;
        // What it accepts inherits these.
        prepare_tcp(fd.as_fd())?;
        Ok(Listener { publish, fd })
    }

    pub(super) fn publish(&self) -> usize {
        self.publish
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    pub(super) fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// Descriptors ran out, and listeners wait: being ready, they would wake the loop all the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortage {
    pub(super) until: Time,
    /// How many sockets had been closed.
    closed: u64,
}

impl Worker {
    /// Serves these published ports, in place of those before.
    pub(super) fn listen_again(&mut self, listeners: Vec<(usize, OwnedFd)>) {
        self.listeners.clear();
        for (publish, fd) in listeners {
            match Listener::new(publish, fd) {
                Ok(l) => self.listeners.push(l),
                Err(e) => slog::error!(self.log, "a published TCP port is lost"; "error" => %e),
            }
        }
    }

    /// Sockets of published UDP ports, copied, with their index in the configuration.
    pub(super) fn published_udp(&self) -> Vec<(usize, OwnedFd)> {
        let of = |sock| self.edge.sockets.descriptors().find(|(id, _)| *id == sock);
        let copies = self.stack.udp_listeners().filter_map(|(_, sock, _)| of(sock)?.1.try_clone_to_owned().ok());
        // By whom it was published nobody asks any more.
        copies.map(|fd| (0, fd)).collect()
    }

    pub(super) fn accept(&mut self, now: Time, index: usize, ops: &mut EventOps<'_>) {
        for _ in 0..MAX_ACCEPTS {
            let Some(l) = self.listeners.get(index) else { return };
            match socket::accept(l.fd.as_fd()) {
                Ok((fd, peer)) => {
                    self.accepted(now, fd, peer);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if is_shortage(&e) => return self.run_short(now, &e, ops),
                // Errors of the connection that was to be accepted, accept(2): the next one may be fine.
                Err(_) => {}
            }
        }
    }

    fn accepted(&mut self, now: Time, fd: OwnedFd, peer: SocketAddr) {
        // The client may be gone already; then there is nothing to translate.
        let Ok(local) = socket::local_addr(fd.as_fd()) else { return };
        match self.edge.sockets.accept(fd, local.is_ipv6()) {
            Ok(id) => {
                let (peer, local) = (Endpoint::from(peer), Endpoint::from(local));
                self.stack.accepted(now, id, peer, local, &mut self.edge);
                if self.edge.sockets.is_silent(id) {
                    self.edge.close(id, Close::Reset);
                }
            }
            Err(e) => slog::debug!(self.log, "connection not taken"; "peer" => %peer, "error" => %e),
        }
    }

    fn run_short(&mut self, now: Time, why: &io::Error, ops: &mut EventOps<'_>) {
        slog::warn!(self.log, "listeners pause until descriptors are free; raise the limit of open files"; "error" => %why);
        self.set_accepting(false, ops);
        self.short = Some(Shortage { until: now + RETRY, closed: self.edge.sockets.stats().closed });
    }

    /// Lets waiting listeners go on if there is a chance.
    pub(super) fn end_shortage(&mut self, now: Time, ops: &mut EventOps<'_>) {
        let Some(s) = self.short else { return };
        if now >= s.until || self.edge.sockets.stats().closed != s.closed {
            self.short = None;
            self.set_accepting(true, ops);
        }
    }

    fn set_accepting(&self, on: bool, ops: &mut EventOps<'_>) {
        let set = if on { EventSet::IN } else { EventSet::empty() };
        for (i, l) in self.listeners.iter().enumerate() {
            if let Err(e) = ops.modify(Events::with_data_raw(l.raw(), super::word(super::Source::Listener, i), set)) {
                slog::error!(self.log, "cannot change the events of a listener"; "error" => ?e);
            }
        }
    }
}

/// Whether descriptors or memory ran out.
fn is_shortage(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
