//! The network worker's process: made by the supervisor, confined, and ended with it.
//!
//! It is the `hibernet` program again, executed afresh (so that nothing of the supervisor's memory is in it, and another
//! version of the program can take its place), and gets all that it works with over a channel.

mod main;
mod messages;
mod moving;
mod writer;

pub(crate) use main::main;
pub(crate) use messages::{FromWorker, Join, ToWorker};

use super::channel::{Channel, Heard};
use super::failure::{Failure, Status};
use super::guest::LinkEnd;
use super::host::HostFds;
use super::namespaces;
use super::plan::Plan;
use super::supervisor::Thawing;
use crate::checkpoint::Held;
use crate::checkpoint::report::ThawReport;
use crate::sys::process::{self, Forked};
use crate::worker::{RestorePolicy, resolver_update};
use messages::{GoOn, Handed, Parts};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, set_parent_process_death_signal, waitpid};
use rustix::time::Timespec;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Name of the hidden command that is a worker; its argument is the number of the channel's descriptor.
pub(crate) const COMMAND: &str = "network-worker";

/// A running worker, as its supervisor sees it.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    pub(crate) pid: Pid,
    channel: Channel,
    resolver: OwnedFd,
    /// The worker ends when this is closed.
    stop: Option<OwnedFd>,
    ended: bool,
}

/// What a worker is given, beside what its plan says.
#[derive(Debug)]
pub(crate) struct Given {
    /// Under which name others find the first guest.
    pub(crate) name: String,
    pub(crate) end: LinkEnd,
    /// None if the first guest has left those that joined it.
    pub(crate) link: Option<OwnedFd>,
    /// More sockets of the same link.
    pub(crate) queues: Vec<OwnedFd>,
    pub(crate) joined: Vec<JoinedLink>,
    pub(crate) host: HostFds,
    /// The socket at which it is asked.
    pub(crate) control: Option<OwnedFd>,
    /// The capture file was begun by another worker.
    pub(crate) capture_goes_on: bool,
}

/// The link of a guest that joined another one's network.
#[derive(Debug)]
pub(crate) struct JoinedLink {
    /// Its number.
    pub(crate) number: u8,
    pub(crate) end: LinkEnd,
    pub(crate) fd: OwnedFd,
}

impl JoinedLink {
    pub(crate) fn try_clone(&self) -> std::io::Result<JoinedLink> {
        Ok(JoinedLink { number: self.number, end: self.end.clone(), fd: self.fd.try_clone()? })
    }
}

impl WorkerProcess {
    /// Starts a worker and waits until it is confined and serves, with nothing or from an image; then what became of flows is returned too. The
    /// caller has no threads.
    pub(crate) fn start(
        program: BorrowedFd<'_>,
        plan: &Plan,
        given: Given,
        thaw: Option<&Thawing>,
    ) -> Result<(Self, Option<ThawReport>), Failure> {
        let worker = WorkerProcess::launch(program, plan, given)?;
        match thaw {
            Some(t) => {
                worker.go_on(t.image.as_fd(), &Held::default(), t.policy.clone(), t.helper.as_ref().map(AsFd::as_fd))?;
            }
            None => worker.tell(&ToWorker::Serve, &[])?,
        }
        let mut thawed = None;
        loop {
            match worker.channel.recv::<FromWorker>()? {
                Some((FromWorker::Standing, _)) => {}
                Some((FromWorker::Ready, _)) => return Ok((worker, thawed)),
                Some((FromWorker::Thawed(report), _)) => thawed = Some(*report),
                Some((FromWorker::Failed(e), _)) => return Err(e),
                Some(_) => return Err(Failure::new(Status::Internal, "the network worker does not do what it was told")),
                None => return Err(Failure::new(Status::WorkerDied, "the network worker ended while it was being started")),
            }
        }
    }

    /// Has it go on from an image, with copies of what is held, and with a connection to who switches the repair mode of sockets.
    pub(crate) fn go_on(
        &self,
        image: BorrowedFd<'_>,
        held: &Held,
        policy: RestorePolicy,
        helper: Option<BorrowedFd<'_>>,
    ) -> Result<(), Failure> {
        let (handed, sockets) = Handed::of(held);
        let fds: Vec<_> = [image].into_iter().chain(sockets).chain(helper).collect();
        self.tell(&ToWorker::GoOn(Box::new(GoOn { handed, policy, helper: helper.is_some() })), &fds)
    }

