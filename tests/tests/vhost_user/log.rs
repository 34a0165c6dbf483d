//! The log of pages that the device has written to.

use super::{LONG, Served, connected, frame, in_place, running};
use hibernet::link::Link;
use hibernet_netstack::edge::{Payload, TxFrame};
use hibernet_tests::SplitMix;
use hibernet_tests::vmm::{FrontEnd, LOG_PAGE, Options, code, feature};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use vm_memory::{Bytes, GuestAddress};

/// No page.
const NONE: [u64; 0] = [];
/// What buffers to receive into hold before.
const BLANK: u8 = 0xaa;

/// Page by page, what the guest's memory holds.
fn pages(front: &FrontEnd) -> Vec<Vec<u8>> {
    let read = |page: u64| {
        let mut bytes = vec![0; LOG_PAGE as usize];
        front.memory().read_slice(&mut bytes, GuestAddress(page * LOG_PAGE)).unwrap();
        bytes
    };
    (0..front.memory_len() / LOG_PAGE).map(read).collect()
}

fn logging(served: &mut Served, front: &mut FrontEnd) {
    let end = front.memory_len();
    let taken = served.while_does(|| front.share_log(end).unwrap()).unwrap();
    assert!(taken);
    served.while_does(|| front.set_logging(true).unwrap()).unwrap();
    front.take_logged();
}

/// What the device has changed is logged, and nothing else is: of random frames both ways, of both kinds of rings.
#[test]
fn exactly_the_pages_that_were_written_are_logged() {
    let base = Options { rx_buffer: 1500, size: 64, ..Options::default() };
    let merged = base.features;
    for features in [merged, merged & !feature::MRG_RXBUF, merged | feature::EVENT_IDX] {
        let large = features & feature::MRG_RXBUF == 0;
        let options = Options { features, rx_buffer: if large { 68 * 1024 } else { base.rx_buffer }, ..base };
        let (mut served, mut front) = running(options);
        logging(&mut served, &mut front);
        let rx = front.rx.layout;
        let mut rng = SplitMix::new(11);
        let mut any = BTreeSet::new();
        for round in 0..100 {
            front
                .memory()
                .write_slice(&vec![BLANK; (rx.buffer(rx.size) - rx.buffers) as usize], GuestAddress(rx.buffers))
                .unwrap();
            let before = pages(&front);
            let to_guest = rng.chance(60);
            let len = 14 + (rng.u64() % 9000) as usize;
            if to_guest {
                let slot = served.slots.take().unwrap();
                // Whatever is written is another byte than the one that was there.
                served.slots.slot_mut(slot)[..len].fill_with(|| rng.u64() as u8 | 1);
                let body = Payload { slot, offset: 0, len: len as u32 };
                if round % 2 == 0 {
                    served.link.send(&mut served.slots, TxFrame { body, ..frame(&[round | 1; 54]) }).unwrap();
                } else {
                    // The kernel writes the body.
                    let late = served.slots.bytes(body).to_vec();
                    in_place::send(&mut served, &[round | 1; 54], &late, 0).unwrap();
                    served.slots.give(slot);
                }
                served.link.flush(&mut served.slots).unwrap();
            } else {
                // The guest writes too, which is not for us to log.
                let mut sent = vec![0; len];
                rng.fill(&mut sent);
                assert!(front.transmit(&sent));
                let before = pages(&front);
                served.until_frames(1);
                served.frames.clear();
                let changed = changes(&before, &pages(&front));
                let logged: BTreeSet<u64> = front.take_logged().into_iter().collect();
                // What was there already is written all the same.
                assert!(changed.is_subset(&logged), "{options:?} {round}: {changed:?} {logged:?}");
                let ring = front.tx.layout;
                let used = ring.used() / LOG_PAGE..=(ring.base + ring.len() - 1) / LOG_PAGE;
                assert!(logged.iter().all(|p| used.contains(p)), "{options:?} {round}: {logged:?}, not only the used ring");
                continue;
            }
            let changed = changes(&before, &pages(&front));
            let logged: BTreeSet<u64> = front.take_logged().into_iter().collect();
            assert_eq!(logged, changed, "{options:?}: frame {round} of {len} bytes");
            any.extend(logged);
            assert!(front.called(0, LONG));
            while front.receive().is_some() {}
            front.rx.want_calls();
            front.refill();
            served.turn().unwrap();
            front.take_logged();
        }
        assert!(any.len() > 10, "only {any:?} was ever written to");
        served.while_does(|| front.set_logging(false).unwrap()).unwrap();
        served.link.send(&mut served.slots, frame(&[1; 60])).unwrap();
        assert_eq!(front.take_logged(), NONE, "it was switched off");
        assert!(front.beside_log().iter().all(|b| *b == 0), "something was written beside the log");
    }
}

fn changes(before: &[Vec<u8>], after: &[Vec<u8>]) -> BTreeSet<u64> {
    before.iter().zip(after).zip(0..).filter(|((b, a), _)| b != a).map(|(_, n)| n).collect()
}

