//! UDP flow sockets and published UDP ports against real peers on the loopback.

mod common;

use common::{Host, PATIENCE, loopbacks};
use hibernet::sys::socket::{self, set_option};
use hibernet_netstack::edge::{Close, Datagram, HostSockets, Payload, PayloadStore, SendOpts, SockId, Source, Token, TokenKind};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::wire::icmp::{v4, v6};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Instant;

fn token(n: u32) -> Token {
    Token::new(TokenKind::Udp, n, 1)
}

fn opts() -> SendOpts {
    SendOpts { hop_limit: 63, tos: 0, segment: None, to: None, from: None, dont_fragment: true }
}

fn peer(at: SocketAddr) -> (UdpSocket, Endpoint) {
    let s = UdpSocket::bind(at).unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    let at = Endpoint::from(s.local_addr().unwrap());
    (s, at)
}

/// Sends a datagram and gives its handle back at once, as the worker does with a frame.
fn send(host: &mut Host, sock: SockId, bytes: &[u8], opts: &SendOpts) {
    let p = host.stash(bytes);
    host.edge.udp_send(sock, p, opts).unwrap();
    host.edge.release(p);
}

/// Receives `n` datagrams, merged ones cut again.
fn receive(host: &mut Host, sock: SockId, n: usize) -> Vec<(Datagram, Vec<u8>)> {
    let until = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while all.len() < n {
        assert!(Instant::now() < until, "{} of {n} datagrams", all.len());
        let mut out = [None; 8];
        let got = host.edge.udp_recv(sock, &mut out).unwrap();
        for d in out[..got].iter().flatten() {
            let bytes = host.take(d.payload);
            for part in bytes.chunks(d.segment.map_or(bytes.len().max(1), usize::from)) {
                all.push((*d, part.to_vec()));
            }
        }
        if got == 0 {
            host.poll(until);
        }
    }
    all
}

#[test]
fn a_burst_waits_in_the_socket_as_long_as_the_host_lets_it() {
    let limit: usize = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
    // The kernel takes about 2.3 KiB for each; by default it holds some 90 of them.
    let n = limit.min(2 << 20) * 2 / 4096;
    for at in loopbacks() {
        let (peer, to) = peer(at);
        let mut host = Host::new();
        let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
        send(&mut host, sock, b"where are you?", &opts());
        host.edge.flush();
        let (_, from) = peer.recv_from(&mut [0; 100]).unwrap();
        for i in 0..n {
            peer.send_to(&numbered(i, 1300), from).unwrap();
        }
        for (i, (_, bytes)) in receive(&mut host, sock, n).into_iter().enumerate() {
            assert_eq!(bytes, numbered(i, 1300));
        }
    }
}

fn numbered(i: usize, len: usize) -> Vec<u8> {
    (0..len).map(|j| (i * 31 + j) as u8).collect()
}

#[test]
fn gathered_datagrams_arrive_whole_and_in_order() {
    for at in loopbacks() {
        let (peer, to) = peer(at);
        let mut host = Host::new();
        let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
        // Equal ones, a shorter end, singles, empty ones, more than one batch.
        let lens: Vec<usize> =
            [vec![1200; 10], vec![600], vec![1, 2, 3, 3, 3, 0, 0, 7], vec![1400; 70], vec![5000, 5000]].concat();
        for (i, &len) in lens.iter().enumerate() {
            send(&mut host, sock, &numbered(i, len), &opts());
        }
        host.edge.flush();
        host.assert_no_slots();
        let mut buf = [0; 65_536];
        for (i, &len) in lens.iter().enumerate() {
            let n = peer.recv(&mut buf).unwrap();
            assert_eq!(buf[..n], numbered(i, len), "datagram {i}");
        }
        assert!(host.edge.sockets.stats().sent_together > 60);
    }
}

#[test]
fn gathered_datagrams_are_held_until_they_are_sent() {
    let (peer, to) = peer(loopbacks()[0]);
    let mut host = Host::new();
    let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
    send(&mut host, sock, b"one", &opts());
    assert_eq!(host.edge.slots.in_use(), 1);
    // Another socket ends the batch of the first; closing ends the batch too.
    let other = host.edge.udp_open(token(2), to, Source::ANY).unwrap();
    send(&mut host, other, b"two", &opts());
    let mut buf = [0; 16];
    assert_eq!(peer.recv(&mut buf).unwrap(), 3);
    host.edge.close(other, Close::Graceful);
    assert_eq!(peer.recv(&mut buf).unwrap(), 3);
    host.assert_no_slots();
}

#[test]
fn super_datagrams_are_cut() {
    for at in loopbacks() {
        let (peer, to) = peer(at);
        let mut host = Host::new();
        let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
        let all = numbered(0, 60_100);
        send(&mut host, sock, &all, &SendOpts { segment: Some(1000), ..opts() });
        let mut buf = [0; 65_536];
        for part in all.chunks(1000) {
            let n = peer.recv(&mut buf).unwrap();
            assert_eq!(&buf[..n], part);
        }
        host.assert_no_slots();
    }
}

