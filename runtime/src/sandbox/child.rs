//! The process that becomes the sandbox's command: it makes the namespaces, waits until the network is served, and
//! executes the command.

use super::channel::Channel;
use super::failure::{Failure, Status, complain};
use super::guest::{self, LinkEnd, Opened};
use super::plan::Plan;
use super::retries::Retries;
use super::{mounts, namespaces};
use crate::sys::process::{self, Forked, SignalSet};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, set_parent_process_death_signal, setrlimit, waitpid};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the child tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
enum FromChild {
    /// Its user namespace is there; ids are to be mapped.
    UserNamespace,
    /// The network is there, with so many more queues. Descriptors: link, user, mount and network namespace, the queues, and those of [`Retries::open`].
    Link(LinkEnd, usize),
    /// It gave up, and is about to end.
    Failed(Failure),
}

/// What the supervisor tells the child.
#[derive(Debug, Serialize, Deserialize)]
enum ToChild {
    /// Ids are mapped.
    Mapped,
    /// The network is served: execute the command.
    Go,
}

/// What a command inherits of the supervisor's caller, which the supervisor itself has changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    pub(crate) mask: SignalSet,
    pub(crate) files: u64,
    pub(crate) files_hard: Option<u64>,
}

/// The child, as its supervisor sees it.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    channel: Channel,
    ended: bool,
}

/// The sandbox's namespaces, held by the supervisor.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) user: OwnedFd,
    pub(crate) mount: OwnedFd,
    pub(crate) net: OwnedFd,
}

/// A child whose network is there.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) end: LinkEnd,
    pub(crate) link: OwnedFd,
    /// More queues of the link.
    pub(crate) queues: Vec<OwnedFd>,
    pub(crate) namespaces: Namespaces,
    pub(crate) retries: Retries,
}

impl Child {
    /// Starts the child, and waits until it has made namespaces and link. The caller has no threads.
    pub(crate) fn start(plan: &Plan, resolv_conf: bool, argv: &[OsString], inherited: Inherited) -> Result<Started, Failure> {
        let (channel, theirs) = Channel::pair()?;
        let forked = process::fork(0).map_err(|e| Failure::os(Status::Resources, "cannot start a process", e))?;
        let pid = match forked {
            Forked::Child => {
                drop(channel);
                let done = catch_unwind(AssertUnwindSafe(|| run(plan, resolv_conf, argv, inherited, &theirs)));
                let failure = match done {
                    Ok(Err(e)) => e,
                    _ => Failure::new(Status::Internal, "the sandbox could not be set up"),
                };
                let _ = theirs.send(&FromChild::Failed(failure.clone()), &[]);
                process::exit_now(failure.status as u8)
            }
            Forked::Parent(pid) => pid,
        };
        drop(theirs);
        let child = Child { pid, channel, ended: false };
        match child.next()? {
            (FromChild::UserNamespace, _) => {}
            other => return Err(unexpected(&other.0)),
        }
        namespaces::write_id_maps(pid)?;
        child.channel.send(&ToChild::Mapped, &[])?;
        match child.next()? {
            (FromChild::Link(end, more), mut fds) => {
                let mut queues = fds.split_off(fds.len().min(4));
                let retries = Retries::new(queues.split_off(queues.len().min(more)));
                match <[OwnedFd; 4]>::try_from(fds) {
                    Ok([link, user, mount, net]) if queues.len() == more => {
                        Ok(Started { child, end, link, queues, namespaces: Namespaces { user, mount, net }, retries })
                    }
                    _ => Err(Failure::new(Status::Internal, "the sandbox's descriptors did not arrive")),
                }
            }
            other => Err(unexpected(&other.0)),
        }
    }

    /// Lets it execute the command; returns when that has happened.
    pub(crate) fn go(&self) -> Result<(), Failure> {
        self.channel.send(&ToChild::Go, &[])?;
        match self.channel.recv::<FromChild>()? {
            // The channel closes with the execution.
            None => Ok(()),
            Some((FromChild::Failed(e), _)) => Err(e),
            Some((other, _)) => Err(unexpected(&other)),
        }
    }

