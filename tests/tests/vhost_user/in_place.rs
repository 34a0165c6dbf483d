//! Bodies of frames that the kernel copies to where the guest has them.

use super::{LONG, Served, frame, running};
use hibernet::edge::RuntimeEdge;
use hibernet::link::Link;
use hibernet::link::channel::{ChannelEnd, channel};
use hibernet::sock::{Sockets, UNREAD_MIN, is_unread};
use hibernet_netstack::edge::{
    Close, FrameSink, Gso, GsoKind, HostSockets, LinkId, Payload, PayloadStore, Peek, SockId, Source, Token, TokenKind,
    TxChecksum, TxError, TxFrame,
};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::checksum::Sum;
use hibernet_tests::SplitMix;
use hibernet_tests::vmm::{FrontEnd, LateBody, Options, feature};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

fn bytes(rng: &mut SplitMix, len: usize) -> Vec<u8> {
    let mut all = vec![0; len];
    rng.fill(&mut all);
    all
}

fn unread(len: usize) -> Payload {
    Payload { slot: Payload::NO_SLOT - 1, offset: 0, len: len as u32 }
}

pub(super) fn send(served: &mut Served, head: &[u8], body: &[u8], short: u32) -> Result<(), TxError> {
    let tx = TxFrame { body: unread(body.len()), ..frame(head) };
    served.link.send_unread(&mut served.slots, tx, &mut LateBody::new(body, short))
}

/// The kinds of guests: buffers that are smaller than the headers, odd ones, ones of a page, ones for whole frames.
fn guests() -> Vec<Options> {
    let base = Options::default();
    let merged = [(60, 1024), (777, 256), (4096, 64)].map(|(rx_buffer, size)| Options { rx_buffer, size, ..base });
    let whole = Options { features: base.features & !feature::MRG_RXBUF, rx_buffer: 68 * 1024, size: 16, ..base };
    let all = merged.iter().chain([&whole]);
    all.flat_map(|o| [*o, Options { features: o.features | feature::EVENT_IDX, ..*o }]).collect()
}

/// Longest body for which a guest has buffers.
fn longest(o: &Options) -> usize {
    if o.rx_buffer < 100 { 40_000 } else { 65_000 }
}

#[test]
fn bodies_of_all_lengths_are_whole_whoever_copies_them() {
    let mut rng = SplitMix::new(21);
    for options in guests() {
        let (mut served, mut front) = running(options);
        for round in 0..200 {
            let lengths = (54 + rng.u64() as usize % 100, 1 + rng.u64() as usize % longest(&options));
            let (head, body) = (bytes(&mut rng, lengths.0), bytes(&mut rng, lengths.1));
            // The kernel has less than it said: the bytes are read again, into a slot.
            let short = u32::from(rng.chance(20));
            assert_eq!(send(&mut served, &head, &body, short), Ok(()), "{options:?}");
            served.link.flush(&mut served.slots).unwrap();
            assert!(front.called(0, LONG), "{options:?}: the guest was not called");
            let (_, got) = front.receive().unwrap();
            assert!(got == [&head[..], &body].concat(), "{options:?}: frame {round} of {} bytes", head.len() + body.len());
            front.rx.want_calls();
            front.refill();
            served.turn().unwrap();
            assert_eq!(served.slots.in_use(), 0);
        }
        assert_eq!(served.link.stats().tx_frames, 200);
    }
}