#[test]
fn merged_datagrams_are_received_with_their_size() {
    for at in loopbacks() {
        let (peer, to) = peer(at);
        let mut host = Host::new();
        let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
        send(&mut host, sock, b"hello", &opts());
        host.edge.flush();
        let mut buf = [0; 100];
        let (_, back) = peer.recv_from(&mut buf).unwrap();
        // The peer is one of ours too, so that it sends super-datagrams.
        peer.connect(back).unwrap();
        set_option(peer.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 500).unwrap();
        let all = numbered(3, 5200);
        peer.send(&all).unwrap();
        let got = receive(&mut host, sock, 11);
        assert!(got.iter().any(|(d, _)| d.segment == Some(500)), "nothing was merged");
        assert_eq!(got.iter().flat_map(|(_, b)| b.clone()).collect::<Vec<_>>(), all);
        assert!(got.iter().all(|(d, _)| d.from == to));
        host.assert_no_slots();
    }
}

#[test]
fn a_closed_port_is_reported_with_the_datagram() {
    for at in loopbacks() {
        let (closed, to) = peer(at);
        drop(closed);
        let mut host = Host::new();
        let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
        send(&mut host, sock, b"anybody there?", &opts());
        host.edge.flush();
        host.wait(token(1), |r| r.error);
        let r = host.edge.take_report(sock).unwrap();
        let want = if at.is_ipv4() { (v4::UNREACHABLE, v4::unreachable::PORT) } else { (v6::UNREACHABLE, v6::unreachable::PORT) };
        assert_eq!((r.icmp.ty, r.icmp.code), want);
        assert_eq!((r.offender, r.destination), (Some(at.ip()), Some(to)));
        assert_eq!(host.take(r.payload), b"anybody there?");
        assert!(host.edge.take_report(sock).is_none());
        // The socket still works: the error was the earlier datagram's.
        let mut out = [None; 4];
        assert_eq!(host.edge.udp_recv(sock, &mut out), Ok(0));
        send(&mut host, sock, b"again", &opts());
        host.edge.flush();
        host.wait(token(1), |r| r.error);
        // Unread reports do not keep datagrams from being sent.
        let peer = UdpSocket::bind(SocketAddr::from(to)).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        send(&mut host, sock, b"now", &opts());
        host.edge.flush();
        let mut buf = [0; 16];
        assert_eq!(peer.recv(&mut buf).unwrap(), 3);
        let r = host.edge.take_report(sock).unwrap();
        host.edge.release(r.payload);
        host.assert_no_slots();
    }
}

#[test]
fn too_long_for_the_path_is_reported_with_the_mtu() {
    // The loopback's MTU is 65,536 (ICMP tells guests 65,535), so only IPv6's largest datagrams do not fit: the host's own error.
    for at in loopbacks().into_iter().filter(SocketAddr::is_ipv6) {
        let (peer, to) = peer(at);
        let mut host = Host::new();
        let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
        send(&mut host, sock, &[1; 65_520], &opts());
        host.edge.flush();
        host.wait(token(1), |r| r.error);
        let r = host.edge.take_report(sock).unwrap();
        assert_eq!((r.icmp.ty, r.icmp.rest, r.offender), (v6::TOO_BIG, 65_535, None));
        host.edge.release(r.payload);
        assert!(host.edge.take_report(sock).is_none());
        // Without don't-fragment it goes, in fragments.
        send(&mut host, sock, &[1; 65_520], &SendOpts { dont_fragment: false, ..opts() });
        host.edge.flush();
        let mut buf = vec![0; 65_536];
        assert_eq!(peer.recv(&mut buf).unwrap(), 65_520);
    }
}

#[test]
fn the_source_port_is_kept_where_possible() {
    for at in loopbacks() {
        let (first, to_first) = peer(at);
        let (second, to_second) = peer(at);
        let (taken, _) = peer(SocketAddr::new(hibernet::sys::addr::unspecified(at.ip()), 0));
        let taken = taken.local_addr().unwrap().port();
        let wish = {
            let (free, _) = peer(SocketAddr::new(hibernet::sys::addr::unspecified(at.ip()), 0));
            free.local_addr().unwrap().port()
        };
        let mut host = Host::new();
        let mut buf = [0; 16];
        // Two flows of one guest port, to different peers.
        for (n, (s, to)) in [(&first, to_first), (&second, to_second)].into_iter().enumerate() {
            let sock = host.edge.udp_open(token(n as u32), to, Source::wish(wish)).unwrap();
            send(&mut host, sock, b"x", &opts());
            host.edge.flush();
            let (_, from) = s.recv_from(&mut buf).unwrap();
            assert_eq!(from.port(), wish);
            s.send_to(format!("to {n}").as_bytes(), from).unwrap();
            assert_eq!(receive(&mut host, sock, 1)[0].1, format!("to {n}").as_bytes());
        }
        // A port that another process has.
        let sock = host.edge.udp_open(token(7), to_first, Source::wish(taken)).unwrap();
        send(&mut host, sock, b"x", &opts());
        host.edge.flush();
        assert_ne!(first.recv_from(&mut buf).unwrap().1.port(), taken);
    }
}

