//! Container of hibernet images: a header that can be read without any codec, and a table of sections.
//!
//! An image is `header | section table | bodies | end mark`, all little-endian; `docs/snapshot-format.md` has the bytes. The
//! header and the table have a CRC of their own, so an inventory of an image of any version can be made without decoding a body;
//! a body is handed out only after its CRC was found right. This crate knows no protocol, no descriptor, no clock and no thread:
//! what a section means is its owner's business, and whoever wants chunks checked in parallel calls from several threads.
//!
//! ```
//! use hibernet_snapshot::{GenerationId, Image, ImageBuilder, Known, SectionFlags, SectionKind};
//! use std::ops::ControlFlow;
//!
//! const GREETING: SectionKind = SectionKind(1);
//! const TABLE: SectionKind = SectionKind(2);
//!
//! let records: Vec<u8> = (0..100_000).map(|n| n as u8).collect();
//! let mut builder = ImageBuilder::new(GenerationId([7; 16]), 5_000, 0);
//! builder.plain(GREETING, 1, SectionFlags::REQUIRED, 1, &b"hello"[..])?;
//! builder.chunked(TABLE, 1, SectionFlags::REQUIRED, 100, records.as_slice())?;
//! let mut file = Vec::new();
//! builder.write_to(&mut file, &mut |_written, _total| ControlFlow::Continue(()))?;
//!
//! let known = [Known::new(GREETING, 1..=1), Known::new(TABLE, 1..=1)];
//! let image = Image::parse(&file, &known)?;
//! assert_eq!(image.section(GREETING)?.body()?, b"hello");
//! let table = image.section(TABLE)?.chunks()?;
//! assert_eq!(table.chunk(1)?, &records[65_500..]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod builder;
mod chunk;
mod codec;
mod error;
mod guard;
mod header;
mod image;
mod persist;
mod section;
mod state;

pub use builder::{ChunkSource, ImageBuilder, Progress, chunk_crcs};
pub use chunk::{CHUNK_LEN, ChunkLayout, Chunks, chunk_crc};
pub use codec::{Bytes, CodecError, MAX_STATE_LEN, decode, encode};
pub use error::{ImageError, ReadError, StateError, WriteError};
pub use header::{END_LEN, END_MARK, FORMAT_MAJOR, FORMAT_MINOR, GenerationId, HEADER_LEN, Header, MAGIC};
pub use image::{Image, SectionRef};
pub use persist::Persist;
pub use section::{Inventory, Known, MAX_SECTIONS, Section, SectionFlags, SectionKind, TABLE_ENTRY_LEN};
pub use state::{Inexpressible, SectionState, Upgrade, VersionError, decode_version, encode_version};

pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}
