//! TCP headers and options, RFC 9293 and RFC 7323.

use super::{WireError, be16, be32};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// Longest header.
pub const MAX_HEADER_LEN: usize = 60;

/// Control bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Flags = Flags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Flags = Flags(0x02);
    /// Reset the connection.
    pub const RST: Flags = Flags(0x04);
    /// Push.
    pub const PSH: Flags = Flags(0x08);
    /// The acknowledgement field is valid.
    pub const ACK: Flags = Flags(0x10);
    /// The urgent pointer is valid.
    pub const URG: Flags = Flags(0x20);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl core::ops::BitOr for Flags {
    type Output = Flags;

    fn bitor(self, o: Flags) -> Flags {
        Flags(self.0 | o.0)
    }
}

/// A sequence number: 32 bits, compared modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether `self` is earlier than `o` (RFC 9293 section 3.4), for numbers less than 2^31 apart.
    pub const fn before(self, o: Seq) -> bool {
        (self.0.wrapping_sub(o.0) as i32) < 0
    }

    /// Whether `self` is `o` or later.
    pub const fn at_or_after(self, o: Seq) -> bool {
        !self.before(o)
    }

    /// Whether `self` is later than `o`.
    pub const fn after(self, o: Seq) -> bool {
        o.before(self)
    }

    /// Bytes from `earlier` to `self`; meaningful only if `self` is at or after it.
    pub const fn minus(self, earlier: Seq) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The later of both.
    #[must_use]
    pub const fn max(self, o: Seq) -> Seq {
        if self.before(o) { o } else { self }
    }
}

impl core::ops::Add<u32> for Seq {
    type Output = Seq;

    fn add(self, n: u32) -> Seq {
        Seq(self.0.wrapping_add(n))
    }
}

impl core::ops::Sub<u32> for Seq {
    type Output = Seq;

    fn sub(self, n: u32) -> Seq {
        Seq(self.0.wrapping_sub(n))
    }
}

/// A TCP header without its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: Seq,
    /// Acknowledgement number; valid with [`Flags::ACK`].
    pub ack: Seq,
    /// Header length in bytes, options included.
    pub header_len: u8,
    /// Control bits.
    pub flags: Flags,
    /// Window, unscaled.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl Header {
    /// Reads a header. `len` is the length of the segment according to IP.
    pub fn parse(b: &[u8], len: usize) -> Result<Header, WireError> {
        if b.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let header_len = usize::from(b[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(WireError::Malformed);
        }
        if header_len > len || header_len > b.len() {
            return Err(WireError::Truncated);
        }
        Header::read(b).ok_or(WireError::Truncated)
    }

    /// The fields of a header whatever its length field says; `None` if not even the fixed part is there.
    pub fn read(b: &[u8]) -> Option<Header> {
        (b.len() >= HEADER_LEN).then(|| Header {
            src_port: be16(b, 0),
            dst_port: be16(b, 2),
            seq: Seq(be32(b, 4)),
            ack: Seq(be32(b, 8)),
            header_len: (b[12] >> 4) * 4,
            flags: Flags(b[13] & 0x3f),
            window: be16(b, 14),
            checksum: be16(b, 16),
            urgent: be16(b, 18),
        })
    }

    /// Writes the fixed part of the header; options, if `header_len` has room for them, are the caller's.
    pub fn emit(&self, b: &mut [u8]) {
        b[..2].copy_from_slice(&self.src_port.to_be_bytes());
        b[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        b[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        b[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        b[12] = (self.header_len / 4) << 4;
        b[13] = self.flags.0;
        b[14..16].copy_from_slice(&self.window.to_be_bytes());
        b[16..18].copy_from_slice(&self.checksum.to_be_bytes());
        b[18..20].copy_from_slice(&self.urgent.to_be_bytes());
    }
}

/// Options that matter to us. What is malformed ends the list, as Linux does; what is unknown is skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Window scale, as sent: at most 14 is meaningful.
    pub window_scale: Option<u8>,
    /// Selective acknowledgement permitted.
    pub sack_permitted: bool,
    /// Timestamp value and echo.
    pub timestamp: Option<(u32, u32)>,
    /// Selective acknowledgement blocks, left and right edge; those after the fourth cannot be sent.
    pub sack: [Option<(Seq, Seq)>; 4],
}

impl Options {
    /// Reads the options between the fixed header and `header_len`.
    pub fn parse(mut b: &[u8]) -> Options {
        let mut o = Options::default();
        while let [kind, rest @ ..] = b {
            match kind {
                0 => break,
                1 => {
                    b = rest;
                    continue;
                }
                _ => {}
            }
            let Some(&len) = rest.first() else { break };
            let len = usize::from(len);
            if len < 2 || len > b.len() {
                break;
            }
            let v = &b[2..len];
            match (*kind, v.len()) {
                (2, 2) => o.mss = Some(be16(v, 0)),
                (3, 1) => o.window_scale = Some(v[0]),
                (4, 0) => o.sack_permitted = true,
                (5, n) if n % 8 == 0 => {
                    for (slot, block) in o.sack.iter_mut().zip(v.chunks_exact(8)) {
                        *slot = Some((Seq(be32(block, 0)), Seq(be32(block, 4))));
                    }
                }
                (8, 8) => o.timestamp = Some((be32(v, 0), be32(v, 4))),
                _ => {}
            }
            b = &b[len..];
        }
        o
    }
}

/// Where the option with the maximum segment size begins in a TCP header, as Linux's firewall looks for it: an end mark does not end
/// the list, and an option of length 0 is taken for one byte.
pub fn mss_option(header: &[u8]) -> Option<usize> {
    let end = (usize::from(header.get(12)? >> 4) * 4).min(header.len());
    let mut at = HEADER_LEN;
    while at < end {
        match (header[at], header.get(at + 1)) {
            (2, Some(4)) if at + 4 <= end => return Some(at),
            (0 | 1, _) => at += 1,
            (_, len) => at += usize::from(len.copied().unwrap_or(1).max(1)),
        }
    }
    None
}
