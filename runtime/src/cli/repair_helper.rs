//! `hibernet repair-helper`: does for others what needs CAP_NET_ADMIN when TCP connections go into an image.

use crate::checkpoint::helper::{Allowed, Server, ServerError};
use crate::checkpoint::lock::TIME_OUT;
use crate::checkpoint::probe;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sys::process::{SignalFd, SignalSet};
use clap::Args;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

/// Text behind the options.
pub(super) const HELP: &str = "\
Runs until it is told to stop (SIGTERM or SIGINT), as root or with CAP_NET_ADMIN, in the network namespace of the sandboxes' host sockets.
It serves its own user and those of --allow-uid, and nothing but sockets of its network namespace: it switches the repair mode of TCP sockets, gives
them the largest buffers that the kernel would give them by itself, and locks the packets of TCP and UDP sockets, as long
as their sandbox sleeps. Whoever may do that can
take the place of connections and listeners of his own without the kernel's checks, so allow only users that you would let run servers.

Example:
  sudo hibernet repair-helper --socket /run/hibernet-repair.sock --allow-uid 1000";

#[derive(Debug, Args)]
pub(super) struct RepairHelperArgs {
    /// Where to listen; the socket is the own user's, or everybody's to connect to where others are allowed
    #[arg(long, value_name = "PATH", required_unless_present = "inherited")]
    socket: Option<PathBuf>,
    /// How long packets stay locked when those who had them locked are gone, in seconds; while they sleep it is renewed
    #[arg(long, value_name = "N", default_value_t = TIME_OUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    lock_seconds: u64,
    /// Serve the connection that standard input is, as long as somebody has its other end (for hibernet itself)
    #[arg(long, hide = true, conflicts_with_all = ["socket", "allow_uid"])]
    inherited: bool,
    /// Serve this user, too (may be repeated)
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,
}

pub(super) fn repair_helper(args: &RepairHelperArgs) -> Result<u8, Failure> {
    probe::can_repair().map_err(|e| Failure::new(Status::Namespaces, e.to_string()))?;
    if let (Some(_), Err(e)) = (&args.socket, probe::can_lock()) {
        complain(format_args!("{e}"));
    }
    let signals = SignalSet::new(&[libc::SIGTERM, libc::SIGINT]);
    let internal = |e| Failure::os(Status::Internal, "cannot listen to signals", e);
    signals.block().map_err(internal)?;
    let stop = SignalFd::new(&signals).map_err(internal)?;
    let failed = |e: ServerError| Failure::new(Status::File, e.to_string());
    let time_out = Duration::from_secs(args.lock_seconds);
    let server = match &args.socket {
        Some(path) => Server::new(path, Allowed::new(&args.allow_uid), time_out),
        None => {
            let connection = std::io::stdin().as_fd().try_clone_to_owned();
            Server::of(connection.map_err(|e| Failure::os(Status::Internal, "no connection was handed over", e))?, time_out)
        }
    };
    server.map_err(failed)?.serve(stop.as_fd()).map_err(failed)?;
    Ok(0)
}
