//! Host sockets that are handed to a successor.

mod common;

use common::{Host, PATIENCE, loopbacks, token};
use hibernet::sock::{HoldError, SlotState, SocketFate, SocketKind, Sockets, SocketsState, Supplied};
use hibernet::sys::socket;
use hibernet_netstack::edge::{Close, HostSockets, PayloadStore, Peek, SendOpts, SockError, SockId, Source, Token, TokenKind};
use hibernet_netstack::tuple::Endpoint;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

fn udp(n: u32) -> Token {
    Token::new(TokenKind::Udp, n, 1)
}

fn opts() -> SendOpts {
    SendOpts { hop_limit: 63, tos: 0x10, segment: None, to: None, from: None, dont_fragment: true }
}

fn everywhere(case: impl Fn(Host, SocketAddr)) {
    loopbacks().into_iter().for_each(|at| case(Host::new(), at));
}

fn all_resumed(fates: &[(SockId, SocketFate)]) {
    assert!(fates.iter().all(|(_, f)| *f == SocketFate::Resumed), "{fates:?}");
}

/// Waits until what was written to a socket's peer has come in.
fn arrived(host: &Host, id: SockId, n: u32) {
    let fd = host.edge.sockets.descriptors().find(|(i, _)| *i == id).unwrap().1;
    let until = Instant::now() + PATIENCE;
    while hibernet::sys::tcp::unread(fd).unwrap() < n {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
}

#[test]
fn streams_go_on_where_they_stand() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(7), at);
        let stream: Vec<u8> = (0..60_000u32).flat_map(u32::to_le_bytes).collect();
        let (mut written, mut seen, mut consumed) = (0, 0, 0);
        for round in 0..12 {
            peer.write_all(&stream[written..written + 20_000]).unwrap();
            written += 20_000;
            // Some of it is peeked at and not consumed when the owner changes.
            while seen + 5000 < written {
                let got = host.peek_bytes(sock, (seen - consumed) as u32, 7000);
                assert_eq!(got, stream[seen..seen + got.len()], "round {round}");
                seen += got.len();
            }
            let gone = (seen - consumed) * (round % 3) / 2;
            host.edge.tcp_consume(sock, gone as u32).unwrap();
            consumed += gone;
            all_resumed(&host.hand_over(|_| {}));
            assert_eq!(host.edge.sockets.token(sock), Some(token(7)));
            assert_eq!(host.edge.tcp_send_bytes(sock, b"and back"), Ok(8));
            let mut back = [0; 8];
            peer.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"and back");
        }
        host.edge.tcp_shutdown(sock).unwrap();
        all_resumed(&host.hand_over(|_| {}));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        host.edge.close(sock, Close::Graceful);
        host.assert_no_slots();
    });
}

#[test]
fn events_that_the_former_owner_did_not_see_reach_the_successor() {
    everywhere(|mut host, at| {
        // Readable.
        let (sock, mut peer) = host.connected(token(1), at);
        peer.write_all(b"data").unwrap();
        arrived(&host, sock, 4);
        all_resumed(&host.hand_over(|_| {}));
        assert!(!host.wait(token(1), |r| r.readable && r.writable).error);
        assert_eq!(host.peek_bytes(sock, 0, 10), b"data");

        // The end, and after it a reset.
        peer.shutdown(Shutdown::Write).unwrap();
        let state = |host: &Host| match &host.edge.sockets.save().unwrap().slots[0].socket.as_ref().unwrap().kind {
            SocketKind::Tcp(s) => s.fingerprint.state,
            _ => unreachable!(),
        };
        while state(&host) != hibernet::sys::tcp::CLOSE_WAIT {
            std::thread::yield_now();
        }
        all_resumed(&host.hand_over(|_| {}));
        host.wait(token(1), |r| r.readable && r.peer_closed);
        assert_eq!(host.peek_bytes(sock, 0, 10), b"data");
        assert_eq!(host.edge.tcp_peek(sock, 4, 10), Ok(Peek::Eof));
        socket::set_linger_reset(peer.as_fd()).unwrap();
        drop(peer);
        while state(&host) != hibernet::sys::tcp::CLOSE {
            std::thread::yield_now();
        }
        all_resumed(&host.hand_over(|_| {}));
        host.wait(token(1), |r| r.error);
        assert_eq!(host.edge.take_error(sock), Some(SockError::Reset));
        host.edge.close(sock, Close::Reset);

        // A connect that ended; one that was refused.
        let listener = TcpListener::bind(at).unwrap();
        let to = Endpoint::from(listener.local_addr().unwrap());
        host.edge.tcp_connect(token(2), to, Source::ANY).unwrap();
        let (_peer, _) = listener.accept().unwrap();
        drop(listener);
        let refused = host.edge.tcp_connect(token(3), to, Source::ANY).unwrap();
        all_resumed(&host.hand_over(|_| {}));
        assert!(!host.wait(token(2), |r| r.writable).error);
        host.wait(token(3), |r| r.error);
        assert_eq!(host.edge.take_error(refused), Some(SockError::Refused));
    });
}

