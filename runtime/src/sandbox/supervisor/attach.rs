//! The supervisor of a link or a namespace that somebody else made.

use super::AttachRequest;
use super::base::Base;
use super::events::{WorkerEnd, follow_resolver, is_to_end, next_child, next_signal, wait_for_events, worker_died, worker_end};
use crate::control::registry::Registration;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::{Finder, Opened};
use crate::sandbox::lifecycle::{Ended, Kit, Network, Server};
use crate::sandbox::retries::Retries;
use crate::sandbox::target::Gone;
use crate::sandbox::worker_process::{Given, WorkerProcess};
use std::os::fd::AsFd;

pub(super) fn attach_here(request: &AttachRequest, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let AttachRequest { plan, target, thaw, pid_file, .. } = request;
    let mut base = Base::new(plan, &[], None)?;
    let mut gone = Gone::watch(target)?;
    let (Opened { end, fd: link, queues, mut peer, removal, path: _path }, unconfigured) = target.open(plan)?;
    gone.interface = removal;
    let host = std::mem::take(&mut base.host);
    // The link goes when we do: a worker that ends for no reason ends us.
    let control = base.control.take().map(Into::into);
    let (name, link, joined) = (base.name(), Some(link), Vec::new());
    let given = Given { name, end, link, queues, joined, host, control, capture_goes_on: false };
    let kit = Kit::of(plan, &base.program, &given)?;
    let (worker, thawed) = WorkerProcess::start(base.program.as_fd(), plan, given, thaw.as_ref())?;
    if let (Some(t), Some(report)) = (thaw, &thawed) {
        (t.told)(report);
    }
    let server = base.lifecycle.take().map(Server::new).transpose()?;
    let mut network = Network::new(worker, server, kit, Retries::default(), base.inherited);
    unconfigured.configure()?;
    if let Some(r) = &mut base.registration {
        let pid = network.worker().map_or(0, |p| p.as_raw_nonzero().get());
        r.update(|e| e.worker = pid)?;
    }
    if let Some(path) = pid_file {
        let fail = |e| Failure::os(Status::File, format_args!("cannot write the process id to {}", path.display()), e);
        std::fs::write(path, format!("{}\n", std::process::id())).map_err(fail)?;
    }
    started(base.registration.as_ref().map_or("", Registration::name));
    // What was attached to is gone, and others that joined are served on.
    let mut first_gone = false;
    loop {
        let mut watched = if first_gone { Vec::new() } else { gone.fds() };
        watched.extend(peer.iter().flat_map(Finder::fds).flatten());
        wait_for_events(&base, &network, &watched)?;
        while let Some(s) = next_signal(&base.signals)? {
            if is_to_end(s.signal) {
                network.end();
                return Ok(0);
            }
        }
        follow_resolver(&mut base, plan, &mut network);
        if let Some(p) = &mut peer {
            p.turn();
        }
        if !first_gone && gone.is_gone() {
            if !network.has_members() {
                network.end();
                return Ok(0);
            }
            first_gone = true;
            base.first_left(&mut network)?;
        }
        if first_gone && !network.has_members() {
            network.end();
            return Ok(0);
        }
        while let Some((pid, status)) = next_child()? {
            if !status.stopped() && network.ended(pid, status) == Ended::Lost {
                return match worker_end(status) {
                    WorkerEnd::LinkGone => Ok(0),
                    WorkerEnd::Unexpected(why) => Err(worker_died(why)),
                };
            }
        }
        network.turn(base.registration.as_mut())?;
    }
}
