//! UDP and ping sockets of the host.

use super::{FakeHost, Kind};
use core::net::IpAddr;
use hibernet_netstack::Time;
use hibernet_netstack::edge::{Close, Ready, SendOpts, SockError, SockId, Source, SourcePort, Token};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::IcmpQuote;
use std::collections::VecDeque;

/// A datagram that the stack sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: Time,
    /// What.
    pub data: Vec<u8>,
    /// How.
    pub opts: SendOpts,
}

/// A datagram for the stack.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// What; several of equal length if `segment` is set.
    pub data: Vec<u8>,
    /// Sender.
    pub from: Endpoint,
    /// Local address.
    pub to: Option<IpAddr>,
    /// Length of each but the last, if several were merged.
    pub segment: Option<u16>,
    /// TTL or hop limit.
    pub hop_limit: Option<u8>,
}

/// An entry of a socket's error queue.
#[derive(Clone, Debug)]
pub struct Report {
    /// The ICMP message.
    pub icmp: IcmpQuote,
    /// Its sender.
    pub offender: Option<IpAddr>,
    /// Where the datagram had gone.
    pub destination: Option<Endpoint>,
    /// Start of that datagram's payload.
    pub payload: Vec<u8>,
}

/// A UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    /// Where it is connected to; `None` for a listener.
    pub to: Option<Endpoint>,
    /// The source port that the stack asked for.
    pub wanted_port: Option<u16>,
    /// The port that it has.
    pub port: u16,
    /// What the stack asked for in all.
    pub source: Source,
    /// What was sent, oldest first.
    pub sent: Vec<Sent>,
    /// Errors for the next sends.
    pub fail_send: VecDeque<SockError>,
    /// Errors for the next receives, each before anything is received.
    pub fail_recv: VecDeque<SockError>,
    incoming: VecDeque<Incoming>,
    reports: VecDeque<Report>,
}

/// An echo request that the stack sent.
#[derive(Clone, Debug)]
pub struct SentPing {
    /// Sequence number.
    pub seq: u16,
    /// Data and options.
    pub sent: Sent,
}

/// A ping socket.
#[derive(Debug)]
pub struct PingSocket {
    /// Where to.
    pub to: IpAddr,
    /// The identifier that the stack asked for.
    pub ident: u16,
    /// The source that the stack demanded.
    pub from: Option<IpAddr>,
    /// What was sent, oldest first.
    pub sent: Vec<SentPing>,
    /// Errors for the next sends.
    pub fail_send: VecDeque<SockError>,
    /// Errors for the next receives, each before anything is received.
    pub fail_recv: VecDeque<SockError>,
    incoming: VecDeque<(u16, Incoming)>,
    reports: VecDeque<Report>,
}

impl UdpSocket {
    pub(crate) fn ready(&self) -> Ready {
        Ready {
            readable: !self.incoming.is_empty(),
            writable: true,
            peer_closed: false,
            error: !self.reports.is_empty() || !self.fail_recv.is_empty(),
        }
    }
}

impl PingSocket {
    pub(crate) fn ready(&self) -> Ready {
        Ready {
            readable: !self.incoming.is_empty(),
            writable: true,
            peer_closed: false,
            error: !self.reports.is_empty() || !self.fail_recv.is_empty(),
        }
    }
}

impl FakeHost {
    /// A UDP socket, open or closed.
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn udp(&mut self, sock: SockId) -> &mut UdpSocket {
        match &mut self.sockets[sock.0 as usize].kind {
            Kind::Udp(u) => u,
            k => panic!("{sock:?} is no UDP socket: {k:?}"),
        }
    }

    /// A ping socket, open or closed.
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn ping(&mut self, sock: SockId) -> &mut PingSocket {
        match &mut self.sockets[sock.0 as usize].kind {
            Kind::Ping(p) => p,
            k => panic!("{sock:?} is no ping socket: {k:?}"),
        }
    }

    /// Handles of all UDP sockets there ever were, oldest first.
    pub fn udp_sockets(&self) -> Vec<SockId> {
        self.all().filter(|s| matches!(self.sockets[s.0 as usize].kind, Kind::Udp(_))).collect()
    }

    /// Handles of all ping sockets there ever were, oldest first.
    pub fn ping_sockets(&self) -> Vec<SockId> {
        self.all().filter(|s| matches!(self.sockets[s.0 as usize].kind, Kind::Ping(_))).collect()
    }

    /// Opens the socket of a published UDP port. Give it its token with [`FakeHost::set_token`].
    pub fn udp_listener(&mut self, local: Endpoint) -> SockId {
        self.add(None, udp(None, None, local.port))
    }

    /// Closes such a socket: it is the test's.
    pub fn close_listener(&mut self, sock: SockId) {
        self.close(sock, Close::Graceful);
    }

    /// A datagram arrives at a UDP socket.
    pub fn udp_arrives(&mut self, sock: SockId, d: Incoming) {
        self.udp(sock).incoming.push_back(d);
        self.notify(sock);
    }

    /// A plain datagram arrives at a connected UDP socket, from where it is connected to.
    pub fn udp_reply(&mut self, sock: SockId, data: &[u8]) {
        let from = self.udp(sock).to.expect("a listener has no peer");
        self.udp_arrives(sock, Incoming { data: data.to_vec(), from, to: None, segment: None, hop_limit: Some(64) });
    }

