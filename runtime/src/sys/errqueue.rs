//! The error queue of a datagram socket (`IP_RECVERR`, `IPV6_RECVERR`).

use super::addr::SockAddr;
use super::check_len;
use super::cmsg::Control;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This host.
    Local,
    /// An ICMPv4 message.
    Icmp,
    /// An ICMPv6 message.
    Icmp6,
}

/// An entry of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// Error number.
    pub errno: i32,
    /// Where it came from.
    pub origin: Origin,
    /// ICMP type.
    pub ty: u8,
    /// ICMP code.
    pub code: u8,
    /// The MTU for "too big", else 0.
    pub info: u32,
    /// Who sent the ICMP message.
    pub offender: Option<IpAddr>,
    /// Where the datagram had been sent to.
    pub destination: Option<SocketAddr>,
    /// How many bytes of the datagram were copied out.
    pub len: usize,
}

/// Takes the oldest entry; the start of the datagram that caused it goes to `out`. `None` if the queue is empty. An entry
/// of a kind that was not asked for (time stamps) is skipped.
pub fn take(fd: BorrowedFd<'_>, out: &mut [u8]) -> io::Result<Option<QueuedError>> {
    loop {
        let mut name = SockAddr::empty();
        let mut control = Control::default();
        let mut piece = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
        // SAFETY: `msghdr` is plain data for which all zeroes are valid.
        let mut m: libc::msghdr = unsafe { mem::zeroed() };
        m.msg_name = name.as_mut_ptr().cast();
        m.msg_namelen = name.len();
        let (ptr, room) = control.room_mut();
        m.msg_control = ptr;
        m.msg_controllen = room as _;
        m.msg_iov = &raw mut piece;
        m.msg_iovlen = 1;
        // SAFETY: `m` points to an address, a control buffer and a piece with their true sizes, which outlive the call.
        let got = check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut m, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) });
        let len = match got {
            Ok(n) => n.min(out.len()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        };
        name.set_len(m.msg_namelen);
        control.set_len(m.msg_controllen as _);
        if let Some(e) = parse(&control, name.get(), len) {
            return Ok(Some(e));
        }
    }
}

fn parse(control: &Control, destination: Option<SocketAddr>, len: usize) -> Option<QueuedError> {
    let (_, _, v) = control.iter().find(|(level, ty, _)| {
        matches!((*level, *ty), (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR))
    })?;
    // struct sock_extended_err: errno, origin, type, code, padding, info, data; then the offender's address.
    let word = |at: usize| v.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let origin = match *v.get(4)? {
        libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
        libc::SO_EE_ORIGIN_ICMP => Origin::Icmp,
        libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp6,
        _ => return None,
    };
    Some(QueuedError {
        errno: word(0)? as i32,
        origin,
        ty: *v.get(5)?,
        code: *v.get(6)?,
        info: word(8)?,
        offender: v.get(16..).and_then(offender),
        destination,
        len,
    })
}

/// The address in a `sockaddr_in` or `sockaddr_in6` as bytes.
fn offender(b: &[u8]) -> Option<IpAddr> {
    let family = u16::from_ne_bytes([*b.first()?, *b.get(1)?]);
    match i32::from(family) {
        libc::AF_INET => <[u8; 4]>::try_from(b.get(4..8)?).ok().map(|o| IpAddr::V4(Ipv4Addr::from(o))),
        libc::AF_INET6 => <[u8; 16]>::try_from(b.get(8..24)?).ok().map(|o| IpAddr::V6(Ipv6Addr::from(o)).to_canonical()),
        _ => None,
    }
}
