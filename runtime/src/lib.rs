//! The owner of descriptors, clock, entropy and threads: links, host sockets, the worker, the sandbox.

pub mod clock;
pub mod edge;
pub mod entropy;
pub mod link;
pub mod sock;
pub mod sys;
pub mod worker;
