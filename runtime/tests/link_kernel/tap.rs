//! A TAP whose guest is the kernel of its own namespace.

use crate::exercise::{self, Bench};
use crate::{in_namespace, ns};
use hibernet::link::tap::TapLink;
use hibernet::link::{LinkError, RxBatch};
use hibernet::slots::Slots;
use hibernet::sys::tun::{self, Tun, TunError, TunOptions};
use hibernet_netstack::edge::{Payload, TxError, TxFrame};
use std::net::UdpSocket;
use std::time::Duration;

pub const OPTIONS: TunOptions<'_> = TunOptions { name: "tap0", create: true, mtu: Some(1500), multi_queue: false };

/// Creates a TAP, or reports that the machine does not allow it.
pub fn create(options: &TunOptions<'_>) -> Option<Tun> {
    match tun::open(options) {
        Ok(t) => Some(t),
        Err(e @ (TunError::NoDevice | TunError::DevicePermission)) => {
            ns::skip("TAP", &e.to_string());
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn bench(mtu: u32) -> Option<Bench> {
    let tun = create(&TunOptions { mtu: Some(mtu), ..OPTIONS })?;
    assert_eq!((tun.name.as_str(), tun.mtu), ("tap0", mtu));
    assert!(tun.offloads.checksum && tun.offloads.tso);
    exercise::configure("tap0");
    let mac = tun.mac;
    Some(Bench::new(Box::new(TapLink::new(tun, Some(mac))), mac))
}

fn frame(head: &[u8]) -> TxFrame<'_> {
    TxFrame { head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None }
}

in_namespace! {
    fn traffic_both_ways() {
        let Some(mut b) = bench(1500) else { return };
        assert_eq!(b.link.info().mtu, 1500);
        exercise::everything(&mut b);
    }

    fn traffic_both_ways_with_the_largest_mtu() {
        let Some(mut b) = bench(65_520) else { return };
        exercise::everything(&mut b);
    }

    fn a_frame_at_a_time_in_order() {
        let Some(mut b) = bench(1500) else { return };
        let socket = UdpSocket::bind("10.0.2.15:0").unwrap();
        for i in 0..20u8 {
            socket.send_to(&[i; 10], "10.0.2.2:7").unwrap();
        }
        let mut batch = RxBatch::default();
        while b.wait(Duration::ZERO) && batch.room() > 0 {
            let before = batch.len();
            b.link.recv_batch(&mut b.slots, &mut batch).unwrap();
            assert!(batch.len() <= before + 1);
        }
        let datagrams = batch.frames().iter().filter_map(|r| crate::frames::parse(b.slots.bytes(r.frame))).filter(|ip| ip.proto == 17);
        let order: Vec<u8> = datagrams.map(|ip| ip.l4[8]).collect();
        assert_eq!(order, (0..20).collect::<Vec<u8>>());
    }

    fn down_is_not_the_end_and_gone_is() {
        let Some(mut b) = bench(1500) else { return };
        ns::ip("link set tap0 down");
        assert_eq!(b.link.send(&mut b.slots, frame(&[0; 60])), Err(TxError::Down));
        assert!(b.receive().is_ok());
        assert_eq!(b.link.stats().tx_down, 1);
        ns::ip("link set tap0 up");
        ns::ip(&format!("neigh replace 10.0.2.2 lladdr {} dev tap0", crate::frames::OURS));
        exercise::udp(&mut b, false);
        ns::ip("link del tap0");
        assert!(b.wait(Duration::from_secs(5)), "the end must make the descriptor report");
        assert!(matches!(b.receive(), Err(LinkError::Closed)));
        assert_eq!(b.link.send(&mut b.slots, frame(&[0; 60])), Err(TxError::Down));
    }

    fn what_is_refused_is_counted() {
        let Some(mut b) = bench(1500) else { return };
        assert_eq!(b.link.send(&mut b.slots, frame(&[0; 1515])), Err(TxError::TooBig));
        assert_eq!(b.link.send(&mut b.slots, frame(&[0; 1514])), Ok(()));
        let body = b.payload(&[0; 1500]);
        assert_eq!(b.link.send(&mut b.slots, TxFrame { body, ..frame(&[0; 15]) }), Err(TxError::TooBig));
        assert_eq!(b.slots.in_use(), 0, "the body of a refused frame is given back");
        let body = b.payload(&[0; 1500]);
        assert_eq!(b.link.send(&mut b.slots, TxFrame { body, keep_body: true, ..frame(&[0; 15]) }), Err(TxError::TooBig));
        assert_eq!(b.slots.in_use(), 1, "a kept body stays");
        b.slots.give(body.slot);
        assert_eq!(b.link.stats().tx_too_big, 3);
        b.link.stop(&mut b.slots);
        assert_eq!(b.link.send(&mut b.slots, frame(&[0; 60])), Err(TxError::Down));
        assert!(matches!(b.receive(), Err(LinkError::Closed)));
    }

    fn without_a_slot_frames_are_dropped_and_the_next_come() {
        let Some(mut b) = bench(1500) else { return };
        let mut slots = Slots::new(1).unwrap();
        let taken = slots.take().unwrap();
        let socket = UdpSocket::bind("10.0.2.15:0").unwrap();
        socket.send_to(b"lost", "10.0.2.2:7").unwrap();
        let mut batch = RxBatch::default();
        while b.wait(Duration::ZERO) {
            b.link.recv_batch(&mut slots, &mut batch).unwrap();
        }
        assert!(batch.is_empty() && b.link.stats().rx_no_slot >= 1);
        slots.give(taken);
        socket.send_to(b"seen", "10.0.2.2:7").unwrap();
        let (_, ip) = b.next(|ip| ip.proto == 17).expect("the datagram");
        assert_eq!(&ip.l4[8..], b"seen");
    }

    fn errors_are_told_apart() {
        let Some(first) = create(&OPTIONS) else { return };
        assert!(matches!(tun::open(&OPTIONS), Err(TunError::NameTaken(n)) if n == "tap0"));
        assert!(matches!(tun::open(&TunOptions { name: "lo", ..OPTIONS }), Err(TunError::NameTaken(_))));
        assert!(matches!(tun::open(&TunOptions { name: "a/b", ..OPTIONS }), Err(TunError::BadName(_))));
        let attach = TunOptions { create: false, mtu: None, ..OPTIONS };
        assert!(matches!(tun::open(&TunOptions { name: "tap9", ..attach }), Err(TunError::NoInterface(_))));
        assert!(matches!(tun::open(&TunOptions { name: "lo", ..attach }), Err(TunError::NotTap(_))));
        assert!(matches!(tun::open(&attach), Err(TunError::NameTaken(_))), "its one queue is in use");
        let absurd = TunOptions { name: "tap%d", mtu: Some(100_000), ..OPTIONS };
        assert!(matches!(tun::open(&absurd), Err(TunError::BadMtu { name, mtu: 100_000 }) if name == "tap1"));
        drop(first);
        assert!(tun::open(&OPTIONS).is_ok(), "the name is free again");
    }

    fn queues_of_one_tap() {
        let several = TunOptions { multi_queue: true, ..OPTIONS };
        let Some(first) = create(&several) else { return };
        let second = tun::open(&TunOptions { create: false, ..several }).unwrap();
        assert_eq!((first.name, first.mac), (second.name, second.mac));
    }

    fn a_descriptor_from_elsewhere() {
        let Some(tun) = create(&OPTIONS) else { return };
        exercise::configure("tap0");
        let (name, mac) = (tun.name, tun.mac);
        let again = tun::adopt(tun.fd, 1500).unwrap();
        assert_eq!((again.name.as_str(), again.mac, again.offloads), (name.as_str(), mac, tun.offloads));
        let mut b = Bench::new(Box::new(TapLink::new(again, Some(mac))), mac);
        exercise::udp(&mut b, false);
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(tun::adopt(other.into(), 1500), Err(TunError::Io { .. })));
    }

    fn no_descriptor_left() {
        if create(&OPTIONS).is_none() {
            return;
        }
        hibernet::sys::rlimit::set_open_files(16).unwrap();
        let hogs: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        assert!(matches!(tun::open(&OPTIONS), Err(TunError::TooManyFiles)));
        assert!(matches!(hibernet::sys::packet::open("lo"), Err(hibernet::sys::packet::PacketError::TooManyFiles)));
        drop(hogs);
    }
}
