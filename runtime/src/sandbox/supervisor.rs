//! The supervisor: parent of the command and of the network worker. It has no part in the traffic.

use super::channel::Channel;
use super::child::{self, Child, Inherited, Namespaces};
use super::failure::{Failure, Status, complain};
use super::guest::Opened;
use super::host::{self, HostFds};
use super::plan::Plan;
use super::resolv::Watch;
use super::stragglers;
use super::target::{Gone, Target};
use super::worker_process::{WorkerParts, WorkerProcess};
use crate::cli::print;
use crate::cli::values::publish_text;
use crate::control::registry::{Entry, Registration, Registry, start_time};
use crate::sys::process::{self, Forked, Received, SignalFd, SignalSet};
use crate::sys::tun;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, WaitStatus, getrlimit, setrlimit, wait};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// Signals that are passed on to the command. Those that a terminal's keys send reach it by themselves.
const FORWARDED: &[libc::c_int] =
    &[libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGTSTP];

/// A command to be run in a sandbox.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The sandbox.
    pub plan: Plan,
    /// The command and its arguments.
    pub argv: Vec<OsString>,
    /// Give it an /etc/resolv.conf of its own.
    pub resolv_conf: bool,
    /// Where its output goes if it is detached.
    pub output: Option<PathBuf>,
}

/// Runs a command in a sandbox; returns its exit status once it has ended. The caller has no threads.
///
/// # Errors
///
/// If the sandbox cannot be made, or did not last as long as the command.
pub fn run(request: &RunRequest) -> Result<u8, Failure> {
    in_background_if(request.plan.detach, request.output.as_deref(), |started| run_here(request, started))
}

/// Serves a link or a namespace that somebody else made, until it goes. The caller has no threads.
///
/// # Errors
///
/// If it cannot be served.
pub fn attach(plan: &Plan, target: &Target) -> Result<u8, Failure> {
    in_background_if(plan.detach, None, |started| attach_here(plan, target, started))
}

/// What a detached supervisor tells the process that started it.
#[derive(Debug, Serialize, Deserialize)]
enum Started {
    Running(String),
    Failed(Failure),
}

/// Calls `f`, in a process of its own if `detach`; then returns when that calls its argument with the sandbox's name.
fn in_background_if(
    detach: bool,
    output: Option<&std::path::Path>,
    f: impl FnOnce(&mut dyn FnMut(&str)) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    if !detach {
        return f(&mut |_| {});
    }
    let output = output.map(|p| host::open_file(p, "--output", true)).transpose()?;
    let (ours, theirs) = Channel::pair()?;
    match process::fork(0).map_err(|e| Failure::os(Status::Resources, "cannot start a process", e))? {
        Forked::Child => {
            drop(ours);
            let mut theirs = Some(theirs);
            let done = background(output).and_then(|()| {
                f(&mut |name| {
                    if let Some(c) = theirs.take() {
                        let _ = c.send(&Started::Running(name.into()), &[]);
                    }
                })
            });
            process::exit_now(match done {
                Ok(status) => status,
                Err(e) => {
                    match theirs.take() {
                        Some(c) => drop(c.send(&Started::Failed(e.clone()), &[])),
                        None => complain(format_args!("{e}")),
                    }
                    e.status as u8
                }
            })
        }
        Forked::Parent(_) => {
            drop(theirs);
            match ours.recv()? {
                Some((Started::Running(name), _)) => print(&format!("{name}\n")),
                Some((Started::Failed(e), _)) => Err(e),
                None => Err(Failure::new(Status::Internal, "the supervisor ended while it was being started")),
            }
        }
    }
}

/// Lets go of the terminal and of the caller's files.
fn background(output: Option<std::fs::File>) -> Result<(), Failure> {
    let fail = |e| Failure::os(Status::Internal, "cannot go to the background", e);
    rustix::process::setsid().map_err(fail)?;
    let null = super::open_null()?;
    rustix::stdio::dup2_stdin(&null).map_err(fail)?;
    let out = match &output {
        Some(f) => f.as_fd(),
        None => null.as_fd(),
    };
    rustix::stdio::dup2_stdout(out).and_then(|()| rustix::stdio::dup2_stderr(out)).map_err(fail)
}

