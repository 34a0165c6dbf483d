//! The table of sections, and the inventory of an image.

use crate::header::{END_LEN, HEADER_LEN};
use crate::image::fill;
use crate::{ChunkLayout, Header, ImageError, ReadError, u16_at, u32_at, u64_at};
use core::fmt;
use core::ops::RangeInclusive;
use std::io::Read;

/// Most sections of an image.
pub const MAX_SECTIONS: u32 = 256;
/// Length of a table entry in bytes.
pub const TABLE_ENTRY_LEN: usize = 40;
/// Behind the entries stands the table's own CRC-32.
const TABLE_CRC_LEN: usize = 4;

/// Length in bytes of a table of `n` sections.
const fn table_len(n: usize) -> usize {
    n * TABLE_ENTRY_LEN + TABLE_CRC_LEN
}

/// What a section holds. The numbers are their owners' business; the container only compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionKind(pub u32);

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Properties of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SectionFlags(pub u16);

impl SectionFlags {
    /// A reader that does not know the section's kind or version leaves it out.
    pub const OPTIONAL: SectionFlags = SectionFlags(0);
    /// An image with such a section of unknown kind or version cannot be restored.
    pub const REQUIRED: SectionFlags = SectionFlags(1);
    /// The body is a list of checksums and chunks of fixed-size records. Set by the writer, who knows.
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
/// | 0-3 | [`SectionKind`] |
/// | 4-5 | version of the body's layout |
/// | 6-7 | [`SectionFlags`] |
/// | 8-15, 16-23 | offset in the image, length |
/// | 24-31 | number of records |
/// | 32-35 | length of a record; 0 if not chunked |
/// | 36-39 | CRC-32 of the body, or of the list of checksums if chunked |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Version of its layout.
    pub version: u16,
    /// Properties.
    pub flags: SectionFlags,
    /// Where the body starts in the image, bytes.
    pub offset: u64,
    /// Length of the body in bytes.
    pub len: u64,
    /// Number of records in the body. Of a section that is not chunked, what its writer said, for people.
    pub records: u64,
    /// Length of a record in bytes, 1 to [`crate::CHUNK_LEN`]; 0 if the section is not chunked.
    pub record_len: u32,
    /// CRC-32 of the body; of its list of checksums alone if the section is chunked.
    pub crc: u32,
}

impl Section {
    /// How the records of a chunked section are divided; `None` if it is not chunked.
    pub fn layout(&self) -> Option<ChunkLayout> {
        if self.flags.has(SectionFlags::CHUNKED) { ChunkLayout::new(self.records, self.record_len) } else { None }
    }

    /// Reads an entry. `newer`: it may have flags that are unknown here.
    fn parse(b: &[u8], newer: bool) -> Result<Section, ImageError> {
        let s = Section {
            kind: SectionKind(u32_at(b, 0)),
            version: u16_at(b, 4),
            flags: SectionFlags(u16_at(b, 6)),
            offset: u64_at(b, 8),
            len: u64_at(b, 16),
            records: u64_at(b, 24),
            record_len: u32_at(b, 32),
            crc: u32_at(b, 36),
        };
        if newer {
            return Ok(s);
        }
        if s.flags.0 & !SectionFlags::KNOWN != 0 {
            return Err(ImageError::Malformed { what: "unknown flags of a section" });
        }
        if s.flags.has(SectionFlags::CHUNKED) {
            if s.layout().is_none_or(|l| l.body_len() != s.len) {
                return Err(ImageError::Malformed { what: "the length of a chunked section is not that of its records" });
            }
        } else if s.record_len != 0 {
            return Err(ImageError::Malformed { what: "a record length where there are no chunks" });
        }
        Ok(s)
    }

    fn emit(&self, b: &mut Vec<u8>) {
        b.extend_from_slice(&self.kind.0.to_le_bytes());
        b.extend_from_slice(&self.version.to_le_bytes());
        b.extend_from_slice(&self.flags.0.to_le_bytes());
        b.extend_from_slice(&self.offset.to_le_bytes());
        b.extend_from_slice(&self.len.to_le_bytes());
        b.extend_from_slice(&self.records.to_le_bytes());
        b.extend_from_slice(&self.record_len.to_le_bytes());
        b.extend_from_slice(&self.crc.to_le_bytes());
    }
}

/// A kind of section that a reader understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    kind: SectionKind,
    versions: RangeInclusive<u16>,
    /// Levels since which images have these versions, oldest first.
    since: &'static [u16],
    many: bool,
}

impl Known {
    /// A kind in some versions, of which an image has one section at most, of any level.
    pub const fn new(kind: SectionKind, versions: RangeInclusive<u16>) -> Known {
        Known { kind, versions, since: &[1], many: false }
    }

    /// The same, written in these versions since images are of these levels. There must be one for each version.
    pub const fn since(self, levels: &'static [u16]) -> Known {
        Known { since: levels, ..self }
    }

    /// What a reader of images up to a level knows; `None` if that has no such sections.
    pub fn at(&self, level: u16) -> Option<Known> {
        let newer = self.since.iter().filter(|since| **since > level).count();
        let newest = self.versions.end() - newer as u16;
        (newer < self.since.len()).then(|| Known { versions: *self.versions.start()..=newest, ..self.clone() })
    }

    /// The newest version.
    pub const fn newest(&self) -> u16 {
        *self.versions.end()
    }

