//! The life of a sandbox's network: which process serves it and whether it does, on the word of clients of the supervisor's
//! socket. Nothing here waits: the supervisor calls [`Network::turn`] whenever one of [`Network::poll_fds`] is ready.

mod addresses;
mod freeze;
mod holder;
mod kit;
mod listed;
mod members;
mod moving;
mod server;
mod thaw;
mod upgrade;
mod waiting;
mod wake;
mod watch;

pub(crate) use kit::Kit;
pub(crate) use listed::addresses_of;
pub(crate) use server::Server;

use super::channel::Heard;
use super::child::Inherited;
use super::failure::{Failure, Status, complain};
use super::retries::Retries;
use super::supervisor::how_ended;
use super::worker_process::{FromWorker, ToWorker, WorkerProcess};
use crate::control::lifecycle::{Changed, Request, State, Tiers};
use crate::control::protocol::ProblemKind;
use crate::control::registry::Registration;
use crate::worker::Mode;
use freeze::Freezing;
use holder::Holder;
use kit::ASLEEP;
use members::{Joining, Member};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, WaitStatus};
use server::{ClientId, Event};
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use thaw::Thawing;
use upgrade::Upgrading;
use waiting::Waiting;

/// How long a worker that was told to end may take.
const TIME_TO_END: Duration = Duration::from_secs(10);
/// How long one that is to take over may take to stand ready, and to serve.
const TIME_TO_BEGIN: Duration = Duration::from_secs(120);

/// A worker that can be heard.
#[derive(Debug)]
struct Speaker {
    process: WorkerProcess,
    /// It has closed its end: its death will be noticed as that of any child.
    silent: bool,
}

impl From<WorkerProcess> for Speaker {
    fn from(process: WorkerProcess) -> Speaker {
        Speaker { process, silent: false }
    }
}

impl Speaker {
    fn hear(&mut self) -> Result<Option<(FromWorker, Vec<OwnedFd>)>, Failure> {
        if self.silent {
            return Ok(None);
        }
        match self.process.hear()? {
            Heard::Message(m, fds) => return Ok(Some((m, fds))),
            Heard::Nothing => {}
            Heard::Closed => self.silent = true,
        }
        Ok(None)
    }
}

/// A sandbox's network, and who asks for something that concerns it.
#[derive(Debug)]
pub(crate) struct Network {
    /// The one that serves; none while it sleeps.
    worker: Option<Speaker>,
    /// Another one, which is to take over from the first or from the holder.
    next: Option<Speaker>,
    /// Those that were told to end, and until when they must.
    leaving: Vec<(WorkerProcess, Instant)>,
    state: State,
    server: Option<Server>,
    task: Task,
    /// What another worker is made of.
    kit: Kit,
    /// While it sleeps: the sockets of its flows.
    holder: Option<Holder>,
    /// How often the guest's kernel tries again.
    retries: Retries,
    /// Clients that wait for something to happen.
    waiting: Waiting,
    /// Sandboxes that joined.
    members: Vec<Member>,
    /// Links of those that left, of which the worker has not heard yet.
    departures: Vec<u8>,
    /// What commands get that are run to wake it.
    inherited: Inherited,
    /// What `hibernet list` knows.
    listed: (State, Option<Pid>),
    /// The configuration is another one than it knows.
    relist: bool,
}

/// What is being done. One at a time: what is asked for meanwhile is refused.
#[derive(Debug, Default)]
enum Task {
    #[default]
    None,
    Pause(ClientId),
    Resume(ClientId),
    Tiers(ClientId),
    Join(Box<Joining>),
    Freeze(Box<Freezing>),
    Thaw(Thawing),
    Upgrade(Box<Upgrading>),
    /// A virtual machine is to move.
    Move,
}

/// What the end of a child process means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was none of the network's.
    Another,
    /// It had to be.
    Expected,
    /// The network has lost its worker.
    Lost,
}