/// What is there before any namespace is.
struct Base {
    signals: SignalFd,
    inherited: Inherited,
    registration: Option<Registration>,
    control: Option<UnixListener>,
    host: HostFds,
    watch: Option<Watch>,
}

impl Base {
    fn new(plan: &Plan, command: &[OsString]) -> Result<Self, Failure> {
        let mut handled = FORWARDED.to_vec();
        handled.push(libc::SIGCHLD);
        let set = SignalSet::new(&handled);
        let signal = |e| Failure::os(Status::Internal, "cannot receive signals", e);
        let mask = set.block().map_err(signal)?;
        let signals = SignalFd::new(&set).map_err(signal)?;
        // Orphans of the sandbox come to us, so that they can be waited for.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| Failure::os(Status::Internal, "cannot adopt orphans", e))?;
        let limit = getrlimit(Resource::Nofile);
        let inherited = Inherited { mask, files: limit.current.unwrap_or(u64::MAX), files_hard: limit.maximum };
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        let registration = register(plan, command)?;
        let control = registration.as_ref().map(|r| listen(r.control_socket())).transpose()?;
        let host = HostFds::open(plan)?;
        let watch = match Watch::new() {
            Ok(w) => Some(w),
            Err(e) => {
                complain(format_args!("warning: {e}; changes of the host's resolvers will not be followed"));
                None
            }
        };
        Ok(Base { signals, inherited, registration, control, host, watch })
    }
}

fn listen(path: PathBuf) -> Result<UnixListener, Failure> {
    let fail = |e| Failure::os(Status::File, format_args!("cannot make the socket {}", path.display()), e);
    let socket = UnixListener::bind(&path).map_err(fail)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(socket)
}

/// Enters the sandbox in the registry. Without a directory for it a sandbox that needs no name runs all the same.
fn register(plan: &Plan, command: &[OsString]) -> Result<Option<Registration>, Failure> {
    let registry = match Registry::open() {
        Ok(r) => r,
        Err(e) if plan.name.is_some() || plan.detach => return Err(e),
        Err(e) => {
            complain(format_args!("warning: {e}; `list`, `exec` and `stats` will not know this sandbox"));
            return Ok(None);
        }
    };
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let v4 = plan.config.v4.map(|c| IpAddr::V4(c.guest));
    let v6 = plan.config.v6.map(|c| IpAddr::V6(c.guest));
    let entry = Entry {
        name: plan.name.clone().unwrap_or_default(),
        pid,
        start_time: start_time(pid).unwrap_or(0),
        worker: 0,
        command: command.iter().map(|a| a.to_string_lossy().into_owned()).collect(),
        interface: plan.guest.ifname.clone(),
        addresses: v4.into_iter().chain(v6).collect(),
        publish: plan.config.publish.iter().map(publish_text).collect(),
        namespaces: None,
    };
    registry.enter(entry).map(Some)
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerEnd {
    /// Its link is gone (or it was asked to end).
    LinkGone,
    /// Without a reason that is one.
    Unexpected(WaitStatusText),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WaitStatusText {
    status: Option<i32>,
    signal: Option<i32>,
}

impl std::fmt::Display for WaitStatusText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.status, self.signal) {
            (_, Some(libc::SIGSYS)) => f.write_str("it made a system call that is not allowed to it"),
            (_, Some(s)) => write!(f, "signal {s}"),
            (Some(s), None) => write!(f, "status {s}"),
            (None, None) => f.write_str("for an unknown reason"),
        }
    }
}

fn worker_end(status: WaitStatus) -> WorkerEnd {
    match status.exit_status() {
        Some(0) => WorkerEnd::LinkGone,
        status_code => WorkerEnd::Unexpected(WaitStatusText { status: status_code, signal: status.terminating_signal() }),
    }
}

