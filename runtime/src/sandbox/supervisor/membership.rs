//! A place in another sandbox's network: its supervisor is asked for it, and serves our link for as long as we listen to it.

use super::JoinRequest;
use super::base::Base;
use crate::control::lifecycle::{Asking, Event, Join, Request};
use crate::sandbox::child::Namespaces;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::LinkEnd;
use crate::sys::event::is_readable;
use hibernet_netstack::config::GuestNet;
use rustix::event::{PollFd, PollFlags};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// See the module's documentation. It ends with this.
pub(super) struct Membership {
    asking: Asking,
    /// Our addresses.
    pub(super) net: GuestNet,
}

impl Membership {
    /// Asks for a place, under our name.
    pub(super) fn ask(base: &Base, join: &JoinRequest) -> Result<Membership, Failure> {
        let wish = Join { name: base.name(), ..join.wish.clone() };
        let mut asking = Asking::new(&join.network, &Request::Join(Box::new(wish)), &[])?;
        match asking.event()? {
            Some(Event::Granted(net)) => Ok(Membership { asking, net: *net }),
            _ => Err(refusal(asking)),
        }
    }

    /// Hands our link over, to be served.
    pub(super) fn hand_over(mut self, end: LinkEnd, link: BorrowedFd<'_>) -> Result<Membership, Failure> {
        self.asking.say(&Request::Link { end }, &[link])?;
        match self.asking.event()? {
            Some(Event::Served(_)) => {
                self.asking.be_patient();
                Ok(self)
            }
            _ => Err(refusal(self.asking)),
        }
    }

    /// Has the registry know our addresses, and the namespaces that are ours.
    pub(super) fn register(&self, base: &mut Base, namespaces: Option<&Namespaces>) -> Result<(), Failure> {
        let Some(r) = &mut base.registration else { return Ok(()) };
        let v4 = self.net.v4.map(|c| IpAddr::V4(c.guest));
        let v6 = self.net.v6.map(|c| IpAddr::V6(c.guest));
        r.update(|e| {
            e.namespaces = namespaces.map(|n| [&n.user, &n.mount, &n.net].map(AsRawFd::as_raw_fd));
            e.addresses = v4.into_iter().chain(v6).collect();
        })
    }

    /// What is readable when there may be news.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.asking.fd(), PollFlags::IN)
    }

    /// News of the network: that it is asleep, or awake. `None` if there is none.
    ///
    /// # Errors
    /// If it has ended.
    pub(super) fn news(&mut self) -> Result<Option<Event>, Failure> {
        if !self.asking.has_more() && !is_readable(self.asking.fd()) {
            return Ok(None);
        }
        match self.asking.event() {
            Ok(Some(event)) => Ok(Some(event)),
            Ok(None) | Err(_) => {
                let why = "the network that the sandbox has joined has ended; the sandbox is ended";
                Err(Failure::new(Status::WorkerDied, why))
            }
        }
    }
}

/// Why the other supervisor does not serve us.
fn refusal(asking: Asking) -> Failure {
    match asking.answer::<serde_json::Value>() {
        Err(e) => e,
        Ok(_) => Failure::new(Status::Internal, "the network's supervisor answers what it was not asked; is it another version?"),
    }
}
