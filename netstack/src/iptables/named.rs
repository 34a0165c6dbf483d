//! What rules share by name, whatever their table and family.

use super::recent::RecentTables;
use crate::ipset::Sets;
use crate::rng;

/// What the names in rules stand for.
#[derive(Clone, Debug)]
pub struct Named {
    /// Sets of addresses, nets and ports.
    pub sets: Sets,
    /// Tables of `recent`.
    pub recent: RecentTables,
}

impl Default for Named {
    fn default() -> Self {
        Named::new(rng::Key(0, 0))
    }
}

impl Named {
    /// Nothing, to be hashed under a key that nobody else should know.
    pub fn new(key: rng::Key) -> Named {
        Named::of(Sets::new(key))
    }

    /// These sets.
    pub fn of(sets: Sets) -> Named {
        Named { sets, recent: RecentTables::default() }
    }
}
