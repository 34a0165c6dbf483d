//! IPv6 and its extension headers, RFC 8200.

use super::{WireError, be16, be32};
use core::net::Ipv6Addr;

/// Length of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Length of a fragment header.
pub const FRAGMENT_LEN: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// Protocol number of the fragment header.
pub const FRAGMENT: u8 = 44;
const AUTH: u8 = 51;
const NO_NEXT: u8 = 59;
const DEST_OPTS: u8 = 60;

/// The fragment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in bytes.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
    /// Identification.
    pub ident: u32,
    /// Where the fragment header starts in the packet.
    pub at: u16,
    /// Where the next-header field stands that says "fragment".
    pub prev_next_at: u16,
}

/// An IPv6 header with what its extension headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the fixed and extension headers in bytes.
    pub header_len: u16,
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label.
    pub flow_label: u32,
    /// Length of everything behind the fixed header.
    pub payload_len: u16,
    /// Hop limit.
    pub hop_limit: u8,
    /// Protocol behind the extension headers.
    pub protocol: u8,
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Fragment header, if there is one. Nothing behind it is walked in a fragment that is not the first.
    pub fragment: Option<Fragment>,
}

impl Header {
    /// Reads and checks a header and its extension headers. `len` is the length of the packet as received, of
    /// which `b` is the start.
    pub fn parse(b: &[u8], len: usize) -> Result<Header, WireError> {
        if b.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        if b[0] >> 4 != 6 {
            return Err(WireError::Malformed);
        }
        let payload_len = be16(b, 4);
        let end = HEADER_LEN + usize::from(payload_len);
        if end > len {
            return Err(WireError::Truncated);
        }
        let addr = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&b[at..at + 16]).unwrap_or_default());
        let mut h = Header {
            header_len: 0,
            traffic_class: (be16(b, 0) >> 4) as u8,
            flow_label: be32(b, 0) & 0xf_ffff,
            payload_len,
            hop_limit: b[7],
            protocol: b[6],
            src: addr(8),
            dst: addr(24),
            fragment: None,
        };
        let (mut at, mut next_at) = (HEADER_LEN, 6);
        loop {
            let ext_len = match h.protocol {
                HOP_BY_HOP if at == HEADER_LEN => 8,
                HOP_BY_HOP => return Err(WireError::Malformed),
                ROUTING | DEST_OPTS | AUTH => 8,
                FRAGMENT if h.fragment.is_none() => FRAGMENT_LEN,
                FRAGMENT => return Err(WireError::Malformed),
                _ => break,
            };
            if at + ext_len > end || at + ext_len > b.len() {
                return Err(WireError::Truncated);
            }
            let ext_len = match h.protocol {
                FRAGMENT => {
                    let field = be16(b, at + 2);
                    h.fragment = Some(Fragment {
                        offset: field & 0xfff8,
                        more: field & 1 != 0,
                        ident: be32(b, at + 4),
                        at: at as u16,
                        prev_next_at: next_at as u16,
                    });
                    FRAGMENT_LEN
                }
                AUTH => (usize::from(b[at + 1]) + 2) * 4,
                _ => (usize::from(b[at + 1]) + 1) * 8,
            };
            // A routing header with segments left would make us a source router: RFC 5095.
            if h.protocol == ROUTING && b[at + 3] != 0 {
                return Err(WireError::Malformed);
            }
            h.protocol = b[at];
            next_at = at;
            at += ext_len;
            if at > end {
                return Err(WireError::Truncated);
            }
            if h.fragment.is_some_and(|f| f.offset != 0) {
                break;
            }
        }
        if h.protocol == NO_NEXT && h.fragment.is_none() {
            return Err(WireError::Malformed);
        }
        if at > b.len() {
            return Err(WireError::Truncated);
        }
        h.header_len = at as u16;
        Ok(h)
    }

    /// Writes a fixed header of [`HEADER_LEN`] bytes; `payload_len` and `protocol` are taken as they are.
    pub fn emit(&self, b: &mut [u8]) {
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        b[..4].copy_from_slice(&first.to_be_bytes());
        b[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        b[6] = self.protocol;
        b[7] = self.hop_limit;
        b[8..24].copy_from_slice(&self.src.octets());
        b[24..40].copy_from_slice(&self.dst.octets());
    }
}

/// Where the transport header of a packet stands, and its protocol, in bytes that may be cut off anywhere (a quoted packet).
/// `None` if the extension headers are cut off, and for a fragment that is not the first. Whether the transport
/// header itself is there is not checked.
pub fn transport(b: &[u8]) -> Option<(usize, u8)> {
    let (mut protocol, mut at) = (*b.get(6)?, HEADER_LEN);
    loop {
        let len = match protocol {
            HOP_BY_HOP | ROUTING | DEST_OPTS => (usize::from(*b.get(at + 1)?) + 1) * 8,
            AUTH => (usize::from(*b.get(at + 1)?) + 2) * 4,
            FRAGMENT if be16(b.get(at..at + FRAGMENT_LEN)?, 2) & 0xfff8 != 0 => return None,
            FRAGMENT => FRAGMENT_LEN,
            _ => return Some((at, protocol)),
        };
        protocol = b[at];
        at += len;
    }
}

/// Writes a fragment header.
pub fn emit_fragment(b: &mut [u8], protocol: u8, offset: u16, more: bool, ident: u32) {
    b[0] = protocol;
    b[1] = 0;
    b[2..4].copy_from_slice(&(offset & 0xfff8 | u16::from(more)).to_be_bytes());
    b[4..8].copy_from_slice(&ident.to_be_bytes());
}
