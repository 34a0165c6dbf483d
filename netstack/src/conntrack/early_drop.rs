//! Room in a full table.

use super::conn::{Conn, Proto, Status};
use super::stats::bump;
use super::sync::Ordering::Relaxed;
use super::table::{Conntrack, Tables, is_live, is_pinned};
use super::tuple::CtTuple;
use crate::time::Time;
use crate::verdict::DropReason;

/// Buckets in which victims are looked for, as Linux's NF_CT_EVICTION_RANGE.
const RANGE: u32 = 8;

/// Entries of a bucket that are looked at, at most: chains are no longer.
const CHAIN: usize = 80;

/// Slots that are searched for one that timed out, when nothing can be dropped early.
const SEARCH: u32 = 1024;

/// Whether a connection goes when a bucket is wanted for others: what is not known to be answered both ways.
fn is_victim(conn: &Conn) -> bool {
    !conn.status.has(Status::ASSURED) && !is_pinned(conn)
}

/// Whether the reaper may take a connection from a table that is full: besides those, TCP that is closing.
pub(super) fn is_expendable(conn: &Conn) -> bool {
    let closing = matches!(&conn.proto, Proto::Tcp(t) if t.state.is_closing());
    is_victim(conn) || closing && !is_pinned(conn)
}

impl Conntrack {
    /// Makes sure that one more connection fits, by dropping others early if need be, of the buckets near its tuple's.
    ///
    /// # Errors
    /// The table is full of connections that must not go. The drop is counted.
    #[inline]
    pub(super) fn make_room(&self, now: Time, tuple: &CtTuple) -> Result<(), DropReason> {
        if self.count.load(Relaxed) < self.max { Ok(()) } else { self.push_out(now, self.hash(tuple) as u32) }
    }

    fn push_out(&self, now: Time, hash: u32) -> Result<(), DropReason> {
        if self.early_drop(now, hash) || self.find_expired(now) {
            return Ok(());
        }
        self.reaper.press(now);
        bump(&self.counters.drop);
        Err(DropReason::ConntrackFull)
    }

    /// Counts one more connection, if it fits.
    pub(super) fn reserve(&self, now: Time, hash: u32) -> Result<(), DropReason> {
        while self.count.fetch_update(Relaxed, Relaxed, |n| (n < self.max).then_some(n + 1)).is_err() {
            self.push_out(now, hash)?;
        }
        Ok(())
    }

    /// As Linux's `early_drop`: of eight buckets from that of the hash on, all victims of the first bucket that has some.
    fn early_drop(&self, now: Time, hash: u32) -> bool {
        let Some(t) = self.tables() else { return false };
        let buckets = self.buckets();
        let first = self.bucket_of(hash);
        let range = (0..RANGE.min(buckets)).map(|n| (first + n) % buckets);
        range.into_iter().any(|bucket| self.sweep(now, t, bucket, is_victim) > 0)
    }

    /// Removes what timed out from a bucket, and what is a `victim`; returns how many.
    pub(super) fn sweep(&self, now: Time, t: &Tables, bucket: u32, victim: impl Fn(&Conn) -> bool) -> usize {
        let Some(b) = t.buckets.get(bucket) else { return 0 };
        let mut entries = [0; CHAIN];
        let mut n = 0;
        b.lock().walk(&t.arena, None, |entry| {
            entries[n] = entry;
            n += 1;
            (n == CHAIN).then_some(())
        });
        entries[..n].iter().filter(|&&e| self.sweep_one(now, t, bucket, e, &victim)).count()
    }

    fn sweep_one(&self, now: Time, t: &Tables, bucket: u32, entry: u32, victim: impl Fn(&Conn) -> bool) -> bool {
        // The bucket is not locked any more: the slot may be another's.
        let Some(held) = t.arena.hold(entry >> 1).filter(|_| self.bucket_of(t.arena.hash(entry)) == bucket) else { return false };
        if !is_live(&held.conn, now) {
            bump(&self.counters.expired);
        } else if victim(&held.conn) {
            bump(&self.counters.early_drop);
        } else {
            return false;
        }
        self.vacate(held);
        true
    }

    /// Removes one connection that timed out, if one of the next slots has such: they must not keep others out.
    fn find_expired(&self, now: Time) -> bool {
        let Some(t) = self.tables() else { return false };
        let from = self.reaper.look_from(SEARCH) % t.arena.used().max(1);
        let mut found = [0; 8];
        let (mut n, _, at) = t.arena.look(from, t.arena.used().min(from.saturating_add(SEARCH)), Some(now), &mut found);
        if n == 0 {
            n = t.arena.look(0, from.min(SEARCH - (at - from)), Some(now), &mut found).0;
        }
        let found = found[..n].iter().find_map(|&i| t.arena.hold(i).filter(|held| !is_live(&held.conn, now)));
        let Some(held) = found else { return false };
        bump(&self.counters.expired);
        self.vacate(held);
        true
    }
}
