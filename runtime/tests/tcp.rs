//! TCP flow sockets against real peers on the loopback.

mod common;

use common::{Host, PATIENCE, loopbacks, token};
use hibernet::sys::socket;
use hibernet_netstack::edge::{Close, HostSockets, Peek, SockError, Source};
use hibernet_netstack::tuple::Endpoint;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

/// Bytes that tell where in the stream they stand.
fn stream(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

/// Runs a case with the kernel's peek offset and without, over both families.
fn everywhere(case: impl Fn(Host, SocketAddr)) {
    for at in loopbacks() {
        case(Host::new(), at);
        let mut host = Host::new();
        host.edge.sockets.disable_peek_offset();
        case(host, at);
    }
}

#[test]
fn peeks_at_any_offset_and_leaves_the_data() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(1), at);
        peer.write_all(&stream(0, 10_000)).unwrap();
        // In order, as it is sent to a guest; then back, as after a loss; then on again.
        for (offset, max) in [(0, 4000), (4000, 4000), (8000, 2000), (0, 100), (5000, 10), (5010, 10), (1, 9999)] {
            assert_eq!(host.peek_bytes(sock, offset, max), stream(offset as usize, max as usize), "{offset}");
        }
        assert_eq!(host.edge.tcp_peek(sock, 10_000, 100), Ok(Peek::Empty));
        host.assert_no_slots();
    });
}

#[test]
fn consuming_moves_the_stream_under_the_offset() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(1), at);
        let mut written = 0;
        let mut consumed = 0;
        // Peeks run ahead of what is consumed by a varying distance, as they do with a guest's window.
        for round in 0..200usize {
            let n = 1 + round * 37 % 3000;
            peer.write_all(&stream(written, n)).unwrap();
            written += n;
            let ahead = written - consumed - n;
            let mut got = Vec::new();
            while got.len() < n {
                got.extend(host.peek_bytes(sock, (ahead + got.len()) as u32, (n - got.len()) as u32));
            }
            assert_eq!(got, stream(written - n, n), "round {round}");
            let gone = (written - consumed) * (round % 4) / 3;
            host.edge.tcp_consume(sock, gone as u32).unwrap();
            consumed += gone;
            if round % 10 == 9 && consumed < written {
                assert_eq!(host.peek_bytes(sock, 0, 50), stream(consumed, 50.min(written - consumed)));
            }
        }
        host.assert_no_slots();
    });
}

#[test]
fn the_end_of_the_stream_stands_behind_the_last_byte() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(1), at);
        peer.write_all(&stream(0, 3000)).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        host.wait(token(1), |r| r.peer_closed);
        assert_eq!(host.peek_bytes(sock, 0, 3000), stream(0, 3000));
        assert_eq!(host.edge.tcp_peek(sock, 3000, 3000), Ok(Peek::Eof));
        assert_eq!(host.peek_bytes(sock, 1000, 2000), stream(1000, 2000));
        host.edge.tcp_consume(sock, 2000).unwrap();
        assert_eq!(host.peek_bytes(sock, 0, 3000), stream(2000, 1000));
        assert_eq!(host.edge.tcp_peek(sock, 1000, 10), Ok(Peek::Eof));
        host.edge.tcp_consume(sock, 1000).unwrap();
        assert_eq!(host.edge.tcp_peek(sock, 0, 10), Ok(Peek::Eof));
        // Half-closed: the other direction goes on.
        assert_eq!(host.edge.tcp_send_bytes(sock, b"still here"), Ok(10));
        let mut b = [0; 10];
        peer.read_exact(&mut b).unwrap();
        host.edge.tcp_shutdown(sock).unwrap();
        assert_eq!(peer.read(&mut b).unwrap(), 0);
        host.assert_no_slots();
    });
}

#[test]
fn large_peeks_come_up_to_a_slot() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(1), at);
        const ALL: usize = 1 << 20;
        let writer = std::thread::spawn(move || peer.write_all(&stream(0, ALL)).map(|()| peer));
        let (mut seen, mut consumed) = (0, 0);
        let until = Instant::now() + PATIENCE;
        while seen < ALL {
            match host.edge.tcp_peek(sock, (seen - consumed) as u32, u32::MAX).unwrap() {
                Peek::Data(p) => {
                    let b = host.take(p);
                    assert!(b.len() <= hibernet::sock::PEEK_MAX);
                    assert_eq!(b, stream(seen, b.len()), "at {seen}");
                    seen += b.len();
                    // Some of it stays unacknowledged for a while.
                    let gone = (seen - consumed).saturating_sub(24 << 10);
                    host.edge.tcp_consume(sock, gone as u32).unwrap();
                    consumed += gone;
                }
                Peek::Empty => {
                    // A small receive buffer opens no window before more of it is free: the guest has acknowledged everything.
                    host.edge.tcp_consume(sock, (seen - consumed) as u32).unwrap();
                    consumed = seen;
                    host.poll(until);
                }
                Peek::Eof => panic!("end at {seen}"),
            }
        }
        writer.join().unwrap().unwrap();
        host.assert_no_slots();
    });
}

