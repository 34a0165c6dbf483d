//! The clock: host time turned into stack time.

use hibernet_netstack::Time;
use std::time::Instant;

/// Stack time as the host's monotonic clock moves it on. Time for which the machine is suspended does not count.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Stack time 0 is now.
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Stack time now.
    pub fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
