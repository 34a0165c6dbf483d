//! Tables of fixed-size records, in chunks with a checksum each.

use crate::{ImageError, SectionKind, u32_at};
use core::ops::Range;

/// Most bytes of a chunk.
pub const CHUNK_LEN: usize = 64 << 10;
/// Length of an entry in the list of checksums.
const CRC_LEN: usize = 4;

/// The CRC-32 of a chunk, as it stands in the list in front of the chunks. Callers may compute those of different chunks in
/// several threads.
pub fn chunk_crc(chunk: &[u8]) -> u32 {
    crc32fast::hash(chunk)
}

/// How records are divided into chunks: as many whole records to a chunk as fit into [`CHUNK_LEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLayout {
    records: u64,
    record_len: u32,
}

impl ChunkLayout {
    /// A layout of `records` records of `record_len` bytes (1 to [`CHUNK_LEN`]). `None` if that is impossible or has more bytes
    /// than can be counted.
    pub fn new(records: u64, record_len: u32) -> Option<ChunkLayout> {
        if record_len == 0 || record_len as usize > CHUNK_LEN {
            return None;
        }
        // A chunk is more than half full, so the list and what surrounds the body cannot overflow either.
        let data = records.checked_mul(u64::from(record_len))?;
        (data < u64::MAX / 4 && usize::try_from(data).is_ok()).then_some(ChunkLayout { records, record_len })
    }

    /// Number of records.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Length of a record in bytes.
    pub fn record_len(&self) -> u32 {
        self.record_len
    }

    /// Number of records in every chunk but the last, which may have fewer.
    pub fn records_per_chunk(&self) -> usize {
        CHUNK_LEN / self.record_len as usize
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.records.div_ceil(self.records_per_chunk() as u64) as usize
    }

    /// Length of all records in bytes.
    pub fn data_len(&self) -> u64 {
        self.records * u64::from(self.record_len)
    }

    /// Which bytes of the records' bytes are chunk `chunk`; empty behind the last.
    pub fn range(&self, chunk: usize) -> Range<usize> {
        let step = self.records_per_chunk() * self.record_len as usize;
        let end = self.data_len() as usize;
        chunk.saturating_mul(step).min(end)..chunk.saturating_add(1).saturating_mul(step).min(end)
    }

    pub(crate) fn list_len(&self) -> usize {
        self.chunks() * CRC_LEN
    }

    /// Length of the body: the list of checksums, then the records.
    pub(crate) fn body_len(&self) -> u64 {
        self.list_len() as u64 + self.data_len()
    }
}

/// The records of a chunked section. Each chunk is checked when it is asked for; chunks may be asked for in any order and from
/// several threads.
#[derive(Clone, Copy, Debug)]
pub struct Chunks<'a> {
    pub(crate) kind: SectionKind,
    pub(crate) layout: ChunkLayout,
    /// Checked against the table.
    pub(crate) list: &'a [u8],
    pub(crate) data: &'a [u8],
}

impl<'a> Chunks<'a> {
    /// How the records are divided.
    pub fn layout(&self) -> ChunkLayout {
        self.layout
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.layout.chunks()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.layout.records == 0
    }

    /// The records of chunk `chunk` (0 to [`Self::len`] - 1), one behind the other, after their checksum was found right.
    ///
    /// # Errors
    /// [`ImageError::DamagedChunk`].
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn chunk(&self, chunk: usize) -> Result<&'a [u8], ImageError> {
        assert!(chunk < self.len(), "chunk {chunk} of {}", self.len());
        let bytes = &self.data[self.layout.range(chunk)];
        if chunk_crc(bytes) == u32_at(self.list, chunk * CRC_LEN) {
            Ok(bytes)
        } else {
            Err(ImageError::DamagedChunk { kind: self.kind, chunk })
        }
    }

    /// Checks the chunks of a range without handing them out; several threads may check a range each.
    ///
    /// # Errors
    /// [`ImageError::DamagedChunk`], the first of the range.
    ///
    /// # Panics
    /// If the range goes beyond the last chunk.
    pub fn check(&self, chunks: Range<usize>) -> Result<(), ImageError> {
        for chunk in chunks {
            self.chunk(chunk)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_whole_records_and_leave_nothing_out() {
        for (records, record_len) in [(0, 128), (1, 128), (512, 128), (513, 128), (2000, 100), (3, CHUNK_LEN as u32), (70_000, 1)]
        {
            let l = ChunkLayout::new(records, record_len).unwrap();
            let mut at = 0;
            for chunk in 0..l.chunks() {
                let r = l.range(chunk);
                assert_eq!(r.start, at);
                assert!(!r.is_empty() && r.len() <= CHUNK_LEN && r.len().is_multiple_of(record_len as usize));
                at = r.end;
            }
            assert_eq!(at as u64, l.data_len());
            assert!(l.range(l.chunks()).is_empty() && l.range(usize::MAX).is_empty());
        }
    }

    #[test]
    fn impossible_layouts_are_none() {
        assert_eq!(ChunkLayout::new(1, 0), None);
        assert_eq!(ChunkLayout::new(1, CHUNK_LEN as u32 + 1), None);
        assert_eq!(ChunkLayout::new(u64::MAX, 2), None);
        assert_eq!(ChunkLayout::new(u64::MAX / 4, 1), None);
    }
}
