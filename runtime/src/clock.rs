//! The clock: host time turned into stack time.

use hibernet_netstack::Time;
use std::time::{Duration, Instant, SystemTime};

/// Stack time as the host's monotonic clock moves it on. Time for which the machine is suspended does not count, nor does time for which the
/// clock is stopped.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Stack time at `since`.
    from: Time,
    since: Instant,
    stopped: bool,
}

impl Clock {
    /// Stack time 0 is now.
    pub fn start() -> Self {
        Clock::start_at(Time::ZERO)
    }

    /// It is `now`.
    pub fn start_at(now: Time) -> Self {
        Clock { from: now, since: Instant::now(), stopped: false }
    }

    /// Stack time now.
    pub fn now(&self) -> Time {
        self.from + if self.stopped { Duration::ZERO } else { self.since.elapsed() }
    }

    /// Stops it, if it is not stopped already.
    pub fn stop(&mut self) {
        *self = Clock { stopped: true, ..Clock::start_at(self.now()) };
    }

    /// Lets it go on where it was stopped.
    pub fn go_on(&mut self) {
        *self = Clock::start_at(self.now());
    }
}

/// The wall clock: nanoseconds since 1970, 0 if it is set to earlier.
pub fn wall() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_goes_on_where_it_stood() {
        let mut c = Clock::start_at(Time::from_millis(5000));
        c.stop();
        let at = c.now();
        assert!(at >= Time::from_millis(5000));
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(2) {
            assert_eq!(c.now(), at);
        }
        c.stop();
        assert_eq!(c.now(), at);
        c.go_on();
        let resumed = Instant::now();
        let now = c.now();
        assert!(now >= at && now.since(at) <= resumed.elapsed() + Duration::from_millis(1), "{:?}", now.since(at));
    }
}
