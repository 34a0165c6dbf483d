//! Making, naming and ending sockets; their options.

use super::addr::SockAddr;
use super::{check, check_len};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Address family of an address.
pub fn family(a: IpAddr) -> libc::c_int {
    if a.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// A non-blocking, close-on-exec socket. `ty` is `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_RAW`.
pub fn socket(family: libc::c_int, ty: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the call cannot touch memory.
    let fd = check(unsafe { libc::socket(family, ty | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Starts or makes a connect; `EINPROGRESS` is success.
pub fn connect(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    let to = SockAddr::from(to);
    // SAFETY: pointer and length describe `to`, which outlives the call.
    match check(unsafe { libc::connect(fd.as_raw_fd(), to.as_ptr(), to.len()) }) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        r => r.map(drop),
    }
}

/// Binds to a local address.
pub fn bind(fd: BorrowedFd<'_>, at: SocketAddr) -> io::Result<()> {
    let at = SockAddr::from(at);
    // SAFETY: pointer and length describe `at`, which outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), at.as_ptr(), at.len()) }).map(drop)
}

/// Begins to listen.
pub fn listen(fd: BorrowedFd<'_>, backlog: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Takes a connection from a listener's queue; the socket is non-blocking and close-on-exec.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut peer = SockAddr::empty();
    let (addr, len) = peer.parts_mut();
    // SAFETY: both pointers are into `peer`, whose length field holds the room that there is.
    let new = check(unsafe { libc::accept4(fd.as_raw_fd(), addr, len, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) })?;
    // SAFETY: the kernel just made this descriptor for us alone.
    let new = unsafe { OwnedFd::from_raw_fd(new) };
    match peer.get() {
        Some(peer) => Ok((new, peer)),
        None => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
}

/// The address that a socket is bound to.
pub fn local_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut a = SockAddr::empty();
    let (addr, len) = a.parts_mut();
    // SAFETY: both pointers are into `a`, whose length field holds the room that there is.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), addr, len) })?;
    a.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// The address that a socket is connected to.
pub fn peer_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut a = SockAddr::empty();
    let (addr, len) = a.parts_mut();
    // SAFETY: both pointers are into `a`, whose length field holds the room that there is.
    check(unsafe { libc::getpeername(fd.as_raw_fd(), addr, len) })?;
    a.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// The address that a socket is connected to, or that its connect under way goes to.
pub fn destination(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut a = SockAddr::empty();
    // This option refuses more room than it fills.
    a.set_len(match kind(fd)?.0 {
        libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
        _ => size_of::<libc::sockaddr_in>(),
    } as libc::socklen_t);
    let (addr, len) = a.parts_mut();
    // SAFETY: both pointers are into `a`, whose length field holds no more than the room that there is.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERNAME, addr.cast(), len) })?;
    a.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// Sets an option whose value is an `int`.
pub fn set_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which outlives the call and is only read.
    let r = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t)
    };
    check(r).map(drop)
}

/// Sets an option of any form.
pub fn set_option_bytes(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which outlives the call and is only read.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) })
        .map(drop)
}

/// Reads an option of any form into `out`; returns how many bytes the kernel wrote.
pub fn get_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, out: &mut [u8]) -> io::Result<usize> {
    let mut len = out.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `out`; the kernel writes at most `len` bytes there and the true length to `len`.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, out.as_mut_ptr().cast(), &raw mut len) })?;
    Ok((len as usize).min(out.len()))
}

/// Reads an option whose value is an `int`.
pub fn get_int(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut out = [0; size_of::<libc::c_int>()];
    get_option(fd, level, name, &mut out)?;
    Ok(libc::c_int::from_ne_bytes(out))
}

/// A number that no other socket has, as long as the machine runs; 0 if the kernel does not give any (before Linux 4.12).
pub fn cookie(fd: BorrowedFd<'_>) -> u64 {
    let mut raw = [0; 8];
    match get_option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut raw) {
        Ok(8) => u64::from_ne_bytes(raw),
        _ => 0,
    }
}

/// Address family and protocol of a socket.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<(libc::c_int, libc::c_int)> {
    Ok((get_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?, get_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?))
}

/// Ends the sending side.
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Makes a later close of a TCP socket abort the connection: unsent data is thrown away and the peer gets RST.
pub fn set_linger_reset(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: pointer and length describe `linger`, which outlives the call and is only read.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    check(r).map(drop)
}

/// Lets only these ICMP types through to a raw ICMPv4 socket.
pub fn set_icmp4_filter(fd: BorrowedFd<'_>, pass: &[u8]) -> io::Result<()> {
    /// `ICMP_FILTER` of `linux/icmp.h`, at level `SOL_RAW`.
    const ICMP_FILTER: libc::c_int = 1;
    let blocked = pass.iter().filter(|t| **t < 32).fold(u32::MAX, |m, t| m & !(1 << t));
    set_option(fd, libc::SOL_RAW, ICMP_FILTER, blocked as libc::c_int)
}

/// Lets only these ICMPv6 types through to a raw ICMPv6 socket.
pub fn set_icmp6_filter(fd: BorrowedFd<'_>, pass: &[u8]) -> io::Result<()> {
    /// `ICMPV6_FILTER` of `linux/icmpv6.h`: a map of 256 bits, set for blocked types.
    const ICMPV6_FILTER: libc::c_int = 1;
    let mut map = [u32::MAX; 8];
    for t in pass {
        map[usize::from(t / 32)] &= !(1 << (t % 32));
    }
    // SAFETY: pointer and length describe `map`, which outlives the call and is only read.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMPV6_FILTER,
            map.as_ptr().cast(),
            size_of_val(&map) as libc::socklen_t,
        )
    };
    check(r).map(drop)
}

/// Sends on a connected socket.
pub fn send(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `data`, which is only read.
    check_len(unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
}

/// Receives from a socket; `flags` as for recv(2).
pub fn recv(fd: BorrowedFd<'_>, out: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // With MSG_TRUNC the kernel reports more than it wrote for datagrams; never more than `out` is promised here.
    // SAFETY: pointer and length describe `out`, which the kernel may write.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), out.as_mut_ptr().cast(), out.len(), flags | libc::MSG_DONTWAIT) })
        .map(|n| n.min(out.len()))
}

/// Switches an existing descriptor to non-blocking.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: no pointers; both calls only read and set status flags.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Sends urgent data on a TCP socket: the last byte is the urgent one.
pub fn send_urgent(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `data`, which is only read.
    check_len(unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL | libc::MSG_OOB) })
}

/// User id of the process that connected a Unix socket, as the caller's user namespace knows it (65534 if it does not).
pub fn peer_uid(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct ucred`: pid, uid, gid, 32 bits each.
    let mut cred = [[0; 4]; 3];
    let n = get_option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, cred.as_flattened_mut())?;
    if n == size_of_val(&cred) { Ok(u32::from_ne_bytes(cred[1])) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// What identifies the network namespace in which a socket was made (Linux 5.14; `ENOPROTOOPT` before). That of a Unix socket that was
/// accepted is the namespace of the client.
pub fn network_namespace(fd: BorrowedFd<'_>) -> io::Result<u64> {
    /// `asm-generic/socket.h`; not in the `libc` crate.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = [0; 8];
    get_option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}
