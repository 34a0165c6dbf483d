//! The supervisor: parent of the command and of the network worker. It has no part in the traffic.

mod attach;
mod attach_joined;
mod background;
mod base;
mod events;
mod joined;
mod membership;
mod run;

use super::failure::Failure;
use super::plan::Plan;
use super::target::Target;
use crate::checkpoint::report::ThawReport;
use crate::control::lifecycle::Join;
use crate::worker::RestorePolicy;
use background::in_background_if;
pub(crate) use events::how_ended;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A command to be run in a sandbox.
#[derive(Debug)]
pub struct RunRequest {
    /// The sandbox.
    pub plan: Plan,
    /// The command and its arguments.
    pub argv: Vec<OsString>,
    /// Give it an /etc/resolv.conf of its own.
    pub resolv_conf: bool,
    /// Where its output goes if it is detached.
    pub output: Option<PathBuf>,
    /// Go on with an image's network.
    pub thaw: Option<Thawing>,
    /// Have the network of another sandbox serve it.
    pub join: Option<JoinRequest>,
}

/// Another sandbox's network to join.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// Name of that sandbox.
    pub network: String,
    /// What is wished for; the name is filled in.
    pub wish: Join,
}

/// A link or namespace that somebody else made, to be served.
#[derive(Debug)]
pub struct AttachRequest {
    /// The network.
    pub plan: Plan,
    /// The link or namespace.
    pub target: Target,
    /// Go on with an image's network.
    pub thaw: Option<Thawing>,
    /// Where to write the supervisor's process id, once the link is served.
    pub pid_file: Option<PathBuf>,
    /// Have the network of another sandbox serve it: a TAP, an interface or a namespace.
    pub join: Option<JoinRequest>,
}

/// An image that a new sandbox's network goes on from.
#[derive(Debug)]
pub struct Thawing {
    /// The image.
    pub image: File,
    /// How.
    pub policy: RestorePolicy,
    /// A connection to who switches the repair mode of sockets.
    pub helper: Option<OwnedFd>,
    /// Called with what became of its flows.
    pub told: fn(&ThawReport),
}

/// Runs a command in a sandbox; returns its exit status once it has ended. The caller has no threads.
///
/// # Errors
///
/// If the sandbox cannot be made, or did not last as long as the command.
pub fn run(request: &RunRequest) -> Result<u8, Failure> {
    in_background_if(request.plan.detach, request.output.as_deref(), |started| match &request.join {
        Some(join) => joined::run_joined(request, join, started),
        None => run::run_here(request, started),
    })
}

/// Serves a link or a namespace that somebody else made, until it goes. The caller has no threads.
///
/// # Errors
///
/// If it cannot be served.
pub fn attach(request: &AttachRequest) -> Result<u8, Failure> {
    in_background_if(request.plan.detach, None, |started| match &request.join {
        Some(join) => attach_joined::attach_joined(request, join, started),
        None => attach::attach_here(request, started),
    })
}
