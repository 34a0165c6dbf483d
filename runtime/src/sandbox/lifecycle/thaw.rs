//! A sleeping network goes on: another worker takes image and sockets. Until it serves, everything stays held.

use super::server::ClientId;
use super::{Network, TIME_TO_BEGIN, Task};
use crate::control::lifecycle::{Event, Restore, State};
use crate::control::protocol::ProblemKind;
use crate::control::rules;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::worker_process::{FromWorker, WorkerProcess};
use crate::worker::RulesSetup;
use hibernet_netstack::Time;
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::text::RestoreOptions;
use hibernet_netstack::iptables::{Family, Ruleset};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// A restore in progress.
#[derive(Debug)]
pub(super) struct Thawing {
    client: ClientId,
    pub(super) until: Instant,
}

impl Network {
    /// A client brings an image, and maybe a connection to who switches the repair mode of sockets.
    pub(super) fn restore(&mut self, client: ClientId, how: &Restore, fds: &[OwnedFd]) {
        let rules = match rules_of(how) {
            Ok(r) => r,
            Err((kind, why)) => return self.refuse(client, kind, why),
        };
        match self.launch_on(how, rules, fds) {
            Ok(next) => {
                self.next = Some(next.into());
                self.task = Task::Thaw(Thawing { client, until: Instant::now() + TIME_TO_BEGIN });
            }
            Err(e) => self.refuse(client, ProblemKind::Internal, format!("{e}; its network sleeps on")),
        }
    }

    /// Another worker, told to go on from an image with what is held.
    fn launch_on(&mut self, how: &Restore, rules: RulesSetup, fds: &[OwnedFd]) -> Result<WorkerProcess, Failure> {
        let (Some(holder), Some(image)) = (&self.holder, fds.first()) else {
            return Err(Failure::new(Status::Internal, "nothing is held"));
        };
        let given = self.kit.given(holder.held().generation.is_some())?;
        self.kit.plan.rules = rules;
        let next = WorkerProcess::launch(self.kit.program.as_fd(), &self.kit.plan, given)?;
        next.go_on(image.as_fd(), holder.held(), how.policy.clone(), fds.get(1).map(AsFd::as_fd))?;
        Ok(next)
    }

    /// What the new worker says.
    pub(super) fn thawing(&mut self, t: Thawing, message: FromWorker) -> Result<(), Failure> {
        match message {
            FromWorker::Thawed(report) => {
                self.worker = self.next.take();
                self.state = State::Running;
                self.tell_members(&Event::Awake);
                if let Some(h) = self.holder.take() {
                    h.let_go();
                }
                if let Err(e) = self.retries.put_back() {
                    complain(format_args!("warning: the sandbox's kernel still tries more often than it did: {e}"));
                }
                self.answer(t.client, &report);
                self.ask_idle_anew()?;
            }
            FromWorker::Standing => self.task = Task::Thaw(t),
            m => {
                self.task = Task::Thaw(t);
                self.next_failed(Failure::new(
                    Status::WorkerDied,
                    format!("the new network worker says what it was not asked: {m:?}"),
                ));
            }
        }
        Ok(())
    }

    /// The new worker cannot go on.
    pub(super) fn thaw_failed(&mut self, t: &Thawing, why: &Failure) {
        let kind = if why.status == Status::Image { ProblemKind::Image } else { ProblemKind::Internal };
        self.refuse(t.client, kind, format!("{why}; its network sleeps on"));
    }
}

/// The rules that are to take the place of the image's.
fn rules_of(how: &Restore) -> Result<RulesSetup, (ProblemKind, String)> {
    let read = |family: Family, text: &Option<String>| {
        let read = |text: &String| {
            rules::restore(&Ruleset::new(family), text, RestoreOptions::default()).map_err(|p| (p.kind, p.message))
        };
        text.as_ref().map(read).transpose()
    };
    let sets = how.sets.as_ref().map(|text| rules::read_sets(&Sets::default(), text, Time::ZERO));
    let sets = sets.transpose().map_err(|p| (p.kind, p.message))?;
    Ok(RulesSetup { sets, v4: read(Family::V4, &how.rules4)?, v6: read(Family::V6, &how.rules6)?, recheck: how.recheck })
}
