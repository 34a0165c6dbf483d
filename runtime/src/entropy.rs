//! Seeds for the stack's randomness.

use crate::sys::random;
use std::io;

/// A secret seed that was never used before.
pub fn seed() -> io::Result<[u8; 16]> {
    let mut seed = [0; 16];
    random::fill(&mut seed)?;
    Ok(seed)
}