/// Whatever is the matter: no buffer is lost or used twice, and nothing half-written is shown to the guest.
#[test]
fn a_body_that_the_kernel_does_not_have_costs_nothing() {
    let (mut served, mut front) = running(Options::default());
    let size = front.rx.layout.size;
    for _ in 0..3 * size {
        assert_eq!(send(&mut served, &[1; 54], &[2; 20_000], 2), Err(TxError::Full));
    }
    served.link.flush(&mut served.slots).unwrap();
    assert_eq!((front.rx.used_index(), served.slots.in_use()), (0, 0));
    assert_eq!((served.link.stats().tx_frames, served.link.stats().tx_full), (0, 3 * u64::from(size)));
    let at = served.while_does(|| front.stop_ring(0).unwrap()).unwrap();
    assert_eq!(at, 0, "no buffer was taken");
    assert_eq!(send(&mut served, &[1; 54], &[2; 20_000], 0), Err(TxError::Down));
    served.while_does(|| front.start_ring(0, at).unwrap()).unwrap();
    send(&mut served, &[1; 54], &[2; 20_000], 0).unwrap();
    assert_eq!(front.receive().unwrap().1, [[1; 54].to_vec(), vec![2; 20_000]].concat());
    front.refill();
    // At once after a frame, the ring stands behind its buffers.
    let at = served.while_does(|| front.stop_ring(0).unwrap()).unwrap();
    assert_eq!(at, front.rx.used_index());
    // And a memory table of the same addresses that is another mapping.
    served.while_does(|| front.share_memory().unwrap()).unwrap();
    served.while_does(|| front.start_ring(0, at).unwrap()).unwrap();
    send(&mut served, &[3; 54], &[4; 60_000], 0).unwrap();
    assert_eq!(front.receive().unwrap().1, [[3; 54].to_vec(), vec![4; 60_000]].concat());
}

