//! What `attach` serves, and how it is noticed that it went.

use super::channel::Channel;
use super::failure::{Failure, Status};
use super::guest::{self, LinkEnd, LinkKind, Opened};
use super::namespaces::{self, Kind};
use super::netlink::RemovalWatch;
use super::plan::Plan;
use crate::sys::event::is_readable;
use crate::sys::process::{self, Forked};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to serve.
#[derive(Clone, Debug)]
pub enum Target {
    /// A TAP of this network namespace: we take the descriptor's side.
    Tap(String),
    /// An interface of this network namespace, such as a TAP whose descriptor a VMM holds: we take the interface's side.
    Packet(String),
    /// The network namespace of a process.
    Process(Pid),
    /// A network namespace by its file.
    Namespace(PathBuf),
    /// A Unix socket that is made at this path, to which QEMU's `-netdev stream` connects.
    Streams {
        /// Where.
        path: PathBuf,
        /// Until the first connection has ended.
        one_off: bool,
    },
    /// A Unix socket that is made at this path, to which vhost-user front ends connect.
    VhostUser {
        /// Where.
        path: PathBuf,
        /// Until the first front end has left.
        one_off: bool,
    },
    /// A Unix socket at which vhost-user front ends listen.
    VhostUserConnect(PathBuf),
    /// A Unix socket of datagrams that is made at this path, for QEMU's `-netdev dgram` and the like.
    Datagrams {
        /// Where.
        path: PathBuf,
        /// Where to answer to, if not to where datagrams come from.
        remote: Option<PathBuf>,
    },
    /// A Unix socket at which QEMU's `-netdev stream` listens.
    Stream(PathBuf),
    /// An inherited descriptor, and the number under which it was handed over.
    Fd(i32, Arc<OwnedFd>),
}

impl Target {
    /// A process id, or the path of a namespace's file. `/proc/PID/ns/net` is the same as the process id.
    ///
    /// # Errors
    ///
    /// If it is neither.
    pub fn netns(s: &str) -> Result<Target, String> {
        let pid = |s: &str| s.parse().ok().and_then(Pid::from_raw);
        if let Some(p) = pid(s) {
            return Ok(Target::Process(p));
        }
        let of_process = s.strip_prefix("/proc/").and_then(|r| r.strip_suffix("/ns/net")).and_then(pid);
        match of_process {
            Some(p) => Ok(Target::Process(p)),
            None if s.contains('/') => Ok(Target::Namespace(s.into())),
            None => Err("neither a process id nor a path; namespaces made by `ip netns` are in /run/netns".into()),
        }
    }

    /// `PATH[,remote=PATH]` of a datagram socket.
    ///
    /// # Errors
    ///
    /// If a path is empty.
    pub fn datagrams(s: &str) -> Result<Target, String> {
        let (path, remote) = s.split_once(",remote=").map_or((s, None), |(p, r)| (p, Some(r)));
        if path.is_empty() || remote == Some("") {
            return Err("a path is missing: PATH[,remote=PATH]".into());
        }
        Ok(Target::Datagrams { path: path.into(), remote: remote.map(PathBuf::from) })
    }

    /// Takes an inherited descriptor over. To be called before this process opens anything, so that the number cannot be one of
    /// its own.
    ///
    /// # Errors
    ///
    /// [`Status::Link`] if no such descriptor was handed over.
    pub fn inherited(fd: i32) -> Result<Target, Failure> {
        match process::inherited_fd(fd) {
            Ok(owned) => Ok(Target::Fd(fd, Arc::new(owned))),
            Err(e) => Err(Failure::os(Status::Link, format_args!("--fd {fd}: no such descriptor was handed over"), e)),
        }
    }

