//! Who switches the repair mode: we ourselves, or a helper that may.

use crate::sys::repair::{self, Repair};
use crate::sys::socket::set_option;
use std::io;
use std::os::fd::BorrowedFd;

/// Switching did not succeed for all sockets.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SwitchError {
    /// How many sockets, from the first, were switched.
    pub done: usize,
    /// Why the next was not.
    #[source]
    pub error: io::Error,
}

/// The few operations on a socket that need a capability.
pub trait Switch {
    /// Switches the repair mode of sockets, one after the other.
    fn set(&mut self, sockets: &[BorrowedFd<'_>], to: Repair) -> Result<(), SwitchError>;

    /// Gives a socket buffers for `bytes` bytes either way, or as many as can be had.
    fn enlarge(&mut self, socket: BorrowedFd<'_>, bytes: usize);
}

/// With the capabilities of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Switch for Direct {
    fn set(&mut self, sockets: &[BorrowedFd<'_>], to: Repair) -> Result<(), SwitchError> {
        for (done, fd) in sockets.iter().enumerate() {
            repair::set(*fd, to).map_err(|error| SwitchError { done, error })?;
        }
        Ok(())
    }

    fn enlarge(&mut self, socket: BorrowedFd<'_>, bytes: usize) {
        force_buffers(socket, bytes);
    }
}

/// Sets both buffers, beyond the system's limits if this process may.
pub(super) fn force_buffers(socket: BorrowedFd<'_>, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for (forced, plain) in [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)] {
        if set_option(socket, libc::SOL_SOCKET, forced, bytes).is_err() {
            // Fails only for what is no socket.
            let _ = set_option(socket, libc::SOL_SOCKET, plain, bytes);
        }
    }
}

/// Switches what can be switched; whoever cannot is told by `failed` with the position.
pub(super) fn set_each(
    switch: &mut dyn Switch,
    sockets: &[BorrowedFd<'_>],
    to: Repair,
    failed: &mut dyn FnMut(usize, io::Error),
) {
    let mut begin = 0;
    while begin < sockets.len() {
        let Err(e) = switch.set(&sockets[begin..], to) else { return };
        let at = begin + e.done.min(sockets.len() - begin - 1);
        failed(at, e.error);
        begin = at + 1;
    }
}
