//! ICMP (RFC 792, 1191) and ICMPv6 (RFC 4443) messages.

use super::{WireError, be16, be32};

/// Length of the fixed header.
pub const HEADER_LEN: usize = 8;

/// ICMPv4 types.
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER: u8 = 12;
    /// Codes of [`UNREACHABLE`].
    pub mod unreachable {
        /// Network.
        pub const NET: u8 = 0;
        /// Host.
        pub const HOST: u8 = 1;
        /// Protocol.
        pub const PROTOCOL: u8 = 2;
        /// Port.
        pub const PORT: u8 = 3;
        /// Fragmentation needed.
        pub const FRAGMENTATION: u8 = 4;
        /// Communication administratively prohibited, RFC 1812.
        pub const PROHIBITED: u8 = 13;
    }
}

/// ICMPv6 types.
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation.
    pub const ROUTER_SOLICIT: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOR_SOLICIT: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOR_ADVERT: u8 = 136;
    /// Codes of [`UNREACHABLE`].
    pub mod unreachable {
        /// No route.
        pub const NO_ROUTE: u8 = 0;
        /// Administratively prohibited.
        pub const PROHIBITED: u8 = 1;
        /// Address.
        pub const ADDRESS: u8 = 3;
        /// Port.
        pub const PORT: u8 = 4;
    }
}

/// The fixed part of an ICMP or ICMPv6 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type.
    pub ty: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: u16,
    /// The four bytes after the checksum.
    pub rest: u32,
}

impl Header {
    /// Reads the fixed part.
    pub fn parse(b: &[u8]) -> Result<Header, WireError> {
        if b.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        Ok(Header { ty: b[0], code: b[1], checksum: be16(b, 2), rest: be32(b, 4) })
    }

    /// Whether it is a query or the reply to one, with an identifier: RFC 792 echo, timestamp and information, RFC 950 address
    /// mask; over IPv6 echo.
    pub const fn is_query(&self, v6: bool) -> bool {
        if v6 {
            matches!(self.ty, v6::ECHO_REQUEST | v6::ECHO_REPLY)
        } else {
            matches!(self.ty, v4::ECHO_REPLY | v4::ECHO_REQUEST | 13..=18)
        }
    }

    /// Identifier of an echo.
    pub const fn ident(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// Sequence number of an echo.
    pub const fn seq(&self) -> u16 {
        self.rest as u16
    }

    /// Writes the header to the first [`HEADER_LEN`] bytes.
    pub fn emit(&self, b: &mut [u8]) {
        b[0] = self.ty;
        b[1] = self.code;
        b[2..4].copy_from_slice(&self.checksum.to_be_bytes());
        b[4..8].copy_from_slice(&self.rest.to_be_bytes());
    }
}

/// Type, code and parameter of an ICMP error, in the numbers of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpQuote {
    /// Type.
    pub ty: u8,
    /// Code.
    pub code: u8,
    /// The four bytes after the checksum: the MTU, a pointer, or zero.
    pub rest: u32,
}

/// The errors that we send ourselves, for either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No route to the network.
    NetUnreachable,
    /// The host does not answer.
    HostUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// The protocol is unknown.
    ProtocolUnreachable,
    /// Policy forbids it.
    Prohibited,
    /// The packet is larger than this MTU.
    TooBig(u16),
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// Not all fragments came in time.
    ReassemblyTime,
}

impl IcmpError {
    /// As ICMPv4 (RFC 792, 1191, 1812) or ICMPv6 (RFC 4443). ICMPv6 says "unrecognised next header" for an unknown protocol.
    pub const fn quote(self, v6: bool) -> IcmpQuote {
        let (ty, code, rest) = match (self, v6) {
            (IcmpError::NetUnreachable, false) => (v4::UNREACHABLE, v4::unreachable::NET, 0),
            (IcmpError::NetUnreachable, true) => (v6::UNREACHABLE, v6::unreachable::NO_ROUTE, 0),
            (IcmpError::HostUnreachable, false) => (v4::UNREACHABLE, v4::unreachable::HOST, 0),
            (IcmpError::HostUnreachable, true) => (v6::UNREACHABLE, v6::unreachable::ADDRESS, 0),
            (IcmpError::PortUnreachable, false) => (v4::UNREACHABLE, v4::unreachable::PORT, 0),
            (IcmpError::PortUnreachable, true) => (v6::UNREACHABLE, v6::unreachable::PORT, 0),
            (IcmpError::ProtocolUnreachable, false) => (v4::UNREACHABLE, v4::unreachable::PROTOCOL, 0),
            (IcmpError::ProtocolUnreachable, true) => (v6::PARAMETER, 1, 6),
            (IcmpError::Prohibited, false) => (v4::UNREACHABLE, v4::unreachable::PROHIBITED, 0),
            (IcmpError::Prohibited, true) => (v6::UNREACHABLE, v6::unreachable::PROHIBITED, 0),
            (IcmpError::TooBig(mtu), false) => (v4::UNREACHABLE, v4::unreachable::FRAGMENTATION, mtu as u32),
            (IcmpError::TooBig(mtu), true) => (v6::TOO_BIG, 0, mtu as u32),
            (IcmpError::TimeExceeded, false) => (v4::TIME_EXCEEDED, 0, 0),
            (IcmpError::TimeExceeded, true) => (v6::TIME_EXCEEDED, 0, 0),
            (IcmpError::ReassemblyTime, false) => (v4::TIME_EXCEEDED, 1, 0),
            (IcmpError::ReassemblyTime, true) => (v6::TIME_EXCEEDED, 1, 0),
        };
        IcmpQuote { ty, code, rest }
    }
}
