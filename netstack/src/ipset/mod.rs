//! Sets of addresses, nets and ports, as of `ipset`: what `-m set` asks and `-j SET` changes.
//!
//! A set is shared by all rules that name it, of both families, and changes as packets pass; each has a lock of its own. Look-ups are
//! hashed; those of nets ask once for each length of prefix that there is. [`Sets`] is read from, and printed in, the language of
//! `ipset save` ([`text`]).
//!
//! | Module | Does |
//! |---|---|
//! | `head` | what a set is made as |
//! | `body` | its elements |
//! | `set` | one set: packets ask, add and delete |
//! | `state` | sets as they are saved |
//! | `text` | the language |

mod body;
mod head;
mod set;
mod state;
#[cfg(test)]
mod tests;
pub mod text;

pub use body::{Elem, Key, Refused};
pub use head::{Head, Kind};
pub use set::{Asked, Change, CounterTest, Set};
pub use state::{SetState, SetsState};

use crate::rng;
use crate::time::Time;
use std::sync::Arc;

/// Most sets.
pub const MAX_SETS: usize = 1024;
/// Most elements that a set may be made for.
pub const MAX_ELEMENTS: u32 = 1 << 20;
/// Longest name in bytes.
pub const MAX_NAME: usize = 31;

/// All sets, in the order in which they were made.
#[derive(Clone, Debug)]
pub struct Sets {
    key: rng::Key,
    list: Vec<Arc<Set>>,
}

impl Default for Sets {
    fn default() -> Self {
        Sets::new(rng::Key(0, 0))
    }
}

impl Sets {
    /// No sets. Elements will be hashed under this key, which nobody should know who can choose them.
    pub fn new(key: rng::Key) -> Sets {
        Sets { key, list: Vec::new() }
    }

    /// The key under which elements are hashed.
    pub(crate) fn key(&self) -> rng::Key {
        self.key
    }

    /// A set by its name.
    pub fn get(&self, name: &str) -> Option<&Arc<Set>> {
        self.list.iter().find(|s| s.name() == name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The sets in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Set>> {
        self.list.iter()
    }

    /// The same sets with the same elements, but not shared with anybody, hashed under `key`.
    #[must_use]
    pub fn copy(&self, key: rng::Key) -> Sets {
        let mut copy = Sets::new(key);
        for set in self.list.iter().filter(|s| !s.head().is_list()) {
            copy.list.push(Arc::new(set.copy(key, &[])));
        }
        // Lists name other sets, so they come when those are there.
        for (place, set) in self.list.iter().enumerate().filter(|(_, s)| s.head().is_list()) {
            let list = Arc::new(set.copy(key, &copy.list));
            copy.list.insert(place.min(copy.list.len()), list);
        }
        copy
    }

    /// The same sets, time-outs that began at the start of stack time begin `now`.
    #[must_use]
    pub fn beginning(&self, now: Time) -> Sets {
        let sets = self.copy(self.key);
        sets.list.iter().for_each(|set| set.put_off(now.since(Time::ZERO)));
        sets
    }

    fn push(&mut self, set: Set) {
        self.list.push(Arc::new(set));
    }

    fn remove(&mut self, name: &str) {
        self.list.retain(|s| s.name() != name);
    }
}
