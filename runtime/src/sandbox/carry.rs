//! Who switches the repair mode of sockets that are carried over: a helper that runs already, or one of our own.

use super::failure::{Failure, Status};
use crate::checkpoint::helper::Helper;
use crate::checkpoint::lock::LockMode;
use crate::checkpoint::probe;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How sockets are carried over.
#[derive(Clone, Debug, Default)]
pub struct Carry {
    /// Where the `hibernet repair-helper` listens that is to be asked; none: one of our own, if we may.
    pub helper: Option<PathBuf>,
    /// How packets are locked while nobody is there for them.
    pub lock: LockMode,
    /// Flows that must come along when a virtual machine moves, in percent; else it does not move.
    pub require: u8,
    /// The level at which its network's image is written then, for an older hibernet.
    pub compat: Option<u16>,
}

/// A connection to a helper. One that is ours ends when nobody has a copy any more: who sleeps keeps one.
#[derive(Debug)]
pub(crate) struct RunningHelper(OwnedFd);

impl RunningHelper {
    /// The connection.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Carry {
    /// Whether packets are not to be locked.
    pub(crate) fn unlocked(&self) -> bool {
        match self.lock {
            LockMode::None => true,
            LockMode::Nft => false,
            LockMode::Auto => self.helper.is_none() && probe::can_lock().is_err(),
        }
    }

    /// Connects to the helper that was named, or starts one.
    pub(crate) fn start(&self) -> Result<RunningHelper, Failure> {
        let missing = |e: &dyn std::fmt::Display| Failure::new(Status::Namespaces, e.to_string());
        if let Some(path) = &self.helper {
            return Ok(RunningHelper(Helper::connect(path).map_err(|e| missing(&e))?.into_socket()));
        }
        probe::can_repair().map_err(|e| missing(&e))?;
        let fail = |e| Failure::os(Status::Resources, "cannot start a repair helper", e);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(|e| fail(e.into()))?;
        Command::new("/proc/self/exe")
            .args(["repair-helper", "--inherited"])
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not the terminal's business: it may last longer than we.
            .process_group(0)
            .spawn()
            .map_err(fail)?;
        Ok(RunningHelper(ours))
    }
}
