//! Images, encoded states, and stacks restored from what was forged.

use hibernet_netstack::Time;
use hibernet_netstack::state::Randomness;
use hibernet_snapshot::*;
use hibernet_tests::{image, lively, wild};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

const STATE: SectionKind = SectionKind(1);
const TABLE: SectionKind = SectionKind(2);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Unit,
    Newtype(u16),
    Struct { on: bool, text: String },
}

/// A state with everything that may lie about its length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    flat: (u8, u32, i64, Option<u16>, IpAddr),
    choices: Vec<Choice>,
    nested: Vec<Vec<[u64; 4]>>,
    map: BTreeMap<u16, Bytes>,
    text: String,
}

impl SectionState for State {
    const KIND: SectionKind = STATE;
    const VERSION: u16 = 1;
}

/// Reads bytes, whose first says as what: an image as it is, an image whose checksums are made right first, a state, or changes to the
/// image of a stack.
pub fn read(bytes: &[u8]) {
    let Some((&how, bytes)) = bytes.split_first() else { return };
    match how % 4 {
        0 => container(bytes),
        1 => container(&sealed(bytes)),
        2 => state(bytes),
        _ => stack(bytes),
    }
}

/// Changes a sane image under right checksums, and has the stack go on that comes out of it. The first byte is the seed of what happens to it. A
/// change is a section's number, where in its body (two bytes), what to do, and the bytes to do it with.
fn stack(bytes: &[u8]) {
    static SANE: OnceLock<Vec<u8>> = OnceLock::new();
    let sane = SANE.get_or_init(|| {
        let w = lively();
        image::save(&w.stack, w.now())
    });
    let Some((&seed, mut changes)) = bytes.split_first() else { return };
    let mut list = Vec::new();
    while let [section, low, high, what, rest @ ..] = changes {
        let (with, rest) = rest.split_at(rest.len().min(usize::from(what >> 3)));
        list.push((*section, usize::from(u16::from_le_bytes([*low, *high])), what & 7, with));
        changes = rest;
    }
    let mut n = 0;
    let forged = image::rewritten(sane, &mut |body, _| {
        for (_, at, what, with) in list.iter().filter(|(section, ..)| *section == n) {
            let at = (*at).min(body.len());
            let end = body.len().min(at + with.len());
            match what {
                0..4 => body[at..end].copy_from_slice(&with[..end - at]),
                4 => body.splice(at..at, with.iter().copied()).for_each(drop),
                5 => drop(body.drain(at..end)),
                6 => body.truncate(at),
                _ => body.extend_from_within(at..end),
            }
        }
        n += 1;
    });
    if let Ok(mut stack) = image::restore(&forged, Randomness::Fresh([seed; 16]), &[]) {
        let now = Time::from_nanos(Inventory::parse(&forged).expect("it was restored").header.stack_time);
        wild::drive(&mut stack, now, seed.into(), 40);
    }
}

