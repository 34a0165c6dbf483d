//! What another worker for the same sandbox is made of.

use crate::control::protocol::{Answer, Problem, ProblemKind};
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::LinkEnd;
use crate::sandbox::host::HostFds;
use crate::sandbox::plan::Plan;
use crate::sandbox::worker_process::{Given, JoinedLink};
use crate::sys::netlink;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

/// What those are told who ask a network that sleeps.
pub(super) const ASLEEP: &str = "its network is asleep; wake it with `hibernet restore IMAGE`";

/// Copies of everything that the first worker got and the next one needs too.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) plan: Plan,
    /// The program of workers.
    pub(crate) program: OwnedFd,
    /// Name of the first sandbox.
    pub(super) name: String,
    end: LinkEnd,
    link: Option<OwnedFd>,
    queues: Vec<OwnedFd>,
    /// The links of those that joined.
    joined: Vec<JoinedLink>,
    /// Where the worker is asked; while there is none we answer.
    control: Option<UnixListener>,
    pcap: Option<File>,
    log: Option<File>,
}

impl Kit {
    /// From what the first worker is about to be given.
    pub(crate) fn of(plan: &Plan, program: &OwnedFd, given: &Given) -> Result<Kit, Failure> {
        let copy = || -> std::io::Result<Kit> {
            Ok(Kit {
                plan: plan.clone(),
                program: program.try_clone()?,
                name: given.name.clone(),
                end: given.end.clone(),
                link: given.link.as_ref().map(OwnedFd::try_clone).transpose()?,
                queues: given.queues.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?,
                joined: given.joined.iter().map(JoinedLink::try_clone).collect::<std::io::Result<_>>()?,
                control: given.control.as_ref().map(OwnedFd::try_clone).transpose()?.map(UnixListener::from),
                pcap: given.host.pcap.as_ref().map(File::try_clone).transpose()?,
                log: given.host.log.as_ref().map(File::try_clone).transpose()?,
            })
        };
        copy().map_err(|e| Failure::os(Status::Resources, "cannot keep what another network worker would need", e))
    }

    /// Where the worker is asked.
    pub(super) fn control(&self) -> Option<&UnixListener> {
        self.control.as_ref()
    }

    /// Tells those who ask the worker that its network sleeps.
    pub(super) fn refuse_requests(&self) {
        /// Answered in one turn; more wait.
        const MAX_ACCEPTS: usize = 16;
        let Some(control) = &self.control else { return };
        let problem = Problem::new(ProblemKind::State, ASLEEP);
        let Ok(mut text) = serde_json::to_vec(&Answer::<()>::Error(problem)) else { return };
        text.push(b'\n');
        for _ in 0..MAX_ACCEPTS {
            // The worker has made the listener non-blocking, and so it is for us.
            let Ok((mut client, _)) = control.accept() else { return };
            // So short a text fits into every socket.
            let _ = client.set_nonblocking(true).and_then(|()| client.write_all(&text));
        }
    }

    /// Nothing will come of another worker.
    pub(super) fn let_go(&mut self) {
        (self.link, self.control) = (None, None);
        self.queues.clear();
        self.joined.clear();
    }

    /// The first sandbox has left those that joined it, and its published ports with it.
    pub(super) fn let_first_go(&mut self) {
        self.link = None;
        self.queues.clear();
        self.plan.config.publish.clear();
    }

    /// One more link for every next worker.
    pub(super) fn add_link(&mut self, link: JoinedLink) {
        self.joined.push(link);
    }

    /// One less.
    pub(super) fn remove_link(&mut self, number: u8) {
        self.joined.retain(|l| l.number != number);
    }

    /// What the next worker gets. Published ports are opened anew unless they are held.
    pub(super) fn given(&self, ports_are_held: bool) -> Result<Given, Failure> {
        let fail = |e| Failure::os(Status::Resources, "cannot hand over to another network worker", e);
        let gone = || Failure::new(Status::Link, "the sandbox's link is gone");
        let mut host = if ports_are_held { HostFds::default() } else { HostFds::sockets(&self.plan)? };
        if host.address_watch.is_none() {
            host.address_watch = Some(netlink::open_address_watch().map_err(fail)?);
        }
        host.pcap = self.pcap.as_ref().map(File::try_clone).transpose().map_err(fail)?;
        host.log = self.log.as_ref().map(File::try_clone).transpose().map_err(fail)?;
        if self.link.is_none() && self.joined.is_empty() {
            return Err(gone());
        }
        Ok(Given {
            name: self.name.clone(),
            end: self.end.clone(),
            link: self.link.as_ref().map(OwnedFd::try_clone).transpose().map_err(fail)?,
            queues: self.queues.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>().map_err(fail)?,
            joined: self.joined.iter().map(JoinedLink::try_clone).collect::<std::io::Result<_>>().map_err(fail)?,
            host,
            control: self.control.as_ref().map(UnixListener::try_clone).transpose().map_err(fail)?.map(OwnedFd::from),
            capture_goes_on: true,
        })
    }
}
