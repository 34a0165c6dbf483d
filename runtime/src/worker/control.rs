//! The control socket: clients come and go between the packets, and none of them can hold the worker up.

use super::answers::encode;
use super::{Source, Worker, word};
use crate::control::connection::{Asked, Connection, Sent};
use crate::control::protocol::{Answer, MAX_REQUEST, Problem, ProblemKind};
use crate::sys::socket;
use event_manager::{EventOps, Events};
use hibernet_netstack::Time;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use vmm_sys_util::epoll::EventSet;

/// Clients served at a time; more wait in the socket's queue.
const MAX_CLIENTS: usize = 8;
/// Bytes of requests and answers that are held at a time, for all clients together.
const MAX_HELD: usize = 24 << 20;
/// Clients accepted per wake-up.
const MAX_ACCEPTS: usize = 16;
/// After how long clients are accepted again if that failed: being ready, they would wake the loop all the time.
const RETRY: Duration = Duration::from_secs(1);

/// A socket at which requests come as [`crate::control::protocol`] describes.
#[derive(Debug)]
pub struct ControlSocket {
    /// The listener. Any mode; it is made non-blocking. Clients in another network namespace than the one in which it was made, such as the
    /// guest's processes, are refused.
    pub listener: UnixListener,
    /// User ids that may ask, as the worker's user namespace knows them. `None`: the mode of the socket's file is all that decides.
    pub users: Option<Vec<u32>>,
}

/// The socket and its clients.
#[derive(Debug)]
pub(super) struct Control {
    socket: ControlSocket,
    /// The listener's network namespace; `None` if the kernel cannot tell.
    namespace: Option<u64>,
    /// By the index in an event's word.
    clients: Vec<Option<Connection>>,
    /// The listener is watched.
    accepting: bool,
    /// When to accept again after a failure.
    retry: Option<Time>,
}

/// Whether a client may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Yes,
    No(&'static str),
}

impl Control {
    pub(super) fn new(socket: ControlSocket) -> io::Result<Self> {
        socket.listener.set_nonblocking(true)?;
        let namespace = socket::network_namespace(socket.listener.as_fd()).ok();
        Ok(Control { socket, namespace, clients: (0..MAX_CLIENTS).map(|_| None).collect(), accepting: true, retry: None })
    }

    /// Descriptors that are watched: listener first, then clients by index.
    pub(super) fn watched(&self) -> (Option<RawFd>, impl Iterator<Item = (usize, RawFd)>) {
        let clients = self.clients.iter().enumerate().filter_map(|(i, c)| Some((i, c.as_ref()?.as_raw_fd())));
        (self.accepting.then(|| self.socket.listener.as_raw_fd()), clients)
    }

    /// When the first client has taken too long, or clients are to be accepted again.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.clients.iter().flatten().map(Connection::deadline).chain(self.retry).min()
    }

    fn held(&self) -> usize {
        self.clients.iter().flatten().map(Connection::held).sum()
    }

    fn right(&self, client: &UnixStream) -> Right {
        let user = socket::peer_uid(client.as_fd());
        match (&self.socket.users, user) {
            (Some(allowed), Ok(uid)) if !allowed.contains(&uid) => {
                return Right::No("only the user that runs this sandbox may ask; try `sudo -u` that user");
            }
            (_, Err(_)) => return Right::No("the system does not say who asks"),
            _ => {}
        }
        match (self.namespace, socket::network_namespace(client.as_fd())) {
            (Some(ours), Ok(theirs)) if ours != theirs => {
                Right::No("asked from another network namespace, as from within a sandbox; ask from where it was started")
            }
            _ => Right::Yes,
        }
    }

    fn watch_listener(&mut self, on: bool, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        if self.accepting != on {
            let fd = self.socket.listener.as_raw_fd();
            match on {
                true => ops.add(Events::with_data_raw(fd, word(Source::Control, 0), EventSet::IN))?,
                false => ops.remove(Events::empty_raw(fd))?,
            }
            self.accepting = on;
        }
        Ok(())
    }

    fn remove(&mut self, index: usize, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        match self.clients[index].take() {
            Some(c) => ops.remove(Events::empty_raw(c.as_raw_fd())),
            None => Ok(()),
        }
    }
}

impl Worker {
    /// Clients wait to be accepted.
    pub(super) fn control_ready(&mut self, ops: &mut EventOps<'_>) {
        let done = self.accept_clients(self.host_clock.now(), ops);
        self.note(done);
    }

