//! Checkpoints: what a worker's image contains, what becomes of host sockets, and what is told about it.
//!
//! [`Worker::prepare`](crate::worker::Worker::prepare) freezes a worker, [`Worker::commit`](crate::worker::Worker::commit) hands its sockets out,
//! [`Worker::abort`](crate::worker::Worker::abort) has it go on; [`Worker::restore`](crate::worker::Worker::restore) makes one that goes on where the frozen
//! one stood.
//!
//! Sockets whose descriptors live on are in [`crate::sock`]. What carries them over when they do not: TCP by the kernel's repair
//! mode ([`repair`], [`rebuild`]), and the lock that keeps the kernel from telling peers that nobody is there ([`lock`]).

pub mod contents;
mod error;
pub mod file;
pub mod image;
pub mod lock;
pub mod probe;
pub mod rebuild;
pub mod repair;
pub mod report;
pub mod switch;

pub use contents::{config_of, known};
pub use error::{CheckpointError, RestoreError};

use hibernet_netstack::edge::SockId;
use hibernet_snapshot::GenerationId;
use std::os::fd::OwnedFd;

/// The descriptors of a frozen worker. Whoever has them keeps its connections alive.
#[derive(Debug, Default)]
pub struct Held {
    /// The freeze to which they belong; `None` if there are none, and nothing is to be compared.
    pub generation: Option<GenerationId>,
    /// Sockets of flows, of DNS queries, and of published UDP ports.
    pub sockets: Vec<(SockId, OwnedFd)>,
    /// Listeners of published TCP ports: the index in the configuration's list, and the socket.
    pub tcp_listeners: Vec<(usize, OwnedFd)>,
    /// Shared raw ICMP socket.
    pub raw_icmp4: Option<OwnedFd>,
    /// Shared raw ICMPv6 socket.
    pub raw_icmp6: Option<OwnedFd>,
}
