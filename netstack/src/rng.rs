//! Randomness, from a seed that is handed in.

use core::hash::Hasher;
use siphasher::sip::SipHasher13;

/// Secret 128-bit key of a keyed hash.
#[derive(Clone, Copy)]
pub struct Key(pub u64, pub u64);

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A SipHash-1-3 state under this key.
    pub fn hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

impl core::hash::BuildHasher for Key {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.hasher()
    }
}

/// A pseudo-random stream: SipHash of a counter under a secret key.
///
/// It is not saved: a restored stack gets a fresh seed, so that clones of one image differ.
#[derive(Debug)]
pub struct Rng {
    key: Key,
    counter: u64,
}

impl Rng {
    /// A stream from a seed that nobody else knows.
    pub fn new(seed: [u8; 16]) -> Self {
        let half = |i: usize| u64::from_le_bytes(core::array::from_fn(|j| seed[i + j]));
        Rng { key: Key(half(0), half(8)), counter: 0 }
    }

    /// The stream of a seed from a [position](Rng::position) on.
    pub fn at(seed: [u8; 16], position: u64) -> Self {
        Rng { counter: position, ..Rng::new(seed) }
    }

    /// How many words were drawn.
    pub fn position(&self) -> u64 {
        self.counter
    }

    /// Next 64 bits.
    pub fn u64(&mut self) -> u64 {
        self.counter += 1;
        let mut h = self.key.hasher();
        h.write_u64(self.counter);
        h.finish()
    }

    /// Next 32 bits.
    pub fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    /// Uniform in `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u32
    }

    /// A fresh key for a hash table or a sequence-number generator.
    pub fn key(&mut self) -> Key {
        Key(self.u64(), self.u64())
    }
}
