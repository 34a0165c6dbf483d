//! Whether anything moves: for those who put a network to sleep that nobody uses.

use super::Worker;
use hibernet_netstack::Time;
use std::time::Duration;

/// Somebody waits until nothing has moved for some time.
#[derive(Debug, Default)]
pub(super) struct IdleWatch {
    after: Option<Duration>,
    reached: Option<Duration>,
}

impl Worker {
    /// For how long no data and no connection has moved, in either direction. Keep-alives do not count, nor does time in which the worker
    /// stood still.
    pub fn idle_for(&self) -> Duration {
        self.clock.now().since(self.last_moved())
    }

    fn last_moved(&self) -> Time {
        self.of_followers(|o| o.stack.last_moved()).into_iter().fold(self.stack.last_moved(), Time::max)
    }

    /// Has [`Worker::take_idle`] say, once, that nothing has moved for so long and nothing is under way; or ends that. While it is waited for, the
    /// worker wakes up at most once in that time for it.
    pub fn await_idle(&mut self, after: Option<Duration>) {
        self.idle = IdleWatch { after, reached: None };
        self.kick();
    }

    /// For how long nothing has moved, if that is what was waited for. To be asked after every turn of the event loop.
    pub fn take_idle(&mut self) -> Option<Duration> {
        self.idle.reached.take()
    }

    /// The end of a wake-up: notes that it is idle, or says when it will be if nothing moves.
    pub(super) fn watch_idle(&mut self, now: Time) -> Option<Time> {
        let after = self.idle.after?;
        let at = self.last_moved() + after;
        if at > now {
            return Some(at);
        }
        // What is under way ends with an event, after which it is looked again.
        if self.stack.is_quiet() && self.of_followers(|o| o.stack.is_quiet()).into_iter().all(|quiet| quiet) {
            self.idle = IdleWatch { after: None, reached: Some(now.since(self.last_moved())) };
            return None;
        }
        // Of a follower's events the leader does not hear.
        (!self.crew.is_empty()).then_some(now + after)
    }
}
