//! The network worker's process: made by the supervisor, confined, and ended with it.

use super::channel::Channel;
use super::confine;
use super::failure::{Failure, Status};
use super::guest::{LinkEnd, LinkKind};
use super::host::HostFds;
use super::log;
use super::namespaces;
use super::plan::Plan;
use crate::link::Link;
use crate::link::pcap::PcapLink;
use crate::link::socket::SocketLink;
use crate::link::tap::TapLink;
use crate::sys::packet::PacketSocket;
use crate::sys::process::{self, Forked};
use crate::sys::tun;
use crate::worker::{ControlSocket, Finished, Worker, WorkerSetup, resolver_update};
use event_manager::{EventManager, SubscriberOps};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, set_parent_process_death_signal, waitpid};
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the worker tells its supervisor, once.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// Confined, and about to read the first frame.
    Ready,
    /// It cannot work.
    Failed(Failure),
}

/// What the supervisor tells the worker, once.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    /// User ids that may ask at the control socket, if ids mean something to the worker.
    users: Option<Vec<u32>>,
}

/// A running worker, as its supervisor sees it.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    pub(crate) pid: Pid,
    resolver: OwnedFd,
    /// The worker ends when this is closed.
    stop: Option<OwnedFd>,
    ended: bool,
}

/// What the process is started with.
pub(crate) struct WorkerParts {
    pub(crate) end: LinkEnd,
    pub(crate) link: OwnedFd,
    pub(crate) host: HostFds,
    pub(crate) control: Option<UnixListener>,
}

impl WorkerProcess {
    /// Starts a worker and waits until it is confined and ready. The caller has no threads.
    pub(crate) fn start(plan: &Plan, parts: WorkerParts) -> Result<Self, Failure> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Failure::os(Status::Internal, "cannot make a pipe", e));
        let (resolver_read, resolver) = pipe()?;
        let (stop_read, stop) = pipe()?;
        let (ours, theirs) = Channel::pair()?;
        let (forked, own_users) = fork()?;
        match forked {
            Forked::Child => {
                drop((ours, resolver, stop));
                let done = catch_unwind(AssertUnwindSafe(|| run(plan, parts, resolver_read, stop_read, &theirs)));
                process::exit_now(match done {
                    Ok(Ok(())) => 0,
                    Ok(Err(e)) => {
                        let _ = theirs.send(&Report::Failed(e), &[]);
                        Status::Internal as u8
                    }
                    Err(_) => Status::WorkerDied as u8,
                })
            }
            Forked::Parent(pid) => {
                drop((theirs, parts));
                ours.send(&Begin { users: users_that_may_ask(pid, own_users) }, &[])?;
                match ours.recv::<Report>()? {
                    Some((Report::Ready, _)) => Ok(WorkerProcess { pid, resolver, stop: Some(stop), ended: false }),
                    Some((Report::Failed(e), _)) => Err(e),
                    None => Err(Failure::new(Status::WorkerDied, "the network worker ended while it was being started")),
                }
            }
        }
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
/// one that is mapped here. Must be called before the worker makes itself undumpable, which takes its /proc files away from us.
fn users_that_may_ask(pid: Pid, own_users: bool) -> Option<Vec<u32>> {
    let us = rustix::process::geteuid().as_raw();
    if !own_users {
        return Some(vec![0, us]);
    }
    let map = format!("/proc/{}/uid_map", pid.as_raw_nonzero());
    std::fs::write(map, format!("0 {us} 1\n")).is_ok().then(|| vec![0])
}

