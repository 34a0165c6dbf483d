//! No length in an image costs memory that the image has not given: allocations are counted.

mod common;

use common::*;
use hibernet_snapshot::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Read;

/// The system's allocator; remembers the largest allocation of each thread.
struct Largest;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator as it came. Counting does not allocate.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller keeps the conditions of `alloc`, which are those of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(size));
        // SAFETY: the caller keeps the conditions of `realloc`, which are those of the system's; `ptr` came from there.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from the system's allocator, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// The largest allocation, in bytes, that `f` makes.
fn largest<T>(f: impl FnOnce() -> T) -> (usize, T) {
    LARGEST.set(0);
    let result = f();
    (LARGEST.get(), result)
}

#[test]
fn allocations_are_seen() {
    assert!(largest(|| vec![1u8; 12_345]).0 >= 12_345);
    assert!(
        largest(|| {
            let mut v = vec![1u8; 10];
            v.reserve_exact(54_321);
            v
        })
        .0 >= 54_321
    );
}

#[test]
fn an_announced_length_is_believed_as_far_as_the_input_goes() {
    // An image that announces a terabyte, under right checksums, and ends early.
    let whole = image(&data(8_000_000));
    let mut bytes = whole.clone();
    let far = 1u64 << 40;
    let more = far - bytes.len() as u64;
    let last = HEADER_LEN + 2 * TABLE_ENTRY_LEN;
    bytes[last + 16..][..8].copy_from_slice(&(6 + more).to_le_bytes());
    bytes[48..56].copy_from_slice(&far.to_le_bytes());
    seal(&mut bytes);
    for len in [head_len(3), 10_000, 1_000_000, 3_000_000, bytes.len()] {
        let cut = &bytes[..len];
        let (most, result) = largest(|| Image::read(&mut Drip::new(cut), u64::MAX, &known()).map(|_| ()));
        assert!(matches!(result, Err(ReadError::Image(ImageError::Truncated { .. }))));
        assert!(most <= 2 * len + (1 << 20), "{most} bytes for {len}");
        let (most, result) = largest(|| Image::parse(cut, &known()).map(|_| ()));
        assert_eq!(result, Err(ImageError::Truncated { needed: far, have: len as u64 }));
        assert!(most < 10_000, "{most}");
    }
    // One that says the truth costs what it has.
    let (most, result) = largest(|| Image::read(&mut whole.as_slice(), u64::MAX, &known()).map(|_| ()));
    result.unwrap();
    assert!(most <= whole.len() + 1000, "{most} bytes for {}", whole.len());
}

#[test]
fn an_inventory_costs_little_whatever_it_says() {
    let mut bytes = image(&data(300));
    for sections in [256u32, 257, u32::MAX] {
        bytes[56..60].copy_from_slice(&sections.to_le_bytes());
        seal(&mut bytes);
        let (most, result) = largest(|| Inventory::read(&mut bytes.as_slice()).map(|_| ()));
        assert!(result.is_err());
        assert!(most <= 1 << 20, "{most}");
        // An endless input is not read beyond the table.
        let mut endless = bytes.as_slice().chain(std::io::repeat(0));
        let (most, result) = largest(|| Inventory::read(&mut endless).map(|_| ()));
        assert!(matches!(result, Err(ReadError::Image(ImageError::Damaged { .. } | ImageError::TooManySections(_)))));
        assert!(most <= 1 << 20, "{most}");
    }
}

#[test]
fn an_endless_input_is_read_as_far_as_the_image_goes() {
    let bytes = image(&data(300));
    let mut endless = bytes.as_slice().chain(std::io::repeat(0));
    let (most, result) = largest(|| Image::read(&mut endless, u64::MAX, &known()).map(|_| ()));
    assert!(matches!(result, Err(ReadError::Image(ImageError::TrailingBytes { .. }))));
    assert!(most <= 1 << 20, "{most}");
}

#[test]
fn writing_needs_one_chunk_of_memory() {
    let records = data(40_000_000);
    let mut b = builder();
    b.chunked(TABLE, 1, SectionFlags::REQUIRED, 100, &records).unwrap();
    let (most, _) = largest(|| b.write_to(&mut std::io::sink(), &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap());
    assert!(most <= CHUNK_LEN, "{most}");
}

/// Decodes 100 bytes whose first length says `announced`.
fn decoded<T: serde::de::DeserializeOwned>(announced: u64) -> usize {
    let mut bytes = vec![0; 100];
    bytes[..8].copy_from_slice(&announced.to_le_bytes());
    let (most, result) = largest(|| decode::<T>(&bytes).map(|_| ()));
    assert_eq!(result, Err(CodecError::TooShort), "{announced}");
    most
}

#[test]
fn lengths_within_a_state_are_believed_as_far_as_its_bytes_go() {
    for announced in [93, 100, 101, 1 << 20, 32 << 20, 64 << 20, 1 << 40, u64::MAX] {
        // 92 bytes follow, so there cannot be more elements than that, and nothing is allocated for them.
        for most in [
            decoded::<String>(announced),
            decoded::<Bytes>(announced),
            decoded::<Vec<u8>>(announced),
            decoded::<Vec<[u64; 30]>>(announced),
            decoded::<Box<str>>(announced),
            decoded::<Vec<Vec<u64>>>(announced),
            decoded::<BTreeMap<u64, u64>>(announced),
        ] {
            assert!(most < 100, "{most} bytes for a length of {announced}");
        }
    }
    // As many elements as there are bytes: at most so many times their size.
    assert!(decoded::<Vec<[u64; 30]>>(92) <= 92 * size_of::<[u64; 30]>());
}
