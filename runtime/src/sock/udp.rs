//! UDP sockets: opening, receiving, errors. Sending is in `gather`.

use super::error::{as_icmp, connect_error, from_errno, is_about_the_past, queued_as_icmp, sock_error, to_errno};
use super::state::{HeaderState, QueuedDatagram, Scope, UdpState};
use super::{Sock, Sockets};
use crate::slots::{SLOT_SIZE, Slots};
use crate::sys::addr::SockAddr;
use crate::sys::datagram::{self, Arrived, RECV_BATCH};
use crate::sys::errqueue;
use crate::sys::socket::{self, set_option};
use hibernet_netstack::edge::{Datagram, ErrorReport, Payload, Ready, SendOpts, SockError, SockId, Source, SourcePort, Token};
use hibernet_netstack::tuple::{Endpoint, proto};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Datagrams up to this length pass every path (IPv6's least MTU is 1280), so that how oversize ones are treated need not be set.
pub(super) const FITS_ANYWHERE: usize = 1200;
/// How much of a datagram that caused an error is kept: what fits into an ICMPv6 error.
const QUOTE: usize = 1232;
/// Bytes of datagrams that may wait in a socket, the kernel's bookkeeping (about half) not counted: what a fast peer sends while
/// we are not scheduled.
const RECEIVE_BUFFER: libc::c_int = 2 << 20;
/// Link-local clients of one published port whose interfaces are remembered.
pub(super) const MAX_SCOPES: usize = 64;
/// Errors of earlier datagrams that one receive skips; they stand in the error queue.
const MAX_SKIPPED: usize = 64;

/// Wish for a socket's buffers.
const BUFFER: libc::c_int = 4 << 20;

/// What the kernel does with datagrams longer than the path's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMtu {
    /// Fragments them here, routers may fragment the others.
    Dont = libc::IP_PMTUDISC_DONT as isize,
    /// Fragments them here, marks the others don't-fragment. The kernel's default.
    Want = libc::IP_PMTUDISC_WANT as isize,
    /// Refuses them.
    Do = libc::IP_PMTUDISC_DO as isize,
}

/// Options of the IP header that a datagram socket sends with, as far as they were set.
#[derive(Debug)]
pub(super) struct HeaderOptions {
    hop_limit: Option<u8>,
    tos: u8,
    path_mtu: PathMtu,
}

impl HeaderOptions {
    pub(super) const fn new() -> Self {
        HeaderOptions { hop_limit: None, tos: 0, path_mtu: PathMtu::Want }
    }

    pub(super) fn save(&self) -> HeaderState {
        HeaderState { hop_limit: self.hop_limit, tos: self.tos, path_mtu: self.path_mtu }
    }

    pub(super) fn restore(s: &HeaderState) -> Self {
        HeaderOptions { hop_limit: s.hop_limit, tos: s.tos, path_mtu: s.path_mtu }
    }

    /// Sets on the socket what differs. `v6` is the family of the packets, `len` the length of the data.
    pub(super) fn apply(&mut self, fd: BorrowedFd<'_>, v6: bool, opts: &SendOpts, len: usize) -> io::Result<()> {
        let names = if v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_TCLASS, libc::IPV6_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS, libc::IP_MTU_DISCOVER)
        };
        let (level, ttl, tos, discover) = names;
        let hop_limit = opts.hop_limit.max(1);
        if self.hop_limit != Some(hop_limit) {
            set_option(fd, level, ttl, hop_limit.into())?;
            self.hop_limit = Some(hop_limit);
        }
        if self.tos != opts.tos {
            set_option(fd, level, tos, opts.tos.into())?;
            self.tos = opts.tos;
        }
        let path_mtu = match (opts.dont_fragment, self.path_mtu) {
            (false, _) => PathMtu::Dont,
            (true, _) if len > FITS_ANYWHERE => PathMtu::Do,
            (true, PathMtu::Dont) => PathMtu::Want,
            (true, now) => now,
        };
        if self.path_mtu != path_mtu {
            set_option(fd, level, discover, path_mtu as libc::c_int)?;
            self.path_mtu = path_mtu;
        }
        Ok(())
    }
}

