//! Frames by hand: built, taken apart, and finished as a kernel would finish them.
//!
//! Nothing here uses the stack's own emitters, parsers or checksums.

mod build;
mod checksum;
mod offload;
mod parse;

pub use build::{Arp, Ip, TcpSegment, arp, echo, ethernet, icmp, udp};
pub use checksum::{internet_checksum, transport_checksum};
pub use offload::complete;
pub use parse::{Frame, L4, Net, ParseError, parse};

/// TCP control bits.
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// Acknowledgement.
    pub const ACK: u8 = 16;
    /// Urgent.
    pub const URG: u8 = 32;
}

/// MAC address of the guest in the kit.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// EtherTypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}
