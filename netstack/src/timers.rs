//! Deadlines of many objects, of which each has one.
//!
//! A deadline that moves later costs nothing: the object keeps the true one in its [`Deadline`], and the queue's
//! entry, when it comes up too early, is put back. One that moves earlier moves the entry. So the queue holds at most
//! one entry per object, and an object that goes takes its entry with it ([`Timers::cancel`]).

use crate::edge::Token;
use crate::time::Time;

/// No entry.
const NONE: u32 = u32::MAX;

/// The deadline of one object, beside what the queue knows of it. Whoever drops it cancels it first.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    due: Time,
    queued: Time,
    entry: u32,
}

impl Default for Deadline {
    fn default() -> Self {
        Deadline { due: Time::NEVER, queued: Time::NEVER, entry: NONE }
    }
}

impl Deadline {
    /// When the object wants to be called; [`Time::NEVER`] if not at all.
    pub fn due(&self) -> Time {
        self.due
    }
}

/// The queue of deadlines: a binary heap in which entries can be found again.
#[derive(Debug, Default)]
pub struct Timers {
    /// Entries by time, as a heap: time and the entry's number.
    heap: Vec<(Time, u32)>,
    /// Entries by number.
    entries: Vec<Entry>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: Token,
    /// Place in the heap.
    at: u32,
}

impl Timers {
    /// Sets when the object `token` is to be called.
    pub fn set(&mut self, deadline: &mut Deadline, token: Token, due: Time) {
        deadline.due = due;
        if due >= deadline.queued {
            return;
        }
        deadline.queued = due;
        let at = self.heap.len();
        if deadline.entry == NONE {
            let entry = Entry { token, at: at as u32 };
            deadline.entry = match self.free.pop() {
                Some(n) => {
                    self.entries[n as usize] = entry;
                    n
                }
                None => {
                    self.entries.push(entry);
                    (self.entries.len() - 1) as u32
                }
            };
            self.heap.push((due, deadline.entry));
            self.rise(at);
        } else {
            let at = self.entries[deadline.entry as usize].at as usize;
            self.heap[at].0 = due;
            self.rise(at);
        }
    }

    /// Forgets a deadline.
    pub fn cancel(&mut self, deadline: &mut Deadline) {
        if deadline.entry != NONE {
            let at = self.entries[deadline.entry as usize].at as usize;
            self.take(at);
        }
        *deadline = Deadline::default();
    }

    /// When the earliest entry comes up. It may turn out to be early for its object.
    pub fn next(&self) -> Option<Time> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// Takes an entry that is due: the object's token, and the time under which it was queued.
    ///
    /// The caller must pass the result to [`Timers::fired`] with the object's deadline.
    pub fn pop(&mut self, now: Time) -> Option<(Token, Time)> {
        let &(at, entry) = self.heap.first()?;
        if at > now {
            return None;
        }
        let token = self.entries[entry as usize].token;
        self.take(0);
        Some((token, at))
    }

    /// Whether an entry taken with [`Timers::pop`] means that the object is due now. If it is not yet, it is queued again.
    pub fn fired(&mut self, deadline: &mut Deadline, token: Token, queued: Time, now: Time) -> bool {
        if queued != deadline.queued {
            return false;
        }
        let due = core::mem::take(deadline).due;
        if due <= now {
            return true;
        }
        if due != Time::NEVER {
            self.set(deadline, token, due);
        }
        false
    }

    /// Entries in the queue.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Takes the entry at a place of the heap out.
    fn take(&mut self, at: usize) {
        let (_, entry) = self.heap.swap_remove(at);
        self.free.push(entry);
        if at < self.heap.len() {
            self.place(at);
            self.sink(at);
            self.rise(at);
        }
    }

    /// Notes where an entry stands.
    fn place(&mut self, at: usize) {
        let entry = self.heap[at].1;
        self.entries[entry as usize].at = at as u32;
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].0 <= self.heap[at].0 {
                break;
            }
            self.heap.swap(parent, at);
            self.place(at);
            at = parent;
        }
        self.place(at);
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let child = 2 * at + 1;
            let Some(&(left, _)) = self.heap.get(child) else { break };
            let right = self.heap.get(child + 1).is_some_and(|(r, _)| *r < left);
            let child = child + usize::from(right);
            if self.heap[at].0 <= self.heap[child].0 {
                break;
            }
            self.heap.swap(at, child);
            self.place(at);
            at = child;
        }
        self.place(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::{Token, TokenKind};
    use proptest::prelude::*;

    fn token(n: u32) -> Token {
        Token::new(TokenKind::Tcp, n, 1)
    }

    #[test]
    fn a_later_deadline_moves_nothing_and_comes_up_once() {
        let (mut q, mut d, t) = (Timers::default(), Deadline::default(), token(1));
        q.set(&mut d, t, Time::from_millis(10));
        q.set(&mut d, t, Time::from_millis(30));
        let (tok, at) = q.pop(Time::from_millis(10)).unwrap();
        assert!(!q.fired(&mut d, tok, at, Time::from_millis(10)));
        let (tok, at) = q.pop(Time::from_millis(30)).unwrap();
        assert!(q.fired(&mut d, tok, at, Time::from_millis(30)));
        assert!(q.is_empty());
    }

    proptest! {
        /// Whatever is set, moved and cancelled: what comes up is what a plain list says, in order, once.
        #[test]
        fn equals_a_list(steps in proptest::collection::vec((0usize..8, 0u64..100, 0u8..8), 1..300)) {
            let mut q = Timers::default();
            let mut deadlines = [Deadline::default(); 8];
            let mut due = [None::<u64>; 8];
            let mut now = 0;
            for (n, t, what) in steps {
                match what {
                    0 => {
                        q.cancel(&mut deadlines[n]);
                        due[n] = None;
                    }
                    1 => {
                        now += t / 4;
                        let mut came = Vec::new();
                        while let Some((tok, at)) = q.pop(Time::from_nanos(now)) {
                            let n = tok.index() as usize;
                            if q.fired(&mut deadlines[n], tok, at, Time::from_nanos(now)) {
                                came.push(n);
                            }
                        }
                        came.sort_unstable();
                        let want: Vec<_> = (0..8).filter(|&n| due[n].is_some_and(|d| d <= now)).collect();
                        prop_assert_eq!(&came, &want);
                        want.into_iter().for_each(|n| due[n] = None);
                    }
                    _ => {
                        q.set(&mut deadlines[n], token(n as u32), Time::from_nanos(now + t));
                        due[n] = Some(now + t);
                    }
                }
                prop_assert!(q.len() <= 8);
                let first = due.iter().flatten().min().copied();
                prop_assert!(first.is_none_or(|f| q.next().is_some_and(|n| n <= Time::from_nanos(f))));
            }
        }
    }
}
