//! Who switches the repair mode of sockets for a command: a helper that runs already, or one of our own.

use crate::checkpoint::helper::Helper;
use crate::checkpoint::lock::LockMode;
use crate::checkpoint::probe;
use crate::sandbox::failure::{Failure, Status};
use clap::Args;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Options of commands that carry sockets over.
#[derive(Debug, Args)]
pub(super) struct RepairOptions {
    /// With --repair: have this `hibernet repair-helper` switch the repair mode [default: do it ourselves]
    #[arg(long, value_name = "SOCKET", requires = "repair", help_heading = "Carrying sockets over")]
    repair_helper: Option<PathBuf>,
    /// With --repair: keep peers from hearing that nobody is there (auto: if it can be done)
    #[arg(long, value_name = "HOW", default_value = "auto", requires = "repair", help_heading = "Carrying sockets over")]
    lock: LockMode,
}

/// A connection to a helper. One that is ours ends when nobody has a copy any more: who sleeps keeps one.
#[derive(Debug)]
pub(super) struct RunningHelper(OwnedFd);

impl RunningHelper {
    /// The connection.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl RepairOptions {
    /// Whether packets are not to be locked.
    pub(super) fn unlocked(&self) -> Result<bool, Failure> {
        match self.lock {
            LockMode::None => Ok(true),
            LockMode::Nft => Ok(false),
            LockMode::Auto => Ok(self.repair_helper.is_none() && probe::can_lock().is_err()),
        }
    }

    /// Connects to the helper that was named, or starts one.
    pub(super) fn start(&self) -> Result<RunningHelper, Failure> {
        let missing = |e: &dyn std::fmt::Display| Failure::new(Status::Namespaces, format!("--repair: {e}"));
        if let Some(path) = &self.repair_helper {
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
