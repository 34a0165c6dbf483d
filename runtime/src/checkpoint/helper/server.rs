//! The helper's side.
//!
//! It does as little as can be: to sockets of its own network namespace, of users that it was told to serve, it does what needs the
//! capability and nothing else: repair for TCP, locks for TCP and UDP. A lock is renewed as long as the client stays that made it, so that it lasts as
//! long as a sleep does, and no longer than its time-out if the sleeper dies. Clients cannot make it wait or grow.

use super::{MAX_ARGUMENT, command, lock_errno};
use crate::checkpoint::lock::{self, Lock, Locked};
use crate::checkpoint::probe;
use crate::sandbox::fds::{self, BATCH, FdsError};
use crate::sys::repair::{self, Repair};
use crate::sys::socket::{self, set_option};
use crate::sys::tcp::{LISTEN, TcpInfo};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, unlink};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Clients at a time. One more takes the place of the one that was silent the longest.
const MAX_CLIENTS: usize = 32;
/// Locks at a time, so that nobody fills the kernel with them.
const MAX_LOCKS: usize = 1024;

/// Why the helper cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another one does.
    #[error("a repair helper listens at {0} already")]
    InUse(String),
    /// Its socket cannot be made.
    #[error("cannot listen at {path}: {error}")]
    Socket {
        /// Where.
        path: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The kernel does not tell network namespaces apart.
    #[error("this kernel does not say in which network namespace a socket is (Linux 5.14 does): {0}")]
    Namespace(io::Error),
    /// Waiting failed.
    #[error("cannot wait for clients: {0}")]
    Wait(io::Error),
}

/// Whom the helper serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed(Vec<u32>);

impl Allowed {
    /// These users, and the helper's own.
    pub fn new(uids: &[u32]) -> Self {
        let own = rustix::process::geteuid().as_raw();
        Allowed([&[own], uids].concat())
    }

    fn is_only_own(&self) -> bool {
        self.0.iter().all(|uid| *uid == self.0[0])
    }
}

/// A helper that listens, or serves one connection.
#[derive(Debug)]
pub struct Server {
    listener: Option<Listener>,
    clients: Vec<Client>,
    allowed: Allowed,
    /// The network namespace that is served.
    namespace: u64,
    /// How long locks outlast those who made them.
    time_out: Duration,
}

/// Where clients connect. It is removed with its value.
#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = unlink(&self.path);
    }
}

/// A connected client.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    uid: u32,
    /// What it has locked: renewed as long as it stays.
    locks: Vec<Lock>,
}

impl Client {
    fn new(socket: OwnedFd, uid: u32) -> Client {
        Client { socket, uid, locks: Vec::new() }
    }
}

impl Server {
    /// Listens. Only the own user may connect, unless others are allowed, too; then anybody may, and is asked who it is.
    pub fn new(path: &Path, allowed: Allowed, time_out: Duration) -> Result<Server, ServerError> {
        let namespace = probe::network_namespace().map_err(ServerError::Namespace)?;
        let name = || path.display().to_string();
        let fail = |error: rustix::io::Errno| ServerError::Socket { path: name(), error: error.into() };
        let at = SocketAddrUnix::new(path).map_err(fail)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let new = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(fail);
        match connect(new()?, &at) {
            Ok(()) | Err(rustix::io::Errno::AGAIN) => return Err(ServerError::InUse(name())),
            // Left behind by one that was killed.
            Err(rustix::io::Errno::CONNREFUSED) => unlink(path).map_err(fail)?,
            Err(_) => {}
        }
        let listener = new()?;
        let hidden =
            rustix::process::umask(if allowed.is_only_own() { Mode::from_raw_mode(0o177) } else { Mode::from_raw_mode(0o111) });
        let bound = bind(&listener, &at);
        rustix::process::umask(hidden);
        bound.map_err(fail)?;
        let listener = Listener { socket: listener, path: path.to_owned() };
        listen(&listener.socket, 64).map_err(fail)?;
        Ok(Server { listener: Some(listener), clients: Vec::new(), allowed, namespace, time_out })
    }

