//! Images as a whole: what was written is read, by whoever knows enough of it.
#![allow(clippy::disallowed_methods, reason = "callers have threads")]

mod common;

use common::*;
use hibernet_snapshot::*;
use proptest::prelude::*;

fn check(image: &Image<'_>, records: &[u8]) {
    image.check().unwrap();
    assert_eq!(image.section(TEXT).unwrap().body().unwrap(), b"a text");
    let chunks = image.section(TABLE).unwrap().chunks_of(100).unwrap();
    let read: Vec<u8> = (0..chunks.len()).flat_map(|n| chunks.chunk(n).unwrap()).copied().collect();
    assert_eq!(read, records);
    assert_eq!(image.section(NOTE).unwrap_err(), ImageError::Missing { kind: NOTE });
    assert_eq!(image.sections().count(), 2);
    assert_eq!(image.inventory().sections.len(), 3);
    let h = image.inventory().header;
    assert_eq!((h.generation, h.stack_time, h.created), (GenerationId([1; 16]), 5, 6));
}

#[test]
fn what_was_written_is_read() {
    for n in [0, 1, 655, 656, 10_000] {
        let records = data(n * 100);
        let bytes = image(&records);
        check(&Image::parse(&bytes, &known()).unwrap(), &records);
        check(&Image::read(&mut bytes.as_slice(), 1 << 30, &known()).unwrap(), &records);
        check(&Image::read(&mut Drip::new(&bytes), bytes.len() as u64, &known()).unwrap(), &records);
    }
}

#[test]
fn the_inventory_needs_nothing_beyond_the_table() {
    let bytes = image(&data(1000));
    let mut drip = Drip::new(&bytes);
    let inventory = Inventory::read(&mut drip).unwrap();
    assert_eq!(bytes.len() - drip.rest.len(), head_len(3));
    assert_eq!(Inventory::parse(&bytes[..head_len(3)]), Ok(inventory.clone()));
    assert_eq!(inventory.header.total_len, bytes.len() as u64);
    let text = inventory.sections[0];
    assert_eq!((text.kind, text.version, text.len, text.records, text.record_len), (TEXT, 2, 6, 1, 0));
    let table = inventory.sections[1];
    assert_eq!((table.records, table.record_len, table.len), (10, 100, 1004));
    assert_eq!(inventory, Image::parse(&bytes, &known()).unwrap().inventory().clone());
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    assert_eq!(image(&data(70_000)), image(&data(70_000)));
}

#[test]
fn an_image_may_be_empty() {
    let bytes = write(&builder());
    assert_eq!(bytes.len(), head_len(0) + END_LEN);
    Image::parse(&bytes, &[]).unwrap().check().unwrap();
}

#[test]
fn only_what_was_known_is_needed() {
    let bytes = image(&data(1000));
    let parse = |known: &[Known]| Image::parse(&bytes, known).map(|i| i.sections().count());
    let table = Known::new(TABLE, 1..=1);
    assert_eq!(parse(&known()), Ok(2));
    assert_eq!(parse(&[Known::new(TEXT, 1..=2)]), Err(ImageError::UnknownSection { kind: TABLE }));
    let version = |oldest, newest| Err(ImageError::SectionVersion { kind: TEXT, version: 2, oldest, newest });
    assert_eq!(parse(&[Known::new(TEXT, 1..=1), table.clone()]), version(1, 1));
    assert_eq!(parse(&[Known::new(TEXT, 3..=4), table.clone()]), version(3, 4));
    // A version that is not known is left out where it may be.
    let note = |versions| [Known::new(TEXT, 1..=2), table.clone(), Known::new(NOTE, versions)];
    assert_eq!(parse(&note(1..=8)), Ok(2));
    assert_eq!(parse(&note(1..=9)), Ok(3));
    // A pipe is refused before its bodies are read.
    let mut drip = Drip::new(&bytes);
    assert!(matches!(Image::read(&mut drip, 1 << 30, &[]), Err(ReadError::Image(ImageError::UnknownSection { kind: TEXT }))));
    assert_eq!(bytes.len() - drip.rest.len(), head_len(3));
}

#[test]
fn a_kind_may_be_there_twice_only_where_the_reader_allows_it() {
    let mut b = builder();
    b.plain(TEXT, 1, SectionFlags::REQUIRED, 1, &b"one"[..]).unwrap();
    b.plain(TEXT, 2, SectionFlags::OPTIONAL, 1, &b"two"[..]).unwrap();
    let bytes = write(&b);
    assert_eq!(parse(&bytes), Err(ImageError::Duplicate { kind: TEXT }));
    let image = Image::parse(&bytes, &[Known::new(TEXT, 1..=2).many()]).unwrap();
    let bodies: Vec<&[u8]> = image.sections().map(|s| s.body().unwrap()).collect();
    assert_eq!(bodies, [b"one", b"two"]);
    assert!(Inventory::parse(&bytes).is_ok());
}

#[test]
fn of_a_later_minor_version_only_the_inventory_is_read() {
    let mut bytes = image(&data(1000));
    bytes[10] += 1;
    bytes[12] = 0xff;
    // A flag of a section that does not exist yet.
    bytes[HEADER_LEN + 7] = 0x80;
    seal(&mut bytes);
    let inventory = Inventory::parse(&bytes).unwrap();
    assert_eq!((inventory.header.minor, inventory.header.flags), (1, 0xff));
    assert_eq!(parse(&bytes), Err(ImageError::Version { major: 1, minor: 1 }));
    assert_eq!(read(&bytes), Err(ImageError::Version { major: 1, minor: 1 }));
}

