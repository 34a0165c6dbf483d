//! `limit`: Linux's token bucket (xt_limit.c), in its units.

use super::seconds;
use crate::iptables::RateUnit;
use crate::time::Time;
use core::sync::atomic::{AtomicU64, Ordering};

/// Ticks per second in which Linux's bucket is filled; 250 as most distributions build it.
const HZ: u64 = 250;
/// Credits per tick: the largest power of two with which a packet per day still fits 32 bits.
const CREDITS_PER_TICK: u64 = 128;
/// What a rate of one per second is in the units of the rule: `XT_LIMIT_SCALE`.
const SCALE: u32 = 10_000;
/// Where credits start to be counted from, so that the bucket is full at the start of stack time.
const ORIGIN: u64 = 1 << 33;

/// A token bucket, shared by all workers.
///
/// The fill is `min(cap, now - empty)`: both it and the time it was true are one number, so taking a token is one exchange.
#[derive(Debug)]
pub(in crate::iptables) struct Limit {
    cost: u64,
    cap: u64,
    /// When the bucket was last empty, in credits.
    empty: AtomicU64,
}

/// Why a rate is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::iptables) enum LimitError {
    /// Above 10,000 per second.
    TooFast,
    /// Rate and burst together overflow the bucket.
    Overflow,
}

impl LimitError {
    /// What is wrong, and what to do.
    pub(in crate::iptables) const fn text(self) -> &'static str {
        match self {
            LimitError::TooFast => "the rate must be 1 to 10000 per second",
            LimitError::Overflow => "the burst is 0 or too large for the rate: lower it",
        }
    }
}

impl Limit {
    /// A full bucket. Linux refuses a burst of 0, and some bursts of rare packets, as its arithmetic has 32 bits.
    pub(in crate::iptables) fn new(rate: u32, unit: RateUnit, burst: u32) -> Result<Limit, LimitError> {
        let avg = match rate {
            0 => 0,
            _ => SCALE * seconds(unit) / rate,
        };
        if avg == 0 {
            return Err(LimitError::TooFast);
        }
        let (cost, cap) = (credits(avg), credits(avg.wrapping_mul(burst)));
        if burst == 0 || cap < cost {
            return Err(LimitError::Overflow);
        }
        Ok(Limit { cost: cost.into(), cap: cap.into(), empty: AtomicU64::new(0) })
    }

    /// When the bucket was last empty, in credits of stack time.
    pub(super) fn memory(&self) -> u64 {
        self.empty.load(Ordering::Relaxed)
    }

    /// Goes on from [`Limit::memory`].
    pub(super) fn recall(&self, word: u64) {
        self.empty.store(word, Ordering::Relaxed);
    }

    /// Takes a token if there is one.
    pub(super) fn take(&self, now: Time) -> bool {
        let now = ORIGIN + now.as_nanos() / (1_000_000_000 / HZ) * CREDITS_PER_TICK;
        let next = |empty: u64| {
            let fill = now.saturating_sub(empty).min(self.cap);
            (fill >= self.cost).then(|| now - (fill - self.cost))
        };
        self.empty.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// `user2credits`.
fn credits(user: u32) -> u32 {
    let per_second = (HZ * CREDITS_PER_TICK) as u32;
    if user > u32::MAX / per_second { (user / SCALE).wrapping_mul(per_second) } else { user * per_second / SCALE }
}
