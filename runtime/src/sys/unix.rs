//! Unix sockets: who has sent a datagram.

use super::check_len;
use super::cmsg::Control;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Who has sent a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The name of its socket: a path, or an abstract name behind a zero byte. Empty if it has none, so that it cannot be answered.
    pub name: Vec<u8>,
    /// Its process, if the socket asks for that (`SO_PASSCRED`) and it is known in our process namespace.
    pub pid: Option<i32>,
}

/// Room for a control message with `struct ucred`, and for nothing else: descriptors that come along are not taken.
const CREDENTIALS: usize = (size_of::<libc::cmsghdr>() + size_of::<libc::ucred>()).next_multiple_of(size_of::<usize>());

/// Who has sent the first datagram that waits, which stays where it is.
///
/// # Errors
/// `WouldBlock` if none waits.
pub fn peek_sender(fd: BorrowedFd<'_>) -> io::Result<Sender> {
    // SAFETY: both are plain old data for which zero (a null pointer, a length of zero) is a valid value.
    let (mut name, mut header): (libc::sockaddr_un, libc::msghdr) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut byte = [0u8; 1];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    let mut control = Control::default();
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.room_mut().0;
    header.msg_controllen = CREDENTIALS.min(control.room_mut().1) as _;
    // SAFETY: the header points to `name`, `byte` and `control`, which outlive the call, each with no more than its length.
    check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) })?;
    control.set_len(header.msg_controllen);
    let len = (header.msg_namelen as usize).saturating_sub(offset_of!(libc::sockaddr_un, sun_path)).min(name.sun_path.len());
    let mut bytes: Vec<u8> = name.sun_path[..len].iter().map(|c| *c as u8).collect();
    // Only a path ends with a zero byte.
    if bytes.first().is_some_and(|b| *b != 0) {
        bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
    }
    let is_credentials = |level, ty| (level, ty) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);
    let credentials = control.iter().find(|(level, ty, _)| is_credentials(*level, *ty));
    // `struct ucred` begins with the process id.
    let pid = credentials.and_then(|(_, _, value)| value.first_chunk()).map(|b| i32::from_ne_bytes(*b)).filter(|p| *p > 0);
    Ok(Sender { name: bytes, pid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::set_socket_passcred;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_sender_is_known_and_its_datagram_stays() {
        let name = format!("hibernet-sender-{}", std::process::id());
        let at = SocketAddr::from_abstract_name(&name).unwrap();
        let (ours, theirs) = (UnixDatagram::bind_addr(&at).unwrap(), UnixDatagram::unbound().unwrap());
        let none = peek_sender(ours.as_fd()).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        theirs.connect_addr(&at).unwrap();
        theirs.send(b"from nobody").unwrap();
        assert_eq!(peek_sender(ours.as_fd()).unwrap(), Sender { name: Vec::new(), pid: None });
        let mut buf = [0; 32];
        assert_eq!(ours.recv(&mut buf).unwrap(), 11);

        set_socket_passcred(&ours, true).unwrap();
        let dir = std::env::temp_dir().join(&name);
        let bound = UnixDatagram::bind(&dir).unwrap();
        bound.connect_addr(&at).unwrap();
        for _ in 0..2 {
            bound.send(b"hello").unwrap();
        }
        let sender = Sender { name: dir.to_str().unwrap().as_bytes().to_vec(), pid: Some(std::process::id() as i32) };
        for _ in 0..2 {
            assert_eq!(peek_sender(ours.as_fd()).unwrap(), sender);
            assert_eq!(ours.recv(&mut buf).unwrap(), 5);
        }
        std::fs::remove_file(dir).unwrap();
    }
}