#[test]
fn a_section_has_the_shape_that_is_asked_for() {
    let bytes = image(&data(1000));
    let image = Image::parse(&bytes, &known()).unwrap();
    let (text, table) = (image.section(TEXT).unwrap(), image.section(TABLE).unwrap());
    assert_eq!(text.chunks().unwrap_err(), ImageError::Shape { kind: TEXT });
    assert_eq!(text.chunks_of(0).unwrap_err(), ImageError::Shape { kind: TEXT });
    assert_eq!(table.body().unwrap_err(), ImageError::Shape { kind: TABLE });
    assert_eq!(table.chunks_of(50).unwrap_err(), ImageError::Shape { kind: TABLE });
}

#[test]
fn the_reader_says_how_long_an_image_may_be() {
    let bytes = image(&data(1000));
    let len = bytes.len() as u64;
    let e = Image::read(&mut bytes.as_slice(), len - 1, &known()).unwrap_err();
    assert!(matches!(e, ReadError::Image(ImageError::TooLong { len: l, max }) if (l, max) == (len, len - 1)));
}

#[test]
fn what_an_input_says_is_handed_on() {
    struct Broken<'a>(&'a [u8]);
    impl std::io::Read for Broken<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Err(std::io::Error::other("cable pulled"));
            }
            self.0.read(buf)
        }
    }
    let bytes = image(&data(1000));
    for cut in [0, 10, 64, 100, 500, bytes.len() - 1, bytes.len()] {
        match Image::read(&mut Broken(&bytes[..cut]), 1 << 30, &known()) {
            Err(ReadError::Io { at, source }) => assert_eq!((at, source.to_string()), (cut as u64, "cable pulled".into())),
            other => panic!("{other:?}"),
        }
    }
}

/// Chunks may be checked in parallel, and any of them may be damaged without the others.
#[test]
fn a_damaged_chunk_is_found_where_it_is() {
    let records = data(300_000);
    let mut bytes = image(&records);
    let start = Inventory::parse(&bytes).unwrap().sections[1].offset as usize;
    bytes[start + 5 * 4 + 3 * 65_500 + 17] ^= 4;
    let image = Image::parse(&bytes, &known()).unwrap();
    let chunks = image.section(TABLE).unwrap().chunks().unwrap();
    let damaged = Err(ImageError::DamagedChunk { kind: TABLE, chunk: 3 });
    let found: Vec<_> = std::thread::scope(|s| {
        let halves = [0..2, 2..5].map(|range| s.spawn(move || chunks.check(range)));
        halves.map(|h| h.join().unwrap()).into()
    });
    assert_eq!(found, [Ok(()), damaged]);
    assert_eq!(chunks.chunk(4).unwrap(), &records[4 * 65_500..]);
    assert_eq!(image.check(), damaged);
}

/// Kind, version, flags, and a body: of records of some length, or plain.
type Described = (u32, u16, bool, Option<u32>, Vec<u8>);

fn described() -> impl Strategy<Value = Vec<Described>> {
    let body = prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(|b| (None, b)),
        2 => (1..2000u32, 0..100usize).prop_map(|(len, n)| (Some(len), data(n * len as usize))),
        1 => (30_000..=CHUNK_LEN as u32, 0..6usize).prop_map(|(len, n)| (Some(len), data(n * len as usize))),
    ];
    let section = (any::<u32>(), any::<u16>(), any::<bool>(), body).prop_map(|(k, v, r, (len, body))| (k, v, r, len, body));
    proptest::collection::vec(section, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_sections_are_read_as_they_were_written(id: [u8; 16], time: u64, created: u64, sections in described()) {
        let mut b = ImageBuilder::new(GenerationId(id), time, created);
        for (kind, version, required, record_len, body) in &sections {
            let flags = if *required { SectionFlags::REQUIRED } else { SectionFlags::OPTIONAL };
            match record_len {
                Some(len) => b.chunked(SectionKind(*kind), *version, flags, *len, body),
                None => b.plain(SectionKind(*kind), *version, flags, 7, body.as_slice()),
            }.unwrap();
        }
        let bytes = write(&b);
        let known: Vec<Known> = sections.iter().map(|s| Known::new(SectionKind(s.0), s.1..=s.1).many()).collect();
        for image in [Image::parse(&bytes, &known).unwrap(), Image::read(&mut Drip::new(&bytes), u64::MAX, &known).unwrap()] {
            image.check().unwrap();
            let header = image.inventory().header;
            prop_assert_eq!((header.generation, header.stack_time, header.created), (GenerationId(id), time, created));
            prop_assert_eq!(image.inventory(), &b.inventory());
            prop_assert_eq!(image.sections().count(), sections.len());
            for (s, (kind, version, required, record_len, body)) in image.sections().zip(&sections) {
                let e = s.entry();
                prop_assert_eq!((e.kind.0, e.version, e.flags.has(SectionFlags::REQUIRED)), (*kind, *version, *required));
                let read = match record_len {
                    Some(len) => {
                        let chunks = s.chunks_of(*len).unwrap();
                        (0..chunks.len()).flat_map(|n| chunks.chunk(n).unwrap()).copied().collect()
                    }
                    None => s.body().unwrap().to_vec(),
                };
                prop_assert_eq!(&read, body);
            }
        }
    }
}
