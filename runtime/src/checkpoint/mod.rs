//! Freezing and thawing: what becomes of host sockets while nobody owns them.
//!
//! Sockets whose descriptors live on are in [`crate::sock`]. Here is what carries them over when they do not: TCP by the kernel's repair
//! mode ([`repair`], [`rebuild`]), datagram sockets and listeners opened anew ([`datagram`]), and the lock that keeps the kernel from telling peers
//! that nobody is there ([`lock`]).

pub mod datagram;
pub mod helper;
pub mod image;
pub mod lock;
pub mod probe;
pub mod rebuild;
pub mod repair;
pub mod switch;
