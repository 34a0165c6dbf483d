//! Echo sockets: ping sockets where the host lets us have them, else raw sockets that were opened for us.

use super::error::{is_about_the_past, sock_error};
use super::state::{PingState, RawPingState};
use super::udp::{HeaderOptions, read_report};
use super::{Sock, Sockets};
use crate::slots::{SLOT_SIZE, Slots};
use crate::sys::addr::SockAddr;
use crate::sys::cmsg::Control;
use crate::sys::datagram::{self, Arrived, RECV_BATCH};
use crate::sys::socket::{self, set_option};
use hibernet_netstack::edge::{Datagram, ErrorReport, Payload, Ready, SendOpts, SockError, SockId, Token};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::checksum::Sum;
use hibernet_netstack::wire::icmp::{HEADER_LEN, Header, v4, v6};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Replies, and reports, that wait for one flow of a raw socket.
const MAX_WAITING: usize = 16;
/// Messages read from a raw socket in one go.
const RAW_BUDGET: usize = 256;

/// A ping socket.
#[derive(Debug)]
pub(super) struct Ping {
    pub(super) fd: OwnedFd,
    pub(super) to: IpAddr,
    ident: u16,
    options: HeaderOptions,
}

impl Ping {
    pub(super) fn save(&self) -> PingState {
        PingState { to: self.to, ident: self.ident, header: self.options.save() }
    }

    pub(super) fn restore(fd: OwnedFd, s: &PingState) -> Self {
        Ping { fd, to: s.to, ident: s.ident, options: HeaderOptions::restore(&s.header) }
    }
}

/// A flow that shares the raw socket of its family.
#[derive(Debug)]
pub(super) struct RawPing {
    to: IpAddr,
    /// The source that requests must have.
    from: Option<IpAddr>,
    /// Identifier on the host's side.
    ident: u16,
    replies: VecDeque<(u16, Datagram)>,
    pub(super) reports: VecDeque<ErrorReport>,
}

impl RawPing {
    pub(super) fn save(&self) -> RawPingState {
        RawPingState { to: self.to, from: self.from, ident: self.ident }
    }

    pub(super) fn restore(s: &RawPingState) -> Self {
        RawPing { to: s.to, from: s.from, ident: s.ident, replies: VecDeque::new(), reports: VecDeque::new() }
    }
}

/// The shared raw socket of a family.
#[derive(Debug)]
struct Raw {
    fd: OwnedFd,
    /// Flows by identifier.
    flows: HashMap<u16, SockId>,
}

/// The raw sockets of both families.
#[derive(Debug)]
pub(super) struct RawPings {
    families: [Option<Raw>; 2],
    /// Something was left in the socket, which will not report it again.
    again: [bool; 2],
}