fn state(bytes: &[u8]) {
    if let Ok(state) = decode::<State>(bytes) {
        // Not the same bytes: the keys of a map may come in any order.
        assert_eq!(decode::<State>(&encode(&state).expect("encoded")), Ok(state));
    }
    let _ = decode::<Vec<Vec<Option<String>>>>(bytes);
    let _ = decode::<(Bytes, BTreeMap<Key, ()>)>(bytes);
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Key {
    A(char),
    B(i128),
}

fn container(bytes: &[u8]) {
    let _ = Inventory::read(&mut &*bytes);
    let known = [State::known().many(), Known::new(TABLE, 0..=u16::MAX).many()];
    let piped = Image::read(&mut &*bytes, 1 << 20, &known);
    let image = match Image::parse(bytes, &known) {
        Err(_) => {
            assert!(piped.is_err());
            return;
        }
        Ok(image) => image,
    };
    assert_eq!(piped.expect("the same from a pipe").inventory(), image.inventory());
    for section in image.sections() {
        if section.entry().kind == STATE {
            let _ = section.state::<State>();
        } else if let Ok(chunks) = section.chunks() {
            for n in 0..chunks.len() {
                let _ = chunks.chunk(n);
            }
        }
    }
    if image.check().is_ok() && image.sections().count() == image.inventory().sections.len() {
        assert_eq!(again(&image), bytes);
    }
}

/// An image written once more from what was read.
fn again(image: &Image<'_>) -> Vec<u8> {
    let h = image.inventory().header;
    let mut b = ImageBuilder::new(h.generation, h.stack_time, h.created);
    for s in image.sections() {
        let e = s.entry();
        match s.chunks() {
            Ok(chunks) => {
                let layout = chunks.layout();
                let fill = move |n: usize, buf: &mut [u8]| buf.copy_from_slice(chunks.chunk(n).expect("checked"));
                let crcs = chunk_crcs(&fill, &layout, 0..layout.chunks());
                b.chunked_from(e.kind, e.version, e.flags, layout, &crcs, fill)
            }
            Err(_) => b.plain(e.kind, e.version, e.flags, e.records, s.body().expect("checked")),
        }
        .expect("as many sections as before");
    }
    write(&b)
}

fn write(b: &ImageBuilder<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    b.write_to(&mut out, &mut |_, _| ControlFlow::Continue(())).expect("written");
    out
}

/// Makes an image's checksums right, as far as its table says where they are, so that what lies behind them is reached.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut b = bytes.to_vec();
    if b.len() < HEADER_LEN {
        return b;
    }
    b[..8].copy_from_slice(&MAGIC);
    b[8..12].copy_from_slice(&[1, 0, 0, 0]);
    let number = |b: &[u8], at: usize, len: usize| b[at..at + len].iter().rev().fold(0, |n, x| n << 8 | usize::from(*x));
    let sections = number(&b, 56, 4);
    let head = HEADER_LEN + sections.min(1000) * TABLE_ENTRY_LEN + 4;
    if head + END_LEN <= b.len() {
        for n in 0..sections {
            let entry = HEADER_LEN + n * TABLE_ENTRY_LEN;
            let (at, len) = (number(&b, entry + 8, 8), number(&b, entry + 16, 8));
            if let Some(body) = b.get(at..at.saturating_add(len)) {
                let crc = chunk_crc(body);
                b[entry + 36..entry + 40].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let crc = chunk_crc(&b[HEADER_LEN..head - 4]).to_le_bytes();
        b[head - 4..head].copy_from_slice(&crc);
    }
    let crc = chunk_crc(&b[..60]).to_le_bytes();
    b[60..64].copy_from_slice(&crc);
    let end = b.len();
    if head + END_LEN <= end {
        b[end - 16..end - 8].copy_from_slice(&END_MARK);
        b.copy_within(60..64, end - 8);
        b.copy_within(head - 4..head, end - 4);
    }
    b
}

/// If HIBERNET_FUZZ_SEEDS names a directory, writes images and states there and ends the process.
pub fn write_seeds_if_asked() {
    let Some(dir) = std::env::var_os("HIBERNET_FUZZ_SEEDS") else { return };
    let state = State {
        flat: (1, 2, -3, Some(4), "2001:db8::1".parse().expect("an address")),
        choices: vec![Choice::Unit, Choice::Newtype(5), Choice::Struct { on: true, text: "text".into() }],
        nested: vec![vec![[6; 4]; 2], vec![]],
        map: BTreeMap::from([(7, Bytes(vec![8; 9]))]),
        text: "more text".into(),
    };
    let mut seeds = vec![[&[2], &encode(&state).expect("encoded")[..]].concat()];
    let records: Vec<u8> = (0..120).collect();
    for what in 0..8u8 {
        let mut b = ImageBuilder::new(GenerationId([what; 16]), 1, 2);
        let flags = if what & 1 == 0 { SectionFlags::OPTIONAL } else { SectionFlags::REQUIRED };
        if what & 2 != 0 {
            b.state(flags, 1, &state).expect("added");
        }
        if what & 4 != 0 {
            b.chunked(TABLE, 1, flags, 12, &records).expect("added");
            b.plain(SectionKind(3), 1, SectionFlags::OPTIONAL, 0, &b"a note"[..]).expect("added");
        }
        let image = write(&b);
        seeds.push([&[0], &image[..]].concat());
        seeds.push([&[1], &image[..]].concat());
    }
    seeds.extend((0..12).map(|section| vec![3, section, section, 40, 0, 16, 1, 2]));
    for (n, seed) in seeds.iter().enumerate() {
        std::fs::write(Path::new(&dir).join(format!("seed-{n:02}")), seed).expect("seed is written");
    }
    std::process::exit(0);
}
