//! The supervisor of a command.

use super::RunRequest;
use super::base::Base;
use super::events::{
    WorkerEnd, follow_resolver, forward, is_to_end, next_child, next_signal, wait_for_events, worker_died, worker_end,
};
use crate::control::registry::Registration;
use crate::sandbox::child::{self, Child, Namespaces, Started};
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::lifecycle::{Ended, Kit, Network, Server};
use crate::sandbox::stragglers;
use crate::sandbox::worker_process::{Given, WorkerProcess};
use crate::sys::process;
use crate::sys::tun;
use rustix::process::WaitStatus;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub(super) fn run_here(request: &RunRequest, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let plan = &request.plan;
    let mut base = Base::new(plan, &request.argv, None)?;
    let started_child = Child::start(plan, request.resolv_conf, &request.argv, base.inherited)?;
    let Started { child, end, link, queues, namespaces, retries } = started_child;
    let host = std::mem::take(&mut base.host);
    let worker_link = link.try_clone().map_err(|e| Failure::os(Status::Resources, "cannot hand the link over", e))?;
    let joined = Vec::new();
    let (name, control, link_of_worker) = (base.name(), base.control.take().map(Into::into), Some(worker_link));
    let given = Given { name, end, link: link_of_worker, queues, joined, host, control, capture_goes_on: false };
    let kit = Kit::of(plan, &base.program, &given)?;
    let (worker, thawed) = WorkerProcess::start(base.program.as_fd(), plan, given, request.thaw.as_ref())?;
    if let (Some(t), Some(report)) = (&request.thaw, &thawed) {
        (t.told)(report);
    }
    let network = Network::new(worker, base.lifecycle.take().map(Server::new).transpose()?, kit, retries, base.inherited);
    if let Some(r) = &mut base.registration {
        let ns = [&namespaces.user, &namespaces.mount, &namespaces.net].map(AsRawFd::as_raw_fd);
        let pid = network.worker().map_or(0, |p| p.as_raw_nonzero().get());
        r.update(|e| {
            e.worker = pid;
            e.namespaces = Some(ns);
        })?;
    }
    let mut sandbox = Running { base, network, link: Some(link), child };
    let ended = sandbox.child.go().and_then(|()| {
        started(sandbox.base.registration.as_ref().map_or("", Registration::name));
        sandbox.watch(request, &namespaces)
    });
    sandbox.end_processes(&namespaces);
    let ended = match ended {
        Ok(code) if sandbox.network.has_members() => sandbox.serve_others(request, namespaces).map(|()| code),
        ended => ended,
    };
    sandbox.finish();
    ended
}

/// A sandbox with its command, under supervision.
struct Running {
    base: Base,
    network: Network,
    /// Our own hold of the link: it lives at least as long as we say.
    link: Option<OwnedFd>,
    child: Child,
}

impl Running {
    /// Supervises until the command has ended; its exit status. A failure leaves the command running.
    fn watch(&mut self, request: &RunRequest, namespaces: &Namespaces) -> Result<u8, Failure> {
        loop {
            wait_for_events(&self.base, &self.network, &[])?;
            while let Some(s) = next_signal(&self.base.signals)? {
                forward(&self.child, s);
            }
            if follow_resolver(&mut self.base, &request.plan, &mut self.network) && request.resolv_conf {
                child::cover_resolv_conf_again(&request.plan, namespaces);
            }
            while let Some((pid, status)) = next_child()? {
                if pid == self.child.pid {
                    if let Some(code) = exit_status(&mut self.child, status) {
                        return Ok(code);
                    }
                } else if !status.stopped() && self.network.ended(pid, status) == Ended::Lost {
                    // The last descriptors of the link: the sandbox sees its interface go.
                    self.link = None;
                    self.network.let_link_go();
                    match worker_end(status) {
                        WorkerEnd::LinkGone => complain("warning: the sandbox's link was removed; it has no network any more"),
                        WorkerEnd::Unexpected(why) => return Err(worker_died(why)),
                    }
                }
            }
            self.network.turn(self.base.registration.as_mut())?;
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = next_child() {
            if pid == self.child.pid {
                exit_status(&mut self.child, status);
            } else if !status.stopped() {
                self.network.ended(pid, status);
            }
        }
    }

    /// Ends the processes that the command left, while they still have their network.
    fn end_processes(&mut self, namespaces: &Namespaces) {
        stragglers::end_all(&namespaces.net, || self.reap());
        // Removing the interface waits for every processor; with the namespace it is removed behind our back.
        if let Some(link) = &self.link {
            let _ = tun::keep_interface(link.as_fd());
        }
        self.link = None;
    }

    /// The command has ended, and others have joined the network: it is served until the last of them has left, or a signal comes.
    fn serve_others(&mut self, request: &RunRequest, namespaces: Namespaces) -> Result<(), Failure> {
        self.base.first_left(&mut self.network)?;
        drop(namespaces);
        while self.network.has_members() {
            wait_for_events(&self.base, &self.network, &[])?;
            while let Some(s) = next_signal(&self.base.signals)? {
                if is_to_end(s.signal) {
                    return Ok(());
                }
            }
            follow_resolver(&mut self.base, &request.plan, &mut self.network);
            while let Some((pid, status)) = next_child()? {
                if !status.stopped() && self.network.ended(pid, status) == Ended::Lost {
                    return match worker_end(status) {
                        WorkerEnd::LinkGone => Ok(()),
                        WorkerEnd::Unexpected(why) => Err(worker_died(why)),
                    };
                }
            }
            self.network.turn(self.base.registration.as_mut())?;
        }
        Ok(())
    }

    /// Ends the network.
    fn finish(&mut self) {
        self.network.let_link_go();
        self.network.end();
        self.base.registration = None;
        self.reap();
    }
}

/// The exit status, if the command has ended. If it was stopped, so are we: the shell that waits for us takes the
/// terminal back, and its `fg` wakes both.
pub(super) fn exit_status(child: &mut Child, status: WaitStatus) -> Option<u8> {
    if !status.stopped() {
        child.ended();
    }
    if let Some(code) = status.exit_status() {
        return Some(code as u8);
    }
    if let Some(signal) = status.terminating_signal() {
        return Some(128u8.wrapping_add(signal as u8));
    }
    if status.stopped() && has_terminal() {
        let _ = process::kill(rustix::process::getpid(), libc::SIGSTOP);
        let _ = process::kill(child.pid, libc::SIGCONT);
    }
    None
}

fn has_terminal() -> bool {
    use rustix::fs::{Mode, OFlags, open};
    open("/dev/tty", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).is_ok()
}
