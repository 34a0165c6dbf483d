//! Checkpoints, as their supervisor sees them: the worker freezes and writes, the client says that the image is safe, then the sockets change hands.

use super::holder::Holder;
use super::server::ClientId;
use super::{Network, Task};
use crate::checkpoint::Held;
use crate::checkpoint::report::FreezeReport;
use crate::control::lifecycle::{Event, State};
use crate::control::protocol::ProblemKind;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::worker_process::{FromWorker, ToWorker};
use crate::worker::{Mode, Prepare};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// A checkpoint in progress.
#[derive(Debug)]
pub(super) struct Freezing {
    client: ClientId,
    mode: Mode,
    stage: Stage,
    report: Option<FreezeReport>,
    /// It is for another worker to go on at once.
    upgrade: Option<Upgrade>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The worker freezes, or writes.
    Writing,
    /// All is written; the client has to say that it lasts.
    Written,
    /// The worker hands its sockets over.
    Committing,
    /// The worker was told to go on.
    GivingUp,
}

/// Another worker that is to go on.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Its program.
    pub(super) program: OwnedFd,
    /// Where the image is.
    pub(super) image: OwnedFd,
    /// When the freeze began, as far as it is known.
    pub(super) since: Instant,
}

impl Network {
    /// A client asks for an image.
    pub(super) fn checkpoint(&mut self, client: ClientId, mut how: Prepare, fds: &[OwnedFd]) -> Result<(), Failure> {
        how.name = self.kit.plan.name.clone().unwrap_or_default();
        let mode = how.mode;
        self.freeze(Freezing { client, mode, stage: Stage::Writing, report: None, upgrade: None }, how, fds)
    }

    /// A client asks for another worker, of this program.
    pub(super) fn upgrade(&mut self, client: ClientId, program: OwnedFd) -> Result<(), Failure> {
        use rustix::fs::{MemfdFlags, memfd_create};
        let image = match memfd_create("image", MemfdFlags::CLOEXEC) {
            Ok(fd) => fd,
            Err(e) => {
                self.refuse(client, ProblemKind::Internal, format!("there is no memory for the state: {e}"));
                return Ok(());
            }
        };
        let written = match image.try_clone() {
            Ok(fd) => fd,
            Err(e) => {
                self.refuse(client, ProblemKind::Internal, format!("descriptors ran out: {e}"));
                return Ok(());
            }
        };
        let upgrade = Upgrade { program, image, since: Instant::now() };
        let freezing = Freezing { client, mode: Mode::Hold, stage: Stage::Writing, report: None, upgrade: Some(upgrade) };
        self.freeze(freezing, Prepare { live: true, ..Prepare::default() }, &[written])
    }

    fn freeze(&mut self, freezing: Freezing, how: Prepare, fds: &[OwnedFd]) -> Result<(), Failure> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.begin(Task::Freeze(freezing), &ToWorker::Prepare(how), &fds)
    }

    /// The client says that the image is safe.
    pub(super) fn commit(&mut self, client: ClientId) -> Result<(), Failure> {
        match &mut self.task {
            Some(Task::Freeze(f)) if f.client == client && f.stage == Stage::Written => {
                f.stage = Stage::Committing;
                self.tell(&ToWorker::Commit)
            }
            _ => {
                self.refuse(client, ProblemKind::Request, "there is nothing to commit".into());
                Ok(())
            }
        }
    }

    /// A client that leaves has given up.
    pub(super) fn give_up_if_left(&mut self) -> Result<(), Failure> {
        let Some(Task::Freeze(f)) = &mut self.task else { return Ok(()) };
        let there = self.server.as_ref().is_some_and(|s| s.is_there(f.client));
        if there || matches!(f.stage, Stage::Committing | Stage::GivingUp) || self.silent {
            return Ok(());
        }
        f.stage = Stage::GivingUp;
        self.tell(&ToWorker::Abort)
    }

    fn tell(&self, message: &ToWorker) -> Result<(), Failure> {
        self.worker.as_ref().map_or(Ok(()), |w| w.tell(message, &[]))
    }

    /// What the worker says in the course of a checkpoint.
    pub(super) fn freezing(&mut self, mut f: Freezing, message: FromWorker, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let (client, giving_up) = (f.client, f.stage == Stage::GivingUp);
        match message {
            FromWorker::NotPrepared { why, require } => {
                let kind = if require { ProblemKind::Require } else { ProblemKind::State };
                self.refuse(client, kind, why);
                // One that is given up is answered for once more.
                if !giving_up {
                    return Ok(());
                }
            }
            FromWorker::Prepared(report) => {
                self.event(client, &Event::Frozen(report.clone()));
                f.report = Some(*report);
            }
            FromWorker::Progress(done, total) => self.event(client, &Event::Progress(done, total)),
            FromWorker::Written(_) if giving_up => {}
            FromWorker::Written(Err(why)) => {
                self.refuse(client, ProblemKind::Internal, format!("the image cannot be written: {why}; its network goes on"));
                if f.mode == Mode::GoOn {
                    return Ok(());
                }
                f.stage = Stage::GivingUp;
                self.tell(&ToWorker::Abort)?;
            }
            FromWorker::Written(Ok(_)) if f.mode == Mode::GoOn => {
                self.answer(client, &f.report);
                return Ok(());
            }
            FromWorker::Written(Ok(_)) if f.upgrade.is_some() => {
                f.stage = Stage::Committing;
                self.tell(&ToWorker::Commit)?;
            }
            FromWorker::Written(Ok(bytes)) => {
                self.event(client, &Event::Written(bytes));
                f.stage = Stage::Written;
            }
            FromWorker::Aborted => {
                self.refuse(client, ProblemKind::State, "the checkpoint was given up; its network goes on".into());
                return Ok(());
            }
            FromWorker::Committed(handed) => {
                let held = handed.take(fds)?;
                return self.handed_over(f, held);
            }
            m => {
                return Err(Failure::new(
                    Status::WorkerDied,
                    format!("the network worker says what does not belong to a checkpoint: {m:?}"),
                ));
            }
        }
        self.task = Some(Task::Freeze(f));
        Ok(())
    }

    /// Holds the sockets, and has the guest's kernel be patient.
    pub(super) fn sleep(&mut self, held: Held, generation: String) {
        self.holder = Some(Holder::new(held, generation));
        if let Err(e) = self.retries.raise() {
            complain(format_args!("warning: the sandbox's kernel gives its connections up sooner while its network sleeps: {e}"));
        }
    }

    /// The worker has nothing any more, and ends.
    fn handed_over(&mut self, f: Freezing, held: Held) -> Result<(), Failure> {
        let old = self.worker.take();
        self.state = State::Asleep;
        match f.upgrade {
            Some(upgrade) => self.replace(f.client, upgrade, held),
            None => {
                let held = match f.mode {
                    Mode::Hold | Mode::GoOn => held,
                    // Sockets in repair mode end without a word all the same.
                    Mode::Repair | Mode::Drop => {
                        held.reset_on_close();
                        Held::default()
                    }
                };
                self.sleep(held, f.report.as_ref().map_or_else(String::new, |r| r.generation.clone()));
                self.answer(f.client, &f.report);
            }
        }
        // Waits for its end, which is near.
        drop(old);
        Ok(())
    }
}
