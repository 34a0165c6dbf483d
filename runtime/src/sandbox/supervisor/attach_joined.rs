//! The supervisor of a link or a namespace that somebody else made, whose network is another sandbox's.

use super::base::Base;
use super::events::{is_to_end, next_signal};
use super::membership::Membership;
use super::{AttachRequest, JoinRequest};
use crate::control::registry::Registration;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::Opened;
use crate::sandbox::netlink::RemovalWatch;
use crate::sandbox::target::{Gone, Target};
use crate::sys::interface::Interfaces;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;

pub(super) fn attach_joined(request: &AttachRequest, join: &JoinRequest, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let mut plan = request.plan.clone();
    let mut base = Base::new(&plan, &[], Some(&join.network))?;
    let mut gone = Gone::watch(&request.target)?;
    let membership = Membership::ask(&base, join)?;
    (plan.config.v4, plan.config.v6) = (membership.net.v4, membership.net.v6);
    let (Opened { end, fd: link, removal, .. }, unconfigured) = request.target.open(&plan)?;
    gone.interface = match (&request.target, removal) {
        // Whoever serves it notices, but does not tell us.
        (Target::Tap(name), None) => Some(watch(name)?),
        (_, removal) => removal,
    };
    let mut membership = membership.hand_over(end, link.as_fd())?;
    unconfigured.configure()?;
    membership.register(&mut base, None)?;
    started(base.registration.as_ref().map_or("", Registration::name));
    loop {
        let mut fds = vec![PollFd::new(&base.signals, PollFlags::IN), membership.poll_fd()];
        fds.extend(gone.fds().into_iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::os(Status::Internal, "cannot wait for events", e)),
        }
        while let Some(s) = next_signal(&base.signals)? {
            if is_to_end(s.signal) {
                return Ok(0);
            }
        }
        if gone.is_gone() {
            return Ok(0);
        }
        // That it is asleep or awake is nothing to us: how patient its kernel is, is a matter of whoever made it.
        while membership.news()?.is_some() {}
    }
}

fn watch(name: &str) -> Result<RemovalWatch, Failure> {
    let fail = |e| Failure::os(Status::Link, format_args!("cannot watch {name}"), e);
    let index = Interfaces::current().and_then(|i| i.index(name)).map_err(fail)?;
    RemovalWatch::new(index).map_err(fail)
}
