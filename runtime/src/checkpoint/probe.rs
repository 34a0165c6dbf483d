//! What this process may do with the sockets of its network namespace.

use super::lock::{self, LockError};
use super::repair::RepairError;
use crate::sys::repair::{self, Repair};
use crate::sys::socket;
use std::io;
use std::os::fd::AsFd;

/// Whether TCP connections of the network namespace in which the caller is can be repaired. Elsewhere the answer may be another.
///
/// # Errors
///
/// Why not.
pub fn can_repair() -> Result<(), RepairError> {
    let fail = |error| RepairError::Os { step: "make a socket", error };
    let fd = socket::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP).map_err(fail)?;
    repair::set(fd.as_fd(), Repair::On).map_err(super::repair::not_permitted)?;
    // What a kernel of before 4.8 lacks.
    match repair::window(fd.as_fd()) {
        Err(error) if error.kind() != io::ErrorKind::InvalidData => {
            Err(RepairError::Os { step: "read the windows of a connection (Linux 4.8)", error })
        }
        _ => Ok(()),
    }
}

/// Whether packets of the network namespace in which the caller is can be locked.
///
/// # Errors
///
/// Why not.
pub fn can_lock() -> Result<(), LockError> {
    lock::can_lock()
}

/// What identifies the network namespace that the answers are about, as [`socket::network_namespace`] has it of a socket.
pub fn network_namespace() -> io::Result<u64> {
    let fd = socket::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    socket::network_namespace(fd.as_fd())
}
