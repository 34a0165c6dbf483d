//! The life of a sandbox's network: which process serves it and whether it does, on the word of clients of the supervisor's
//! socket. Nothing here waits: the supervisor calls [`Network::turn`] whenever one of [`Network::poll_fds`] is ready.

mod server;

pub(crate) use server::Server;

use super::channel::Heard;
use super::failure::{Failure, Status, complain};
use super::worker_process::{FromWorker, ToWorker, WorkerProcess};
use crate::control::lifecycle::{Changed, Request, State};
use crate::control::protocol::ProblemKind;
use crate::control::registry::Registration;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Pid;
use server::{ClientId, Line};
use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A worker, and who asks for something that concerns it.
#[derive(Debug)]
pub(crate) struct Network {
    worker: WorkerProcess,
    /// The worker has closed its end: its death will be noticed as that of any child.
    silent: bool,
    state: State,
    server: Option<Server>,
    task: Option<Task>,
}

/// What is being done. One at a time: what is asked for meanwhile is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Pause(ClientId),
    Resume(ClientId),
}

impl Network {
    /// Of a worker that has just started to serve.
    pub(crate) fn new(worker: WorkerProcess, server: Option<Server>) -> Network {
        Network { worker, silent: false, state: State::Running, server, task: None }
    }

    /// Process id of the worker.
    pub(crate) fn worker(&self) -> Pid {
        self.worker.pid
    }

    /// The worker was waited for.
    pub(crate) fn worker_has_ended(&mut self) {
        self.worker.has_ended();
        self.silent = true;
    }

    /// Ends the worker.
    pub(crate) fn end(&mut self) {
        self.worker.end();
    }

    /// Hands on the host's resolvers.
    pub(crate) fn set_resolvers(&self, servers: &[IpAddr]) {
        self.worker.set_resolvers(servers);
    }

    /// What to wait for.
    pub(crate) fn poll_fds<'a>(&'a self, out: &mut Vec<PollFd<'a>>) {
        if !self.silent {
            out.push(PollFd::from_borrowed_fd(self.worker.channel(), PollFlags::IN));
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
        let before = self.state;
        while !self.silent {
            match self.worker.hear()? {
                Heard::Message(m, _) => self.heard(m)?,
                Heard::Nothing => break,
                Heard::Closed => self.silent = true,
            }
        }
        for line in self.server.as_mut().map_or_else(Vec::new, Server::turn) {
            self.asked(&line)?;
        }
        if self.state != before {
            self.enter(registration);
        }
        Ok(())
    }

    /// Lets `hibernet list` know.
    fn enter(&self, registration: Option<&mut Registration>) {
        let (state, since) = (self.state, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
        let done = registration.map_or(Ok(()), |r| r.update(|e| (e.state, e.since) = (state, since)));
        if let Err(e) = done {
            complain(format_args!("warning: {e}; `list` does not know that the network is {state}"));
        }
    }

    fn asked(&mut self, line: &Line) -> Result<(), Failure> {
        let client = line.client;
        let request = match serde_json::from_slice(&line.text) {
            Ok(r) if line.fds.is_empty() => r,
            Ok(_) => {
                self.refuse(client, ProblemKind::Request, "this request brings no descriptors".into());
                return Ok(());
            }
            Err(e) => {
                self.refuse(client, ProblemKind::Request, format!("not a request: {e}"));
                return Ok(());
            }
        };
        if self.task.is_some() {
            self.refuse(client, ProblemKind::Busy, "another request is being carried out; try again".into());
            return Ok(());
        }
        if self.silent {
            self.refuse(client, ProblemKind::State, "its network has ended".into());
            return Ok(());
        }
        match request {
            Request::Pause if self.state == State::Paused => self.answer_changed(client, false),
            Request::Resume if self.state == State::Running => self.answer_changed(client, false),
            Request::Pause => self.begin(Task::Pause(client), &ToWorker::Pause)?,
            Request::Resume => self.begin(Task::Resume(client), &ToWorker::Resume)?,
        }
        Ok(())
    }

    fn begin(&mut self, task: Task, message: &ToWorker) -> Result<(), Failure> {
        self.worker.tell(message, &[])?;
        self.task = Some(task);
        Ok(())
    }

    fn heard(&mut self, message: FromWorker) -> Result<(), Failure> {
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
            (FromWorker::Failed(e), _) => {
                complain(&e);
                Ok(())
            }
            (m, _) => Err(Failure::new(Status::WorkerDied, format!("the network worker says what it was not asked: {m:?}"))),
        }
    }

    fn answer_changed(&mut self, client: ClientId, changed: bool) {
        let state = self.state;
        if let Some(s) = &mut self.server {
            s.answer(client, &Changed { state, changed });
        }
    }

    fn refuse(&mut self, client: ClientId, kind: ProblemKind, why: String) {
        if let Some(s) = &mut self.server {
            s.refuse(client, kind, why);
        }
    }
}
