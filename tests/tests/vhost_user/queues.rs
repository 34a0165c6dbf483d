//! A device of several pairs of queues.

use super::{LONG, Served, connected, frame};
use hibernet::link::vhost_user::VhostUserLink;
use hibernet::link::{Link, LinkNews};
use hibernet::slots::Slots;
use hibernet_netstack::edge::TxError;
use hibernet_tests::vmm::{FrontEnd, LOG_PAGE, Options, code, feature};
use hibernet_tests::wire;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;

/// A link of so many pairs, and a front end that knows as many.
fn paired(pairs: usize, options: Options) -> (Served, FrontEnd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let link = VhostUserLink::connected(ours.into(), 65_520, None).unwrap().with_queue_pairs(pairs);
    let mut served = Served { link, slots: Slots::new(1024).unwrap(), frames: Vec::new() };
    let mut front = FrontEnd::new(theirs, Options { pairs, ..options });
    served.while_does(|| front.set_up().unwrap()).unwrap();
    (served, front)
}

const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A datagram of a flow, to the server or back, with a number in it.
fn datagram(port: u16, to_guest: bool, n: u8) -> Vec<u8> {
    let ends = [(GUEST, port), (SERVER, 53)];
    let [from, to] = if to_guest { [ends[1], ends[0]] } else { ends };
    let udp = wire::udp(from.0, to.0, from.1, to.1, &[n; 20]);
    wire::Ip::new(from.0, to.0).frame([2; 6], [4; 6], 17, &udp)
}

/// By which pairs a frame of each of these flows comes to the guest.
fn answered_by(served: &mut Served, front: &mut FrontEnd, pairs: u32, ports: &[u16]) -> Vec<u32> {
    let answered = |(n, port): (u8, &u16)| {
        let f = datagram(*port, true, n);
        served.link.send(&mut served.slots, frame(&f)).unwrap();
        served.link.flush(&mut served.slots).unwrap();
        let came: Vec<u32> = (0..pairs).filter(|p| front.receive_by(*p).is_some_and(|(_, got)| got == f)).collect();
        assert_eq!(came.len(), 1, "it came by {came:?}");
        front.refill();
        came[0]
    };
    (0..).zip(ports).map(answered).collect()
}

#[test]
fn a_front_end_learns_how_many_there_are() {
    for pairs in [1, 2, 16] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let link = VhostUserLink::connected(ours.into(), 1500, None).unwrap().with_queue_pairs(pairs);
        let mut served = Served { link, slots: Slots::new(16).unwrap(), frames: Vec::new() };
        let mut front = FrontEnd::new(theirs, Options::default());
        served.while_does(|| front.negotiate().unwrap()).unwrap();
        let ask = |what| front.get(what).unwrap();
        let [number, features, protocol] =
            served.while_does(|| [code::GET_QUEUE_NUM, code::GET_FEATURES, code::GET_PROTOCOL_FEATURES].map(ask)).unwrap();
        assert_eq!(number, pairs as u64);
        // Whoever knows nothing of it sees the device that there always was.
        assert_eq!((features & feature::MQ != 0, protocol & 1 != 0), (pairs > 1, pairs > 1));
        let base = |n| front.set(code::SET_VRING_BASE, &FrontEnd::pair(n, 0), &[]).unwrap();
        let last = 2 * pairs as u32 - 1;
        assert!(served.while_does(|| base(last) && !base(last + 1) && !base(u32::MAX)).unwrap());
    }
}

#[test]
fn frames_come_by_all_of_them_in_the_order_of_each() {
    for features in [Options::default().features, !0] {
        let (mut served, mut front) = paired(4, Options { features, ..Options::default() });
        for n in 0..100u8 {
            for pair in 0..4 {
                assert!(front.transmit_by(pair, &[0; 12], &[n, pair as u8].repeat(30)));
            }
        }
        served.until_frames(400);
        for pair in 0..4u8 {
            let of_pair: Vec<u8> = served.frames.iter().filter(|f| f[1] == pair).map(|f| f[0]).collect();
            assert_eq!(of_pair, (0..100).collect::<Vec<u8>>(), "pair {pair}");
        }
        assert_eq!(served.link.stats().rx_frames, 400);
        assert!((0..4u32).all(|p| front.queue(2 * p + 1).used_index() == 100));
    }
}

