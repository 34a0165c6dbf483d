//! Which address of a range a connection gets.

use super::mapping::Mapping;
use super::{Manip, NatRange};
use crate::conntrack::Addr;

/// Whether the source address is in the range, if there is one.
pub(super) fn in_range(mapping: &Mapping, range: &NatRange) -> bool {
    range.addrs.is_none_or(|(first, last)| (Addr::from(first)..=Addr::from(last)).contains(&mapping.addr(Manip::Source)))
}

/// Puts an address of the range into the mapping.
///
/// The choice is a function of source and destination address and zone (`--persistent`: of the source alone), without
/// any state or secret: it is the same after a restart or restore, and the same as on a little-endian Linux.
pub(super) fn choose(mapping: &mut Mapping, manip: Manip, range: &NatRange, zone: u16) {
    let Some((first, last)) = range.addrs.map(|(a, b)| (Addr::from(a), Addr::from(b))) else { return };
    if first == last {
        return mapping.set_addr(manip, first);
    }
    let v6 = mapping.is_v6();
    let words = if v6 { 0..4 } else { 3..4 };
    let source = mapping.addr(Manip::Source);
    let mut key = [0; 4];
    for (k, w) in key.iter_mut().zip(&source.0[words.clone()]) {
        *k = w.swap_bytes();
    }
    let seed = if range.persistent { 0 } else { mapping.addr(Manip::Destination).0[3].swap_bytes() ^ u32::from(zone) };
    let mut hash = lookup3(key, seed);
    let mut chosen = first;
    // Words behind one that is below its last value may take any value.
    let mut free = false;
    for i in words {
        let (low, count) = if free { (0, u32::MAX) } else { (first.0[i], (last.0[i].wrapping_sub(first.0[i])).wrapping_add(1)) };
        let step = ((u64::from(hash) * u64::from(count)) >> 32) as u32;
        chosen.0[i] = low.wrapping_add(step);
        free |= chosen.0[i] != last.0[i];
        if !range.persistent {
            let at = if manip == Manip::Destination { chosen } else { mapping.addr(Manip::Destination) };
            hash ^= at.0[i].swap_bytes();
        }
    }
    mapping.set_addr(manip, chosen);
}

/// Bob Jenkins' lookup3 (public domain) of four words.
fn lookup3(k: [u32; 4], seed: u32) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(16).wrapping_add(seed);
    let (mut a, mut b, mut c) = (start.wrapping_add(k[0]), start.wrapping_add(k[1]), start.wrapping_add(k[2]));
    for (r, s, t) in [(4, 6, 8), (16, 19, 4)] {
        a = a.wrapping_sub(c) ^ c.rotate_left(r);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(s);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(t);
        b = b.wrapping_add(a);
    }
    a = a.wrapping_add(k[3]);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
