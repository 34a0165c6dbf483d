//! Images as a whole: what was written is read, and nothing else is.

use hibernet_snapshot::*;
use std::io::Read;
use std::ops::ControlFlow;

const TEXT: SectionKind = SectionKind(1);
const TABLE: SectionKind = SectionKind(2);
const NOTE: SectionKind = SectionKind(3);

fn known() -> [Known; 2] {
    [Known::new(TEXT, 1..=2), Known::new(TABLE, 1..=1)]
}

fn write(builder: &ImageBuilder<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let n = builder.write_to(&mut out, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((n, n), (out.len() as u64, builder.total_len()));
    out
}

fn records(n: usize) -> Vec<u8> {
    (0..n * 100).map(|i| (i % 251) as u8).collect()
}

/// An image with a plain section, two chunks of records, and a section that the reader does not know.
fn image(records: &[u8]) -> Vec<u8> {
    let mut b = ImageBuilder::new(GenerationId([1; 16]), 5, 6);
    b.plain(TEXT, 2, SectionFlags::REQUIRED, 1, &b"a text"[..]).unwrap();
    b.chunked(TABLE, 1, SectionFlags::REQUIRED, 100, records).unwrap();
    b.plain(NOTE, 9, SectionFlags::OPTIONAL, 0, b"who knows".to_vec()).unwrap();
    write(&b)
}

fn check(image: &Image<'_>, records: &[u8]) {
    image.check().unwrap();
    assert_eq!(image.section(TEXT).unwrap().body().unwrap(), b"a text");
    let chunks = image.section(TABLE).unwrap().chunks_of(100).unwrap();
    let read: Vec<u8> = (0..chunks.len()).flat_map(|n| chunks.chunk(n).unwrap()).copied().collect();
    assert_eq!(read, records);
    assert_eq!(image.section(NOTE).unwrap_err(), ImageError::Missing { kind: NOTE });
    assert_eq!(image.inventory().sections.len(), 3);
    let h = image.inventory().header;
    assert_eq!((h.generation, h.stack_time, h.created), (GenerationId([1; 16]), 5, 6));
}

/// An input that gives little at a time, and is interrupted now and then.
struct Drip<'a>(&'a [u8], usize);

impl Read for Drip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.1 += 1;
        if self.1.is_multiple_of(5) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let n = buf.len().min(self.0.len()).min(self.1 % 1000 + 1);
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

#[test]
fn what_was_written_is_read() {
    let records = records(1000);
    let bytes = image(&records);
    check(&Image::parse(&bytes, &known()).unwrap(), &records);
    check(&Image::read(&mut bytes.as_slice(), 1 << 30, &known()).unwrap(), &records);
    check(&Image::read(&mut Drip(&bytes, 0), bytes.len() as u64, &known()).unwrap(), &records);
    let mut drip = Drip(&bytes, 0);
    let inventory = Inventory::read(&mut drip).unwrap();
    assert_eq!(inventory, *Image::parse(&bytes, &known()).unwrap().inventory());
    // Nothing beyond the table was read.
    assert_eq!(bytes.len() - drip.0.len(), inventory.sections[0].offset as usize);
}
