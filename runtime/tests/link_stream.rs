//! Links over streams of frames, against real Unix sockets.

use hibernet::link::stream::StreamLink;
use hibernet::link::{Link, LinkError, LinkNews, RxBatch};
use hibernet::slots::Slots;
use hibernet_netstack::edge::{Gso, GsoKind, Payload, Tso, TxChecksum, TxError, TxFrame};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use vmm_sys_util::tempdir::TempDir;

fn frame(head: &[u8]) -> TxFrame<'_> {
    TxFrame { head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None }
}

fn stream_of(frames: &[&[u8]]) -> Vec<u8> {
    frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect()
}

/// Whether the link's descriptor says that there is something to be done.
fn is_ready(link: &StreamLink) -> bool {
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(link.fd(), PollFlags::IN)], Some(&now)).unwrap() == 1
}

/// What a link receives in one call.
fn receive(link: &mut StreamLink, slots: &mut Slots) -> Result<Vec<Vec<u8>>, LinkError> {
    let mut batch = RxBatch::default();
    link.recv_batch(slots, &mut batch)?;
    Ok(batch
        .drain()
        .map(|r| {
            let bytes = slots.bytes(r.frame).to_vec();
            slots.give(r.slot);
            bytes
        })
        .collect())
}

struct World {
    link: StreamLink,
    slots: Slots,
    dir: TempDir,
}

impl World {
    fn new(one_off: bool) -> World {
        World::with(one_off, 1500)
    }

    fn with(one_off: bool, mtu: u16) -> World {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.as_path().join("s")).unwrap();
        let link = StreamLink::listening(listener.into(), one_off, mtu, None).unwrap();
        World { link, slots: Slots::new(256).unwrap(), dir }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.as_path().join("s")).unwrap()
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        receive(&mut self.link, &mut self.slots).unwrap()
    }

    fn send(&mut self, head: &[u8]) -> Result<(), TxError> {
        self.link.send(&mut self.slots, frame(head))
    }
}

#[test]
fn peers_come_and_go_one_after_the_other() {
    let mut w = World::new(false);
    assert!(!is_ready(&w.link) && w.receive().is_empty() && w.link.take_news().is_none());
    assert_eq!(w.send(&[0; 60]), Err(TxError::Down));
    let mut first = w.connect();
    let mut second = w.connect();
    assert!(is_ready(&w.link));
    first.write_all(&stream_of(&[&[1; 60], &[2; 14]])).unwrap();
    second.write_all(&stream_of(&[&[3; 60]])).unwrap();
    assert_eq!(w.receive(), [vec![1; 60], vec![2; 14]]);
    assert_eq!(w.link.take_news(), Some(LinkNews::Connected));
    assert!(w.receive().is_empty() && !is_ready(&w.link), "the second waits");
    // Half a frame, and the end.
    first.write_all(&[0, 0, 0, 60, 1]).unwrap();
    drop(first);
    while w.link.take_news().is_none() {
        assert!(is_ready(&w.link));
        assert!(w.receive().is_empty());
    }
    assert_eq!((w.link.stats().rx_cut_off, w.link.stats().rx_down), (1, 1));
    assert!(is_ready(&w.link), "now it is the second's turn");
    assert_eq!(w.receive(), [vec![3; 60]]);
    w.send(&[9; 20]).unwrap();
    w.link.flush(&mut w.slots).unwrap();
    let mut out = [0; 24];
    second.read_exact(&mut out).unwrap();
    assert_eq!(&out[..], stream_of(&[&[9; 20]]));
}

