//! The supervisor's socket: clients come and go, some stay for long, and none of them can hold the supervisor up.

use crate::control::protocol::{Answer, MAX_REQUEST, Problem, ProblemKind};
use crate::sandbox::channel::recv_packet;
use crate::sandbox::failure::{Failure, Status};
use crate::sys::socket;
use crate::worker::MAX_LINKS;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::time::Timespec;
use serde::Serialize;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Clients served at a time; more wait in the socket's queue.
const MAX_CLIENTS: usize = 64 + MAX_LINKS;
/// Bytes of requests and answers that are held at a time, for all clients together.
const MAX_HELD: usize = 24 << 20;
/// Descriptors that a request may bring.
const MAX_FDS: usize = 4;
/// Bytes read at a time, and how often for one client before others get their turn.
const CHUNK: usize = 16 << 10;
const READS: usize = 16;
/// How long a client may take to ask, and to take what it is told.
const TIME: Duration = Duration::from_secs(5);
/// After how long clients are accepted again if that failed.
const RETRY: Duration = Duration::from_secs(1);

/// A client. Its number is never given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(u64);

/// What clients do.
#[derive(Debug)]
pub(crate) enum Event {
    /// It says a line, with descriptors.
    Line(ClientId, Vec<u8>, Vec<OwnedFd>),
    /// It has left, or will be told no more, before it was answered.
    Left(ClientId),
}

/// The socket and its clients.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    /// The listener's network namespace; `None` if the kernel cannot tell.
    namespace: Option<u64>,
    clients: Vec<Client>,
    next: u64,
    /// When to accept again after a failure.
    retry: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    text: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// It says no more, but may still listen.
    silent: bool,
    /// It has said a whole line.
    asked: bool,
    out: Vec<u8>,
    sent: usize,
    /// When it began what it is to end in time: to say a line, or to take what it is told.
    begun: Instant,
    /// Nothing follows what it is told now.
    answered: bool,
}

/// What becomes of a client.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
}

impl Server {
    /// At a socket that listens.
    pub(crate) fn new(listener: UnixListener) -> Result<Server, Failure> {
        listener.set_nonblocking(true).map_err(|e| Failure::os(Status::Internal, "cannot prepare the supervisor's socket", e))?;
        let namespace = socket::network_namespace(listener.as_fd()).ok();
        Ok(Server { listener, namespace, clients: Vec::new(), next: 0, retry: None })
    }

    /// What to wait for.
    pub(crate) fn poll_fds<'a>(&'a self, out: &mut Vec<PollFd<'a>>) {
        if self.clients.len() < MAX_CLIENTS && self.retry.is_none() {
            out.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for c in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !c.silent && !c.answered);
            flags.set(PollFlags::OUT, c.sent < c.out.len());
            out.push(PollFd::new(&c.stream, flags));
        }
    }

    /// Until when at most.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.clients.iter().filter_map(Client::deadline).chain(self.retry).min()
    }

    /// Looks at everything, without waiting; returns what has happened.
    pub(crate) fn turn(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let now = Instant::now();
        if self.retry.is_none_or(|t| t <= now) {
            self.retry = None;
            self.accept(now);
        }
        let mut held: usize = self.clients.iter().map(Client::held).sum();
        self.clients.retain_mut(|c| {
            let before = c.held();
            let fate = c.turn(now, MAX_HELD.saturating_sub(held - before), &mut events);
            held = held - before + c.held();
            fate == Fate::Stays
        });
        events
    }

    fn accept(&mut self, now: Instant) {
        while self.clients.len() < MAX_CLIENTS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.retry = Some(now + RETRY);
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = ClientId(self.next);
            self.next += 1;
            let right = self.right(&stream);
            self.clients.push(Client {
                id,
                stream,
                text: Vec::new(),
                fds: Vec::new(),
                silent: false,
                asked: false,
                out: Vec::new(),
                sent: 0,
                begun: now,
                answered: false,
            });
            if let Err(why) = right {
                self.refuse(id, ProblemKind::Denied, why);
            }
        }
    }

    /// Whether a client may ask: the user that runs this sandbox, and root; not from within a sandbox.
    fn right(&self, client: &UnixStream) -> Result<(), &'static str> {
        match socket::peer_uid(client.as_fd()) {
            Ok(uid) if uid == 0 || uid == rustix::process::geteuid().as_raw() => {}
            Ok(_) => return Err("only the user that runs this sandbox may ask; try `sudo -u` that user"),
            Err(_) => return Err("the system does not say who asks"),
        }
        match (self.namespace, socket::network_namespace(client.as_fd())) {
            (Some(ours), Ok(theirs)) if ours != theirs => {
                Err("asked from another network namespace, as from within a sandbox; ask from where it was started")
            }
            _ => Ok(()),
        }
    }

    /// Has clients hear what they were told, as far as it fits into their sockets: mostly all.
    pub(crate) fn flush(&mut self) {
        self.clients.retain_mut(|c| {
            c.write();
            !c.is_done()
        });
    }

    /// Tells a client something, at the next [`Server::flush`]; it does not matter whether it is still there.
    fn tell(&mut self, id: ClientId, value: &impl Serialize, last: bool) {
        let Some(c) = self.clients.iter_mut().find(|c| c.id == id && !c.answered) else { return };
        // Nothing that we say cannot be written as JSON; were it so, the client would learn by the end that comes early.
        if serde_json::to_writer(&mut c.out, value).is_ok() {
            c.out.push(b'\n');
        }
        (c.answered, c.begun) = (last, Instant::now());
    }

    /// Tells what happens before the last answer.
    pub(crate) fn event(&mut self, id: ClientId, value: &impl Serialize) {
        self.tell(id, value, false);
    }

    /// Gives the last answer.
    pub(crate) fn answer(&mut self, id: ClientId, value: &impl Serialize) {
        self.tell(id, &Answer::Ok(value), true);
    }

    /// Gives the last answer: why not.
    pub(crate) fn refuse(&mut self, id: ClientId, kind: ProblemKind, why: impl Into<String>) {
        self.tell(id, &Answer::<()>::Error(Problem::new(kind, why)), true);
    }
}

