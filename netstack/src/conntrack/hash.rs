//! Keyed hash of tuples: SipHash-1-3 over whole words.

use super::tuple::{Addr, CtTuple};
use crate::rng::Key;

/// Domains, so that no two kinds of input hash the same words.
const V4: u64 = 1 << 56;
const V6: u64 = 2 << 56;
const SOURCE: u64 = 4 << 56;

/// SipHash-1-3 of words, as little-endian bytes.
#[inline]
fn sip13(key: Key, words: &[u64]) -> u64 {
    let mut v = [
        key.0 ^ 0x736f_6d65_7073_6575,
        key.1 ^ 0x646f_7261_6e64_6f6d,
        key.0 ^ 0x6c79_6765_6e65_7261,
        key.1 ^ 0x7465_6462_7974_6573,
    ];
    let last = (words.len() as u64 * 8) << 56;
    for &m in words.iter().chain([&last]) {
        v[3] ^= m;
        round(&mut v);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// The upper and the lower half of an address.
#[inline]
const fn halves(a: Addr) -> [u64; 2] {
    let w = a.0;
    [(w[0] as u64) << 32 | w[1] as u64, (w[2] as u64) << 32 | w[3] as u64]
}

/// A tuple as whole words: what is hashed, and what is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words([u64; 5]);

impl Words {
    #[inline]
    pub(super) fn of(t: &CtTuple) -> Self {
        let ([a, b], [c, d]) = (halves(t.src), halves(t.dst));
        let rest = u64::from(t.zone) << 40 | u64::from(t.proto) << 32 | u64::from(t.sport) << 16 | u64::from(t.dport);
        Words([a, b, c, d, rest | if t.v6 { V6 } else { V4 }])
    }

    /// The hash. Its lower half finds the bucket.
    #[inline]
    pub(super) fn hash(&self, key: Key) -> u64 {
        let [a, b, c, d, rest] = self.0;
        if rest & V4 == 0 {
            return sip13(key, &self.0);
        }
        debug_assert!(a == 0 && c == 0);
        sip13(key, &[(b << 32) | (d & 0xffff_ffff), rest])
    }
}

/// The hash of a tuple's source {address, port, protocol, zone}.
pub(super) fn source(key: Key, t: &CtTuple) -> u64 {
    let [a, b] = halves(t.src);
    let family = if t.v6 { V6 } else { V4 };
    sip13(key, &[a, b, SOURCE | family | u64::from(t.sport) << 32 | u64::from(t.zone) << 8 | u64::from(t.proto)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_the_library(k0: u64, k1: u64, words in prop::collection::vec(any::<u64>(), 0..8)) {
            let key = Key(k0, k1);
            let mut h = key.hasher();
            words.iter().for_each(|w| h.write(&w.to_le_bytes()));
            prop_assert_eq!(sip13(key, &words), h.finish());
        }
    }
}
