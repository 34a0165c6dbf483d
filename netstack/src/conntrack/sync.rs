//! What threads share, in two forms: as it runs, and as loom checks it.

#[cfg(not(loom))]
pub(super) use plain::*;
#[cfg(not(loom))]
mod plain {
    pub(in crate::conntrack) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
    pub(in crate::conntrack) use std::sync::{Mutex, MutexGuard, OnceLock};

    /// How often a look-up that was disturbed tries again before it takes the lock.
    pub(in crate::conntrack) const TRIES: u32 = 4;
    /// Lists of free slots.
    pub(in crate::conntrack) const SHARDS: u32 = 16;
    /// Slots that a list takes at a time from those that were never used.
    pub(in crate::conntrack) const BATCH: u32 = 16;
}

#[cfg(loom)]
pub(super) use model::*;
#[cfg(loom)]
mod model {
    pub(in crate::conntrack) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
    pub(in crate::conntrack) use loom::sync::{Mutex, MutexGuard};

    pub(in crate::conntrack) const TRIES: u32 = 1;
    pub(in crate::conntrack) const SHARDS: u32 = 1;
    pub(in crate::conntrack) const BATCH: u32 = 1;

    /// Made at once: that `OnceLock` does what it says need not be checked here.
    #[derive(Debug)]
    pub(in crate::conntrack) struct OnceLock<T>(std::sync::OnceLock<T>);

    impl<T> OnceLock<T> {
        pub(in crate::conntrack) const fn new() -> Self {
            OnceLock(std::sync::OnceLock::new())
        }

        pub(in crate::conntrack) fn get(&self) -> Option<&T> {
            self.0.get()
        }

        pub(in crate::conntrack) fn get_or_init(&self, f: impl FnOnce() -> T) -> &T {
            self.0.get_or_init(f)
        }
    }
}

/// Locks; a thread that panicked while it held the lock left a whole value behind, as nothing that is done under these locks
/// can panic half-way.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
