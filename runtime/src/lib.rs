//! The owner of descriptors, clock, entropy and threads: links, host sockets, the worker, the sandbox.

pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod control;
pub mod edge;
pub mod entropy;
mod lent;
pub mod link;
pub mod sandbox;
pub mod slots;
pub mod sock;
pub mod sys;
pub mod worker;
