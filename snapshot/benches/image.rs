//! What writing, checking and reading of images costs beside copying the same bytes: `cargo bench -p hibernet-snapshot`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads clocks and has threads")]

#[path = "../../netstack/benches/common/mod.rs"]
mod common;

use common::{Measured, measure, measure_wall, memcpy_rate};
use hibernet_snapshot::*;
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::io::Write;
use std::ops::ControlFlow;

#[global_allocator]
static ALLOCATOR: common::Counting = common::Counting;

const RECORDS: u64 = 1_000_000;
const RECORD_LEN: u32 = 128;
const SIZE: usize = (RECORDS * RECORD_LEN as u64) as usize;
const TABLE: SectionKind = SectionKind(1);
const ROUNDS: usize = 9;

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn row(name: &str, m: Measured, memcpy: Measured) {
    println!(
        "{name:<58} {:>7.1} ms  (best {:>6.1})  {:>5.2} memcpy  {:>5.0} allocations",
        m.ns / 1e6,
        m.best / 1e6,
        m.ns / memcpy.ns,
        m.allocations
    );
}

fn image(memcpy: Measured) {
    let data: Vec<u8> = (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let layout = ChunkLayout::new(RECORDS, RECORD_LEN).expect("a layout");
    let chunks = layout.chunks();
    let source = data.as_slice();
    let known = [Known::new(TABLE, 1..=1)];
    let bytes = |b: &ImageBuilder<'_>, out: &mut Vec<u8>| {
        out.clear();
        b.write_to(out, &mut go_on).expect("written");
    };

    row("checksums", measure(ROUNDS, 1, || (), |()| drop(black_box(chunk_crcs(&source, &layout, 0..chunks)))), memcpy);
    let two = measure_wall(
        ROUNDS,
        1,
        || (),
        |()| {
            std::thread::scope(|s| {
                let other = s.spawn(|| chunk_crcs(&source, &layout, chunks / 2..chunks));
                black_box((chunk_crcs(&source, &layout, 0..chunks / 2), other.join().expect("no panic")));
            });
        },
    );
    row("checksums, two threads, wall clock", two, memcpy);

    let crcs = chunk_crcs(&source, &layout, 0..chunks);
    let mut given = ImageBuilder::new(GenerationId([0; 16]), 0, 0);
    given.chunked_from(TABLE, 1, SectionFlags::REQUIRED, layout, &crcs, source).expect("added");
    let mut out = Vec::with_capacity(SIZE + (1 << 20));
    bytes(&given, &mut out);
    row("write into memory, checksums given", measure(ROUNDS, 1, || (), |()| bytes(&given, &mut out)), memcpy);
    let whole = |()| {
        let mut b = ImageBuilder::new(GenerationId([0; 16]), 0, 0);
        b.chunked(TABLE, 1, SectionFlags::REQUIRED, RECORD_LEN, &data).expect("added");
        bytes(&b, &mut out);
    };
    row("checksums and write into memory", measure(ROUNDS, 1, || (), whole), memcpy);
    let filled = |chunk: usize, buf: &mut [u8]| buf.copy_from_slice(&data[layout.range(chunk)]);
    let mut filling = ImageBuilder::new(GenerationId([0; 16]), 0, 0);
    filling.chunked_from(TABLE, 1, SectionFlags::REQUIRED, layout, &crcs, filled).expect("added");
    row("write of chunks that are filled in", measure(ROUNDS, 1, || (), |()| bytes(&filling, &mut out)), memcpy);
    let mut null = std::fs::File::create("/dev/null").expect("opened");
    let to_null = |()| assert_eq!(given.write_to(&mut null, &mut go_on).expect("written"), given.total_len());
    row("write to /dev/null", measure(ROUNDS, 1, || (), to_null), memcpy);

    let file = out;
    let check = |()| Image::parse(&file, &known).expect("read").check().expect("right");
    row("check in memory", measure(ROUNDS, 1, || (), check), memcpy);
    let read = |()| drop(black_box(Image::read(&mut file.as_slice(), u64::MAX, &known).expect("read")));
    row("read into fresh memory", measure(ROUNDS, 1, || (), read), memcpy);
    let read = |()| Image::read(&mut file.as_slice(), u64::MAX, &known).expect("read").check().expect("right");
    row("read into fresh memory and check", measure(ROUNDS, 1, || (), read), memcpy);
    let mut on_disk = tempfile();
    on_disk.write_all(&file).expect("written");
    let from_disk = |()| {
        use std::io::Seek;
        on_disk.rewind().expect("rewound");
        Image::read(&mut on_disk, u64::MAX, &known).expect("read").check().expect("right");
    };
    row("read from a cached file and check", measure(ROUNDS, 1, || (), from_disk), memcpy);
    let m = measure(ROUNDS, 1, || (), |()| drop(black_box(Inventory::read(&mut file.as_slice()).expect("read"))));
    println!("{:<58} {:>7.1} us  (best {:>6.1})", "inventory", m.ns / 1e3, m.best / 1e3);
}

/// A file without a name.
fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("hibernet-bench-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).expect("opened");
    std::fs::remove_file(&path).expect("removed");
    file
}

#[derive(Clone, Serialize, Deserialize)]
struct Flow {
    id: (u32, u32),
    ports: [u16; 4],
    name: String,
    window: Option<u64>,
    times: Vec<u64>,
}

fn codec() {
    let flows: Vec<Flow> = (0..100_000)
        .map(|n| Flow { id: (n, 7), ports: [1, 2, 3, 4], name: "host0".into(), window: Some(9), times: vec![1, 2, 3] })
        .collect();
    let encoded = encode(&flows).expect("encoded");
    let mb = encoded.len() as f64 / 1e6;
    let line = |name: &str, m: Measured, mb: f64| {
        println!("{name:<58} {:>7.1} ms  (best {:>6.1})  {mb:.1} MB, {:.2} GB/s", m.ns / 1e6, m.best / 1e6, mb * 1e6 / m.ns);
    };
    line("encode 100,000 structs", measure(ROUNDS, 1, || (), |()| drop(black_box(encode(&flows)))), mb);
    line("decode 100,000 structs", measure(ROUNDS, 1, || (), |()| drop(black_box(decode::<Vec<Flow>>(&encoded)))), mb);
    let queues: Vec<Bytes> = vec![Bytes(vec![5; 16 << 10]); 2000];
    let encoded = encode(&queues).expect("encoded");
    let mb = encoded.len() as f64 / 1e6;
    line("encode 2,000 queues of 16 KiB", measure(ROUNDS, 1, || (), |()| drop(black_box(encode(&queues)))), mb);
    line("decode 2,000 queues of 16 KiB", measure(ROUNDS, 1, || (), |()| drop(black_box(decode::<Vec<Bytes>>(&encoded)))), mb);
}

fn main() {
    println!(
        "this machine, now: memcpy {:.1} GB/s; {} MB in {RECORDS} records of {RECORD_LEN} bytes, by CPU time",
        memcpy_rate(),
        SIZE / 1_000_000
    );
    let from = vec![1_u8; SIZE];
    let mut to = vec![0_u8; SIZE];
    let memcpy = measure(ROUNDS, 1, || (), |()| black_box(&mut to).copy_from_slice(black_box(&from)));
    row("memcpy", memcpy, memcpy);
    row("memcpy into fresh memory", measure(ROUNDS, 1, || (), |()| drop(black_box(black_box(&from).clone()))), memcpy);
    drop((from, to));
    image(memcpy);
    codec();
}