impl Network {
    /// Of a worker that has just started to serve.
    pub(crate) fn new(
        worker: WorkerProcess,
        server: Option<Server>,
        kit: Kit,
        retries: Retries,
        inherited: Inherited,
    ) -> Network {
        Network {
            listed: (State::Running, Some(worker.pid)),
            worker: Some(worker.into()),
            next: None,
            leaving: Vec::new(),
            state: State::Running,
            server,
            task: Task::None,
            kit,
            holder: None,
            retries,
            waiting: Waiting::default(),
            members: Vec::new(),
            departures: Vec::new(),
            inherited,
            relist: false,
        }
    }

    /// Process id of the worker, if there is one.
    pub(crate) fn worker(&self) -> Option<Pid> {
        self.worker.as_ref().map(|w| w.process.pid)
    }

    /// A child was waited for, and must not be any more.
    pub(crate) fn ended(&mut self, pid: Pid, status: WaitStatus) -> Ended {
        if let Some(i) = self.leaving.iter().position(|(w, _)| w.pid == pid) {
            self.leaving.swap_remove(i).0.has_ended();
            self.has_left();
            return Ended::Expected;
        }
        if let Some(mut next) = self.next.take_if(|n| n.process.pid == pid) {
            next.process.has_ended();
            // What it said last is worth more than how it ended.
            let mut why = Failure::new(Status::WorkerDied, format!("the new network worker ended ({})", how_ended(status)));
            while let Ok(Some((m, _))) = next.hear() {
                if let FromWorker::Failed(e) = m {
                    why = e;
                }
            }
            self.next_failed(why);
            return Ended::Expected;
        }
        match &mut self.worker {
            Some(w) if w.process.pid == pid => {
                w.process.has_ended();
                w.silent = true;
                Ended::Lost
            }
            _ => {
                self.command_has_ended(pid, status);
                Ended::Another
            }
        }
    }

    /// The link is gone, and with it all that a network needs.
    pub(crate) fn let_link_go(&mut self) {
        self.kit.let_go();
    }

    /// Ends all workers, and what is held.
    pub(crate) fn end(&mut self) {
        if let Some(n) = self.next.take() {
            n.process.kill();
        }
        for (w, _) in self.leaving.drain(..) {
            w.kill();
        }
        if let Some(w) = &mut self.worker {
            w.process.end();
        }
        self.holder = None;
    }

    /// Hands on the host's resolvers.
    pub(crate) fn set_resolvers(&mut self, servers: &[IpAddr]) {
        self.kit.plan.config.resolvers = servers.to_vec();
        for w in self.worker.iter().chain(&self.next) {
            w.process.set_resolvers(servers);
        }
    }

    /// What to wait for.
    pub(crate) fn poll_fds<'a>(&'a self, out: &mut Vec<PollFd<'a>>) {
        for w in self.worker.iter().chain(&self.next).filter(|w| !w.silent) {
            out.push(PollFd::from_borrowed_fd(w.process.channel(), PollFlags::IN));
        }
        out.extend(self.holder.as_ref().and_then(Holder::fd).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if self.state == State::Asleep {
            out.extend(self.kit.control().map(|c| PollFd::new(c, PollFlags::IN)));
        }
        if let Some(s) = &self.server {
            s.poll_fds(out);
        }
    }

