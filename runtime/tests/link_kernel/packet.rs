//! A veth pair: the kernel of the namespace at one end, a packet socket at the other.

use crate::exercise::{self, Bench, PATIENCE};
use crate::{in_namespace, ns};
use hibernet::link::socket::SocketLink;
use hibernet::link::{LinkError, RxBatch};
use hibernet::slots::Slots;
use hibernet::sys::interface::Interfaces;
use hibernet::sys::packet::{self, PacketError};
use hibernet_netstack::edge::{Payload, TxError, TxFrame};
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

/// Waits until an interface has its carrier, which comes a while after its other end is set up.
pub fn wait_for_carrier(device: &str) {
    let end = Instant::now() + PATIENCE;
    let has_it = || {
        let out = Command::new("ip").args(["-br", "link", "show", device]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).split_whitespace().nth(1) == Some("UP")
    };
    while !has_it() {
        assert!(Instant::now() < end, "{device} has no carrier");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The pair, without a socket on it.
pub fn interfaces(mtu: u32) {
    ns::ip(&format!("link add g0 mtu {mtu} type veth peer name h0 mtu {mtu}"));
    if ns::has_ipv6() {
        ns::sysctl("ipv6/conf/h0/disable_ipv6", "1");
    }
    ns::ip("link set h0 up");
    exercise::configure("g0");
    wait_for_carrier("g0");
}

fn bench(mtu: u32) -> Bench {
    interfaces(mtu);
    on_interfaces(mtu)
}

fn on_interfaces(mtu: u32) -> Bench {
    let mac = Interfaces::current().unwrap().mac("g0").unwrap().unwrap();
    let socket = packet::open("h0").unwrap();
    assert_eq!((socket.name.as_str(), socket.mtu), ("h0", mtu));
    Bench::new(Box::new(SocketLink::packet(socket, Some(mac)).unwrap()), mac)
}

fn frame(head: &[u8]) -> TxFrame<'_> {
    TxFrame { head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None }
}

in_namespace! {
    fn traffic_both_ways() {
        exercise::everything(&mut bench(1500));
    }

    fn traffic_both_ways_with_the_largest_mtu() {
        exercise::everything(&mut bench(65_520));
    }

    fn batches_in_order() {
        // A socket of its own sees when all of them are there: the kernel brings them when it finds the time.
        interfaces(1500);
        let mut witness = on_interfaces(1500);
        let mut b = on_interfaces(1500);
        let socket = UdpSocket::bind("10.0.2.15:0").unwrap();
        for i in 0..200u8 {
            socket.send_to(&[i; 10], "10.0.2.2:7").unwrap();
        }
        witness.next(|ip| ip.proto == 17 && ip.l4[8] == 199).expect("the last datagram");
        let (mut order, mut calls) = (Vec::new(), 0);
        while order.len() < 200 {
            assert!(b.wait(PATIENCE), "{order:?}");
            let mut batch = RxBatch::default();
            b.link.recv_batch(&mut b.slots, &mut batch).unwrap();
            calls += 1;
            for r in batch.drain() {
                let ip = crate::frames::parse(b.slots.bytes(r.frame)).filter(|ip| ip.proto == 17);
                order.extend(ip.map(|ip| ip.l4[8]));
                b.slots.give(r.slot);
            }
        }
        assert_eq!(order, (0..200).collect::<Vec<u8>>());
        assert!(calls < 20, "{calls} calls for 200 frames");
        assert_eq!(b.slots.in_use(), 0);
    }

    fn gathered_frames_are_sent_in_order_with_their_own_bodies() {
        let mut b = bench(1500);
        let guest = UdpSocket::bind("10.0.2.15:0").unwrap();
        guest.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = guest.local_addr().unwrap().port();
        let (guest_ip, gateway) = exercise::addresses(false);
        // More than one call takes, a body that is shared by all, and one that its owner gives away before the flush.
        let shared = b.payload(b"shared");
        for i in 0..150u16 {
            let own = b.payload(&i.to_be_bytes());
            let body = if i % 3 == 0 { shared } else { own };
            let mac = b.link.info().guest_mac.unwrap();
            let mut head = crate::frames::headers(mac, gateway, guest_ip, 17, 8 + body.len());
            head.extend([7, port, (8 + body.len()) as u16, 0].map(u16::to_be_bytes).concat());
            b.link.send(&mut b.slots, TxFrame { head: &head, body, keep_body: i % 3 == 0, checksum: None, gso: None }).unwrap();
            if i % 3 == 0 {
                b.slots.give(own.slot);
            }
        }
        b.slots.give(shared.slot);
        b.link.flush(&mut b.slots).unwrap();
        assert_eq!(b.slots.in_use(), 0);
        for i in 0..150u16 {
            let mut buf = [0; 100];
            let n = guest.recv(&mut buf).unwrap();
            let own = i.to_be_bytes();
            assert_eq!(&buf[..n], if i % 3 == 0 { &b"shared"[..] } else { &own[..] }, "datagram {i}");
        }
        assert_eq!(b.link.stats().tx_frames, 150);
    }

    fn down_is_not_the_end_and_gone_is() {
        let mut b = bench(1500);
        ns::ip("link set h0 down");
        assert!(b.wait(PATIENCE));
        for _ in 0..100 {
            b.receive().unwrap();
        }
        assert!(!b.wait(Duration::ZERO), "frames that waited and the news that it is down are told once");
        assert_eq!(b.link.stats().rx_down, 1);
        b.link.send(&mut b.slots, frame(&[0; 60])).unwrap();
        b.link.flush(&mut b.slots).unwrap();
        assert_eq!(b.link.stats().tx_down, 1);
        ns::ip("link set h0 up");
        wait_for_carrier("g0");
        exercise::udp(&mut b, false);
        ns::ip("link del g0");
        assert!(b.wait(PATIENCE), "the end must make the descriptor report");
        assert!(matches!(b.receive(), Err(LinkError::Closed)));
    }

    fn gone_is_found_by_sending_too() {
        let mut b = bench(1500);
        ns::ip("link del h0");
        b.link.send(&mut b.slots, frame(&[0; 60])).unwrap();
        assert!(matches!(b.link.flush(&mut b.slots), Err(LinkError::Closed)));
        assert_eq!(b.link.stats().tx_down, 1);
    }

    fn what_the_kernel_dropped_for_lack_of_room_is_counted() {
        let mut b = bench(1500);
        let socket = UdpSocket::bind("10.0.2.15:0").unwrap();
        while b.link.stats().rx_overrun == 0 {
            for _ in 0..1000 {
                socket.send_to(&[0; 1400], "10.0.2.2:7").unwrap();
            }
        }
        while b.wait(Duration::ZERO) {
            b.receive().unwrap();
        }
        let s = b.link.stats();
        assert!(s.rx_overrun > 0 && s.rx_frames > 0);
        assert_eq!(b.link.stats().rx_overrun, s.rx_overrun, "a count that was asked for is not lost");
    }

    fn what_is_refused_is_counted() {
        let mut b = bench(1500);
        assert_eq!(b.link.send(&mut b.slots, frame(&[0; 1515])), Err(TxError::TooBig));
        let body = b.payload(&[0; 1500]);
        assert_eq!(b.link.send(&mut b.slots, TxFrame { body, ..frame(&[0; 15]) }), Err(TxError::TooBig));
        assert_eq!((b.link.stats().tx_too_big, b.slots.in_use()), (2, 0));
        let body = b.payload(&[0; 100]);
        b.link.send(&mut b.slots, TxFrame { body, ..frame(&[0; 15]) }).unwrap();
        b.link.stop(&mut b.slots);
        assert_eq!(b.slots.in_use(), 0, "stopping gives gathered bodies back");
        assert_eq!(b.link.send(&mut b.slots, frame(&[0; 60])), Err(TxError::Down));
        assert!(matches!(b.receive(), Err(LinkError::Closed)));
    }

    fn without_a_slot_frames_are_dropped_and_the_next_come() {
        let mut b = bench(1500);
        let mut slots = Slots::new(1).unwrap();
        let taken = slots.take().unwrap();
        let socket = UdpSocket::bind("10.0.2.15:0").unwrap();
        for _ in 0..10 {
            socket.send_to(b"lost", "10.0.2.2:7").unwrap();
        }
        b.receive_without_slots(&mut slots, 10);
        slots.give(taken);
        socket.send_to(b"seen", "10.0.2.2:7").unwrap();
        // Of those before it, some may come only now, if frames of the kernel's own were dropped in their place.
        b.next(|ip| ip.proto == 17 && &ip.l4[8..] == b"seen").expect("the datagram");
    }

    fn errors_are_told_apart() {
        assert!(matches!(packet::open("nothere"), Err(PacketError::NoInterface(_))));
        assert!(matches!(packet::open("a b"), Err(PacketError::BadName(_))));
        assert!(matches!(packet::open("lo"), Err(PacketError::NotEthernet(_))));
    }
}
