//! Guests that break the rules of virtqueues. They harm nobody: no panic, no endless loop, nothing read or written that is not theirs.

use super::{Served, frame, running};
use hibernet::link::Link;
use hibernet_netstack::edge::TxError;
use hibernet_tests::SplitMix;
use hibernet_tests::vmm::{FrontEnd, Options};
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn bad(served: &Served) -> u64 {
    let s = served.link.stats();
    s.rx_bad_header + s.rx_too_short + s.rx_too_long
}

/// After whatever happened, a good frame still passes.
fn works(served: &mut Served, front: &mut FrontEnd) {
    served.frames.clear();
    assert!(front.transmit(&[5; 60]));
    served.until_frames(1);
    assert_eq!(served.frames, [[5; 60]]);
}

#[test]
fn chains_that_make_no_sense_are_dropped_and_given_back() {
    let (mut served, mut front) = running(Options::default());
    let buffer = front.tx.layout.buffer(200);
    let end = front.memory_len();
    // Each: descriptors from number 100 on, and what stands at `buffer`.
    type Chain = &'static [(u64, u32, u16, u16)];
    let chains: &[(&str, Chain)] = &[
        ("itself", &[(0, 100, NEXT, 100)]),
        ("a loop of two", &[(0, 100, NEXT, 101), (0, 100, NEXT, 100)]),
        ("out of the table", &[(0, 100, NEXT, 256)]),
        ("far out of the table", &[(0, 100, NEXT, u16::MAX)]),
        ("for us to write", &[(0, 100, WRITE, 0)]),
        ("read after write", &[(0, 100, WRITE | NEXT, 101), (0, 100, 0, 0)]),
        ("a table of nothing", &[(0, 0, INDIRECT, 0)]),
        ("a table of a part", &[(0, 17, INDIRECT, 0)]),
        ("a table too long", &[(0, u32::MAX - 15, INDIRECT, 0)]),
        ("a table and more", &[(0, 16, INDIRECT | NEXT, 101), (0, 100, 0, 0)]),
        ("nothing", &[(0, 0, 0, 0)]),
        ("a header alone", &[(0, 12, 0, 0)]),
        ("too short", &[(0, 25, 0, 0)]),
        ("too long", &[(0, 68 << 10, 0, 0)]),
        ("far too long", &[(0, u32::MAX, 0, 0)]),
        ("much too long", &[(0, u32::MAX, NEXT, 101), (0, u32::MAX, NEXT, 102), (0, u32::MAX, 0, 0)]),
    ];
    let mut count = 0;
    for (name, chain) in chains {
        for (i, &(at, len, flags, next)) in chain.iter().enumerate() {
            front.tx.describe(100 + i as u16, buffer + at, len, flags, next);
        }
        front.tx.offer(100);
        front.kick();
        served.turn().unwrap();
        count += 1;
        assert_eq!((served.frames.len(), bad(&served)), (0, count), "{name}");
        assert_eq!(front.tx.used(), Some((100, 0)), "{name}");
    }
    for (name, at) in [("outside", end), ("across the end", end - 40), ("far outside", u64::MAX - 20), ("wrapping", u64::MAX)] {
        for flags in [0, INDIRECT] {
            front.tx.describe(100, at, 96, flags, 0);
            front.tx.offer(100);
            front.kick();
            served.turn().unwrap();
            count += 1;
            assert_eq!((served.frames.len(), bad(&served)), (0, count), "{name}");
            assert_eq!(front.tx.used(), Some((100, 0)), "{name}");
        }
    }
    // A table in a table.
    let entry = |flags: u16| (u128::from(buffer) | 16 << 64 | u128::from(flags) << 96).to_le_bytes();
    front.memory().write_slice(&entry(INDIRECT), GuestAddress(buffer)).unwrap();
    front.tx.describe(100, buffer, 16, INDIRECT, 0);
    front.tx.offer(100);
    front.kick();
    served.turn().unwrap();
    assert_eq!((bad(&served), front.tx.used()), (count + 1, Some((100, 0))));
    assert_eq!(served.slots.in_use(), 0);
    works(&mut served, &mut front);
}