#[test]
fn one_off_ends_with_its_peer() {
    let mut w = World::new(true);
    let mut peer = w.connect();
    peer.write_all(&stream_of(&[&[1; 60]])).unwrap();
    drop(peer);
    assert_eq!(w.receive(), [vec![1; 60]]);
    // The first time nothing is looked for: all was there.
    for _ in 0..2 {
        assert!(w.receive().is_empty());
        assert!(is_ready(&w.link), "the end is to be found");
    }
    assert!(matches!(receive(&mut w.link, &mut w.slots), Err(LinkError::Closed)));
    let (ours, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let mut given = StreamLink::connected(ours.into(), 1500, None).unwrap();
    assert!(receive(&mut given, &mut w.slots).unwrap().is_empty() && is_ready(&given));
    assert!(matches!(receive(&mut given, &mut w.slots), Err(LinkError::Closed)));
}

#[test]
fn more_frames_than_a_batch_come_although_nothing_more_arrives() {
    let mut w = World::new(false);
    let mut peer = w.connect();
    let all: Vec<[u8; 14]> = (0..200).map(|n| [n; 14]).collect();
    peer.write_all(&stream_of(&all.iter().map(|f| &f[..]).collect::<Vec<_>>())).unwrap();
    let mut got = Vec::new();
    while got.len() < 200 {
        assert!(is_ready(&w.link), "{} of 200, and nobody would look for more", got.len());
        got.extend(w.receive());
    }
    assert!(w.receive().is_empty() && !is_ready(&w.link));
    assert!(got.iter().zip(&all).all(|(a, b)| a == b));
    assert_eq!(w.link.stats().rx_frames, 200);
    w.link.stop(&mut w.slots);
    assert_eq!(w.slots.in_use(), 0);
}

#[test]
fn a_length_that_cannot_be_true_ends_the_connection() {
    let mut w = World::new(false);
    let mut peer = w.connect();
    peer.write_all(&[&stream_of(&[&[1; 60]])[..], &70_000u32.to_be_bytes(), &[0; 100]].concat()).unwrap();
    assert_eq!(w.receive(), [vec![1; 60]], "what came before is good");
    let news = w.link.take_news();
    assert!(matches!(&news, Some(LinkNews::Disconnected(why)) if why.contains("70000")), "{news:?}");
    assert_eq!(w.link.stats().rx_too_long, 1);
    assert!(matches!(peer.read(&mut [0; 1]), Ok(0) | Err(_)));
    let mut next = w.connect();
    next.write_all(&stream_of(&[&[2; 60]])).unwrap();
    assert_eq!(w.receive(), [vec![2; 60]]);
}

#[test]
fn a_peer_that_does_not_read_holds_frames_back_and_gets_whole_ones() {
    let mut w = World::new(false);
    let mut peer = w.connect();
    w.receive();
    let (mut taken, mut number) = (Vec::new(), 0u8);
    let refused = loop {
        let slot = w.slots.take().unwrap();
        w.slots.slot_mut(slot)[..1486].fill(number);
        let body = Payload { slot, offset: 0, len: 1486 };
        match w.link.send(&mut w.slots, TxFrame { body, ..frame(&[number; 14]) }) {
            Ok(()) => taken.push(number),
            Err(e) => break e,
        }
        w.link.flush(&mut w.slots).unwrap();
        number = number.wrapping_add(1);
    };
    assert_eq!((refused, w.link.stats().tx_full), (TxError::Full, 1));
    assert!(!is_ready(&w.link), "nothing can be done");
    // Beyond what the kernel holds, one batch waits.
    assert_eq!(w.slots.in_use(), 64 + 1, "and one for what is received");
    for expected in taken {
        let mut one = [0; 1504];
        if peer.set_nonblocking(true).is_ok() && peer.read_exact(&mut one[..4]).is_err() {
            peer.set_nonblocking(false).unwrap();
            assert!(is_ready(&w.link), "there is room");
            w.link.flush(&mut w.slots).unwrap();
            peer.read_exact(&mut one[..4]).unwrap();
        }
        peer.set_nonblocking(false).unwrap();
        // The rest may come with the next flush.
        w.link.flush(&mut w.slots).unwrap();
        peer.read_exact(&mut one[4..]).unwrap();
        assert!(one[..4] == 1500u32.to_be_bytes() && one[4..].iter().all(|b| *b == expected));
    }
    w.link.flush(&mut w.slots).unwrap();
    assert!(!is_ready(&w.link), "it is not watched for room any more");
    w.link.stop(&mut w.slots);
    assert_eq!(w.slots.in_use(), 0);
}

#[test]
fn what_needs_an_offload_or_is_too_long_is_refused() {
    let mut w = World::new(false);
    let _peer = w.connect();
    w.receive();
    let info = w.link.info();
    assert!(!info.checksum && info.tso == Tso::None && !info.uso);
    let checksum = Some(TxChecksum { start: 34, offset: 6 });
    let gso = Some(Gso { kind: GsoKind::Udp, size: 100 });
    for bad in [TxFrame { checksum, ..frame(&[0; 60]) }, TxFrame { gso, ..frame(&[0; 60]) }, frame(&[0; 1515])] {
        assert_eq!(w.link.send(&mut w.slots, bad), Err(TxError::TooBig));
    }
    w.send(&[0; 1514]).unwrap();
}

/// A link that has written a frame in part, how many it has tried to write, and its peer. `first` is the length of the first.
fn written_in_part(first: u32) -> Option<(World, UnixStream, u8)> {
    let mut w = World::with(false, 65_535);
    let peer = w.connect();
    w.receive();
    let mut sent = 0;
    for n in 0..40u8 {
        let slot = w.slots.take().unwrap();
        let len = if n == 0 { first } else { 60_000 };
        w.slots.slot_mut(slot)[..len as usize].fill(n);
        let body = Payload { slot, offset: 0, len };
        w.link.send(&mut w.slots, TxFrame { body, ..frame(&[n; 14]) }).unwrap();
        sent += 1;
    }
    w.link.flush(&mut w.slots).unwrap();
    let unsent = w.link.connection(&w.slots).unwrap().unwrap().unsent.len();
    assert!(unsent < 60_018, "{unsent}");
    (unsent > 0).then_some((w, peer, sent))
}

/// A successor goes on within a frame, both ways.
#[test]
fn a_connection_is_handed_over_within_a_frame() {
    // Where the kernel stops depends on what it was given at a time.
    let (mut w, mut peer, sent) = (0..20).find_map(|n| written_in_part(100 + 3000 * n)).expect("all were written whole");
    let stream = stream_of(&[&[1; 60], &[2; 1000], &[3; 60]]);
    peer.write_all(&stream[..200]).unwrap();
    assert_eq!(w.receive(), [vec![1; 60]]);
    let connection = w.link.connection(&w.slots).unwrap().unwrap();
    w.link.stop(&mut w.slots);
    // One that was made with the connection knows its fd, and takes the rest over all the same.
    let mut same = StreamLink::connected(connection.fd.try_clone().unwrap(), 65_535, None).unwrap();
    same.take_over(&mut w.slots, connection.try_clone().unwrap());
    let taken = same.connection(&w.slots).unwrap().unwrap();
    assert_eq!((&taken.received, &taken.unsent), (&connection.received, &connection.unsent));
    same.stop(&mut w.slots);
    let listener: OwnedFd = UnixListener::bind(w.dir.as_path().join("t")).unwrap().into();
    let mut next = StreamLink::listening(listener, false, 1500, None).unwrap();
    next.take_over(&mut w.slots, connection);
    assert_eq!(next.take_news(), None, "the peer notices nothing");
    peer.write_all(&stream[200..]).unwrap();
    assert_eq!(receive(&mut next, &mut w.slots).unwrap(), [vec![2; 1000], vec![3; 60]]);
    next.send(&mut w.slots, frame(&[0xee; 20])).unwrap();
    let mut n = 0u8;
    loop {
        next.flush(&mut w.slots).unwrap();
        let mut prefix = [0; 4];
        peer.read_exact(&mut prefix).unwrap();
        let mut bytes = vec![0; u32::from_be_bytes(prefix) as usize];
        peer.read_exact(&mut bytes).unwrap();
        if bytes == [0xee; 20] {
            break;
        }
        assert!(bytes.len() == 60_014 || n == 0, "{}", bytes.len());
        assert!(bytes.iter().all(|b| *b == n));
        n += 1;
    }
    assert!(n > 0 && n < sent, "{n} of {sent}");
}
