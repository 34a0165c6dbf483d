//! Trying what this machine allows, in processes that leave nothing behind.

use super::channel::Channel;
use super::confine;
use super::failure::{Failure, Status};
use super::namespaces;
use crate::sys::process::{self, Forked};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Result of trying something in namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trial<T> {
    /// It works.
    Works(T),
    /// It does not.
    Fails(Failure),
    /// There are no namespaces to try it in.
    NoNamespaces(Failure),
}

#[derive(Serialize, Deserialize)]
enum Report<T> {
    UserNamespace,
    Done(T),
    Failed(Failure),
}

fn wait(pid: Pid) -> Option<WaitStatus> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(s) => return s.map(|(_, s)| s),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Calls `f` as root of a new user namespace, in a process of its own.
pub(crate) fn in_namespaces<T>(f: impl FnOnce() -> Result<T, Failure>) -> Trial<T>
where
    T: Serialize + serde::de::DeserializeOwned,
{
    let begin = || -> Result<_, Failure> {
        let (ours, theirs) = Channel::pair()?;
        let forked = process::fork(0).map_err(|e| Failure::os(Status::Resources, "cannot start a process", e))?;
        Ok((ours, theirs, forked))
    };
    let (ours, theirs, forked) = match begin() {
        Ok(b) => b,
        Err(e) => return Trial::Fails(e),
    };
    match forked {
        Forked::Child => {
            drop(ours);
            let done = catch_unwind(AssertUnwindSafe(|| {
                process::unshare(libc::CLONE_NEWUSER).map_err(|e| namespaces::refused("cannot make a user namespace", e))?;
                theirs.send(&Report::<()>::UserNamespace, &[])?;
                theirs.recv::<()>()?;
                process::unshare(libc::CLONE_NEWNS).map_err(|e| namespaces::refused("cannot make a mount namespace", e))?;
                f()
            }));
            let report = match done {
                Ok(Ok(t)) => Report::Done(t),
                Ok(Err(e)) => Report::Failed(e),
                Err(_) => Report::Failed(Failure::new(Status::Internal, "the trial failed")),
            };
            let _ = theirs.send(&report, &[]);
            process::exit_now(0)
        }
        Forked::Parent(pid) => {
            drop(theirs);
            let result = converse(&ours, pid);
            drop(ours);
            wait(pid);
            result
        }
    }
}

fn converse<T: serde::de::DeserializeOwned>(channel: &Channel, pid: Pid) -> Trial<T> {
    let ended = || Failure::new(Status::Internal, "the trial ended early");
    match channel.recv::<Report<T>>() {
        Ok(Some((Report::UserNamespace, _))) => {}
        Ok(Some((Report::Failed(e), _))) | Err(e) => return Trial::NoNamespaces(e),
        _ => return Trial::NoNamespaces(ended()),
    }
    if let Err(e) = namespaces::write_id_maps(pid).and_then(|()| channel.send(&(), &[])) {
        return Trial::NoNamespaces(e);
    }
    match channel.recv::<Report<T>>() {
        Ok(Some((Report::Done(t), _))) => Trial::Works(t),
        Ok(Some((Report::Failed(e), _))) if e.status == Status::Namespaces => Trial::NoNamespaces(e),
        Ok(Some((Report::Failed(e), _))) | Err(e) => Trial::Fails(e),
        _ => Trial::Fails(ended()),
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It succeeded.
    Done,
    /// It failed, with this error number.
    Refused(i32),
    /// The process was ended by this signal.
    Killed(i32),
}

/// Confines a process as a worker is confined, and has it attempt something.
///
/// # Errors
///
/// What could not be taken away from it.
pub(crate) fn confined(attempt: impl FnOnce() -> io::Result<()>) -> Result<Attempt, Failure> {
    let (ours, theirs) = Channel::pair()?;
    match super::worker_process::fork()?.0 {
        Forked::Child => {
            drop(ours);
            let done =
                catch_unwind(AssertUnwindSafe(|| confine::drop_privileges().and_then(|()| confine::restrict_system_calls())));
            let report = match done {
                Ok(Ok(())) => Report::Done(()),
                Ok(Err(e)) => Report::Failed(e),
                Err(_) => Report::Failed(Failure::new(Status::Internal, "the trial failed")),
            };
            let _ = theirs.send(&report, &[]);
            if matches!(report, Report::Failed(_)) {
                process::exit_now(0);
            }
            // Error numbers fit into an exit status.
            let code = attempt().map_or_else(|e| e.raw_os_error().unwrap_or(255) as u8, |()| 0);
            process::exit_now(code)
        }
        Forked::Parent(pid) => {
            drop(theirs);
            let answer = ours.recv::<Report<()>>();
            let end = wait(pid);
            match answer? {
                Some((Report::Done(()), _)) => {}
                Some((Report::Failed(e), _)) => return Err(e),
                _ => return Err(Failure::new(Status::Internal, "the process ended when it was confined")),
            }
            Ok(match end.map(|s| (s.exit_status(), s.terminating_signal())) {
                Some((Some(0), _)) => Attempt::Done,
                Some((Some(code), _)) => Attempt::Refused(code),
                Some((_, Some(signal))) => Attempt::Killed(signal),
                _ => return Err(Failure::new(Status::Internal, "the process could not be waited for")),
            })
        }
    }
}
