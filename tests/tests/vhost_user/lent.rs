//! Long frames, which stay where the guest has them while they are dealt with.

use super::inflight::noting;
use super::{LONG, Served, running};
use hibernet::edge::RuntimeEdge;
use hibernet::link::channel::{ChannelEnd, channel};
use hibernet::link::pcap::PcapLink;
use hibernet::link::vhost_user::VhostUserLink;
use hibernet::link::{Link, LinkNews, Received, RxBatch};
use hibernet::slots::Slots;
use hibernet::sock::Sockets;
use hibernet_netstack::edge::{
    FrameSink, HostSockets, LinkId, LinkInfo, Payload, PayloadStore, SendOpts, SockId, Source, Token, TokenKind, Tso, TxError,
    TxFrame,
};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::checksum::Sum;
use hibernet_tests::SplitMix;
use hibernet_tests::vmm::{FrontEnd, Options, code, feature};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

/// Asks for the checksum to be completed, as a guest does that sends long frames.
const HEADER: [u8; 12] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
const LEN: usize = 20_000;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut all = vec![0; len];
    SplitMix::new(seed).fill(&mut all);
    all
}

/// What one call receives.
fn receive(link: &mut impl Link, slots: &mut Slots) -> Vec<Received> {
    let mut batch = RxBatch::default();
    link.recv_batch(slots, &mut batch).unwrap();
    batch.drain().collect()
}

fn read(slots: &Slots, p: Payload) -> Vec<u8> {
    let mut all = vec![0; p.len()];
    assert_eq!(slots.read(p, &mut all), p.len());
    all
}

/// A link with one long frame that is lent, and the frame's bytes.
fn lending(options: Options) -> (Served, FrontEnd, Received, Vec<u8>) {
    let (mut served, mut front) = running(options);
    let sent = bytes(7, LEN);
    assert!(front.transmit_with(&HEADER, &sent));
    let all = receive(&mut served.link, &mut served.slots);
    assert!(all.len() == 1 && served.slots.lent(all[0].frame).is_some() && front.tx.used_index() == 0);
    (served, front, all[0], sent)
}

/// Writes over all buffers that the guest sends from.
fn overwrite(front: &FrontEnd, with: u8) {
    let l = front.tx.layout;
    front.memory().write_slice(&vec![with; usize::from(l.size) * l.buffer as usize], GuestAddress(l.buffers)).unwrap();
}

#[test]
fn long_frames_are_lent_in_whatever_pieces_and_others_are_copied() {
    for (tx_buffer, len, header, lent) in [
        (68 * 1024, LEN, HEADER, true),
        (700, LEN, HEADER, true),
        (700, 65_000, HEADER, false),
        (4096, 65_534, HEADER, true),
        (5, 100, HEADER, false),
        (68 * 1024, 8_000, HEADER, false),
        (68 * 1024, LEN, [0; 12], false),
        (68 * 1024, LEN, [1, 5, 42, 0, 0xa8, 5, 34, 0, 6, 0, 0, 0], false),
        (68 * 1024, LEN, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0], true),
    ] {
        let (mut served, mut front) = running(Options { tx_buffer, size: 512, ..Options::default() });
        let sent = bytes(1, len);
        assert!(front.transmit_with(&header, &sent));
        let all = receive(&mut served.link, &mut served.slots);
        assert_eq!(all.len(), 1, "{tx_buffer} {len} {header:?}");
        assert_eq!(read(&served.slots, all[0].frame), sent);
        assert_eq!(read(&served.slots, all[0].frame.slice(33, 5000)), &sent[33..(33 + 5000).min(len)]);
        assert_eq!(served.slots.lent(all[0].frame).is_some(), lent, "{tx_buffer} {len} {header:?}");
        assert_eq!(front.tx.has_used(), !lent, "a buffer that is lent is not given back");
        served.slots.give(all[0].slot);
        assert!(receive(&mut served.link, &mut served.slots).is_empty());
        assert!(front.tx.has_used() && front.called(1, LONG), "now it is, and the guest is told");
        assert_eq!((front.tx.reclaim(), served.slots.in_use(), served.link.stats().rx_frames), (1, 0, 1));
    }
}