fn run(plan: &Plan, parts: WorkerParts, resolver: OwnedFd, stop: OwnedFd, report: &Channel) -> Result<(), Failure> {
    let internal = |what: &'static str| move |e: rustix::io::Errno| Failure::os(Status::Internal, what, e);
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(internal("cannot bind the worker to its supervisor"))?;
    rustix::process::setsid().map_err(internal("cannot separate the worker from the terminal"))?;
    let Some((Begin { users }, _)) = report.recv()? else { process::exit_now(Status::Internal as u8) };
    let WorkerParts { end, link, host, control } = parts;
    let null = super::open_null()?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .map_err(internal("cannot let go of the terminal"))?;
    // What the supervisor has open is none of the worker's business.
    let mut keep: Vec<i32> = vec![link.as_raw_fd(), resolver.as_raw_fd(), stop.as_raw_fd(), report.raw()];
    keep.extend(host.tcp.iter().chain(&host.udp).map(|(_, fd)| fd.as_raw_fd()));
    keep.extend([&host.raw_icmp4, &host.raw_icmp6, &host.address_watch].into_iter().flatten().map(AsRawFd::as_raw_fd));
    keep.extend([&host.pcap, &host.log].into_iter().flatten().map(AsRawFd::as_raw_fd));
    keep.extend(control.as_ref().map(AsRawFd::as_raw_fd));
    drop(null);
    process::close_all_but(&keep).map_err(|e| Failure::os(Status::Internal, "cannot close the supervisor's descriptors", e))?;
    let link = make_link(&end, link)?;
    let file_on_stderr = rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::RegularFile);
    confine::drop_privileges(host.pcap.is_some() || host.log.is_some() || file_on_stderr)?;
    let log = log::root(&plan.log, host.log);
    let link = match host.pcap {
        Some(file) => {
            let tee = PcapLink::new(link, Box::new(file), log.clone());
            Box::new(tee.map_err(|e| Failure::os(Status::File, "cannot write to the capture file", e))?)
        }
        None => link,
    };
    let setup = WorkerSetup {
        config: plan.config.clone(),
        rules: plan.rules.clone(),
        links: vec![link],
        tcp_listeners: host.tcp,
        udp_listeners: host.udp,
        raw_icmp4: host.raw_icmp4,
        raw_icmp6: host.raw_icmp6,
        address_watch: host.address_watch,
        resolver_updates: Some(resolver),
        control: control.map(|listener| ControlSocket { listener, users }),
        stop: Some(stop),
        log,
    };
    let fail = |e: String| Failure::new(Status::Internal, format!("cannot start the network worker: {e}"));
    let worker = Worker::new(setup).map_err(|e| fail(e.to_string()))?;
    let mut events = EventManager::new().map_err(|e| fail(e.to_string()))?;
    let id = events.add_subscriber(worker);
    confine::restrict_system_calls()?;
    report.send(&Report::Ready, &[])?;
    loop {
        match events.subscriber_mut(id).map(|w| w.finished()) {
            Ok(None) => {}
            Ok(Some(Finished::Stopped | Finished::LinksGone | Finished::Frozen)) => return Ok(()),
            Ok(Some(Finished::LoopFailed)) | Err(_) => {
                return Err(Failure::new(Status::Internal, "the network worker's event loop failed"));
            }
        }
        match events.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(Failure::new(Status::Internal, format!("the network worker's event loop failed: {e}"))),
        }
    }
}

fn make_link(end: &LinkEnd, fd: OwnedFd) -> Result<Box<dyn Link>, Failure> {
    let fail = |e: String| Failure::new(Status::Link, format!("cannot serve the link {}: {e}", end.ifname));
    match end.kind {
        LinkKind::Tap => {
            let tun = tun::adopt(fd, end.mtu).map_err(|e| fail(e.to_string()))?;
            Ok(Box::new(TapLink::new(tun, end.guest_mac)))
        }
        LinkKind::Packet { mac, receive_buffer } => {
            let socket = PacketSocket { fd, name: end.ifname.clone(), mtu: end.mtu, mac, receive_buffer };
            Ok(Box::new(SocketLink::packet(socket, end.guest_mac)))
        }
        LinkKind::Messages => {
            let mtu = u16::try_from(end.mtu).unwrap_or(u16::MAX);
            Ok(Box::new(SocketLink::messages(fd, mtu, end.guest_mac).map_err(|e| fail(e.to_string()))?))
        }
    }
}
