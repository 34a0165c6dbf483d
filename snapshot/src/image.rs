//! Reading of whole images.

use crate::header::{END_LEN, HEADER_LEN, end_mark};
use crate::{Chunks, Header, ImageError, Inventory, Known, ReadError, Section, SectionKind};
use crate::{SectionState, StateError, decode_version};
use std::borrow::Cow;
use std::io::{self, Read};

/// An input is believed for so many bytes before it has given any.
const STEP: u64 = 1 << 20;

/// A whole image, whose header, table and end were checked. Bodies are checked when they are asked for.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    bytes: Cow<'a, [u8]>,
    inventory: Inventory,
    /// For each section, whether the reader knows it.
    known: Vec<bool>,
}

impl<'a> Image<'a> {
    /// An image that is in memory as a whole, to be read by someone who knows `known`.
    ///
    /// # Errors
    /// As [`Inventory::parse`] and [`Inventory::check_known`]; [`ImageError::Truncated`], [`ImageError::TrailingBytes`].
    pub fn parse(bytes: &'a [u8], known: &[Known]) -> Result<Image<'a>, ImageError> {
        let inventory = Inventory::parse(bytes)?;
        inventory.check_known(known)?;
        Image::assemble(Cow::Borrowed(bytes), inventory, known)
    }

    /// Reads an image of `max` bytes at most from `input`, a file or a pipe, which must end where the image does. What an image
    /// says of its length is believed as far as the input bears it out: memory is never more than twice what was read, and 1 MiB.
    ///
    /// # Errors
    /// As [`Self::parse`]; [`ImageError::TooLong`]; [`ReadError::Io`].
    pub fn read(input: &mut impl Read, max: u64, known: &[Known]) -> Result<Image<'static>, ReadError> {
        let mut bytes = Vec::new();
        fill(input, &mut bytes, HEADER_LEN as u64)?;
        let header = Header::parse(&bytes)?;
        let len = header.total_len;
        if len > max {
            return Err(ImageError::TooLong { len, max }.into());
        }
        fill(input, &mut bytes, Inventory::head_len(header.sections as usize) as u64)?;
        let inventory = Inventory::parse(&bytes)?;
        inventory.check_known(known)?;
        fill(input, &mut bytes, len)?;
        match fill(input, &mut Vec::new(), 1) {
            Ok(()) => return Err(ImageError::TrailingBytes { end: len }.into()),
            Err(ReadError::Io { source, .. }) => return Err(ReadError::Io { at: len, source }),
            Err(ReadError::Image(_)) => {}
        }
        Ok(Image::assemble(Cow::Owned(bytes), inventory, known)?)
    }

    fn assemble(bytes: Cow<'a, [u8]>, inventory: Inventory, known: &[Known]) -> Result<Image<'a>, ImageError> {
        let (have, needed) = (bytes.len() as u64, inventory.header.total_len);
        if have < needed {
            return Err(ImageError::Truncated { needed, have });
        }
        if have > needed {
            return Err(ImageError::TrailingBytes { end: needed });
        }
        let head = &bytes[..Inventory::head_len(inventory.sections.len())];
        if bytes[bytes.len() - END_LEN..] != end_mark(head) {
            return Err(ImageError::Damaged { part: "end mark" });
        }
        let known = inventory.sections.iter().map(|s| Inventory::is_known(s, known)).collect();
        Ok(Image { bytes, inventory, known })
    }

    /// Header and table.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The sections of a kind and version that the reader knows, in the order of the image.
    pub fn sections(&self) -> impl Iterator<Item = SectionRef<'_>> {
        self.all().zip(&self.known).filter_map(|(s, known)| known.then_some(s))
    }