/// Short and long ones by turns: each comes back once, in the order in which it was sent, however many calls it takes.
#[test]
fn buffers_come_back_once_and_in_their_order() {
    for features in [!feature::EVENT_IDX, !0, !feature::INDIRECT_DESC] {
        let (mut served, mut front) = noting(Options { tx_buffer: 4096, size: 256, features, ..Options::default() });
        let mut rng = SplitMix::new(features);
        let (mut sent, mut came) = (0u32, 0u32);
        while sent < 5_000 {
            let mut heads = Vec::new();
            for _ in 0..=rng.u64() % 70 {
                let mut f = bytes(u64::from(sent), if rng.u64().is_multiple_of(3) { 60 } else { 10_000 });
                f[..4].copy_from_slice(&sent.to_le_bytes());
                let Some(head) = front.tx.send_chain(&[&HEADER[..], &f].concat()) else { break };
                heads.push(head);
                sent += 1;
            }
            front.kick();
            let mut given = Vec::new();
            while given.len() < heads.len() {
                if rng.u64().is_multiple_of(4) {
                    served.link.flush(&mut served.slots).unwrap();
                }
                for r in receive(&mut served.link, &mut served.slots) {
                    let got = read(&served.slots, r.frame);
                    assert_eq!((&got[..4], &got[4..]), (&came.to_le_bytes()[..], &bytes(came.into(), got.len())[4..]));
                    served.slots.give(r.slot);
                    came += 1;
                }
                given.extend(std::iter::from_fn(|| front.tx.reclaim_chain()));
            }
            assert_eq!(given, heads);
        }
        assert_eq!((came, served.slots.in_use()), (sent, 0));
    }
}

#[test]
fn the_guest_keeps_half_of_its_descriptors() {
    // Chains of five: two of them are more than half of the ring.
    let features = !(feature::EVENT_IDX | feature::INDIRECT_DESC);
    let (mut served, mut front) = running(Options { tx_buffer: 4096, size: 16, features, ..Options::default() });
    for n in 0..3 {
        assert!(front.transmit_with(&HEADER, &bytes(n, LEN)));
    }
    assert_eq!(receive(&mut served.link, &mut served.slots).len(), 2);
    assert!(served.wait(Duration::ZERO), "of what is left no kick tells");
    let rest = receive(&mut served.link, &mut served.slots);
    assert_eq!((rest.len(), front.tx.used_index()), (1, 2));
    assert_eq!(read(&served.slots, rest[0].frame), bytes(2, LEN));
    served.link.flush(&mut served.slots).unwrap();
    assert_eq!(front.tx.used_index(), 3);
}

/// Whatever ends what was lent, nothing leads to it afterwards, and the guest has its buffer back if its ring is still there.
#[test]
fn nothing_is_lent_beyond_the_call_that_follows() {
    type End = fn(&mut Served, &mut FrontEnd);
    let ends: [(&str, End, u16); 7] = [
        ("flush", |served, _| served.link.flush(&mut served.slots).unwrap(), 1),
        ("stop", |served, _| served.link.stop(&mut served.slots), 1),
        ("receive", |served, _| assert!(receive(&mut served.link, &mut served.slots).is_empty()), 1),
        (
            "the ring is stopped",
            |served, front| {
                let base = served.while_does(|| front.stop_ring(1).unwrap()).unwrap();
                assert_eq!((base, front.tx.used_index()), (1, 1), "it goes on behind what was lent");
            },
            1,
        ),
        (
            "the memory is replaced",
            |served, front| {
                let shared = served.while_does(|| front.share_memory().is_ok()).unwrap();
                assert!(shared);
                assert!(front.transmit_with(&HEADER, &bytes(8, LEN)));
                served.until_frames(1);
                assert_eq!(served.frames, [bytes(8, LEN)]);
            },
            2,
        ),
        (
            "all is reset",
            |served, front| {
                front.send(code::RESET_OWNER, 0, &[], &[]).unwrap();
                assert!(served.wait(LONG));
                served.turn().unwrap();
            },
            1,
        ),
        (
            "the front end leaves",
            |served, front| {
                front.socket().shutdown(std::net::Shutdown::Both).unwrap();
                assert!(served.wait(LONG) && served.turn().is_err());
            },
            1,
        ),
    ];
    for (name, end, used) in ends {
        let (mut served, mut front, r, _) = lending(Options::default());
        end(&mut served, &mut front);
        assert!(served.slots.lent(r.frame).is_none(), "{name}");
        assert_eq!((front.tx.used_index(), served.slots.in_use()), (used, 0), "{name}");
    }
}

