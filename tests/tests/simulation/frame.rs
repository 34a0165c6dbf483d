//! Frames read again, for the driver's books.

use core::net::IpAddr;
use hibernet_tests::wire::{self, L4, Net};

/// A TCP segment, whose checksum need not be there.
pub fn tcp_of(frame: &[u8]) -> Option<(IpAddr, IpAddr, wire::TcpSegment)> {
    let mut f = frame.to_vec();
    let (at, protocol) = match f.get(12..14)? {
        [0x08, 0x00] => (34, f[23]),
        [0x86, 0xdd] => (54, f[20]),
        _ => return None,
    };
    if protocol != 6 {
        return None;
    }
    let addr = |at: usize| -> IpAddr {
        match protocol_family(frame) {
            4 => <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap().into(),
            _ => <[u8; 16]>::try_from(&frame[at..at + 16]).unwrap().into(),
        }
    };
    let (src, dst) = if at == 34 { (addr(26), addr(30)) } else { (addr(22), addr(38)) };
    let end = if at == 34 { 14 + usize::from(u16::from_be_bytes([f[16], f[17]])) } else { f.len() };
    f[at + 16..at + 18].fill(0);
    let sum = wire::transport_checksum(src, dst, 6, &f[at..end]);
    f[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
    match wire::parse(&f).ok()?.net {
        Net::Ip { src, dst, l4: L4::Tcp(t), .. } => Some((src, dst, t)),
        _ => None,
    }
}

fn protocol_family(frame: &[u8]) -> u8 {
    frame[14] >> 4
}

pub fn udp_payload(frame: &[u8]) -> Option<Vec<u8>> {
    let udp = match frame.get(12..14)? {
        [0x08, 0x00] => frame.get(23) == Some(&17),
        [0x86, 0xdd] => frame.get(20) == Some(&17),
        _ => false,
    };
    if !udp {
        return None;
    }
    match wire::parse(frame).ok()?.net {
        Net::Ip { l4: L4::Udp { data, .. }, .. } => Some(data),
        _ => None,
    }
}
