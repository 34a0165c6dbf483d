//! Slots that changed since a capture copied them.

use super::chunks::Chunks;
use super::sync::{AtomicU64, Ordering};
use Ordering::{Acquire, Relaxed, Release};

/// Words are allocated in chunks of at least `1 << CHUNK_SHIFT`.
const CHUNK_SHIFT: u32 = 6;

/// A bit per slot, and a bit per word of those, so that few changes among a million slots are found in microseconds. A slot's bit is set
/// under the slot's lock. One capture takes bits out; whoever takes one looks at the slot after that.
#[derive(Debug)]
pub(super) struct Changed {
    words: Chunks<AtomicU64>,
    summary: Box<[AtomicU64]>,
}

impl Changed {
    /// For so many slots.
    pub(super) fn new(slots: u32) -> Self {
        let words = slots.div_ceil(64);
        Changed { words: Chunks::new(words, CHUNK_SHIFT), summary: (0..words.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Notes a slot.
    #[cold]
    pub(super) fn set(&self, slot: u32) {
        let word = slot / 64;
        if self.words.touch(word).fetch_or(1 << (slot % 64), Relaxed) == 0 {
            // Whoever takes this sees the word.
            self.summary[(word / 64) as usize].fetch_or(1 << (word % 64), Release);
        }
    }

    /// Takes the slots of a word: 64 times its number, and the number of the bit.
    pub(super) fn take(&self, word: u32) -> u64 {
        match self.words.get(word) {
            Some(bits) if bits.load(Relaxed) != 0 => bits.swap(0, Relaxed),
            _ => 0,
        }
    }

    /// How many words the summary has.
    pub(super) fn groups(&self) -> u32 {
        self.summary.len() as u32
    }

    /// Takes a word of the summary: which of its 64 words may have slots.
    pub(super) fn take_group(&self, group: u32) -> u64 {
        let bits = &self.summary[group as usize];
        if bits.load(Relaxed) == 0 { 0 } else { bits.swap(0, Acquire) }
    }

    /// Puts words back whose slots were not taken.
    pub(super) fn put_back(&self, group: u32, words: u64) {
        if words != 0 {
            self.summary[group as usize].fetch_or(words, Release);
        }
    }

    /// How many slots are noted.
    pub(super) fn count(&self) -> u32 {
        let groups = self.summary.iter().map(|s| s.load(Relaxed)).enumerate();
        let words = groups.flat_map(|(group, bits)| ones(bits).map(move |bit| group as u32 * 64 + bit));
        words.filter_map(|word| self.words.get(word)).map(|w| w.load(Relaxed).count_ones()).sum()
    }
}

/// The numbers of the bits that are set.
pub(super) fn ones(mut bits: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(bit)
    })
}