#[test]
fn what_a_peer_does_meanwhile_makes_nothing_stale() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(1), at);
        peer.write_all(&[1; 1000]).unwrap();
        arrived(&host, sock, 1000);
        // Acknowledged, received, ended, reset.
        let mut sent = 0;
        while host.edge.tcp_send_bytes(sock, &[7; 50_000]).is_ok_and(|n| n > 0) {
            sent += 1;
        }
        assert!(sent > 0);
        all_resumed(&host.hand_over(|_| peer.read_exact(&mut [0; 50_000]).unwrap()));
        all_resumed(&host.hand_over(|_| peer.write_all(&[2; 1000]).unwrap()));
        all_resumed(&host.hand_over(|host| {
            peer.shutdown(Shutdown::Write).unwrap();
            host.wait(token(1), |r| r.peer_closed);
        }));
        assert_eq!(host.peek_bytes(sock, 0, 3000).len(), 2000);
        host.edge.tcp_consume(sock, 1500).unwrap();
        all_resumed(&host.hand_over(|host| {
            socket::set_linger_reset(peer.as_fd()).unwrap();
            drop(peer);
            host.wait(token(1), |r| r.error);
        }));
        host.edge.close(sock, Close::Reset);

        // Reset while nothing was special.
        let (sock, peer) = host.connected(token(2), at);
        all_resumed(&host.hand_over(|host| {
            socket::set_linger_reset(peer.as_fd()).unwrap();
            drop(peer);
            host.wait(token(2), |r| r.error);
        }));
        host.edge.close(sock, Close::Reset);
    });
}

/// A listener that accepts nothing: it answers no SYN once its queue is full.
fn full_listener(at: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind(at).unwrap();
    socket::listen(listener.as_fd(), 0).unwrap();
    let to = listener.local_addr().unwrap();
    let filler = TcpStream::connect(to).unwrap();
    (listener, vec![filler])
}

#[test]
fn a_connect_under_way_ends_at_the_successor() {
    everywhere(|mut host, at| {
        let (listener, fillers) = full_listener(at);
        let to = Endpoint::from(listener.local_addr().unwrap());
        let sock = host.edge.tcp_connect(token(1), to, Source::ANY).unwrap();
        // The queue has room again while nobody looks; the SYN is repeated after a second.
        let fates = host.hand_over(|host| {
            let waiting = fillers.iter().map(|_| listener.accept().unwrap()).collect::<Vec<_>>();
            host.wait(token(1), |r| r.writable);
            drop(waiting);
        });
        assert_eq!(fates, [(sock, SocketFate::Resumed)]);
        assert!(!host.wait(token(1), |r| r.writable).error);
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(host.edge.tcp_send_bytes(sock, b"hello"), Ok(5));
        peer.read_exact(&mut [0; 5]).unwrap();
    });
}

#[test]
fn sockets_that_went_on_are_stale_and_stay_as_they_are() {
    everywhere(|mut host, at| {
        let (a, mut peer_a) = host.connected(token(1), at);
        let (b, mut peer_b) = host.connected(token(2), at);
        let (c, peer_c) = host.connected(token(3), at);
        let (d, mut peer_d) = host.connected(token(4), at);
        peer_b.write_all(b"read").unwrap();
        arrived(&host, b, 4);
        let state = host.edge.sockets.save().unwrap();
        host.edge.tcp_send_bytes(a, b"1").unwrap();
        host.edge.tcp_consume(b, 1).unwrap();
        host.edge.tcp_shutdown(c).unwrap();
        let mut copies = host.copies();
        let (mut other, fates) = Sockets::restore(state, None, None, &mut |id| copies.remove(&id.0).map(Supplied::Held)).unwrap();
        let stale = SocketFate::Stale;
        assert_eq!(fates, [(a, stale), (b, stale), (c, stale), (d, SocketFate::Resumed)]);
        assert_eq!((other.len(), other.token(a), other.token(d)), (1, None, Some(token(4))));
        assert_eq!(other.tcp_send(a, b"x"), Err(SockError::Other(libc::EBADF)));
        // The network that went on does not notice.
        peer_a.read_exact(&mut [0]).unwrap();
        host.edge.tcp_send_bytes(a, b"2").unwrap();
        let mut byte = [0];
        peer_a.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"2");
        assert_eq!(host.peek_bytes(b, 0, 10), b"ead");
        assert_eq!((&peer_c).read(&mut byte).unwrap(), 0);
        other.tcp_send(d, b"3").unwrap();
        peer_d.read_exact(&mut byte).unwrap();
    });
}

