//! Checkpoints: what a worker's image contains, what becomes of host sockets, and what is told about it.
//!
//! [`Worker::prepare`](crate::worker::Worker::prepare) freezes a worker, [`Worker::commit`](crate::worker::Worker::commit) hands its sockets out,
//! [`Worker::abort`](crate::worker::Worker::abort) has it go on; [`Worker::restore`](crate::worker::Worker::restore) makes one that goes on where the frozen
//! one stood.
//!
//! Sockets whose descriptors live on are in [`crate::sock`]. What carries them over when they do not: TCP by the kernel's repair
//! mode ([`repair`], [`rebuild`]), datagram sockets and listeners opened anew ([`datagram`]), and the lock that keeps the kernel from telling peers that nobody is there ([`lock`]).

pub mod carried;
pub mod contents;
pub mod datagram;
mod error;
pub mod file;
mod held;
pub mod helper;
pub mod image;
pub mod lock;
pub mod news;
pub mod probe;
pub mod rebuild;
pub mod repair;
pub mod report;
pub mod switch;

pub use contents::{config_of, known};
pub use error::{CheckpointError, RestoreError};
pub use held::Held;
