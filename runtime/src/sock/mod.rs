//! Host sockets.

pub mod error;
