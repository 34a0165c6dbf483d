//! What can be wrong with an image, with reading and with writing it.

use crate::{CodecError, FORMAT_MAJOR, FORMAT_MINOR, MAX_SECTIONS, SectionKind};
use std::io;

/// Why bytes are not a usable image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The image ends before what it announces.
    #[error("the image is truncated: {needed} bytes needed, {have} there; copy it again from where it was written")]
    Truncated {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        have: u64,
    },
    /// Bytes follow the end mark.
    #[error("bytes follow the end of the image at {end}; it was joined with something else")]
    TrailingBytes {
        /// Length of the image in bytes.
        end: u64,
    },
    /// It does not start as an image does.
    #[error("this is no hibernet image")]
    NotAnImage,
    /// Written by a version whose format this one does not read.
    #[error(
        "the image has format {major}.{minor}, this version reads {FORMAT_MAJOR}.0 to {FORMAT_MAJOR}.{FORMAT_MINOR}; use the \
         version of hibernet that wrote it, or a later one"
    )]
    Version {
        /// Major version of the image's format.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A checksum of the header, the table or the end mark is wrong.
    #[error("the image is damaged: wrong checksum of its {part}; use another copy")]
    Damaged {
        /// What was checked.
        part: &'static str,
    },
    /// The checksum of a plain section's body, or of a chunked section's list of checksums, is wrong.
    #[error("the image is damaged: wrong checksum of section {kind}; use another copy")]
    DamagedSection {
        /// Which section.
        kind: SectionKind,
    },
    /// The checksum of a chunk is wrong.
    #[error("the image is damaged: wrong checksum of chunk {chunk} of section {kind}; use another copy")]
    DamagedChunk {
        /// Which section.
        kind: SectionKind,
        /// Which of its chunks, from 0.
        chunk: usize,
    },
    /// A field has an impossible value, under a right checksum: it was not written by hibernet.
    #[error("the image is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// More sections than an image may have.
    #[error("{0} sections, but an image has at most {MAX_SECTIONS}")]
    TooManySections(u32),
    /// Longer than the reader allows.
    #[error("the image has {len} bytes, at most {max} are allowed here")]
    TooLong {
        /// Length of the image in bytes.
        len: u64,
        /// What the caller allows.
        max: u64,
    },
    /// A section that must be understood is of an unknown kind.
    #[error("section {kind} of the image is unknown here and cannot be left out; use the version of hibernet that wrote it")]
    UnknownSection {
        /// Its kind.
        kind: SectionKind,
    },
    /// A section that must be understood has an unknown version.
    #[error(
        "section {kind} of the image has version {version}, known here are {oldest} to {newest}; use the version of hibernet that \
         wrote it"
    )]
    SectionVersion {
        /// Its kind.
        kind: SectionKind,
        /// Its version.
        version: u16,
        /// The oldest version that the reader knows.
        oldest: u16,
        /// The newest.
        newest: u16,
    },
    /// Two sections of a kind of which there is one at most.
    #[error("the image has section {kind} twice")]
    Duplicate {
        /// Their kind.
        kind: SectionKind,
    },
    /// A section that the reader needs is not there.
    #[error("the image has no section {kind}")]
    Missing {
        /// Its kind.
        kind: SectionKind,
    },
    /// A chunked section where a plain one is wanted, or the other way round, or records of another length.
    #[error("section {kind} of the image has another shape than its kind and version have")]
    Shape {
        /// Its kind.
        kind: SectionKind,
    },
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The input failed.
    #[error("cannot read the image after {at} bytes: {source}")]
    Io {
        /// Bytes read before.
        at: u64,
        /// What the input said.
        source: io::Error,
    },
    /// The bytes are no usable image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output failed.
    #[error("cannot write the image after {at} of {total} bytes: {source}")]
    Io {
        /// Bytes written before (at least).
        at: u64,
        /// Bytes to write in all.
        total: u64,
        /// What the output said.
        source: io::Error,
    },
    /// The caller's progress function ended it. What was written is no image.
    #[error("writing the image was cancelled after {at} of {total} bytes")]
    Cancelled {
        /// Bytes written before.
        at: u64,
        /// Bytes to write in all.
        total: u64,
    },
    /// More sections than an image may have.
    #[error("an image has at most {MAX_SECTIONS} sections")]
    TooManySections,
    /// Records of an impossible length, no whole number of them, or not one checksum for each chunk.
    #[error("section {kind}: its records cannot be divided into the chunks that were asked for")]
    Layout {
        /// Which section.
        kind: SectionKind,
    },
    /// A state could not be encoded.
    #[error("section {kind} cannot be encoded: {source}")]
    Codec {
        /// Which section.
        kind: SectionKind,
        /// What the codec said.
        source: CodecError,
    },
    /// A state cannot be had in an image of the level that was asked for.
    #[error("section {kind} cannot be written at level {level}: {why}")]
    Level {
        /// Which section.
        kind: SectionKind,
        /// The level.
        level: u16,
        /// What its images have no way to say.
        why: String,
    },
    /// A source gave bytes other than those that were checksummed, or another number of them. What was written is no image.
    #[error("chunk {chunk} of section {kind} changed while the image was written")]
    SourceChanged {
        /// Which section.
        kind: SectionKind,
        /// Which chunk, from 0.
        chunk: usize,
    },
}

/// Why the state in a section could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The container is wrong.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The body passed its checksum, but is not of the type that its kind and version say.
    #[error("section {kind} of the image, version {version}, cannot be decoded: {source}")]
    Codec {
        /// Which section.
        kind: SectionKind,
        /// Its version.
        version: u16,
        /// What the codec said.
        source: CodecError,
    },
}