/// One that always has more does not keep the others waiting.
#[test]
fn a_busy_queue_leaves_room_for_others() {
    let (mut served, mut front) = paired(3, Options::default());
    for n in 0..200 {
        assert!(front.transmit_by(0, &[0; 12], &[n; 60]));
    }
    for pair in [1, 2] {
        assert!(front.transmit_by(pair, &[0; 12], &[255; 60]));
    }
    let mut batch = hibernet::link::RxBatch::default();
    let mut others = 0;
    for _ in 0..3 {
        served.link.recv_batch(&mut served.slots, &mut batch).unwrap();
        for r in batch.drain() {
            others += usize::from(served.slots.bytes(r.frame)[0] == 255);
            served.slots.give(r.slot);
        }
    }
    assert_eq!(others, 2);
}

#[test]
fn a_flow_is_answered_by_the_pair_by_which_it_speaks() {
    let (mut served, mut front) = paired(4, Options::default());
    let ports: Vec<u16> = (4000..4040).collect();
    let speak = |served: &mut Served, front: &mut FrontEnd, shift: u32| {
        for (port, n) in ports.iter().zip(0..) {
            assert!(front.transmit_by((n + shift) % 4, &[0; 12], &datagram(*port, false, 0)));
        }
        served.until_frames(ports.len());
        served.frames.clear();
    };
    for shift in [0, 1] {
        speak(&mut served, &mut front, shift);
        let by = answered_by(&mut served, &mut front, 4, &ports);
        // Few share an entry with another flow, which has spoken later.
        let right = by.iter().zip(0..).filter(|(p, n)| **p == (n + shift) % 4).count();
        assert!(right >= ports.len() - 3, "{right} of {}: {by:?}", ports.len());
        assert_eq!(by, answered_by(&mut served, &mut front, 4, &ports), "and always by the same");
    }
    // A guest that uses fewer of them gets everything by those.
    let disable = |front: &FrontEnd, n| front.set(code::SET_VRING_ENABLE, &FrontEnd::pair(n, 0), &[]).unwrap();
    assert!(served.while_does(|| (2..6).all(|n| disable(&front, n))).unwrap());
    let by = answered_by(&mut served, &mut front, 4, &ports);
    assert_eq!(by.iter().copied().collect::<BTreeSet<_>>(), [0, 3].into(), "{by:?}");
    assert!(served.while_does(|| disable(&front, 0) && disable(&front, 6)).unwrap());
    assert_eq!(served.link.send(&mut served.slots, frame(&datagram(1, true, 0))), Err(TxError::Down));
}

#[test]
fn flows_that_have_not_spoken_are_spread() {
    let (mut served, mut front) = paired(4, Options::default());
    let ports: Vec<u16> = (4000..4100).collect();
    let by = answered_by(&mut served, &mut front, 4, &ports);
    for pair in 0..4 {
        assert!(by.iter().filter(|p| **p == pair).count() > 8, "{by:?}");
    }
    assert_eq!(by, answered_by(&mut served, &mut front, 4, &ports));
}

/// What waits for buffers of one pair does not keep frames from another one.
#[test]
fn a_pair_without_buffers_keeps_only_its_own_flows_waiting() {
    let (mut served, mut front) = paired(2, Options { size: 16, ..Options::default() });
    for (pair, port) in [(0, 5000), (1, 5001)] {
        front.transmit_by(pair, &[0; 12], &datagram(port, false, 0));
    }
    served.until_frames(2);
    // 16 fill the buffers; as many as may wait do; one more is refused.
    let mut sent = 0;
    while served.link.send(&mut served.slots, frame(&datagram(5000, true, sent))) == Ok(()) {
        sent += 1;
    }
    assert_eq!(sent, 16 + 128);
    assert!(!served.link.has_room());
    served.link.send(&mut served.slots, frame(&datagram(5001, true, 7))).unwrap();
    served.link.flush(&mut served.slots).unwrap();
    assert_eq!(front.receive_by(1).unwrap().1, datagram(5001, true, 7));
    let mut got = Vec::new();
    while got.len() < usize::from(sent) {
        let before = got.len();
        got.extend(std::iter::from_fn(|| front.receive_by(0)).map(|(_, f)| f));
        front.refill();
        if got.len() == before {
            assert!(served.wait(LONG));
        }
        served.turn().unwrap();
    }
    assert!(got.iter().zip(0..).all(|(f, n)| f == &datagram(5000, true, n)), "in their order");
    assert!(served.link.has_room());
}