/// A UDP socket.
#[derive(Debug)]
pub(super) struct Udp {
    pub(super) fd: OwnedFd,
    /// Family of the socket; one of IPv6 may carry IPv4 too.
    v6: bool,
    /// Whom it is connected to; `None` for a published port's socket.
    peer: Option<Endpoint>,
    options: HeaderOptions,
    /// Interfaces behind which link-local clients are, the latest last.
    scopes: Scopes,
    /// Whether the kernel cuts super-datagrams for it.
    pub(super) segments: bool,
    /// An error of a gathered datagram that does not stand in the error queue.
    pub(super) pending: Option<SockError>,
    /// Datagrams that were taken out of the kernel when the socket was saved.
    waiting: VecDeque<QueuedDatagram>,
}

/// Which interface a link-local address is behind, as far as somebody there has sent: it is a part of the address that the
/// stack does not know of.
#[derive(Debug, Default)]
struct Scopes(Vec<(Ipv6Addr, u32)>);

impl Scopes {
    /// Notes a sender.
    fn learn(&mut self, from: SocketAddr) {
        let SocketAddr::V6(from) = from else { return };
        let known = (*from.ip(), from.scope_id());
        if !from.ip().is_unicast_link_local() || self.0.last() == Some(&known) {
            return;
        }
        self.0.retain(|(a, _)| a != from.ip());
        if self.0.len() == MAX_SCOPES {
            self.0.remove(0);
        }
        self.0.push(known);
    }

    /// Puts the interface into the address of a former sender.
    fn complete(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V6(mut to) if to.ip().is_unicast_link_local() => {
                to.set_scope_id(self.0.iter().find(|(a, _)| a == to.ip()).map_or(0, |(_, scope)| *scope));
                to.into()
            }
            to => to,
        }
    }
}

impl Udp {
    pub(super) fn save(&self) -> UdpState {
        let scopes = self.scopes.0.iter().map(|&(addr, interface)| Scope { addr, interface }).collect();
        UdpState {
            v6: self.v6,
            peer: self.peer,
            header: self.options.save(),
            scopes,
            segments: self.segments,
            pending: self.pending.map(to_errno),
            waiting: self.waiting.iter().cloned().collect(),
        }
    }

    pub(super) fn restore(fd: OwnedFd, s: &UdpState) -> Self {
        Udp {
            fd,
            v6: s.v6,
            peer: s.peer,
            options: HeaderOptions::restore(&s.header),
            scopes: Scopes(s.scopes.iter().map(|s| (s.addr, s.interface)).collect()),
            segments: s.segments,
            pending: s.pending.map(from_errno),
            waiting: s.waiting.iter().cloned().collect(),
        }
    }

    fn new(fd: OwnedFd, v6: bool, peer: Option<Endpoint>) -> Self {
        let options = HeaderOptions::new();
        Udp { fd, v6, peer, options, scopes: Scopes::default(), segments: true, pending: None, waiting: VecDeque::new() }
    }

    /// An address in the form of the socket's family.
    pub(super) fn address(&self, to: Endpoint) -> SockAddr {
        SockAddr::from(self.scopes.complete(SocketAddr::new(self.local(to.addr), to.port)))
    }

    /// As [`Udp::address`], without port.
    pub(super) fn local(&self, a: IpAddr) -> IpAddr {
        match a {
            IpAddr::V4(v4) if self.v6 => IpAddr::V6(v4.to_ipv6_mapped()),
            a => a,
        }
    }

    /// Sets on the socket what differs for a datagram of `len` bytes.
    pub(super) fn apply(&mut self, opts: &SendOpts, len: usize) -> io::Result<()> {
        let v6 = opts.to.map_or(self.v6, |to| to.addr.is_ipv6());
        self.options.apply(self.fd.as_fd(), v6, opts, len)
    }
}

/// Has the kernel keep reports of errors, merge equal datagrams into one read where it can, and hold bursts.
fn prepare(fd: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
    }
    // Bursts must not be lost while others have their turn. The system's limits bound it.
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER);
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, BUFFER);
    // Linux 5.0; before, datagrams come one by one.
    let _ = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    // No more than net.core.rmem_max, which the kernel sees to.
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER)
}

impl Sockets {
    /// See [`HostSockets::udp_open`](hibernet_netstack::edge::HostSockets::udp_open).
    pub fn udp_open(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        let opened = self.open_udp(token, to, from);
        opened.map_err(|e| self.failed(e))
    }

    fn open_udp(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        let v6 = to.addr.is_ipv6();
        let fd = self.socket_from(proto::UDP, to, from)?;
        let s = fd.as_fd();
        prepare(s, v6).map_err(|e| sock_error(&e))?;
        let addressed = v6 || from.addr.is_some() || matches!(from.port, SourcePort::Demand(_));
        socket::connect(s, SocketAddr::from(to)).map_err(|e| connect_error(&e, addressed))?;
        self.udp_connected(token, fd, to)
    }

