//! Packets in words.

use super::frames::{addresses, header};
use core::fmt::Write;

/// One line about an IP packet, with what an ICMP error quotes.
pub(super) fn packet(p: &[u8]) -> String {
    let mut s = String::new();
    write(p, 0, &mut s);
    write!(s, " | {}", p.iter().map(|b| format!("{b:02x}")).collect::<String>()).ok();
    s
}

fn write(p: &[u8], depth: u8, s: &mut String) {
    if p.len() < 20 || p[0] >> 4 == 6 && p.len() < 40 {
        *s += "too short";
        return;
    }
    let (src, dst) = addresses(p);
    let (at, protocol) = header(p);
    let b = p.get(at..).unwrap_or(&[]);
    let n = |i: usize| b.get(i..i + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let long = |i: usize| u32::from(n(i)) << 16 | u32::from(n(i + 2));
    let ttl = if p[0] >> 4 == 4 { p[8] } else { p[7] };
    match protocol {
        6 => {
            let flags = b.get(13).copied().unwrap_or(0);
            let names: String = "FSRPAUEC".chars().enumerate().filter(|(i, _)| flags >> i & 1 != 0).map(|(_, c)| c).collect();
            let (sp, dp, seq, ack, win) = (n(0), n(2), long(4), long(8), n(14));
            write!(s, "{src}:{sp} > {dst}:{dp} TCP {names} seq {seq} ack {ack} win {win}").ok();
        }
        17 => write!(s, "{src}:{} > {dst}:{} UDP", n(0), n(2)).unwrap_or(()),
        1 | 58 => {
            let (ty, code) = (b.first().copied().unwrap_or(0), b.get(1).copied().unwrap_or(0));
            write!(s, "{src} > {dst} ICMP {ty}/{code} rest {:#010x}", long(4)).ok();
            let error = if protocol == 1 { matches!(ty, 3 | 4 | 5 | 11 | 12) } else { ty < 5 };
            if error && depth == 0 && b.len() > 8 {
                *s += " [";
                write(&b[8..], 1, s);
                *s += "]";
            }
        }
        other => write!(s, "{src} > {dst} protocol {other}").unwrap_or(()),
    }
    write!(s, " ttl {ttl} len {}", p.len()).ok();
}
