//! System calls behind safe functions. The only place of `unsafe` in the project.
//!
//! One file per concern. A function checks what the kernel does not, takes descriptors borrowed, and turns a failure
//! into the `io::Error` of its errno. Nothing here retries or decides.

pub mod addr;
pub mod cmsg;
pub mod datagram;
pub mod errqueue;
pub mod event;
pub mod interface;
pub mod mmap;
pub mod mmsg;
pub mod netlink;
pub mod packet;
pub mod packet_ring;
pub mod process;
pub mod random;
pub mod repair;
pub mod rlimit;
pub mod socket;
pub mod stream;
pub mod system;
pub mod tcp;
pub mod tun;
pub mod unix;
pub mod vanished;

use std::io;

/// The result of a call that returns -1 and an errno on failure.
pub(crate) fn check(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// As [`check`], for calls that return a byte count.
pub(crate) fn check_len(r: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}