/// A ring that turns out to make no sense behind a frame that is lent.
#[test]
fn a_ring_that_breaks_takes_nothing_along() {
    let (mut served, mut front) = running(Options::default());
    let sent = bytes(7, LEN);
    assert!(front.transmit_with(&HEADER, &sent));
    let mut batch = RxBatch::default();
    served.link.recv_batch(&mut served.slots, &mut batch).unwrap();
    // More than it has entries. The frame is still to be dealt with.
    front.tx.claim(1000);
    served.link.recv_batch(&mut served.slots, &mut batch).unwrap();
    assert!(matches!(served.link.take_news(), Some(LinkNews::Connected)));
    assert!(matches!(served.link.take_news(), Some(LinkNews::Trouble(_))));
    let r = batch.drain().next().unwrap();
    assert_eq!(read(&served.slots, r.frame), sent);
    served.link.flush(&mut served.slots).unwrap();
    assert!(served.slots.lent(r.frame).is_none());
    assert_eq!(front.tx.used_index(), 0, "nothing is written to a ring that makes no sense");
}

#[test]
fn a_frame_of_which_not_all_is_there_is_counted_and_given_back() {
    let (mut served, mut front) = running(Options::default());
    let end = front.memory_len();
    for (n, at) in (1u16..).zip([end - 10_000, end, u64::MAX - 5_000]) {
        front.tx.describe(0, at, LEN as u32, 0, 0);
        front.tx.offer(0);
        front.kick();
        assert!(receive(&mut served.link, &mut served.slots).is_empty());
        assert_eq!((served.link.stats().rx_bad_header, front.tx.used_index()), (n.into(), n));
    }
}

/// What it was captured as is what is dealt with.
#[test]
fn a_captured_frame_is_the_link_s_own() {
    let (served, mut front) = running(Options::default());
    let Served { link, mut slots, .. } = served;
    let (mut ours, theirs) = std::io::pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        ours.read_to_end(&mut all).unwrap();
        all
    });
    let mut link = PcapLink::new(link, Box::new(theirs), slog::Logger::root(slog::Discard, slog::o!())).unwrap();
    let sent = bytes(7, LEN);
    assert!(front.transmit_with(&HEADER, &sent));
    let r = receive(&mut link, &mut slots)[0];
    overwrite(&front, 0xee);
    assert_eq!(read(&slots, r.frame), sent);
    assert_eq!(front.tx.used_index(), 0);
    link.stop(&mut slots);
    assert_eq!((front.tx.used_index(), slots.in_use()), (1, 0));
    drop(link);
    assert!(reader.join().unwrap().ends_with(&sent));
}

/// A worker's edge with a link that lends and one that keeps frames, and the other ends of both.
fn edge() -> (RuntimeEdge, FrontEnd, ChannelEnd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let link = VhostUserLink::connected(ours.into(), 65_520, None).unwrap();
    let mut served = Served { link, slots: Slots::new(16).unwrap(), frames: Vec::new() };
    let mut front = FrontEnd::new(theirs, Options::default());
    served.while_does(|| front.set_up().unwrap()).unwrap();
    let info = LinkInfo { mtu: 65_520, checksum: true, tso: Tso::Both, uso: false, guest_mac: None, in_flight: u32::MAX };
    let (other, end) = channel(info, 4).unwrap();
    let links: Vec<Option<Box<dyn Link>>> = vec![Some(Box::new(served.link)), Some(Box::new(other))];
    (RuntimeEdge::new(served.slots, links, Sockets::new(None, None).unwrap()), front, end)
}

/// The frame that the guest has sent, lent.
fn lent(edge: &mut RuntimeEdge) -> Payload {
    let RuntimeEdge { slots, links, .. } = edge;
    let all = receive(links[0].as_mut().unwrap(), slots);
    assert!(all.len() == 1 && edge.slots.lent(all[0].frame).is_some());
    all[0].frame
}

fn give_back(edge: &mut RuntimeEdge) {
    let RuntimeEdge { slots, links, .. } = edge;
    links[0].as_mut().unwrap().flush(slots).unwrap();
}

/// A stream of the edge's, and its peer.
fn stream(edge: &mut RuntimeEdge) -> (SockId, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let sock = edge.tcp_connect(TOKEN, listener.local_addr().unwrap().into(), Source::ANY).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(LONG)).unwrap();
    (sock, peer)
}

const TOKEN: Token = Token::new(TokenKind::Tcp, 1, 1);

