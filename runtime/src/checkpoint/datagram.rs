//! Datagram sockets and listeners, which are opened anew: addresses, options, and what waited in a socket.
//!
//! What nobody can carry over is lost, as it is on any network: errors in the error queue, echo replies, connections that a listener had
//! not handed out.

use super::image::{Bytes, HostAddr};
use super::repair::{RepairError, at};
use crate::slots::SLOT_SIZE;
use crate::sock::{QueuedDatagram, prepare_tcp};
use crate::sys::datagram::{RECV_BATCH, receive_slots};
use crate::sys::socket::{self, get_int, set_option};
use crate::sys::tcp::TcpInfo;
use hibernet_netstack::tuple::Endpoint;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most datagrams, and most bytes of them, that are taken out of a socket.
const MAX_DATAGRAMS: usize = 4096;
const MAX_BYTES: usize = 8 << 20;
/// Errors of earlier datagrams that are passed over.
const MAX_ERRORS: usize = 64;

/// A UDP or ping socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramImage {
    /// UDP, ICMP or ICMPv6.
    pub protocol: u8,
    /// Our address; the port of a ping socket is its identifier.
    pub local: HostAddr,
    /// Whom it is connected to.
    pub peer: Option<HostAddr>,
    /// Values of the options that a socket of ours may have changed, in an order of this module's; `None` for what the kernel does not have.
    pub options: Vec<Option<i32>>,
    /// Size of the send buffer and of the receive buffer as the kernel counts them.
    pub buffers: (u32, u32),
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerImage {
    /// Its address.
    pub local: HostAddr,
    /// It takes no IPv4.
    pub only_v6: bool,
    /// Connections that may wait in it.
    pub backlog: u32,
}

/// Level and name of the options that a socket of ours may have changed. What is set before binding comes first.
fn options(v6: bool, protocol: u8) -> Vec<(libc::c_int, libc::c_int)> {
    use libc::{IPPROTO_IP as IP, IPPROTO_IPV6 as IP6, SOL_SOCKET as SOL};
    let mut all = Vec::new();
    if v6 {
        all.push((IP6, libc::IPV6_V6ONLY));
    }
    all.extend([(SOL, libc::SO_REUSEADDR), (SOL, libc::SO_BROADCAST)]);
    if protocol == libc::IPPROTO_UDP as u8 {
        all.push((libc::SOL_UDP, libc::UDP_GRO));
    }
    let v4 = [libc::IP_TTL, libc::IP_TOS, libc::IP_MTU_DISCOVER, libc::IP_RECVERR, libc::IP_PKTINFO, libc::IP_RECVTTL];
    all.extend(v4.map(|name| (IP, name)));
    if v6 {
        let names = [
            libc::IPV6_UNICAST_HOPS,
            libc::IPV6_TCLASS,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_RECVERR,
            libc::IPV6_RECVPKTINFO,
            libc::IPV6_RECVHOPLIMIT,
        ];
        all.extend(names.map(|name| (IP6, name)));
    }
    all
}

/// Writes down a UDP or ping socket. `to` is whom a ping socket asks, which it does not say itself.
pub fn dump(fd: BorrowedFd<'_>, to: Option<IpAddr>) -> Result<DatagramImage, RepairError> {
    let step = || at("read the options of a datagram socket");
    let (family, protocol) = socket::kind(fd).map_err(step())?;
    let local = socket::local_addr(fd).map_err(step())?;
    let peer = match socket::peer_addr(fd) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => to.map(|to| SocketAddr::new(to, 0)),
        r => Some(r.map_err(step())?),
    };
    let protocol = u8::try_from(protocol).map_err(|_| RepairError::Invalid("no datagram socket"))?;
    let value = |(level, name)| get_int(fd, level, name).ok();
    let buffer = |name| get_int(fd, libc::SOL_SOCKET, name).map(|n| n as u32);
    Ok(DatagramImage {
        protocol,
        local: local.into(),
        peer: peer.map(HostAddr::from),
        options: options(family == libc::AF_INET6, protocol).into_iter().map(value).collect(),
        buffers: (buffer(libc::SO_SNDBUF).map_err(step())?, buffer(libc::SO_RCVBUF).map_err(step())?),
    })
}

/// Takes out what waits in UDP sockets. For an image it belongs into [`UdpState::waiting`](crate::sock::UdpState), and to be handed out after
/// all into [`Sockets::udp_requeue`](crate::sock::Sockets::udp_requeue).
#[derive(Debug)]
pub struct Drain {
    memory: Vec<u8>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { memory: vec![0; RECV_BATCH * SLOT_SIZE] }
    }
}

