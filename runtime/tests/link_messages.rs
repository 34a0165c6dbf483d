//! Links over datagram and seqpacket sockets, which carry bare frames.

use hibernet::link::socket::SocketLink;
use hibernet::link::{Link, LinkError, RxBatch};
use hibernet::slots::Slots;
use hibernet::sys::socket::set_option;
use hibernet_netstack::edge::{Gso, GsoKind, Payload, RxChecksum, Tso, TxChecksum, TxError, TxFrame};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

fn frame(head: &[u8]) -> TxFrame<'_> {
    TxFrame { head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None }
}

fn link() -> (SocketLink, UnixDatagram, Slots) {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    (SocketLink::messages(ours.into(), 1500, None).unwrap(), peer, Slots::new(128).unwrap())
}

#[test]
fn frames_pass_both_ways_without_offloads() {
    let (mut link, peer, mut slots) = link();
    let info = link.info();
    assert!(!info.checksum && info.tso == Tso::None && !info.uso);
    for i in 0..5u8 {
        peer.send(&[i; 60]).unwrap();
    }
    let mut batch = RxBatch::default();
    while batch.len() < 5 {
        link.recv_batch(&mut slots, &mut batch).unwrap();
    }
    for (i, r) in batch.drain().enumerate() {
        assert_eq!((slots.bytes(r.frame), r.checksum, r.gso), (&[i as u8; 60][..], RxChecksum::Unverified, None));
        slots.give(r.slot);
    }
    link.recv_batch(&mut slots, &mut batch).unwrap();
    assert!(batch.is_empty(), "it would block");

    let slot = slots.take().unwrap();
    slots.slot_mut(slot)[..4].copy_from_slice(b"body");
    link.send(&mut slots, TxFrame { body: Payload { slot, offset: 0, len: 4 }, ..frame(b"an Ethernet header, ") }).unwrap();
    link.flush(&mut slots).unwrap();
    let mut buf = [0; 100];
    let n = peer.recv(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"an Ethernet header, body");
    assert_eq!(slots.in_use(), 0);
}

#[test]
fn what_needs_an_offload_is_refused() {
    let (mut link, _peer, mut slots) = link();
    let checksum = Some(TxChecksum { start: 34, offset: 6 });
    let gso = Some(Gso { kind: GsoKind::Udp, size: 100 });
    assert_eq!(link.send(&mut slots, TxFrame { checksum, ..frame(&[0; 60]) }), Err(TxError::TooBig));
    assert_eq!(link.send(&mut slots, TxFrame { gso, ..frame(&[0; 60]) }), Err(TxError::TooBig));
    assert_eq!(link.stats().tx_too_big, 2);
}

#[test]
fn impossible_messages_are_counted() {
    let (mut link, peer, mut slots) = link();
    set_option(peer.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 1 << 20).unwrap();
    peer.send(&[]).unwrap();
    peer.send(&[0; 13]).unwrap();
    peer.send(&[0; 80_000]).unwrap();
    peer.send(&[0; 14]).unwrap();
    let mut batch = RxBatch::default();
    link.recv_batch(&mut slots, &mut batch).unwrap();
    assert_eq!(batch.len(), 1);
    let s = link.stats();
    assert_eq!((s.rx_too_short, s.rx_too_long, s.rx_frames), (2, 1, 1));
}

#[test]
fn what_a_full_peer_does_not_take_waits_or_is_refused() {
    let (mut link, peer, mut slots) = link();
    let mut taken: u16 = 0;
    for n in 0..10_000u16 {
        let slot = slots.take().unwrap();
        slots.slot_mut(slot)[..2].copy_from_slice(&taken.to_ne_bytes());
        let sent = link.send(&mut slots, TxFrame { body: Payload { slot, offset: 0, len: 2 }, ..frame(&[n as u8; 60]) });
        assert!(matches!(sent, Ok(()) | Err(TxError::Full)), "{sent:?}");
        taken += u16::from(sent.is_ok());
    }
    link.flush(&mut slots).unwrap();
    let s = link.stats();
    assert!(link.waits() && s.tx_frames > 0);
    assert_eq!(s.tx_full + u64::from(taken), 10_000);
    assert_eq!(slots.in_use() as u64, u64::from(taken) - s.tx_frames);
    // Whatever was taken arrives, once and in order, without anything new being sent.
    let mut buf = [0; 100];
    for n in 0..taken {
        let len = peer.recv(&mut buf).or_else(|_| link.flush(&mut slots).map(|()| peer.recv(&mut buf).unwrap())).unwrap();
        assert_eq!((len, &buf[60..62]), (62, &n.to_ne_bytes()[..]));
    }
    assert!(peer.recv(&mut buf).is_err());
    link.flush(&mut slots).unwrap();
    assert_eq!((link.waits(), link.stats().tx_frames, slots.in_use()), (false, u64::from(taken), 0));
}

#[test]
fn a_link_that_is_stopped_lets_go_of_what_waits() {
    let (mut link, _peer, mut slots) = link();
    while !link.waits() {
        let slot = slots.take().unwrap();
        let _ = link.send(&mut slots, TxFrame { body: Payload { slot, offset: 0, len: 2 }, ..frame(&[1; 60]) });
    }
    assert!(slots.in_use() > 0);
    link.stop(&mut slots);
    assert_eq!((link.waits(), slots.in_use()), (false, 0));
}

#[test]
fn a_datagram_peer_that_is_gone_is_found_by_sending() {
    let (mut link, peer, mut slots) = link();
    drop(peer);
    link.send(&mut slots, frame(&[0; 60])).unwrap();
    assert!(matches!(link.flush(&mut slots), Err(LinkError::Closed)));
    assert_eq!(link.stats().tx_down, 1);
}

#[test]
fn a_connection_ends_after_its_last_frame() {
    let (ours, peer) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut slots = Slots::new(16).unwrap();
    let mut link = SocketLink::messages(ours, 1500, None).unwrap();
    rustix::net::send(&peer, &[3; 60], rustix::net::SendFlags::empty()).unwrap();
    drop(peer);
    let mut batch = RxBatch::default();
    link.recv_batch(&mut slots, &mut batch).unwrap();
    assert_eq!(batch.drain().map(|r| slots.give(r.slot)).count(), 1);
    assert!(matches!(link.recv_batch(&mut slots, &mut batch), Err(LinkError::Closed)));
    assert_eq!(slots.in_use(), 0);
}

#[test]
fn streams_are_refused() {
    let (a, _b) = UnixStream::pair().unwrap();
    assert!(SocketLink::messages(a.into(), 1500, None).is_err());
    assert!(SocketLink::messages(std::fs::File::open("/dev/null").unwrap().into(), 1500, None).is_err());
}
