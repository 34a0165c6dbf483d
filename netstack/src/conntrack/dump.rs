//! Connections in the order of their slots, for listings.

use super::conn::{Conn, ConnId, Status};
use super::table::{Conntrack, is_live};
use crate::time::Time;

impl Conntrack {
    /// Calls `f` with live connections in the order of their slots, beginning with slot `from`, over at most `slots` slots. Returns where
    /// to go on; `None` at the end. A connection that is there all the while is shown once, others perhaps. `f` must not call the table.
    pub fn dump(&self, now: Time, from: u32, slots: u32, mut f: impl FnMut(ConnId, &Conn)) -> Option<u32> {
        let arena = &self.tables()?.arena;
        let end = from.saturating_add(slots).min(arena.used());
        for index in (from..end).filter(|&i| arena.is_occupied(i)) {
            // A connection that only replies find is no connection to anyone who asks.
            let shown = |c: &Conn| is_live(c, now) && !c.status.has(Status::NAT_CLASH);
            if let Some(held) = arena.hold(index).filter(|h| shown(&h.conn)) {
                f(held.id, &held.conn);
            }
        }
        (end < arena.used()).then_some(end)
    }

    /// Removes the live connections of which `which` says so, pinned or not; returns how many. `which` must not call the table.
    pub fn remove_if(&self, now: Time, mut which: impl FnMut(&Conn) -> bool) -> usize {
        let Some(t) = self.tables() else { return 0 };
        let mut removed = 0;
        for index in (0..t.arena.used()).filter(|&i| t.arena.is_occupied(i)) {
            let id = t.arena.hold(index).filter(|h| is_live(&h.conn, now) && which(&h.conn)).map(|h| h.id);
            removed += usize::from(id.is_some_and(|id| self.remove(id).is_some()));
        }
        removed
    }
}
