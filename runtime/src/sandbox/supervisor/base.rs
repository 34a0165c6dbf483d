//! What a supervisor has before any namespace is made.

use super::events::FORWARDED;
use crate::cli::values::publish_text;
use crate::control::lifecycle::State;
use crate::control::registry::{Entry, Registration, Registry, start_time};
use crate::sandbox::child::Inherited;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::host::HostFds;
use crate::sandbox::lifecycle::{Network, addresses_of};
use crate::sandbox::plan::Plan;
use crate::sandbox::resolv::Watch;
use crate::sandbox::worker_process::own_program;
use crate::sys::process::{SignalFd, SignalSet};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// What is there before any namespace is.
pub(super) struct Base {
    pub(super) signals: SignalFd,
    pub(super) inherited: Inherited,
    pub(super) registration: Option<Registration>,
    /// Where the worker is asked.
    pub(super) control: Option<UnixListener>,
    /// Where the supervisor is asked.
    pub(super) lifecycle: Option<UnixListener>,
    /// The program that the worker executes.
    pub(super) program: OwnedFd,
    pub(super) host: HostFds,
    pub(super) watch: Option<Watch>,
}

impl Base {
    /// `joined`: the sandbox whose network serves this one, so that it has no worker, and nothing for one.
    pub(super) fn new(plan: &Plan, command: &[OsString], joined: Option<&str>) -> Result<Self, Failure> {
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
        let registration = register(plan, command, joined)?;
        let asked = registration.as_ref().filter(|_| joined.is_none());
        let control = asked.map(|r| listen(r.control_socket())).transpose()?;
        let lifecycle = asked.map(|r| listen(r.lifecycle_socket())).transpose()?;
        let program = own_program()?;
        let host = if joined.is_some() { HostFds::default() } else { HostFds::open(plan)? };
        let watch = match Watch::new() {
            Ok(w) => Some(w),
            Err(e) => {
                complain(format_args!("warning: {e}; changes of the host's resolvers will not be followed"));
                None
            }
        };
        Ok(Base { signals, inherited, registration, control, lifecycle, program, host, watch })
    }

    /// The sandbox's name; empty if it could not be registered.
    pub(super) fn name(&self) -> String {
        self.registration.as_ref().map_or_else(String::new, |r| r.name().to_owned())
    }

    /// The sandbox itself is no more, and its network serves those that joined it.
    pub(super) fn first_left(&mut self, network: &mut Network) -> Result<(), Failure> {
        network.first_left()?;
        let change = |e: &mut Entry| (e.namespaces, e.addresses, e.publish, e.ended) = (None, Vec::new(), Vec::new(), true);
        if let Err(e) = self.registration.as_mut().map_or(Ok(()), |r| r.update(change)) {
            complain(format_args!("warning: {e}"));
        }
        Ok(())
    }
}

fn listen(path: PathBuf) -> Result<UnixListener, Failure> {
    let fail = |e| Failure::os(Status::File, format_args!("cannot make the socket {}", path.display()), e);
    let socket = UnixListener::bind(&path).map_err(fail)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(socket)
}

/// Enters the sandbox in the registry. Without a directory for it a sandbox that needs no name runs all the same.
fn register(plan: &Plan, command: &[OsString], joined: Option<&str>) -> Result<Option<Registration>, Failure> {
    let registry = match Registry::open() {
        Ok(r) => r,
        Err(e) if plan.name.is_some() || plan.detach || joined.is_some() => return Err(e),
        Err(e) => {
            complain(format_args!("warning: {e}; `list`, `exec` and `stats` will not know this sandbox"));
            return Ok(None);
        }
    };
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let entry = Entry {
        name: plan.name.clone().unwrap_or_default(),
        pid,
        start_time: start_time(pid).unwrap_or(0),
        worker: 0,
        command: command.iter().map(|a| a.to_string_lossy().into_owned()).collect(),
        interface: plan.guest.ifname.clone(),
        addresses: addresses_of(&plan.config),
        publish: plan.config.publish.iter().map(publish_text).collect(),
        namespaces: None,
        state: State::Running,
        since: 0,
        asleep: None,
        joined: joined.map(str::to_owned),
        ended: false,
    };
    registry.enter(entry).map(Some)
}