impl Client {
    fn is_done(&self) -> bool {
        self.answered && self.out.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        let waited_for = !self.asked || !self.text.is_empty() || !self.out.is_empty();
        waited_for.then(|| self.begun + TIME)
    }

    fn held(&self) -> usize {
        self.text.capacity() + self.out.capacity()
    }

    fn turn(&mut self, now: Instant, room: usize, events: &mut Vec<Event>) -> Fate {
        if !self.silent && !self.answered {
            self.read(now, room, events);
        }
        self.write();
        if self.is_done() {
            return Fate::Goes;
        }
        let late = self.deadline().is_some_and(|t| t <= now);
        if !late && !self.has_hung_up() {
            return Fate::Stays;
        }
        if !self.answered {
            events.push(Event::Left(self.id));
        }
        Fate::Goes
    }

    fn read(&mut self, now: Instant, room: usize, events: &mut Vec<Event>) {
        let mut chunk = [0; CHUNK];
        for _ in 0..READS {
            let n = match recv_packet(&self.stream, &mut chunk, &mut self.fds, RecvFlags::DONTWAIT) {
                Ok(0) => return self.silent = true,
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                // It has left with something unread of what it was told.
                Err(Errno::CONNRESET) => return self.silent = true,
                Err(e) => {
                    return self.refuse(ProblemKind::Request, format!("the request cannot be received: {e}"), events);
                }
            };
            if self.asked && self.text.is_empty() {
                self.begun = now;
            }
            let mut rest = &chunk[..n];
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                self.text.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                self.asked = true;
                let (text, fds) = (std::mem::take(&mut self.text), std::mem::take(&mut self.fds));
                events.push(Event::Line(self.id, text, fds));
            }
            self.text.extend_from_slice(rest);
            if self.text.len() > MAX_REQUEST.min(room) || self.fds.len() > MAX_FDS {
                let why = format!(
                    "a request has at most {} MiB and {MAX_FDS} descriptors; or too much is asked at a time",
                    MAX_REQUEST >> 20
                );
                return self.refuse(ProblemKind::Request, why, events);
            }
        }
    }

    /// Gives the last answer. What the client had asked for before that is given up.
    fn refuse(&mut self, kind: ProblemKind, why: String, events: &mut Vec<Event>) {
        events.push(Event::Left(self.id));
        self.silent = true;
        let refusal = Answer::<()>::Error(Problem::new(kind, why));
        if serde_json::to_writer(&mut self.out, &refusal).is_ok() {
            self.out.push(b'\n');
        }
        (self.text, self.fds, self.answered) = (Vec::new(), Vec::new(), true);
    }

    /// Writes what the client takes.
    fn write(&mut self) {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // It has left, and is not told any more.
                Err(_) => self.sent = self.out.len(),
            }
        }
        (self.out, self.sent) = (Vec::new(), 0);
    }

    /// Both directions are closed. One that only says no more still listens.
    fn has_hung_up(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    /// A server, and a client that has asked for something and been told of an event.
    fn served(name: &str) -> (Server, UnixStream, ClientId) {
        let name = format!("hibernet-test-{}-{name}", std::process::id());
        let at = SocketAddr::from_abstract_name(name).expect("an address");
        let mut server = Server::new(UnixListener::bind_addr(&at).expect("listens")).expect("a server");
        let mut client = UnixStream::connect_addr(&at).expect("connects");
        client.write_all(b"ask\n").expect("asks");
        let events = server.turn();
        let [Event::Line(id, text, fds)] = events.as_slice() else { panic!("{events:?}") };
        assert!(text == b"ask" && fds.is_empty());
        server.event(*id, &"something happens");
        server.flush();
        (server, client, *id)
    }

    fn left(server: &mut Server) -> Vec<ClientId> {
        let gone = |e| match e {
            Event::Left(id) => id,
            Event::Line(..) => panic!("{e:?}"),
        };
        server.turn().into_iter().map(gone).collect()
    }

    #[test]
    fn a_client_that_goes_has_left() {
        let (mut server, mut client, id) = served("goes");
        assert_eq!(left(&mut server), []);
        BufReader::new(&mut client).read_line(&mut String::new()).expect("an event");
        drop(client);
        assert_eq!(left(&mut server), [id]);
        assert!(server.clients.is_empty());
    }

    #[test]
    fn a_client_that_goes_and_has_not_read_everything_has_left() {
        let (mut server, client, id) = served("unread");
        drop(client);
        assert_eq!(left(&mut server), [id]);
        assert!(server.clients.is_empty());
    }

    #[test]
    fn a_client_that_asks_too_much_gives_up_what_it_asked_before() {
        let (mut server, mut client, id) = served("too-much");
        client.set_nonblocking(true).expect("not blocking");
        let mut gone = Vec::new();
        for _ in 0..2 * MAX_REQUEST / CHUNK {
            // Refused, it is not read any more.
            let _ = client.write(&[b'x'; CHUNK]);
            gone.extend(left(&mut server));
        }
        assert_eq!(gone, [id]);
    }
}
