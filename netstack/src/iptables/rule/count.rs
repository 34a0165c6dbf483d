//! Matches that count, as values: what a connection carried, how many connections there are, how much comes in a time.

use serde::{Deserialize, Serialize};

/// `connbytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnbytesMatch {
    /// `!` stood before `--connbytes`.
    pub not: bool,
    /// At least so much.
    pub from: u64,
    /// At most so much; [`u64::MAX`] for any.
    pub to: u64,
    /// `--connbytes-mode`.
    pub what: CountOf,
    /// `--connbytes-dir`.
    pub dir: CountDir,
}

/// What is counted of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountOf {
    /// Packets.
    Packets,
    /// Bytes of IP packets.
    Bytes,
    /// Bytes of a packet on average.
    Average,
}

/// In which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountDir {
    /// As the first packet went.
    Original,
    /// Against it.
    Reply,
    /// In both together.
    Both,
}

/// `connlimit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnlimitMatch {
    /// `--connlimit-above`; else `--connlimit-upto`.
    pub above: bool,
    /// So many connections.
    pub limit: u32,
    /// `--connlimit-mask`: bits of an address by which connections are counted together.
    pub prefix: u8,
    /// `--connlimit-daddr`; else `--connlimit-saddr`.
    pub dest: bool,
}

/// Bits of `--hashlimit-mode`.
pub mod hashlimit_mode {
    /// `dstip`.
    pub const DST_IP: u8 = 1;
    /// `dstport`.
    pub const DST_PORT: u8 = 2;
    /// `srcip`.
    pub const SRC_IP: u8 = 4;
    /// `srcport`.
    pub const SRC_PORT: u8 = 8;
}

/// `hashlimit`, in the units that Linux keeps it in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashlimitMatch {
    /// `--hashlimit-above`; else `--hashlimit-upto`.
    pub above: bool,
    /// The rate is one of bytes.
    pub bytes: bool,
    /// Time from packet to packet, in millionths of a second; of a rate of bytes, what 16 of them cost of 2^32 per second.
    pub avg: u64,
    /// `--hashlimit-burst`: packets, or how often so many bytes as come in a second.
    pub burst: u64,
    /// `--hashlimit-mode`: bits of [`hashlimit_mode`].
    pub mode: u8,
    /// `--hashlimit-name`.
    pub name: String,
    /// `--hashlimit-srcmask`: length of the prefix.
    pub src_prefix: u8,
    /// `--hashlimit-dstmask`.
    pub dst_prefix: u8,
    /// `--hashlimit-htable-size`; 0 for what is usual.
    pub size: u32,
    /// `--hashlimit-htable-max`; 0 for eight times the size.
    pub max: u32,
    /// `--hashlimit-htable-expire`, in ms.
    pub expire: u32,
    /// `--hashlimit-htable-gcinterval`, in ms.
    pub gc_interval: u32,
    /// `--hashlimit-rate-match`: seconds over which a rate is taken (`--hashlimit-rate-interval`).
    pub interval: Option<u32>,
}

impl HashlimitMatch {
    /// Longest name in bytes.
    pub const MAX_NAME: usize = 254;
    /// Largest size.
    pub const MAX_SIZE: u32 = 1 << 20;

    /// Whether a table can have the name: it is that of a file in Linux.
    pub fn is_name(name: &str) -> bool {
        !name.is_empty() && name.len() <= HashlimitMatch::MAX_NAME && !name.contains('/') && name != "." && name != ".."
    }
}
