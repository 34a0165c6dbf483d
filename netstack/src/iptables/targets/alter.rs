//! Targets that change headers.

use crate::iptables::{Alter, Env, HopChange, Outcome};
use crate::nat::MSS_LEN;
use crate::packet::L4;
use crate::skb::{NewMss, Skb};
use crate::verdict::DropReason;
use crate::wire::{be16, ipv4, ipv6, tcp};

/// Longest TCP header.
const LONGEST: u8 = 60;
/// What a SYN without a segment size is taken to say, by family; a new option says no more.
const LEAST_MSS: [u16; 2] = [536, 1220];

/// Does it. `None` to go on with the next rule.
pub(super) fn alter(a: &Alter, skb: &mut Skb<'_>, env: &Env<'_>) -> Option<Outcome> {
    match *a {
        Alter::HopLimit(change) => {
            let now = skb.hop_limit;
            skb.hop_limit = match change {
                HopChange::Set(n) => n,
                HopChange::Add(n) => now.saturating_add(n),
                HopChange::Subtract(n) => now.saturating_sub(n),
            };
        }
        Alter::Tos { value, mask } => skb.tos = (skb.tos & !mask) ^ value,
        Alter::Dscp(dscp) => skb.tos = skb.tos & 3 | dscp << 2,
        Alter::Checksum => skb.altered.whole_checksum = true,
        Alter::Mss(Some(mss)) => return segment_size(mss, skb),
        Alter::Mss(None) => {
            let headers = tcp::HEADER_LEN + if skb.is_v6() { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
            let mtu = |on: Option<_>| on.map_or(u32::MAX, |on| env.addrs.mtu(on));
            // The narrower of the ways there and back.
            let mtu = mtu(skb.output).min(mtu(env.addrs.way(skb.src)));
            match mtu.checked_sub(headers as u32).filter(|room| *room > 0) {
                Some(room) => return segment_size(room.min(u16::MAX.into()) as u16, skb),
                None => return Some(Outcome::Drop(DropReason::Rule)),
            }
        }
    }
    None
}

/// Has a SYN say no larger segment size than `mss` (xt_TCPMSS.c). A header that cannot be is the end of the packet.
fn segment_size(mss: u16, skb: &mut Skb<'_>) -> Option<Outcome> {
    let L4::Tcp(h, _) = &skb.l4 else { return None };
    let header_len = usize::from(h.header_len);
    if header_len < tcp::HEADER_LEN || skb.l4_bytes.len() < header_len || skb.l4_len < header_len as u32 {
        return Some(Outcome::Drop(DropReason::Malformed));
    }
    let before = skb.altered.mss.map(|new| new.value);
    let said = before.or_else(|| tcp::mss_option(skb.l4_bytes).map(|at| be16(skb.l4_bytes, at + 2)));
    if let Some(said) = said {
        if said > mss {
            let added = skb.altered.mss.is_some_and(|new| new.added);
            skb.altered.mss = Some(NewMss { value: mss, added });
        }
        return None;
    }
    // There is no room for one before data, nor in a full header.
    if skb.l4_len > header_len as u32 || h.header_len >= LONGEST {
        return None;
    }
    skb.altered.mss = Some(NewMss { value: mss.min(LEAST_MSS[usize::from(skb.is_v6())]), added: true });
    skb.len += MSS_LEN as u32;
    skb.l4_len += MSS_LEN as u32;
    None
}
