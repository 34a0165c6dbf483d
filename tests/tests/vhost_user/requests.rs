//! What a front end may ask for, and what it may not.

use super::{Served, connected, running};
use hibernet::link::Link;
use hibernet_tests::vmm::{FrontEnd, Options, code};
use std::os::fd::AsFd;

/// Whether a request is carried out.
fn done(served: &mut Served, front: &FrontEnd, request: u32, body: &[u8], fds: usize) -> bool {
    let file = front.file();
    let fds: Vec<_> = (0..fds).map(|_| file.as_fd()).collect();
    served.while_does(|| front.set(request, body, &fds).unwrap()).unwrap()
}

#[test]
fn impossible_memory_is_refused() {
    let (mut served, mut front) = connected(Options::default());
    served.while_does(|| front.negotiate().unwrap()).unwrap();
    let add = |served: &mut Served, r: [u64; 4]| {
        let body = [0u64.to_ne_bytes().to_vec(), FrontEnd::region(r[0], r[1], r[2], r[3])].concat();
        done(served, &front, code::ADD_MEM_REG, &body, 1)
    };
    let page = 4096;
    assert!(!add(&mut served, [0, 0, 0x1000, 0]), "nothing");
    assert!(!add(&mut served, [u64::MAX - 10, page, 0x1000, 0]), "beyond the last address");
    assert!(!add(&mut served, [0, page, u64::MAX - 10, 0]), "beyond the last address of the front end");
    assert!(!add(&mut served, [0, page, 0x1000, u64::MAX - 10]), "beyond the end of any file");
    assert!(!add(&mut served, [0, 1 << 46, 0x1000, 0]), "beyond the end of this file");
    assert!(!add(&mut served, [0, page, 0x1000, 1]), "not at a page");
    assert!(add(&mut served, [0, page, 0x10_0000, 0]));
    assert!(!add(&mut served, [page - 1, page, 0x20_0000, 0]), "overlaps in the guest");
    assert!(!add(&mut served, [page, page, 0x10_0fff, 0]), "overlaps in the front end");
    for i in 1..32 {
        assert!(add(&mut served, [i * page, page, 0x10_0000 + i * page, 0]), "region {i}");
    }
    assert!(!add(&mut served, [32 * page, page, 0x20_0000, 0]), "one too many");
    let remove = [0u64.to_ne_bytes().to_vec(), FrontEnd::region(0, page, 0x10_0000, 0)].concat();
    assert!(done(&mut served, &front, code::REM_MEM_REG, &remove, 0));
    assert!(!done(&mut served, &front, code::REM_MEM_REG, &remove, 0), "it is gone");
    assert_eq!(served.while_does(|| front.get(code::GET_MAX_MEM_SLOTS).unwrap()).unwrap(), 32);
}

#[test]
fn impossible_rings_are_refused() {
    let (mut served, mut front) = connected(Options::default());
    served.while_does(|| front.negotiate().unwrap()).unwrap();
    served.while_does(|| front.share_memory().unwrap()).unwrap();
    let pair = FrontEnd::pair;
    for size in [0, 3, 2048, 65_536, u32::MAX] {
        assert!(!done(&mut served, &front, code::SET_VRING_NUM, &pair(0, size), 0), "{size} entries");
    }
    for request in [code::SET_VRING_NUM, code::SET_VRING_BASE, code::SET_VRING_ENABLE] {
        assert!(!done(&mut served, &front, request, &pair(2, 1), 0), "request {request} for a third ring");
    }
    let mut layout = front.rx.layout;
    layout.base = 1 << 50;
    assert!(!done(&mut served, &front, code::SET_VRING_ADDR, &FrontEnd::addresses(0, &layout), 0));
    assert!(!done(&mut served, &front, code::SET_VRING_KICK, &0u64.to_ne_bytes(), 1), "a file is no eventfd");
    assert!(!done(&mut served, &front, code::SET_VRING_CALL, &0u64.to_ne_bytes(), 1), "a file is no eventfd");
    assert!(!done(&mut served, &front, code::SET_VRING_KICK, &0x100u64.to_ne_bytes(), 0), "polling");
    assert!(!done(&mut served, &front, 99, &[], 0), "an unknown request");
    assert!(!done(&mut served, &front, code::SET_FEATURES, &u64::MAX.to_ne_bytes(), 0), "features that are not offered");
}

#[test]
fn the_front_end_says_how_large_packets_are() {
    let (mut served, front) = running(Options::default());
    assert_eq!(served.link.info().mtu, 65_520);
    for mtu in [0u64, 67, 65_521, 1 << 40] {
        assert!(!done(&mut served, &front, code::NET_SET_MTU, &mtu.to_ne_bytes(), 0), "MTU {mtu}");
    }
    served.link.take_change();
    assert!(done(&mut served, &front, code::NET_SET_MTU, &1400u64.to_ne_bytes(), 0));
    assert!(served.link.take_change() && served.link.info().mtu == 1400);
}

#[test]
fn what_is_no_request_ends_the_session() {
    let (long, fds) = ([0; 300], [0u8; 8]);
    for (request, flags, body, count) in [
        (code::GET_FEATURES, 0, &long[..], 0),
        (code::SET_FEATURES, 0, &long[..3], 0),
        (code::SET_FEATURES, 0, &fds[..], 1),
        (code::GET_FEATURES, 3, &[][..], 0),
        (code::SET_VRING_KICK, 0, &fds[..], 2),
        (code::SET_MEM_TABLE, 0, &long[..40], 9),
        (code::SET_MEM_TABLE, 0, &[255; 40][..], 1),
    ] {
        let (mut served, front) = connected(Options::default());
        let file = front.file();
        front.send(request, flags, body, &vec![file; count]).unwrap();
        let ended = loop {
            assert!(served.wait(super::LONG));
            if let Err(e) = served.turn() {
                break e;
            }
        };
        assert!(matches!(ended, hibernet::link::LinkError::Closed), "{request} {count}: {ended}");
    }
}

/// A request in pieces is one request.
#[test]
fn requests_may_come_byte_by_byte() {
    use std::io::Write;
    let (mut served, front) = connected(Options::default());
    let mut socket = front.socket();
    for b in [1u32, 1, 0].iter().flat_map(|v| v.to_ne_bytes()) {
        socket.write_all(&[b]).unwrap();
        served.turn().unwrap();
    }
    assert_eq!(front.answer().unwrap().0, code::GET_FEATURES);
}
