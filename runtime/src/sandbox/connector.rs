//! Connections to a monitor that listens at a path: made by the supervisor, since the worker can reach no path.
//!
//! The worker rings when it wants one. Until one can be made it is tried for again and again; then it is handed over. One that is handed over while no worker
//! is there waits for the next, as a connection waits in the queue of a socket that listens.

use super::failure::{Failure, Status, complain};
use super::socket_path;
use crate::link::datagram::has_rung;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How long to wait before another attempt.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Connector {
    path: PathBuf,
    address: SocketAddrUnix,
    /// Connections go to the worker here; it rings when it wants one.
    worker: OwnedFd,
    timer: OwnedFd,
    wanted: bool,
    /// That nobody can be reached was told.
    told: bool,
}

impl Connector {
    /// Of a monitor at `path`, now or later. `worker`: our end of a socket pair that keeps message boundaries.
    ///
    /// # Errors
    ///
    /// [`Status::Link`] if there can be no socket at the path.
    pub(crate) fn new(path: &Path, worker: OwnedFd) -> Result<Connector, Failure> {
        let fail = |e: io::Error| Failure::os(Status::Link, format_args!("cannot connect to {}", path.display()), e);
        let absolute = std::path::absolute(path).map_err(fail)?;
        let address = SocketAddrUnix::new(&absolute).map_err(|e| fail(e.into()))?;
        if !absolute.parent().is_some_and(Path::is_dir) {
            return Err(fail(Errno::NOENT.into()));
        }
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        let timer = timer.map_err(|e| fail(e.into()))?;
        Ok(Connector { path: path.into(), address, worker, timer, wanted: false, told: false })
    }

    /// What to wait for.
    pub(crate) fn fds(&self) -> [Option<&OwnedFd>; 2] {
        [Some(&self.worker), Some(&self.timer)]
    }

    /// Does what is to be done now.
    pub(crate) fn turn(&mut self) {
        let again = rustix::io::read(&self.timer, &mut [0; 8][..]).is_ok();
        if has_rung(&self.worker) {
            self.wanted = true;
        } else if !again {
            return;
        }
        if !self.wanted {
            return;
        }
        match self.connect() {
            Ok(()) => (self.wanted, self.told) = (false, false),
            Err(e) => {
                if !std::mem::replace(&mut self.told, true) {
                    complain(format_args!(
                        "notice: nobody is reached at {} ({e}); trying again until somebody is",
                        self.path.display()
                    ));
                }
                let once = Itimerspec { it_interval: Timespec::default(), it_value: RETRY };
                // The one error is a time that makes no sense.
                let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
            }
        }
    }

    /// Connects, and hands the connection over.
    fn connect(&self) -> io::Result<()> {
        let socket = socket_path::stream_socket()?;
        rustix::net::connect(&socket, &self.address)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [socket.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.worker, &[IoSlice::new(&[1])], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
