//! Deadlines of many objects, of which each has at most a handful.
//!
//! A deadline that moves later costs nothing: the object keeps the true one in its [`Deadline`] and
//! the queue's entry, when it comes up too early, is put back. Only a deadline that moves earlier is
//! pushed, so the queue holds about one entry per object.

use crate::edge::Token;
use crate::time::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The deadline of one object, beside what the queue knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    due: Time,
    queued: Time,
}

impl Default for Deadline {
    fn default() -> Self {
        Deadline { due: Time::NEVER, queued: Time::NEVER }
    }
}

impl Deadline {
    /// When the object wants to be called; [`Time::NEVER`] if not at all.
    pub fn due(&self) -> Time {
        self.due
    }
}

/// The queue of deadlines.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Time, Token)>>,
}

impl Timers {
    /// Sets when the object `token` is to be called.
    pub fn set(&mut self, deadline: &mut Deadline, token: Token, due: Time) {
        deadline.due = due;
        if due < deadline.queued {
            deadline.queued = due;
            self.heap.push(Reverse((due, token)));
        }
    }

    /// When the earliest entry comes up. It may turn out to be early for its object.
    pub fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes an entry that is due: the object's token, and the time under which it was queued.
    ///
    /// The caller must pass the result to [`Timers::fired`] with the object's deadline, if the object still lives.
    pub fn pop(&mut self, now: Time) -> Option<(Token, Time)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((at, token))| (token, at))
    }

    /// Whether an entry taken with [`Timers::pop`] means that the object is due now. If it is not yet, it is queued again.
    pub fn fired(&mut self, deadline: &mut Deadline, token: Token, queued: Time, now: Time) -> bool {
        if queued != deadline.queued {
            return false;
        }
        deadline.queued = Time::NEVER;
        if deadline.due <= now {
            deadline.due = Time::NEVER;
            return true;
        }
        if deadline.due != Time::NEVER {
            let due = deadline.due;
            self.set(deadline, token, due);
        }
        false
    }

    /// Entries in the queue, stale ones included.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::{Token, TokenKind};

    #[test]
    fn a_later_deadline_is_not_pushed_and_comes_up_once() {
        let (mut q, mut d, t) = (Timers::default(), Deadline::default(), Token::new(TokenKind::Tcp, 1, 1));
        q.set(&mut d, t, Time::from_millis(10));
        q.set(&mut d, t, Time::from_millis(30));
        assert_eq!(q.len(), 1);
        let (tok, at) = q.pop(Time::from_millis(10)).unwrap();
        assert!(!q.fired(&mut d, tok, at, Time::from_millis(10)));
        let (tok, at) = q.pop(Time::from_millis(30)).unwrap();
        assert!(q.fired(&mut d, tok, at, Time::from_millis(30)));
        assert!(q.is_empty());
    }

    #[test]
    fn an_earlier_deadline_wins_and_the_stale_entry_is_ignored() {
        let (mut q, mut d, t) = (Timers::default(), Deadline::default(), Token::new(TokenKind::Tcp, 1, 1));
        q.set(&mut d, t, Time::from_millis(30));
        q.set(&mut d, t, Time::from_millis(10));
        let (tok, at) = q.pop(Time::from_millis(40)).unwrap();
        assert!(q.fired(&mut d, tok, at, Time::from_millis(40)));
        let (tok, at) = q.pop(Time::from_millis(40)).unwrap();
        assert!(!q.fired(&mut d, tok, at, Time::from_millis(40)));
    }
}
