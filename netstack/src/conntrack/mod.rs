//! Connection tracking.

pub mod config;
mod conn;
pub mod icmp;
pub mod proto;
pub mod quote;
pub mod tcp;
pub mod tuple;
mod udp;

pub use config::{CtConfig, Timeouts};
pub use conn::{Conn, ConnId, CtInfo, Dir, Proto, Status, Track};
pub use quote::Quote;
pub use tuple::{Addr, CtTuple};
