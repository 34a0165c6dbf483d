//! What a kernel behind the link does with a frame: it completes the checksum and cuts super-segments.

use super::checksum::{internet_checksum, transport_checksum};
use crate::link::Captured;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use hibernet_netstack::edge::GsoKind;

/// The frames that the guest sees of a captured one.
///
/// # Panics
/// If the partial checksum is not the pseudo-header's sum, or a super-segment is not what its kind says.
pub fn complete(c: &Captured) -> Vec<Vec<u8>> {
    let Some(partial) = c.checksum else {
        return vec![c.bytes.clone()];
    };
    let at = usize::from(partial.start);
    let field = at + usize::from(partial.offset);
    let (src, dst, protocol) = addresses(&c.bytes);
    // The field holds the folded sum of the pseudo-header, not inverted.
    let mut empty = c.bytes[at..].to_vec();
    empty[usize::from(partial.offset)..][..2].fill(0);
    let full = transport_checksum(src, dst, protocol, &empty);
    let mut frame = c.bytes.clone();
    let completed = match internet_checksum(&[&frame[at..]]) {
        0 if protocol == 17 => 0xffff,
        s => s,
    };
    assert!(
        completed == full || (completed == 0xffff && full == 0),
        "the partial checksum does not lead to the whole one: {completed:#06x}, not {full:#06x}"
    );
    frame[field..field + 2].copy_from_slice(&completed.to_be_bytes());
    match c.gso {
        None => vec![frame],
        Some(g) => cut(&frame, at, g.kind, usize::from(g.size)),
    }
}

fn addresses(f: &[u8]) -> (IpAddr, IpAddr, u8) {
    if f[12..14] == [0x86, 0xdd] {
        let a = |at: usize| IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&f[at..at + 16]).expect("16 bytes")));
        (a(22), a(38), f[20])
    } else {
        let a = |at: usize| IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&f[at..at + 4]).expect("4 bytes")));
        (a(26), a(30), f[23])
    }
}

fn cut(f: &[u8], l4: usize, kind: GsoKind, size: usize) -> Vec<Vec<u8>> {
    let v6 = f[12..14] == [0x86, 0xdd];
    let (src, dst, protocol) = addresses(f);
    let want = match kind {
        GsoKind::Tcp4 => (false, 6),
        GsoKind::Tcp6 => (true, 6),
        GsoKind::Udp => (v6, 17),
    };
    assert_eq!((v6, protocol), want, "a super-segment of another kind than it says");
    let head = if protocol == 6 { l4 + usize::from(f[l4 + 12] >> 4) * 4 } else { l4 + 8 };
    let pieces: Vec<&[u8]> = f[head..].chunks(size).collect();
    let last = pieces.len().saturating_sub(1);
    let mut out = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let mut p = f[..head].to_vec();
        p.extend_from_slice(piece);
        let ip_len = (p.len() - 14) as u16;
        if v6 {
            p[18..20].copy_from_slice(&(ip_len - 40).to_be_bytes());
        } else {
            p[16..18].copy_from_slice(&ip_len.to_be_bytes());
            let ident = u16::from_be_bytes([p[18], p[19]]).wrapping_add(i as u16);
            p[18..20].copy_from_slice(&ident.to_be_bytes());
            p[24..26].fill(0);
            let sum = internet_checksum(&[&p[14..l4]]);
            p[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        if protocol == 6 {
            let seq = u32::from_be_bytes(p[l4 + 4..l4 + 8].try_into().expect("4 bytes")).wrapping_add((i * size) as u32);
            p[l4 + 4..l4 + 8].copy_from_slice(&seq.to_be_bytes());
            if i != last {
                // FIN and PSH belong to the last segment only.
                p[l4 + 13] &= !0x09;
            }
        } else {
            let len = (p.len() - l4) as u16;
            p[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
        }
        let at = if protocol == 6 { l4 + 16 } else { l4 + 6 };
        p[at..at + 2].fill(0);
        let sum = match transport_checksum(src, dst, protocol, &p[l4..]) {
            0 if protocol == 17 => 0xffff,
            s => s,
        };
        p[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        out.push(p);
    }
    out
}