#[test]
fn a_run_of_peeks_gives_what_single_ones_would() {
    everywhere(|mut host, at| {
        const ALL: usize = 3 << 20;
        let (sock, mut peer) = host.connected(token(1), at);
        let (other, mut other_peer) = host.connected(token(2), at);
        let writer = std::thread::spawn(move || peer.write_all(&stream(0, ALL)).map(|()| peer));
        other_peer.write_all(&stream(0, 5000)).unwrap();
        let (mut seen, mut consumed, mut turn) = (0, 0, 0_usize);
        let until = Instant::now() + PATIENCE;
        while seen < ALL {
            turn += 1;
            // Lengths change now and then, as windows do.
            let len = [64 << 10, 64 << 10, 64 << 10, 1460, 10_000][turn / 50 % 5];
            match host.edge.tcp_peek_run(sock, (seen - consumed) as u32, len, 20 * len, None).unwrap() {
                Peek::Data(p) => {
                    let b = host.take(p);
                    assert!(!b.is_empty() && b.len() <= len as usize);
                    assert_eq!(b, stream(seen, b.len()), "at {seen}");
                    seen += b.len();
                }
                Peek::Empty => {
                    host.edge.tcp_consume(sock, (seen - consumed) as u32).unwrap();
                    consumed = seen;
                    host.poll(until);
                }
                Peek::Eof => panic!("end at {seen}"),
            }
            match turn % 17 {
                // Something is sent again, from the first byte that is not consumed.
                0 if seen > consumed => {
                    let b = host.peek_bytes(sock, 0, 100);
                    assert_eq!(b, stream(consumed, b.len()), "again, at {consumed}");
                }
                // Another flow has its turn.
                5 => assert_eq!(host.peek_bytes(other, 1000, 3000), stream(1000, 3000)),
                9 => {
                    let n = (seen - consumed) / 2;
                    host.edge.tcp_consume(sock, n as u32).unwrap();
                    consumed += n;
                }
                _ => {}
            }
        }
        assert_eq!(host.edge.tcp_peek_run(sock, (seen - consumed) as u32, 1000, 1000, None), Ok(Peek::Empty));
        drop(writer.join().unwrap().unwrap());
        assert_eq!(host.peek(sock, (seen - consumed) as u32, 1000), Ok(Peek::Eof));
        host.edge.close(sock, Close::Reset);
        host.assert_no_slots();
    });
}

#[test]
fn what_was_read_ahead_is_forgotten_with_its_socket() {
    let mut host = Host::new();
    let (sock, mut peer) = host.connected(token(1), loopbacks()[0]);
    peer.write_all(&stream(0, 60_000)).unwrap();
    while host.peek_bytes(sock, 59_999, 1).is_empty() {}
    assert_eq!(host.peek_bytes(sock, 0, 10_000), stream(0, 10_000));
    let Ok(Peek::Data(p)) = host.edge.tcp_peek_run(sock, 10_000, 10_000, 300_000, None) else {
        panic!("nothing behind the first piece")
    };
    assert_eq!(host.take(p), stream(10_000, 10_000));
    assert_eq!(host.edge.slots.in_use(), 4, "the whole pieces behind it were read too");
    host.edge.close(sock, Close::Reset);
    host.assert_no_slots();
}

