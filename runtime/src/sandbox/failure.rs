//! Why a command of hibernet could not do its work, and the exit status that says so.

use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// Exit statuses of hibernet's own. A sandboxed command's status is passed on as it is, so it can be equal to one
/// of these; the line on standard error tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Status {
    /// The command line is wrong. Also used by the option parser.
    Usage = 2,
    /// What was required of a checkpoint cannot be met; nothing has changed.
    Require = 3,
    /// What was waited for has not happened in time.
    TimedOut = 4,
    /// Something that should not happen.
    Internal = 70,
    /// The namespaces cannot be made or entered.
    Namespaces = 71,
    /// The link cannot be made, opened or configured.
    Link = 72,
    /// A published port cannot be opened.
    Port = 73,
    /// Descriptors, processes or memory ran out.
    Resources = 74,
    /// A sandbox's name is taken, or no sandbox has it.
    Name = 75,
    /// The network worker ended although nobody asked it to.
    WorkerDied = 76,
    /// A file (capture, log, resolver configuration) cannot be read or written.
    File = 77,
    /// Rules cannot be read, or make no sense.
    Rules = 78,
    /// Not possible in the state in which the sandbox is.
    State = 79,
    /// An image is damaged, of a version that is not known, or cannot be true.
    Image = 80,
    /// The command was found but cannot be executed.
    NotExecutable = 126,
    /// The command was not found.
    NotFound = 127,
}

/// A failure: one line that says what, where and what to do, and the exit status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// Exit status.
    pub status: Status,
    /// One line, without a full stop.
    pub message: String,
}

impl Failure {
    /// From its parts.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Failure { status, message: message.into() }
    }

    /// For an operation of the kernel's that failed. Whatever the operation, lack of descriptors, processes or memory
    /// is [`Status::Resources`].
    pub fn os(status: Status, what: impl Display, error: impl Into<std::io::Error>) -> Self {
        let error: std::io::Error = error.into();
        match error.raw_os_error() {
            Some(libc::EMFILE) => Failure::new(
                Status::Resources,
                format!("{what}: no file descriptors left in this process; raise its limit (ulimit -n)"),
            ),
            Some(libc::ENFILE) => Failure::new(
                Status::Resources,
                format!("{what}: no file descriptors left on this host; raise the sysctl fs.file-max"),
            ),
            Some(libc::ENOMEM | libc::ENOBUFS) => Failure::new(Status::Resources, format!("{what}: no memory left on this host")),
            Some(libc::EAGAIN) if status == Status::Resources => {
                Failure::new(Status::Resources, format!("{what}: no processes left for this user; raise the limit (ulimit -u)"))
            }
            _ => Failure::new(status, format!("{what}: {error}")),
        }
    }
}

/// Says something on standard error. That nobody hears it is no reason to stop.
pub(crate) fn complain(what: impl Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "hibernet: {what}");
}