/// What a stream gets is what the guest's memory has when the kernel copies it, from any offset on, in one piece or many.
#[test]
fn a_stream_is_sent_from_where_the_guest_has_it() {
    let (mut edge, mut front, _end) = edge();
    let (sock, mut peer) = stream(&mut edge);
    let mut sent = bytes(7, LEN);
    assert!(front.transmit_with(&HEADER, &sent));
    let p = lent(&mut edge);
    // Behind the headers, which were read before.
    let part = p.slice(54, LEN);
    assert_eq!(edge.checksum(part), Sum::default().bytes(&sent[54..]).fold());
    let mut got = vec![0; LEN - 54];
    assert_eq!(edge.read(part, &mut got), got.len());
    assert_eq!(got, sent[54..]);
    sent[10_000..].fill(0xee);
    assert_eq!(edge.tcp_send(sock, part.slice(0, 0)), Ok(0));
    front.memory().write_slice(&sent, GuestAddress(front.tx.layout.buffer(0) + HEADER.len() as u64)).unwrap();
    assert_eq!(edge.tcp_send(sock, part), Ok(part.len()));
    peer.read_exact(&mut got).unwrap();
    assert_eq!(got, sent[54..]);
    // What was judged is not read again.
    assert!(edge.make_private(p));
    overwrite(&front, 0);
    assert_eq!(edge.tcp_send(sock, part.slice(1, 15_000)), Ok(15_000));
    peer.read_exact(&mut got[..15_000]).unwrap();
    assert_eq!(got[..15_000], sent[55..15_055]);
    assert_eq!(edge.slots.in_use(), 1);
    give_back(&mut edge);
    assert_eq!((edge.slots.in_use(), front.tx.used_index()), (0, 1));
}

/// Who keeps a frame for longer has a copy.
#[test]
fn datagrams_and_frames_to_others_are_copied() {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    receiver.set_read_timeout(Some(LONG)).unwrap();
    let (mut edge, mut front, end) = edge();
    let to: Endpoint = receiver.local_addr().unwrap().into();
    let sock = edge.udp_open(Token::new(TokenKind::Udp, 1, 1), to, Source::ANY).unwrap();
    let sent = bytes(7, LEN);
    assert!(front.transmit_with(&HEADER, &sent));
    let p = lent(&mut edge);
    let opts = SendOpts { hop_limit: 64, tos: 0, segment: None, to: None, from: None, dont_fragment: false };
    edge.udp_send(sock, p.slice(42, LEN), &opts).unwrap();
    let cut = |from, len| TxFrame { head: &sent[..54], body: p.slice(from, len), keep_body: true, checksum: None, gso: None };
    edge.transmit(LinkId(1), cut(54, 9_000)).unwrap();
    edge.transmit(LinkId(1), cut(9_054, LEN)).unwrap();
    assert_eq!(edge.transmit(LinkId(2), cut(54, LEN)), Err(TxError::Down));
    assert_eq!(edge.slots.in_use(), 1, "one copy for all");
    overwrite(&front, 0xee);
    give_back(&mut edge);
    edge.flush();
    for l in edge.links.iter_mut().flatten() {
        l.flush(&mut edge.slots).unwrap();
    }
    let mut got = vec![0; 65_536];
    let n = receiver.recv(&mut got).unwrap();
    assert_eq!(got[..n], sent[42..]);
    let first = end.take().unwrap().bytes;
    assert_eq!(first, sent[..9_054]);
    let second = end.take().unwrap().bytes;
    assert_eq!(second, [&sent[..54], &sent[9_054..]].concat());
    assert_eq!(edge.slots.in_use(), 0);
}

/// Without a slot for a copy frames are refused as if there were no room, streams go on.
#[test]
fn without_slots_streams_go_on() {
    let (mut edge, mut front, _end) = edge();
    let (sock, mut peer) = stream(&mut edge);
    let taken: Vec<u32> = std::iter::from_fn(|| edge.slots.take()).collect();
    let sent = bytes(7, LEN);
    assert!(front.transmit_with(&HEADER, &sent));
    let p = lent(&mut edge);
    let frame = TxFrame { head: &sent[..54], body: p.slice(54, LEN), keep_body: true, checksum: None, gso: None };
    assert_eq!(edge.transmit(LinkId(1), frame), Err(TxError::Full));
    assert!(!edge.make_private(p));
    assert_eq!(edge.tcp_send(sock, p), Ok(LEN));
    let mut got = vec![0; LEN];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(got, sent);
    taken.into_iter().for_each(|s| edge.slots.give(s));
}
