//! The life of a sandbox's network: which process serves it and whether it does, on the word of clients of the supervisor's
//! socket. Nothing here waits but for processes to begin or end: the supervisor calls [`Network::turn`] whenever one of [`Network::poll_fds`] is ready.

mod freeze;
mod holder;
mod kit;
mod server;
mod thaw;

pub(crate) use kit::Kit;
pub(crate) use server::Server;

use super::channel::Heard;
use super::failure::{Failure, Status, complain};
use super::retries::Retries;
use super::worker_process::{FromWorker, ToWorker, WorkerProcess};
use crate::control::lifecycle::{Changed, Request, State, Tiers};
use crate::control::protocol::ProblemKind;
use crate::control::registry::Registration;
use crate::worker::Mode;
use freeze::Freezing;
use holder::Holder;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Pid;
use server::{ClientId, Line};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A sandbox's network, and who asks for something that concerns it.
#[derive(Debug)]
pub(crate) struct Network {
    /// The one that serves; none while it sleeps.
    worker: Option<WorkerProcess>,
    /// The worker has closed its end: its death will be noticed as that of any child.
    silent: bool,
    state: State,
    server: Option<Server>,
    task: Option<Task>,
    /// What another worker is made of.
    kit: Kit,
    /// While it sleeps: the sockets of its flows.
    holder: Option<Holder>,
    /// How often the guest's kernel tries again.
    retries: Retries,
}

/// What is being done. One at a time: what is asked for meanwhile is refused.
#[derive(Debug)]
enum Task {
    Pause(ClientId),
    Resume(ClientId),
    Tiers(ClientId),
    Freeze(Freezing),
}

impl Network {
    /// Of a worker that has just started to serve.
    pub(crate) fn new(worker: WorkerProcess, server: Option<Server>, kit: Kit, retries: Retries) -> Network {
        let state = State::Running;
        Network { worker: Some(worker), silent: false, state, server, task: None, kit, holder: None, retries }
    }

    /// Process id of the worker, if there is one.
    pub(crate) fn worker(&self) -> Option<Pid> {
        self.worker.as_ref().map(|w| w.pid)
    }

    /// The worker was waited for. What it has said before is still to be heard: it may have been told to end.
    pub(crate) fn worker_has_ended(&mut self) {
        if let Some(w) = &mut self.worker {
            w.has_ended();
        }
    }

    /// Ends the worker, and what is held.
    pub(crate) fn end(&mut self) {
        if let Some(w) = &mut self.worker {
            w.end();
        }
        self.holder = None;
    }

    /// Hands on the host's resolvers.
    pub(crate) fn set_resolvers(&mut self, servers: &[IpAddr]) {
        self.kit.plan.config.resolvers = servers.to_vec();
        if let Some(w) = &self.worker {
            w.set_resolvers(servers);
        }
    }

