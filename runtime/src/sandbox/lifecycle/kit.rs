//! What another worker for the same sandbox is made of.

use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::LinkEnd;
use crate::sandbox::host::HostFds;
use crate::sandbox::plan::Plan;
use crate::sandbox::worker_process::{Given, Thaw};
use crate::sys::netlink;
use std::fs::File;
use std::os::fd::OwnedFd;

/// Copies of everything that the first worker got and the next one needs too.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) plan: Plan,
    /// The program of workers.
    pub(crate) program: OwnedFd,
    end: LinkEnd,
    link: OwnedFd,
    control: Option<OwnedFd>,
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
                end: given.end.clone(),
                link: given.link.try_clone()?,
                control: given.control.as_ref().map(OwnedFd::try_clone).transpose()?,
                pcap: given.host.pcap.as_ref().map(File::try_clone).transpose()?,
                log: given.host.log.as_ref().map(File::try_clone).transpose()?,
            })
        };
        copy().map_err(|e| Failure::os(Status::Resources, "cannot keep what another network worker would need", e))
    }

    /// What the next worker gets. Published ports are opened anew unless they are held.
    pub(super) fn given(&self, thaw: Thaw) -> Result<Given, Failure> {
        let fail = |e| Failure::os(Status::Resources, "cannot hand over to another network worker", e);
        let ports_are_held = thaw.held.generation.is_some();
        let mut host = if ports_are_held { HostFds::default() } else { HostFds::open(&self.plan)? };
        if host.address_watch.is_none() {
            host.address_watch = Some(netlink::open_address_watch().map_err(fail)?);
        }
        host.pcap = self.pcap.as_ref().map(File::try_clone).transpose().map_err(fail)?;
        host.log = self.log.as_ref().map(File::try_clone).transpose().map_err(fail)?;
        Ok(Given {
            end: self.end.clone(),
            link: self.link.try_clone().map_err(fail)?,
            host,
            control: self.control.as_ref().map(OwnedFd::try_clone).transpose().map_err(fail)?,
            thaw: Some(thaw),
        })
    }
}
