//! The host's addresses, over a route socket that was opened beforehand (a confined process cannot open one).

use super::{check, check_len};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;
/// A dump's messages are at most this long (the kernel cuts them to the reader's buffer, from 8 KiB up to 32 KiB).
pub const BUFFER: usize = 32 * 1024;

/// A route socket, non-blocking and close-on-exec, that hears of every change of the host's addresses.
pub fn open_address_watch() -> io::Result<OwnedFd> {
    let ty = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, ty, libc::NETLINK_ROUTE) })?;
    // SAFETY: the kernel just made this descriptor for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `sockaddr_nl` is plain data for which all zeroes are valid.
    let mut addr: libc::sockaddr_nl = unsafe { mem::zeroed() };
    addr.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    addr.nl_groups = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;
    let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: pointer and length describe `addr`, which outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) })?;
    Ok(fd)
}

/// Asks for all addresses of both families. The answer is read with [`read`], up to [`Message::Done`].
pub fn request_addresses(fd: BorrowedFd<'_>, sequence: u32) -> io::Result<()> {
    let mut m = [0u8; HEADER + IFADDRMSG];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    m[..4].copy_from_slice(&((HEADER + IFADDRMSG) as u32).to_ne_bytes());
    m[4..6].copy_from_slice(&libc::RTM_GETADDR.to_ne_bytes());
    m[6..8].copy_from_slice(&flags.to_ne_bytes());
    m[8..12].copy_from_slice(&sequence.to_ne_bytes());
    // SAFETY: pointer and length describe `m`, which is only read.
    check_len(unsafe { libc::send(fd.as_raw_fd(), m.as_ptr().cast(), m.len(), libc::MSG_DONTWAIT) }).map(drop)
}

/// Reads one block of messages into `buf`; 0 bytes never happen. `ENOBUFS`: notifications were lost.
pub fn read(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buf`, which the kernel may write.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) })
}

/// A message of the route socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An address that an interface has; part of an answer.
    Address(IpAddr),
    /// Something changed since; ask again.
    Changed,
    /// The answer is complete.
    Done,
    /// The answer failed, with this error number.
    Failed(i32),
    /// The answer is not consistent; ask again.
    Interrupted,
}

/// Reads the messages of a block. `sequence` is that of the last request; answers to others are skipped.
pub fn messages(block: &[u8], sequence: u32) -> impl Iterator<Item = Message> + '_ {
    let mut rest = block;
    std::iter::from_fn(move || {
        loop {
            let len = rest.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)? as usize;
            if len < HEADER || len > rest.len() {
                return None;
            }
            let m = &rest[..len];
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
            if let Some(m) = message(m, sequence) {
                return Some(m);
            }
        }
    })
}

fn message(m: &[u8], sequence: u32) -> Option<Message> {
    let ty = u16::from_ne_bytes([m[4], m[5]]);
    let flags = u16::from_ne_bytes([m[6], m[7]]);
    let ours = u32::from_ne_bytes([m[8], m[9], m[10], m[11]]) == sequence && sequence != 0;
    let body = &m[HEADER..];
    if !ours {
        return matches!(ty, libc::RTM_NEWADDR | libc::RTM_DELADDR).then_some(Message::Changed);
    }
    if flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
        return Some(Message::Interrupted);
    }
    match i32::from(ty) {
        libc::NLMSG_DONE => Some(Message::Done),
        libc::NLMSG_ERROR => {
            let errno = body.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes)?;
            (errno != 0).then_some(Message::Failed(-errno))
        }
        _ if ty == libc::RTM_NEWADDR => address(body).map(Message::Address),
        _ => None,
    }
}

/// The local address of an `RTM_NEWADDR`: `IFA_LOCAL` where there is one (on point-to-point links `IFA_ADDRESS` is the peer's).
fn address(body: &[u8]) -> Option<IpAddr> {
    let family = i32::from(*body.first()?);
    let mut rest = body.get(IFADDRMSG..)?;
    let mut found = None;
    while rest.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let ty = u16::from_ne_bytes([rest[2], rest[3]]);
        if len < 4 || len > rest.len() {
            break;
        }
        let ip = match family {
            libc::AF_INET => <[u8; 4]>::try_from(&rest[4..len]).ok().map(|o| IpAddr::V4(Ipv4Addr::from(o))),
            libc::AF_INET6 => <[u8; 16]>::try_from(&rest[4..len]).ok().map(|o| IpAddr::V6(Ipv6Addr::from(o))),
            _ => None,
        };
        match ty {
            libc::IFA_LOCAL => found = ip.or(found),
            libc::IFA_ADDRESS if found.is_none() => found = ip,
            _ => {}
        }
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_loopback_is_among_the_addresses() {
        let fd = open_address_watch().unwrap();
        request_addresses(fd.as_fd(), 7).unwrap();
        let mut buf = vec![0; BUFFER];
        let mut found = Vec::new();
        'all: loop {
            let n = read(fd.as_fd(), &mut buf).unwrap();
            for m in messages(&buf[..n], 7) {
                match m {
                    Message::Address(a) => found.push(a),
                    Message::Done => break 'all,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(found.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{found:?}");
    }

    #[test]
    fn truncated_blocks_end_quietly() {
        let mut m = vec![0u8; 64];
        m[..4].copy_from_slice(&64u32.to_ne_bytes());
        m[4..6].copy_from_slice(&libc::RTM_NEWADDR.to_ne_bytes());
        m[8..12].copy_from_slice(&5u32.to_ne_bytes());
        m[16] = libc::AF_INET as u8;
        m[24..26].copy_from_slice(&200u16.to_ne_bytes());
        assert_eq!(messages(&m, 5).count(), 0);
        assert_eq!(messages(&m, 6).collect::<Vec<_>>(), [Message::Changed]);
        for n in 0..m.len() {
            assert_eq!(messages(&m[..n], 6).count(), 0);
        }
    }
}
