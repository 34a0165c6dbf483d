//! What a router did, in a form that can be compared.

use super::frames::{addresses, header};
use super::{ROUTER_MAC, Side};
use crate::wire::{ethertype, internet_checksum, transport_checksum};
use std::collections::BTreeMap;

/// A packet that came out. Checksums are replaced by what they are off by, so that a port that was chosen by chance changes
/// nothing else; the identification of packets that the router made itself is blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where.
    pub side: Side,
    /// The IP packet.
    pub packet: Vec<u8>,
}

/// Length of the IP packet at the start of `p` by its own header.
fn ip_len(p: &[u8]) -> Option<usize> {
    let n = match p.first()? >> 4 {
        4 => usize::from(u16::from_be_bytes([*p.get(2)?, *p.get(3)?])),
        6 => 40 + usize::from(u16::from_be_bytes([*p.get(4)?, *p.get(5)?])),
        _ => return None,
    };
    (n >= 20).then_some(n)
}

/// The IP packet in a frame of the router's; `None` if it is none, or one of those that routers send by themselves (neighbour
/// discovery, group membership). Padding is cut off.
pub(super) fn packet(side: Side, frame: &[u8]) -> Option<Vec<u8>> {
    let (head, p) = frame.split_at_checked(14)?;
    let kind = u16::from_be_bytes([head[12], head[13]]);
    if !matches!(kind, ethertype::IPV4 | ethertype::IPV6) {
        return None;
    }
    if kind == ethertype::IPV6 {
        let (at, protocol) = header(p);
        if protocol == 58 && matches!(p.get(at), Some(130..=136 | 143)) {
            return None;
        }
    }
    assert_eq!(head[..6], side.mac(), "frame for another node: {frame:02x?}");
    assert_eq!(head[6..12], ROUTER_MAC, "frame of another node: {frame:02x?}");
    let n = ip_len(p)?;
    p.get(..n).map(<[u8]>::to_vec)
}

/// Puts pieces of one packet together again: how a router cuts what it had put together is its own affair.
pub(super) fn join(mut out: Vec<(Side, Vec<u8>)>) -> Vec<(Side, Vec<u8>)> {
    let piece = |p: &[u8]| {
        let b = |n: usize| u16::from_be_bytes([p[n], p[n + 1]]);
        if p[0] >> 4 == 4 {
            let (offset, more) = ((b(6) & 0x1fff) * 8, b(6) & 0x2000 != 0);
            (offset != 0 || more).then_some((u32::from(b(4)), usize::from(offset)))
        } else {
            (p[6] == 44).then(|| (u32::from(b(44)) << 16 | u32::from(b(46)), usize::from(b(42) & !7)))
        }
    };
    type Pieces = Vec<(usize, Vec<u8>)>;
    let mut whole: Vec<(Side, Vec<u8>)> = Vec::new();
    let mut parts: BTreeMap<(Side, u32), Pieces> = BTreeMap::new();
    for (side, p) in out.drain(..) {
        match piece(&p) {
            Some((id, offset)) => parts.entry((side, id)).or_default().push((offset, p)),
            None => whole.push((side, p)),
        }
    }
    for ((side, _), mut pieces) in parts {
        pieces.sort();
        let mut p = Vec::new();
        for (_, piece) in &pieces {
            match piece[0] >> 4 {
                4 if p.is_empty() => p.extend_from_slice(piece),
                4 => p.extend_from_slice(&piece[20..]),
                _ if p.is_empty() => {
                    p.extend_from_slice(&piece[..40]);
                    p[6] = piece[40];
                    p.extend_from_slice(&piece[48..]);
                }
                _ => p.extend_from_slice(&piece[48..]),
            }
        }
        let v4 = p[0] >> 4 == 4;
        let n = if v4 { p.len() } else { p.len() - 40 } as u16;
        let at = if v4 { 2 } else { 4 };
        p[at..at + 2].copy_from_slice(&n.to_be_bytes());
        if v4 {
            p[6..8].fill(0);
            p[10..12].fill(0);
            let sum = internet_checksum(&[&p[..20]]);
            p[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        whole.push((side, p));
    }
    whole
}

/// Brings a packet into comparable form. `sent` is what caused it.
pub(super) fn seen(side: Side, packet: &[u8], sent: &[u8]) -> Seen {
    let mut p = packet.to_vec();
    if p[0] >> 4 == 4 {
        let ihl = usize::from(p[0] & 15) * 4;
        let off = fold(internet_checksum(&[&p[..ihl.min(packet.len())]]));
        p[10..12].copy_from_slice(&off.to_be_bytes());
        // The kernel numbers its own packets by chance; ours are free to.
        if p[4..6] != sent[4..6] {
            p[4..6].fill(0);
        }
        p[6] &= 0x5f;
    }
    let (at, protocol) = header(&p);
    if let Some(sum) = checksum_at(protocol).map(|n| at + n).filter(|n| n + 2 <= p.len()) {
        let none = protocol == 17 && p[sum..sum + 2] == [0, 0];
        let (src, dst) = addresses(packet);
        let off = if none { 0x5555 } else { fold(transport_checksum(src, dst, protocol, &packet[at..])) };
        p[sum..sum + 2].copy_from_slice(&off.to_be_bytes());
    }
    if let Some(inner) = quoted(&p).filter(|n| p[*n] >> 4 == 4) {
        // What is quoted may be one of the router's own.
        let ihl = usize::from(p[inner] & 15) * 4;
        let off = p.get(inner..inner + ihl).map_or(0x5555, |h| fold(internet_checksum(&[h])));
        p[inner + 10..inner + 12].copy_from_slice(&off.to_be_bytes());
        p[inner + 4..inner + 6].fill(0);
    }
    if let Some(inner) = quoted(&p) {
        // The checksum covers an identifier that was cut off, and may have been chosen by chance.
        let (at, protocol) = header(&p[inner..]);
        let error =
            if protocol == 1 { matches!(p.get(inner + at), Some(3 | 4 | 5 | 11 | 12)) } else { p.get(inner + at) < Some(&128) };
        if matches!(protocol, 1 | 58) && error && p.len() > inner + at + 2 {
            // An error about an error: what that one quoted was not changed any more, and is as it was chosen.
            p[inner + at + 2..].fill(0);
        } else if matches!(protocol, 1 | 58) && (4..6).contains(&(p.len() - inner - at)) {
            p[inner + at + 2..inner + at + 4].fill(0);
        }
    }
    Seen { side, packet: p }
}

/// Where the packet quoted by an ICMP error begins, if its IP header is there.
pub(super) fn quoted(p: &[u8]) -> Option<usize> {
    let (at, protocol) = header(p);
    let error = match protocol {
        1 => matches!(p.get(at), Some(3 | 4 | 5 | 11 | 12)),
        58 => matches!(p.get(at), Some(1..=4)),
        _ => false,
    };
    let least = if protocol == 1 { 20 } else { 40 };
    (error && p.len() >= at + 8 + least).then_some(at + 8)
}

/// Where a protocol keeps its checksum.
fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 => Some(6),
        1 | 58 => Some(2),
        _ => None,
    }
}

