//! Round-trip time and retransmission time-out, RFC 6298.

use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Shortest time-out. RFC 6298 says one second; 200 ms is what Linux peers use.
const MIN: Duration = Duration::from_millis(200);
/// Time-out before the first measurement.
const INITIAL: Duration = Duration::from_secs(1);
/// Longest time-out.
pub(super) const MAX: Duration = Duration::from_secs(60);

/// Estimator of one direction of one flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rtt {
    /// Smoothed round-trip time and its variation in microseconds; 0 before the first sample.
    smoothed: u32,
    variation: u32,
}

impl Rtt {
    /// Takes a measurement in (RFC 6298 sections 2.2 and 2.3).
    pub(super) fn sample(&mut self, rtt: Duration) {
        let r = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX / 16).clamp(1, u32::MAX / 16);
        if self.smoothed == 0 {
            self.smoothed = r;
            self.variation = r / 2;
        } else {
            self.variation = self.variation - self.variation / 4 + self.smoothed.abs_diff(r) / 4;
            self.smoothed = (self.smoothed - self.smoothed / 8 + r / 8).max(1);
        }
    }

    /// Whether samples can have led to it.
    pub(super) fn is_sane(&self) -> bool {
        self.smoothed <= u32::MAX / 16 && self.variation <= u32::MAX / 16
    }

    /// The time-out after `backoff` doublings.
    pub(super) fn rto(&self, backoff: u8) -> Duration {
        let base = match self.smoothed {
            0 => INITIAL,
            s => Duration::from_micros(u64::from(s) + 4 * u64::from(self.variation)).max(MIN),
        };
        base.saturating_mul(1 << backoff.min(16)).min(MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_out_follows_the_samples_within_its_bounds() {
        let mut r = Rtt::default();
        assert_eq!(r.rto(0), INITIAL);
        assert_eq!(r.rto(2), INITIAL * 4);
        r.sample(Duration::from_micros(50));
        assert_eq!(r.rto(0), MIN);
        for _ in 0..50 {
            r.sample(Duration::from_millis(400));
        }
        assert!(r.rto(0) > Duration::from_millis(400) && r.rto(0) < Duration::from_millis(600), "{:?}", r.rto(0));
        assert_eq!(r.rto(255), MAX);
    }
}
