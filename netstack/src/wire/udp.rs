//! UDP, RFC 768.

use super::{WireError, be16};

/// Length of a header.
pub const HEADER_LEN: usize = 8;

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Length of header and payload.
    pub len: u16,
    /// Checksum; 0 if there is none.
    pub checksum: u16,
}

impl Header {
    /// Reads a header. `len` is the length of the datagram according to IP.
    pub fn parse(b: &[u8], len: usize) -> Result<Header, WireError> {
        let h = Header::read(b).ok_or(WireError::Truncated)?;
        match usize::from(h.len) {
            n if n < HEADER_LEN => Err(WireError::Malformed),
            n if n > len => Err(WireError::Truncated),
            _ => Ok(h),
        }
    }

    /// The fields of a header whatever its length field says; `None` if it is not all there.
    pub fn read(b: &[u8]) -> Option<Header> {
        (b.len() >= HEADER_LEN).then(|| Header {
            src_port: be16(b, 0),
            dst_port: be16(b, 2),
            len: be16(b, 4),
            checksum: be16(b, 6),
        })
    }

    /// Writes the header to the first [`HEADER_LEN`] bytes.
    pub fn emit(&self, b: &mut [u8]) {
        b[..2].copy_from_slice(&self.src_port.to_be_bytes());
        b[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        b[4..6].copy_from_slice(&self.len.to_be_bytes());
        b[6..8].copy_from_slice(&self.checksum.to_be_bytes());
    }
}