    /// For one connection, of this very user's, as long as somebody has its other end.
    pub fn of(socket: OwnedFd, time_out: Duration) -> Result<Server, ServerError> {
        let namespace = probe::network_namespace().map_err(ServerError::Namespace)?;
        let client = Client::new(socket, rustix::process::geteuid().as_raw());
        Ok(Server { listener: None, clients: vec![client], allowed: Allowed::new(&[]), namespace, time_out })
    }

    /// Serves until `stop` is readable, or the one connection ends.
    pub fn serve(&mut self, stop: BorrowedFd<'_>) -> Result<(), ServerError> {
        // Early enough to fail twice.
        let between = self.time_out / 3;
        let mut renewal = Instant::now() + between;
        while self.listener.is_some() || !self.clients.is_empty() {
            let mut ready = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
            ready.extend(self.clients.iter().map(|c| PollFd::new(&c.socket, PollFlags::IN)));
            ready.extend(self.listener.as_ref().map(|l| PollFd::new(&l.socket, PollFlags::IN)));
            let has_locks = self.clients.iter().any(|c| !c.locks.is_empty());
            let wait = has_locks.then(|| renewal.saturating_duration_since(Instant::now()));
            match poll(&mut ready, wait.and_then(|w| w.try_into().ok()).as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(ServerError::Wait(e.into())),
            }
            let events: Vec<bool> = ready.iter().map(|p| !p.revents().is_empty()).collect();
            if events[0] {
                return Ok(());
            }
            if renewal <= Instant::now() {
                self.renew();
                renewal = Instant::now() + between;
            }
            let count = self.clients.len();
            let (mut asked, mut silent) = (Vec::new(), Vec::new());
            for (mut client, is_asking) in std::mem::take(&mut self.clients).into_iter().zip(&events[1..]) {
                match is_asking {
                    false => silent.push(client),
                    true if self.answer(&mut client) => asked.push(client),
                    true => {}
                }
            }
            // In the order in which they were heard of. Who sleeps with packets locked is not silent.
            silent.sort_by_key(|c| !c.locks.is_empty());
            self.clients = silent;
            self.clients.append(&mut asked);
            if events.get(1 + count) == Some(&true) {
                let client = self.accept();
                self.clients.extend(client);
                let surplus = self.clients.len().saturating_sub(MAX_CLIENTS);
                self.clients.drain(..surplus);
            }
        }
        Ok(())
    }

    /// Starts the time-outs of all locks again. One that somebody else has removed, or that cannot be renewed, is forgotten.
    fn renew(&mut self) {
        for c in &mut self.clients {
            c.locks.retain_mut(|l| matches!(l.renew(), Ok(true)));
        }
    }

    /// Takes a client in, or says that it is not served.
    fn accept(&self) -> Option<Client> {
        let listener = &self.listener.as_ref()?.socket;
        let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
        let uid = socket::peer_uid(socket.as_fd()).ok()?;
        if self.allowed.0.contains(&uid) {
            return Some(Client::new(socket, uid));
        }
        // If it is gone already, it does not matter.
        let _ = fds::send_message(socket.as_fd(), &answer(0, libc::EACCES), &[], Instant::now());
        None
    }

    /// Takes one request of a client's, and answers; whether the client stays.
    fn answer(&self, client: &mut Client) -> bool {
        let mut request = [0; 1 + MAX_ARGUMENT];
        let mut sockets = Vec::with_capacity(BATCH);
        let now = Instant::now();
        let (done, errno) = match fds::receive_message(client.socket.as_fd(), &mut request, &mut sockets, now) {
            Ok(n) => self.obey(client, request[0], &request[1..n], &sockets),
            Err(FdsError::NoRoom) => (0, libc::EMFILE),
            // Nothing there after all.
            Err(FdsError::TimedOut) => return true,
            Err(_) => return false,
        };
        // Whoever does not read answers is served no longer.
        fds::send_message(client.socket.as_fd(), &answer(done, errno), &[], now).is_ok()
    }