#[test]
fn what_is_not_the_socket_is_not_taken_for_it() {
    everywhere(|mut host, at| {
        let all: Vec<_> = (1..=5).map(|n| host.connected(token(n), at)).collect();
        let ids: Vec<_> = all.iter().map(|(id, _)| *id).collect();
        let (_, stranger) = host.connected(token(9), at);
        let state = host.edge.sockets.save().unwrap();
        let mut copies = host.copies();
        let mut supply = |id: SockId| match ids.iter().position(|i| *i == id) {
            Some(0) => None,
            Some(1) => Some(Supplied::Held(stranger.try_clone().unwrap().into())),
            Some(2) => Some(Supplied::Held(UdpSocket::bind(at).unwrap().into())),
            Some(3) => Some(Supplied::Held(std::fs::File::open("/dev/null").unwrap().into())),
            _ => copies.remove(&id.0).map(Supplied::Held),
        };
        let (new, fates) = Sockets::restore(state, None, None, &mut supply).unwrap();
        use SocketFate::{Missing, Resumed, Stale, Unusable};
        let expected = [Missing, Stale, Unusable(None), Unusable(Some(libc::ENOTSOCK)), Resumed, Resumed];
        assert_eq!(fates.iter().map(|(_, f)| *f).collect::<Vec<_>>(), expected);
        assert_eq!((new.len(), new.stats().closed), (2, 4));
        // Another socket that goes on in its place is welcome when it is said to be one.
        let state = host.edge.sockets.save().unwrap();
        let (new, fates) =
            Sockets::restore(state, None, None, &mut |_| Some(Supplied::Rebuilt(stranger.try_clone().unwrap().into()))).unwrap();
        all_resumed(&fates);
        drop(new);
    });
}

#[test]
fn datagrams_and_their_errors_go_on() {
    everywhere(|mut host, at| {
        let peer = UdpSocket::bind(at).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = Endpoint::from(peer.local_addr().unwrap());
        let sock = host.edge.udp_open(udp(1), to, Source::ANY).unwrap();
        let send = |host: &mut Host, bytes: &[u8]| {
            let p = host.stash(bytes);
            host.edge.udp_send(sock, p, &opts()).unwrap();
            host.edge.release(p);
        };
        send(&mut host, b"one");
        send(&mut host, b"two");
        host.edge.flush();
        let mut bytes = [0; 10];
        let (_, from) = peer.recv_from(&mut bytes).unwrap();
        peer.recv_from(&mut bytes).unwrap();
        peer.send_to(b"three", from).unwrap();
        all_resumed(&host.hand_over(|_| {}));
        host.wait(udp(1), |r| r.readable);
        let mut out = [None; 4];
        assert_eq!(host.edge.udp_recv(sock, &mut out).unwrap(), 1);
        assert_eq!(host.take(out[0].unwrap().payload), b"three");
        // Options that are set already are known to be.
        let before = host.edge.sockets.save().unwrap();
        send(&mut host, b"four");
        host.edge.flush();
        assert_eq!(before, host.edge.sockets.save().unwrap());
        peer.recv_from(&mut bytes).unwrap();
        drop(peer);
        send(&mut host, b"nobody");
        host.edge.flush();
        all_resumed(&host.hand_over(|_| {}));
        host.wait(udp(1), |r| r.error);
        let report = host.edge.take_report(sock).unwrap();
        assert_eq!(host.take(report.payload), b"nobody");
        host.assert_no_slots();
    });
}