#[test]
fn a_table_of_descriptors_is_a_chain() {
    let (mut served, mut front) = running(Options::default());
    let (table, data) = (front.tx.layout.buffer(200), front.tx.layout.buffer(201));
    let pieces = [(0u64, 5u32), (5, 7), (12, 30), (42, 1), (43, 29)];
    for (i, (at, len)) in pieces.iter().enumerate() {
        let flags = if i + 1 < pieces.len() { NEXT } else { 0 };
        let d = u128::from(data + at) | u128::from(*len) << 64 | u128::from(flags) << 96 | (i as u128 + 1) << 112;
        front.memory().write_slice(&d.to_le_bytes(), GuestAddress(table + 16 * i as u64)).unwrap();
    }
    let sent: Vec<u8> = (0..60).collect();
    front.memory().write_slice(&[&[0; 12][..], &sent].concat(), GuestAddress(data)).unwrap();
    front.tx.describe(100, table, 16 * pieces.len() as u32, INDIRECT, 0);
    front.tx.offer(100);
    front.kick();
    served.until_frames(1);
    assert_eq!(served.frames, [sent]);
}

#[test]
fn a_ring_that_makes_no_sense_is_left_alone_until_it_is_set_up_again() {
    let (mut served, mut front) = running(Options::default());
    front.tx.claim(300);
    front.kick_anyway(1);
    served.turn().unwrap();
    assert_eq!(front.tx.used_index(), 0);
    front.kick_anyway(1);
    served.turn().unwrap();
    assert!(!served.wait(std::time::Duration::from_millis(20)), "kicks of it do not keep us busy");
    assert!(served.link.send(&mut served.slots, frame(&[1; 60])).is_ok(), "the other ring goes on");

    let (mut served, mut front) = running(Options::default());
    front.rx.claim(300);
    assert_eq!(served.link.send(&mut served.slots, frame(&[1; 60])), Err(TxError::Down));
    works(&mut served, &mut front);
    let at = served.while_does(|| front.stop_ring(0).unwrap()).unwrap();
    served.while_does(|| front.start_ring(0, at).unwrap()).unwrap();
    assert_eq!(served.link.send(&mut served.slots, frame(&[1; 60])), Err(TxError::Down), "and again");
}

#[test]
fn buffers_that_cannot_be_written_stop_their_ring() {
    for (addr, flags) in [(0, 0), (u64::MAX - 100, WRITE), (1 << 45, WRITE)] {
        let (mut served, mut front) = running(Options::default());
        while front.rx.take().is_some() {}
        // Those that were offered at the beginning are changed behind the device's back.
        for n in 0..front.rx.layout.size {
            front.rx.describe(n, addr, 4096, flags, 0);
        }
        assert_eq!(served.link.send(&mut served.slots, frame(&[1; 60])), Err(TxError::Down));
        assert_eq!(served.slots.in_use(), 0);
        works(&mut served, &mut front);
    }
}

/// Everything in the guest's memory changes at random while the device works with it.
#[test]
fn memory_that_changes_all_the_time() {
    let options = Options { size: 64, rx_buffer: 2048, tx_buffer: 2048, ..Options::default() };
    let (mut served, front) = running(options);
    let stop = AtomicBool::new(false);
    let memory = front.memory().clone();
    let rings = [front.rx.layout, front.tx.layout];
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut rng = SplitMix::new(7);
            while !stop.load(Ordering::Relaxed) {
                let layout = rings[rng.u64() as usize % 2];
                let at = layout.base + rng.u64() % layout.len();
                // Small values make sense more often.
                let v = if rng.chance(50) { rng.u64() } else { rng.u64() % 64 };
                memory.write_slice(&v.to_le_bytes()[..1 + rng.u64() as usize % 8], GuestAddress(at)).unwrap();
            }
        });
        let mut rng = SplitMix::new(8);
        for round in 0..2000u32 {
            for i in 0..2 {
                front.kick_anyway(i);
            }
            served.turn().unwrap();
            let _ = served.link.send(&mut served.slots, frame(&[3; 100]));
            served.frames.clear();
            if rng.chance(12) {
                for i in 0..2 {
                    let base = served.while_does(|| front.stop_ring(i).unwrap()).unwrap();
                    served.while_does(|| front.start_ring(i, base.wrapping_add(round as u16 % 3)).unwrap()).unwrap();
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    served.link.stop(&mut served.slots);
    assert_eq!(served.slots.in_use(), 0);
}
