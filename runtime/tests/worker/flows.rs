//! Traffic both ways.

use crate::guest::{PATIENCE, Pair, loopback_config, setup};
use hibernet_netstack::config::Publish;
use hibernet_netstack::tuple::proto;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{IpAddress, IpEndpoint};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

pub const SIZE: usize = 3 << 20;

pub fn stream(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

fn tcp_socket(p: &mut Pair) -> SocketHandle {
    let buffer = || tcp::SocketBuffer::new(vec![0; 65_535]);
    let mut s = tcp::Socket::new(buffer(), buffer());
    s.set_ack_delay(None);
    p.sockets.add(s)
}

pub fn loopback_of(a: IpAddr) -> SocketAddr {
    if a.is_ipv4() { "127.0.0.1:0".parse().unwrap() } else { "[::1]:0".parse().unwrap() }
}

fn endpoint(addr: IpAddr, port: u16) -> IpEndpoint {
    IpEndpoint::new(IpAddress::from(addr), port)
}

/// Connects the guest to a listener behind a gateway address.
pub fn connect(p: &mut Pair, to: IpAddr, port: u16, local: u16) -> SocketHandle {
    let h = tcp_socket(p);
    let s = p.sockets.get_mut::<tcp::Socket<'_>>(h);
    s.connect(p.iface.context(), endpoint(to, port), local).unwrap();
    h
}

/// A peer that sends a stream and closes, and gives back what it gets until the end.
pub fn stream_peer(listener: TcpListener) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut s, _) = listener.accept().unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut w = s.try_clone().unwrap();
        let writer = thread::spawn(move || {
            w.write_all(&stream(7, SIZE)).unwrap();
            w.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        s.read_to_end(&mut all).unwrap();
        writer.join().unwrap();
        all
    })
}

#[test]
fn streams_both_ways_arrive_whole() {
    let mut p = Pair::new(setup(loopback_config()));
    for (i, gateway) in p.gateways().into_iter().enumerate() {
        let Ok(listener) = TcpListener::bind(loopback_of(gateway)) else { continue };
        let port = listener.local_addr().unwrap().port();
        let peer = stream_peer(listener);
        let h = connect(&mut p, gateway, port, 40_000 + i as u16);
        let (mut sent, mut got) = (0, Vec::new());
        p.until("streams both ways", |_, sockets| {
            let s = sockets.get_mut::<tcp::Socket<'_>>(h);
            while s.can_send() && sent < SIZE {
                sent += s.send_slice(&stream(sent, (SIZE - sent).min(8192))).unwrap();
            }
            if sent == SIZE && s.may_send() {
                s.close();
            }
            while s.can_recv() {
                s.recv(|b| (b.len(), got.extend_from_slice(b))).unwrap();
            }
            got.len() == SIZE && matches!(s.state(), tcp::State::TimeWait | tcp::State::Closed)
        });
        assert!(got == stream(7, SIZE), "what the guest got differs");
        assert!(peer.join().unwrap() == stream(0, SIZE), "what the peer got differs");
    }
    let report = p.worker().report();
    assert_eq!(report["sockets"]["send_failed"], 0);
}

#[test]
fn a_closed_port_refuses_at_once() {
    let mut p = Pair::new(setup(loopback_config()));
    for (i, gateway) in p.gateways().into_iter().enumerate() {
        let Ok(listener) = TcpListener::bind(loopback_of(gateway)) else { continue };
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let h = connect(&mut p, gateway, port, 41_000 + i as u16);
        p.until("refusal", |_, sockets| sockets.get::<tcp::Socket<'_>>(h).state() == tcp::State::Closed);
    }
}

#[test]
fn clients_of_published_ports_reach_the_guest() {
    for at in ["127.0.0.1:0", "[::1]:0"].map(|a| a.parse::<SocketAddr>().unwrap()) {
        let Ok(listener) = TcpListener::bind(at) else { continue };
        let port = listener.local_addr().unwrap().port();
        let mut config = loopback_config();
        config.publish = vec![Publish { proto: proto::TCP, addr: Some(at.ip()), host_ports: (port, port), guest_port: 80 }];
        let mut s = setup(config);
        s.tcp_listeners.push((0, listener.into()));
        let mut p = Pair::new(s);
        let h = tcp_socket(&mut p);
        p.sockets.get_mut::<tcp::Socket<'_>>(h).listen(80).unwrap();
        let client = thread::spawn(move || {
            let mut s = TcpStream::connect(SocketAddr::new(at.ip(), port)).unwrap();
            s.set_read_timeout(Some(PATIENCE)).unwrap();
            s.write_all(b"GET").unwrap();
            let mut all = Vec::new();
            s.read_to_end(&mut all).unwrap();
            all
        });
        let mut answered = false;
        p.until("a client", |_, sockets| {
            let s = sockets.get_mut::<tcp::Socket<'_>>(h);
            if s.can_recv() && !answered {
                s.recv(|b| (b.len(), assert_eq!(b, b"GET"))).unwrap();
                s.send_slice(b"here you are").unwrap();
                s.close();
                answered = true;
            }
            client.is_finished()
        });
        assert_eq!(client.join().unwrap(), b"here you are");
    }
}

#[test]
fn datagrams_both_ways() {
    let mut p = Pair::new(setup(loopback_config()));
    for (i, gateway) in p.gateways().into_iter().enumerate() {
        let Ok(peer) = UdpSocket::bind(loopback_of(gateway)) else { continue };
        let port = peer.local_addr().unwrap().port();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let echo = thread::spawn(move || {
            for _ in 0..100 {
                let mut b = [0; 2000];
                let (n, from) = peer.recv_from(&mut b).unwrap();
                peer.send_to(&b[..n], from).unwrap();
            }
        });
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 32], vec![0; 65_536]);
        let mut s = udp::Socket::new(buffer(), buffer());
        s.bind(5000 + i as u16).unwrap();
        let h = p.sockets.add(s);
        let (mut sent, mut got) = (0usize, 0usize);
        p.until("datagrams", |_, sockets| {
            let s = sockets.get_mut::<udp::Socket<'_>>(h);
            while s.can_recv() {
                let (b, _) = s.recv().unwrap();
                assert_eq!(b, stream(got, got * 13));
                got += 1;
            }
            while sent < 100 && sent < got + 16 {
                s.send_slice(&stream(sent, sent * 13), endpoint(gateway, port)).unwrap();
                sent += 1;
            }
            got == 100
        });
        echo.join().unwrap();
    }
}