    /// The level since which images have a version, if it is known.
    pub fn level_of(&self, version: u16) -> Option<u16> {
        let older = self.versions.contains(&version).then(|| version - self.versions.start())?;
        self.since.get(usize::from(older)).copied()
    }

    /// The same, but an image may have several.
    pub const fn many(self) -> Known {
        Known { many: true, ..self }
    }
}

/// What is in an image, without its bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The header.
    pub header: Header,
    /// The sections, in the order of their bodies.
    pub sections: Vec<Section>,
}

impl Inventory {
    /// Length in bytes of header and table of `sections` sections: where the first body starts.
    pub(crate) const fn head_len(sections: usize) -> usize {
        HEADER_LEN + table_len(sections)
    }

    /// Reads header and table at the beginning of `b`, which need not hold the bodies. Images of a later minor version, with
    /// sections of any kind and version, are no error: this is for looking at them.
    ///
    /// Sections stand in the order of their bodies, which follow one another without gap or overlap up to the end mark.
    ///
    /// # Errors
    /// As [`Header::parse`], and [`ImageError::Truncated`], [`ImageError::Damaged`] or [`ImageError::Malformed`] of the table.
    pub fn parse(b: &[u8]) -> Result<Inventory, ImageError> {
        let header = Header::parse(b)?;
        let head = Inventory::head_len(header.sections as usize);
        if b.len() < head {
            return Err(ImageError::Truncated { needed: head as u64, have: b.len() as u64 });
        }
        let table = &b[HEADER_LEN..head - TABLE_CRC_LEN];
        if crc32fast::hash(table) != u32_at(b, head - TABLE_CRC_LEN) {
            return Err(ImageError::Damaged { part: "section table" });
        }
        let mut next = head as u64;
        let mut sections = Vec::with_capacity(header.sections as usize);
        for entry in table.chunks_exact(TABLE_ENTRY_LEN) {
            let s = Section::parse(entry, header.is_newer())?;
            if s.offset != next {
                return Err(ImageError::Malformed { what: "sections overlap or leave a gap" });
            }
            next = s.offset.checked_add(s.len).ok_or(ImageError::Malformed { what: "a section is too long" })?;
            sections.push(s);
        }
        if next.checked_add(END_LEN as u64) != Some(header.total_len) {
            return Err(ImageError::Malformed { what: "the sections do not end where the image does" });
        }
        Ok(Inventory { header, sections })
    }

    /// Reads header and table from `input`, and nothing beyond them.
    ///
    /// # Errors
    /// As [`Self::parse`], and [`ReadError::Io`].
    pub fn read(input: &mut impl Read) -> Result<Inventory, ReadError> {
        let mut head = Vec::new();
        fill(input, &mut head, HEADER_LEN as u64)?;
        let sections = Header::parse(&head)?.sections as usize;
        fill(input, &mut head, Inventory::head_len(sections) as u64)?;
        Ok(Inventory::parse(&head)?)
    }

    /// Refuses what a reader who knows `known` cannot restore: a later minor version of the format, required sections of unknown
    /// kind or version, and two sections of a kind of which there is one.
    ///
    /// # Errors
    /// [`ImageError::Version`], [`ImageError::UnknownSection`], [`ImageError::SectionVersion`], [`ImageError::Duplicate`].
    pub fn check_known(&self, known: &[Known]) -> Result<(), ImageError> {
        if self.header.is_newer() {
            return Err(ImageError::Version { major: crate::FORMAT_MAJOR, minor: self.header.minor });
        }
        for (i, s) in self.sections.iter().enumerate() {
            let required = s.flags.has(SectionFlags::REQUIRED);
            let Some(k) = known.iter().find(|k| k.kind == s.kind) else {
                if required {
                    return Err(ImageError::UnknownSection { kind: s.kind });
                }
                continue;
            };
            if required && !k.versions.contains(&s.version) {
                return Err(ImageError::SectionVersion {
                    kind: s.kind,
                    version: s.version,
                    oldest: *k.versions.start(),
                    newest: *k.versions.end(),
                });
            }
            if !k.many && self.sections[..i].iter().any(|other| other.kind == s.kind) {
                return Err(ImageError::Duplicate { kind: s.kind });
            }
        }
        Ok(())
    }

    /// The level of the image: the lowest that a reader must be of to restore it. `None` if it has what is not among `known`.
    pub fn level(&self, known: &[Known]) -> Option<u16> {
        let required = self.sections.iter().filter(|s| s.flags.has(SectionFlags::REQUIRED));
        let mut levels = required.map(|s| known.iter().find(|k| k.kind == s.kind)?.level_of(s.version));
        levels.try_fold(1, |most, level| Some(most.max(level?)))
    }

    /// Whether a section is of a kind and version in `known`.
    pub(crate) fn is_known(section: &Section, known: &[Known]) -> bool {
        known.iter().any(|k| k.kind == section.kind && k.versions.contains(&section.version))
    }

    /// Header and table.
    pub(crate) fn emit(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(Inventory::head_len(self.sections.len()));
        b.extend_from_slice(&self.header.emit());
        self.sections.iter().for_each(|s| s.emit(&mut b));
        let crc = crc32fast::hash(&b[HEADER_LEN..]);
        b.extend_from_slice(&crc.to_le_bytes());
        b
    }
}
