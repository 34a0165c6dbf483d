//! The supervisor of a command whose network is another sandbox's: it has no worker, and asks that sandbox's supervisor to serve its link.

use super::base::Base;
use super::events::{follow_resolver_of_host, forward, next_child, next_signal};
use super::membership::Membership;
use super::run::exit_status;
use super::{JoinRequest, RunRequest};
use crate::control::lifecycle::Event;
use crate::control::registry::Registration;
use crate::sandbox::child::{self, Child, Namespaces, Started};
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::plan::Plan;
use crate::sandbox::retries::Retries;
use crate::sandbox::stragglers;
use crate::sys::tun;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::{AsFd, OwnedFd};

pub(super) fn run_joined(request: &RunRequest, join: &JoinRequest, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let mut plan = request.plan.clone();
    let mut base = Base::new(&plan, &request.argv, Some(&join.network))?;
    let membership = Membership::ask(&base, join)?;
    (plan.config.v4, plan.config.v6) = (membership.net.v4, membership.net.v6);
    let started_child = Child::start(&plan, request.resolv_conf, &request.argv, base.inherited)?;
    let Started { child, end, link, namespaces, retries, .. } = started_child;
    let membership = membership.hand_over(end, link.as_fd())?;
    membership.register(&mut base, Some(&namespaces))?;
    let mut sandbox = Running { base, membership, link, child, retries };
    let ended = sandbox.child.go().and_then(|()| {
        started(sandbox.base.registration.as_ref().map_or("", Registration::name));
        sandbox.watch(&plan, request.resolv_conf, &namespaces)
    });
    sandbox.finish(&namespaces);
    ended
}

/// A sandbox in another one's network, with its command.
struct Running {
    base: Base,
    membership: Membership,
    link: OwnedFd,
    child: Child,
    retries: Retries,
}

impl Running {
    /// Supervises until the command has ended; its exit status. A failure leaves the command running.
    fn watch(&mut self, plan: &Plan, resolv_conf: bool, namespaces: &Namespaces) -> Result<u8, Failure> {
        loop {
            self.wait()?;
            while let Some(s) = next_signal(&self.base.signals)? {
                forward(&self.child, s);
            }
            if follow_resolver_of_host(&mut self.base) && resolv_conf {
                child::cover_resolv_conf_again(plan, namespaces);
            }
            while let Some((pid, status)) = next_child()? {
                if pid == self.child.pid
                    && let Some(code) = exit_status(&mut self.child, status)
                {
                    return Ok(code);
                }
            }
            self.hear()?;
        }
    }

    fn wait(&self) -> Result<(), Failure> {
        let mut fds = vec![PollFd::new(&self.base.signals, PollFlags::IN), self.membership.poll_fd()];
        fds.extend(self.base.watch.as_ref().map(|w| PollFd::new(w, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(Failure::os(Status::Internal, "cannot wait for events", e)),
        }
    }

    /// Hears what becomes of the network.
    fn hear(&mut self) -> Result<(), Failure> {
        while let Some(event) = self.membership.news()? {
            let done = match event {
                Event::Asleep => self.retries.raise(),
                Event::Awake => self.retries.put_back(),
                _ => Ok(()),
            };
            if let Err(e) = done {
                complain(format_args!("warning: cannot set how often the sandbox's kernel tries again: {e}"));
            }
        }
        Ok(())
    }

    /// Ends what is left: processes first, while they still have their network.
    fn finish(mut self, namespaces: &Namespaces) {
        let child = &mut self.child;
        stragglers::end_all(&namespaces.net, || {
            while let Ok(Some((pid, status))) = next_child() {
                if pid == child.pid {
                    exit_status(child, status);
                }
            }
        });
        // Removing the interface waits for every processor; with the namespace it is removed behind our back.
        let _ = tun::keep_interface(self.link.as_fd());
    }
}
