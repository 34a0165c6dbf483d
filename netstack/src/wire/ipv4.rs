//! IPv4, RFC 791.

use super::{WireError, be16, checksum};
use core::net::Ipv4Addr;

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;

/// An IPv4 header. Options are checked for length and otherwise passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Header length in bytes, options included.
    pub header_len: u8,
    /// Type of service.
    pub tos: u8,
    /// Length of the whole packet.
    pub total_len: u16,
    /// Identification.
    pub ident: u16,
    /// Don't fragment.
    pub dont_fragment: bool,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Offset of this fragment in bytes.
    pub fragment_offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
}

impl Header {
    /// Reads and checks a header. `len` is the length of the whole packet as received, of which `b` is the start;
    /// link padding behind `total_len` is allowed.
    pub fn parse(b: &[u8], len: usize) -> Result<Header, WireError> {
        if b.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let header_len = usize::from(b[0] & 0xf) * 4;
        if b[0] >> 4 != 4 || header_len < HEADER_LEN {
            return Err(WireError::Malformed);
        }
        let total_len = be16(b, 2);
        if b.len() < header_len || usize::from(total_len) > len {
            return Err(WireError::Truncated);
        }
        if usize::from(total_len) < header_len {
            return Err(WireError::Malformed);
        }
        if checksum::of(&b[..header_len]) != 0 {
            return Err(WireError::Checksum);
        }
        let frag = be16(b, 6);
        Ok(Header {
            header_len: header_len as u8,
            tos: b[1],
            total_len,
            ident: be16(b, 4),
            dont_fragment: frag & 0x4000 != 0,
            more_fragments: frag & 0x2000 != 0,
            fragment_offset: (frag & 0x1fff) * 8,
            ttl: b[8],
            protocol: b[9],
            src: Ipv4Addr::new(b[12], b[13], b[14], b[15]),
            dst: Ipv4Addr::new(b[16], b[17], b[18], b[19]),
        })
    }

    /// Writes a header of [`HEADER_LEN`] bytes, without options, with its checksum.
    pub fn emit(&self, b: &mut [u8]) {
        let frag = u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13 | (self.fragment_offset / 8);
        b[0] = 0x45;
        b[1] = self.tos;
        b[2..4].copy_from_slice(&self.total_len.to_be_bytes());
        b[4..6].copy_from_slice(&self.ident.to_be_bytes());
        b[6..8].copy_from_slice(&frag.to_be_bytes());
        b[8] = self.ttl;
        b[9] = self.protocol;
        b[10..12].fill(0);
        b[12..16].copy_from_slice(&self.src.octets());
        b[16..20].copy_from_slice(&self.dst.octets());
        let sum = checksum::of(&b[..HEADER_LEN]);
        b[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
