//! Buffers that a back end had taken when it was killed.

use super::{Served, connected, frame, in_place};
use hibernet::link::vhost_user::VhostUserLink;
use hibernet::link::{Link, LinkNews};
use hibernet::slots::Slots;
use hibernet_netstack::edge::TxError;
use hibernet_tests::SplitMix;
use hibernet_tests::vmm::{FrontEnd, Options, code, feature};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use vm_memory::{Bytes, GuestAddress};

const SIZE: u16 = 16;
const OPTIONS: Options =
    Options { features: !feature::EVENT_IDX, protocol: !0, pairs: 1, size: SIZE, rx_buffer: 2048, tx_buffer: 2048 };
/// Length of a queue's part: a head, and entries of 16 bytes, to a multiple of 64.
const PART: u64 = 320;
/// Where things are in it (QEMU's vhost-user specification, `QueueRegionSplit` and `DescStateSplit`).
const VERSION: u64 = 8;
const LAST_OF_BATCH: u64 = 12;
const USED: u64 = 14;

fn entry(n: u16) -> u64 {
    16 + 16 * u64::from(n)
}

/// A link that notes what is in flight.
pub(super) fn noting(options: Options) -> (Served, FrontEnd) {
    let (mut served, mut front) = connected(options);
    served
        .while_does(|| {
            front.negotiate().unwrap();
            front.make_inflight().unwrap();
            front.share_inflight().unwrap();
            front.share_memory().unwrap();
            front.begin_rings().unwrap();
        })
        .unwrap();
    (served, front)
}

/// What stands in a queue's part.
fn noted(front: &FrontEnd, queue: u64, at: u64) -> u16 {
    let mut b = [0; 2];
    rustix::io::pread(front.inflight().0, &mut b, queue * PART + at).unwrap();
    u16::from_le_bytes(b)
}

fn note(front: &FrontEnd, queue: u64, at: u64, bytes: &[u8]) {
    rustix::io::pwrite(front.inflight().0, bytes, queue * PART + at).unwrap();
}

/// As a back end does that takes a buffer.
fn note_taken(front: &FrontEnd, queue: u64, n: u16, counter: u64) {
    note(front, queue, entry(n) + 8, &counter.to_le_bytes());
    note(front, queue, entry(n), &[1]);
}

fn taken(front: &FrontEnd, queue: u64) -> Vec<u16> {
    (0..SIZE).filter(|n| noted(front, queue, entry(*n)) & 0xff != 0).collect()
}

/// Another link, with which the front end goes on. The first is gone as if it had been killed: it writes nothing any more.
fn successor(front: &mut FrontEnd) -> Served {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let link = VhostUserLink::connected(ours.into(), 65_520, None).unwrap();
    let mut served = Served { link, slots: Slots::new(256).unwrap(), frames: Vec::new() };
    served.while_does(|| front.go_on(theirs).unwrap()).unwrap();
    served
}

#[test]
fn what_is_given_back_is_noted_as_not_taken() {
    let (mut served, mut front) = noting(OPTIONS);
    for n in 0..40u8 {
        assert!(front.transmit(&[n; 60]));
        served.until_frames(usize::from(n) + 1);
        assert_eq!((taken(&front, 1), noted(&front, 1, USED)), (vec![], u16::from(n) + 1));
        served.link.send(&mut served.slots, frame(&[n; 60])).unwrap();
        served.link.flush(&mut served.slots).unwrap();
        assert_eq!((taken(&front, 0), noted(&front, 0, USED)), (vec![], u16::from(n) + 1));
        assert_eq!(front.receive().unwrap().1, [n; 60]);
        front.refill();
    }
    // The kernel does not write what it was to: once, and again.
    for (short, sent) in [(1, Ok(())), (2, Err(TxError::Full)), (0, Ok(()))] {
        let before = noted(&front, 0, USED);
        assert_eq!(in_place::send(&mut served, &[1; 60], &[2; 10_000], short), sent);
        served.link.flush(&mut served.slots).unwrap();
        let used = if sent.is_ok() { 5 } else { 0 };
        assert_eq!((taken(&front, 0), noted(&front, 0, USED)), (vec![], before + used));
        assert_eq!(front.receive().map(|(_, f)| f.len()), sent.ok().map(|()| 10_060));
        front.refill();
    }
    assert_eq!((noted(&front, 0, VERSION), noted(&front, 1, VERSION)), (1, 1));
}