fn worker_died(why: WaitStatusText) -> Failure {
    Failure::new(
        Status::WorkerDied,
        format!("the network worker ended unexpectedly ({why}); the sandbox has lost its network and is ended"),
    )
}

fn run_here(request: &RunRequest, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let plan = &request.plan;
    let mut base = Base::new(plan, &request.argv)?;
    let (child, end, link, namespaces) = Child::start(plan, request.resolv_conf, &request.argv, base.inherited)?;
    let host = std::mem::take(&mut base.host);
    let worker_link = link.try_clone().map_err(|e| Failure::os(Status::Resources, "cannot hand the link over", e))?;
    let parts = WorkerParts { end, link: worker_link, host, control: base.control.take() };
    let worker = WorkerProcess::start(plan, parts)?;
    if let Some(r) = &mut base.registration {
        let ns = [&namespaces.user, &namespaces.mount, &namespaces.net].map(AsRawFd::as_raw_fd);
        let pid = worker.pid.as_raw_nonzero().get();
        r.update(|e| {
            e.worker = pid;
            e.namespaces = Some(ns);
        })?;
    }
    let mut sandbox = Running { base, worker, link: Some(link), child };
    let ended = sandbox.child.go().and_then(|()| {
        started(sandbox.base.registration.as_ref().map_or("", Registration::name));
        sandbox.watch(request, &namespaces)
    });
    sandbox.finish(&namespaces);
    ended
}

/// A sandbox with its command, under supervision.
struct Running {
    base: Base,
    worker: WorkerProcess,
    /// Our own hold of the link: it lives at least as long as we say.
    link: Option<OwnedFd>,
    child: Child,
}

impl Running {
    /// Supervises until the command has ended; its exit status. A failure leaves the command running.
    fn watch(&mut self, request: &RunRequest, namespaces: &Namespaces) -> Result<u8, Failure> {
        loop {
            wait_for_events(&self.base, &[])?;
            while let Some(s) = next_signal(&self.base.signals)? {
                self.forward(s);
            }
            if follow_resolver(&mut self.base, &request.plan, &self.worker) && request.resolv_conf {
                child::cover_resolv_conf_again(&request.plan, namespaces);
            }
            while let Some((pid, status)) = next_child()? {
                self.reaped(pid, status);
                if pid == self.child.pid {
                    if let Some(code) = self.child_changed(status) {
                        return Ok(code);
                    }
                } else if pid == self.worker.pid && !status.stopped() {
                    // The last descriptor of the link: the sandbox sees its interface go.
                    self.link = None;
                    match worker_end(status) {
                        WorkerEnd::LinkGone => complain("warning: the sandbox's link was removed; it has no network any more"),
                        WorkerEnd::Unexpected(why) => return Err(worker_died(why)),
                    }
                }
            }
        }
    }

    fn forward(&self, s: Received) {
        // What a terminal sends goes to the whole foreground group, so to the command too.
        if s.signal != libc::SIGCHLD && !s.from_kernel {
            let _ = process::kill(self.child.pid, s.signal);
        }
    }

    /// The exit status, if the command has ended. If it was stopped, so are we: the shell that waits for us takes the
    /// terminal back, and its `fg` wakes both.
    fn child_changed(&self, status: WaitStatus) -> Option<u8> {
        if let Some(code) = status.exit_status() {
            return Some(code as u8);
        }
        if let Some(signal) = status.terminating_signal() {
            return Some(128u8.wrapping_add(signal as u8));
        }
        if status.stopped() && has_terminal() {
            let _ = process::kill(rustix::process::getpid(), libc::SIGSTOP);
            let _ = process::kill(self.child.pid, libc::SIGCONT);
        }
        None
    }

