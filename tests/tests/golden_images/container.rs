//! The container: header, table, plain and chunked sections, end mark.

use crate::Format;
use hibernet_snapshot::*;
use std::ops::ControlFlow;

const TEXT: SectionKind = SectionKind(0x0102_0304);
const TABLE: SectionKind = SectionKind(2);
const NOTE: SectionKind = SectionKind(3);
/// Two of them fill a chunk, so three make two chunks.
const RECORD_LEN: u32 = 32_768;

fn records() -> Vec<u8> {
    (0..3).flat_map(|n| [n + 1; RECORD_LEN as usize]).collect()
}

pub fn format() -> Format {
    let records = records();
    let mut b = ImageBuilder::new(GenerationId(*b"sixteen bytes id"), 0x1122_3344_5566, 1_700_000_000_000_000_000);
    b.plain(TEXT, 7, SectionFlags::REQUIRED, 1, &b"plain"[..]).unwrap();
    b.chunked(TABLE, 1, SectionFlags::REQUIRED, RECORD_LEN, &records).unwrap();
    b.plain(NOTE, 1, SectionFlags::OPTIONAL, 0, &b""[..]).unwrap();
    let mut bytes = Vec::new();
    b.write_to(&mut bytes, &mut |_, _| ControlFlow::Continue(())).unwrap();
    Format {
        name: format!("container-{FORMAT_MAJOR}"),
        versions: 0..=FORMAT_MINOR,
        bytes,
        read: Box::new(|minor, bytes| read(minor, bytes).map_err(|e| e.to_string())),
        write: Box::new(|_| Err("there is no older version".into())),
        texts: false,
    }
}

fn read(minor: u16, bytes: &[u8]) -> Result<(), ImageError> {
    let image = Image::parse(bytes, &[Known::new(TEXT, 7..=7), Known::new(TABLE, 1..=1)])?;
    image.check()?;
    let h = image.inventory().header;
    assert_eq!((h.minor, h.generation), (minor, GenerationId(*b"sixteen bytes id")));
    assert_eq!((h.stack_time, h.created), (0x1122_3344_5566, 1_700_000_000_000_000_000));
    assert_eq!(image.inventory().sections.len(), 3);
    assert_eq!(image.section(TEXT)?.body()?, b"plain");
    let chunks = image.section(TABLE)?.chunks_of(RECORD_LEN)?;
    let read: Vec<u8> = (0..chunks.len()).flat_map(|n| chunks.chunk(n).unwrap()).copied().collect();
    assert_eq!((chunks.len(), read), (2, records()));
    Ok(())
}
