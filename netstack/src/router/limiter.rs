//! Rate limits.

use crate::time::Time;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    interval: Duration,
    burst: u32,
    tokens: u32,
    last: Time,
}

impl RateLimit {
    /// One token per `interval`, at most `burst` saved up.
    pub(crate) const fn new(interval: Duration, burst: u32) -> Self {
        RateLimit { interval, burst, tokens: burst, last: Time::ZERO }
    }

    /// For ICMP errors: 1,000 a second, bursts of 200.
    pub(crate) const fn icmp() -> Self {
        RateLimit::new(Duration::from_millis(1), 200)
    }

    /// For questions after a neighbour: one a second, bursts of 3 (RETRANS_TIMER and MAX_MULTICAST_SOLICIT of RFC 4861).
    pub(crate) const fn neighbour() -> Self {
        RateLimit::new(Duration::from_secs(1), 3)
    }

    /// Goes on with what was saved up before; the limit itself stays this one.
    pub(crate) fn restore(&mut self, saved: RateLimit) {
        (self.tokens, self.last) = (saved.tokens.min(self.burst), saved.last);
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Time) -> bool {
        let gained = now.since(self.last).as_nanos() / self.interval.as_nanos();
        if gained > 0 {
            self.tokens = self.burst.min(self.tokens.saturating_add(u32::try_from(gained).unwrap_or(u32::MAX)));
            self.last = now;
        }
        let some = self.tokens > 0;
        self.tokens -= u32::from(some);
        some
    }
}