#[test]
fn what_waited_to_be_handed_out_is_handed_out_by_the_successor() {
    let mut host = Host::new();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sock = host.edge.udp_open(udp(1), Endpoint::from(peer.local_addr().unwrap()), Source::ANY).unwrap();
    // No slot is free to receive into, so the event is put off.
    peer.send_to(b"x", SocketAddr::from(([127, 0, 0, 1], local_port(&host, sock)))).unwrap();
    host.wait(udp(1), |r| r.readable);
    let slots: Vec<u32> = std::iter::from_fn(|| host.edge.slots.take()).collect();
    assert_eq!(host.edge.udp_recv(sock, &mut [None]).unwrap(), 0);
    slots.into_iter().for_each(|s| host.edge.slots.give(s));
    // An error of a gathered datagram that stands in no error queue: too long for any path.
    let fd = host.edge.sockets.descriptors().next().unwrap().1;
    socket::set_option(fd, libc::SOL_SOCKET, libc::SO_BROADCAST, 0).unwrap();
    let to = Endpoint::new("255.255.255.255".parse().unwrap(), 9);
    let broadcast = host.edge.udp_open(udp(2), to, Source::ANY);
    assert!(broadcast.is_err(), "{broadcast:?}");
    let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (published, _) = host.edge.sockets.udp_listener(listener.into()).unwrap();
    let token = Token::new(TokenKind::UdpListener, 0, 0);
    host.edge.sockets.listen(published, token).unwrap();
    let p = host.stash(b"to all");
    host.edge.udp_send(published, p, &SendOpts { to: Some(to), ..opts() }).unwrap();
    host.edge.release(p);
    host.edge.flush();
    assert!(host.edge.sockets.has_notices());
    let state = host.edge.sockets.save().unwrap();
    assert_eq!(
        state.notices.iter().map(|n| (n.id, n.readable, n.error)).collect::<Vec<_>>(),
        [(sock.0, true, false), (published.0, false, true)]
    );
    all_resumed(&host.hand_over(|_| {}));
    assert!(host.edge.sockets.has_notices());
    host.wait(token, |r| r.error);
    assert!(host.edge.take_report(published).is_some());
    host.assert_no_slots();
}

fn local_port(host: &Host, sock: SockId) -> u16 {
    let fd = host.edge.sockets.descriptors().find(|(id, _)| *id == sock).unwrap().1;
    socket::local_addr(fd).unwrap().port()
}

#[test]
fn ids_are_given_out_as_they_would_have_been() {
    let mut host = Host::new();
    let at = "127.0.0.1:0".parse().unwrap();
    let mut open: Vec<SockId> = (0..20).map(|n| host.connected(token(n), at).0).collect();
    for i in [3, 17, 5, 4] {
        host.edge.close(open[i], Close::Reset);
    }
    let (again, _) = host.connected(token(30), at);
    open.retain(|id| host.edge.sockets.token(*id).is_some());
    open.push(again);
    let state = host.edge.sockets.save().unwrap();
    assert_eq!(state, host.edge.sockets.save().unwrap());
    assert_eq!(state.free.len(), 3);
    let mut copies = host.copies();
    let (new, fates) = Sockets::restore(state.clone(), None, None, &mut |id| copies.remove(&id.0).map(Supplied::Held)).unwrap();
    all_resumed(&fates);
    assert_eq!(new.save().unwrap(), state);
    assert_eq!(new.stats(), host.edge.sockets.stats());
    let mut twin = Host::new();
    twin.replace(new);
    for n in 40..46 {
        assert_eq!(host.connected(token(n), at).0, twin.connected(token(n), at).0);
    }
    for id in open {
        assert_eq!(host.edge.sockets.token(id), twin.edge.sockets.token(id));
    }
}

#[test]
fn released_sockets_are_not_ended() {
    let mut host = Host::new();
    let (sock, mut peer) = host.connected(token(1), "127.0.0.1:0".parse().unwrap());
    let held: Vec<(SockId, OwnedFd)> = host.replace(Sockets::new(None, None).unwrap()).release();
    assert_eq!(held.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [sock]);
    peer.write_all(b"still there").unwrap();
    peer.set_nonblocking(true).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(socket::send(held[0].1.as_fd(), b"yes").unwrap(), 3);
    drop(held);
    peer.set_nonblocking(false).unwrap();
    let mut all = Vec::new();
    // Data that nobody had read: the kernel resets.
    assert!(peer.read_to_end(&mut all).is_err() || all == b"yes");
}