    /// What to wait for.
    pub(crate) fn poll_fds<'a>(&'a self, out: &mut Vec<PollFd<'a>>) {
        if let Some(w) = self.worker.as_ref().filter(|_| !self.silent) {
            out.push(PollFd::from_borrowed_fd(w.channel(), PollFlags::IN));
        }
        if let Some(s) = &self.server {
            s.poll_fds(out);
        }
    }

    /// Until when at most.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.server.as_ref().and_then(Server::deadline)
    }

    /// Does what is to be done now.
    ///
    /// # Errors
    ///
    /// If the worker does not behave; it must be ended.
    pub(crate) fn turn(&mut self, registration: Option<&mut Registration>) -> Result<(), Failure> {
        let before = (self.state, self.worker());
        let done = self.hear_and_do();
        if (self.state, self.worker()) != before {
            self.enter(registration);
        }
        if let Some(s) = &mut self.server {
            s.send_answers();
        }
        done
    }

    fn hear_and_do(&mut self) -> Result<(), Failure> {
        while let Some(w) = self.worker.as_ref().filter(|_| !self.silent) {
            match w.hear()? {
                Heard::Message(m, fds) => self.heard(m, fds)?,
                Heard::Nothing => break,
                Heard::Closed => self.silent = true,
            }
        }
        for line in self.server.as_mut().map_or_else(Vec::new, Server::turn) {
            self.asked(line)?;
        }
        self.give_up_if_left()
    }

    /// Lets `hibernet list` know.
    fn enter(&self, registration: Option<&mut Registration>) {
        let (state, since) = (self.state, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
        let worker = self.worker().map_or(0, |p| p.as_raw_nonzero().get());
        let asleep = self.holder.as_ref().map(|h| h.about.clone());
        let done = registration
            .map_or(Ok(()), |r| r.update(|e| (e.state, e.since, e.worker, e.asleep) = (state, since, worker, asleep.clone())));
        if let Err(e) = done {
            complain(format_args!("warning: {e}; `list` does not know that the network is {state}"));
        }
    }

    fn asked(&mut self, line: Line) -> Result<(), Failure> {
        let client = line.client;
        let mut fds = line.fds;
        let request = match serde_json::from_slice(&line.text) {
            Ok(r) => r,
            Err(e) => {
                self.refuse(client, ProblemKind::Request, format!("not a request: {e}"));
                return Ok(());
            }
        };
        let wanted = match &request {
            Request::Checkpoint { how } => 1 + usize::from(how.mode == Mode::Repair),
            Request::Restore(how) => 1 + usize::from(how.helper),
            Request::Upgrade => 1,
            _ => 0,
        };
        if fds.len() != wanted {
            self.refuse(client, ProblemKind::Request, format!("this request brings {wanted} descriptors, not {}", fds.len()));
            return Ok(());
        }
        if let Request::Commit = request {
            return self.commit(client);
        }
        if self.task.is_some() {
            self.refuse(client, ProblemKind::Busy, "another request is being carried out; try again".into());
            return Ok(());
        }
        if let Request::Restore(how) = request {
            let helper = if how.helper { fds.pop() } else { None };
            self.restore(client, &how, fds.swap_remove(0), helper);
            return Ok(());
        }
        if self.state == State::Asleep {
            let why = "its network is asleep; wake it with `hibernet restore IMAGE`";
            self.refuse(client, ProblemKind::State, why.into());
            return Ok(());
        }
        if self.silent {
            self.refuse(client, ProblemKind::State, "its network has ended".into());
            return Ok(());
        }
        match request {
            Request::Pause if self.state == State::Paused => self.answer_changed(client, false),
            Request::Resume if self.state == State::Running => self.answer_changed(client, false),
            Request::Pause => self.begin(Task::Pause(client), &ToWorker::Pause, &[])?,
            Request::Resume => self.begin(Task::Resume(client), &ToWorker::Resume, &[])?,
            Request::Tiers { mode } => self.begin(Task::Tiers(client), &ToWorker::Tiers(mode), &[])?,
            Request::Checkpoint { how } => self.checkpoint(client, how, &fds)?,
            Request::Upgrade => self.upgrade(client, fds.swap_remove(0))?,
            Request::Commit | Request::Restore(_) => {}
        }
        Ok(())
    }

    fn begin(&mut self, task: Task, message: &ToWorker, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), Failure> {
        if let Some(w) = &self.worker {
            w.tell(message, fds)?;
            self.task = Some(task);
        }
        Ok(())
    }

    fn heard(&mut self, message: FromWorker, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        match (message, self.task.take()) {
            (FromWorker::Paused, Some(Task::Pause(client))) => {
                self.state = State::Paused;
                self.answer_changed(client, true);
                Ok(())
            }
            (FromWorker::Resumed, Some(Task::Resume(client))) => {
                self.state = State::Running;
                self.answer_changed(client, true);
                Ok(())
            }
            (FromWorker::Tiers(flows), Some(Task::Tiers(client))) => {
                self.answer(client, &Tiers { flows });
                Ok(())
            }
            (FromWorker::Failed(e), _) => {
                complain(&e);
                Ok(())
            }
            (m, Some(Task::Freeze(freezing))) => self.freezing(freezing, m, fds),
            (m, _) => Err(Failure::new(Status::WorkerDied, format!("the network worker says what it was not asked: {m:?}"))),
        }
    }

    fn answer_changed(&mut self, client: ClientId, changed: bool) {
        let state = self.state;
        self.answer(client, &Changed { state, changed });
    }

    fn answer(&mut self, client: ClientId, value: &impl serde::Serialize) {
        if let Some(s) = &mut self.server {
            s.answer(client, value);
        }
    }

    fn event(&mut self, client: ClientId, value: &impl serde::Serialize) {
        if let Some(s) = &mut self.server {
            s.event(client, value);
        }
    }

    fn refuse(&mut self, client: ClientId, kind: ProblemKind, why: String) {
        if let Some(s) = &mut self.server {
            s.refuse(client, kind, why);
        }
    }
}