/// Frames that were taken and not given back are taken again, in their order, and before others.
#[test]
fn what_was_taken_is_taken_again() {
    for (in_flight, expected) in [
        (&[][..], [0, 1, 2, 3, 4, 5].as_slice()),
        (&[(0, 7), (1, 8)], &[0, 1, 2, 3, 4, 5]),
        // One that takes them in another order than they were offered.
        (&[(3, 9), (0, u64::MAX), (2, 4)], &[2, 3, 0, 3, 4, 5]),
    ] {
        let (served, mut front) = noting(OPTIONS);
        drop(served);
        for n in 0..6u8 {
            assert!(front.tx.send(&[&[0; 12], &[n; 60][..]].concat()));
        }
        // Descriptors are given out in their order.
        for &(n, counter) in in_flight {
            note_taken(&front, 1, n, counter);
        }
        if in_flight.len() == 3 {
            // The driver's ring says that 3, 0, 2 were offered first; what was offered then is not looked at.
            let ring = front.tx.layout.avail() + 4;
            front.memory().write_slice(&[3, 0, 0, 0, 2, 0, 3, 0, 4, 0, 5, 0], GuestAddress(ring)).unwrap();
        }
        let mut served = successor(&mut front);
        served.until_frames(6);
        let got: Vec<u8> = served.frames.iter().map(|f| f[0]).collect();
        assert_eq!(got, expected, "{in_flight:?}");
        assert!(served.frames.iter().all(|f| f.len() == 60));
        assert_eq!((front.tx.used_index(), taken(&front, 1)), (6, vec![]));
    }
}

/// Killed between showing buffers to the guest and noting that: they are not taken again.
#[test]
fn what_was_shown_to_the_guest_is_not_taken_again() {
    let (mut served, mut front) = noting(OPTIONS);
    for n in 0..3u8 {
        assert!(front.transmit(&[n; 60]));
    }
    served.until_frames(3);
    drop(served);
    // As it was before the note; the one in the middle is the first of the batch.
    note(&front, 1, USED, &1u16.to_le_bytes());
    note(&front, 1, LAST_OF_BATCH, &2u16.to_le_bytes());
    note(&front, 1, entry(2) + 6, &1u16.to_le_bytes());
    note_taken(&front, 1, 1, 1);
    note_taken(&front, 1, 2, 2);
    let mut served = successor(&mut front);
    assert_eq!((taken(&front, 1), noted(&front, 1, USED)), (vec![], 3));
    assert_eq!(front.tx.reclaim(), 3);
    assert!(front.transmit(&[9; 60]));
    served.until_frames(1);
    assert_eq!(served.frames, [[9; 60]]);
}

/// Buffers to receive into that were taken are filled first; those that are too few for a frame stay noted.
#[test]
fn buffers_to_receive_into_are_not_lost() {
    let (mut served, mut front) = noting(Options { rx_buffer: 512, ..OPTIONS });
    // A queue's part means something when it was used once.
    served.link.send(&mut served.slots, frame(&[7; 60])).unwrap();
    drop(served);
    assert_eq!(front.receive().unwrap().1, [7; 60]);
    let first = front.rx.take().unwrap();
    front.rx.offer_to_write(first);
    // The next three of the driver's ring.
    for n in 1..4 {
        note_taken(&front, 0, n, u64::from(n));
    }
    let mut served = successor(&mut front);
    let long = [5; 9 * 1024];
    // 16 buffers of 512 bytes are too few; nothing has changed.
    assert!(served.link.send(&mut served.slots, frame(&long[..8191])).is_err());
    assert_eq!(taken(&front, 0), [1, 2, 3]);
    for n in 0..8u8 {
        served.link.send(&mut served.slots, frame(&[n; 1000])).unwrap();
    }
    // Of two more, one waits: all buffers are in use.
    served.link.send(&mut served.slots, frame(&[8; 1000])).unwrap();
    served.link.flush(&mut served.slots).unwrap();
    assert_eq!((front.rx.used_index(), taken(&front, 0)), (17, vec![]));
    for n in 0..8u8 {
        assert_eq!(front.receive().unwrap().1, [n; 1000]);
    }
    assert_eq!(front.rx.free(), usize::from(SIZE));
    front.refill();
    served.turn().unwrap();
    assert_eq!(front.receive().unwrap().1, [8; 1000]);
}

/// Back ends come and go at any time; no buffer is lost, none comes back twice (the driver's side would notice), and frames keep their order.
#[test]
fn many_back_ends_one_after_the_other_lose_nothing() {
    let mut rng = SplitMix::new(3);
    for features in [OPTIONS.features, !0] {
        let (mut served, mut front) = noting(Options { features, ..OPTIONS });
        let (mut sent, mut got) = (0u32, Vec::new());
        for _ in 0..60 {
            for _ in 0..rng.u64() % 40 {
                match rng.u64() % 4 {
                    0 => sent += u32::from(front.transmit(&sent.to_le_bytes().repeat(15))),
                    1 => served.turn().unwrap(),
                    2 => {
                        let _ = served.link.send(&mut served.slots, frame(&[1; 60]));
                    }
                    _ => {
                        while front.receive().is_some() {}
                        front.refill();
                    }
                }
            }
            got.append(&mut served.frames);
            served = successor(&mut front);
        }
        front.kick_anyway(1);
        served.turn().unwrap();
        got.append(&mut served.frames);
        assert!(got.iter().zip(0u32..).all(|(f, n)| f[..4] == n.to_le_bytes()), "in their order, each once");
        assert_eq!(got.len(), sent as usize);
        front.tx.reclaim();
        assert_eq!(front.tx.free(), usize::from(SIZE));
        while front.receive().is_some() {}
        assert!(front.tx.used_index() > 100);
    }
}

