//! Running sandboxes: which there are, and how to reach them.

pub mod client;
pub(crate) mod connection;
pub mod lifecycle;
pub mod protocol;
pub mod registry;
pub mod rules;
pub mod which;