#[test]
fn urgent_data_stay_in_the_stream_and_come_once() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(1), at);
        let mut sent = Vec::new();
        for i in 0..5u8 {
            peer.write_all(&[i; 100]).unwrap();
            sent.extend([i; 100]);
            assert_eq!(socket::send_urgent(peer.as_fd(), &[200 + i]).unwrap(), 1);
            sent.push(200 + i);
        }
        peer.write_all(b"end").unwrap();
        sent.extend(b"end");
        let sent_len = sent.len();
        let until = Instant::now() + PATIENCE;
        let (mut seen, mut consumed) = (Vec::new(), 0);
        while seen.len() < sent_len {
            match host.edge.tcp_peek(sock, (seen.len() - consumed) as u32, 64 << 10).unwrap() {
                Peek::Data(p) => seen.extend(host.take(p)),
                Peek::Empty => {
                    // Either they are still to come, or they wait behind a mark until those before it are consumed, which is reported then.
                    assert!(Instant::now() < until, "stuck at {}", seen.len());
                    host.edge.tcp_consume(sock, (seen.len() - consumed) as u32).unwrap();
                    consumed = seen.len();
                    host.wait(token(1), |r| r.readable);
                }
                Peek::Eof => panic!("end at {}", seen.len()),
            }
            // What was peeked before is still the same.
            let part = (seen.len() - consumed) / 2;
            if part > 0 {
                assert_eq!(host.peek_bytes(sock, part as u32, 7)[0], seen[consumed + part]);
            }
        }
        assert_eq!(seen, sent);
        host.edge.tcp_consume(sock, (sent_len - consumed) as u32).unwrap();
        assert_eq!(host.edge.tcp_peek(sock, 0, 100), Ok(Peek::Empty));
        host.assert_no_slots();
    });
}

#[test]
fn room_for_sending_is_not_promised_too_high() {
    for at in loopbacks() {
        for chunk in [100, 1448, 9000, 65_483] {
            let mut host = Host::new();
            let (sock, mut peer) = host.connected(token(1), at);
            let data = vec![7; 65_536];
            let mut sent = 0;
            // The peer does not read: sooner or later the socket is full. Until then every promise is kept.
            loop {
                let space = host.edge.tcp_space(sock);
                assert!(host.edge.tcp_unacked(sock) as usize <= sent);
                let mut promised = space as usize;
                if promised == 0 {
                    break;
                }
                while promised > 0 {
                    let n = promised.min(chunk);
                    assert_eq!(host.edge.tcp_send_bytes(sock, &data[..n]), Ok(n), "of {} in pieces of {chunk}", space);
                    promised -= n;
                    sent += n;
                }
            }
            assert!(host.edge.tcp_unacked(sock) > 0);
            // And once the peer reads, there is room again, which is reported if a call came up short.
            while let n @ 1.. = host.edge.tcp_send_bytes(sock, &data).unwrap() {
                sent += n;
            }
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut b = vec![0; 1 << 20];
            let mut read = 0;
            while read < sent {
                read += peer.read(&mut b).unwrap();
            }
            host.wait(token(1), |r| r.writable);
            assert!(host.edge.tcp_send_bytes(sock, &data).unwrap() > 0);
        }
    }
}

#[test]
fn status_of_a_connection() {
    for at in loopbacks() {
        let mut host = Host::new();
        let (sock, mut peer) = host.connected(token(1), at);
        host.edge.tcp_send_bytes(sock, b"x").unwrap();
        peer.read_exact(&mut [0]).unwrap();
        let s = host.edge.tcp_status(sock);
        assert!(s.established && s.mss >= 1000 && !s.rtt.is_zero(), "{s:?}");
        assert!(s.peer_window.is_some_and(|w| w >= 10_000), "{s:?}");
        let until = Instant::now() + PATIENCE;
        while host.edge.tcp_unacked(sock) > 0 {
            assert!(Instant::now() < until);
        }
    }
}

#[test]
fn a_reset_close_is_seen_as_reset() {
    for at in loopbacks() {
        let mut host = Host::new();
        let (sock, mut peer) = host.connected(token(1), at);
        host.edge.close(sock, Close::Reset);
        let e = peer.read(&mut [0]).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ECONNRESET));

        let (sock, mut peer) = host.connected(token(2), at);
        host.edge.tcp_send_bytes(sock, b"last words").unwrap();
        host.edge.close(sock, Close::Graceful);
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"last words");
        assert!(host.edge.sockets.is_empty());
    }
}

#[test]
fn a_reset_by_the_peer_is_an_error() {
    everywhere(|mut host, at| {
        let (sock, peer) = host.connected(token(1), at);
        socket::set_linger_reset(peer.as_fd()).unwrap();
        drop(peer);
        host.wait(token(1), |r| r.error);
        assert_eq!(host.edge.take_error(sock), Some(SockError::Reset));
        assert_eq!(host.edge.take_error(sock), None);
    });
}

/// The error of a connect, whether it comes at once or later.
fn connect_error(host: &mut Host, to: SocketAddr) -> SockError {
    match host.edge.tcp_connect(token(1), Endpoint::from(to), Source::ANY) {
        Err(e) => e,
        Ok(sock) => {
            host.wait(token(1), |r| r.error);
            let e = host.edge.take_error(sock).unwrap();
            host.edge.close(sock, Close::Reset);
            e
        }
    }
}

