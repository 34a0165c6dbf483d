//! What IPv4 and IPv6 headers have in common.

use super::{EtherType, WireError, ipv4, ipv6};
use core::net::IpAddr;

/// An IP header of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Header length in bytes, options and extension headers included.
    pub header_len: u16,
    /// Length of the whole packet without link padding. At most 65,575 (IPv6).
    pub total_len: u32,
    /// Don't fragment; always true for IPv6.
    pub dont_fragment: bool,
    /// The packet is a fragment.
    pub fragment: Option<Fragment>,
}

/// Place of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in bytes.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
    /// Identification.
    pub ident: u32,
}

impl Header {
    /// Reads the header of a packet of `len` bytes that starts with `b`.
    pub fn parse(ethertype: EtherType, b: &[u8], len: usize) -> Result<Header, WireError> {
        match ethertype {
            EtherType::Ipv4 => ipv4::Header::parse(b, len).map(Header::from),
            EtherType::Ipv6 => ipv6::Header::parse(b, len).map(Header::from),
            _ => Err(WireError::Malformed),
        }
    }

    /// Length of what follows the header.
    pub const fn payload_len(&self) -> u32 {
        self.total_len - self.header_len as u32
    }
}

impl From<ipv4::Header> for Header {
    fn from(h: ipv4::Header) -> Self {
        let fragment = (h.more_fragments || h.fragment_offset != 0).then_some(Fragment {
            offset: h.fragment_offset,
            more: h.more_fragments,
            ident: u32::from(h.ident),
        });
        Header {
            src: h.src.into(),
            dst: h.dst.into(),
            protocol: h.protocol,
            hop_limit: h.ttl,
            tos: h.tos,
            header_len: u16::from(h.header_len),
            total_len: u32::from(h.total_len),
            dont_fragment: h.dont_fragment,
            fragment,
        }
    }
}

impl From<ipv6::Header> for Header {
    /// An atomic fragment (RFC 6946) is no fragment.
    fn from(h: ipv6::Header) -> Self {
        let fragment =
            h.fragment.filter(|f| f.more || f.offset != 0).map(|f| Fragment { offset: f.offset, more: f.more, ident: f.ident });
        Header {
            src: h.src.into(),
            dst: h.dst.into(),
            protocol: h.protocol,
            hop_limit: h.hop_limit,
            tos: h.traffic_class,
            header_len: h.header_len,
            total_len: u32::from(h.payload_len) + ipv6::HEADER_LEN as u32,
            dont_fragment: true,
            fragment,
        }
    }
}