    /// Takes a socket over that is connected to `peer`. What others had sent to it before is not heard.
    pub fn udp_connected(&mut self, token: Token, fd: OwnedFd, peer: Endpoint) -> Result<SockId, SockError> {
        let v6 = peer.addr.is_ipv6();
        self.register(token, Sock::Udp(Udp::new(fd, v6, Some(peer))))
    }

    /// Takes the bound socket of a published port over. It is silent until [`Sockets::listen`].
    pub fn udp_listener(&mut self, fd: OwnedFd) -> io::Result<(SockId, Endpoint)> {
        let s = fd.as_fd();
        let local = socket::local_addr(s)?;
        let v6 = local.is_ipv6();
        socket::set_nonblocking(s)?;
        prepare(s, v6)?;
        if v6 {
            set_option(s, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        } else {
            set_option(s, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        let id = self.insert(None, Sock::Udp(Udp::new(fd, v6, None))).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?;
        Ok((id, Endpoint::from(local)))
    }

    /// Has the events of a published port's socket reported for `token`.
    pub fn listen(&mut self, id: SockId, token: Token) -> io::Result<()> {
        if let Some(e) = self.entry_mut(id) {
            e.token = Some(token);
        }
        self.watch(id)
    }

    /// See [`HostSockets::udp_recv`](hibernet_netstack::edge::HostSockets::udp_recv).
    pub fn udp_recv(&mut self, slots: &mut Slots, id: SockId, out: &mut [Option<Datagram>]) -> Result<usize, SockError> {
        let mut filled = self.receive_waiting(slots, id, out)?;
        let mut skipped = 0;
        while filled < out.len() {
            let want = (out.len() - filled).min(RECV_BATCH);
            let mut taken = [Payload::NO_SLOT; RECV_BATCH];
            let got = {
                let mut n = 0;
                while n < want
                    && let Some(slot) = slots.take()
                {
                    taken[n] = slot;
                    n += 1;
                }
                if n < want {
                    self.retry_read(id);
                }
                &taken[..n]
            };
            if got.is_empty() {
                break;
            }
            let s = self.udp(id)?;
            let peer = s.peer;
            let mut arrived = [const { None::<Arrived> }; RECV_BATCH];
            let received = datagram::receive_slots(s.fd.as_fd(), slots.memory_mut(), SLOT_SIZE, got, |i, a| arrived[i] = Some(a));
            if peer.is_none() {
                arrived.iter().flatten().filter_map(|a| a.from).for_each(|from| s.scopes.learn(from));
            }
            let mut wrong = 0;
            for (&slot, a) in got.iter().zip(arrived) {
                match a.and_then(|a| a.from.map(|from| (a, Endpoint::from(from)))) {
                    // Between bind and connect anybody's datagrams may have come in.
                    Some((a, from)) if peer.is_none_or(|p| p == from) => {
                        out[filled] = Some(Datagram {
                            payload: Payload { slot, offset: 0, len: a.len as u32 },
                            from,
                            to: a.meta.to,
                            segment: a.meta.segment.filter(|n| *n > 0 && usize::from(*n) < a.len),
                            hop_limit: a.meta.hop_limit,
                        });
                        filled += 1;
                    }
                    other => {
                        wrong += u64::from(other.is_some());
                        slots.give(slot);
                    }
                }
            }
            self.stats.wrong_sender += wrong;
            match received {
                Ok(n) if n < got.len() => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if is_about_the_past(&e) && skipped < MAX_SKIPPED => {
                    self.expect_reports(id);
                    skipped += 1;
                }
                Err(e) if filled == 0 => return Err(sock_error(&e)),
                Err(_) => break,
            }
        }
        Ok(filled)
    }

    /// Hands out what was taken out of the kernel before.
    fn receive_waiting(&mut self, slots: &mut Slots, id: SockId, out: &mut [Option<Datagram>]) -> Result<usize, SockError> {
        let mut filled = 0;
        while filled < out.len() {
            let s = self.udp(id)?;
            let Some(d) = s.waiting.front() else { break };
            // Whatever an image says: only the peer's datagrams, and what fits.
            if s.peer.is_some_and(|p| p != d.from) || d.bytes.0.len() > SLOT_SIZE {
                s.waiting.pop_front();
                continue;
            }
            let Some(slot) = slots.take() else {
                self.retry_read(id);
                break;
            };
            let Some(d) = s.waiting.pop_front() else { break };
            slots.slot_mut(slot)[..d.bytes.0.len()].copy_from_slice(&d.bytes.0);
            if let (None, IpAddr::V6(ip)) = (s.peer, d.from.addr) {
                s.scopes.learn(SocketAddrV6::new(ip, d.from.port, 0, d.scope).into());
            }
            out[filled] = Some(Datagram {
                payload: Payload { slot, offset: 0, len: d.bytes.0.len() as u32 },
                from: d.from,
                to: d.to,
                segment: d.segment.filter(|n| *n > 0 && usize::from(*n) < d.bytes.0.len()),
                hop_limit: d.hop_limit,
            });
            filled += 1;
        }
        Ok(filled)
    }

    /// Puts datagrams before those that the kernel has, as when what was taken out for an image is to be handed out after all.
    pub fn udp_requeue(&mut self, id: SockId, datagrams: Vec<QueuedDatagram>) {
        let Ok(s) = self.udp(id) else { return };
        for d in datagrams.into_iter().rev() {
            s.waiting.push_front(d);
        }
        self.notice(id, Ready { readable: true, ..Ready::default() });
    }

    /// See [`HostSockets::take_report`](hibernet_netstack::edge::HostSockets::take_report).
    pub fn take_report(&mut self, slots: &mut Slots, id: SockId) -> Option<ErrorReport> {
        let entry = self.entry_mut(id)?;
        let (fd, v6, peer) = match &mut entry.sock {
            Sock::Udp(s) => {
                if let Some(e) = s.pending.take() {
                    return Some(ErrorReport {
                        icmp: as_icmp(e, s.v6),
                        offender: None,
                        destination: s.peer,
                        payload: Payload::EMPTY,
                    });
                }
                (s.fd.as_fd(), s.v6, s.peer)
            }
            Sock::Ping(s) => (s.fd.as_fd(), s.to.is_ipv6(), Some(Endpoint::new(s.to, 0))),
            Sock::RawPing(s) => return s.reports.pop_front(),
            Sock::Tcp(_) | Sock::Free => return None,
        };
        if !entry.reports {
            return None;
        }
        let report = read_report(slots, fd, v6, peer);
        entry.reports = report.is_some();
        report
    }
}

/// Takes an entry from the error queue of a socket.
pub(super) fn read_report(slots: &mut Slots, fd: BorrowedFd<'_>, v6: bool, peer: Option<Endpoint>) -> Option<ErrorReport> {
    let slot = slots.take();
    let mut none = [];
    let room = match slot {
        Some(slot) => &mut slots.slot_mut(slot)[..QUOTE],
        None => &mut none[..],
    };
    // An error of the call itself (there is no queue) is no report.
    let taken = errqueue::take(fd, room).ok().flatten();
    let payload = match (slot, &taken) {
        (Some(slot), Some(e)) if e.len > 0 => Payload { slot, offset: 0, len: e.len as u32 },
        (Some(slot), _) => {
            slots.give(slot);
            Payload::EMPTY
        }
        (None, _) => Payload::EMPTY,
    };
    let e = taken?;
    let destination = e.destination.map(Endpoint::from).or(peer);
    let v6 = destination.map_or(v6, |d| d.addr.is_ipv6());
    Some(ErrorReport { icmp: queued_as_icmp(&e, v6), offender: e.offender, destination, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_link_local_clients_leave_through_the_interface_they_came_by() {
        let at = |a: &str| a.parse::<SocketAddr>().unwrap();
        let mut scopes = Scopes::default();
        for from in ["[fe80::1%3]:1", "[fe80::2%4]:1", "[fe80::1%5]:2", "[2001:db8::1]:1", "192.0.2.1:1"] {
            scopes.learn(at(from));
        }
        for (to, want) in [
            ("[fe80::1]:9", "[fe80::1%5]:9"),
            ("[fe80::2]:9", "[fe80::2%4]:9"),
            ("[fe80::3]:9", "[fe80::3]:9"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("192.0.2.1:9", "192.0.2.1:9"),
        ] {
            assert_eq!(scopes.complete(at(to)), at(want));
        }
        for i in 0..1000 {
            scopes.learn(at(&format!("[fe80::1:{i:x}%7]:1")));
        }
        assert_eq!(scopes.0.len(), MAX_SCOPES);
        assert_eq!(scopes.complete(at("[fe80::1:3e7]:1")), at("[fe80::1:3e7%7]:1"));
    }
}
