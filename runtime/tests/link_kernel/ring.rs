//! A packet socket with a receive ring, on a veth pair.

use crate::exercise::{self, Bench, PATIENCE};
use crate::packet::{interfaces, wait_for_carrier};
use crate::{in_namespace, ns};
use hibernet::link::socket::SocketLink;
use hibernet::link::{LinkError, RxBatch};
use hibernet::slots::Slots;
use hibernet::sys::interface::Interfaces;
use hibernet::sys::packet::{self, PacketError, PacketOptions, PacketSocket};
use hibernet::sys::packet_ring::{self, PacketRing};
use hibernet::sys::socket::set_option;
use hibernet_netstack::edge::{Payload, TxFrame};
use hibernet_netstack::wire::Mac;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

/// The fewest slots that a ring can have.
const FEWEST: u32 = 32;

fn open(slots: u32) -> PacketSocket {
    let socket = packet::open_with("h0", PacketOptions { ring: slots, queues: 1 }).unwrap();
    assert!(socket.ring >= slots && socket.queues.is_empty());
    socket
}

fn guest_mac() -> Mac {
    Interfaces::current().unwrap().mac("g0").unwrap().unwrap()
}

fn on(socket: PacketSocket) -> Bench {
    let mac = guest_mac();
    Bench::new(Box::new(SocketLink::packet(socket, Some(mac)).unwrap()), mac)
}

fn bench(mtu: u32, slots: u32) -> Bench {
    interfaces(mtu);
    on(open(slots))
}

/// Another link over the same socket, as a successor makes it.
fn copy(s: &PacketSocket) -> PacketSocket {
    let fd = s.fd.try_clone().unwrap();
    PacketSocket {
        fd,
        name: s.name.clone(),
        mtu: s.mtu,
        mac: s.mac,
        receive_buffer: s.receive_buffer,
        ring: s.ring,
        queues: Vec::new(),
    }
}

/// A guest's socket that sends numbered datagrams.
struct Numbered(UdpSocket);

impl Numbered {
    fn new() -> Numbered {
        Numbered(UdpSocket::bind("10.0.2.15:0").unwrap())
    }

    /// One of `len` bytes, its number first.
    fn send(&self, n: u32, len: usize) {
        let mut data = vec![n as u8; len.max(4)];
        data[..4].copy_from_slice(&n.to_be_bytes());
        self.0.send_to(&data, "10.0.2.2:7").unwrap();
    }
}

fn number(ip: &crate::frames::Ip) -> u32 {
    u32::from_be_bytes(ip.l4[8..12].try_into().unwrap())
}

/// Numbers of the datagrams that wait, with those of frames of the kernel's own left out; each is as it was sent.
fn numbers(b: &mut Bench) -> Vec<u32> {
    let mut all = Vec::new();
    while b.wait(Duration::ZERO) {
        let mut batch = RxBatch::default();
        b.link.recv_batch(&mut b.slots, &mut batch).unwrap();
        for r in batch.drain() {
            if let Some(ip) = crate::frames::parse(b.slots.bytes(r.frame)).filter(|ip| ip.proto == 17) {
                assert!(ip.l4[12..].iter().all(|x| *x == number(&ip) as u8), "datagram {} is not as it was sent", number(&ip));
                all.push(number(&ip));
            }
            b.slots.give(r.slot);
        }
    }
    assert_eq!(b.slots.in_use(), 0);
    all
}

