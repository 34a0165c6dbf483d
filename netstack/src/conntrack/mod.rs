//! Connection tracking.

mod conn;
pub mod tcp;
mod tuple;

pub use conn::{Conn, ConnId, CtInfo, Dir, Proto, Status, Track};
pub use tuple::{Addr, CtTuple};
