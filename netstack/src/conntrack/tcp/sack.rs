//! Selective acknowledgements, RFC 2018.

use crate::wire::be32;
use crate::wire::tcp::Seq;

/// Options of most segments of a connection with time stamps: two of padding, and the time stamp.
const TIMESTAMP_ONLY: [u8; 4] = [1, 1, 8, 10];

/// The highest right edge among the blocks of the first SACK option, or `ack` if that is higher. `b` is the header's
/// option part. (`wire::tcp::Options` keeps four blocks and takes the last option; this is Linux's view.)
pub(super) fn highest_edge(mut b: &[u8], ack: Seq) -> Seq {
    if b.len() < 10 || b.len() == 12 && b[..4] == TIMESTAMP_ONLY {
        return ack;
    }
    while let [kind, rest @ ..] = b {
        match (kind, rest.first()) {
            (0, _) => break,
            (1, _) => {
                b = rest;
                continue;
            }
            (5, Some(&len)) if usize::from(len) <= b.len() && len >= 10 && (len - 2) % 8 == 0 => {
                let blocks = &b[2..usize::from(len)];
                return blocks.chunks_exact(8).map(|block| Seq(be32(block, 4))).fold(ack, Seq::max);
            }
            (_, Some(&len)) if len >= 2 && usize::from(len) <= b.len() => b = &b[usize::from(len)..],
            _ => break,
        }
    }
    ack
}
