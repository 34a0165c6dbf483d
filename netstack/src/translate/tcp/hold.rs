//! Bytes of the guest that the host socket has not taken: in order (the socket is full), and behind a gap.

use crate::wire::tcp::Seq;
use std::collections::VecDeque;

/// What is held for one flow.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// In order, accepted, to be sent to the host.
    pub(super) queue: VecDeque<u8>,
    /// Beyond a gap: disjoint, sorted.
    pieces: Vec<(Seq, Vec<u8>)>,
    /// Bytes in `pieces`.
    out_of_order: u32,
    /// Where the FIN stands that came with the last piece.
    pub(super) fin: Option<Seq>,
}

impl Hold {
    /// From what is held in order, and beyond a gap (disjoint, sorted, not empty).
    pub(super) fn from_parts(queue: VecDeque<u8>, pieces: Vec<(Seq, Vec<u8>)>, fin: Option<Seq>) -> Self {
        let out_of_order = pieces.iter().map(|(_, d)| d.len() as u32).sum();
        Hold { queue, pieces, out_of_order, fin }
    }

    /// What is held beyond a gap.
    pub(super) fn pieces(&self) -> &[(Seq, Vec<u8>)] {
        &self.pieces
    }

    /// Bytes held out of order.
    pub(super) fn out_of_order(&self) -> u32 {
        self.out_of_order
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.pieces.is_empty()
    }

    /// Keeps `data` that starts at `seq`, behind a gap; bytes already kept win. Returns how many bytes were new,
    /// or `None` if the piece would exceed `limit` or make more than 64 pieces: then nothing is kept.
    pub(super) fn insert(&mut self, seq: Seq, data: &[u8], limit: u32) -> Option<u32> {
        if self.out_of_order as usize + data.len() > limit as usize || self.pieces.len() >= 64 {
            return None;
        }
        let (mut start, end) = (seq, seq + data.len() as u32);
        let mut added = 0;
        let mut i = 0;
        while start.before(end) {
            match self.pieces.get(i) {
                Some((s, d)) if (*s + d.len() as u32).at_or_after(start) && start.at_or_after(*s) => {
                    start = start.max(*s + d.len() as u32);
                    i += 1;
                }
                Some((s, _)) if s.before(start) => i += 1,
                next => {
                    let stop = match next {
                        Some((s, _)) if s.before(end) => *s,
                        _ => end,
                    };
                    let part = data[start.minus(seq) as usize..stop.minus(seq) as usize].to_vec();
                    added += part.len() as u32;
                    self.pieces.insert(i, (start, part));
                    start = stop;
                    i += 1;
                }
            }
        }
        self.out_of_order += added;
        Some(added)
    }

    /// Takes the piece that continues at `next`, without the part before it; pieces wholly before it are thrown away.
    pub(super) fn take(&mut self, next: Seq) -> Option<Vec<u8>> {
        while let Some((s, _)) = self.pieces.first() {
            if s.after(next) {
                return None;
            }
            let (s, mut d) = self.pieces.remove(0);
            self.out_of_order -= d.len() as u32;
            let skip = next.minus(s) as usize;
            if skip < d.len() {
                d.drain(..skip);
                return Some(d);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Pieces in any order, overlapping and doubled, around the wrap of sequence numbers, give the stream.
        #[test]
        fn pieces_in_any_order_give_the_stream(parts in proptest::collection::vec((0usize..200, 1usize..60), 1..60), base: u32) {
            let stream: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
            let mut h = Hold::default();
            let mut seen = vec![false; 300];
            for (at, len) in parts {
                let end = (at + len).min(300);
                let before = h.out_of_order();
                if let Some(added) = h.insert(Seq(base) + at as u32, &stream[at..end], 10_000) {
                    let new = (at..end).filter(|&i| !seen[i]).count() as u32;
                    prop_assert_eq!(added, new);
                    seen[at..end].fill(true);
                } else {
                    prop_assert_eq!(before, h.out_of_order());
                }
            }
            let mut next = 0;
            while next < 300 {
                match h.take(Seq(base) + next as u32) {
                    Some(d) => {
                        prop_assert_eq!(&d[..], &stream[next..next + d.len()]);
                        prop_assert!(seen[next..next + d.len()].iter().all(|&s| s));
                        next += d.len();
                    }
                    None => {
                        prop_assert!(!seen[next]);
                        next += 1;
                    }
                }
            }
            prop_assert_eq!(h.out_of_order(), 0);
        }
    }

    #[test]
    fn more_than_the_limit_is_not_kept() {
        let mut h = Hold::default();
        assert_eq!(h.insert(Seq(10), &[0; 50], 60), Some(50));
        assert_eq!(h.insert(Seq(100), &[0; 20], 60), None);
        assert_eq!(h.out_of_order(), 50);
    }
}
