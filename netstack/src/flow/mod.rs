//! Tables of flows.

mod lru;
mod slab;
mod state;

pub use lru::Lru;
pub use slab::Slab;
pub use state::SlabState;

use crate::rng::Key;
use crate::tuple::Tuple;
use std::collections::HashMap;

/// Finds a flow's slot by the tuple of the packets that the guest sends.
pub type Index = HashMap<Tuple, u32, Key>;