    /// Opens the link, or makes it where this is a namespace.
    pub(crate) fn open(&self, plan: &Plan) -> Result<(Opened, Unconfigured), Failure> {
        let opened = match self {
            Target::Tap(name) => guest::attach_tap(name, &plan.guest)?,
            Target::Packet(name) => guest::attach_packet(name, &plan.guest)?,
            Target::Fd(number, fd) => guest::attach_fd(*number, fd, &plan.guest)?,
            Target::Streams { path, one_off } => guest::listen_at(path, LinkKind::Streams { one_off: *one_off }, plan.guest.mtu)?,
            Target::VhostUser { path, one_off } => guest::listen_at(
                path,
                LinkKind::VhostUser { one_off: *one_off, pairs: plan.guest.descriptors() },
                plan.guest.mtu,
            )?,
            Target::VhostUserConnect(path) => guest::connect_to_front_end(path, &plan.guest)?,
            Target::Datagrams { path, remote } => guest::datagrams_at(path, remote.as_deref(), plan.guest.mtu)?,
            Target::Stream(path) => guest::connect_to(path, plan.guest.mtu)?,
            Target::Process(pid) => {
                let proc = PathBuf::from(format!("/proc/{}/ns", pid.as_raw_nonzero()));
                let (helper, opened) = Helper::start(plan, &proc.join("net"), Some(&proc.join("user")))?;
                return Ok((opened, Unconfigured(Some(helper))));
            }
            Target::Namespace(path) => {
                let (helper, opened) = Helper::start(plan, path, None)?;
                return Ok((opened, Unconfigured(Some(helper))));
            }
        };
        Ok((opened, Unconfigured(None)))
    }
}

/// The link is served.
#[derive(Debug, Serialize, Deserialize)]
struct Configure;

#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// With the link's descriptor, those of so many more queues, and for a packet link the watch and the number of the interface watched.
    Link(LinkEnd, usize, Option<u32>),
    Configured,
    Failed(Failure),
}

/// A process in the namespace that waits to configure the interface there.
#[derive(Debug)]
struct Helper {
    pid: Pid,
    channel: Channel,
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = process::kill(self.pid, libc::SIGKILL);
        while matches!(waitpid(Some(self.pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    }
}

impl Helper {
    /// Makes the link within a namespace, from a process that goes there: there may be no way back.
    fn start(plan: &Plan, net: &Path, user: Option<&Path>) -> Result<(Self, Opened), Failure> {
        let net_fd = namespaces::open_namespace(net)?;
        let user_fd = user.map(namespaces::open_namespace).transpose()?;
        let (channel, theirs) = Channel::pair()?;
        let pid = match process::fork(0).map_err(|e| Failure::os(Status::Resources, "cannot start a process", e))? {
            Forked::Child => {
                drop(channel);
                let done = catch_unwind(AssertUnwindSafe(|| {
                    enter(&net_fd, user_fd, net)?;
                    let Opened { end, fd, queues, removal, .. } = guest::make_in_namespace(&plan.guest)?;
                    let mut fds: Vec<_> = std::iter::once(&fd).chain(&queues).map(AsFd::as_fd).collect();
                    fds.extend(removal.as_ref().map(|r| r.fd().as_fd()));
                    theirs.send(&Report::Link(end, queues.len(), removal.as_ref().map(RemovalWatch::index)), &fds)?;
                    drop(fds);
                    drop((fd, queues, removal));
                    if theirs.recv::<Configure>()?.is_some() {
                        guest::configure(&plan.guest, &plan.config, &plan.guest.ifname)?;
                        theirs.send(&Report::Configured, &[])?;
                    }
                    Ok(())
                }));
                if let Ok(Err(e)) = done {
                    let _ = theirs.send(&Report::Failed(e), &[]);
                }
                process::exit_now(0)
            }
            Forked::Parent(pid) => pid,
        };
        drop(theirs);
        let helper = Helper { pid, channel };
        match helper.channel.recv()? {
            Some((Report::Link(end, more, watched), fds)) => {
                let mut fds = fds.into_iter();
                let fd = fds.next().ok_or_else(|| Failure::new(Status::Internal, "the link's descriptor did not arrive"))?;
                let queues = fds.by_ref().take(more).collect();
                let removal = fds.next().zip(watched).map(|(fd, index)| RemovalWatch::from_parts(fd, index));
                Ok((helper, Opened { end, fd, queues, peer: None, removal, path: None }))
            }
            Some((Report::Failed(e), _)) => Err(e),
            _ => Err(Failure::new(Status::Internal, "the link could not be made in the namespace")),
        }
    }

    /// Has it configure the interface, and ends it.
    fn configure(self) -> Result<(), Failure> {
        self.channel.send(&Configure, &[])?;
        match self.channel.recv()? {
            Some((Report::Configured, _)) => Ok(()),
            Some((Report::Failed(e), _)) => Err(e),
            _ => Err(Failure::new(Status::Internal, "the interface could not be configured in the namespace")),
        }
    }
}

/// A link that is there and not yet configured, so that whoever waits for its addresses finds it served.
#[derive(Debug)]
pub(crate) struct Unconfigured(Option<Helper>);

impl Unconfigured {
    /// Configures the guest's interface, if it is ours to configure.
    pub(crate) fn configure(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), Helper::configure)
    }
}

