//! A small harness: medians of rounds, allocations counted, and what the machine itself does in the same run.
#![allow(dead_code)]

use rustix::time::{ClockId, clock_gettime};
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// The system's allocator, counted.
pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed on to the system's allocator with the arguments that came, so what that promises holds here. Counting does
// not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size() as u64, Relaxed);
        // SAFETY: the caller keeps the conditions of `alloc`, which are those of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as u64, Relaxed);
        // SAFETY: `ptr` came from `alloc` above, so from the system's allocator, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        BYTES.fetch_add(size as u64, Relaxed);
        BYTES.fetch_sub(layout.size() as u64, Relaxed);
        // SAFETY: the caller keeps the conditions of `realloc`, which are those of the system's; `ptr` came from there.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

/// Bytes allocated now.
pub fn allocated() -> u64 {
    BYTES.load(Relaxed)
}

/// Bytes resident now.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// What a round took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Nanoseconds per operation, median of the rounds.
    pub ns: f64,
    /// Of the fastest round.
    pub best: f64,
    /// Allocations per operation, of all rounds.
    pub allocations: f64,
}

/// Nanoseconds for which this thread had a processor: others on the machine count only in so far as they take caches and memory.
pub fn cpu_time() -> u64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Times `rounds` rounds of `ops` operations each, by this thread's CPU time; `prepare` makes what `run` needs, untimed.
pub fn measure<T>(rounds: usize, ops: u64, prepare: impl FnMut() -> T, run: impl FnMut(T)) -> Measured {
    measure_by(cpu_time, rounds, ops, prepare, run)
}

/// As [`measure`], by the wall clock: for several threads.
pub fn measure_wall<T>(rounds: usize, ops: u64, prepare: impl FnMut() -> T, run: impl FnMut(T)) -> Measured {
    let begin = Instant::now();
    measure_by(|| begin.elapsed().as_nanos() as u64, rounds, ops, prepare, run)
}

fn measure_by<T>(
    clock: impl Fn() -> u64,
    rounds: usize,
    ops: u64,
    mut prepare: impl FnMut() -> T,
    mut run: impl FnMut(T),
) -> Measured {
    let mut times = Vec::with_capacity(rounds);
    let mut allocations = 0;
    for _ in 0..rounds {
        let input = prepare();
        let before = ALLOCATIONS.load(Relaxed);
        let start = clock();
        run(input);
        times.push((clock() - start) as f64 / ops as f64);
        allocations += ALLOCATIONS.load(Relaxed) - before;
    }
    times.sort_by(f64::total_cmp);
    Measured { ns: times[rounds / 2], best: times[0], allocations: allocations as f64 / (rounds as u64 * ops) as f64 }
}

/// A cheap random stream for choosing what to touch.
pub struct Lcg(pub u64);

impl Lcg {
    /// A number below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// Nanoseconds of a random access to memory that no cache has: a chain of pointers through 512 MiB.
pub fn dram_latency() -> f64 {
    const LINES: u32 = 8 << 20;
    const STEPS: u64 = 1_000_000;
    let mut chain: Vec<[u32; 16]> = vec![[0; 16]; LINES as usize];
    // One cycle through all lines (Sattolo).
    let mut order: Vec<u32> = (0..LINES).collect();
    let mut random = Lcg(42);
    for i in (1..LINES).rev() {
        order.swap(i as usize, random.below(i) as usize);
    }
    for pair in order.windows(2) {
        chain[pair[0] as usize][0] = pair[1];
    }
    chain[order[order.len() - 1] as usize][0] = order[0];
    let mut at = 0;
    measure(5, STEPS, || (), |()| (0..STEPS).for_each(|_| at = chain[black_box(at) as usize][0])).ns
}

/// Bytes copied per nanosecond, from memory to memory.
pub fn memcpy_rate() -> f64 {
    const SIZE: usize = 256 << 20;
    let from = vec![1_u8; SIZE];
    let mut to = vec![0_u8; SIZE];
    1.0 / measure(5, SIZE as u64, || (), |()| black_box(&mut to).copy_from_slice(black_box(&from))).ns
}

/// Prints a result beside its target.
pub fn report(name: &str, m: Measured, dram: f64, target: &str) {
    println!(
        "{name:<52} {:>8.1} ns  (best {:>7.1})  {:>5.2} DRAM  {:>5.2} allocations   target {target}",
        m.ns,
        m.best,
        m.ns / dram,
        m.allocations
    );
}
