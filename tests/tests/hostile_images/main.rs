//! Images that nobody saved, under right checksums: a stack refuses them with a reason, or goes on with them, whatever happens then.
//!
//! `HIBERNET_SEED=n` repeats one forgery of a test, `HIBERNET_FORGERIES=n` sets how many there are.

mod bytes;
mod fields;
mod memory;

use hibernet_netstack::conntrack::image::Image as Connections;
use hibernet_netstack::state::{Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_tests::{World, image, lively, wild};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A saved stack.
struct Saved {
    now: Time,
    state: StackState,
    connections: Connections,
}

fn saved() -> Saved {
    let World { stack, edge, .. } = lively();
    Saved { now: edge.now(), state: stack.save(), connections: stack.conntrack().save() }
}

/// Restores a stack from an image and has it go on; what is wrong with the image, if it is refused.
fn play(bytes: &[u8], seed: u64) -> Result<Stack, String> {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut stack = image::restore(bytes, Randomness::Fresh(key), &[])?;
    let now = hibernet_snapshot::Inventory::parse(bytes).expect("it was restored").header.stack_time;
    wild::drive(&mut stack, Time::from_nanos(now), seed, 60);
    let _ = image::save(&stack, Time::from_nanos(now));
    Ok(stack)
}

/// Plays so many forgeries; `forge` makes one of a seed. Returns how many were accepted.
fn forgeries(test: &str, count: u64, forge: impl Fn(u64) -> Option<Vec<u8>> + Sync) -> u64 {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}: {v}")));
    if let Some(seed) = number("HIBERNET_SEED") {
        println!("{:?}", forge(seed).map(|f| play(&f, seed).map(|s| s.flow_counts())));
        return count;
    }
    let count = number("HIBERNET_FORGERIES").unwrap_or(count);
    let (next, accepted) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count || failed.lock().unwrap().len() >= 20 {
                        break;
                    }
                    let Some(bytes) = forge(seed) else { continue };
                    match catch_unwind(AssertUnwindSafe(|| play(&bytes, seed).is_ok())) {
                        Ok(yes) => drop(accepted.fetch_add(yes.into(), Ordering::Relaxed)),
                        Err(_) => failed.lock().unwrap().push(seed),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let replay = format!("HIBERNET_SEED=n cargo test -p hibernet-tests --test hostile_images {test}");
    assert!(failed.is_empty(), "failed forgeries: {failed:?}; replay: {replay}");
    accepted.into_inner()
}

/// A lively world's stack goes on in wild surroundings: a check of the kit itself.
#[test]
fn a_sane_stack_goes_on_in_wild_surroundings() {
    let s = saved();
    let bytes = image::write(s.now, &s.state, &s.connections);
    for seed in 0..30 {
        assert!(play(&bytes, seed).is_ok());
    }
}
