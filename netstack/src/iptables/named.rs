//! What rules share by name, whatever their table and family.

use super::hashlimit::HashTables;
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
    /// Tables of `hashlimit`.
    pub hashlimit: HashTables,
    /// Under which rules hash.
    pub(super) key: rng::Key,
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

    /// The same with other sets.
    pub(crate) fn with_sets(&self, sets: Sets) -> Named {
        Named { sets, ..self.clone() }
    }

    /// These sets.
    pub fn of(sets: Sets) -> Named {
        let key = sets.key();
        Named { sets, recent: RecentTables::default(), hashlimit: HashTables::new(key), key }
    }
}
