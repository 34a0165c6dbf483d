//! Container of hibernet images: a header that can be read without any codec, and a table of sections.
//!
//! An image is `header | section table | bodies`. Everything is little-endian. The header and the table have a CRC of
//! their own, so an inventory of an image of any version can be made without decoding a body; a body's CRC is checked
//! before anybody decodes it. This crate knows no protocol, no descriptor and no clock: what a section means is its
//! owner's business.
#![forbid(unsafe_code)]

mod header;
mod persist;
mod section;

pub use header::{FORMAT_MAJOR, FORMAT_MINOR, GenerationId, HEADER_LEN, Header, MAGIC};
pub use persist::Persist;
pub use section::{MAX_SECTIONS, Section, SectionFlags, SectionTable, TABLE_ENTRY_LEN};

/// Why bytes are not a usable image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file ends before what it announces.
    #[error("the image is truncated: {needed} bytes needed, {have} there")]
    Truncated {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        have: u64,
    },
    /// It does not start as an image does.
    #[error("this is no hibernet image")]
    NotAnImage,
    /// Written by a version whose format this one does not read.
    #[error("the image has format {major}.{minor}; this version reads {FORMAT_MAJOR}.0 to {FORMAT_MAJOR}.{FORMAT_MINOR}")]
    Version {
        /// Major version of the image's format.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A CRC is wrong: the image was damaged.
    #[error("the image is damaged: wrong checksum of {part}")]
    Damaged {
        /// What was checked.
        part: &'static str,
    },
    /// A field has an impossible value.
    #[error("the image is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// More sections than an image may have.
    #[error("{0} sections, but an image has at most {MAX_SECTIONS}")]
    TooManySections(u32),
}

pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}
