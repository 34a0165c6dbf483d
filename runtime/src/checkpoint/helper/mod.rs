//! The repair helper: a small process with the capability that ours lacks, and how it is asked.
//!
//! Over a `SOCK_SEQPACKET` socket, one message asks and one answers. A request is a byte that says what, an argument, and at most 253
//! descriptors of sockets. An answer is two numbers of 32 bits, little-endian: how many of the sockets were served, and the error
//! number for the next one, or 0.

mod server;

pub use server::{Allowed, Server, ServerError};

use super::lock::LockError;
use super::switch::{Switch, SwitchError, force_buffers};
use crate::sandbox::fds::{self, BATCH, FdsError};
use crate::sys::repair::Repair;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest argument in bytes, and longest name of a lock, which is followed by a number there.
const MAX_ARGUMENT: usize = 64;
const MAX_NAME: usize = 40;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the helper does, as the first byte of a request.
mod command {
    pub(super) const ON: u8 = b'r';
    pub(super) const OFF: u8 = b'o';
    pub(super) const OFF_SILENTLY: u8 = b's';
    /// Buffers as large as the kernel lets them grow by itself.
    pub(super) const ENLARGE: u8 = b'b';
    /// Locks the sockets' packets; the argument names the lock.
    pub(super) const LOCK: u8 = b'l';
    /// Removes the lock that the argument names.
    pub(super) const UNLOCK: u8 = b'u';
}

/// Why the helper did not help.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// There is none.
    #[error("no repair helper at {path}: {error}; start one as root: hibernet repair-helper --socket {path}")]
    Missing {
        /// Where it should be.
        path: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// It does not serve this user.
    #[error("the repair helper does not serve this user; start it with --allow-uid")]
    NotAllowed,
    /// It has not the capability itself.
    #[error("the repair helper lacks CAP_NET_ADMIN; start it as root")]
    NotCapable,
    /// It serves another network namespace.
    #[error("the repair helper is in another network namespace than the sockets; start one where they are")]
    OtherNamespace,
    /// A descriptor is not what it serves.
    #[error("the repair helper serves TCP connections only (and locks UDP ports, too)")]
    NotTcp,
    /// It is gone, or silent.
    #[error("the repair helper does not answer: {0}")]
    Gone(#[from] FdsError),
    /// Its kernel refused something.
    #[error("the repair helper failed: {0}")]
    Os(io::Error),
}

impl HelperError {
    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EACCES => HelperError::NotAllowed,
            libc::EPERM => HelperError::NotCapable,
            libc::EXDEV => HelperError::OtherNamespace,
            libc::EPROTOTYPE => HelperError::NotTcp,
            n => HelperError::Os(io::Error::from_raw_os_error(n)),
        }
    }
}

impl From<HelperError> for io::Error {
    fn from(e: HelperError) -> Self {
        match e {
            HelperError::Os(e) => e,
            HelperError::Gone(_) => io::Error::new(io::ErrorKind::BrokenPipe, e),
            _ => io::Error::new(io::ErrorKind::PermissionDenied, e),
        }
    }
}

/// A connection to a helper.
#[derive(Debug)]
pub struct Helper {
    socket: OwnedFd,
}

impl Helper {
    /// Connects to the helper that listens at `path`.
    pub fn connect(path: &Path) -> Result<Helper, HelperError> {
        let missing = |error: Errno| HelperError::Missing { path: path.display().to_string(), error: error.into() };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(missing)?;
        let at = SocketAddrUnix::new(path).map_err(missing)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match connect(&socket, &at) {
                Err(Errno::ACCESS) => return Err(HelperError::NotAllowed),
                // Many connect at once, and nothing tells when there is room.
                Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
                r => return r.map(|()| Helper { socket }).map_err(missing),
            }
        }
    }

    /// The connection, for another process that cannot make one.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// From a connection that was made elsewhere: a confined worker cannot make one.
    pub fn from_socket(socket: OwnedFd) -> Helper {
        Helper { socket }
    }

    /// One request; how many sockets were served.
    fn ask(&mut self, command: u8, argument: &[u8], sockets: &[BorrowedFd<'_>]) -> Result<usize, (usize, HelperError)> {
        let deadline = Instant::now() + PATIENCE;
        let request = [&[command], argument].concat();
        let mut answer = [0; 9];
        // To whom it does not serve it says so and closes, unasked.
        let sent = match fds::send_message(self.socket.as_fd(), &request, sockets, deadline) {
            Err(FdsError::Closed) => Ok(()),
            r => r,
        };
        let mut receive = || fds::receive_message(self.socket.as_fd(), &mut answer, &mut Vec::new(), deadline);
        let got = match sent.and_then(|()| receive()) {
            // That it closed with our request unread is told before what it had said.
            Err(FdsError::Closed) => receive(),
            r => r,
        };
        match got {
            Ok(8) => {}
            Ok(_) => return Err((0, FdsError::Garbled.into())),
            Err(e) => return Err((0, e.into())),
        }
        let [a, b, c, d, rest @ ..] = answer;
        let done = u32::from_le_bytes([a, b, c, d]) as usize;
        match i32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) {
            0 => Ok(done),
            errno => Err((done.min(sockets.len()), HelperError::from_errno(errno))),
        }
    }

    /// Locks the packets of TCP and UDP sockets under a name: letters, digits and underlines, at most 40.
    /// The lock lasts as long as this connection, or a copy of it, is open, and its time-out longer.
    pub fn lock(&mut self, name: &str, sockets: &[BorrowedFd<'_>]) -> Result<(), HelperError> {
        if name.len() > MAX_NAME {
            return Err(HelperError::Os(io::ErrorKind::InvalidInput.into()));
        }
        for (i, batch) in sockets.chunks(BATCH).enumerate() {
            self.ask(command::LOCK, format!("{name}_{i}").as_bytes(), batch).map_err(|(_, e)| e)?;
        }
        Ok(())
    }

    /// Removes a lock, which another process may have made; whether there was one.
    pub fn unlock(&mut self, name: &str) -> Result<bool, HelperError> {
        for i in 0.. {
            let removed = self.ask(command::UNLOCK, format!("{name}_{i}").as_bytes(), &[]).map_err(|(_, e)| e)?;
            if removed == 0 {
                return Ok(i > 0);
            }
        }
        Ok(true)
    }
}

impl Switch for Helper {
    fn set(&mut self, sockets: &[BorrowedFd<'_>], to: Repair) -> Result<(), SwitchError> {
        let command = match to {
            Repair::On => command::ON,
            Repair::Off => command::OFF,
            Repair::OffSilently => command::OFF_SILENTLY,
        };
        for (i, batch) in sockets.chunks(BATCH).enumerate() {
            self.ask(command, &[], batch).map_err(|(done, e)| SwitchError { done: i * BATCH + done, error: e.into() })?;
        }
        Ok(())
    }

    fn enlarge(&mut self, socket: BorrowedFd<'_>, bytes: usize) {
        if self.ask(command::ENLARGE, &[], &[socket]).is_err() {
            force_buffers(socket, bytes);
        }
    }
}

/// An error number for a failure to lock.
fn lock_errno(e: &LockError) -> i32 {
    match e {
        LockError::NotPermitted => libc::EPERM,
        LockError::Unsupported(e) | LockError::Os(e) => e.raw_os_error().unwrap_or(libc::EINVAL),
    }
}