    /// An echo reply arrives. `from.port` is the identifier.
    pub fn ping_reply(&mut self, sock: SockId, seq: u16, data: &[u8]) {
        let (to, ident) = (self.ping(sock).to, self.ping(sock).ident);
        let from = Endpoint::new(to, ident);
        let d = Incoming { data: data.to_vec(), from, to: None, segment: None, hop_limit: Some(64) };
        self.ping(sock).incoming.push_back((seq, d));
        self.notify(sock);
    }

    /// The error that the next receive returns.
    pub(crate) fn recv_error(&mut self, sock: SockId) -> Result<(), SockError> {
        let fail = match &mut self.used(sock).kind {
            Kind::Udp(u) => u.fail_recv.pop_front(),
            Kind::Ping(p) => p.fail_recv.pop_front(),
            k => panic!("{sock:?} is no datagram socket: {k:?}"),
        };
        fail.map_or(Ok(()), Err)
    }

    /// An error arrives for something that a UDP or ping socket sent.
    pub fn report(&mut self, sock: SockId, report: Report) {
        match &mut self.sockets[sock.0 as usize].kind {
            Kind::Udp(u) => u.reports.push_back(report),
            Kind::Ping(p) => p.reports.push_back(report),
            Kind::Tcp(_) => panic!("{sock:?} is a TCP socket"),
        }
        self.notify(sock);
    }

    pub(crate) fn udp_open(&mut self, token: Token, to: Endpoint, from: Source) -> Result<SockId, SockError> {
        self.admit()?;
        if !self.can_have(from) {
            return Err(SockError::NotAvailable);
        }
        let wanted = match from.port {
            SourcePort::Any => None,
            SourcePort::Wish(p) | SourcePort::Demand(p) => Some(p),
        };
        let port = match wanted.filter(|p| !self.taken_ports.contains(p)) {
            Some(p) => p,
            None => 40_000 + (self.sockets.len() % 20_000) as u16,
        };
        let mut socket = udp(Some(to), wanted, port);
        if let Kind::Udp(u) = &mut socket {
            u.source = from;
        }
        Ok(self.add(Some(token), socket))
    }

    pub(crate) fn udp_send(&mut self, sock: SockId, data: Vec<u8>, opts: SendOpts) -> Result<(), SockError> {
        let at = self.now;
        self.actions += 1;
        let Kind::Udp(u) = &mut self.used(sock).kind else { panic!("{sock:?} is no UDP socket") };
        assert!(u.to.is_some() || opts.to.is_some(), "{sock:?}: a datagram without destination");
        assert_ne!(opts.segment, Some(0), "{sock:?}: segments of no bytes");
        match u.fail_send.pop_front() {
            Some(e) => Err(e),
            None => {
                u.sent.push(Sent { at, data, opts });
                Ok(())
            }
        }
    }

    pub(crate) fn udp_recv(&mut self, sock: SockId) -> Result<Option<Incoming>, SockError> {
        match &mut self.used(sock).kind {
            Kind::Udp(u) => Ok(u.incoming.pop_front()),
            k => panic!("{sock:?} is no UDP socket: {k:?}"),
        }
    }

    pub(crate) fn ping_open(&mut self, token: Token, to: IpAddr, ident: u16, from: Option<IpAddr>) -> Result<SockId, SockError> {
        self.admit()?;
        if !self.can_have(Source { addr: from, port: SourcePort::Any }) {
            return Err(SockError::NotAvailable);
        }
        let ping = PingSocket {
            to,
            ident,
            from,
            sent: Vec::new(),
            fail_send: VecDeque::new(),
            fail_recv: VecDeque::new(),
            incoming: VecDeque::new(),
            reports: VecDeque::new(),
        };
        Ok(self.add(Some(token), Kind::Ping(ping)))
    }

    pub(crate) fn ping_send(&mut self, sock: SockId, seq: u16, data: Vec<u8>, opts: SendOpts) -> Result<(), SockError> {
        let at = self.now;
        self.actions += 1;
        let Kind::Ping(p) = &mut self.used(sock).kind else { panic!("{sock:?} is no ping socket") };
        match p.fail_send.pop_front() {
            Some(e) => Err(e),
            None => {
                p.sent.push(SentPing { seq, sent: Sent { at, data, opts } });
                Ok(())
            }
        }
    }

    pub(crate) fn ping_recv(&mut self, sock: SockId) -> Result<Option<(u16, Incoming)>, SockError> {
        match &mut self.used(sock).kind {
            Kind::Ping(p) => Ok(p.incoming.pop_front()),
            k => panic!("{sock:?} is no ping socket: {k:?}"),
        }
    }

    pub(crate) fn take_report(&mut self, sock: SockId) -> Option<Report> {
        match &mut self.used(sock).kind {
            Kind::Udp(u) => u.reports.pop_front(),
            Kind::Ping(p) => p.reports.pop_front(),
            k => panic!("take_report on {k:?}, which has no error queue"),
        }
    }
}

fn udp(to: Option<Endpoint>, wanted_port: Option<u16>, port: u16) -> Kind {
    Kind::Udp(UdpSocket {
        to,
        wanted_port,
        port,
        source: Source::ANY,
        sent: Vec::new(),
        fail_send: VecDeque::new(),
        fail_recv: VecDeque::new(),
        incoming: VecDeque::new(),
        reports: VecDeque::new(),
    })
}

/// What is left of a socket that went elsewhere.
pub(super) fn nothing() -> Kind {
    udp(None, None, 0)
}
