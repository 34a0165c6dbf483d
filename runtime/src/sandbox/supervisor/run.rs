//! The supervisor of a command.

use super::RunRequest;
use super::base::Base;
use super::events::{WorkerEnd, follow_resolver, next_child, next_signal, wait_for_events, worker_died, worker_end};
use crate::checkpoint::Held;
use crate::control::registry::Registration;
use crate::sandbox::child::{self, Child, Namespaces};
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::lifecycle::{Kit, Network, Server};
use crate::sandbox::stragglers;
use crate::sandbox::worker_process::{Given, Thaw, WorkerProcess};
use crate::sys::process::{self, Received};
use crate::sys::tun;
use rustix::process::{Pid, WaitStatus};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub(super) fn run_here(request: &RunRequest, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let plan = &request.plan;
    let mut base = Base::new(plan, &request.argv)?;
    let (child, end, link, namespaces, retries) = Child::start(plan, request.resolv_conf, &request.argv, base.inherited)?;
    let host = std::mem::take(&mut base.host);
    let worker_link = link.try_clone().map_err(|e| Failure::os(Status::Resources, "cannot hand the link over", e))?;
    let given = Given { end, link: worker_link, host, control: base.control.take().map(Into::into), thaw: thaw_of(request)? };
    let kit = Kit::of(plan, &base.program, &given)?;
    let (worker, thawed) = WorkerProcess::start(base.program.as_fd(), plan, given)?;
    if let (Some(t), Some(report)) = (&request.thaw, &thawed) {
        (t.told)(report);
    }
    let network = Network::new(worker, base.lifecycle.take().map(Server::new).transpose()?, kit, retries);
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
    sandbox.finish(&namespaces);
    ended
}

/// What the network goes on from, if from anything: nothing is held for it here.
fn thaw_of(request: &RunRequest) -> Result<Option<Thaw>, Failure> {
    let thaw = |t: &super::Thawing| {
        let image = t.image.try_clone().map_err(|e| Failure::os(Status::Resources, "cannot hand the image over", e))?;
        let helper = t.helper.as_ref().map(OwnedFd::try_clone).transpose();
        let helper = helper.map_err(|e| Failure::os(Status::Resources, "cannot hand a connection over", e))?;
        Ok(Thaw { image: image.into(), held: Held::default(), policy: t.policy.clone(), helper })
    };
    request.thaw.as_ref().map(thaw).transpose()
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
                self.forward(s);
            }
            if follow_resolver(&mut self.base, &request.plan, &mut self.network) && request.resolv_conf {
                child::cover_resolv_conf_again(&request.plan, namespaces);
            }
            self.network.turn(self.base.registration.as_mut())?;
            while let Some((pid, status)) = next_child()? {
                self.reaped(pid, status);
                if pid == self.child.pid {
                    if let Some(code) = self.child_changed(status) {
                        return Ok(code);
                    }
                } else if Some(pid) == self.network.worker() && !status.stopped() {
                    // It may have handed everything over before it ended.
                    self.network.turn(self.base.registration.as_mut())?;
                    if Some(pid) != self.network.worker() {
                        continue;
                    }
                    // The last descriptor of the link: the sandbox sees its interface go.
                    self.link = None;
                    match worker_end(status) {
                        WorkerEnd::LinkGone => complain("warning: the sandbox's link was removed; it has no network any more"),
                        WorkerEnd::Unexpected(why) => return Err(worker_died(why)),
                    }
                }
            }
        }
    }

    fn forward(&self, s: Received) {
        // What a terminal sends goes to the whole foreground group, so to the command too.
        if s.signal != libc::SIGCHLD && !s.from_kernel {
            let _ = process::kill(self.child.pid, s.signal);
        }
    }

    /// The exit status, if the command has ended. If it was stopped, so are we: the shell that waits for us takes the
    /// terminal back, and its `fg` wakes both.
    fn child_changed(&self, status: WaitStatus) -> Option<u8> {
        if let Some(code) = status.exit_status() {
            return Some(code as u8);
        }
        if let Some(signal) = status.terminating_signal() {
            return Some(128u8.wrapping_add(signal as u8));
        }
        if status.stopped() && has_terminal() {
            let _ = process::kill(rustix::process::getpid(), libc::SIGSTOP);
            let _ = process::kill(self.child.pid, libc::SIGCONT);
        }
        None
    }

    /// Notes who was waited for, and must not be any more.
    fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        if status.stopped() {
            return;
        }
        if pid == self.child.pid {
            self.child.ended();
        } else if Some(pid) == self.network.worker() {
            self.network.worker_has_ended();
        }
    }

    /// Ends what is left: processes first, while they still have their network, then the worker.
    fn finish(&mut self, namespaces: &Namespaces) {
        let reap = |running: &mut Self| {
            while let Ok(Some((pid, status))) = next_child() {
                running.reaped(pid, status);
            }
        };
        stragglers::end_all(&namespaces.net, || reap(self));
        // Removing the interface waits for every processor; with the namespace it is removed behind our back.
        if let Some(link) = &self.link {
            let _ = tun::keep_interface(link.as_fd());
        }
        self.link = None;
        self.network.end();
        self.base.registration = None;
        reap(self);
    }
}

fn has_terminal() -> bool {
    use rustix::fs::{Mode, OFlags, open};
    open("/dev/tty", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).is_ok()
}
