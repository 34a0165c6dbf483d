//! Which bits of addresses and ports rules look at.

use crate::iptables::head::{Key, addr_words};

/// Sides: source and destination address, source and destination port.
pub(super) const SIDES: usize = 4;

/// How many leading bits count of each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape(pub(super) [u8; SIDES]);

/// Bits to which shapes are made coarser if there are too many.
const STEPS_V4: [u8; 4] = [32, 24, 16, 8];
const STEPS_V6: [u8; 4] = [128, 64, 48, 32];
const STEPS_PORT: [u8; 4] = [16, 12, 8, 4];

/// Bits of a side.
pub(super) const fn width<const N: usize>(side: usize) -> u8 {
    if side >= 2 { 16 } else { 32 * addr_words(N) as u8 }
}

impl Shape {
    /// No bits: every packet is in its only cell.
    pub(super) const ALL: Shape = Shape([0; SIDES]);

    /// Bits in all.
    pub(super) fn bits(self) -> u32 {
        self.0.iter().map(|&b| u32::from(b)).sum()
    }

    /// Whether rules of shape `other` can be put among those of this one.
    pub(super) fn holds(self, other: Shape) -> bool {
        self.0.iter().zip(other.0).all(|(mine, theirs)| *mine <= theirs)
    }

    /// One of few shapes, no finer than this.
    pub(super) fn coarser<const N: usize>(self) -> Shape {
        let down = |side: usize| {
            let steps = match (side, width::<N>(side)) {
                (2.., _) => STEPS_PORT,
                (_, 32) => STEPS_V4,
                _ => STEPS_V6,
            };
            steps.into_iter().find(|step| *step <= self.0[side]).unwrap_or(0)
        };
        Shape(core::array::from_fn(down))
    }
}

/// The bits that count, as masks over a [`Key`].
#[derive(Clone, Debug)]
pub(super) struct Mask<const N: usize> {
    words: [u32; N],
    ports: [u16; 2],
}

/// The leading bits of a side that has so many, as a mask.
const fn leading(bits: u8, width: u8) -> u128 {
    match (bits, width) {
        (0, _) => 0,
        (bits, width) => (u128::MAX >> (128 - width as u32)) & (u128::MAX << (width - bits) as u32),
    }
}

impl<const N: usize> Mask<N> {
    pub(super) fn of(shape: Shape) -> Self {
        let mut mask = Mask { words: [0; N], ports: [0; 2] };
        mask.put(&core::array::from_fn(|side| leading(shape.0[side], width::<N>(side))));
        mask
    }

    fn put(&mut self, sides: &[u128; SIDES]) {
        let n = addr_words(N);
        for (side, value) in sides.iter().take(2).enumerate() {
            for (i, word) in self.words[side * n..][..n].iter_mut().enumerate() {
                *word = (value >> (32 * (n - 1 - i))) as u32;
            }
        }
        self.ports = [sides[2] as u16, sides[3] as u16];
    }

    /// The hash of a packet's cell.
    #[inline(always)]
    pub(super) fn hash(&self, key: &Key<N>) -> u32 {
        self.mix(key.words(), key.ports())
    }

    /// The hash of the cell with these values.
    pub(super) fn hash_of(&self, sides: &[u128; SIDES]) -> u32 {
        let mut values = Mask { words: [0; N], ports: [0; 2] };
        values.put(sides);
        self.mix(&values.words, values.ports)
    }

    #[inline(always)]
    fn mix(&self, words: &[u32; N], ports: [u16; 2]) -> u32 {
        let word = |i: usize| u64::from(words[i] & self.words[i]);
        let mut hash = 0;
        for i in 0..addr_words(N) {
            hash = fold(hash ^ (word(2 * i) << 32 | word(2 * i + 1)));
        }
        let ports = u64::from(ports[0] & self.ports[0]) << 16 | u64::from(ports[1] & self.ports[1]);
        (fold(hash ^ ports) >> 16) as u32
    }
}

/// Mixes all bits with each other: both halves of a product with an odd number without a pattern.
#[inline(always)]
const fn fold(x: u64) -> u64 {
    let product = (x ^ 0xa5a5_1f0e_9d3b_7c21) as u128 * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}
