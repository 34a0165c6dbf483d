//! Running sandboxes: which there are, and how to reach them.

pub mod registry;
