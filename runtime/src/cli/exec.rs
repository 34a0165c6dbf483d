//! `hibernet exec`: this process enters the sandbox and becomes the command.

use crate::control::registry::Registry;
use crate::sandbox::child::{self, Inherited};
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::namespaces::{self, Kind};
use crate::sys::process::SignalSet;
use rustix::process::{Resource, getrlimit};
use std::ffi::OsString;
use std::path::PathBuf;

pub(super) fn exec(name: &str, argv: &[OsString]) -> Result<u8, Failure> {
    let entry = Registry::open()?.get(name)?;
    if entry.ended {
        let why = format!("the command of '{name}' has ended; only its network is there, for those that joined it");
        return Err(Failure::new(Status::Namespaces, why));
    }
    let Some(fds) = entry.namespaces else {
        return Err(Failure::new(
            Status::Namespaces,
            format!("'{name}' was attached to, not run: enter its namespace with nsenter or `ip netns exec`"),
        ));
    };
    let open = |i: usize| namespaces::open_namespace(&PathBuf::from(format!("/proc/{}/fd/{}", entry.pid, fds[i])));
    let (user, mount, net) = (open(0)?, open(1)?, open(2)?);
    // The descriptors are those of this supervisor only if it still lives now that they are open.
    if !entry.is_current() {
        return Err(Failure::new(Status::Name, format!("the sandbox '{name}' has just ended")));
    }
    let directory = std::env::current_dir();
    let fail = |e| Failure::os(Status::Namespaces, format_args!("cannot enter the sandbox '{name}'"), e);
    namespaces::enter(user, Kind::User).map_err(fail)?;
    namespaces::enter(net, Kind::Net).map_err(fail)?;
    namespaces::enter(mount, Kind::Mount).map_err(fail)?;
    // Entering a mount namespace leads to its root; whoever called was somewhere else.
    if let Ok(d) = directory {
        let _ = std::env::set_current_dir(d);
    }
    child::become_root()?;
    let limit = getrlimit(Resource::Nofile);
    let mask = SignalSet::new(&[]).block().map_err(|e| Failure::os(Status::Internal, "cannot read the signal mask", e))?;
    Err(child::execute(argv, Inherited { mask, files: limit.current.unwrap_or(u64::MAX), files_hard: limit.maximum }))
}
