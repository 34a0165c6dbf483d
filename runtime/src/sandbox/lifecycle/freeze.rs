//! Checkpoints, as their supervisor sees them: the worker freezes and writes, the client says that the image is safe, then the supervisor takes the
//! sockets and the worker ends. Until it was told to end it can go on.

use super::holder::Holder;
use super::server::ClientId;
use super::{Network, Task};
use crate::checkpoint::Held;
use crate::checkpoint::news::Watched;
use crate::checkpoint::report::FreezeReport;
use crate::control::lifecycle::{Event, State, WakeExec};
use crate::control::protocol::ProblemKind;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::worker_process::{FromWorker, ToWorker};
use crate::worker::{Mode, Prepare};
use std::os::fd::{AsFd, OwnedFd};

/// A checkpoint in progress.
#[derive(Debug)]
pub(super) struct Freezing {
    client: ClientId,
    mode: Mode,
    stage: Stage,
    report: Option<FreezeReport>,
    /// What will be held, and what would be news on it.
    held: Held,
    watched: Vec<Watched>,
    /// What wakes the network.
    wake: Option<WakeExec>,
    /// Connection to who locks the packets of sockets that the image carries, as long as it is open.
    lock: Option<OwnedFd>,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The worker freezes, or writes.
    Writing,
    /// All is written; the client has to say that it lasts.
    Written,
    /// The worker hands its sockets over.
    Handing,
    /// The worker was told to end.
    Ending,
    /// The worker was told to go on; what to tell the client.
    GivingUp(ProblemKind, String),
}

impl Freezing {
    /// Whether its worker was told to end.
    pub(super) fn is_ending(&self) -> bool {
        self.stage == Stage::Ending
    }
}

impl Network {
    /// A client asks for an image.
    pub(super) fn checkpoint(
        &mut self,
        client: ClientId,
        mut how: Prepare,
        wake: Option<WakeExec>,
        fds: &[OwnedFd],
    ) -> Result<(), Failure> {
        if wake.is_some() && how.mode != Mode::Hold {
            let why = "only a network that sleeps with its sockets held is woken";
            self.refuse(client, ProblemKind::Request, why.into());
            return Ok(());
        }
        how.name = self.kit.plan.name.clone().unwrap_or_default();
        let (held, watched) = (Held::default(), Vec::new());
        let lock = fds.get(1).map(|fd| fd.try_clone()).transpose();
        let lock = lock.map_err(|e| Failure::os(Status::Resources, "cannot keep a connection to the repair helper", e))?;
        let task = Box::new(Freezing { client, mode: how.mode, stage: Stage::Writing, report: None, held, watched, wake, lock });
        self.begin(Task::Freeze(task), &ToWorker::Prepare(how), &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())
    }

    /// The client says that the image is safe.
    pub(super) fn commit(&mut self, client: ClientId) -> Result<(), Failure> {
        match std::mem::take(&mut self.task) {
            Task::Freeze(mut f) if f.client == client && f.stage == Stage::Written => match f.mode {
                Mode::Drop | Mode::Repair => self.end_frozen(f),
                Mode::Hold | Mode::GoOn => {
                    f.stage = Stage::Handing;
                    self.begin(Task::Freeze(f), &ToWorker::Hand, &[])
                }
            },
            task => {
                self.task = task;
                self.refuse(client, ProblemKind::Request, "there is nothing to commit".into());
                Ok(())
            }
        }
    }

    /// A client that leaves before it has said that the image is safe has given up.
    pub(super) fn client_left(&mut self, client: ClientId) -> Result<(), Failure> {
        self.forget(client)?;
        self.member_left(client);
        match std::mem::take(&mut self.task) {
            Task::Freeze(f) if f.client == client && matches!(f.stage, Stage::Writing | Stage::Written) => {
                self.give_up(f, ProblemKind::State, "the checkpoint was given up; its network goes on".into())
            }
            // The rest takes no time, and is done all the same.
            task => {
                self.task = task;
                Ok(())
            }
        }
    }

    /// Has the worker go on.
    fn give_up(&mut self, mut f: Box<Freezing>, kind: ProblemKind, why: String) -> Result<(), Failure> {
        f.stage = Stage::GivingUp(kind, why);
        self.begin(Task::Freeze(f), &ToWorker::Abort, &[])
    }

    /// What the worker says in the course of a checkpoint.
    pub(super) fn freezing(&mut self, mut f: Box<Freezing>, message: FromWorker, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let client = f.client;
        match (message, &f.stage) {
            (FromWorker::Aborted, Stage::GivingUp(kind, why)) => {
                self.refuse(client, *kind, why.clone());
                return Ok(());
            }
            // It had said so before it heard that nothing will come of it.
            (
                FromWorker::Prepared(_) | FromWorker::NotPrepared { .. } | FromWorker::Progress(..) | FromWorker::Written(_),
                Stage::GivingUp(..),
            ) => {}
            (FromWorker::NotPrepared { why, require }, Stage::Writing) => {
                let kind = if require { ProblemKind::Require } else { ProblemKind::State };
                self.refuse(client, kind, why);
                return Ok(());
            }
            (FromWorker::Prepared(report), Stage::Writing) => {
                self.event(client, &Event::Frozen(report.clone()));
                f.report = Some(*report);
            }
            (FromWorker::Progress(done, total), Stage::Writing) => self.event(client, &Event::Progress(done, total)),
            (FromWorker::Written(Err(why)), Stage::Writing) => {
                let why = format!("the image cannot be written: {why}; its network goes on");
                if f.mode != Mode::GoOn {
                    return self.give_up(f, ProblemKind::File, why);
                }
                self.refuse(client, ProblemKind::File, why);
                return Ok(());
            }
            (FromWorker::Written(Ok(_)), Stage::Writing) if f.mode == Mode::GoOn => {
                self.answer(client, &f.report);
                return Ok(());
            }
            (FromWorker::Written(Ok(bytes)), Stage::Writing) => {
                self.event(client, &Event::Written(bytes));
                f.stage = Stage::Written;
            }
            (FromWorker::Handed(handed, watched), Stage::Handing) => {
                (f.held, f.watched) = (handed.take(fds)?, watched);
                return self.end_frozen(f);
            }
            (FromWorker::NotHanded(why), Stage::Handing) => {
                return self.give_up(f, ProblemKind::State, format!("its sockets cannot be held: {why}; its network goes on"));
            }
            (m, stage) => {
                let what = format!("the network worker says what does not belong to a checkpoint ({stage:?}): {m:?}");
                return Err(Failure::new(Status::WorkerDied, what));
            }
        }
        self.task = Task::Freeze(f);
        Ok(())
    }

    /// Everything is safe: the worker ends.
    fn end_frozen(&mut self, mut f: Box<Freezing>) -> Result<(), Failure> {
        f.stage = Stage::Ending;
        self.task = Task::Freeze(f);
        self.dismiss()
    }

    /// The worker has ended: its sockets are held, and the guest's kernel is patient.
    pub(super) fn fall_asleep(&mut self, f: Box<Freezing>) {
        let generation = f.report.as_ref().map_or_else(String::new, |r| r.generation.clone());
        self.holder = Some(Holder::new(f.held, f.watched, generation, f.wake, f.lock));
        self.state = State::Asleep;
        // The next worker is not given the links of those that left.
        self.departures.clear();
        self.tell_members(&Event::Asleep);
        self.fell_asleep();
        if let Err(e) = self.retries.raise() {
            complain(format_args!("warning: the sandbox's kernel gives its connections up sooner while its network sleeps: {e}"));
        }
        self.answer(f.client, &f.report);
    }
}
