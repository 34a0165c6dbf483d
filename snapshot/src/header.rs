//! The fixed header and the end mark.

use crate::{ImageError, u16_at, u32_at, u64_at};

/// First bytes of every image.
pub const MAGIC: [u8; 8] = *b"HIBRNET\0";
/// Images of another major version are refused.
pub const FORMAT_MAJOR: u16 = 1;
/// Images of a lower minor version are read; of those of a higher one only the inventory.
pub const FORMAT_MINOR: u16 = 0;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// First bytes of the end mark.
pub const END_MARK: [u8; 8] = *b"HIBREND\0";
/// Length of the end mark in bytes: [`END_MARK`], the header's CRC-32 and the table's, both once more.
pub const END_LEN: usize = 16;

const CRC_AT: usize = HEADER_LEN - 4;

/// Identity of one freeze: flows resume only from the image that matches their sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GenerationId(pub [u8; 16]);

/// The header of an image.
///
/// | bytes | what |
/// |---|---|
/// | 0-7 | [`MAGIC`] |
/// | 8-9, 10-11 | format version, major and minor |
/// | 12-15 | flags, zero |
/// | 16-31 | [`GenerationId`] |
/// | 32-39 | stack time at the freeze, nanoseconds |
/// | 40-47 | wall clock at the freeze, nanoseconds since 1970 |
/// | 48-55 | length of the whole image |
/// | 56-59 | number of sections |
/// | 60-63 | CRC-32 of bytes 0-59 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor version of the image's format.
    pub minor: u16,
    /// Properties of the image; none are defined, so this is 0 unless `minor` is later than [`FORMAT_MINOR`].
    pub flags: u32,
    /// Which freeze this is.
    pub generation: GenerationId,
    /// Stack time at the freeze, nanoseconds.
    pub stack_time: u64,
    /// Wall clock at the freeze, nanoseconds since 1970, as whoever froze it said; 0 if unknown. For people, and for what ages by
    /// the wall clock; never to be trusted further than that.
    pub created: u64,
    /// Length of the whole image in bytes, from the header to the end mark.
    pub total_len: u64,
    /// Number of sections, at most [`crate::MAX_SECTIONS`].
    pub sections: u32,
}

impl Header {
    /// Reads and checks the header at the beginning of `b`. A later minor version is no error here: its header and table have the
    /// same layout.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`], [`ImageError::Truncated`], [`ImageError::Version`] of another major version,
    /// [`ImageError::Damaged`], [`ImageError::Malformed`], [`ImageError::TooManySections`].
    pub fn parse(b: &[u8]) -> Result<Header, ImageError> {
        let start = b.len().min(MAGIC.len());
        if b[..start] != MAGIC[..start] {
            return Err(ImageError::NotAnImage);
        }
        if b.len() < HEADER_LEN {
            return Err(ImageError::Truncated { needed: HEADER_LEN as u64, have: b.len() as u64 });
        }
        let (major, minor) = (u16_at(b, 8), u16_at(b, 10));
        // Another version may have another layout: its CRC says nothing here.
        if major != FORMAT_MAJOR {
            return Err(ImageError::Version { major, minor });
        }
        if crc32fast::hash(&b[..CRC_AT]) != u32_at(b, CRC_AT) {
            return Err(ImageError::Damaged { part: "header" });
        }
        let h = Header {
            minor,
            flags: u32_at(b, 12),
            generation: GenerationId(core::array::from_fn(|i| b[16 + i])),
            stack_time: u64_at(b, 32),
            created: u64_at(b, 40),
            total_len: u64_at(b, 48),
            sections: u32_at(b, 56),
        };
        if h.flags != 0 && !h.is_newer() {
            return Err(ImageError::Malformed { what: "unknown flags in the header" });
        }
        if h.sections > crate::MAX_SECTIONS {
            return Err(ImageError::TooManySections(h.sections));
        }
        Ok(h)
    }

    /// Whether the image was written by a version whose bodies this one may not understand.
    pub fn is_newer(&self) -> bool {
        self.minor > FORMAT_MINOR
    }

    pub(crate) fn emit(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..8].copy_from_slice(&MAGIC);
        b[8..10].copy_from_slice(&FORMAT_MAJOR.to_le_bytes());
        b[10..12].copy_from_slice(&self.minor.to_le_bytes());
        b[12..16].copy_from_slice(&self.flags.to_le_bytes());
        b[16..32].copy_from_slice(&self.generation.0);
        b[32..40].copy_from_slice(&self.stack_time.to_le_bytes());
        b[40..48].copy_from_slice(&self.created.to_le_bytes());
        b[48..56].copy_from_slice(&self.total_len.to_le_bytes());
        b[56..60].copy_from_slice(&self.sections.to_le_bytes());
        let crc = crc32fast::hash(&b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        b
    }
}

/// The end mark of an image that begins with `head` (header and table). The checksums of all bodies are in the table, so this ties
/// the end to all that stands before. (A CRC of header and table together would not: that of bytes and their own CRC is the same
/// for all of a length.)
pub(crate) fn end_mark(head: &[u8]) -> [u8; END_LEN] {
    let mut b = [0; END_LEN];
    b[..8].copy_from_slice(&END_MARK);
    b[8..12].copy_from_slice(&head[CRC_AT..HEADER_LEN]);
    b[12..].copy_from_slice(&head[head.len() - 4..]);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            minor: 0,
            flags: 0,
            generation: GenerationId([7; 16]),
            stack_time: 1 << 40,
            created: 1 << 60,
            total_len: 4096,
            sections: 3,
        }
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(Header::parse(&header().emit()), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let good = header().emit();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(matches!(Header::parse(&good[..len]), Err(ImageError::Truncated { .. })), "length {len}");
        }
    }

    #[test]
    fn a_later_major_version_is_told_from_damage() {
        let mut b = header().emit();
        b[8] = 9;
        assert_eq!(Header::parse(&b), Err(ImageError::Version { major: 9, minor: 0 }));
    }

    #[test]
    fn a_later_minor_version_may_have_flags_ours_may_not() {
        let later = Header { minor: FORMAT_MINOR + 1, flags: 4, ..header() };
        assert_eq!(Header::parse(&later.emit()), Ok(later));
        let ours = Header { flags: 4, ..header() };
        assert_eq!(Header::parse(&ours.emit()), Err(ImageError::Malformed { what: "unknown flags in the header" }));
    }
}