    /// The first section of a kind, in a version that the reader knows.
    ///
    /// # Errors
    /// [`ImageError::Missing`].
    pub fn section(&self, kind: SectionKind) -> Result<SectionRef<'_>, ImageError> {
        self.sections().find(|s| s.entry.kind == kind).ok_or(ImageError::Missing { kind })
    }

    /// The state in the section of its kind, whatever its version.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn state<T: SectionState>(&self) -> Result<T, StateError> {
        self.section(T::KIND)?.state()
    }

    /// Checks every body, those of unknown sections too.
    ///
    /// # Errors
    /// [`ImageError::DamagedSection`], [`ImageError::DamagedChunk`].
    pub fn check(&self) -> Result<(), ImageError> {
        for s in self.all() {
            if s.entry.layout().is_some() {
                let chunks = s.chunks()?;
                chunks.check(0..chunks.len())?;
            } else {
                s.body()?;
            }
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = SectionRef<'_>> {
        self.inventory.sections.iter().map(|entry| {
            // Within the image, as its table was checked and its length is what its header says.
            let start = entry.offset as usize;
            SectionRef { entry, bytes: &self.bytes[start..start + entry.len as usize] }
        })
    }
}

/// A section of an image.
#[derive(Clone, Copy, Debug)]
pub struct SectionRef<'a> {
    entry: &'a Section,
    bytes: &'a [u8],
}

impl<'a> SectionRef<'a> {
    /// Its entry in the table.
    pub fn entry(&self) -> &'a Section {
        self.entry
    }

    /// The body of a plain section, after its checksum was found right.
    ///
    /// # Errors
    /// [`ImageError::DamagedSection`]; [`ImageError::Shape`] if the section is chunked.
    pub fn body(&self) -> Result<&'a [u8], ImageError> {
        let kind = self.entry.kind;
        if self.entry.layout().is_some() {
            return Err(ImageError::Shape { kind });
        }
        if crc32fast::hash(self.bytes) != self.entry.crc {
            return Err(ImageError::DamagedSection { kind });
        }
        Ok(self.bytes)
    }

    /// The chunks of a chunked section, after the list of their checksums was found right.
    ///
    /// # Errors
    /// [`ImageError::DamagedSection`]; [`ImageError::Shape`] if the section is not chunked.
    pub fn chunks(&self) -> Result<Chunks<'a>, ImageError> {
        let kind = self.entry.kind;
        let layout = self.entry.layout().ok_or(ImageError::Shape { kind })?;
        let (list, data) = self.bytes.split_at(layout.list_len());
        if crc32fast::hash(list) != self.entry.crc {
            return Err(ImageError::DamagedSection { kind });
        }
        Ok(Chunks { kind, layout, list, data })
    }

    /// As [`Self::chunks`], where records of `record_len` bytes are wanted.
    ///
    /// # Errors
    /// As [`Self::chunks`]; [`ImageError::Shape`] if the records have another length.
    pub fn chunks_of(&self, record_len: u32) -> Result<Chunks<'a>, ImageError> {
        if self.entry.record_len != record_len {
            return Err(ImageError::Shape { kind: self.entry.kind });
        }
        self.chunks()
    }

    /// The state in a plain section, whatever its version.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn state<T: SectionState>(&self) -> Result<T, StateError> {
        let (kind, version) = (self.entry.kind, self.entry.version);
        decode_version(version, self.body()?).map_err(|source| StateError::Codec { kind, version, source })
    }
}

/// Reads from `input` until `to` has `end` bytes. Memory is taken in steps that what was read justifies.
pub(crate) fn fill(input: &mut impl Read, to: &mut Vec<u8>, end: u64) -> Result<(), ReadError> {
    while (to.len() as u64) < end {
        let have = to.len() as u64;
        let step = (end - have).min(have.max(STEP));
        let room = to.try_reserve_exact(step as usize).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory));
        room.and_then(|()| Read::take(&mut *input, step).read_to_end(to))
            .map_err(|source| ReadError::Io { at: to.len() as u64, source })?;
        if (to.len() as u64) < have + step {
            return Err(ImageError::Truncated { needed: end, have: to.len() as u64 }.into());
        }
    }
    Ok(())
}