    /// Ends it at once.
    pub(crate) fn kill(mut self) {
        if !self.ended {
            let _ = process::kill(self.pid, libc::SIGKILL);
            while matches!(waitpid(Some(self.pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
            self.ended = true;
        }
    }

    /// Makes the process and gives it all that it needs, so that it stands ready to be told how to begin.
    pub(crate) fn launch(program: BorrowedFd<'_>, plan: &Plan, given: Given) -> Result<Self, Failure> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Failure::os(Status::Internal, "cannot make a pipe", e));
        let (resolver_read, resolver) = pipe()?;
        let (stop_read, stop) = pipe()?;
        let (channel, theirs) = Channel::pair()?;
        let (forked, own_users) = fork()?;
        let pid = match forked {
            Forked::Child => {
                drop(channel);
                let failure = execute(program, &theirs);
                let _ = theirs.send(&FromWorker::Failed(failure), &[]);
                process::exit_now(Status::Internal as u8)
            }
            Forked::Parent(pid) => pid,
        };
        drop(theirs);
        let worker = WorkerProcess { pid, channel, resolver, stop: Some(stop), ended: false };
        let users = users_that_may_ask(pid, own_users)?;
        worker.tell(&ToWorker::Mapped, &[])?;
        let (start, fds) = Parts::new(plan, users, given, resolver_read, stop_read).into_message();
        worker.tell(&start, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        Ok(worker)
    }

    /// Says something to it.
    pub(crate) fn tell(&self, message: &ToWorker, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.channel.send(message, fds)
    }

    /// What it has said, if anything.
    pub(crate) fn hear(&self) -> Result<Heard<FromWorker>, Failure> {
        self.channel.try_recv()
    }

    /// Readable when it has said something, or has ended.
    pub(crate) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Tells it the host's resolvers. A worker that does not read (it has ended) is found out about elsewhere.
    pub(crate) fn set_resolvers(&self, servers: &[IpAddr]) {
        // A handful of addresses always fits into the pipe, from which the worker takes whatever comes.
        let _ = rustix::io::write(&self.resolver, resolver_update(servers).as_bytes());
    }

    /// It was waited for.
    pub(crate) fn has_ended(&mut self) {
        self.ended = true;
    }

    /// Ends it: on request, or by force if it does not answer in time.
    pub(crate) fn end(&mut self) {
        if self.ended {
            return;
        }
        self.stop = None;
        let wait = Timespec { tv_sec: PATIENCE_SECS, tv_nsec: 0 };
        let in_time = pidfd_open(self.pid, PidfdFlags::empty())
            .is_ok_and(|p| matches!(poll(&mut [PollFd::new(&p, PollFlags::IN)], Some(&wait)), Ok(n) if n > 0));
        if !in_time {
            let _ = process::kill(self.pid, libc::SIGKILL);
        }
        while matches!(waitpid(Some(self.pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
        self.ended = true;
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// How long a worker may take to end.
const PATIENCE_SECS: i64 = 2;

/// The program that this process executes, whatever has become of its file since.
pub(crate) fn own_program() -> Result<OwnedFd, Failure> {
    open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::os(Status::Internal, "cannot open this very program (is /proc mounted?)", e))
}

/// Into as many namespaces of its own as can be had. Without a user namespace (switched off) only root can make the others.
/// Whether there is a user namespace is said too.
pub(crate) fn fork() -> Result<(Forked, bool), Failure> {
    let others = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWPID;
    process::fork(libc::CLONE_NEWUSER | others).map(|f| (f, true)).or_else(|e| match e.raw_os_error() {
        Some(libc::EPERM | libc::ENOSPC | libc::EINVAL | libc::EUSERS) => {
            let forked = process::fork(others).map_err(|_| namespaces::refused("cannot confine the network worker", e))?;
            Ok((forked, false))
        }
        _ => Err(Failure::os(Status::Resources, "cannot start the network worker", e)),
    })
}

/// Who may ask the worker: the user that runs us, and root where the worker can tell. In a user namespace of its own it knows no ids but the
/// one that is mapped here, and has no capabilities after an exec before it is.
fn users_that_may_ask(pid: Pid, own_users: bool) -> Result<Vec<u32>, Failure> {
    let us = rustix::process::geteuid().as_raw();
    if !own_users {
        return Ok(vec![0, us]);
    }
    let map = format!("/proc/{}/uid_map", pid.as_raw_nonzero());
    std::fs::write(map, format!("0 {us} 1\n"))
        .map_err(|e| Failure::os(Status::Internal, "cannot map user ids into the network worker", e))?;
    Ok(vec![0])
}

/// Becomes the worker's program, in the child. Returns only on failure.
fn execute(program: BorrowedFd<'_>, channel: &Channel) -> Failure {
    let internal = |what: &'static str| move |e: rustix::io::Errno| Failure::os(Status::Internal, what, e);
    let prepare = || {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(internal("cannot bind the worker to its supervisor"))?;
        match channel.recv::<ToWorker>()? {
            Some((ToWorker::Mapped, _)) => {}
            // The supervisor gave up, and has said why.
            _ => process::exit_now(Status::Internal as u8),
        }
        let ours = fcntl_dupfd_cloexec(channel, 3).map_err(internal("cannot keep a descriptor"))?;
        // What the supervisor has open is none of the worker's business.
        process::close_all_but(&[program.as_raw_fd(), ours.as_raw_fd(), channel.as_fd().as_raw_fd()])
            .and_then(|()| process::keep_over_exec(ours.as_fd()))
            .map_err(|e| Failure::os(Status::Internal, "cannot close the supervisor's descriptors", e))?;
        Ok(ours)
    };
    match prepare() {
        Ok(ours) => {
            let e = process::exec_file(program, &["hibernet", COMMAND, &ours.as_raw_fd().to_string()]);
            Failure::os(Status::Internal, "cannot execute the network worker", e)
        }
        Err(e) => e,
    }
}
