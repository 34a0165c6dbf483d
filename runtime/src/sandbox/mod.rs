//! The sandbox: its namespaces, the worker's process, and the supervisor of both.

pub mod carry;
pub(crate) mod channel;
pub(crate) mod child;
pub(crate) mod confine;
pub(crate) mod connector;
pub(crate) mod datagram_peer;
pub mod failure;
pub mod fds;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod lifecycle;
pub(crate) mod log;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod netlink;
pub mod plan;
pub(crate) mod probe;
pub mod resolv;
pub(crate) mod retries;
pub(crate) mod socket_path;
pub(crate) mod stragglers;
pub mod supervisor;
pub mod target;
pub(crate) mod worker_process;

use failure::{Failure, Status};
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::OwnedFd;

/// Opens the device that takes everything and gives nothing.
pub(crate) fn open_null() -> Result<OwnedFd, Failure> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::os(Status::Internal, "cannot open /dev/null", e))
}
