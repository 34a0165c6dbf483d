//! The table of sections.

use crate::{HEADER_LEN, Header, ImageError, u16_at, u32_at, u64_at};

/// Most sections of an image.
pub const MAX_SECTIONS: u32 = 256;
/// Length of a table entry in bytes.
pub const TABLE_ENTRY_LEN: usize = 40;
/// Behind the entries stands the table's own CRC-32.
const TABLE_CRC_LEN: usize = 4;

/// Properties of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SectionFlags(pub u16);

impl SectionFlags {
    /// An image with such a section of unknown kind or version cannot be restored; others are skipped.
    pub const REQUIRED: SectionFlags = SectionFlags(1);
    /// The body is a run of chunks with a CRC each, of fixed-size records.
    pub const CHUNKED: SectionFlags = SectionFlags(2);

    const KNOWN: u16 = 3;

    /// Whether all of `other` are set.
    pub const fn has(self, other: SectionFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One entry of the table.
///
/// | bytes | what |
/// |---|---|
/// | 0-3 | kind |
/// | 4-5 | version of the body's layout |
/// | 6-7 | [`SectionFlags`] |
/// | 8-15, 16-23 | offset in the image, length |
/// | 24-31 | number of records |
/// | 32-35 | CRC-32 of the body |
/// | 36-39 | zero |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: u32,
    /// Version of its layout.
    pub version: u16,
    /// Properties.
    pub flags: SectionFlags,
    /// Where the body starts in the image.
    pub offset: u64,
    /// Length of the body.
    pub len: u64,
    /// Number of records in the body.
    pub records: u64,
    /// CRC-32 of the body.
    pub crc: u32,
}

impl Section {
    fn parse(b: &[u8]) -> Result<Section, ImageError> {
        let flags = u16_at(b, 6);
        if flags & !SectionFlags::KNOWN != 0 || u32_at(b, 36) != 0 {
            return Err(ImageError::Malformed { what: "unknown flags of a section" });
        }
        Ok(Section {
            kind: u32_at(b, 0),
            version: u16_at(b, 4),
            flags: SectionFlags(flags),
            offset: u64_at(b, 8),
            len: u64_at(b, 16),
            records: u64_at(b, 24),
            crc: u32_at(b, 32),
        })
    }

    fn emit(&self, b: &mut [u8]) {
        b[..4].copy_from_slice(&self.kind.to_le_bytes());
        b[4..6].copy_from_slice(&self.version.to_le_bytes());
        b[6..8].copy_from_slice(&self.flags.0.to_le_bytes());
        b[8..16].copy_from_slice(&self.offset.to_le_bytes());
        b[16..24].copy_from_slice(&self.len.to_le_bytes());
        b[24..32].copy_from_slice(&self.records.to_le_bytes());
        b[32..36].copy_from_slice(&self.crc.to_le_bytes());
    }
}

/// The inventory of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SectionTable(pub Vec<Section>);

impl SectionTable {
    /// Length in bytes of a table of `n` sections.
    pub const fn encoded_len(n: usize) -> usize {
        n * TABLE_ENTRY_LEN + TABLE_CRC_LEN
    }

    /// Reads the table that follows `header` in `image` (which need not hold the bodies). Sections stand in the order of
    /// their bodies, which follow one another without gap or overlap to the end of the image.
    pub fn parse(header: &Header, image: &[u8]) -> Result<SectionTable, ImageError> {
        let entries = header.sections as usize * TABLE_ENTRY_LEN;
        let end = HEADER_LEN + entries + TABLE_CRC_LEN;
        if image.len() < end {
            return Err(ImageError::Truncated { needed: end as u64, have: image.len() as u64 });
        }
        let table = &image[HEADER_LEN..HEADER_LEN + entries];
        if crc32fast::hash(table) != u32_at(image, end - TABLE_CRC_LEN) {
            return Err(ImageError::Damaged { part: "section table" });
        }
        let mut next = end as u64;
        let mut sections = Vec::with_capacity(header.sections as usize);
        for entry in table.chunks_exact(TABLE_ENTRY_LEN) {
            let s = Section::parse(entry)?;
            if s.offset != next {
                return Err(ImageError::Malformed { what: "sections overlap or leave a gap" });
            }
            next = s.offset.checked_add(s.len).ok_or(ImageError::Malformed { what: "a section is too long" })?;
            sections.push(s);
        }
        if next != header.total_len {
            return Err(ImageError::Malformed { what: "the sections do not end where the image does" });
        }
        Ok(SectionTable(sections))
    }

    /// The table's bytes, its CRC included.
    pub fn emit(&self) -> Vec<u8> {
        let mut b = vec![0; self.0.len() * TABLE_ENTRY_LEN];
        for (s, entry) in self.0.iter().zip(b.chunks_exact_mut(TABLE_ENTRY_LEN)) {
            s.emit(entry);
        }
        let crc = crc32fast::hash(&b);
        b.extend_from_slice(&crc.to_le_bytes());
        b
    }

    /// The body of a section in a whole image, after its CRC was found right.
    pub fn body<'a>(section: &Section, image: &'a [u8]) -> Result<&'a [u8], ImageError> {
        let have = image.len() as u64;
        let needed = section.offset.saturating_add(section.len);
        if needed > have {
            return Err(ImageError::Truncated { needed, have });
        }
        let body = &image[section.offset as usize..needed as usize];
        if crc32fast::hash(body) != section.crc { Err(ImageError::Damaged { part: "a section" }) } else { Ok(body) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GenerationId;

    fn image() -> Vec<u8> {
        let bodies: [&[u8]; 2] = [b"first body", b"second"];
        let mut offset = (HEADER_LEN + SectionTable::encoded_len(2)) as u64;
        let mut table = SectionTable::default();
        for (kind, body) in (1..).zip(bodies) {
            table.0.push(Section {
                kind,
                version: 1,
                flags: SectionFlags::REQUIRED,
                offset,
                len: body.len() as u64,
                records: 1,
                crc: crc32fast::hash(body),
            });
            offset += body.len() as u64;
        }
        let header = Header { minor: 0, generation: GenerationId([1; 16]), stack_time: 5, total_len: offset, sections: 2 };
        [&header.emit()[..], &table.emit(), bodies[0], bodies[1]].concat()
    }

    fn read(image: &[u8]) -> Result<Vec<Vec<u8>>, ImageError> {
        let header = Header::parse(image)?;
        let table = SectionTable::parse(&header, image)?;
        table.0.iter().map(|s| Ok(SectionTable::body(s, image)?.to_vec())).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read(&image()), Ok(vec![b"first body".to_vec(), b"second".to_vec()]));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let good = image();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(read(&good[..len]).is_err(), "length {len}");
        }
    }
}