    /// It was waited for.
    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }

    fn next(&self) -> Result<(FromChild, Vec<OwnedFd>), Failure> {
        match self.channel.recv()? {
            None => Err(Failure::new(Status::Internal, "the sandbox ended while it was being set up")),
            Some((FromChild::Failed(e), _)) => Err(e),
            Some(other) => Ok(other),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            let _ = process::kill(self.pid, libc::SIGKILL);
            while matches!(waitpid(Some(self.pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
        }
    }
}

fn unexpected(m: &FromChild) -> Failure {
    Failure::new(Status::Internal, format!("unexpected message while the sandbox was being set up: {m:?}"))
}

fn wait(channel: &Channel) -> Result<(), Failure> {
    match channel.recv::<ToChild>()? {
        Some(_) => Ok(()),
        // The supervisor gave up, and has said why.
        None => process::exit_now(Status::Internal as u8),
    }
}

fn run(plan: &Plan, resolv_conf: bool, argv: &[OsString], inherited: Inherited, channel: &Channel) -> Result<(), Failure> {
    process::unshare(libc::CLONE_NEWUSER).map_err(|e| namespaces::refused("cannot make a user namespace", e))?;
    channel.send(&FromChild::UserNamespace, &[])?;
    wait(channel)?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Failure::os(Status::Internal, "cannot bind the command to its supervisor", e))?;
    become_root()?;
    process::unshare(libc::CLONE_NEWNS).map_err(|e| namespaces::refused("cannot make a mount namespace", e))?;
    mounts::keep_private()?;
    let Opened { end, fd: link, queues, .. } = guest::make_namespace(&plan.guest)?;
    guest::configure(&plan.guest, &plan.config, &plan.guest.ifname)?;
    if resolv_conf {
        mounts::replace_resolv_conf(&resolv_conf_text(plan))?;
    }
    let ns = Namespaces { user: namespaces::own("user")?, mount: namespaces::own("mnt")?, net: namespaces::own("net")? };
    let retries = Retries::open();
    let mut fds = vec![link.as_fd(), ns.user.as_fd(), ns.mount.as_fd(), ns.net.as_fd()];
    fds.extend(queues.iter().chain(&retries).map(AsFd::as_fd));
    channel.send(&FromChild::Link(end, queues.len()), &fds)?;
    drop((link, queues, ns, retries));
    wait(channel)?;
    Err(execute(argv, inherited))
}

fn resolv_conf_text(plan: &Plan) -> String {
    let v4 = plan.config.v4.map(|c| IpAddr::V4(c.dns));
    let v6 = plan.config.v6.map(|c| IpAddr::V6(c.dns));
    let servers: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    mounts::resolv_conf(&servers, &plan.config.search)
}

/// Covers /etc/resolv.conf in the sandbox again, if it is not any more: when the host replaces the file, the mount goes with
/// the old one. Does so from a process of its own, whose end the supervisor notices as that of any child.
pub(crate) fn cover_resolv_conf_again(plan: &Plan, namespaces: &Namespaces) {
    match process::fork(0) {
        Ok(Forked::Parent(_)) => {}
        Ok(Forked::Child) => {
            let text = resolv_conf_text(plan);
            let done = catch_unwind(AssertUnwindSafe(|| {
                let fail = |e| Failure::os(Status::Namespaces, "cannot enter the sandbox", e);
                namespaces::enter(&namespaces.user, namespaces::Kind::User).map_err(fail)?;
                namespaces::enter(&namespaces.mount, namespaces::Kind::Mount).map_err(fail)?;
                if std::fs::read("/etc/resolv.conf").is_ok_and(|now| now == text.as_bytes()) {
                    return Ok(());
                }
                mounts::replace_resolv_conf(&text)
            }));
            if let Ok(Err(e)) = done {
                complain(format_args!("warning: {e}"));
            }
            process::exit_now(0)
        }
        Err(e) => complain(format_args!("warning: cannot give the sandbox its /etc/resolv.conf again: {e}")),
    }
}

/// Becomes user and group 0 of the user namespace. With one mapped id that is what it is already.
pub(crate) fn become_root() -> Result<(), Failure> {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let fail = |e| Failure::os(Status::Namespaces, "cannot become root of the sandbox", e);
    // Not permitted where setgroups is denied, where the groups stay those of the caller.
    let _ = set_thread_groups(&[]);
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(fail)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(fail)
}

/// Has this process have the signals and limits that hibernet's caller had.
pub(crate) fn give_back(inherited: Inherited) {
    let limit = Rlimit { current: Some(inherited.files), maximum: inherited.files_hard };
    let _ = setrlimit(Resource::Nofile, limit);
    let _ = process::default_action(libc::SIGPIPE);
    let _ = inherited.mask.set();
}

/// Executes a command with the signals and limits that hibernet's caller had. Returns only on failure.
pub(crate) fn execute(argv: &[OsString], inherited: Inherited) -> Failure {
    let name = argv.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    give_back(inherited);
    let e = process::exec(argv);
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            let hint = if name.contains('/') { "no such file (or its interpreter is missing)" } else { "not found in PATH" };
            Failure::new(Status::NotFound, format!("cannot run '{name}': {hint}"))
        }
        Some(libc::EACCES) => {
            Failure::new(Status::NotExecutable, format!("cannot run '{name}': permission denied, or not an executable file"))
        }
        Some(libc::ENOEXEC) => Failure::new(Status::NotExecutable, format!("cannot run '{name}': not a program of this machine")),
        _ => Failure::os(Status::NotExecutable, format_args!("cannot run '{name}'"), e),
    }
}