/// Enters a network namespace; with the rights that we have, or else with those that the user namespace gives to which it
/// belongs (where we are its owner).
fn enter(net: &OwnedFd, user: Option<OwnedFd>, path: &Path) -> Result<(), Failure> {
    let what = format!("cannot enter the network namespace {}", path.display());
    let refused = match namespaces::enter(net, Kind::Net) {
        Ok(())
            if rustix::thread::capabilities(None)
                .is_ok_and(|c| c.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN)) =>
        {
            return Ok(());
        }
        Ok(()) => None,
        Err(e) => Some(e),
    };
    if refused.as_ref().is_some_and(|e| e.raw_os_error() == Some(libc::EINVAL)) {
        return Err(Failure::new(Status::Namespaces, format!("{what}: that is no network namespace")));
    }
    let owner = match user {
        Some(u) => u,
        None => process::owner_of_namespace(net.as_fd())
            .map_err(|e| Failure::os(Status::Namespaces, format_args!("{what} (run as its owner or as root)"), e))?,
    };
    move_into_link_name_space(owner.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(|e| Failure::os(Status::Namespaces, format_args!("{what} (run as its owner or as root)"), e))?;
    namespaces::enter(net, Kind::Net).map_err(|e| Failure::os(Status::Namespaces, what, e))
}

/// Tells when the target has gone. A link that goes is noticed by the worker.
#[derive(Debug)]
pub(crate) struct Gone {
    process: Option<OwnedFd>,
    file: Option<(OwnedFd, PathBuf, u64)>,
    /// Of the interface, where the worker cannot notice that it goes.
    pub(crate) interface: Option<RemovalWatch>,
}

impl Gone {
    /// Begins to watch, before anything is made there.
    pub(crate) fn watch(target: &Target) -> Result<Self, Failure> {
        let mut gone = Gone { process: None, file: None, interface: None };
        match target {
            Target::Process(pid) => {
                let fd = pidfd_open(*pid, PidfdFlags::empty()).map_err(|e| match e {
                    rustix::io::Errno::SRCH => {
                        Failure::new(Status::Namespaces, format!("there is no process {}", pid.as_raw_nonzero()))
                    }
                    e => Failure::os(Status::Namespaces, format_args!("cannot watch process {}", pid.as_raw_nonzero()), e),
                })?;
                gone.process = Some(fd);
            }
            Target::Namespace(path) => {
                let fail = |e| Failure::os(Status::Namespaces, format_args!("cannot watch {}", path.display()), e);
                let inode = rustix::fs::stat(path)
                    .map_err(|e| {
                        Failure::os(Status::Namespaces, format_args!("cannot open the namespace {}", path.display()), e)
                    })?
                    .st_ino;
                let inotify = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(fail)?;
                let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let flags = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
                rustix::fs::inotify::add_watch(&inotify, dir, flags).map_err(fail)?;
                gone.file = Some((inotify, path.clone(), inode));
            }
            Target::Tap(_)
            | Target::Packet(_)
            | Target::Streams { .. }
            | Target::Stream(_)
            | Target::Datagrams { .. }
            | Target::VhostUser { .. }
            | Target::VhostUserConnect(_)
            | Target::Fd(..) => {}
        }
        Ok(gone)
    }

    /// What to wait for.
    pub(crate) fn fds(&self) -> Vec<&OwnedFd> {
        let interface = self.interface.as_ref().map(RemovalWatch::fd);
        self.process.iter().chain(self.file.as_ref().map(|f| &f.0)).chain(interface).collect()
    }

    /// Whether it has gone.
    pub(crate) fn is_gone(&mut self) -> bool {
        let ended = self.process.as_ref().is_some_and(is_readable);
        let removed = self.file.as_ref().is_some_and(|(inotify, path, inode)| {
            let mut buf = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(inotify, &mut buf);
            let mut any = false;
            while reader.next().is_ok() {
                any = true;
            }
            // Another namespace may have taken the name at once.
            any && rustix::fs::stat(path).map_or(true, |s| s.st_ino != *inode)
        });
        let unplugged = self.interface.as_ref().is_some_and(RemovalWatch::is_removed);
        ended || removed || unplugged
    }
}
