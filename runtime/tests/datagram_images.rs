//! Datagram sockets and listeners that are opened anew from their images.

mod common;
#[allow(dead_code)]
#[path = "link_kernel/ns.rs"]
mod ns;
mod support;

use common::{Host, PATIENCE};
use hibernet::checkpoint::datagram::{DatagramImage, Drain, dump, dump_listener, restore, restore_listener};
use hibernet::checkpoint::lock::{Lock, Locked, TIME_OUT};
use hibernet::checkpoint::repair::RepairError;
use hibernet::sock::{SocketFate, SocketKind, Sockets, SocketsState, Supplied, prepare_tcp};
use hibernet::sys::socket;
use hibernet_netstack::edge::{Close, Datagram, HostSockets, PayloadStore, SendOpts, SockId, Source, Token, TokenKind};
use hibernet_netstack::tuple::Endpoint;
use ns::{ip, sysctl};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

fn udp(n: u32) -> Token {
    Token::new(TokenKind::Udp, n, 1)
}

fn opts(to: Option<Endpoint>) -> SendOpts {
    SendOpts { hop_limit: 33, tos: 0x10, segment: None, to, from: None, dont_fragment: true }
}

fn loopbacks() -> Vec<SocketAddr> {
    ip("link set lo up");
    common::loopbacks()
}

fn peer(at: SocketAddr) -> UdpSocket {
    let s = UdpSocket::bind(at).unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s
}

fn send(host: &mut Host, sock: SockId, bytes: &[u8], opts: &SendOpts) {
    let p = host.stash(bytes);
    host.edge.udp_send(sock, p, opts).unwrap();
    host.edge.release(p);
    host.edge.flush();
}

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

/// Saves the only socket, closes it, and opens it anew.
fn reopen(host: &mut Host, sock: SockId, to: Option<IpAddr>) -> DatagramImage {
    let mut state = host.edge.sockets.save().unwrap();
    let (image, waiting) = {
        let fd = host.edge.sockets.descriptors().next().unwrap().1;
        (dump(fd, to).unwrap(), Drain::default().take(fd))
    };
    if let SocketKind::Udp(s) = &mut state.slots[0].socket.as_mut().unwrap().kind {
        s.waiting.extend(waiting);
    }
    let text = serde_json::to_vec(&(state, image)).unwrap();
    let (state, image): (SocketsState, DatagramImage) = serde_json::from_slice(&text).unwrap();
    drop(host.replace(Sockets::new(None, None).unwrap()));
    let mut fd = Some(restore(&image).unwrap());
    let (sockets, fates) = Sockets::restore(state, None, None, &mut |_| fd.take().map(Supplied::Rebuilt)).unwrap();
    assert_eq!(fates, [(sock, SocketFate::Resumed)]);
    host.replace(sockets);
    image
}