#[test]
fn frames_without_buffers_wait_in_slots_in_their_order() {
    for event_idx in [0, feature::EVENT_IDX] {
        let features = Options::default().features | event_idx;
        let (mut served, mut front) = running(Options { size: 16, rx_buffer: 2048, features, ..Options::default() });
        let mut sent = 0u32;
        assert!(served.link.reads_in_place());
        let full = loop {
            let body = [&sent.to_le_bytes()[..], &[sent as u8; 20_000]].concat();
            // Others go between them.
            let result = match sent % 3 {
                2 => served.link.send(&mut served.slots, frame(&[&[7; 54][..], &sent.to_le_bytes()].concat())),
                _ => send(&mut served, &[7; 54], &body, 0),
            };
            match result {
                Ok(()) => sent += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(full, TxError::Full);
        assert!(sent > 16 && !served.link.reads_in_place(), "what is sent now has to wait");
        served.link.flush(&mut served.slots).unwrap();
        let mut done = 0;
        while done < sent {
            while let Some((_, f)) = front.receive() {
                let len = if done % 3 == 2 { 58 } else { 58 + 20_000 };
                assert_eq!((f.len(), u32::from_le_bytes(f[54..58].try_into().unwrap())), (len, done));
                assert!(f[58..].iter().all(|b| *b == done as u8));
                done += 1;
            }
            let Some(n) = front.rx.take() else { panic!("{done} of {sent} frames, and then nothing") };
            front.rx.offer_to_write(n);
            front.kick();
            if served.wait(std::time::Duration::ZERO) {
                served.turn().unwrap();
            }
        }
        assert!(served.link.reads_in_place());
        assert_eq!(served.slots.in_use(), 0);
    }
}

#[test]
fn buffers_that_are_not_there_stop_the_ring() {
    let (mut served, front) = running(Options::default());
    let good = front.rx.layout.buffer(0);
    for n in 0..front.rx.layout.size {
        // The headers' buffer is good, the body's is not.
        let addr = if n % 2 == 0 { good } else { front.memory_len() - 100 };
        front.rx.describe(n, addr, 1536, 2, 0);
    }
    assert_eq!(send(&mut served, &[1; 54], &[2; 20_000], 0), Err(TxError::Down));
    assert_eq!(send(&mut served, &[1; 54], &[2; 20_000], 0), Err(TxError::Down), "it is not served until it is set up again");
    assert_eq!((front.rx.used_index(), served.slots.in_use()), (0, 0));
}

#[test]
fn without_checksums_left_to_the_guest_bodies_are_read() {
    let plain = feature::VERSION_1 | feature::PROTOCOL | feature::MRG_RXBUF;
    let (served, _front) = running(Options { features: plain, ..Options::default() });
    assert!(!served.link.reads_in_place());
    let (served, _front) = running(Options { features: plain | feature::GUEST_CSUM, ..Options::default() });
    assert!(served.link.reads_in_place());
}

/// An edge with a guest, a connection to a peer, and another link.
struct Edge {
    edge: RuntimeEdge,
    front: FrontEnd,
    other: ChannelEnd,
    sock: SockId,
    peer: TcpStream,
}

/// What a socket's receive buffer surely holds.
const WINDOW: usize = 55_000;

fn stream(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

impl Edge {
    fn new(options: Options) -> Edge {
        let (served, front) = running(options);
        let Served { link, slots, .. } = served;
        let (channel, other) = channel(link.info(), 4).unwrap();
        let links: Vec<Option<Box<dyn Link>>> = vec![Some(Box::new(link)), Some(Box::new(channel))];
        let mut edge = RuntimeEdge::new(slots, links, Sockets::new(None, None).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Endpoint::from(listener.local_addr().unwrap());
        let sock = edge.tcp_connect(Token::new(TokenKind::Tcp, 1, 1), to, Source::ANY).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let mut e = Edge { edge, front, other, sock, peer };
        e.peer.write_all(&stream(0, WINDOW)).unwrap();
        let end = Instant::now() + LONG;
        while (e.edge.tcp_unread(e.sock) as usize) < WINDOW {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        // The peek offset is on, and much was found.
        assert!(!is_unread(e.peek(0, 1000).slot) && !is_unread(e.peek(1000, 50_000).slot));
        e
    }

    /// Peeks for one frame of the guest's, and releases it.
    fn peek(&mut self, offset: u32, len: u32) -> Payload {
        let p = self.peek_to(LinkId(0), offset, len);
        self.edge.release(p);
        p
    }

    fn peek_to(&mut self, link: LinkId, offset: u32, len: u32) -> Payload {
        match self.edge.tcp_peek_run(self.sock, offset, len, 0, Some(link)) {
            Ok(Peek::Data(p)) => p,
            other => panic!("{other:?}"),
        }
    }

    fn received(&mut self) -> Vec<u8> {
        self.edge.links[0].as_mut().unwrap().flush(&mut self.edge.slots).unwrap();
        let (_, f) = self.front.receive().expect("a frame");
        self.front.refill();
        f
    }

    fn transmit(&mut self, link: u8, body: Payload, keep_body: bool) -> Result<(), TxError> {
        let gso = Some(Gso { kind: GsoKind::Tcp4, size: 1448 });
        let mut head = [0; 54];
        head[34 + 12] = 5 << 4;
        let checksum = Some(TxChecksum { start: 34, offset: 16 });
        self.edge.transmit(LinkId(link), TxFrame { head: &head, body, keep_body, checksum, gso })
    }
}

#[test]
fn the_kernel_writes_what_it_has_to_the_guest() {
    const ALL: usize = 8 << 20;
    let mut rng = SplitMix::new(22);
    for options in guests() {
        let mut e = Edge::new(options);
        let (mut seen, mut consumed) = (0, 0);
        let (mut much, mut put_off) = (0, 0);
        let mut peer = e.peer.try_clone().unwrap();
        let writer = std::thread::spawn(move || peer.write_all(&stream(WINDOW, ALL - WINDOW)));
        let end = Instant::now() + LONG;
        while seen < ALL {
            let max = 1 + rng.u64() as usize % longest(&options);
            let peeked = e.edge.tcp_peek_run(e.sock, (seen - consumed) as u32, max as u32, 0, Some(LinkId(0)));
            let Peek::Data(body) = peeked.unwrap() else {
                assert!(Instant::now() < end, "{seen} of {ALL} bytes came");
                // The guest acknowledges what it has, and more comes.
                e.edge.tcp_consume(e.sock, (seen - consumed) as u32).unwrap();
                consumed = seen;
                std::thread::yield_now();
                continue;
            };
            much += u32::from(body.len >= UNREAD_MIN);
            put_off += u32::from(is_unread(body.slot));
            assert_eq!(e.transmit(0, body, false), Ok(()));
            assert!(e.received()[54..] == stream(seen, body.len()), "{options:?}: {} bytes at {seen}", body.len());
            seen += body.len();
            if rng.chance(30) {
                let n = rng.u64() as usize % (seen - consumed);
                e.edge.tcp_consume(e.sock, n as u32).unwrap();
                consumed += n;
            }
            assert_eq!(e.edge.slots.in_use(), 0);
        }
        writer.join().unwrap().unwrap();
        assert!(put_off > 20 && put_off >= much / 4, "{options:?}: {put_off} of {much} long bodies stayed in the kernel");
    }
}

#[test]
fn what_stays_in_the_kernel_can_be_looked_at_and_left() {
    let mut e = Edge::new(Options::default());
    let body = e.peek_to(LinkId(0), 1000, 40_000);
    assert!(is_unread(body.slot));
    // As a rule does that looks for a string, and one who quotes a part.
    let mut part = [0; 100];
    assert_eq!(e.edge.read(body.slice(30_000, 100), &mut part), 100);
    assert_eq!(part[..], stream(31_000, 100));
    assert_eq!(e.edge.read(body.slice(39_990, 1000), &mut part), 10);
    assert_eq!(e.edge.checksum(body), Sum::default().bytes(&stream(1000, 40_000)).fold());
    assert_eq!(e.transmit(0, body, false), Ok(()));
    assert_eq!(e.received()[54..], stream(1000, 40_000));
    assert!(!is_unread(e.peek(1000, 40_000).slot), "whoever looks at bytes has them read");
    assert_eq!(e.edge.slots.in_use(), 0);

    let mut e = Edge::new(Options::default());
    let body = e.peek_to(LinkId(0), 11_000, 40_000);
    assert!(is_unread(body.slot));
    // A rule drops it: nothing has happened, and it comes again.
    e.edge.release(body);
    let again = e.peek_to(LinkId(0), 11_000, 40_000);
    assert!(is_unread(again.slot) && again.slot != body.slot);
    assert_eq!(e.edge.read(body, &mut part), 0, "one that is over has nothing");
    assert_eq!(e.transmit(0, body, false), Err(TxError::Full), "nor is anything else sent in its place");
    assert_eq!(e.transmit(0, again, false), Ok(()));
    assert_eq!(e.received()[54..], stream(11_000, 40_000));
    assert_eq!(e.edge.slots.in_use(), 0);
}

#[test]
fn what_stays_in_the_kernel_can_go_elsewhere() {
    let mut e = Edge::new(Options::default());
    // To another link, which needs the bytes.
    let body = e.peek_to(LinkId(0), 0, 30_000);
    assert!(is_unread(body.slot));
    assert_eq!(e.transmit(1, body, false), Ok(()));
    assert_eq!(e.other.take().unwrap().bytes[54..], stream(0, 30_000));
    // In pieces.
    let mut e = Edge::new(Options::default());
    let body = e.peek_to(LinkId(0), 0, 30_000);
    assert!(is_unread(body.slot));
    for (at, keep) in [(0, true), (10_000, true), (20_000, false)] {
        assert_eq!(e.transmit(0, body.slice(at, 10_000), keep), Ok(()));
        assert_eq!(e.received()[54..], stream(at, 10_000));
    }
    assert_eq!(e.edge.slots.in_use(), 0);
    // Nowhere.
    let mut e = Edge::new(Options::default());
    let body = e.peek_to(LinkId(0), 0, 30_000);
    assert_eq!(e.transmit(7, body, false), Err(TxError::Down));
    // Nor is there anything when its socket has gone.
    let body = e.peek_to(LinkId(0), 0, 30_000);
    e.edge.close(e.sock, Close::Reset);
    assert_eq!(e.transmit(0, body, false), Err(TxError::Full));
    assert_eq!(e.edge.slots.in_use(), 0);
}

#[test]
fn little_is_read_at_once() {
    let mut e = Edge::new(Options::default());
    assert!(!is_unread(e.peek(0, UNREAD_MIN - 1).slot));
    assert!(!is_unread(e.peek_to(LinkId(1), 0, 30_000).slot), "for a link that needs the bytes");
    let mut e = Edge::new(Options::default());
    e.edge.tcp_consume(e.sock, 45_000).unwrap();
    assert!(!is_unread(e.peek(0, 30_000).slot), "there are but 10,000 bytes");
    assert!(!is_unread(e.peek(5000, 30_000).slot));
    // Nor is anything put off of a socket without the kernel's peek offset, or with an urgent mark.
    let mut e = Edge::new(Options::default());
    let urgent = rustix::net::SendFlags::OOB;
    rustix::net::send(&e.peer, b"!", urgent).unwrap();
    let end = Instant::now() + LONG;
    let mut events = Vec::new();
    while is_unread(e.peek(1000, 30_000).slot) {
        assert!(Instant::now() < end, "urgent data were not noticed");
        e.edge.sockets.poll(&mut e.edge.slots, &mut events);
    }
}