/// The two forms of zero in one.
fn fold(sum: u16) -> u16 {
    if sum == 0xffff { 0 } else { sum }
}

/// Places of ports and identifiers in a packet, that of a packet quoted by an ICMP error included, with the protocol and the
/// place of the checksum that covers them (only of the quoted one, whose value is not replaced).
pub(super) fn ports(p: &[u8]) -> Vec<(u8, usize, Option<usize>)> {
    let mut all = Vec::new();
    let (at, protocol) = header(p);
    places(p, at, protocol, false, &mut all);
    if let Some(start) = quoted(p) {
        let (inner, protocol) = header(&p[start..]);
        places(p, start + inner, protocol, true, &mut all);
    }
    all
}

fn places(p: &[u8], at: usize, protocol: u8, quoted: bool, all: &mut Vec<(u8, usize, Option<usize>)>) {
    let sum = checksum_at(protocol).map(|n| at + n).filter(|n| quoted && n + 2 <= p.len());
    let mut add = |n: usize| {
        if at + n + 2 <= p.len() {
            all.push((protocol, at + n, sum));
        }
    };
    match protocol {
        6 | 17 => {
            add(0);
            add(2);
        }
        1 | 58 if matches!(p.get(at), Some(0 | 8 | 13..=18 | 128 | 129)) => add(4),
        _ => {}
    }
}

/// A line of `conntrack -L -o extended`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Everything but the time-out and the number of users.
    pub words: Vec<String>,
    /// Seconds left; `None` where the tool prints none.
    pub timeout: Option<u64>,
}

/// The entries of a listing, in an order that does not depend on the table's.
pub(super) fn entries(listing: &str) -> Vec<Entry> {
    let mut all: Vec<Entry> = listing
        .lines()
        .filter(|l| !l.trim().is_empty())
        .map(|line| {
            let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let timeout = words.get(4).and_then(|w| w.parse().ok());
            if timeout.is_some() {
                words.remove(4);
            }
            words.retain(|w| !w.starts_with("use=") && !w.starts_with("id=0x"));
            Entry { words, timeout }
        })
        .collect();
    all.sort();
    all
}

/// The lines of a saved ruleset by table, without comments.
pub fn tables(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        if let Some(name) = line.strip_prefix('*') {
            table = name.to_owned();
        }
        all.entry(table.clone()).or_default().push(line.to_owned());
    }
    all
}
