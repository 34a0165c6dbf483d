//! What threads share, in two forms: as it runs, and as loom checks it.

#[cfg(not(loom))]
pub(super) use plain::*;
#[cfg(not(loom))]
mod plain {
    pub(in crate::conntrack) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
    pub(in crate::conntrack) use std::sync::{Mutex, MutexGuard, OnceLock};

    /// How often a look-up that was disturbed tries again before it takes the lock.
    pub(in crate::conntrack) const TRIES: u32 = 4;
    /// By how many powers of two there are fewer buckets than connections.
    pub(in crate::conntrack) const CROWDING: u32 = 0;
    /// Chunks of arrays are as small as they may be, and allocated at once.
    pub(in crate::conntrack) const MODEL: bool = false;
    /// Packets that can be on their way at a time: no more than there are workers.
    pub(in crate::conntrack) const IN_FLIGHT: usize = 64;
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
    // What it guards is there before there are threads: that it does what it says need not be checked here.
    pub(in crate::conntrack) use std::sync::OnceLock;

    pub(in crate::conntrack) const TRIES: u32 = 1;
    pub(in crate::conntrack) const CROWDING: u32 = 2;
    pub(in crate::conntrack) const MODEL: bool = true;
    pub(in crate::conntrack) const IN_FLIGHT: usize = 1;
    pub(in crate::conntrack) const SHARDS: u32 = 1;
    pub(in crate::conntrack) const BATCH: u32 = 1;
}

/// Locks; a thread that panicked while it held the lock left a whole value behind, as nothing that is done under these locks
/// can panic half-way.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
