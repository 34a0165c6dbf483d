//! `statistic`.

use crate::iptables::Inv;
use crate::rng::Rng;
use core::sync::atomic::{AtomicU32, Ordering};

/// `--mode random`: a probability in units of 2^-31.
pub(super) fn random(p: &Inv<u32>, rng: &mut Rng) -> bool {
    ((rng.u32() & 0x7fff_ffff) < p.value) != p.not
}

/// `--mode nth`: a counter shared by all workers.
#[derive(Debug)]
pub(in crate::iptables) struct Nth {
    last: u32,
    not: bool,
    count: AtomicU32,
}

impl Nth {
    /// Fits every `every`th packet, first number `packet`, counted from 0.
    pub(super) fn new(every: u32, packet: u32, not: bool) -> Self {
        let last = every.saturating_sub(1);
        Nth { last, not, count: AtomicU32::new(last.saturating_sub(packet)) }
    }

    /// Packets counted in this round.
    pub(super) fn memory(&self) -> u64 {
        self.count.load(Ordering::Relaxed).into()
    }

    /// Goes on from [`Nth::memory`].
    pub(super) fn recall(&self, word: u64) {
        self.count.store((word as u32).min(self.last), Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> bool {
        let next = |n: u32| if n == self.last { 0 } else { n.wrapping_add(1) };
        // The closure always gives a value.
        let (Ok(n) | Err(n)) = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(next(n)));
        (next(n) == 0) != self.not
    }
}