    /// Until when at most.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let clients = self.server.as_ref().and_then(Server::deadline);
        clients.into_iter().chain(self.next_until()).chain(self.leaving.iter().map(|(_, t)| *t)).min()
    }

    /// Until when the next worker has to serve.
    fn next_until(&self) -> Option<Instant> {
        match &self.task {
            Task::Thaw(t) => Some(t.until),
            Task::Upgrade(u) => Some(u.until),
            _ => None,
        }
    }

    /// Does what is to be done now.
    ///
    /// # Errors
    ///
    /// If the worker does not behave; it must be ended.
    pub(crate) fn turn(&mut self, mut registration: Option<&mut Registration>) -> Result<(), Failure> {
        // Of a sleep that everybody knows of: what began in this turn is looked at in the next.
        self.hear_news();
        self.hear()?;
        // Who has been answered finds in the list what the answer says.
        self.list(registration.as_deref_mut());
        for e in self.server.as_mut().map_or_else(Vec::new, Server::turn) {
            match e {
                Event::Line(client, text, fds) => self.asked(client, &text, fds)?,
                Event::Left(client) => self.client_left(client)?,
            }
        }
        self.look_at_the_clock();
        self.tell_departures()?;
        if self.state == State::Asleep {
            self.kit.refuse_requests();
        }
        self.list(registration);
        if let Some(s) = &mut self.server {
            s.flush();
        }
        Ok(())
    }

    /// Hears both workers.
    fn hear(&mut self) -> Result<(), Failure> {
        while let Some((m, fds)) = self.worker.as_mut().map_or(Ok(None), Speaker::hear)? {
            self.heard(m, fds)?;
        }
        loop {
            match self.next.as_mut().map_or(Ok(None), Speaker::hear) {
                Ok(Some((m, _))) => self.next_heard(m)?,
                Ok(None) => return Ok(()),
                // It was not in charge yet.
                Err(e) => self.next_failed(e),
            }
        }
    }

    /// Whether the worker has ended for no reason that is one.
    fn has_lost_its_worker(&self) -> bool {
        self.worker.as_ref().is_some_and(|w| w.silent)
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        while let Some(i) = self.leaving.iter().position(|(_, t)| *t <= now) {
            self.leaving.swap_remove(i).0.kill();
            self.has_left();
        }
        if self.next_until().is_some_and(|t| t <= now) {
            self.next_failed(Failure::new(Status::Internal, "the new network worker does not serve in time"));
        }
    }

    fn asked(&mut self, client: ClientId, text: &[u8], mut fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let request = match serde_json::from_slice(text) {
            Ok(r) => r,
            Err(e) => {
                self.refuse(client, ProblemKind::Request, format!("not a request: {e}"));
                return Ok(());
            }
        };
        let wanted = match &request {
            Request::Checkpoint { how, .. } => 1 + usize::from(how.mode == Mode::Repair),
            Request::Restore(how) => 1 + usize::from(how.helper),
            Request::Upgrade {} | Request::Link { .. } => 1,
            _ => 0,
        };
        if fds.len() != wanted {
            self.refuse(client, ProblemKind::Request, format!("this request brings {wanted} descriptors, not {}", fds.len()));
            return Ok(());
        }
        match request {
            Request::Commit {} => return self.commit(client),
            Request::Idle { after_ns } => return self.wait_idle(client, Duration::from_nanos(after_ns)),
            Request::Wait { event } => {
                self.wait(client, event);
                return Ok(());
            }
            _ => {}
        }
        if !matches!(self.task, Task::None) {
            self.refuse(client, ProblemKind::Busy, "another request is being carried out; try again".into());
            return Ok(());
        }
        if self.has_lost_its_worker() {
            self.refuse(client, ProblemKind::State, "its network has ended".into());
            return Ok(());
        }
        match (request, self.state) {
            (Request::Restore(how), State::Asleep) => self.restore(client, &how, &fds),
            (Request::Restore(_), _) => {
                let why = "its network is not asleep; `hibernet checkpoint` puts it to sleep";
                self.refuse(client, ProblemKind::State, why.into());
            }
            (_, State::Asleep) => self.refuse(client, ProblemKind::State, ASLEEP.into()),
            (_, State::Moving) => self.refuse(client, ProblemKind::State, moving::MOVING.into()),
            (Request::Pause {}, State::Paused) | (Request::Resume {}, State::Running) => self.answer_changed(client, false),
            (Request::Pause {}, _) => self.begin(Task::Pause(client), &ToWorker::Pause, &[])?,
            (Request::Resume {}, _) => self.begin(Task::Resume(client), &ToWorker::Resume, &[])?,
            (Request::Tiers { mode }, _) => self.begin(Task::Tiers(client), &ToWorker::Tiers(mode), &[])?,
            (Request::Checkpoint { how, wake }, _) => self.checkpoint(client, how, wake, &fds)?,
            (Request::Upgrade {}, State::Paused) => {
                self.refuse(
                    client,
                    ProblemKind::State,
                    "its network is paused; let it go on with `hibernet resume` first".into(),
                );
            }
            (Request::Upgrade {}, _) => self.upgrade(client, fds.swap_remove(0)),
            (Request::Join(how), _) => self.join(client, &how),
            (Request::Link { end }, _) => self.link(client, end, fds.swap_remove(0))?,
            (Request::Commit {} | Request::Wait { .. } | Request::Idle { .. }, _) => {}
        }
        Ok(())
    }

    /// Tells the worker what begins a task.
    fn begin(&mut self, task: Task, message: &ToWorker, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.task = task;
        self.tell(message, fds)
    }

    fn tell(&self, message: &ToWorker, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.worker.as_ref().map_or(Ok(()), |w| w.process.tell(message, fds))
    }

    /// The worker in charge says something.
    fn heard(&mut self, message: FromWorker, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        match (message, std::mem::take(&mut self.task)) {
            (FromWorker::Paused, Task::Pause(client)) => {
                self.state = State::Paused;
                self.answer_changed(client, true);
            }
            (FromWorker::Resumed, Task::Resume(client)) => {
                self.state = State::Running;
                self.answer_changed(client, true);
            }
            (FromWorker::Tiers(flows), Task::Tiers(client)) => self.answer(client, &Tiers { flows }),
            (FromWorker::Failed(e), task) => {
                complain(&e);
                self.task = task;
            }
            (FromWorker::Idle(idle), task) => {
                self.task = task;
                self.heard_idle(idle)?;
            }
            // The last word of one that has just taken over.
            (FromWorker::Ready, task) => self.task = task,
            (m, task) if m.is_about_a_move() => {
                self.task = task;
                return self.moving(m);
            }
            (m @ (FromWorker::Joined(_) | FromWorker::NotJoined(_)), Task::Join(j)) => return self.joining(*j, m),
            (m, Task::Freeze(f)) => return self.freezing(f, m, fds),
            (m, Task::Upgrade(u)) => return self.upgrading(u, m, fds),
            (m, _) => {
                return Err(Failure::new(Status::WorkerDied, format!("the network worker says what it was not asked: {m:?}")));
            }
        }
        Ok(())
    }

    /// The worker that is to take over says something.
    fn next_heard(&mut self, message: FromWorker) -> Result<(), Failure> {
        match (message, std::mem::take(&mut self.task)) {
            (FromWorker::Failed(e), task) => {
                self.task = task;
                self.next_failed(e);
            }
            (m, Task::Thaw(t)) => return self.thawing(t, m),
            (m, Task::Upgrade(u)) => return self.taking_over(u, m),
            (_, task) => self.task = task,
        }
        Ok(())
    }

    /// The worker that was to take over cannot.
    fn next_failed(&mut self, why: Failure) {
        if let Some(n) = self.next.take() {
            n.process.kill();
        }
        match std::mem::take(&mut self.task) {
            Task::Thaw(t) => self.thaw_failed(&t, &why),
            Task::Upgrade(u) => self.upgrade_failed(u, why.message),
            task => self.task = task,
        }
    }

    /// Has the worker end, which is frozen.
    fn dismiss(&mut self) -> Result<(), Failure> {
        self.tell(&ToWorker::End, &[])?;
        if let Some(w) = self.worker.take() {
            self.leaving.push((w.process, Instant::now() + TIME_TO_END));
        }
        Ok(())
    }

    /// A worker that was told to end has ended. It may be that of an upgrade before, which the checkpoint that is under way does not wait for.
    fn has_left(&mut self) {
        match std::mem::take(&mut self.task) {
            Task::Freeze(f) if f.is_ending() && self.leaving.is_empty() => self.fall_asleep(f),
            task => self.task = task,
        }
    }

    fn answer_changed(&mut self, client: ClientId, changed: bool) {
        self.answer(client, &Changed { state: self.state, changed });
    }

    /// Gives the last answer. A member that gets one is no member any more.
    fn answer(&mut self, client: ClientId, value: &impl serde::Serialize) {
        self.member_left(client);
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
        self.member_left(client);
        if let Some(s) = &mut self.server {
            s.refuse(client, kind, why);
        }
    }
}
