//! Writing of images.

use crate::header::{END_LEN, FORMAT_MINOR, end_mark};
use crate::{
    ChunkLayout, GenerationId, Header, Inventory, MAX_SECTIONS, Section, SectionFlags, SectionKind, WriteError, chunk_crc,
};
use crate::{SectionState, VersionError, encode_version};
use core::ops::{ControlFlow, Range};
use std::borrow::Cow;
use std::io::Write;

/// Most bytes that are written between two calls of the progress function.
const STEP: usize = 1 << 20;

/// Told how many bytes are written, and of how many; whether to go on.
pub type Progress<'p> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'p;

/// Where the records of a chunked section come from. Asked for the same chunk again, a source must give the same bytes: they are
/// needed for their checksums, which stand in front of them, and again when they are written.
pub trait ChunkSource {
    /// The bytes of chunk `chunk` of `layout`: memory of the source's own, or `buf`, which has their exact length, filled.
    fn chunk<'b>(&'b self, chunk: usize, layout: &ChunkLayout, buf: &'b mut [u8]) -> &'b [u8];
}

/// Records that stand in memory as they do in the image.
impl ChunkSource for &[u8] {
    fn chunk<'b>(&'b self, chunk: usize, layout: &ChunkLayout, _: &'b mut [u8]) -> &'b [u8] {
        self.get(layout.range(chunk)).unwrap_or_default()
    }
}

/// A function that is given the number of a chunk and fills its bytes.
impl<F: Fn(usize, &mut [u8])> ChunkSource for F {
    fn chunk<'b>(&'b self, chunk: usize, _: &ChunkLayout, buf: &'b mut [u8]) -> &'b [u8] {
        self(chunk, buf);
        buf
    }
}

/// The checksums of a range of a source's chunks: for [`ImageBuilder::chunked_from`]. Several threads may work on a range each.
pub fn chunk_crcs(source: &impl ChunkSource, layout: &ChunkLayout, chunks: Range<usize>) -> Vec<u32> {
    let mut buf = vec![0; layout.range(0).len()];
    chunks.map(|n| chunk_crc(source.chunk(n, layout, &mut buf[..layout.range(n).len()]))).collect()
}

enum Body<'a> {
    Plain(Cow<'a, [u8]>),
    Chunked { layout: ChunkLayout, list: Vec<u8>, source: Box<dyn ChunkSource + Send + 'a> },
}

/// Collects what an image is made of, then writes it.
pub struct ImageBuilder<'a> {
    header: Header,
    level: u16,
    sections: Vec<Section>,
    bodies: Vec<Body<'a>>,
}