#[test]
fn options_of_the_header_follow_the_guests() {
    for at in loopbacks() {
        let (peer, to) = peer(at);
        let (level, recv_ttl, recv_tos) = if at.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_RECVTTL, libc::IP_RECVTOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS)
        };
        set_option(peer.as_fd(), level, recv_ttl, 1).unwrap();
        set_option(peer.as_fd(), level, recv_tos, 1).unwrap();
        let mut host = Host::new();
        let sock = host.edge.udp_open(token(1), to, Source::ANY).unwrap();
        for (hop_limit, tos) in [(63, 0), (1, 0), (200, 0x10), (200, 0)] {
            send(&mut host, sock, b"x", &SendOpts { hop_limit, tos, ..opts() });
        }
        host.edge.flush();
        let mut memory = [0; 64];
        for want in [63, 1, 200, 200] {
            let mut got = None;
            while got.is_none() {
                let _ = peer.peek(&mut [0; 1]).unwrap();
                let _ = hibernet::sys::datagram::receive_slots(peer.as_fd(), &mut memory, 64, &[0], |_, a| got = Some(a));
            }
            assert_eq!(got.unwrap().meta.hop_limit, Some(want));
        }
    }
}

#[test]
fn published_ports_answer_from_the_address_that_was_asked() {
    for wildcard in ["0.0.0.0:0", "[::]:0"].map(|a| a.parse::<SocketAddr>().unwrap()) {
        let Ok(listener) = UdpSocket::bind(wildcard) else { continue };
        let port = listener.local_addr().unwrap().port();
        let mut host = Host::new();
        let (sock, local) = host.edge.sockets.udp_listener(listener.into()).unwrap();
        assert_eq!(local.port, port);
        let t = Token::new(TokenKind::UdpListener, 0, 0);
        host.edge.sockets.listen(sock, t).unwrap();
        // A dual-stack socket serves IPv4 clients too. Linux answers on all of 127/8.
        let asked: &[&str] = if wildcard.is_ipv4() { &["127.0.0.1", "127.0.0.9"] } else { &["::1", "127.0.0.9"] };
        for at in asked.iter().map(|a| a.parse::<IpAddr>().unwrap()) {
            let any = SocketAddr::new(hibernet::sys::addr::unspecified(at), 0);
            let (client, _) = peer(any);
            client.connect(SocketAddr::new(at, port)).unwrap();
            client.send(b"question").unwrap();
            host.wait(t, |r| r.readable);
            let (d, bytes) = receive(&mut host, sock, 1).remove(0);
            assert_eq!(bytes, b"question");
            assert_eq!(d.to, Some(at));
            assert_eq!(d.from.port, client.local_addr().unwrap().port());
            let back = SendOpts { to: Some(d.from), from: d.to, ..opts() };
            for _ in 0..3 {
                send(&mut host, sock, b"answer", &back);
            }
            host.edge.flush();
            let mut buf = [0; 16];
            for _ in 0..3 {
                // A connected client hears only the address that it asked.
                assert_eq!(client.recv(&mut buf).unwrap(), 6);
            }
        }
        host.assert_no_slots();
    }
}

#[test]
fn strangers_between_bind_and_connect_are_not_heard() {
    let at = loopbacks()[0];
    let (peer, to) = peer(at);
    let stranger = UdpSocket::bind(at).unwrap();
    let mut host = Host::new();
    // What udp_open does, with a stranger's datagram in the gap.
    let s = UdpSocket::bind(at).unwrap();
    stranger.send_to(b"evil", s.local_addr().unwrap()).unwrap();
    s.connect(SocketAddr::from(to)).unwrap();
    peer.send_to(b"good", s.local_addr().unwrap()).unwrap();
    let sock = host.edge.sockets.udp_connected(token(1), s.into(), to).unwrap();
    let got = receive(&mut host, sock, 1);
    assert_eq!(got[0].1, b"good");
    assert_eq!(host.edge.sockets.stats().wrong_sender, 1);
    host.assert_no_slots();
}

#[test]
fn opens_that_fail() {
    let mut host = Host::new();
    assert!(host.edge.udp_open(token(1), Endpoint::new("255.255.255.255".parse().unwrap(), 9), Source::ANY).is_err());
    assert!(host.edge.sockets.is_empty());
    assert!(host.edge.udp_send(SockId(77), Payload::EMPTY, &opts()).is_err());
    let e = socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 99).unwrap_err();
    assert_eq!(hibernet::sock::error::sock_error(&e), hibernet_netstack::edge::SockError::NotAvailable);
}
