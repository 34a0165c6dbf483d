//! Who switches the repair mode of sockets for a command: a helper that runs already, or one of our own.

use crate::checkpoint::helper::Helper;
use crate::checkpoint::lock::LockMode;
use crate::checkpoint::probe;
use crate::sandbox::failure::{Failure, Status};
use clap::Args;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a helper of our own may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// A connection to a helper, and the helper if it is ours: it ends with this.
#[derive(Debug)]
pub(super) struct RunningHelper {
    socket: OwnedFd,
    _own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    child: Child,
    at: PathBuf,
}

impl RunningHelper {
    /// The connection.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It is a child of ours, and keeps nothing that it would have to put away but its socket.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.at);
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
            let socket = Helper::connect(path).map_err(|e| missing(&e))?.into_socket();
            return Ok(RunningHelper { socket, _own: None });
        }
        probe::can_repair().map_err(|e| missing(&e))?;
        let at = std::env::temp_dir().join(format!("hibernet-repair-{}.sock", std::process::id()));
        let child = Command::new("/proc/self/exe")
            .args(["repair-helper", "--socket"])
            .arg(&at)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| Failure::os(Status::Resources, "cannot start a repair helper", e))?;
        let mut own = Own { child, at };
        let end = Instant::now() + PATIENCE;
        loop {
            match Helper::connect(&own.at) {
                Ok(h) => return Ok(RunningHelper { socket: h.into_socket(), _own: Some(own) }),
                Err(e) if Instant::now() > end || own.child.try_wait().is_ok_and(|s| s.is_some()) => return Err(missing(&e)),
                // Nothing tells that its socket is there but trying.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}
