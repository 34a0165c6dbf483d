//! The supervisor of a command whose network is another sandbox's: it has no worker, and asks that sandbox's supervisor to serve its link.

use super::base::Base;
use super::events::{follow_resolver_of_host, forward, next_child, next_signal};
use super::run::exit_status;
use super::{JoinRequest, RunRequest};
use crate::control::lifecycle::{Asking, Event, Join, Request};
use crate::control::registry::Registration;
use crate::sandbox::child::{self, Child, Namespaces};
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::plan::Plan;
use crate::sandbox::retries::Retries;
use crate::sandbox::stragglers;
use crate::sys::tun;
use rustix::event::{PollFd, PollFlags, poll};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub(super) fn run_joined(request: &RunRequest, join: &JoinRequest, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let mut plan = request.plan.clone();
    let mut base = Base::new(&plan, &request.argv, Some(&join.network))?;
    let wish = Join { name: base.name(), ..join.wish.clone() };
    let mut asking = Asking::new(&join.network, &Request::Join(Box::new(wish)), &[])?;
    let net = match asking.event()? {
        Some(Event::Granted(net)) => *net,
        _ => return Err(refusal(asking)),
    };
    (plan.config.v4, plan.config.v6) = (net.v4, net.v6);
    let (child, end, link, namespaces, retries) = Child::start(&plan, request.resolv_conf, &request.argv, base.inherited)?;
    asking.say(&Request::Link { end }, &[link.as_fd()])?;
    match asking.event()? {
        Some(Event::Served(_)) => {}
        _ => return Err(refusal(asking)),
    }
    asking.be_patient();
    if let Some(r) = &mut base.registration {
        let ns = [&namespaces.user, &namespaces.mount, &namespaces.net].map(AsRawFd::as_raw_fd);
        let v4 = net.v4.map(|c| IpAddr::V4(c.guest));
        let v6 = net.v6.map(|c| IpAddr::V6(c.guest));
        r.update(|e| {
            e.namespaces = Some(ns);
            e.addresses = v4.into_iter().chain(v6).collect();
        })?;
    }
    let mut sandbox = Running { base, asking, link, child, retries };
    let ended = sandbox.child.go().and_then(|()| {
        started(sandbox.base.registration.as_ref().map_or("", Registration::name));
        sandbox.watch(&plan, request.resolv_conf, &namespaces)
    });
    sandbox.finish(&namespaces);
    ended
}

/// Why the other supervisor does not serve us.
fn refusal(asking: Asking) -> Failure {
    match asking.answer::<serde_json::Value>() {
        Err(e) => e,
        Ok(_) => Failure::new(Status::Internal, "the network's supervisor answers what it was not asked; is it another version?"),
    }
}

/// A sandbox in another one's network, with its command.
struct Running {
    base: Base,
    /// For as long as this is open the other supervisor serves us.
    asking: Asking,
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
        let mut fds =
            vec![PollFd::new(&self.base.signals, PollFlags::IN), PollFd::from_borrowed_fd(self.asking.fd(), PollFlags::IN)];
        fds.extend(self.base.watch.as_ref().map(|w| PollFd::new(w, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(Failure::os(Status::Internal, "cannot wait for events", e)),
        }
    }

    /// Hears what becomes of the network.
    fn hear(&mut self) -> Result<(), Failure> {
        while self.asking.has_more() || is_readable(&self.asking) {
            let done = match self.asking.event() {
                Ok(Some(Event::Asleep)) => self.retries.raise(),
                Ok(Some(Event::Awake)) => self.retries.put_back(),
                Ok(Some(_)) => Ok(()),
                Ok(None) | Err(_) => {
                    let why = "the network that the sandbox has joined has ended; the sandbox is ended";
                    return Err(Failure::new(Status::WorkerDied, why));
                }
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

fn is_readable(asking: &Asking) -> bool {
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(asking.fd(), PollFlags::IN)];
    poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
}