impl RawPings {
    pub(super) fn new(raw4: Option<OwnedFd>, raw6: Option<OwnedFd>) -> io::Result<Self> {
        let prepare = |fd: OwnedFd, is_v6: bool| {
            let s = fd.as_fd();
            socket::set_nonblocking(s)?;
            if is_v6 {
                socket::set_icmp6_filter(s, &[v6::ECHO_REPLY])?;
                set_option(s, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
                set_option(s, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
            } else {
                socket::set_icmp4_filter(s, &[v4::ECHO_REPLY])?;
                set_option(s, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
                set_option(s, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
            }
            Ok::<_, io::Error>(Raw { fd, flows: HashMap::new() })
        };
        let raw4 = raw4.map(|fd| prepare(fd, false)).transpose()?;
        let raw6 = raw6.map(|fd| prepare(fd, true)).transpose()?;
        Ok(RawPings { families: [raw4, raw6], again: [false; 2] })
    }

    pub(super) fn fd(&self, is_v6: bool) -> Option<BorrowedFd<'_>> {
        self.families[usize::from(is_v6)].as_ref().map(|r| r.fd.as_fd())
    }

    /// Gives a flow that was restored its identifier; false if there is no raw socket for it.
    pub(super) fn reopened(&mut self, s: &RawPingState, id: SockId) -> bool {
        let raw = &mut self.families[usize::from(s.to.is_ipv6())];
        raw.as_mut().is_some_and(|raw| raw.flows.insert(s.ident, id).is_none())
    }

    /// Whether the socket of a family must be read again; forgotten by asking.
    pub(super) fn take_again(&mut self, is_v6: bool) -> bool {
        std::mem::take(&mut self.again[usize::from(is_v6)])
    }

    /// Whether the socket of any family must be read again.
    pub(super) fn has_again(&self) -> bool {
        self.again != [false; 2]
    }

    /// A flow ended: its identifier is free, what waits for it is given back.
    pub(super) fn closed(&mut self, slots: &mut Slots, s: RawPing) {
        if let Some(raw) = &mut self.families[usize::from(s.to.is_ipv6())] {
            raw.flows.remove(&s.ident);
        }
        let waiting = s.replies.iter().map(|(_, d)| d.payload.slot).chain(s.reports.iter().map(|r| r.payload.slot));
        waiting.for_each(|slot| slots.give(slot));
    }
}

impl Sockets {
    /// See [`HostSockets::ping_open`](hibernet_netstack::edge::HostSockets::ping_open).
    pub fn ping_open(&mut self, token: Token, to: IpAddr, ident: u16, from: Option<IpAddr>) -> Result<SockId, SockError> {
        let opened = match self.open_ping(token, to, from) {
            Err(SockError::Prohibited) => self.open_raw_ping(token, to, ident, from),
            r => r,
        };
        opened.map_err(|e| self.failed(e))
    }

    fn open_ping(&mut self, token: Token, to: IpAddr, from: Option<IpAddr>) -> Result<SockId, SockError> {
        let protocol = if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        let error = |e: io::Error| sock_error(&e);
        let fd = socket::socket(socket::family(to), libc::SOCK_DGRAM, protocol).map_err(error)?;
        let s = fd.as_fd();
        let (level, recverr, hop_limit) = if to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_RECVTTL)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_RECVHOPLIMIT)
        };
        set_option(s, level, recverr, 1).map_err(error)?;
        set_option(s, level, hop_limit, 1).map_err(error)?;
        if let Some(from) = from {
            socket::bind(s, SocketAddr::new(from, 0)).map_err(|_| SockError::NotAvailable)?;
        }
        // The identifier is the kernel's choice. It would let a wish be bound twice, and then only one of the sockets hears replies.
        socket::connect(s, SocketAddr::new(to, 0)).map_err(error)?;
        let ident = socket::local_addr(s).map_err(error)?.port();
        self.register(token, Sock::Ping(Ping { fd, to, ident, options: HeaderOptions::new() }))
    }

    fn open_raw_ping(&mut self, token: Token, to: IpAddr, wish: u16, from: Option<IpAddr>) -> Result<SockId, SockError> {
        let family = usize::from(to.is_ipv6());
        let Some(raw) = &self.raw.families[family] else { return Err(SockError::Prohibited) };
        let ident = (0..=u16::MAX).map(|i| wish.wrapping_add(i)).find(|i| !raw.flows.contains_key(i));
        let ident = ident.ok_or(SockError::NoResources)?;
        let flow = RawPing { to, from, ident, replies: VecDeque::new(), reports: VecDeque::new() };
        let id = self.insert(Some(token), Sock::RawPing(flow))?;
        if let Some(raw) = &mut self.raw.families[family] {
            raw.flows.insert(ident, id);
        }
        Ok(id)
    }

