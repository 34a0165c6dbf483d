//! The table of connections in an image: records of a fixed size, captured while packets go on, and loaded into a new table.
//!
//! A [`Capture`] copies all slots in their order, then those that changed meanwhile, as often as its caller likes, and in the end, while
//! nothing moves, the few that are left. The [`Image`] that comes out of it yields records without holes, chunk by chunk. A [`Loader`]
//! takes records, from several threads if need be, checks everything, and gives a table under a key of its own in which every connection has
//! the handle that it had.
//!
//! # Records
//! Little-endian. 128 bytes for an IPv4 connection:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 4 | slot |
//! | 4 | 4 | generation of the slot, odd |
//! | 8 | 8 | when it times out, nanoseconds of stack time |
//! | 16 | 8 | flow that holds it ([`Token::bits`](crate::edge::Token::bits)), 0 for none |
//! | 24 | 4 | mark |
//! | 28 | 2 | status ([`Status`](super::Status)) |
//! | 30 | 1 | state of which protocol: 0 generic, 1 TCP, 2 UDP, 3 ICMP |
//! | 31 | 1 | 4 or 6 |
//! | 32 | 16 | original tuple: source and destination (last 4 bytes of the address), 4 each; source and destination port, zone, 2 each; protocol, 1; 0 |
//! | 48 | 16 | reply tuple |
//! | 64 | 36 | TCP: by direction, `end`, `max_end`, `max_win`, `max_ack`, 4 each; `scale`, `flags`, 1 each. UDP: 8 bytes, stream after this time |
//! | 100 | 4 | TCP: state, direction and kind of the last segment, `retrans` |
//! | 104 | 12 | TCP: `last_seq`, `last_ack`, `last_end` |
//! | 116 | 4 | TCP: `last_win`, 2; `noted_scale`, `notes` |
//! | 120 | 4 | whose source is translated: its number, by which it is younger or older than others of the same source; 0 for others |
//! | 124 | 4 | 0 |
//!
//! 176 bytes for an IPv6 connection: the same, then at 128 the first 12 bytes of each address (three words of 4 bytes, as numbers, the
//! most significant one first): original source, original destination, reply source, reply destination. What a record does not use is 0.

mod capture;
mod check;
mod head;
mod load;
mod record;
mod records;
#[cfg(test)]
mod tests;

pub use crate::iptables::Family;
pub use capture::{Capture, CaptureError, Progress};
pub use check::RecordError;
pub use head::{Head, HeadError, Reaping};
pub use load::{LoadError, Loader};
pub use record::{COUNTS, RECORD_V4, RECORD_V6, VERSION, record_size};
pub use records::{Image, Records};
