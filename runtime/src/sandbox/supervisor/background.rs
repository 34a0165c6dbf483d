//! A supervisor in the background.

use crate::cli::print;
use crate::sandbox::channel::Channel;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::{host, open_null};
use crate::sys::process::{self, Forked};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// What a detached supervisor tells the process that started it.
#[derive(Debug, Serialize, Deserialize)]
enum Started {
    Running(String),
    Failed(Failure),
}

/// Calls `f`, in a process of its own if `detach`; then returns when that calls its argument with the sandbox's name.
pub(super) fn in_background_if(
    detach: bool,
    output: Option<&Path>,
    f: impl FnOnce(&mut dyn FnMut(&str)) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    if !detach {
        return f(&mut |_| {});
    }
    let output = output.map(|p| host::open_file(p, "--output", true)).transpose()?;
    let (ours, theirs) = Channel::pair()?;
    match process::fork(0).map_err(|e| Failure::os(Status::Resources, "cannot start a process", e))? {
        Forked::Child => {
            drop(ours);
            let mut theirs = Some(theirs);
            let done = background(output).and_then(|()| {
                f(&mut |name| {
                    if let Some(c) = theirs.take() {
                        let _ = c.send(&Started::Running(name.into()), &[]);
                    }
                })
            });
            process::exit_now(match done {
                Ok(status) => status,
                Err(e) => {
                    match theirs.take() {
                        Some(c) => drop(c.send(&Started::Failed(e.clone()), &[])),
                        None => complain(format_args!("{e}")),
                    }
                    e.status as u8
                }
            })
        }
        Forked::Parent(_) => {
            drop(theirs);
            match ours.recv()? {
                Some((Started::Running(name), _)) => print(&format!("{name}\n")),
                Some((Started::Failed(e), _)) => Err(e),
                None => Err(Failure::new(Status::Internal, "the supervisor ended while it was being started")),
            }
        }
    }
}

/// Lets go of the terminal and of the caller's files.
fn background(output: Option<File>) -> Result<(), Failure> {
    let fail = |e| Failure::os(Status::Internal, "cannot go to the background", e);
    rustix::process::setsid().map_err(fail)?;
    let null = open_null()?;
    rustix::stdio::dup2_stdin(&null).map_err(fail)?;
    let out = match &output {
        Some(f) => f.as_fd(),
        None => null.as_fd(),
    };
    rustix::stdio::dup2_stdout(out).and_then(|()| rustix::stdio::dup2_stderr(out)).map_err(fail)
}