in_namespace! {
    fn traffic_both_ways() {
        exercise::everything(&mut bench(1500, 1024));
    }

    fn traffic_both_ways_with_the_largest_mtu() {
        exercise::everything(&mut bench(65_520, 1024));
    }

    fn traffic_both_ways_through_the_smallest_ring() {
        exercise::everything(&mut bench(1500, 1));
    }

    fn short_and_long_frames_keep_their_order_however_often_the_ring_goes_round() {
        let mut b = bench(9000, FEWEST);
        let guest = Numbered::new();
        let mut sent = 0;
        for round in 0..50usize {
            let first = sent;
            for i in 0..20 {
                // At the bounds of what a slot holds, too.
                let len = [10, 8000, 1900, 1940, 1960, 1990, 2010, 4000, 100, 3000][(round * 7 + i) % 10];
                guest.send(sent, len);
                sent += 1;
            }
            let mut got = Vec::new();
            while got.len() < 20 {
                assert!(b.wait(PATIENCE), "{got:?}");
                got.extend(numbers(&mut b));
            }
            assert_eq!(got, (first..sent).collect::<Vec<_>>());
        }
        assert_eq!(b.link.stats().rx_overrun, 0);
    }

    fn a_full_ring_is_counted_and_frames_come_again() {
        let mut b = bench(1500, FEWEST);
        let guest = Numbered::new();
        for n in 0..500 {
            guest.send(n, 100);
        }
        let waited = std::iter::from_fn(|| (b.link.stats().rx_overrun < 400).then(std::thread::yield_now));
        assert!(waited.take(10_000_000).count() < 10_000_000, "{:?}", b.link.stats());
        let got = numbers(&mut b);
        let s = b.link.stats();
        assert!(got.len() <= FEWEST as usize && got.is_sorted() && s.rx_overrun >= 500 - u64::from(FEWEST), "{got:?}, {s:?}");
        assert_eq!(b.link.stats().rx_overrun, s.rx_overrun, "a count that was asked for is not lost");
        guest.send(500, 100);
        assert!(b.wait(PATIENCE));
        assert_eq!(numbers(&mut b), [500]);
    }

    fn long_frames_for_which_the_socket_has_no_room_are_counted() {
        interfaces(9000);
        let socket = open(256);
        set_option(socket.fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 20_000).unwrap();
        let mut b = on(socket);
        let guest = Numbered::new();
        for n in 0..50 {
            guest.send(n, 8000);
            guest.send(n + 50, 10);
        }
        let mut got = Vec::new();
        while got.len() as u64 + b.link.stats().rx_overrun < 100 {
            assert!(b.wait(PATIENCE), "{got:?} {:?}", b.link.stats());
            got.extend(numbers(&mut b));
        }
        let short: Vec<u32> = got.iter().copied().filter(|n| *n >= 50).collect();
        assert_eq!(short, (50..100).collect::<Vec<_>>(), "short ones need no room there");
        assert!(got.len() < 100 && got.len() > 50, "{got:?}");
    }

    fn who_takes_over_finds_what_waits_and_nothing_twice() {
        interfaces(9000);
        let socket = open(FEWEST);
        let guest = Numbered::new();
        let mut next = 0;
        // However much waits when it is taken over: nothing, some with long ones between, a full ring; anywhere in the ring.
        for waiting in [0, 1, 5, FEWEST, 3, FEWEST, FEWEST - 1, 0, 7] {
            let mut old = on(copy(&socket));
            for n in next..next + 3 {
                guest.send(n, if n % 3 == 1 { 5000 } else { 50 });
            }
            let mut got = Vec::new();
            while got.len() < 3 {
                assert!(old.wait(PATIENCE));
                got.extend(numbers(&mut old));
            }
            assert_eq!(got, (next..next + 3).collect::<Vec<_>>());
            next += 3;
            old.link.stop(&mut old.slots);
            assert!(matches!(old.receive(), Err(LinkError::Closed)));
            drop(old);
            for n in next..next + waiting {
                guest.send(n, if n % 3 == 1 { 5000 } else { 50 });
            }
            let mut new = on(copy(&socket));
            let mut got = Vec::new();
            while got.len() < waiting as usize {
                assert!(new.wait(PATIENCE), "{got:?} of {waiting}");
                got.extend(numbers(&mut new));
            }
            assert_eq!(got, (next..next + waiting).collect::<Vec<_>>());
            assert_eq!(new.link.stats().rx_overrun, 0);
            next += waiting;
        }
    }

    fn down_is_not_the_end_and_gone_is() {
        let mut b = bench(1500, 64);
        let guest = Numbered::new();
        guest.send(1, 10);
        assert!(b.wait(PATIENCE));
        ns::ip("link set h0 down");
        // What came before is there still.
        let mut got = Vec::new();
        while b.link.stats().rx_down == 0 {
            assert!(b.wait(PATIENCE));
            got.extend(numbers(&mut b));
        }
        assert_eq!(got, [1]);
        assert!(!b.wait(Duration::ZERO), "that it is down is told once");
        ns::ip("link set h0 up");
        wait_for_carrier("g0");
        exercise::udp(&mut b, false);
        ns::ip("link del g0");
        assert!(b.wait(PATIENCE), "the end must make the descriptor report");
        let end = (0..3).find_map(|_| b.receive().err());
        assert!(matches!(end, Some(LinkError::Closed)), "{end:?}");
    }

    fn that_it_is_down_is_told_where_long_frames_wait() {
        let mut b = bench(9000, 64);
        let guest = Numbered::new();
        for n in 0..6 {
            guest.send(n, 6000);
        }
        // The last is there.
        let mut witness = on(open(64));
        guest.send(6, 6000);
        witness.next(|ip| ip.proto == 17 && number(ip) == 6).expect("the last datagram");
        ns::ip("link set h0 down");
        let mut got = Vec::new();
        while got.len() < 7 {
            assert!(b.wait(PATIENCE), "{got:?} {:?}", b.link.stats());
            got.extend(numbers(&mut b));
        }
        assert_eq!((got, b.link.stats().rx_errors), ((0..7).collect(), 0));
        assert_eq!(b.link.stats().rx_down, 1);
    }

    fn without_a_slot_frames_are_dropped_and_the_next_come() {
        let mut b = bench(9000, 64);
        let mut slots = Slots::new(1).unwrap();
        let taken = slots.take().unwrap();
        let guest = Numbered::new();
        for n in 0..10 {
            guest.send(n, if n % 2 == 0 { 10 } else { 5000 });
        }
        b.receive_without_slots(&mut slots, 10);
        slots.give(taken);
        guest.send(10, 5000);
        b.next(|ip| ip.proto == 17 && number(ip) == 10).expect("the datagram");
    }

    fn an_adopted_socket_gets_a_ring() {
        interfaces(1500);
        let mtu = 1500;
        let socket = packet::adopt(packet::open("h0").unwrap().fd, mtu, 64).unwrap();
        assert_eq!(socket.ring, 64);
        exercise::udp(&mut on(socket), false);
        // One that has a ring of somebody else's is not taken.
        let other = open(64);
        let again = packet::adopt(other.fd.try_clone().unwrap(), mtu, 64);
        assert!(matches!(again, Err(PacketError::Io { .. } | PacketError::Ring(_))), "{again:?}");
    }

    fn what_is_not_so_cannot_be_mapped() {
        interfaces(1500);
        let without = packet::open("h0").unwrap();
        assert!(PacketRing::map(without.fd.as_fd(), 64).is_err());
        let with = open(64);
        for wrong in [0, 32, 128, packet_ring::MAX_SLOTS + 1, u32::MAX] {
            assert!(PacketRing::map(with.fd.as_fd(), wrong).is_err(), "{wrong} slots");
        }
        assert!(packet_ring::install(with.fd.as_fd(), 64).is_err(), "it has one");
    }

    fn frames_to_the_guest_go_out_as_without_a_ring() {
        let mut b = bench(1500, 64);
        assert!(!b.link.has_room(), "an interface does not tell");
        let frame = TxFrame { head: &[0; 1515], body: Payload::EMPTY, keep_body: false, checksum: None, gso: None };
        assert!(b.link.send(&mut b.slots, frame).is_err());
        assert_eq!(b.link.stats().tx_too_big, 1);
    }
}
