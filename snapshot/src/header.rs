//! The fixed header.

use crate::{ImageError, u16_at, u32_at, u64_at};

/// First bytes of every image.
pub const MAGIC: [u8; 8] = *b"HIBRNET\0";
/// Images of another major version are refused.
pub const FORMAT_MAJOR: u16 = 1;
/// Images of a lower minor version are read.
pub const FORMAT_MINOR: u16 = 0;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 56;

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
/// | 40-47 | length of the whole image |
/// | 48-51 | number of sections |
/// | 52-55 | CRC-32 of bytes 0-51 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor version of the image's format.
    pub minor: u16,
    /// Which freeze this is.
    pub generation: GenerationId,
    /// Stack time at the freeze, nanoseconds.
    pub stack_time: u64,
    /// Length of the whole image in bytes.
    pub total_len: u64,
    /// Number of sections, at most [`crate::MAX_SECTIONS`].
    pub sections: u32,
}

impl Header {
    /// Reads and checks a header.
    pub fn parse(b: &[u8]) -> Result<Header, ImageError> {
        if b.len() >= MAGIC.len() && b[..MAGIC.len()] != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        if b.len() < HEADER_LEN {
            return Err(ImageError::Truncated { needed: HEADER_LEN as u64, have: b.len() as u64 });
        }
        let (major, minor) = (u16_at(b, 8), u16_at(b, 10));
        // Another version may have another layout: its CRC says nothing here.
        if major != FORMAT_MAJOR || minor > FORMAT_MINOR {
            return Err(ImageError::Version { major, minor });
        }
        if crc32fast::hash(&b[..52]) != u32_at(b, 52) {
            return Err(ImageError::Damaged { part: "header" });
        }
        if u32_at(b, 12) != 0 {
            return Err(ImageError::Malformed { what: "unknown flags" });
        }
        let h = Header {
            minor,
            generation: GenerationId(core::array::from_fn(|i| b[16 + i])),
            stack_time: u64_at(b, 32),
            total_len: u64_at(b, 40),
            sections: u32_at(b, 48),
        };
        if h.sections > crate::MAX_SECTIONS {
            return Err(ImageError::TooManySections(h.sections));
        }
        Ok(h)
    }

    /// The header's bytes, in the current format.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..8].copy_from_slice(&MAGIC);
        b[8..10].copy_from_slice(&FORMAT_MAJOR.to_le_bytes());
        b[10..12].copy_from_slice(&self.minor.to_le_bytes());
        b[16..32].copy_from_slice(&self.generation.0);
        b[32..40].copy_from_slice(&self.stack_time.to_le_bytes());
        b[40..48].copy_from_slice(&self.total_len.to_le_bytes());
        b[48..52].copy_from_slice(&self.sections.to_le_bytes());
        let crc = crc32fast::hash(&b[..52]);
        b[52..].copy_from_slice(&crc.to_le_bytes());
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { minor: 0, generation: GenerationId([7; 16]), stack_time: 1 << 40, total_len: 4096, sections: 3 }
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
            assert!(Header::parse(&good[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut b = header().emit();
        b[8] = 9;
        assert_eq!(Header::parse(&b), Err(ImageError::Version { major: 9, minor: 0 }));
    }
}
