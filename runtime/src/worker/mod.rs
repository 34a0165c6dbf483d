//! The network worker: the stack, its links and host sockets as a subscriber of an event loop.

mod setup;

pub use setup::{WorkerError, WorkerSetup, resolver_update};

/// Most links of a worker.
pub const MAX_LINKS: usize = 64;
