//! The command that is run when something comes for a sleeping network.

use crate::checkpoint::news::News;
use crate::control::lifecycle::WakeExec;
use crate::sandbox::child::{self, Inherited};
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sys::process::{self, Forked};
use rustix::process::{Pid, WaitStatus};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Runs it in the background, in its own process group: it may outlive the sandbox's own command, and what a terminal's keys send is not for it.
pub(super) fn run(wake: &WakeExec, name: &str, news: &News, inherited: Inherited) -> Result<Pid, Failure> {
    let forked = process::fork(0).map_err(|e| Failure::os(Status::Resources, "cannot run the command that wakes", e))?;
    if let Forked::Parent(pid) = forked {
        return Ok(pid);
    }
    child::give_back(inherited);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &wake.command]).current_dir(&wake.directory).stdin(Stdio::null()).process_group(0);
    // Standard output is that of the sandbox's command.
    if let Ok(errors) = std::io::stderr().as_fd().try_clone_to_owned() {
        command.stdout(errors);
    }
    if let Some(path) = &wake.path {
        command.env("PATH", path);
    }
    command.env("HIBERNET_NAME", name).env("HIBERNET_FLOW", news.subject.to_string()).env_remove("HIBERNET_IMAGE");
    if let Some(image) = &wake.image {
        command.env("HIBERNET_IMAGE", image);
    }
    let e = command.exec();
    complain(format_args!("cannot run the command that wakes '{name}' in {}: {e}", wake.directory));
    process::exit_now(Status::NotFound as u8)
}

/// Says so if it has failed.
pub(super) fn ended(name: &str, status: WaitStatus) {
    let how = match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => return,
        (Some(s), _) => format!("failed with status {s}"),
        (None, s) => format!("was ended by signal {}", s.unwrap_or(0)),
    };
    complain(format_args!("the command that wakes '{name}' {how}; it is not run again before the next sleep"));
}
