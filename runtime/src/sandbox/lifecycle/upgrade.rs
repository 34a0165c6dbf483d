//! Another program takes the worker's place. It stands ready before the old worker freezes, reads the image while that is written, and
//! until it serves the old one can go on.

use super::server::ClientId;
use super::{Network, TIME_TO_BEGIN, Task};
use crate::control::lifecycle::Upgraded;
use crate::control::protocol::ProblemKind;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::worker_process::{FromWorker, ToWorker, WorkerProcess};
use crate::worker::{Mode, Prepare, RestorePolicy, RulesSetup};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// An upgrade in progress.
#[derive(Debug)]
pub(super) struct Upgrading {
    client: ClientId,
    pub(super) until: Instant,
    program: OwnedFd,
    stage: Stage,
    /// When the old worker was told to freeze or, better, said that it is frozen.
    since: Instant,
}

#[derive(Debug)]
enum Stage {
    /// The new worker begins.
    Beginning,
    /// The old worker freezes, and will write into a pipe, of which this is the other end.
    Freezing(OwnedFd),
    /// The old worker hands its sockets over.
    Handing(OwnedFd),
    /// The new worker takes over.
    TakingOver,
    /// The old worker is to go on; what to tell the client.
    GivingUp(String),
}

impl Network {
    /// A client brings another program.
    pub(super) fn upgrade(&mut self, client: ClientId, program: OwnedFd) {
        // What is in force is in the image.
        self.kit.plan.rules = RulesSetup { recheck: self.kit.plan.rules.recheck, ..RulesSetup::default() };
        let launched = self.kit.given(true).and_then(|given| WorkerProcess::launch(program.as_fd(), &self.kit.plan, given));
        match launched {
            Ok(next) => {
                self.next = Some(next.into());
                let now = Instant::now();
                let until = now + TIME_TO_BEGIN;
                self.task = Task::Upgrade(Box::new(Upgrading { client, until, program, stage: Stage::Beginning, since: now }));
            }
            Err(e) => self.refuse(client, ProblemKind::Internal, format!("{e}; nothing has changed")),
        }
    }

    /// The new worker says something.
    pub(super) fn taking_over(&mut self, mut u: Box<Upgrading>, message: FromWorker) -> Result<(), Failure> {
        match (message, &u.stage) {
            (FromWorker::Standing, Stage::Beginning) => {
                let (read, write) = match pipe_with(PipeFlags::CLOEXEC) {
                    Ok(p) => p,
                    Err(e) => {
                        self.task = Task::Upgrade(u);
                        self.next_failed(Failure::os(Status::Resources, "cannot make a pipe", e));
                        return Ok(());
                    }
                };
                (u.stage, u.since) = (Stage::Freezing(read), Instant::now());
                let name = self.kit.plan.name.clone().unwrap_or_default();
                let how = Prepare { mode: Mode::Hold, live: true, name, ..Prepare::default() };
                self.begin(Task::Upgrade(u), &ToWorker::Prepare(how), &[write.as_fd()])
            }
            (FromWorker::Thawed(thawed), Stage::TakingOver) => {
                self.dismiss()?;
                self.worker = self.next.take();
                self.kit.program = u.program;
                self.ask_idle_anew()?;
                let gap_ns = u64::try_from(u.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.answer(u.client, &Upgraded { thawed: *thawed, gap_ns });
                Ok(())
            }
            (m, _) => {
                self.task = Task::Upgrade(u);
                self.next_failed(Failure::new(
                    Status::WorkerDied,
                    format!("the new network worker says what it was not asked: {m:?}"),
                ));
                Ok(())
            }
        }
    }

    /// The old worker says something.
    pub(super) fn upgrading(&mut self, mut u: Box<Upgrading>, message: FromWorker, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        match (message, u.stage) {
            (FromWorker::Aborted, Stage::GivingUp(why)) => {
                self.refuse(u.client, ProblemKind::Internal, format!("{why}; the old worker goes on"));
                return Ok(());
            }
            (_, Stage::GivingUp(why)) => u.stage = Stage::GivingUp(why),
            (FromWorker::Prepared(_), Stage::Freezing(image)) => {
                (u.stage, u.since) = (Stage::Handing(image), Instant::now());
                return self.begin(Task::Upgrade(u), &ToWorker::Hand, &[]);
            }
            (FromWorker::Handed(handed, _), Stage::Handing(image)) => {
                let held = handed.take(fds)?;
                u.stage = Stage::TakingOver;
                self.task = Task::Upgrade(u);
                let policy = RestorePolicy { expected: held.generation, ..RestorePolicy::default() };
                let told = self.next.as_ref().map_or(Ok(()), |n| n.process.go_on(image.as_fd(), &held, policy, None));
                if let Err(e) = told {
                    self.next_failed(e);
                }
                return Ok(());
            }
            (FromWorker::Progress(..) | FromWorker::Written(Ok(_)), stage) => u.stage = stage,
            (FromWorker::Written(Err(why)) | FromWorker::NotHanded(why) | FromWorker::NotPrepared { why, .. }, stage) => {
                u.stage = stage;
                self.task = Task::Upgrade(u);
                self.next_failed(Failure::new(Status::Internal, format!("the worker cannot be replaced: {why}")));
                return Ok(());
            }
            (m, _) => {
                return Err(Failure::new(Status::WorkerDied, format!("the network worker says what it was not asked: {m:?}")));
            }
        }
        self.task = Task::Upgrade(u);
        Ok(())
    }

    /// The new worker cannot take over: the old one goes on.
    pub(super) fn upgrade_failed(&mut self, mut u: Box<Upgrading>, why: String) {
        match u.stage {
            Stage::Beginning => return self.refuse(u.client, ProblemKind::Internal, format!("{why}; nothing has changed")),
            Stage::GivingUp(first) => u.stage = Stage::GivingUp(first),
            _ => {
                u.stage = Stage::GivingUp(why);
                // A worker that cannot be told anything has ended, which is found out about elsewhere.
                let _ = self.tell(&ToWorker::Abort, &[]);
            }
        }
        self.task = Task::Upgrade(u);
    }
}
