//! Stack time: a monotonic count of nanoseconds that is handed in, never read.

use core::time::Duration;
use serde::{Deserialize, Serialize};

/// A point in stack time, in nanoseconds since the stack first started.
///
/// Stack time goes on after a restore where it stood at the freeze, so instants in saved state stay
/// meaningful; it has no relation to any clock of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(u64);

impl Time {
    /// The start of stack time.
    pub const ZERO: Time = Time(0);
    /// Later than every time that can be reached: "no deadline".
    pub const NEVER: Time = Time(u64::MAX);

    /// From nanoseconds of stack time.
    pub const fn from_nanos(ns: u64) -> Self {
        Time(ns)
    }

    /// From milliseconds of stack time.
    pub const fn from_millis(ms: u64) -> Self {
        Time(ms * 1_000_000)
    }

    /// Nanoseconds of stack time.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The first multiple of `grid` that is not earlier. Deadlines on a grid come up together.
    pub const fn round_up(self, grid: Duration) -> Time {
        match self.0.checked_next_multiple_of(grid.as_nanos() as u64) {
            Some(ns) => Time(ns),
            None => Time::NEVER,
        }
    }

    /// Time passed since `earlier`; zero if `earlier` is later.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Time {
    type Output = Time;

    /// Saturates at [`Time::NEVER`].
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}
