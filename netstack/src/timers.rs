//! Deadlines of many objects, of which each has one.
//!
//! A deadline that moves later costs nothing: the object keeps the true one in its [`Deadline`], and the queue's
//! entry, when it comes up too early, is put back. One that moves earlier moves the entry. So the queue holds at most
//! one entry per object, and an object that goes takes its entry with it ([`Timers::cancel`]).
//!
//! Deadlines that are due at the same time come up in the order of their tokens, so that it does not matter how they got into the queue.

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
    /// Entries by time and token, as a heap.
    heap: Vec<Entry>,
    /// Places in the heap, by number of the entry.
    places: Vec<u32>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Time,
    token: Token,
    number: u32,
}

impl Timers {
    /// Sets when the object `token` is to be called.
    pub fn set(&mut self, deadline: &mut Deadline, token: Token, due: Time) {
        deadline.due = due;
        if due >= deadline.queued {
            return;
        }
        deadline.queued = due;
        if deadline.entry == NONE {
            deadline.entry = self.free.pop().unwrap_or_else(|| {
                self.places.push(0);
                (self.places.len() - 1) as u32
            });
            self.heap.push(Entry { at: due, token, number: deadline.entry });
            self.rise(self.heap.len() - 1);
        } else {
            let place = self.places[deadline.entry as usize] as usize;
            self.heap[place].at = due;
            self.rise(place);
        }
    }

    /// Forgets a deadline.
    pub fn cancel(&mut self, deadline: &mut Deadline) {
        if deadline.entry != NONE {
            let place = self.places[deadline.entry as usize] as usize;
            self.take(place);
        }
        *deadline = Deadline::default();
    }

    /// When the earliest entry comes up. It may turn out to be early for its object.
    pub fn next(&self) -> Option<Time> {
        self.heap.first().map(|e| e.at)
    }

    /// Takes an entry that is due: the object's token, and the time under which it was queued.
    ///
    /// The caller must pass the result to [`Timers::fired`] with the object's deadline.
    pub fn pop(&mut self, now: Time) -> Option<(Token, Time)> {
        let &Entry { at, token, .. } = self.heap.first()?;
        if at > now {
            return None;
        }
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
    fn take(&mut self, place: usize) {
        let gone = self.heap.swap_remove(place);
        self.free.push(gone.number);
        if place < self.heap.len() {
            self.note(place);
            self.sink(place);
            self.rise(place);
        }
    }

    /// Notes where an entry stands.
    fn note(&mut self, place: usize) {
        self.places[self.heap[place].number as usize] = place as u32;
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent] <= self.heap[place] {
                break;
            }
            self.heap.swap(parent, place);
            self.note(place);
            place = parent;
        }
        self.note(place);
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let child = 2 * place + 1;
            let Some(left) = self.heap.get(child) else { break };
            let right = self.heap.get(child + 1).is_some_and(|r| r < left);
            let child = child + usize::from(right);
            if self.heap[place] <= self.heap[child] {
                break;
            }
            self.heap.swap(place, child);
            self.note(place);
            place = child;
        }
        self.note(place);
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

    #[test]
    fn what_is_due_at_one_time_comes_in_the_order_of_tokens() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let (mut q, mut d) = (Timers::default(), [Deadline::default(); 4]);
            order.iter().for_each(|&n| q.set(&mut d[n as usize], token(n), Time::from_millis(5)));
            let came: Vec<_> = std::iter::from_fn(|| q.pop(Time::from_millis(5))).map(|(t, _)| t.index()).collect();
            assert_eq!(came, [1, 2, 3]);
        }
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