    /// Notes who was waited for, and must not be any more.
    fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        if status.stopped() {
            return;
        }
        if pid == self.child.pid {
            self.child.ended();
        } else if pid == self.worker.pid {
            self.worker.has_ended();
        }
    }

    /// Ends what is left: processes first, while they still have their network, then the worker.
    fn finish(&mut self, namespaces: &Namespaces) {
        let reap = |running: &mut Self| {
            while let Ok(Some((pid, status))) = next_child() {
                running.reaped(pid, status);
            }
        };
        stragglers::end_all(&namespaces.net, || reap(self));
        // Removing the interface waits for every processor; with the namespace it is removed behind our back.
        if let Some(link) = &self.link {
            let _ = tun::keep_interface(link.as_fd());
        }
        self.link = None;
        self.worker.end();
        self.base.registration = None;
        reap(self);
    }
}

fn has_terminal() -> bool {
    use rustix::fs::{Mode, OFlags, open};
    open("/dev/tty", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).is_ok()
}

/// Waits until a signal is pending, the resolver configuration may have changed, or one of `more` is readable.
fn wait_for_events(base: &Base, more: &[&OwnedFd]) -> Result<(), Failure> {
    let mut fds = vec![PollFd::new(&base.signals, PollFlags::IN)];
    fds.extend(base.watch.as_ref().map(|w| PollFd::new(w, PollFlags::IN)));
    fds.extend(more.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(Failure::os(Status::Internal, "cannot wait for events", e)),
    }
}

fn next_signal(signals: &SignalFd) -> Result<Option<Received>, Failure> {
    signals.next().map_err(|e| Failure::os(Status::Internal, "cannot receive signals", e))
}

/// Hands news of the host's resolvers to the worker; whether there may be any.
fn follow_resolver(base: &mut Base, plan: &Plan, worker: &WorkerProcess) -> bool {
    let Some(changes) = base.watch.as_mut().and_then(Watch::changes) else { return false };
    if let (true, Some(r)) = (plan.follow_resolver, changes.resolver) {
        worker.set_resolvers(&r.servers);
    }
    true
}

/// A child that ended or stopped, if there is one.
fn next_child() -> Result<Option<(Pid, WaitStatus)>, Failure> {
    match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
        Ok(r) => Ok(r),
        Err(rustix::io::Errno::CHILD | rustix::io::Errno::INTR) => Ok(None),
        Err(e) => Err(Failure::os(Status::Internal, "cannot wait for a process", e)),
    }
}

fn attach_here(plan: &Plan, target: &Target, started: &mut dyn FnMut(&str)) -> Result<u8, Failure> {
    let mut base = Base::new(plan, &[])?;
    let mut gone = Gone::watch(target)?;
    let (Opened { end, fd: link, removal }, unconfigured) = target.open(plan)?;
    gone.interface = removal;
    let host = std::mem::take(&mut base.host);
    // The worker alone holds the link: it goes when the worker does.
    let mut worker = WorkerProcess::start(plan, WorkerParts { end, link, host, control: base.control.take() })?;
    unconfigured.configure()?;
    if let Some(r) = &mut base.registration {
        let pid = worker.pid.as_raw_nonzero().get();
        r.update(|e| e.worker = pid)?;
    }
    started(base.registration.as_ref().map_or("", Registration::name));
    loop {
        wait_for_events(&base, &gone.fds())?;
        while let Some(s) = next_signal(&base.signals)? {
            if s.signal != libc::SIGCHLD && !matches!(s.signal, libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGALRM | libc::SIGTSTP) {
                worker.end();
                return Ok(0);
            }
        }
        follow_resolver(&mut base, plan, &worker);
        if gone.is_gone() {
            worker.end();
            return Ok(0);
        }
        while let Some((pid, status)) = next_child()? {
            if pid == worker.pid && !status.stopped() {
                worker.has_ended();
                return match worker_end(status) {
                    WorkerEnd::LinkGone => Ok(0),
                    WorkerEnd::Unexpected(why) => Err(worker_died(why)),
                };
            }
        }
    }
}
