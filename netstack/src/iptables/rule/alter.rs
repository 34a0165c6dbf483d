//! Targets that change packets, or tell of them, as values.

/// What a target changes in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alter {
    /// `TTL` (IPv4), `HL` (IPv6).
    HopLimit(HopChange),
    /// `TOS`: `tos = (tos & !mask) ^ value`.
    Tos {
        /// Bits to flip.
        value: u8,
        /// Bits to clear before.
        mask: u8,
    },
    /// `DSCP`: at most 63.
    Dscp(u8),
    /// `TCPMSS`: no larger than this; `None` for what the path can carry.
    Mss(Option<u16>),
    /// `CHECKSUM --checksum-fill`.
    Checksum,
}

/// What becomes of a hop limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopChange {
    /// `--ttl-set`.
    Set(u8),
    /// `--ttl-inc`: at least 1.
    Add(u8),
    /// `--ttl-dec`: at least 1.
    Subtract(u8),
}

/// `LOG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTarget {
    /// syslog level 0-7.
    pub level: u8,
    /// At most 29 bytes.
    pub prefix: String,
    /// Bits of [`log_flags`].
    pub flags: u8,
}

/// Options of `LOG`.
pub mod log_flags {
    /// `--log-tcp-sequence`.
    pub const TCP_SEQUENCE: u8 = 1;
    /// `--log-tcp-options`.
    pub const TCP_OPTIONS: u8 = 2;
    /// `--log-ip-options`.
    pub const IP_OPTIONS: u8 = 4;
    /// `--log-uid`.
    pub const UID: u8 = 8;
    /// `--log-macdecode`.
    pub const MACDECODE: u8 = 32;
}

/// `NFLOG`: a line in our log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NflogTarget {
    /// `--nflog-prefix`: at most 63 bytes.
    pub prefix: String,
    /// `--nflog-group`.
    pub group: u16,
    /// `--nflog-range`, which never did anything.
    pub range: u32,
    /// `--nflog-size`: bytes of the packet for whoever listens; a line is as that of LOG.
    pub size: Option<u32>,
    /// `--nflog-threshold`: packets to be told of at a time; 0 if not given. Lines are told of one by one.
    pub threshold: u16,
}