#[test]
fn the_link_is_there_as_long_as_one_pair_receives() {
    let (mut served, front) = paired(2, Options::default());
    let news = |served: &mut Served| std::iter::from_fn(|| served.link.take_news()).collect::<Vec<_>>();
    assert_eq!(news(&mut served), [LinkNews::Connected]);
    served.while_does(|| front.stop_ring(0).unwrap()).unwrap();
    assert_eq!(news(&mut served), []);
    served.while_does(|| front.stop_ring(2).unwrap()).unwrap();
    assert!(matches!(news(&mut served)[..], [LinkNews::Disconnected(_)]));
    served.while_does(|| front.start_rings().unwrap()).unwrap();
    assert_eq!(news(&mut served), [LinkNews::Connected]);
}

#[test]
fn what_is_written_by_any_pair_is_logged() {
    let (mut served, mut front) = paired(3, Options::default());
    let end = front.memory_len();
    assert!(served.while_does(|| front.share_log(end).unwrap()).unwrap());
    served.while_does(|| front.set_logging(true).unwrap()).unwrap();
    for (pair, port) in (0..3u32).zip(5000..) {
        front.transmit_by(pair, &[0; 12], &datagram(port, false, 0));
        served.until_frames(1);
        served.frames.clear();
        let used = front.queue(2 * pair + 1).layout.used() / LOG_PAGE;
        assert!(front.take_logged().contains(&used), "the used ring of what pair {pair} sends");
        assert_eq!(answered_by(&mut served, &mut front, 3, &[port]), [pair]);
        let logged = front.take_logged();
        let layout = front.queue(2 * pair).layout;
        let places = [layout.used(), layout.buffers].map(|at| at / LOG_PAGE);
        assert!(places.iter().any(|p| logged.contains(p)), "{logged:?}");
        let mine = layout.base / LOG_PAGE..=(layout.base + layout.len()) / LOG_PAGE;
        let buffers = layout.buffers / LOG_PAGE..layout.buffer(layout.size) / LOG_PAGE + 1;
        assert!(logged.iter().all(|p| mine.contains(p) || buffers.contains(p)), "pair {pair}: {logged:?}");
        assert!(logged.iter().any(|p| mine.contains(p)) && logged.iter().any(|p| buffers.contains(p)), "pair {pair}: {logged:?}");
    }
}

/// As QEMU has it that connects again, or moves: another link goes on with all queues where they stand.
#[test]
fn a_successor_goes_on_with_all_queues() {
    let options = Options { pairs: 3, ..Options::default() };
    let (mut served, mut front) = paired(3, options);
    for round in 0..4u8 {
        for n in 0..50u8 {
            for pair in 0..3 {
                assert!(front.transmit_by(pair, &[0; 12], &datagram(6000 + pair as u16, false, n)));
            }
        }
        served.until_frames(150);
        let by = answered_by(&mut served, &mut front, 3, &[6000, 6001, 6002]);
        assert_eq!(by, [0, 1, 2]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let link = VhostUserLink::connected(ours.into(), 65_520, None).unwrap().with_queue_pairs(3);
        served = Served { link, slots: Slots::new(1024).unwrap(), frames: Vec::new() };
        served.while_does(|| front.go_on(theirs).unwrap()).unwrap();
        assert_eq!(front.queue(1).used_index(), 50 * (u16::from(round) + 1));
    }
}

#[test]
fn a_front_end_that_knows_one_pair_is_served_by_a_link_of_several() {
    let (mut served, mut front) = connected(Options::default());
    served.link = served.link.with_queue_pairs(8);
    served.while_does(|| front.set_up().unwrap()).unwrap();
    front.transmit(&[3; 60]);
    served.until_frames(1);
    for port in 1..50 {
        served.link.send(&mut served.slots, frame(&datagram(port, true, 1))).unwrap();
    }
    served.link.flush(&mut served.slots).unwrap();
    assert_eq!(std::iter::from_fn(|| front.receive()).count(), 49);
}
