//! Initial sequence numbers, RFC 6528.

use crate::rng::{Key, Rng};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::wire::tcp::Seq;
use core::hash::BuildHasher;

/// Generator of initial sequence numbers: a keyed hash of the tuple plus a clock.
#[derive(Debug)]
pub(super) struct Isn(Key);

impl Isn {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Isn(rng.key())
    }

    /// The number for a connection that starts now. The clock ticks every 256 ns and so wraps after 18 minutes: numbers
    /// of successive connections of one tuple go up, as RFC 9293 section 3.4.1 wants.
    pub(super) fn generate(&self, tuple: &Tuple, now: Time) -> Seq {
        Seq((self.0.hash_one(tuple) as u32).wrapping_add((now.as_nanos() / 256) as u32))
    }
}
