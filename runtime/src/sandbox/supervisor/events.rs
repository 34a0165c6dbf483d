//! What a supervisor waits for: signals, ends of processes, changes of the host's resolvers, requests.

use super::base::Base;
use crate::sandbox::child::Child;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::lifecycle::Network;
use crate::sandbox::plan::Plan;
use crate::sandbox::resolv::Watch;
use crate::sys::process::{self, Received, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use rustix::time::Timespec;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Signals that are passed on to the command. Those that a terminal's keys send reach it by themselves.
pub(super) const FORWARDED: &[libc::c_int] =
    &[libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGTSTP];

/// Waits until a signal is pending, the resolver configuration may have changed, the network has something to do, or one of `more`
/// is readable.
pub(super) fn wait_for_events(base: &Base, network: &Network, more: &[&OwnedFd]) -> Result<(), Failure> {
    let mut fds = vec![PollFd::new(&base.signals, PollFlags::IN)];
    fds.extend(base.watch.as_ref().map(|w| PollFd::new(w, PollFlags::IN)));
    fds.extend(more.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)));
    network.poll_fds(&mut fds);
    let time = network.deadline().map(|t| {
        let left = t.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
    });
    match poll(&mut fds, time.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(Failure::os(Status::Internal, "cannot wait for events", e)),
    }
}

/// Whether a signal ends a supervisor that has no command to pass it on to.
pub(super) fn is_to_end(signal: libc::c_int) -> bool {
    !matches!(signal, libc::SIGCHLD | libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGALRM | libc::SIGTSTP)
}

pub(super) fn next_signal(signals: &SignalFd) -> Result<Option<Received>, Failure> {
    signals.next().map_err(|e| Failure::os(Status::Internal, "cannot receive signals", e))
}

/// Hands news of the host's resolvers to the worker; whether there may be any.
pub(super) fn follow_resolver(base: &mut Base, plan: &Plan, network: &mut Network) -> bool {
    let Some(changes) = base.watch.as_mut().and_then(Watch::changes) else { return false };
    if let (true, Some(r)) = (plan.follow_resolver, changes.resolver) {
        network.set_resolvers(&r.servers);
    }
    true
}

/// Looks whether the host's resolvers may have changed, where their worker is another sandbox's.
pub(super) fn follow_resolver_of_host(base: &mut Base) -> bool {
    base.watch.as_mut().and_then(Watch::changes).is_some()
}

/// Passes a signal on to the command.
pub(super) fn forward(child: &Child, s: Received) {
    // What a terminal sends goes to the whole foreground group, so to the command too.
    if s.signal != libc::SIGCHLD && !s.from_kernel {
        let _ = process::kill(child.pid, s.signal);
    }
}

/// A child that ended or stopped, if there is one.
pub(super) fn next_child() -> Result<Option<(Pid, WaitStatus)>, Failure> {
    match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
        Ok(r) => Ok(r),
        Err(rustix::io::Errno::CHILD | rustix::io::Errno::INTR) => Ok(None),
        Err(e) => Err(Failure::os(Status::Internal, "cannot wait for a process", e)),
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerEnd {
    /// Its link is gone (or it was asked to end).
    LinkGone,
    /// Without a reason that is one.
    Unexpected(WaitStatusText),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WaitStatusText {
    status: Option<i32>,
    signal: Option<i32>,
}

impl std::fmt::Display for WaitStatusText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.status, self.signal) {
            (_, Some(libc::SIGSYS)) => f.write_str("it made a system call that is not allowed to it"),
            (_, Some(s)) => write!(f, "signal {s}"),
            (Some(s), None) => write!(f, "status {s}"),
            (None, None) => f.write_str("for an unknown reason"),
        }
    }
}

/// How a process ended, in words.
pub(crate) fn how_ended(status: WaitStatus) -> String {
    WaitStatusText { status: status.exit_status(), signal: status.terminating_signal() }.to_string()
}

pub(super) fn worker_end(status: WaitStatus) -> WorkerEnd {
    match status.exit_status() {
        Some(0) => WorkerEnd::LinkGone,
        status_code => WorkerEnd::Unexpected(WaitStatusText { status: status_code, signal: status.terminating_signal() }),
    }
}

pub(super) fn worker_died(why: WaitStatusText) -> Failure {
    Failure::new(
        Status::WorkerDied,
        format!("the network worker ended unexpectedly ({why}); the sandbox has lost its network and is ended"),
    )
}