    /// How many sockets were served, and the error number for the next one.
    fn obey(&self, client: &mut Client, what: u8, argument: &[u8], sockets: &[OwnedFd]) -> (usize, i32) {
        let each = |act: &dyn Fn(BorrowedFd<'_>) -> io::Result<()>| {
            for (done, s) in sockets.iter().enumerate() {
                if let Err(e) = self.check(s.as_fd(), what).and_then(|()| act(s.as_fd())) {
                    return (done, e.raw_os_error().unwrap_or(libc::EINVAL));
                }
            }
            (sockets.len(), 0)
        };
        match what {
            command::ON => each(&|s| repair::set(s, Repair::On)),
            command::OFF => each(&|s| repair::set(s, Repair::Off)),
            command::OFF_SILENTLY => each(&|s| repair::set(s, Repair::OffSilently)),
            command::ENLARGE => each(&enlarge),
            command::LOCK => match name(client, argument) {
                Some(name) => match each(&|s| lockable(s).map(drop)) {
                    (_, 0) => self.lock(client, &name, sockets),
                    failed => failed,
                },
                None => (0, libc::EINVAL),
            },
            command::UNLOCK => match name(client, argument).map(|name| lock::remove(&name)) {
                Some(Ok(found)) => (usize::from(found), 0),
                Some(Err(e)) => (0, lock_errno(&e)),
                None => (0, libc::EINVAL),
            },
            _ => (0, libc::EINVAL),
        }
    }

    /// Whether a descriptor is a socket of the namespace that is served, of a protocol for which that is done.
    fn check(&self, s: BorrowedFd<'_>, what: u8) -> io::Result<()> {
        let wrong = |errno| Err(io::Error::from_raw_os_error(errno));
        match socket::kind(s) {
            Ok((libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP)) => {}
            Ok((libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP)) if what == command::LOCK => {}
            _ => return wrong(libc::EPROTOTYPE),
        }
        if socket::network_namespace(s)? == self.namespace { Ok(()) } else { wrong(libc::EXDEV) }
    }

    fn lock(&self, client: &mut Client, name: &str, sockets: &[OwnedFd]) -> (usize, i32) {
        match lock::count() {
            Ok(n) if n >= MAX_LOCKS => return (0, libc::ENOSPC),
            Ok(_) => {}
            Err(e) => return (0, lock_errno(&e)),
        }
        let locked: io::Result<Vec<Locked>> = sockets.iter().map(|s| Locked::of(s.as_fd())).collect();
        match locked.map(|all| Lock::new(name, all, self.time_out)) {
            Ok(Ok(lock)) => {
                client.locks.push(lock);
                (sockets.len(), 0)
            }
            Ok(Err(e)) => (0, lock_errno(&e)),
            Err(e) => (0, e.raw_os_error().unwrap_or(libc::EINVAL)),
        }
    }
}

fn answer(done: usize, errno: i32) -> Vec<u8> {
    [(done as u32).to_le_bytes(), errno.to_le_bytes()].concat()
}

/// Only what a socket has to itself may be locked: a connection, or a port at which it listens or receives.
fn lockable(s: BorrowedFd<'_>) -> io::Result<()> {
    let locked = Locked::of(s)?;
    let (_, protocol) = socket::kind(s)?;
    let is_its_own = match protocol {
        libc::IPPROTO_UDP => locked.port != 0,
        _ => locked.peer.is_some() || TcpInfo::of(s)?.state == LISTEN,
    };
    if is_its_own { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOTCONN)) }
}

/// Users have names of their own.
fn name(client: &Client, argument: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(argument).ok().filter(|n| !n.is_empty())?;
    Some(format!("{}_{name}", client.uid))
}

/// Sets buffers to twice what the kernel would let them grow to by itself: what filled one takes more room when it comes in other pieces.
fn enlarge(s: BorrowedFd<'_>) -> io::Result<()> {
    for (path, option) in [("tcp_wmem", libc::SO_SNDBUFFORCE), ("tcp_rmem", libc::SO_RCVBUFFORCE)] {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{path}"))?;
        let most: Option<libc::c_int> = text.split_whitespace().nth(2).and_then(|n| n.parse().ok());
        // The kernel doubles what is set.
        set_option(s, libc::SOL_SOCKET, option, most.unwrap_or(0))?;
    }
    Ok(())
}
