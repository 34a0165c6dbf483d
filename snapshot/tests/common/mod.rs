//! Images to test with.
#![allow(dead_code, reason = "each test uses its part")]

use hibernet_snapshot::*;
use std::io::Read;
use std::ops::ControlFlow;

pub const TEXT: SectionKind = SectionKind(1);
pub const TABLE: SectionKind = SectionKind(2);
/// Not known to the readers of these tests.
pub const NOTE: SectionKind = SectionKind(3);

pub fn known() -> [Known; 2] {
    [Known::new(TEXT, 1..=2), Known::new(TABLE, 1..=1)]
}

pub fn builder<'a>() -> ImageBuilder<'a> {
    ImageBuilder::new(GenerationId([1; 16]), 5, 6)
}

pub fn write(builder: &ImageBuilder<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let n = builder.write_to(&mut out, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((n, n), (out.len() as u64, builder.total_len()));
    out
}

pub fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// An image with a plain section, records of 100 bytes, and a section that the reader does not know.
pub fn image(records: &[u8]) -> Vec<u8> {
    let mut b = builder();
    b.plain(TEXT, 2, SectionFlags::REQUIRED, 1, &b"a text"[..]).unwrap();
    b.chunked(TABLE, 1, SectionFlags::REQUIRED, 100, records).unwrap();
    b.plain(NOTE, 9, SectionFlags::OPTIONAL, 0, b"a note".to_vec()).unwrap();
    write(&b)
}

/// Length of header and table of an image with `sections` sections.
pub fn head_len(sections: usize) -> usize {
    HEADER_LEN + sections * TABLE_ENTRY_LEN + 4
}

/// Gives an image right checksums of header, table and end again.
pub fn seal(image: &mut [u8]) {
    let crc = crc32(&image[..60]);
    image[60..64].copy_from_slice(&crc);
    let sections = u32::from_le_bytes(image[56..60].try_into().unwrap()) as usize;
    let head = head_len(sections);
    if image.len() < head + END_LEN {
        return;
    }
    let crc = crc32(&image[HEADER_LEN..head - 4]);
    image[head - 4..head].copy_from_slice(&crc);
    let end = image.len();
    image.copy_within(60..64, end - 8);
    image.copy_within(head - 4..head, end - 4);
}

/// CRC-32 (IEEE 802.3), bit by bit.
pub fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = !0u32;
    for b in bytes {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

/// Reads everything that there is, from memory.
pub fn parse(bytes: &[u8]) -> Result<(), ImageError> {
    Image::parse(bytes, &known())?.check()
}

/// The same, from a pipe.
pub fn read(bytes: &[u8]) -> Result<(), ImageError> {
    match Image::read(&mut Drip::new(bytes), 1 << 40, &known()) {
        Ok(image) => image.check(),
        Err(ReadError::Image(e)) => Err(e),
        Err(e) => panic!("{e}"),
    }
}

/// An input that gives little at a time, and is interrupted now and then.
pub struct Drip<'a> {
    pub rest: &'a [u8],
    turn: usize,
}

impl<'a> Drip<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Drip { rest, turn: 0 }
    }
}

impl Read for Drip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.turn += 1;
        if self.turn.is_multiple_of(5) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let n = buf.len().min(self.rest.len()).min(self.turn % 1000 + 1);
        buf[..n].copy_from_slice(&self.rest[..n]);
        self.rest = &self.rest[n..];
        Ok(n)
    }
}