/// A state of one socket of each kind, and a free slot.
fn sample() -> SocketsState {
    let mut host = Host::new();
    let (gone, _) = host.connected(token(1), "127.0.0.1:0".parse().unwrap());
    host.connected(token(2), "127.0.0.1:0".parse().unwrap());
    let to = Endpoint::new("127.0.0.1".parse().unwrap(), 9);
    host.edge.udp_open(udp(3), to, Source::ANY).unwrap();
    let mut state = host.edge.sockets.save().unwrap();
    host.edge.close(gone, Close::Reset);
    let raw = |n: u32, ident| {
        let text = format!(r#"{{"RawPing":{{"to":"127.0.0.1","from":null,"ident":{ident}}}}}"#);
        let kind = serde_json::from_str(&text).unwrap();
        let mut socket = state.slots[1].socket.clone().unwrap();
        socket.token = Some(Token::new(TokenKind::Icmp, n, 1).bits());
        socket.kind = kind;
        SlotState { generation: 5, socket: Some(socket) }
    };
    let more = [raw(1, 7), raw(2, 8)];
    state = host.edge.sockets.save().unwrap();
    state.slots.extend(more);
    state
}

fn refused(change: impl FnOnce(&mut SocketsState)) -> HoldError {
    let mut state = sample();
    change(&mut state);
    Sockets::restore(state, None, None, &mut |_| panic!("something was taken")).unwrap_err()
}

#[test]
fn impossible_states_are_refused_before_anything_is_taken() {
    let (_, fates) = Sockets::restore(sample(), None, None, &mut |_| None).unwrap();
    assert_eq!(fates.iter().map(|(_, f)| *f).collect::<Vec<_>>(), [SocketFate::Missing; 4]);
    let socket = |s: &mut SocketsState, i: usize, token: Option<u64>| s.slots[i].socket.as_mut().unwrap().token = token;
    let tcp = token(5).bits();
    type Change = Box<dyn FnOnce(&mut SocketsState)>;
    let changes: [(&str, Change); 14] = [
        ("free twice", Box::new(|s| s.free.push(0))),
        ("free twice", Box::new(|s| s.free[0] = 1)),
        ("free twice", Box::new(|s| s.free[0] = u32::MAX)),
        ("neither free nor in use", Box::new(|s| s.free.clear())),
        ("neither free nor in use", Box::new(|s| s.slots[2].socket = None)),
        ("generation", Box::new(|s| s.slots[1].generation = 4096)),
        ("token is none", Box::new(move |s| socket(s, 1, Some(9)))),
        ("another kind", Box::new(move |s| socket(s, 1, Some(udp(5).bits())))),
        ("another kind", Box::new(move |s| socket(s, 2, Some(tcp)))),
        ("another kind", Box::new(move |s| socket(s, 3, Some(tcp)))),
        ("another kind", Box::new(move |s| socket(s, 3, None))),
        ("identifier in use twice", Box::new(|s| s.slots[4].socket = s.slots[3].socket.clone())),
        ("more events", Box::new(|s| s.notices = vec![notice(0); 6])),
        ("at most 1048576", Box::new(|s| s.slots.resize((1 << 20) + 1, SlotState { generation: 0, socket: None }))),
    ];
    for (expected, change) in changes {
        let e = refused(change).to_string();
        assert!(e.contains(expected), "{e}, not {expected}");
    }
}

fn notice(id: u32) -> hibernet::sock::Notice {
    hibernet::sock::Notice { id, readable: true, peer_closed: true, error: true }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever numbers a damaged image has: refused, or sockets that work.
    #[test]
    fn damaged_states_do_no_harm(
        changes in proptest::collection::vec((0usize..8, any::<prop::sample::Index>(), any::<u64>()), 1..4),
    ) {
        static SAMPLE: std::sync::OnceLock<SocketsState> = std::sync::OnceLock::new();
        let mut state = SAMPLE.get_or_init(sample).clone();
        for (what, index, value) in changes {
            let count = state.slots.len();
            let slot = &mut state.slots[index.index(count)];
            match (what, &mut slot.socket) {
                (0, _) => slot.generation = value as u16,
                (1, s) => *s = None,
                (2, Some(s)) => s.token = Some(value),
                (3, Some(s)) => s.token = None,
                (4, _) => state.free.push(value as u32 % 8),
                (5, _) => state.free.truncate(value as usize % 2),
                (6, _) => state.notices.push(notice(value as u32)),
                (_, _) => state.slots.truncate(value as usize % 6),
            }
            if state.slots.is_empty() {
                break;
            }
        }
        if let Ok((mut s, fates)) = Sockets::restore(state, None, None, &mut |_| None) {
            prop_assert!(s.is_empty() && fates.iter().all(|(_, f)| *f == SocketFate::Missing));
            let mut slots = hibernet::slots::Slots::new(4).unwrap();
            s.poll(&mut slots, &mut Vec::new());
            let fd = TcpListener::bind("127.0.0.1:0").unwrap().into();
            let id = s.accept(fd, false).unwrap();
            s.close(&mut slots, id, Close::Reset);
            prop_assert_eq!(slots.in_use(), 0);
        }
    }
}