#[test]
fn memory_that_makes_no_sense_is_refused() {
    let (mut served, mut front) = connected(OPTIONS);
    served.while_does(|| front.negotiate().unwrap()).unwrap();
    let file = memfd_create("in flight", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 2 * PART).unwrap();
    let hand = |served: &mut Served, len: u64, offset: u64, queues: u64, size: u64| {
        let body: Vec<u8> = [len, offset, queues | size << 16].iter().flat_map(|v| v.to_ne_bytes()).collect();
        served.while_does(|| front.set(code::SET_INFLIGHT_FD, &body, &[file.as_fd()]).unwrap()).unwrap()
    };
    assert!(hand(&mut served, 2 * PART, 0, 2, 16));
    assert!(!hand(&mut served, 2 * PART, 0, 3, 16), "more queues than there are");
    assert!(!hand(&mut served, 2 * PART, 0, 0, 16), "none");
    assert!(!hand(&mut served, 2 * PART, 0, 2, 0), "no entries");
    assert!(!hand(&mut served, 2 * PART, 0, 1, 2048), "more entries than a queue can have");
    assert!(!hand(&mut served, 2 * PART - 1, 0, 2, 16), "too short");
    assert!(!hand(&mut served, 2 * PART, 4096, 2, 16), "beyond the file");
    assert!(!hand(&mut served, 2 * PART, u64::MAX - 10, 2, 16), "beyond any file");
    rustix::io::pwrite(&file, &2u16.to_le_bytes(), VERSION).unwrap();
    assert!(!hand(&mut served, 2 * PART, 0, 2, 16), "another version");
    rustix::io::pwrite(&file, &[1, 0, 17, 0], VERSION).unwrap();
    assert!(!hand(&mut served, 2 * PART, 0, 2, 16), "for another size");
    assert_eq!(fstat(&file).unwrap().st_size as u64, 2 * PART);
    let body: Vec<u8> = [0, 0, 3u64 | 16 << 16].iter().flat_map(|v| v.to_ne_bytes()).collect();
    let end = served.while_does(|| front.set(code::GET_INFLIGHT_FD, &body, &[]).unwrap());
    assert!(matches!(end, Ok(false)), "nor is it made: {end:?}");
}

/// What is noted is nothing to be trusted: the link goes on, or says that the queue makes no sense.
#[test]
fn forged_notes_harm_nobody() {
    let mut rng = SplitMix::new(4);
    for round in 0..300 {
        let (served, mut front) = noting(OPTIONS);
        drop(served);
        for n in 0..rng.u64() as u8 % 10 {
            front.tx.send(&[n; 72]);
        }
        let mut forged = vec![0; 2 * PART as usize];
        rng.fill(&mut forged);
        for queue in 0..2 {
            // Versions and sizes are judged when it is handed over.
            forged[PART as usize * queue + 8..][..4].copy_from_slice(&[1, 0, SIZE as u8, 0]);
            if round % 2 == 0 {
                let used = [rng.u64() as u8 % 20, 0];
                forged[PART as usize * queue + USED as usize..][..2].copy_from_slice(&used);
                for n in 0..SIZE {
                    let at = PART as usize * queue + entry(n) as usize;
                    forged[at] = u8::from(rng.chance(20));
                    forged[at + 6..at + 8].copy_from_slice(&(rng.u64() as u16 % 18).to_le_bytes());
                }
            }
        }
        note(&front, 0, 0, &forged);
        let mut served = successor(&mut front);
        front.kick_anyway(1);
        for _ in 0..40 {
            served.turn().unwrap();
            let _ = served.link.send(&mut served.slots, frame(&[1; 60]));
        }
        let news: Vec<LinkNews> = std::iter::from_fn(|| served.link.take_news()).collect();
        assert!(!news.iter().any(|n| matches!(n, LinkNews::Left(_))), "{news:?}");
        assert!(served.frames.len() <= 2 * usize::from(SIZE), "{}", served.frames.len());
        served.link.stop(&mut served.slots);
        assert_eq!(served.slots.in_use(), 0);
    }
}
