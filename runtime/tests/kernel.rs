//! What we rely on the kernel for, checked by itself: when one of these fails, look there before you look at us.

mod common;
mod support;

use common::{PATIENCE, loopbacks};
use hibernet::sys::socket::{self, set_option};
use hibernet::sys::stream;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

fn pair(at: SocketAddr) -> (TcpStream, TcpStream) {
    let l = TcpListener::bind(at).unwrap();
    let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
    let (b, _) = l.accept().unwrap();
    for s in [&a, &b] {
        s.set_nodelay(true).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (a, b)
}

fn udp(at: SocketAddr) -> UdpSocket {
    let s = UdpSocket::bind(at).unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s
}

/// Waits until `n` bytes have come.
fn arrived(s: &TcpStream, n: usize) {
    let mut b = vec![0; n];
    while s.peek(&mut b).unwrap() < n {}
}

/// Throwing data away with MSG_TRUNC and no buffer takes exactly what was asked, and stops at an urgent mark.
#[test]
fn recv_into_nothing() {
    for at in loopbacks() {
        let (mut a, mut b) = pair(at);
        set_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, 1).unwrap();
        a.write_all(&[1; 100]).unwrap();
        arrived(&b, 100);
        assert_eq!(stream::discard(b.as_fd(), 30).unwrap(), 30);
        assert_eq!(stream::discard(b.as_fd(), 100).unwrap(), 70);
        assert_eq!(stream::discard(b.as_fd(), 1).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        a.write_all(b"before").unwrap();
        socket::send_urgent(a.as_fd(), b"!").unwrap();
        a.write_all(b"after").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let mut total = 0;
        let mut calls = 0;
        while total < 12 {
            match stream::discard(b.as_fd(), 12 - total) {
                Ok(n) => total += n,
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
            }
            calls += 1;
        }
        assert!(calls >= 2);
        assert_eq!(b.read(&mut [0]).unwrap(), 0);
        assert_eq!(stream::discard(b.as_fd(), 1).unwrap(), 0);
    }
}

/// The peek offset: moved on by peeks, back by reads, never below zero; per socket.
#[test]
fn peek_offset() {
    for at in loopbacks() {
        let (mut a, b) = pair(at);
        let off = |n| set_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, n);
        if off(0).is_err() {
            support::skip("peek_offset", &format!("this kernel has no peek offset for TCP at {at}; the fallback is used"));
            continue;
        }
        let now = || socket::get_int(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap();
        a.write_all(&(0..100).collect::<Vec<u8>>()).unwrap();
        assert_eq!(off(-1).and_then(|()| off(0)).ok(), Some(()));
        let mut buf = [0; 10];
        while b.peek(&mut buf).unwrap() < 10 || now() < 10 {}
        off(10).unwrap();
        assert_eq!((b.peek(&mut buf).unwrap(), buf[0], now()), (10, 10, 20));
        assert_eq!(stream::discard(b.as_fd(), 5).unwrap(), 5);
        assert_eq!((now(), b.peek(&mut buf).unwrap(), buf[0]), (15, 10, 20));
        assert_eq!(stream::discard(b.as_fd(), 50).unwrap(), 50);
        assert_eq!(now(), 0);
    }
}

/// SO_LINGER with time zero turns close into RST, and throws away what was not sent.
#[test]
fn close_with_zero_linger_resets() {
    for at in loopbacks() {
        let (a, mut b) = pair(at);
        socket::set_linger_reset(a.as_fd()).unwrap();
        drop(a);
        assert_eq!(b.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    }
}

/// Of UDP sockets that share a port, a connected one gets its peer's datagrams before an unconnected one, whichever came first.
#[test]
fn a_connected_socket_has_priority() {
    for at in loopbacks() {
        for connected_first in [false, true] {
            let peer = udp(at);
            let shared = || {
                let s = socket::socket(socket::family(at.ip()), libc::SOCK_DGRAM, 0).unwrap();
                set_option(s.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
                s
            };
            let (first, second) = (shared(), shared());
            socket::bind(first.as_fd(), at).unwrap();
            let port = socket::local_addr(first.as_fd()).unwrap();
            let connect = |fd: &std::os::fd::OwnedFd| socket::connect(fd.as_fd(), peer.local_addr().unwrap()).unwrap();
            if connected_first {
                connect(&first);
            }
            socket::bind(second.as_fd(), port).unwrap();
            if !connected_first {
                connect(&second);
            }
            let connected = UdpSocket::from(if connected_first { first } else { second });
            connected.set_nonblocking(false).unwrap();
            connected.set_read_timeout(Some(PATIENCE)).unwrap();
            for _ in 0..20 {
                peer.send_to(b"x", port).unwrap();
                assert_eq!(connected.recv(&mut [0]).unwrap(), 1);
            }
        }
    }
}

/// A UDP socket that leaves an epoll set before its duplicate is closed reports nothing any more, and a closed duplicate does not
/// close the other.
#[test]
fn closing_a_duplicate_closes_nothing() {
    for at in loopbacks() {
        let s = udp(at);
        let to = s.local_addr().unwrap();
        let dup = s.try_clone().unwrap();
        drop(s);
        udp(at).send_to(b"x", to).unwrap();
        assert_eq!(dup.recv(&mut [0]).unwrap(), 1);
        assert!(UdpSocket::bind(to).is_err(), "the port is still taken");
        drop(dup);
        UdpSocket::bind(to).unwrap();
    }
}

/// EPOLLOUT is raised again only after a call came up short, edge-triggered: without that, nobody needs to be woken.
#[test]
fn room_is_reported_after_a_short_call_only() {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    for at in loopbacks() {
        let (a, mut b) = pair(at);
        let epoll = Epoll::new().unwrap();
        let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        use std::os::fd::AsRawFd;
        epoll.ctl(ControlOperation::Add, a.as_raw_fd(), EpollEvent::new(set, 1)).unwrap();
        let mut ready = [EpollEvent::default(); 4];
        assert_eq!(epoll.wait(0, &mut ready).unwrap(), 1);
        // Sent whole, read by the peer, acknowledged: nothing to report.
        assert_eq!(socket::send(a.as_fd(), &[1; 1000]).unwrap(), 1000);
        b.read_exact(&mut [0; 1000]).unwrap();
        while hibernet::sys::tcp::unacknowledged(a.as_fd()).unwrap() > 0 {}
        assert_eq!(epoll.wait(0, &mut ready).unwrap(), 0);
        // Short: reported as soon as the peer has read enough.
        let mut sent = 0;
        while let Ok(n) = socket::send(a.as_fd(), &[2; 65_536]) {
            sent += n;
        }
        assert_eq!(epoll.wait(0, &mut ready).unwrap(), 0);
        let mut buf = vec![0; sent];
        b.read_exact(&mut buf).unwrap();
        assert_eq!(epoll.wait(PATIENCE.as_millis() as i32, &mut ready).unwrap(), 1);
        assert!(ready[0].event_set().contains(EventSet::OUT));
    }
}