in_namespace! {
    fn flows_keep_their_port_and_what_waited() {
        for at in loopbacks() {
            let mut host = Host::new();
            let peer = peer(at);
            let sock = host.edge.udp_open(udp(1), Endpoint::from(peer.local_addr().unwrap()), Source::ANY).unwrap();
            send(&mut host, sock, b"first", &opts(None));
            let mut bytes = [0; 3000];
            let (_, from) = peer.recv_from(&mut bytes).unwrap();
            let sent: Vec<Vec<u8>> = (0..20usize).map(|i| vec![i as u8; 1 + i * 97]).collect();
            sent.iter().for_each(|d| assert_eq!(peer.send_to(d, from).unwrap(), d.len()));
            let image = reopen(&mut host, sock, None);
            host.wait(udp(1), |r| r.readable);
            let mut all = receive(&mut host, sock, 3);
            // It may change its owner again before all was handed out.
            reopen(&mut host, sock, None);
            all.extend(receive(&mut host, sock, sent.len() - all.len()));
            assert_eq!(all.into_iter().map(|(_, b)| b).collect::<Vec<_>>(), sent);
            let before = host.edge.sockets.save().unwrap();
            send(&mut host, sock, b"second", &opts(None));
            assert_eq!(host.edge.sockets.save().unwrap(), before, "options were set again");
            assert_eq!(peer.recv_from(&mut bytes).unwrap().1, from);
            peer.send_to(b"third", from).unwrap();
            assert_eq!(receive(&mut host, sock, 1)[0].1, b"third");
            let in_use = restore(&image);
            // Sockets of one port that do not share it.
            assert!(matches!(in_use, Err(RepairError::Address { .. })), "{in_use:?}");
            host.edge.close(sock, Close::Graceful);
            host.assert_no_slots();
        }
    }

    fn what_was_taken_out_can_be_put_back() {
        for at in loopbacks() {
            let mut host = Host::new();
            let peer = peer(at);
            let sock = host.edge.udp_open(udp(1), Endpoint::from(peer.local_addr().unwrap()), Source::ANY).unwrap();
            send(&mut host, sock, b"first", &opts(None));
            let (_, from) = peer.recv_from(&mut [0; 10]).unwrap();
            peer.send_to(b"a", from).unwrap();
            peer.send_to(b"bb", from).unwrap();
            let waiting = Drain::default().take(host.edge.sockets.descriptors().next().unwrap().1);
            assert_eq!(waiting.len(), 2);
            peer.send_to(b"ccc", from).unwrap();
            host.edge.sockets.udp_requeue(sock, waiting);
            host.wait(udp(1), |r| r.readable);
            let all: Vec<Vec<u8>> = receive(&mut host, sock, 3).into_iter().map(|(_, b)| b).collect();
            assert_eq!(all, [b"a".to_vec(), b"bb".to_vec(), b"ccc".to_vec()]);
            host.assert_no_slots();
        }
    }

    fn a_peer_of_a_locked_port_is_not_told_that_it_is_closed() {
        let at = loopbacks()[0];
        let mut host = Host::new();
        let peer = peer(at);
        let to = peer.local_addr().unwrap();
        let sock = host.edge.udp_open(udp(1), Endpoint::from(to), Source::ANY).unwrap();
        send(&mut host, sock, b"x", &opts(None));
        let (_, from) = peer.recv_from(&mut [0; 10]).unwrap();
        peer.connect(from).unwrap();
        let lock = Lock::new("udp", [Locked::of(host.edge.sockets.descriptors().next().unwrap().1).unwrap()], TIME_OUT).unwrap();
        let state = host.edge.sockets.save().unwrap();
        let image = dump(host.edge.sockets.descriptors().next().unwrap().1, None).unwrap();
        drop(host.replace(Sockets::new(None, None).unwrap()));
        peer.send(b"lost").unwrap();
        assert!(peer.take_error().unwrap().is_none());
        let mut fd = Some(restore(&image).unwrap());
        host.replace(Sockets::restore(state, None, None, &mut |_| fd.take().map(Supplied::Rebuilt)).unwrap().0);
        lock.remove().unwrap();
        peer.send(b"heard").unwrap();
        assert_eq!(receive(&mut host, sock, 1)[0].1, b"heard");
    }

    fn published_ports_answer_from_the_address_that_was_asked() {
        for at in loopbacks().into_iter().map(|a| if a.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }) {
            let mut host = Host::new();
            let (sock, local) = host.edge.sockets.udp_listener(UdpSocket::bind(at).unwrap().into()).unwrap();
            let token = Token::new(TokenKind::UdpListener, 0, 0);
            host.edge.sockets.listen(sock, token).unwrap();
            let client = peer("127.0.0.1:0".parse().unwrap());
            let to = SocketAddr::from(([127, 0, 0, 7], local.port));
            client.send_to(b"before", to).unwrap();
            reopen(&mut host, sock, None);
            client.send_to(b"after", to).unwrap();
            let all = receive(&mut host, sock, 2);
            for ((d, bytes), expected) in all.iter().zip([b"before".as_slice(), b"after"]) {
                assert_eq!((d.to, &bytes[..]), (Some(to.ip()), expected));
                let answer = SendOpts { from: d.to, ..opts(Some(d.from)) };
                send(&mut host, sock, b"answer", &answer);
                assert_eq!(client.recv_from(&mut [0; 10]).unwrap().1, to);
            }
        }
    }

    fn pings_keep_their_identifier() {
        let all = loopbacks();
        sysctl("ipv4/ping_group_range", "0 0");
        for to in all.into_iter().map(|a| a.ip()) {
            let mut host = Host::new();
            let token = Token::new(TokenKind::Icmp, 1, 1);
            let sock = host.edge.ping_open(token, to, 5, None).unwrap();
            let ask = |host: &mut Host, seq: u16| {
                let p = host.stash(b"data");
                host.edge.ping_send(sock, seq, p, &opts(None)).unwrap();
                host.edge.release(p);
                host.wait(token, |r| r.readable);
                let (got, d) = host.edge.ping_recv(sock).unwrap().unwrap();
                assert_eq!((got, host.take(d.payload)), (seq, b"data".to_vec()));
                d.from
            };
            let before = ask(&mut host, 1);
            let image = reopen(&mut host, sock, Some(to));
            assert_eq!((ask(&mut host, 2), image.local.port), (before, before.port));
            host.assert_no_slots();
        }
    }

    fn listeners_listen_again_while_their_connections_live() {
        for at in loopbacks() {
            let listener = TcpListener::bind(at).unwrap();
            prepare_tcp(listener.as_fd()).unwrap();
            socket::listen(listener.as_fd(), 77).unwrap();
            let at = listener.local_addr().unwrap();
            let (mut client, mut served) = (TcpStream::connect(at).unwrap(), listener.accept().unwrap().0);
            let image = dump_listener(listener.as_fd()).unwrap();
            assert_eq!(image.backlog, 77);
            assert!(matches!(restore_listener(&image), Err(RepairError::Address { .. })));
            drop(listener);
            let again: OwnedFd = restore_listener(&image).unwrap();
            assert_eq!(dump_listener(again.as_fd()).unwrap(), image);
            let again = TcpListener::from(again);
            again.set_nonblocking(false).unwrap();
            let _second = TcpStream::connect(at).unwrap();
            let (accepted, _) = again.accept().unwrap();
            assert!(accepted.nodelay().unwrap());
            client.write_all(b"x").unwrap();
            served.read_exact(&mut [0]).unwrap();
            assert!(matches!(dump_listener(served.as_fd()), Err(RepairError::State(1))));
        }
    }

    fn damaged_images_are_refused() {
        loopbacks();
        let s = UdpSocket::bind("127.0.0.1:0").unwrap();
        let image = dump(s.as_fd(), None).unwrap();
        drop(s);
        let changes: [fn(&mut DatagramImage); 5] = [
            |i| i.protocol = 6,
            |i| i.protocol = 58,
            |i| i.options.clear(),
            |i| i.local.ip = "::1".parse().unwrap(),
            |i| i.peer = Some(hibernet::checkpoint::image::HostAddr { ip: "::1".parse().unwrap(), port: 1, scope: 0 }),
        ];
        for change in changes {
            let mut bad = image.clone();
            change(&mut bad);
            assert!(matches!(restore(&bad), Err(RepairError::Invalid(_))));
        }
        restore(&image).unwrap();
        let mut odd = image.clone();
        odd.options.iter_mut().for_each(|o| *o = Some(i32::MIN));
        assert!(matches!(restore(&odd), Err(RepairError::Os { .. })));
    }
}