/// The used ring is logged where the front end says, and only if it says so.
#[test]
fn used_rings_are_logged_where_they_are_said_to_be() {
    let (mut served, mut front) = running(Options::default());
    logging(&mut served, &mut front);
    let set = |served: &mut Served, front: &FrontEnd, body: Vec<u8>| {
        served.while_does(|| front.set(code::SET_VRING_ADDR, &body, &[]).unwrap()).unwrap()
    };
    let (layout, elsewhere) = (front.tx.layout, front.memory_len() - 2 * LOG_PAGE);
    assert!(set(&mut served, &front, FrontEnd::logged_addresses(1, &layout, elsewhere)));
    let sends = |served: &mut Served, front: &mut FrontEnd| {
        assert!(front.transmit(&[5; 60]));
        served.until_frames(1);
        served.frames.clear();
        // The other ring is where it was.
        let other = front.rx.layout.used() / LOG_PAGE;
        front.take_logged().into_iter().filter(|page| *page != other).collect::<Vec<_>>()
    };
    assert_eq!(sends(&mut served, &mut front), [elsewhere / LOG_PAGE]);
    assert!(set(&mut served, &front, FrontEnd::addresses(1, &layout)));
    assert_eq!(sends(&mut served, &mut front), NONE);
    let end = front.memory_len();
    for log in [end, end - 8, u64::MAX - 8] {
        assert!(!set(&mut served, &front, FrontEnd::logged_addresses(1, &layout, log)), "{log:#x} has no bits");
    }
    assert_eq!(sends(&mut served, &mut front), NONE);
}

#[test]
fn a_log_that_cannot_be_is_refused_and_nothing_is_written_to_it() {
    let (mut served, mut front) = running(Options::default());
    let end = front.memory_len();
    let taken = served.while_does(|| front.share_log(end - 8 * LOG_PAGE).unwrap()).unwrap();
    assert!(!taken, "it has no bits for the end of the memory");
    served.while_does(|| front.set_logging(true).unwrap()).unwrap();
    served.link.send(&mut served.slots, frame(&[1; 60])).unwrap();
    assert_eq!(front.take_logged(), NONE);

    let file = memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, 1 << 20).unwrap();
    let set = |served: &mut Served, front: &FrontEnd, len: u64, offset: u64| {
        let body = [len, offset].iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>();
        served.while_does(|| front.set(code::SET_LOG_BASE, &body, &[file.as_fd()]).unwrap()).unwrap()
    };
    for (len, offset) in [(0, 0), (1 << 20, 4096), (1 << 40, 0), (u64::MAX, 0), (4096, u64::MAX - 100), (4096, 1), (1 << 21, 0)] {
        assert!(!set(&mut served, &front, len, offset), "{len} at {offset}");
    }
    assert!(set(&mut served, &front, 1 << 20, 0));
    assert!(ftruncate(&file, 4096).is_err(), "its file can be shortened");
    // More memory than the log has bits for.
    let add = [0u64.to_ne_bytes().to_vec(), FrontEnd::region(1 << 35, 4096, 1 << 35, 0)].concat();
    let memory = front.file();
    assert!(!served.while_does(|| front.set(code::ADD_MEM_REG, &add, &[memory]).unwrap()).unwrap());
    let event = front.call_fd(1);
    assert!(served.while_does(|| front.set(code::SET_LOG_FD, &[], &[event]).unwrap()).unwrap());
    served.link.send(&mut served.slots, frame(&[1; 60])).unwrap();
    served.link.flush(&mut served.slots).unwrap();
    assert!(front.called(1, LONG), "who asked to hear of what is logged does not");
    assert!(!served.while_does(|| front.set(code::SET_LOG_FD, &[], &[memory]).unwrap()).unwrap(), "a file is no eventfd");
}

/// A front end that does not ask whether its log was taken must not go on as if it were.
#[test]
fn who_would_not_hear_that_its_log_is_refused_loses_the_session() {
    let (mut served, front) = connected(Options::default());
    let body = [1u64 << 30, 0].iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>();
    front.send(code::SET_LOG_BASE, 0, &body, &[front.file()]).unwrap();
    assert!(served.wait(LONG));
    assert!(served.turn().is_err());
}

#[test]
fn memory_beyond_the_log_is_refused() {
    let (mut served, mut front) = connected(Options::default());
    served.while_does(|| front.negotiate().unwrap()).unwrap();
    let end = front.memory_len();
    let taken = served.while_does(|| front.share_log(end - LOG_PAGE * 8).unwrap()).unwrap();
    assert!(taken);
    let table = front.memory_table();
    let file = front.file();
    let shared = served.while_does(|| front.set(code::SET_MEM_TABLE, &table, &[file]).unwrap()).unwrap();
    assert!(!shared, "memory beyond the log");
}