impl<'a> ImageBuilder<'a> {
    /// An image without sections. `stack_time`: at the freeze, nanoseconds; `created`: the wall clock then, nanoseconds since
    /// 1970, or 0.
    pub fn new(generation: GenerationId, stack_time: u64, created: u64) -> ImageBuilder<'a> {
        let header = Header { minor: FORMAT_MINOR, flags: 0, generation, stack_time, created, total_len: 0, sections: 0 };
        ImageBuilder { header, level: u16::MAX, sections: Vec::new(), bodies: Vec::new() }
    }

    /// Has states written as images of a level have them. Levels number what sections, in which versions, the images of a program have: each change
    /// of a version, and each new section, begins one. Without this, states are written in their newest versions.
    #[must_use]
    pub fn at_level(self, level: u16) -> Self {
        ImageBuilder { level, ..self }
    }

    /// The level; that of the newest versions is the highest number.
    pub fn level(&self) -> u16 {
        self.level
    }

    /// Adds a plain section. Of `flags` only [`SectionFlags::REQUIRED`] is the caller's choice; `records` is for people who look
    /// at the inventory.
    ///
    /// # Errors
    /// [`WriteError::TooManySections`].
    pub fn plain(
        &mut self,
        kind: SectionKind,
        version: u16,
        flags: SectionFlags,
        records: u64,
        body: impl Into<Cow<'a, [u8]>>,
    ) -> Result<&mut Self, WriteError> {
        let body = body.into();
        let flags = SectionFlags(flags.0 & SectionFlags::REQUIRED.0);
        let (len, crc) = (body.len() as u64, crc32fast::hash(&body));
        self.add(Section { kind, version, flags, offset: 0, len, records, record_len: 0, crc }, Body::Plain(body))
    }

    /// Adds a state, encoded, as a plain section of its kind, and of the version of the image's level. If that has no such sections, one that is not
    /// required is left out.
    ///
    /// # Errors
    /// [`WriteError::TooManySections`], [`WriteError::Codec`], [`WriteError::Level`].
    pub fn state<T: SectionState>(&mut self, flags: SectionFlags, records: u64, state: &T) -> Result<&mut Self, WriteError> {
        let (kind, level) = (T::KIND, self.level);
        let Some(version) = T::version_at(level) else {
            let why = "its images have no such section".to_owned();
            return if flags.has(SectionFlags::REQUIRED) { Err(WriteError::Level { kind, level, why }) } else { Ok(self) };
        };
        let body = encode_version(version, state).map_err(|e| match e {
            VersionError::Codec(source) => WriteError::Codec { kind, source },
            VersionError::Inexpressible(why) => WriteError::Level { kind, level, why: why.to_string() },
        })?;
        self.plain(kind, version, flags, records, body)
    }

    /// Adds a chunked section of records that stand one behind the other in `data`, and computes its checksums.
    ///
    /// # Errors
    /// [`WriteError::TooManySections`]; [`WriteError::Layout`] if `data` is no whole number of records of `record_len` bytes (1 to
    /// [`crate::CHUNK_LEN`]).
    pub fn chunked(
        &mut self,
        kind: SectionKind,
        version: u16,
        flags: SectionFlags,
        record_len: u32,
        data: &'a [u8],
    ) -> Result<&mut Self, WriteError> {
        let records = (data.len() as u64).checked_div(u64::from(record_len)).unwrap_or(0);
        let layout = ChunkLayout::new(records, record_len)
            .filter(|l| l.data_len() == data.len() as u64)
            .ok_or(WriteError::Layout { kind })?;
        let crcs = chunk_crcs(&data, &layout, 0..layout.chunks());
        self.chunked_from(kind, version, flags, layout, &crcs, data)
    }

    /// Adds a chunked section of records that `source` gives when the image is written. `crcs`: the checksums of all chunks, see
    /// [`chunk_crcs`].
    ///
    /// # Errors
    /// [`WriteError::TooManySections`]; [`WriteError::Layout`] if there are more or fewer checksums than chunks.
    pub fn chunked_from(
        &mut self,
        kind: SectionKind,
        version: u16,
        flags: SectionFlags,
        layout: ChunkLayout,
        crcs: &[u32],
        source: impl ChunkSource + Send + 'a,
    ) -> Result<&mut Self, WriteError> {
        if crcs.len() != layout.chunks() {
            return Err(WriteError::Layout { kind });
        }
        let list: Vec<u8> = crcs.iter().flat_map(|c| c.to_le_bytes()).collect();
        let section = Section {
            kind,
            version,
            flags: SectionFlags(flags.0 & SectionFlags::REQUIRED.0 | SectionFlags::CHUNKED.0),
            offset: 0,
            len: layout.body_len(),
            records: layout.records(),
            record_len: layout.record_len(),
            crc: crc32fast::hash(&list),
        };
        self.add(section, Body::Chunked { layout, list, source: Box::new(source) })
    }

    fn add(&mut self, section: Section, body: Body<'a>) -> Result<&mut Self, WriteError> {
        if self.sections.len() as u32 == MAX_SECTIONS {
            return Err(WriteError::TooManySections);
        }
        self.sections.push(section);
        self.bodies.push(body);
        Ok(self)
    }

    /// Length in bytes of the image as it stands.
    pub fn total_len(&self) -> u64 {
        let bodies: u64 = self.sections.iter().map(|s| s.len).sum();
        Inventory::head_len(self.sections.len()) as u64 + bodies + END_LEN as u64
    }

    /// Header and table as they would be written now.
    pub fn inventory(&self) -> Inventory {
        let mut header = self.header;
        header.sections = self.sections.len() as u32;
        header.total_len = self.total_len();
        let mut offset = Inventory::head_len(self.sections.len()) as u64;
        let mut sections = self.sections.clone();
        for s in &mut sections {
            s.offset = offset;
            offset += s.len;
        }
        Inventory { header, sections }
    }

    /// Writes the image, front to back, so that `out` may be a pipe, and returns its length in bytes. Needs one chunk of memory
    /// beside header, table and what was added. Each chunk is checked once more, so that what was written can be read.
    ///
    /// `progress` is called at the beginning and after each piece of at most 1 MiB. Nothing is flushed or synchronised.
    ///
    /// # Errors
    /// [`WriteError::Io`], [`WriteError::Cancelled`], [`WriteError::SourceChanged`].
    pub fn write_to(&self, out: &mut impl Write, progress: &mut Progress<'_>) -> Result<u64, WriteError> {
        let head = self.inventory().emit();
        let mut w = Output { out, progress, at: 0, total: self.total_len() };
        w.report()?;
        w.put(&head)?;
        let mut buf = Vec::new();
        for (section, body) in self.sections.iter().zip(&self.bodies) {
            match body {
                Body::Plain(body) => w.put(body)?,
                Body::Chunked { layout, list, source } => {
                    w.put(list)?;
                    buf.resize(layout.range(0).len(), 0);
                    for (chunk, crc) in list.chunks_exact(4).enumerate() {
                        let len = layout.range(chunk).len();
                        let bytes = source.chunk(chunk, layout, &mut buf[..len]);
                        if bytes.len() != len || chunk_crc(bytes).to_le_bytes() != crc {
                            return Err(WriteError::SourceChanged { kind: section.kind, chunk });
                        }
                        w.put(bytes)?;
                    }
                }
            }
        }
        w.put(&end_mark(&head))?;
        Ok(w.at)
    }
}

struct Output<'w, 'p, W> {
    out: &'w mut W,
    progress: &'w mut Progress<'p>,
    at: u64,
    total: u64,
}

impl<W: Write> Output<'_, '_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        for piece in bytes.chunks(STEP) {
            let (at, total) = (self.at, self.total);
            self.out.write_all(piece).map_err(|source| WriteError::Io { at, total, source })?;
            self.at += piece.len() as u64;
            self.report()?;
        }
        Ok(())
    }

    fn report(&mut self) -> Result<(), WriteError> {
        match (self.progress)(self.at, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(WriteError::Cancelled { at: self.at, total: self.total }),
        }
    }
}
