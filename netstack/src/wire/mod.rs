//! Wire formats: check once, then plain values.
//!
//! Every parser takes the bytes at hand (which may be only the start of a packet) and says why it refuses
//! them. No parser panics or loops on any input.

pub mod arp;
pub mod checksum;
pub mod dhcp4;
pub mod dhcp6;
pub mod dns;
pub mod ethernet;
pub mod flow;
pub mod icmp;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod tcp;
pub mod udp;
mod writer;

pub use ethernet::{EtherType, Mac};
pub use icmp::IcmpQuote;
pub use writer::Writer;

use crate::verdict::DropReason;

/// Why bytes are not what they claim to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header does not fit into the bytes at hand, or says it is longer than it is.
    #[error("truncated")]
    Truncated,
    /// A field has an impossible value.
    #[error("malformed")]
    Malformed,
    /// The checksum is wrong.
    #[error("bad checksum")]
    Checksum,
}

impl From<WireError> for DropReason {
    fn from(e: WireError) -> Self {
        match e {
            WireError::Truncated => DropReason::Truncated,
            WireError::Malformed => DropReason::Malformed,
            WireError::Checksum => DropReason::BadIpChecksum,
        }
    }
}

pub(crate) fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

pub(crate) fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
