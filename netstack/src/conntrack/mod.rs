//! Connection tracking.

mod acct;
mod bucket;
mod changed;
mod chunks;
pub mod config;
mod confirm;
mod conn;
mod dump;
mod early_drop;
pub mod filter;
mod flows;
mod gre;
mod hash;
pub mod icmp;
pub mod image;
pub mod list;
mod port_search;
pub mod proto;
pub mod quote;
mod reap;
mod slot;
mod source;
mod stats;
mod sync;
mod table;
pub mod tcp;
#[cfg(test)]
mod tests;
mod track;
pub mod tuple;
mod udp;

pub use acct::Counts;
pub use config::{CtConfig, Timeouts};
pub use conn::{Conn, ConnId, CtInfo, Dir, Proto, Status, Track};
pub use filter::Filter;
pub(crate) use flows::Found;
pub use list::{ConnView, Line};
pub use quote::Quote;
pub use stats::CtCounters;
pub use table::{Conntrack, OriginalDstError};
pub use tuple::{Addr, CtTuple};
