//! Writing: to outputs that fail, from sources that change, and with a caller who wants to end it.
#![allow(clippy::disallowed_methods, reason = "callers have threads")]

mod common;

use common::*;
use hibernet_snapshot::*;
use std::io::{self, Write};
use std::ops::ControlFlow;

const LEN: u32 = 128;

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A table that is made as it is written.
fn record(n: u64) -> [u8; LEN as usize] {
    core::array::from_fn(|i| (n * 31 + i as u64) as u8)
}

fn source(layout: ChunkLayout) -> impl Fn(usize, &mut [u8]) + Sync {
    move |chunk, buf| {
        let first = (chunk * layout.records_per_chunk()) as u64;
        for (n, out) in (first..).zip(buf.chunks_exact_mut(LEN as usize)) {
            out.copy_from_slice(&record(n));
        }
    }
}

#[test]
fn a_table_need_not_stand_in_memory() {
    let whole: Vec<u8> = (0..3000).flat_map(record).collect();
    let layout = ChunkLayout::new(3000, LEN).unwrap();
    let made = source(layout);
    // The checksums by two threads, in ranges.
    let crcs: Vec<u32> = std::thread::scope(|s| {
        let made = &made;
        let halves = [0..3, 3..layout.chunks()].map(|range| s.spawn(move || chunk_crcs(made, &layout, range)));
        halves.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    let mut streamed = builder();
    streamed.chunked_from(TABLE, 1, SectionFlags::REQUIRED, layout, &crcs, &made).unwrap();
    let mut held = builder();
    held.chunked(TABLE, 1, SectionFlags::REQUIRED, LEN, &whole).unwrap();
    assert_eq!(write(&streamed), write(&held));
}

#[test]
fn progress_is_told_and_adds_up() {
    let (big, small) = (data(3_500_000), data(1000 * LEN as usize));
    let mut b = builder();
    b.plain(TEXT, 1, SectionFlags::REQUIRED, 1, big.as_slice()).unwrap();
    b.chunked(TABLE, 1, SectionFlags::REQUIRED, LEN, &small).unwrap();
    let mut told = Vec::new();
    let mut out = Vec::new();
    let n = b
        .write_to(&mut out, &mut |at, total| {
            assert_eq!(total, b.total_len());
            told.push(at);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((told[0], told[told.len() - 1]), (0, n));
    assert!(told.windows(2).all(|w| w[0] < w[1] && w[1] - w[0] <= 1 << 20));
}

#[test]
fn the_caller_may_end_it_anywhere() {
    let records = data(200_000);
    let mut b = builder();
    b.chunked(TABLE, 1, SectionFlags::REQUIRED, 100, &records).unwrap();
    let mut calls = 0;
    b.write_to(&mut io::sink(), &mut |_, _| {
        calls += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    for stop in 1..=calls {
        let (mut n, mut out) = (0, Vec::new());
        let e = b.write_to(&mut out, &mut |_, _| {
            n += 1;
            if n == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match e {
            Err(WriteError::Cancelled { at, total }) => assert_eq!((at, total), (out.len() as u64, b.total_len())),
            other => panic!("{other:?}"),
        }
    }
    // Nothing of the builder was used up.
    parse(&write(&b)).unwrap();
}

/// A disk with so many bytes left, which takes little at a time.
struct Disk(usize);

impl Write for Disk {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(self.0).min(777);
        self.0 -= n;
        if n == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(n) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_an_output_says_is_handed_on() {
    let records = data(200_000);
    let mut b = builder();
    b.chunked(TABLE, 1, SectionFlags::REQUIRED, 100, &records).unwrap();
    let total = b.total_len() as usize;
    for room in [0, 1, 100, 1000, 100_000, total - 1] {
        match b.write_to(&mut Disk(room), &mut go_on) {
            Err(WriteError::Io { at, source, .. }) => {
                assert!(at <= room as u64);
                assert_eq!(source.kind(), io::ErrorKind::StorageFull);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(b.write_to(&mut Disk(total), &mut go_on).unwrap(), total as u64);
}

#[test]
fn a_source_that_changes_is_found_out_when_it_is_written() {
    let layout = ChunkLayout::new(3000, LEN).unwrap();
    let made = source(layout);
    let crcs = chunk_crcs(&made, &layout, 0..layout.chunks());
    let changing = |chunk: usize, buf: &mut [u8]| {
        made(chunk, buf);
        buf[9] ^= u8::from(chunk == 4);
    };
    let mut b = builder();
    b.chunked_from(TABLE, 1, SectionFlags::REQUIRED, layout, &crcs, changing).unwrap();
    let e = b.write_to(&mut io::sink(), &mut go_on).unwrap_err();
    assert!(matches!(e, WriteError::SourceChanged { kind: TABLE, chunk: 4 }), "{e}");

    // Memory that is shorter than the layout.
    let short = [0; 100];
    let mut b = builder();
    b.chunked_from(TABLE, 1, SectionFlags::REQUIRED, layout, &crcs, &short[..]).unwrap();
    let e = b.write_to(&mut io::sink(), &mut go_on).unwrap_err();
    assert!(matches!(e, WriteError::SourceChanged { kind: TABLE, chunk: 0 }), "{e}");
}

#[test]
fn what_is_no_table_is_refused_when_it_is_added() {
    let bytes = data(1000);
    let mut b = builder();
    for record_len in [0, 3, 65_537, u32::MAX] {
        let e = b.chunked(TABLE, 1, SectionFlags::REQUIRED, record_len, &bytes).err().unwrap();
        assert!(matches!(e, WriteError::Layout { kind: TABLE }));
    }
    let layout = ChunkLayout::new(10, 100).unwrap();
    for crcs in [&[][..], &[1, 2]] {
        let e = b.chunked_from(TABLE, 1, SectionFlags::REQUIRED, layout, crcs, bytes.as_slice()).err().unwrap();
        assert!(matches!(e, WriteError::Layout { kind: TABLE }));
    }
    for _ in 0..MAX_SECTIONS {
        b.plain(TEXT, 1, SectionFlags::REQUIRED, 0, &b""[..]).unwrap();
    }
    let e = b.plain(TEXT, 1, SectionFlags::REQUIRED, 0, &b""[..]).err().unwrap();
    assert!(matches!(e, WriteError::TooManySections));
    let image = write(&b);
    assert_eq!(Inventory::parse(&image).unwrap().sections.len(), 256);
}

#[test]
fn the_writer_alone_says_what_is_chunked() {
    let mut b = builder();
    b.plain(TEXT, 1, SectionFlags(0xffff), 0, &b"text"[..]).unwrap();
    b.chunked(TABLE, 1, SectionFlags(0xffff), 2, &b"text"[..]).unwrap();
    let image = write(&b);
    parse(&image).unwrap();
    let flags: Vec<u16> = Inventory::parse(&image).unwrap().sections.iter().map(|s| s.flags.0).collect();
    assert_eq!(flags, [1, 3]);
}
