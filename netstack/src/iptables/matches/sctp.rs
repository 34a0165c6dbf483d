//! `sctp`: ports and chunks.

use super::Answer;
use super::bytes::Bytes;
use super::transport::port;
use crate::iptables::{Bulk, ChunkRule, SctpChunks, SctpMatch};
use crate::skb::Skb;
use crate::wire::be16;

/// Length of the header before the chunks.
const HEADER_LEN: usize = 12;

/// Whether a packet fits.
pub(super) fn sctp(m: &SctpMatch, skb: &Skb<'_>, bulk: &dyn Bulk) -> Answer {
    let Some(h) = skb.l4_bytes.get(..HEADER_LEN) else { return Answer::Broken };
    if m.sport.is_some_and(|p| !port(&p, be16(h, 0))) || m.dport.is_some_and(|p| !port(&p, be16(h, 2))) {
        return Answer::No;
    }
    let Some(chunks) = &m.chunks else { return Answer::Yes };
    match fits(&chunks.value, &mut Bytes::new(skb, bulk), (skb.len - skb.l4_len.min(skb.len)) as usize + HEADER_LEN) {
        Some(fits) => (fits != chunks.not).into(),
        None => Answer::Broken,
    }
}

/// Whether the chunks from `at` on fit; `None` if they cannot be read.
fn fits(m: &SctpChunks, bytes: &mut Bytes<'_>, mut at: usize) -> Option<bool> {
    let mut missing = m.types;
    loop {
        let head = bytes.be32(at)?;
        let (ty, flags, len) = ((head >> 24) as u8, (head >> 16) as u8, head as u16);
        if len == 0 {
            return None;
        }
        at += usize::from(len).next_multiple_of(4);
        let listed = m.has(ty);
        let right = || m.flags.iter().find(|f| f.0 == ty).is_none_or(|(_, mask, set)| flags & mask == *set);
        match m.how {
            ChunkRule::Any if listed && right() => return Some(true),
            ChunkRule::All if listed && right() => missing[usize::from(ty / 64)] &= !(1 << (ty % 64)),
            ChunkRule::Only if !listed || !right() => return Some(false),
            _ => {}
        }
        if at >= bytes.len() {
            break;
        }
    }
    Some(match m.how {
        ChunkRule::Any => false,
        ChunkRule::All => missing == [0; 4],
        ChunkRule::Only => true,
    })
}
