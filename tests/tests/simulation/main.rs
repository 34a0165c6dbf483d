//! The whole stack between a real TCP/IP implementation as guest and a made-up host, over a link that loses, doubles
//! and reorders, thousands of times.
//!
//! Each seed makes a world of its own: link, faults, flows of TCP and UDP in both directions and both families,
//! slow readers, short writes, small windows, every order of closing. Every byte must arrive once and in order, every
//! connection end cleanly, and nothing be left behind.
//!
//! Small worlds are run several times over: undisturbed; saved and restored at every boundary, under the same secrets and under new ones; saved and
//! rolled back at every boundary; while the tracked connections are copied. Nobody may be able to tell ([`chain`]).
//!
//! - `HIBERNET_SEED=n cargo test -p hibernet-tests --test simulation TEST` repeats one seed.
//! - `HIBERNET_TRACE=1` prints every frame of it (with `-- --nocapture`).
//! - `HIBERNET_SEEDS=n` sets how many there are (2000; 1000 small ones).

mod canon;
mod chain;
mod flood;
mod forgotten;
mod frame;
mod guest;
mod net;
mod plan;
mod run;
mod small;
mod tcp_flow;
mod udp_flow;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// Runs seeds in all threads there are; panics with what to do about those that fail.
fn seeds<T: Send>(test: &str, count: u64, run: impl Fn(u64) -> T + Sync, add: impl Fn(T) + Sync) {
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let replay = |seed: &str| format!("HIBERNET_SEED={seed} cargo test -p hibernet-tests --test simulation {test}");
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count || failed.lock().unwrap().len() >= 5 {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| run(seed))) {
                        Ok(done) => add(done),
                        Err(_) => {
                            eprintln!("seed {seed} failed; replay it with\n    {}", replay(&seed.to_string()));
                            failed.lock().unwrap().push(seed);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed seeds: {failed:?}; replay: {}", replay("n"));
}

#[test]
fn every_byte_arrives_once_and_in_order_over_a_bad_link() {
    if let Some(seed) = number("HIBERNET_SEED") {
        let done = run::seed(seed);
        println!("seed {seed}: {done:?}");
        return;
    }
    let count = number("HIBERNET_SEEDS").unwrap_or(2000);
    let total = Mutex::new(run::Done::default());
    seeds("every_byte", count, run::seed, |done| total.lock().unwrap().add(&done));
    let total = total.into_inner().unwrap();
    println!("{total:?}");
    assert!(total.forgotten() * 500 <= count + 500, "the guest forgets too often for that to be its own mistake: {total:?}");
}

#[test]
fn nobody_can_tell_a_stack_that_was_saved_and_restored_at_every_boundary() {
    if let Some(seed) = number("HIBERNET_SEED") {
        println!("seed {seed}: {:?}", chain::seed(seed));
        return;
    }
    let count = number("HIBERNET_SEEDS").unwrap_or(1000);
    let total = Mutex::new(chain::Tally::default());
    seeds("nobody_can_tell", count, chain::seed, |tally| total.lock().unwrap().add(&tally));
    println!("{:?}", total.into_inner().unwrap());
}