impl Drain {
    /// Empties a socket, up to a limit that a receive buffer of ours does not reach.
    pub fn take(&mut self, fd: BorrowedFd<'_>) -> Vec<QueuedDatagram> {
        let places: [u32; RECV_BATCH] = std::array::from_fn(|i| i as u32);
        let (mut all, mut bytes, mut errors) = (Vec::new(), 0, 0);
        while all.len() < MAX_DATAGRAMS && bytes < MAX_BYTES && errors < MAX_ERRORS {
            let mut arrived = Vec::new();
            let received = receive_slots(fd, &mut self.memory, SLOT_SIZE, &places, |i, a| arrived.push((i, a)));
            for (i, a) in arrived {
                let Some(from) = a.from else { continue };
                let data = &self.memory[i * SLOT_SIZE..][..a.len];
                bytes += data.len();
                all.push(QueuedDatagram {
                    bytes: Bytes(data.to_vec()),
                    from: Endpoint::from(from),
                    scope: if let SocketAddr::V6(from) = from { from.scope_id() } else { 0 },
                    to: a.meta.to,
                    hop_limit: a.meta.hop_limit,
                    segment: a.meta.segment,
                });
            }
            match received {
                Ok(n) if n > 0 => {}
                // Errors of earlier datagrams: the next call receives.
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => errors += 1,
                _ => break,
            }
        }
        all
    }
}

/// Opens a datagram socket anew.
pub fn restore(image: &DatagramImage) -> Result<OwnedFd, RepairError> {
    image.check()?;
    let fd = socket::socket(socket::family(image.local.ip), libc::SOCK_DGRAM, image.protocol.into());
    let fd = fd.map_err(at("make a datagram socket"))?;
    let s = fd.as_fd();
    image.configure(s, false)?;
    let addr = SocketAddr::from(image.local);
    socket::bind(s, addr).map_err(|error| RepairError::Address { addr, error })?;
    if let Some(peer) = image.peer {
        socket::connect(s, peer.into()).map_err(at("connect a datagram socket"))?;
    }
    Ok(fd)
}

/// As [`restore`], of a socket that is bound where the one of the image was.
pub fn adopt(image: &DatagramImage, fd: OwnedFd) -> Result<OwnedFd, RepairError> {
    image.check()?;
    image.configure(fd.as_fd(), true)?;
    Ok(fd)
}

impl DatagramImage {
    fn is_v6(&self) -> bool {
        self.local.ip.is_ipv6()
    }

    fn check(&self) -> Result<(), RepairError> {
        let v6 = self.is_v6();
        let expected = match i32::from(self.protocol) {
            libc::IPPROTO_UDP => true,
            libc::IPPROTO_ICMP => !v6,
            libc::IPPROTO_ICMPV6 => v6,
            _ => false,
        };
        let count = options(v6, self.protocol).len();
        if !expected || count != self.options.len() || self.peer.is_some_and(|p| p.ip.is_ipv6() != v6) {
            return Err(RepairError::Invalid("no datagram socket of ours"));
        }
        Ok(())
    }

    /// Sets a socket's options and buffers.
    fn configure(&self, s: BorrowedFd<'_>, is_bound: bool) -> Result<(), RepairError> {
        let step = || at("set the options of a datagram socket");
        for ((level, name), value) in options(self.is_v6(), self.protocol).into_iter().zip(&self.options) {
            let is_too_late = is_bound && (level, name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
            if let (Some(value), false) = (*value, is_too_late) {
                set_option(s, level, name, value).map_err(step())?;
            }
        }
        for (size, name) in [(self.buffers.0, libc::SO_SNDBUF), (self.buffers.1, libc::SO_RCVBUF)] {
            // The kernel doubles what is set, and sees to its limits.
            set_option(s, libc::SOL_SOCKET, name, (size / 2) as libc::c_int).map_err(step())?;
        }
        Ok(())
    }
}

/// Writes down a listener.
pub fn dump_listener(fd: BorrowedFd<'_>) -> Result<ListenerImage, RepairError> {
    let step = || at("read the options of a listener");
    let local = socket::local_addr(fd).map_err(step())?;
    let info = TcpInfo::of(fd).map_err(step())?;
    if info.state != crate::sys::tcp::LISTEN {
        return Err(RepairError::State(info.state));
    }
    let only_v6 = local.is_ipv6() && get_int(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).map_err(step())? != 0;
    Ok(ListenerImage { local: local.into(), only_v6, backlog: info.backlog })
}

/// Listens anew.
pub fn restore_listener(image: &ListenerImage) -> Result<OwnedFd, RepairError> {
    let step = || at("set the options of a listener");
    let fd = socket::socket(socket::family(image.local.ip), libc::SOCK_STREAM, 0).map_err(at("make a listener"))?;
    let s = fd.as_fd();
    // Connections that it had accepted may live on, or be in TIME_WAIT.
    set_option(s, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(step())?;
    if image.local.ip.is_ipv6() {
        set_option(s, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, image.only_v6.into()).map_err(step())?;
    }
    prepare_tcp(s).map_err(step())?;
    let addr = SocketAddr::from(image.local);
    let taken = |error| RepairError::Address { addr, error };
    socket::bind(s, addr).map_err(taken)?;
    socket::listen(s, libc::c_int::try_from(image.backlog).unwrap_or(libc::c_int::MAX)).map_err(taken)?;
    Ok(fd)
}