    /// See [`HostSockets::ping_send`](hibernet_netstack::edge::HostSockets::ping_send). On a raw socket, which is shared, the kernel decides about
    /// don't-fragment.
    pub fn ping_send(&mut self, slots: &Slots, id: SockId, seq: u16, data: Payload, opts: &SendOpts) -> Result<(), SockError> {
        let bytes = slots.bytes(data);
        match self.entry_mut(id).map(|e| &mut e.sock) {
            Some(Sock::Ping(s)) => {
                let is_v6 = s.to.is_ipv6();
                s.options.apply(s.fd.as_fd(), is_v6, opts, data.len()).map_err(|e| sock_error(&e))?;
                // The kernel puts in the identifier and the checksum.
                let head = request(is_v6, s.ident, seq, 0);
                send(s.fd.as_fd(), &head, bytes, None, &Control::default())
            }
            Some(Sock::RawPing(s)) => {
                let (to, from, ident) = (s.to, s.from, s.ident);
                let fd = self.raw.fd(to.is_ipv6()).ok_or(super::STALE)?;
                let mut head = request(to.is_ipv6(), ident, seq, 0);
                if to.is_ipv4() {
                    // For ICMPv6 the kernel does it.
                    let sum = Sum::default().bytes(&head).bytes(bytes).finish();
                    head = request(false, ident, seq, sum);
                }
                let mut control = Control::default();
                control.push_header(to.is_ipv6(), opts.hop_limit.max(1), opts.tos);
                if let Some(from) = from {
                    control.push_source(from);
                }
                send(fd, &head, bytes, Some(&SockAddr::from(SocketAddr::new(to, 0))), &control)
            }
            _ => Err(super::STALE),
        }
    }

    /// See [`HostSockets::ping_recv`](hibernet_netstack::edge::HostSockets::ping_recv).
    pub fn ping_recv(&mut self, slots: &mut Slots, id: SockId) -> Result<Option<(u16, Datagram)>, SockError> {
        loop {
            let s = match self.entry_mut(id).map(|e| &mut e.sock) {
                Some(Sock::Ping(s)) => s,
                Some(Sock::RawPing(s)) => return Ok(s.replies.pop_front()),
                _ => return Err(super::STALE),
            };
            let Some(slot) = slots.take() else {
                self.retry_read(id);
                return Ok(None);
            };
            let mut arrived = None;
            let received =
                datagram::receive_slots(s.fd.as_fd(), slots.memory_mut(), SLOT_SIZE, &[slot], |_, a| arrived = Some(a));
            let whole = Payload { slot, offset: 0, len: arrived.as_ref().map_or(0, |a| a.len as u32) };
            let reply = arrived.and_then(|a| reply(slots, whole, s.to, &a));
            match (received, reply) {
                (Ok(_), Some((_, seq, d))) => return Ok(Some((seq, d))),
                (r, _) => {
                    slots.give(slot);
                    match r {
                        // Not a reply of whom we asked.
                        Ok(n) if n > 0 => self.stats.wrong_sender += 1,
                        Ok(_) => return Ok(None),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                        Err(e) if is_about_the_past(&e) => self.expect_reports(id),
                        Err(e) => return Err(sock_error(&e)),
                    }
                }
            }
        }
    }

    /// The shared raw socket of a family has something: it is handed to the flows, and they get an event.
    pub(super) fn raw_ready(&mut self, slots: &mut Slots, is_v6: bool) {
        let Some(raw) = self.raw.families[usize::from(is_v6)].take() else { return };
        self.raw_reports(slots, &raw, is_v6);
        self.raw_replies(slots, &raw, is_v6);
        self.raw.families[usize::from(is_v6)] = Some(raw);
    }

    fn raw_replies(&mut self, slots: &mut Slots, raw: &Raw, is_v6: bool) {
        for _ in 0..RAW_BUDGET / RECV_BATCH {
            let mut taken = [Payload::NO_SLOT; RECV_BATCH];
            let mut n = 0;
            while n < RECV_BATCH
                && let Some(slot) = slots.take()
            {
                taken[n] = slot;
                n += 1;
            }
            let mut arrived = [const { None::<Arrived> }; RECV_BATCH];
            let received =
                datagram::receive_slots(raw.fd.as_fd(), slots.memory_mut(), SLOT_SIZE, &taken[..n], |i, a| arrived[i] = Some(a));
            for (&slot, a) in taken[..n].iter().zip(arrived) {
                if !a.is_some_and(|a| self.raw_reply(slots, raw, slot, is_v6, &a)) {
                    slots.give(slot);
                }
            }
            match received {
                Ok(got) if got == RECV_BATCH => {}
                // Edge-triggered, and nothing will come again for what is left there.
                Ok(got) if got == n && n < RECV_BATCH => break,
                Err(e) if is_about_the_past(&e) => {}
                _ => return,
            }
        }
        self.raw.again[usize::from(is_v6)] = true;
    }

