//! Images that were damaged, or made to do harm: each is refused with the error that says what is wrong.

mod common;

use common::*;
use hibernet_snapshot::*;

/// Where the parts of [`image`] stand.
struct Parts {
    text: usize,
    list: usize,
    records: usize,
    note: usize,
    end: usize,
}

fn parts(bytes: &[u8]) -> Parts {
    let s = Inventory::parse(bytes).unwrap().sections;
    let at = |n: usize| s[n].offset as usize;
    Parts {
        text: at(0),
        list: at(1),
        records: at(1) + s[1].layout().unwrap().chunks() * 4,
        note: at(2),
        end: bytes.len() - END_LEN,
    }
}

/// Where entry `n` of the table has its field at `field`.
fn entry(n: usize, field: usize) -> usize {
    HEADER_LEN + n * TABLE_ENTRY_LEN + field
}

fn refused(bytes: &[u8]) -> ImageError {
    let e = parse(bytes).expect_err("refused");
    // A pipe ends before it can be seen that what it says is too much.
    let piped = read(bytes).expect_err("refused");
    assert!(piped == e || matches!(piped, ImageError::Truncated { .. } | ImageError::TooLong { .. }), "{piped} is not {e}");
    e
}

#[test]
fn every_flipped_bit_is_refused_with_the_part_that_it_is_in() {
    let good = image(&data(300));
    let p = parts(&good);
    parse(&good).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        let at = bit / 8;
        bad[at] ^= 1 << (bit % 8);
        let e = refused(&bad);
        let right = match e {
            ImageError::NotAnImage => at < 8,
            ImageError::Version { .. } => (8..10).contains(&at),
            ImageError::Damaged { part: "header" } => (10..64).contains(&at),
            ImageError::Damaged { part: "section table" } => (64..p.text).contains(&at),
            ImageError::DamagedSection { kind: TEXT } => (p.text..p.list).contains(&at),
            ImageError::DamagedSection { kind: TABLE } => (p.list..p.records).contains(&at),
            ImageError::DamagedChunk { kind: TABLE, chunk: 0 } => (p.records..p.note).contains(&at),
            ImageError::DamagedSection { kind: NOTE } => (p.note..p.end).contains(&at),
            ImageError::Damaged { part: "end mark" } => at >= p.end,
            _ => false,
        };
        assert!(right, "bit {bit}: {e}");
    }
}

#[test]
fn flipped_bits_in_several_chunks_are_refused() {
    let good = image(&data(140_000));
    let p = parts(&good);
    for at in (p.list..p.records).chain((p.records..p.note).step_by(1009)) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let expected = if at < p.records {
            ImageError::DamagedSection { kind: TABLE }
        } else {
            ImageError::DamagedChunk { kind: TABLE, chunk: (at - p.records) / 65_500 }
        };
        assert_eq!(parse(&bad), Err(expected), "byte {at}");
    }
}

#[test]
fn every_truncation_is_refused_as_such() {
    let good = image(&data(300));
    for len in 0..good.len() {
        let cut = &good[..len];
        let needed = |e: ImageError| match e {
            ImageError::Truncated { needed, have } => {
                assert_eq!(have, len as u64);
                needed > have
            }
            _ => false,
        };
        assert!(needed(parse(cut).unwrap_err()), "length {len}");
        assert!(needed(read(cut).unwrap_err()), "length {len}");
        match Inventory::read(&mut Drip::new(cut)) {
            Ok(_) => assert!(len >= head_len(3)),
            Err(e) => assert!(matches!(e, ReadError::Image(ImageError::Truncated { .. })) && len < head_len(3)),
        }
    }
}

#[test]
fn what_follows_is_refused() {
    let mut bytes = image(&data(300));
    let end = bytes.len() as u64;
    bytes.push(0);
    assert_eq!(refused(&bytes), ImageError::TrailingBytes { end });
    // Two images one behind the other are none.
    bytes.pop();
    let two = [bytes.clone(), bytes].concat();
    assert_eq!(refused(&two), ImageError::TrailingBytes { end });
}

#[test]
fn what_was_put_into_another_order_is_refused() {
    let good = image(&data(140_000));
    let p = parts(&good);

    // Entries of the table.
    let mut bad = good.clone();
    bad[HEADER_LEN..][..2 * TABLE_ENTRY_LEN].rotate_left(TABLE_ENTRY_LEN);
    assert_eq!(refused(&bad), ImageError::Damaged { part: "section table" });
    seal(&mut bad);
    assert_eq!(refused(&bad), ImageError::Malformed { what: "sections overlap or leave a gap" });

    // Bodies of the same length.
    let mut bad = good.clone();
    for i in 0..6 {
        bad.swap(p.text + i, p.note + i);
    }
    assert_eq!(refused(&bad), ImageError::DamagedSection { kind: TEXT });

    // Chunks of the same length, and their checksums with them.
    let mut bad = good.clone();
    bad[p.records..][..2 * 65_500].rotate_left(65_500);
    assert_eq!(refused(&bad), ImageError::DamagedChunk { kind: TABLE, chunk: 0 });
    bad[p.list..][..8].rotate_left(4);
    assert_eq!(refused(&bad), ImageError::DamagedSection { kind: TABLE });
}

