//! The one timer of a worker.

use super::Worker;
use hibernet_netstack::Time;
use std::time::Duration;

impl Worker {
    /// Has the timer fire at `deadline`, unless it fires before anyway: then it is set again at that time.
    pub(super) fn arm(&mut self, now: Time, deadline: Option<Time>) {
        let at = match deadline {
            Some(at) if self.armed.is_none_or(|armed| at < armed) => at,
            _ => return self.silence(),
        };
        // A time of zero would switch it off.
        let after = at.since(now).max(Duration::from_nanos(1));
        match self.timer.reset(after, None) {
            Ok(()) => (self.armed, self.fired) = (Some(at), false),
            Err(e) => slog::error!(self.log, "cannot set the timer"; "error" => %e),
        }
    }

    /// The timer has fired. It is not read, which could wait if it was set again meanwhile: setting it, or switching it off,
    /// makes it unreadable too.
    pub(super) fn timer_fired(&mut self) {
        (self.armed, self.fired) = (None, true);
    }

    /// Switches a timer off that has fired and was not set again.
    pub(super) fn silence(&mut self) {
        if core::mem::take(&mut self.fired)
            && let Err(e) = self.timer.clear()
        {
            slog::error!(self.log, "cannot stop the timer"; "error" => %e);
        }
    }
}