    /// Hands one message of a raw socket to its flow; whether its slot was taken over.
    fn raw_reply(&mut self, slots: &Slots, raw: &Raw, slot: u32, is_v6: bool, a: &Arrived) -> bool {
        let whole = Payload { slot, offset: 0, len: a.len as u32 };
        // IPv4 raw sockets deliver the IP header too.
        let ip = if is_v6 { 0 } else { slots.bytes(whole).first().map_or(0, |b| usize::from(b & 15) * 4) };
        let message = whole.slice(ip, whole.len());
        let Some(from) = a.from else { return false };
        let Some((ident, seq, d)) = reply(slots, message, Endpoint::from(from).addr, a) else { return false };
        let Some(&id) = raw.flows.get(&ident) else { return false };
        let Some(Sock::RawPing(s)) = self.entry_mut(id).map(|e| &mut e.sock) else { return false };
        if s.to != d.from.addr {
            return false;
        }
        if s.replies.len() >= MAX_WAITING {
            self.stats.ping_overrun += 1;
            return false;
        }
        s.replies.push_back((seq, d));
        self.notice(id, Ready { readable: true, ..Ready::default() });
        true
    }

    fn raw_reports(&mut self, slots: &mut Slots, raw: &Raw, is_v6: bool) {
        for _ in 0..RAW_BUDGET {
            let Some(report) = read_report(slots, raw.fd.as_fd(), is_v6, None) else { return };
            let ident = Header::parse(slots.bytes(report.payload)).ok().map(|h| h.ident());
            let id = ident.and_then(|i| raw.flows.get(&i).copied());
            let flow = id.and_then(|id| self.entry_mut(id)).map(|e| &mut e.sock);
            match (id, flow) {
                (Some(id), Some(Sock::RawPing(s))) if s.reports.len() < MAX_WAITING => {
                    s.reports.push_back(report);
                    self.notice(id, Ready { error: true, ..Ready::default() });
                }
                _ => {
                    self.stats.ping_overrun += 1;
                    slots.give(report.payload.slot);
                }
            }
        }
        self.raw.again[usize::from(is_v6)] = true;
    }
}

fn request(is_v6: bool, ident: u16, seq: u16, checksum: u16) -> [u8; HEADER_LEN] {
    let ty = if is_v6 { v6::ECHO_REQUEST } else { v4::ECHO_REQUEST };
    let mut head = [0; HEADER_LEN];
    Header { ty, code: 0, checksum, rest: u32::from(ident) << 16 | u32::from(seq) }.emit(&mut head);
    head
}

fn send(fd: BorrowedFd<'_>, head: &[u8], data: &[u8], to: Option<&SockAddr>, control: &Control) -> Result<(), SockError> {
    let mut sent = datagram::send_pieces(fd, &[head, data], to, control);
    // The error of an earlier request: it stands in the error queue.
    if sent.as_ref().is_err_and(is_about_the_past) {
        sent = datagram::send_pieces(fd, &[head, data], to, control);
    }
    match sent {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(SockError::NoResources),
        Err(e) => Err(sock_error(&e)),
    }
}

/// An echo reply that starts with its ICMP header: identifier, sequence number, and the data as a datagram.
fn reply(slots: &Slots, message: Payload, from: IpAddr, a: &Arrived) -> Option<(u16, u16, Datagram)> {
    let h = Header::parse(slots.bytes(message)).ok()?;
    let expected = if from.is_ipv4() { v4::ECHO_REPLY } else { v6::ECHO_REPLY };
    let sender = a.from.map(Endpoint::from)?;
    if h.ty != expected || sender.addr != from {
        return None;
    }
    let payload = message.slice(HEADER_LEN, message.len());
    let from = Endpoint::new(from, h.ident());
    Some((h.ident(), h.seq(), Datagram { payload, from, to: None, segment: None, hop_limit: a.meta.hop_limit }))
}
