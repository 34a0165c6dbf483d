//! Sockets whose source a rule demands, against the kernel.

mod common;

use common::{Host, loopbacks, token};
use hibernet::sys::addr::unspecified;
use hibernet_netstack::edge::{Close, HostSockets, PayloadStore, SendOpts, SockError, Source, SourcePort};
use hibernet_netstack::tuple::{Endpoint, proto};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

fn demand(port: u16) -> Source {
    Source { addr: None, port: SourcePort::Demand(port) }
}

/// A port that nobody has.
fn free_port(ip: IpAddr) -> u16 {
    TcpListener::bind(SocketAddr::new(unspecified(ip), 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn tcp_connects_from_the_port_that_is_demanded() {
    for at in loopbacks() {
        let mut host = Host::new();
        let servers = [0, 1].map(|_| TcpListener::bind(at).unwrap());
        let port = free_port(at.ip());
        for (n, server) in (1..).zip(&servers) {
            let to = Endpoint::from(server.local_addr().unwrap());
            // With and without asking first; the second flow shares the port with the first.
            if n == 1 {
                assert!(host.edge.reserve(proto::TCP, to, demand(port)));
            }
            let sock = host.edge.tcp_connect(token(n), to, demand(port)).unwrap();
            let (_peer, from) = server.accept().unwrap();
            assert_eq!(from.port(), port);
            host.wait(token(n), |r| r.writable);
            // The same ends twice cannot be.
            assert_eq!(host.edge.tcp_connect(token(9), to, demand(port)), Err(SockError::NotAvailable));
            host.edge.close(sock, Close::Reset);
        }
    }
}

#[test]
fn ports_of_others_are_not_given() {
    for at in loopbacks() {
        let mut host = Host::new();
        let server = TcpListener::bind(at).unwrap();
        let to = Endpoint::from(server.local_addr().unwrap());
        let listener = TcpListener::bind(SocketAddr::new(unspecified(at.ip()), 0)).unwrap();
        let other = UdpSocket::bind(SocketAddr::new(unspecified(at.ip()), 0)).unwrap();
        for (protocol, port) in
            [(proto::TCP, listener.local_addr().unwrap().port()), (proto::UDP, other.local_addr().unwrap().port())]
        {
            assert!(!host.edge.reserve(protocol, to, demand(port)));
            let opened = match protocol {
                proto::TCP => host.edge.tcp_connect(token(1), to, demand(port)),
                _ => host.edge.udp_open(token(1), to, demand(port)),
            };
            assert_eq!(opened, Err(SockError::NotAvailable));
        }
        // What was asked for and not opened is given back at the end of the call.
        let any = SocketAddr::new(unspecified(at.ip()), 0);
        let at = SocketAddr::new(any.ip(), UdpSocket::bind(any).unwrap().local_addr().unwrap().port());
        assert!(host.edge.reserve(proto::UDP, to, demand(at.port())));
        assert!(UdpSocket::bind(at).is_err());
        host.edge.flush();
        assert!(UdpSocket::bind(at).is_ok());
    }
}

#[test]
fn datagrams_leave_from_the_port_that_is_demanded() {
    for at in loopbacks() {
        let mut host = Host::new();
        let port = free_port(at.ip());
        let peers = [0, 1].map(|_| UdpSocket::bind(at).unwrap());
        for (n, peer) in (1..).zip(&peers) {
            let to = Endpoint::from(peer.local_addr().unwrap());
            assert!(host.edge.reserve(proto::UDP, to, demand(port)));
            let sock = host.edge.udp_open(token(n), to, demand(port)).unwrap();
            let opts = SendOpts { hop_limit: 64, tos: 0, segment: None, to: None, from: None, dont_fragment: false };
            let data = host.stash(b"data");
            host.edge.udp_send(sock, data, &opts).unwrap();
            host.edge.flush();
            host.edge.release(data);
            let (_, from) = peer.recv_from(&mut [0; 16]).unwrap();
            assert_eq!(from.port(), port);
        }
        host.assert_no_slots();
    }
}

/// All of 127/8 is the host's.
#[test]
fn the_address_that_is_demanded() {
    let mut host = Host::new();
    let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = TcpListener::bind(at).unwrap();
    let to = Endpoint::from(server.local_addr().unwrap());
    let port = free_port(at.ip());
    for (addr, port, works) in [
        ("127.0.0.77", SourcePort::Any, true),
        ("127.0.0.77", SourcePort::Wish(port), true),
        ("127.0.0.78", SourcePort::Demand(port), true),
        ("192.0.2.77", SourcePort::Any, false),
        ("192.0.2.77", SourcePort::Demand(port), false),
    ] {
        let from = Source { addr: Some(addr.parse().unwrap()), port };
        let opened = host.edge.tcp_connect(token(1), to, from);
        assert_eq!(opened.is_ok(), works, "{from:?}");
        match opened {
            Ok(sock) => {
                let (_peer, seen): (TcpStream, _) = server.accept().unwrap();
                assert_eq!(seen.ip().to_string(), addr);
                assert!(
                    port == SourcePort::Any || port == SourcePort::Wish(seen.port()) || port == SourcePort::Demand(seen.port())
                );
                host.edge.close(sock, Close::Reset);
            }
            Err(e) => assert_eq!(e, SockError::NotAvailable),
        }
    }
}