#[test]
fn connects_that_fail() {
    let mut host = Host::new();
    for at in loopbacks() {
        let closed = TcpListener::bind(at).unwrap().local_addr().unwrap();
        assert_eq!(connect_error(&mut host, closed), SockError::Refused);
    }
    // A broadcast address is refused by the kernel before anything is sent; class E has no route.
    let broadcast = "255.255.255.255:9".parse().unwrap();
    assert!(matches!(connect_error(&mut host, broadcast), SockError::NetUnreachable | SockError::Prohibited));
    assert!(host.edge.sockets.is_empty());
}

#[test]
fn accepted_sockets_are_silent_until_adopted() {
    for at in loopbacks() {
        let listener = TcpListener::bind(at).unwrap();
        hibernet::sock::prepare_tcp(listener.as_fd()).unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.write_all(b"hello").unwrap();
        let (fd, _) = socket::accept(listener.as_fd()).unwrap();
        // Inherited from the listener.
        assert_eq!(socket::get_int(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY).unwrap(), 1);
        assert_eq!(socket::get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE).unwrap(), 1);
        let mut host = Host::new();
        let sock = host.edge.sockets.accept(fd, at.is_ipv6()).unwrap();
        assert!(host.edge.sockets.is_silent(sock));
        host.edge.tcp_adopt(sock, token(9)).unwrap();
        host.wait(token(9), |r| r.readable && r.writable);
        assert_eq!(host.peek_bytes(sock, 0, 100), b"hello");
    }
}

#[test]
fn events_of_closed_sockets_reach_nobody() {
    let mut host = Host::new();
    let at = loopbacks()[0];
    let (first, mut peer) = host.connected(token(1), at);
    peer.write_all(b"x").unwrap();
    peer.flush().unwrap();
    host.edge.close(first, Close::Reset);
    // The same slot, another generation.
    let (second, _peer) = host.connected(token(2), at);
    assert_ne!(first, second);
    assert_eq!(host.edge.sockets.token(first), None);
    assert_eq!(host.edge.tcp_send_bytes(first, b"x"), Err(SockError::Other(libc::EBADF)));
    assert_eq!(host.edge.tcp_peek(first, 0, 1), Err(SockError::Other(libc::EBADF)));
    host.edge.close(first, Close::Reset);
    assert_eq!(host.edge.sockets.token(second), Some(token(2)));
}

#[test]
fn what_comes_after_an_empty_look_is_an_event() {
    everywhere(|mut host, at| {
        let (sock, mut peer) = host.connected(token(1), at);
        let mut total = 0;
        for round in 0..50usize {
            peer.write_all(&stream(total, 10 + round)).unwrap();
            host.wait(token(1), |r| r.readable);
            assert_eq!(host.peek_bytes(sock, 0, 1000), stream(total, 10 + round));
            assert_eq!(host.edge.tcp_peek(sock, 10 + round as u32, 1000), Ok(Peek::Empty));
            // The place moves with what is consumed, and what lies before it can still be read.
            host.edge.tcp_consume(sock, 10).unwrap();
            assert_eq!(host.edge.tcp_peek(sock, round as u32, 1000), Ok(Peek::Empty));
            if round > 0 {
                assert_eq!(host.peek_bytes(sock, 0, 1000), stream(total + 10, round));
            }
            host.edge.tcp_consume(sock, round as u32).unwrap();
            total += 10 + round;
        }
        peer.write_all(b"end").unwrap();
        drop(peer);
        host.wait(token(1), |r| r.peer_closed);
        assert_eq!(host.peek_bytes(sock, 0, 1000), b"end");
        assert_eq!(host.edge.tcp_peek(sock, 3, 1000), Ok(Peek::Eof));
        host.assert_no_slots();
    });
}

#[test]
fn without_a_free_slot_the_read_is_put_off() {
    let mut host = Host::new();
    let (sock, mut peer) = host.connected(token(1), loopbacks()[0]);
    peer.write_all(b"x").unwrap();
    host.wait(token(1), |r| r.readable);
    let all: Vec<u32> = std::iter::from_fn(|| host.edge.slots.take()).collect();
    assert_eq!(host.edge.tcp_peek(sock, 0, 1), Ok(Peek::Empty));
    all.into_iter().for_each(|s| host.edge.slots.give(s));
    host.wait(token(1), |r| r.readable);
    assert_eq!(host.peek_bytes(sock, 0, 1), b"x");
}
