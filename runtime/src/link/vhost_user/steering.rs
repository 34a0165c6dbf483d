//! On which pair of queues a frame goes to the guest: the one by which the guest sends what belongs to the same flow, so that one of its processors has both
//! (as a Linux TAP's "automatic receive steering" and virtio 1.3 section 5.1.6.5.5 have it).

use std::sync::atomic::{AtomicU8, Ordering};

/// Flows that can be told apart; others share an entry, and with it a queue.
const FLOWS: usize = 1024;

/// What was learned, by the hash of a flow: a pair's number and one, or 0. A guest can spoil it for nobody but itself.
#[derive(Debug)]
pub struct Steering(Box<[AtomicU8]>);

impl Default for Steering {
    fn default() -> Steering {
        Steering((0..FLOWS).map(|_| AtomicU8::new(0)).collect())
    }
}

impl Steering {
    fn entry(&self, hash: u32) -> &AtomicU8 {
        &self.0[hash as usize % FLOWS]
    }

    /// The guest has sent a frame of this flow by a pair, of which there are fewer than 255.
    pub fn learn(&self, hash: u32, pair: usize) {
        let (entry, new) = (self.entry(hash), pair as u8 + 1);
        // Read first: pairs that are served by several threads would take the line from each other.
        if entry.load(Ordering::Relaxed) != new {
            entry.store(new, Ordering::Relaxed);
        }
    }

    /// The pair by which a frame of this flow goes to the guest, one of those by which it receives now; `None` if there are none.
    pub fn choose(&self, hash: u32, active: &[u8]) -> Option<usize> {
        let known = self.entry(hash).load(Ordering::Relaxed).checked_sub(1).filter(|p| active.contains(p));
        // The high bits: the low ones have chosen the entry.
        let any = || Some(active[(hash >> 16) as usize % active.len()]);
        known.or_else(|| if active.is_empty() { None } else { any() }).map(usize::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_answered_where_it_speaks() {
        let s = Steering::default();
        s.learn(5, 2);
        assert_eq!(s.choose(5, &[0, 1, 2]), Some(2));
        s.learn(5, 0);
        assert_eq!(s.choose(5, &[0, 1, 2]), Some(0));
        s.learn(5, 2);
        assert_eq!(s.choose(5, &[1]), Some(1), "that one is not there any more");
        assert_eq!(s.choose(5, &[]), None);
    }

    #[test]
    fn flows_that_never_spoke_are_spread() {
        let s = Steering::default();
        let mut seen = [0; 4];
        for hash in (0..4000u32).map(|n| n.wrapping_mul(0x9e37_79b9)) {
            seen[s.choose(hash, &[0, 1, 2, 3]).unwrap()] += 1;
        }
        assert!(seen.iter().all(|n| *n > 500), "{seen:?}");
    }
}