/// An image whose end is another's, of the same length.
#[test]
fn halves_of_two_images_are_refused() {
    let (one, mut other) = (image(&data(300)), builder());
    other.plain(TEXT, 2, SectionFlags::REQUIRED, 1, &b"a text"[..]).unwrap();
    other.chunked(TABLE, 1, SectionFlags::OPTIONAL, 100, &[9; 300]).unwrap();
    other.plain(NOTE, 9, SectionFlags::OPTIONAL, 0, &b"a note"[..]).unwrap();
    let other = write(&other);
    assert_eq!(one.len(), other.len());
    let cut = one.len() - END_LEN;
    assert_eq!(refused(&[&one[..cut], &other[cut..]].concat()), ImageError::Damaged { part: "end mark" });
}

/// Under right checksums, as someone would write them who wants to do harm.
#[test]
fn forged_fields_are_refused() {
    let good = image(&data(300));
    let len = good.len() as u64;
    let forge = |at: usize, value: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + value.len()].copy_from_slice(value);
        seal(&mut bad);
        refused(&bad)
    };
    let malformed = |what| ImageError::Malformed { what };

    let (flags, total, count) = (12, 48, 56);
    assert_eq!(forge(flags, &1u32.to_le_bytes()), malformed("unknown flags in the header"));
    let end = malformed("the sections do not end where the image does");
    for wrong in [0, len - 1, len + 1, 1 << 40, u64::MAX] {
        assert_eq!(forge(total, &wrong.to_le_bytes()), end);
    }
    assert_eq!(forge(count, &257u32.to_le_bytes()), ImageError::TooManySections(257));
    assert_eq!(forge(count, &u32::MAX.to_le_bytes()), ImageError::TooManySections(u32::MAX));
    assert!(matches!(forge(count, &256u32.to_le_bytes()), ImageError::Truncated { .. }));
    assert_eq!(forge(count, &2u32.to_le_bytes()), malformed("sections overlap or leave a gap"));

    let (kind, section_flags, offset, length, records, record_len) = (0, 6, 8, 16, 24, 32);
    assert_eq!(forge(entry(0, kind), &77u32.to_le_bytes()), ImageError::UnknownSection { kind: SectionKind(77) });
    assert_eq!(
        forge(entry(0, kind), &TABLE.0.to_le_bytes()),
        ImageError::SectionVersion { kind: TABLE, version: 2, oldest: 1, newest: 1 }
    );
    assert_eq!(forge(entry(2, kind), &TABLE.0.to_le_bytes()), ImageError::Duplicate { kind: TABLE });
    for bit in 2..16 {
        assert_eq!(forge(entry(0, section_flags), &(1u16 << bit).to_le_bytes()), malformed("unknown flags of a section"));
    }
    let gap = malformed("sections overlap or leave a gap");
    let start = u64::try_from(head_len(3)).unwrap();
    for wrong in [0, start - 1, start + 1, u64::MAX] {
        assert_eq!(forge(entry(0, offset), &wrong.to_le_bytes()), gap);
    }
    for wrong in [0, 5, 7, 1 << 40] {
        assert_eq!(forge(entry(0, length), &u64::to_le_bytes(wrong)), gap);
    }
    assert_eq!(forge(entry(0, length), &u64::MAX.to_le_bytes()), malformed("a section is too long"));
    assert_eq!(forge(entry(2, length), &(1u64 << 40).to_le_bytes()), end);

    let shape = malformed("the length of a chunked section is not that of its records");
    for wrong in [0, 2, 4, 1 << 40, u64::MAX, u64::MAX / 100] {
        assert_eq!(forge(entry(1, records), &u64::to_le_bytes(wrong)), shape);
    }
    for wrong in [0, 99, 101, 65_537, u32::MAX] {
        assert_eq!(forge(entry(1, record_len), &u32::to_le_bytes(wrong)), shape);
    }
    assert_eq!(forge(entry(1, length), &299u64.to_le_bytes()), shape);
    assert_eq!(forge(entry(0, section_flags), &3u16.to_le_bytes()), shape);
    let plain = malformed("a record length where there are no chunks");
    assert_eq!(forge(entry(0, record_len), &1u32.to_le_bytes()), plain);
    assert_eq!(forge(entry(1, section_flags), &1u16.to_le_bytes()), plain);
    // Who says that a section is plain must have its checksum, too.
    let mut bad = good.clone();
    bad[entry(1, section_flags)] = 1;
    bad[entry(1, record_len)] = 0;
    seal(&mut bad);
    assert_eq!(refused(&bad), ImageError::DamagedSection { kind: TABLE });
}

/// Records of as many as could be announced, in a body that is as long as is announced: nothing overflows.
#[test]
fn the_greatest_numbers_are_refused() {
    for (records, record_len) in [(u64::MAX, 1), (u64::MAX, 65_536), (1 << 62, 1), (1 << 48, 65_536), (u64::MAX / 65_536, 65_536)]
    {
        let mut bad = image(&data(300));
        bad[entry(1, 24)..][..8].copy_from_slice(&u64::to_le_bytes(records));
        bad[entry(1, 32)..][..4].copy_from_slice(&u32::to_le_bytes(record_len));
        let chunks = records.div_ceil(65_536 / u64::from(record_len));
        let len = chunks.wrapping_mul(4).wrapping_add(records.wrapping_mul(u64::from(record_len)));
        bad[entry(1, 16)..][..8].copy_from_slice(&len.to_le_bytes());
        seal(&mut bad);
        assert!(matches!(refused(&bad), ImageError::Malformed { .. }), "{records} of {record_len}");
    }
}

#[test]
fn something_else_is_told_from_a_damaged_image() {
    for bytes in [&b"# iptables-save"[..], b"\x7fELF", &[0; 100], b"HIBRNET1"] {
        assert_eq!(parse(bytes), Err(ImageError::NotAnImage));
        assert_eq!(Header::parse(bytes), Err(ImageError::NotAnImage));
    }
}