    fn accept_clients(&mut self, now: Time, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        for _ in 0..MAX_ACCEPTS {
            let Some(index) = control.clients.iter().position(Option::is_none) else {
                return control.watch_listener(false, ops);
            };
            let stream = match control.socket.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return Ok(()),
                Err(e) => {
                    slog::warn!(self.log, "clients of the control socket have to wait"; "error" => %e);
                    control.retry = Some(now + RETRY);
                    return control.watch_listener(false, ops);
                }
            };
            let right = control.right(&stream);
            let Ok(mut client) = Connection::new(stream, now) else { continue };
            if let Right::No(why) = right {
                slog::warn!(self.log, "a client of the control socket is refused"; "why" => why);
                client.answer(encode(&Answer::<()>::Error(Problem::new(ProblemKind::Denied, why))), now);
                // So short a text fits into every socket.
                client.write();
                continue;
            }
            ops.add(Events::with_data_raw(client.as_raw_fd(), word(Source::Client, index), EventSet::IN))?;
            control.clients[index] = Some(client);
        }
        Ok(())
    }

    /// A client can be read from, or takes more.
    pub(super) fn client_ready(&mut self, now: Time, index: usize, ops: &mut EventOps<'_>) {
        let done = self.serve_client(now, index, ops);
        self.note(done);
    }

    fn serve_client(&mut self, now: Time, index: usize, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        let held = control.held();
        let Some(Some(client)) = control.clients.get_mut(index) else { return Ok(()) };
        let new = !client.is_answered();
        if new {
            let problem = |kind, text: String| encode(&Answer::<()>::Error(Problem::new(kind, text)));
            let busy = || problem(ProblemKind::Busy, "too much is being asked at a time; try again".into());
            let answer = match client.read(MAX_HELD.saturating_sub(held - client.held())) {
                Asked::Partly => return Ok(()),
                Asked::Gone => return self.client_done(index, ops),
                Asked::TooLong => problem(ProblemKind::Request, format!("a request has at most {} MiB", MAX_REQUEST >> 20)),
                Asked::NoRoom => busy(),
                Asked::Whole(request) => {
                    let answer = self.answer(now, &request);
                    if held + answer.len() > MAX_HELD { busy() } else { answer }
                }
            };
            let Some(Some(client)) = self.control.as_mut().and_then(|c| c.clients.get_mut(index)) else { return Ok(()) };
            client.answer(answer, self.host_clock.now());
        }
        let Some(Some(client)) = self.control.as_mut().and_then(|c| c.clients.get_mut(index)) else { return Ok(()) };
        match client.write() {
            Sent::Done => self.client_done(index, ops),
            Sent::Partly if new => {
                ops.modify(Events::with_data_raw(client.as_raw_fd(), word(Source::Client, index), EventSet::OUT))
            }
            Sent::Partly => Ok(()),
        }
    }

    fn client_done(&mut self, index: usize, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        control.remove(index, ops)?;
        // The listener is ready at once if clients wait.
        if control.retry.is_none() { control.watch_listener(true, ops) } else { Ok(()) }
    }

    /// When somebody at the control socket is to be looked at again, in stack time that goes on from `now`.
    pub(super) fn client_deadline(&self, now: Time) -> Option<Time> {
        let at = self.control.as_ref()?.deadline()?;
        Some(now + at.since(self.host_clock.now()))
    }

    /// Takes leave of clients that have taken too long.
    pub(super) fn expire_clients(&mut self, ops: &mut EventOps<'_>) {
        let now = self.host_clock.now();
        if let Some(control) = &mut self.control
            && control.retry.is_some_and(|t| t <= now)
        {
            control.retry = None;
            let full = control.clients.iter().all(Option::is_some);
            let done = if full { Ok(()) } else { control.watch_listener(true, ops) };
            self.note(done);
        }
        for index in 0..MAX_CLIENTS {
            let late = |c: &Connection| c.deadline() <= now;
            if self.control.as_ref().is_some_and(|c| c.clients[index].as_ref().is_some_and(late)) {
                slog::debug!(self.log, "a client of the control socket took too long");
                let done = self.client_done(index, ops);
                self.note(done);
            }
        }
    }

    /// The event loop refused something for a client. Traffic goes on, and this client's time will run out.
    fn note(&self, done: event_manager::Result<()>) {
        if let Err(e) = done {
            slog::error!(self.log, "the event loop refuses a client of the control socket"; "error" => ?e);
        }
    }
}
