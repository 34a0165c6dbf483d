//! Long arrays whose memory is allocated piece by piece when it is first needed.

use super::sync::{MODEL, OnceLock};

/// A directory is at most so long; longer arrays have longer chunks.
const DIRECTORY: u32 = 2048;

/// An array of a fixed length, in chunks.
#[derive(Debug)]
pub(super) struct Chunks<T> {
    directory: Box<[OnceLock<Box<[T]>>]>,
    /// Elements per chunk, as a power of two.
    shift: u32,
}

impl<T: Default> Chunks<T> {
    /// An array for at least `len` elements in chunks of at least `1 << shift`; nothing but its directory is allocated.
    pub(super) fn new(len: u32, shift: u32) -> Self {
        let shift = if MODEL { 0 } else { shift };
        let shift = shift.max(len.div_ceil(DIRECTORY).next_power_of_two().trailing_zeros());
        let chunks = u64::from(len).div_ceil(1 << shift);
        let array = Chunks { directory: (0..chunks).map(|_| OnceLock::new()).collect(), shift };
        if MODEL {
            for i in 0..len {
                array.touch(i);
            }
        }
        array
    }

    /// An element; `None` if its chunk was never touched, or it is beyond the end.
    #[inline]
    pub(super) fn get(&self, i: u32) -> Option<&T> {
        let chunk = self.directory.get((i >> self.shift) as usize)?.get()?;
        chunk.get((i & ((1 << self.shift) - 1)) as usize)
    }

    /// An element, whose chunk is allocated if need be.
    ///
    /// # Panics
    /// Beyond the end.
    #[inline]
    pub(super) fn touch(&self, i: u32) -> &T {
        let cell = &self.directory[(i >> self.shift) as usize];
        let chunk = cell.get_or_init(|| (0..1u32 << self.shift).map(|_| T::default()).collect());
        &chunk[(i & ((1 << self.shift) - 1)) as usize]
    }

    /// What is there from an element on, up to the end of its chunk; how many elements that would be if the chunk was never touched.
    pub(super) fn rest(&self, i: u32) -> Result<&[T], u32> {
        let at = i & ((1 << self.shift) - 1);
        let chunk = self.directory.get((i >> self.shift) as usize).and_then(OnceLock::get);
        chunk.and_then(|c| c.get(at as usize..)).ok_or((1 << self.shift) - at)
    }
}
