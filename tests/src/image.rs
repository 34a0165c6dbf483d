//! A stack in an image: what a worker's image has of it.

use core::net::IpAddr;
use hibernet_netstack::conntrack::image::{self as ct, Family, Loader};
use hibernet_netstack::conntrack::{Conntrack, CtConfig};
use hibernet_netstack::image::{LEVEL, kind};
use hibernet_netstack::rng::Key;
use hibernet_netstack::state::{Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_snapshot::{
    ChunkLayout, END_LEN, GenerationId, HEADER_LEN, Image, ImageBuilder, Known, SectionFlags, SectionState, WriteError,
    chunk_crcs,
};
use std::ops::ControlFlow;

const RECORDS: u16 = ct::VERSION as u16;
const TABLES: [(hibernet_snapshot::SectionKind, Family); 2] =
    [(kind::CONNECTIONS, Family::V4), (kind::CONNECTIONS_V6, Family::V6)];

/// The sections of a stack's image.
pub fn known() -> Vec<Known> {
    let mut known = StackState::known();
    known.push(ct::Head::known());
    known.extend([kind::CONNECTIONS, kind::CONNECTIONS_V6].map(|kind| Known::new(kind, RECORDS..=RECORDS)));
    known.push(Known::new(kind::COUNTS, RECORDS..=RECORDS).since(&[2]));
    known
}

/// An image of a state and a captured table.
///
/// # Panics
/// If they are larger than an image can be.
pub fn write(now: Time, state: &StackState, connections: &ct::Image) -> Vec<u8> {
    write_at(LEVEL, now, state, connections).expect("the state fits into an image")
}

/// The same for readers of an older level.
///
/// # Errors
/// If images of that level cannot say all of it.
///
/// # Panics
/// As [`write()`].
pub fn write_at(level: u16, now: Time, state: &StackState, connections: &ct::Image) -> Result<Vec<u8>, WriteError> {
    let fits = "the state fits into an image";
    let counts = connections.counts().filter(|c| !c.is_empty() && level >= 2);
    let mut image = ImageBuilder::new(GenerationId([7; 16]), now.as_nanos(), 0).at_level(level);
    state.add_to(&mut image)?;
    image.state(SectionFlags::REQUIRED, 1, connections.head()).expect(fits);
    for (kind, family) in TABLES {
        let records = connections.records(family);
        let Some(layout) = ChunkLayout::new(records.len().into(), ct::record_size(family) as u32) else { continue };
        let per_chunk = layout.records_per_chunk() as u32;
        let fill = move |chunk: usize, out: &mut [u8]| {
            records.fill(chunk as u32 * per_chunk, out);
        };
        let crcs = chunk_crcs(&fill, &layout, 0..layout.chunks());
        image.chunked_from(kind, RECORDS, SectionFlags::REQUIRED, layout, &crcs, fill).expect(fits);
    }
    if let Some(counts) = &counts {
        image.chunked(kind::COUNTS, RECORDS, SectionFlags::REQUIRED, ct::COUNTS as u32, counts).expect(fits);
    }
    Ok(finish(&image))
}

fn finish(image: &ImageBuilder<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut bytes, &mut |_, _| ControlFlow::Continue(())).expect("memory takes everything");
    bytes
}

/// An image of a stack, to be called after [`Stack::flush`].
pub fn save(stack: &Stack, now: Time) -> Vec<u8> {
    write(now, &stack.save(), &stack.conntrack().save())
}

/// The part of an image that depends on nothing but the state: everything but the header and the end mark.
pub fn body(image: &[u8]) -> &[u8] {
    &image[HEADER_LEN..image.len() - END_LEN]
}

/// The tracked connections of an image in a table.
///
/// # Errors
/// What is wrong with them.
pub fn connections(image: &Image<'_>, cfg: CtConfig, key: Key, now: Time) -> Result<Conntrack, String> {
    let head: ct::Head = image.state().map_err(|e| e.to_string())?;
    let loader = Loader::new(cfg, key, now, head).map_err(|e| e.to_string())?;
    for (kind, family) in TABLES {
        let Ok(section) = image.section(kind) else { continue };
        let chunks = section.chunks_of(ct::record_size(family) as u32).map_err(|e| e.to_string())?;
        let per_chunk = chunks.layout().records_per_chunk() as u32;
        for n in 0..chunks.len() {
            let bytes = chunks.chunk(n).map_err(|e| e.to_string())?;
            loader.insert(family, n as u32 * per_chunk, bytes).map_err(|e| e.to_string())?;
        }
    }
    if let Ok(section) = image.section(kind::COUNTS) {
        let chunks = section.chunks_of(ct::COUNTS as u32).map_err(|e| e.to_string())?;
        for n in 0..chunks.len() {
            let bytes = chunks.chunk(n).map_err(|e| e.to_string())?;
            loader.insert_counts(bytes).map_err(|e| e.to_string())?;
        }
    }
    loader.finish().map_err(|e| e.to_string())
}

/// A stack from an image.
///
/// # Errors
/// What is wrong with the image.
pub fn restore(image: &[u8], randomness: Randomness, host: &[IpAddr]) -> Result<Stack, String> {
    let image = Image::parse(image, &known()).map_err(|e| e.to_string())?;
    let state = StackState::from_image(&image).map_err(|e| e.to_string())?;
    let now = Time::from_nanos(image.inventory().header.stack_time);
    let mut stack =
        Stack::restore(now, state, randomness, |cfg, key| connections(&image, cfg, key, now)).map_err(|e| e.to_string())?;
    stack.set_host_addresses(host.to_vec());
    Ok(stack)
}

/// An image with the bodies of its sections as `change` makes them, under right checksums. `change` is told the length of a record; bytes that
/// are no whole one are left out.
///
/// # Panics
/// If it is no image of a stack's, or its sections are damaged.
pub fn rewritten(bytes: &[u8], change: &mut dyn FnMut(&mut Vec<u8>, usize)) -> Vec<u8> {
    let image = Image::parse(bytes, &known()).expect("an image");
    let bodies: Vec<_> = image
        .sections()
        .map(|s| {
            let e = *s.entry();
            let (mut body, unit) = match s.chunks() {
                Ok(chunks) => {
                    ((0..chunks.len()).flat_map(|n| chunks.chunk(n).expect("sane")).copied().collect(), e.record_len as usize)
                }
                Err(_) => (s.body().expect("sane").to_vec(), 1),
            };
            change(&mut body, unit);
            body.truncate(body.len() / unit * unit);
            (e, body)
        })
        .collect();
    let h = image.inventory().header;
    let mut out = ImageBuilder::new(h.generation, h.stack_time, h.created);
    for (e, body) in &bodies {
        match e.record_len {
            0 => out.plain(e.kind, e.version, e.flags, e.records, &body[..]),
            len => out.chunked(e.kind, e.version, e.flags, len, body),
        }
        .expect("as before");
    }
    finish(&out)
}
