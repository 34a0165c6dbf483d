//! Echo sockets of both kinds, in network namespaces of their own.

mod common;
#[path = "link_kernel/ns.rs"]
mod ns;
mod support;

use common::{Host, PATIENCE};
use hibernet::sock::{SocketFate, Sockets};
use hibernet::sys::socket;
use hibernet_netstack::edge::{Close, Datagram, HostSockets, SendOpts, SockError, SockId, Token, TokenKind};
use hibernet_netstack::wire::icmp::{self, v4, v6};
use ns::{ip, sysctl};
use std::net::IpAddr;
use std::process::{Child, Command};
use std::time::Instant;

fn token(n: u32) -> Token {
    Token::new(TokenKind::Icmp, n, 1)
}

fn opts(hop_limit: u8) -> SendOpts {
    SendOpts { hop_limit, tos: 0, segment: None, to: None, from: None, dont_fragment: false }
}

fn loopbacks() -> Vec<IpAddr> {
    let mut all = vec!["127.0.0.1".parse().unwrap()];
    if ns::has_ipv6() {
        all.push("::1".parse().unwrap());
    }
    all
}

/// A host with raw sockets, and one that will use ping sockets. In a new namespace these are switched off, and an ordinary
/// user's namespace lets them only be switched on, so the raw ones come first.
fn kinds() -> [(Host, bool); 2] {
    ip("link set lo up");
    let raw4 = socket::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).unwrap();
    let raw6 = socket::socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6).ok();
    [(Host::with_raw(Some(raw4), raw6), true), (Host::new(), false)]
}

/// Opens an echo socket; `raw` tells which kind is expected.
fn open(host: &mut Host, raw: bool, n: u32, to: IpAddr, ident: u16) -> Result<SockId, SockError> {
    if !raw {
        sysctl("ipv4/ping_group_range", "0 0");
    }
    host.edge.ping_open(token(n), to, ident, None)
}

fn send(host: &mut Host, sock: SockId, seq: u16, data: &[u8], hop_limit: u8) {
    let p = host.stash(data);
    host.edge.ping_send(sock, seq, p, &opts(hop_limit)).unwrap();
    host.edge.slots.give(p.slot);
}

fn receive(host: &mut Host, sock: SockId) -> (u16, Datagram, Vec<u8>) {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some((seq, d)) = host.edge.ping_recv(sock).unwrap() {
            let bytes = host.take(d.payload);
            return (seq, d, bytes);
        }
        assert!(Instant::now() < until, "no reply: {:?}", host.edge.sockets.stats());
        host.poll(until);
    }
}

in_namespace! {
    fn replies_come_to_whoever_asked() {
        for (mut host, raw) in kinds() {
            for at in loopbacks() {
                // Two flows with the same wish.
                let a = open(&mut host, raw, 1, at, 77).unwrap();
                let b = open(&mut host, raw, 2, at, 77).unwrap();
                for seq in 0..15u16 {
                    send(&mut host, a, seq, format!("a{seq}").as_bytes(), 64);
                    send(&mut host, b, seq + 100, &vec![b'b'; usize::from(seq) * 70], 64);
                }
                for seq in 0..15u16 {
                    let (s, d, bytes) = receive(&mut host, a);
                    assert_eq!((s, bytes), (seq, format!("a{seq}").into_bytes()));
                    assert_eq!((d.from.addr, d.hop_limit), (at, Some(64)));
                    let (s, _, bytes) = receive(&mut host, b);
                    assert_eq!((s, bytes.len()), (seq + 100, usize::from(seq) * 70));
                }
                assert!(matches!(host.edge.ping_recv(a), Ok(None)));
                send(&mut host, a, 500, b"left behind", 64);
                host.wait(token(1), |r| r.readable);
                host.edge.close(a, Close::Graceful);
                host.edge.close(b, Close::Graceful);
                assert!(host.edge.sockets.is_empty());
                host.assert_no_slots();
            }
        }
    }

    fn replies_come_to_the_successor() {
        for (mut host, raw) in kinds() {
            for at in loopbacks() {
                let a = open(&mut host, raw, 1, at, 77).unwrap();
                let b = open(&mut host, raw, 2, at, 77).unwrap();
                // The reply to the first stands in the socket when the owner changes.
                send(&mut host, a, 1, b"before", 60);
                let fates = host.hand_over(|_| {});
                assert!([a, b].iter().all(|id| fates.contains(&(*id, SocketFate::Resumed))), "{fates:?}");
                assert_eq!(receive(&mut host, a).2, b"before");
                send(&mut host, b, 2, b"after", 61);
                let (seq, d, bytes) = receive(&mut host, b);
                assert_eq!((seq, d.hop_limit, &bytes[..]), (2, Some(64), &b"after"[..]));
                // The identifiers are still taken.
                let c = open(&mut host, raw, 3, at, 77).unwrap();
                send(&mut host, c, 3, b"new", 64);
                assert_eq!(receive(&mut host, c).2, b"new");
                for id in [a, b, c] {
                    host.edge.close(id, Close::Graceful);
                }
                host.assert_no_slots();
            }
            if raw {
                let a = open(&mut host, true, 1, loopbacks()[0], 7).unwrap();
                let state = host.edge.sockets.save().unwrap();
                let (_, fates) = Sockets::restore(state, None, None, &mut |_| None).unwrap();
                assert_eq!(fates, [(a, SocketFate::Missing)]);
            }
        }
    }

    fn requests_leave_from_the_address_that_is_demanded() {
        let to = loopbacks()[0];
        let from = Some("192.0.2.77".parse().unwrap());
        for (mut host, raw) in kinds() {
            if !raw {
                sysctl("ipv4/ping_group_range", "0 0");
            }
            let opened = host.edge.ping_open(token(1), to, 1, from);
            // A raw socket is shared; there the kernel says it when something is sent.
            if raw {
                let p = host.stash(b"x");
                host.edge.ping_send(opened.unwrap(), 1, p, &opts(64)).unwrap_err();
                host.edge.slots.give(p.slot);
            } else {
                assert_eq!(opened, Err(SockError::NotAvailable));
            }
            ip("addr add 192.0.2.77/32 dev lo");
            let sock = host.edge.ping_open(token(2), to, 1, from).unwrap();
            send(&mut host, sock, 1, b"x", 64);
            assert_eq!(receive(&mut host, sock).1.from.addr, to);
            ip("addr del 192.0.2.77/32 dev lo");
        }
    }

    fn without_either_kind_it_is_prohibited() {
        let [_, (mut host, _)] = kinds();
        for at in loopbacks() {
            assert_eq!(open(&mut host, true, 1, at, 1), Err(SockError::Prohibited));
        }
        assert!(host.edge.sockets.is_empty());
    }

    fn a_raw_socket_does_not_grow_without_bound() {
        let [(mut host, _), _] = kinds();
        let sock = open(&mut host, true, 1, loopbacks()[0], 5).unwrap();
        for seq in 0..100 {
            send(&mut host, sock, seq, b"x", 64);
        }
        // Handed to the flow as they come, but it takes none.
        let until = Instant::now() + PATIENCE;
        while host.edge.sockets.stats().ping_overrun == 0 {
            assert!(Instant::now() < until);
            host.poll(until);
        }
        assert!(host.edge.slots.in_use() <= 16);
        assert_eq!(receive(&mut host, sock).0, 0);
        host.edge.close(sock, Close::Graceful);
        host.assert_no_slots();
    }

    fn errors_on_the_way_name_the_router_and_the_request() {
        let kinds = kinds();
        let router = Router::start();
        for (mut host, raw) in kinds {
            for (to, via, time_exceeded, request) in router.targets() {
                let sock = open(&mut host, raw, 3, to, 9).unwrap();
                send(&mut host, sock, 42, b"how far?", 1);
                host.wait(token(3), |r| r.error);
                let r = host.edge.take_report(sock).unwrap();
                assert_eq!((r.icmp.ty, r.icmp.code, r.offender), (time_exceeded, 0, Some(via)), "raw: {raw}");
                let bytes = host.take(r.payload);
                let quoted = icmp::Header::parse(&bytes).unwrap();
                assert_eq!((quoted.ty, quoted.seq()), (request, 42));
                assert_eq!(&bytes[icmp::HEADER_LEN..], b"how far?");
                assert!(matches!(host.edge.ping_recv(sock), Ok(None)));
                // And with one hop more it arrives.
                send(&mut host, sock, 43, b"there", 2);
                let (seq, d, _) = receive(&mut host, sock);
                assert_eq!((seq, d.from.addr), (43, to));
                host.edge.close(sock, Close::Graceful);
                host.assert_no_slots();
            }
        }
    }
}

/// A namespace that forwards, and one behind it that answers.
struct Router {
    processes: Vec<Child>,
}

impl Router {
    fn start() -> Router {
        let processes: Vec<Child> =
            (0..2).map(|_| Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap()).collect();
        let (a, b) = (processes[0].id(), processes[1].id());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        for p in [a, b] {
            let until = Instant::now() + PATIENCE;
            while std::fs::read_link(format!("/proc/{p}/ns/net")).ok().is_none_or(|n| n == own) {
                assert!(Instant::now() < until);
                std::thread::yield_now();
            }
        }
        let inside = |p: u32, words: &str| {
            let p = p.to_string();
            let out = Command::new("nsenter").args(["-t", &p, "-n"]).args(words.split(' ')).output().unwrap();
            assert!(out.status.success(), "{words}: {}", String::from_utf8_lossy(&out.stderr));
        };
        ip("link add near type veth peer name far");
        ip(&format!("link set far netns {a}"));
        ip("addr add 10.1.0.1/24 dev near");
        ip("link set near up");
        ip("link add mid type veth peer name end");
        ip(&format!("link set mid netns {a}"));
        ip(&format!("link set end netns {b}"));
        for (p, dev, v4, v6) in [
            (a, "far", "10.1.0.2/24", "fd01::2/64"),
            (a, "mid", "10.2.0.1/24", "fd02::1/64"),
            (b, "end", "10.2.0.2/24", "fd02::2/64"),
        ] {
            inside(p, &format!("ip addr add {v4} dev {dev}"));
            if ns::has_ipv6() {
                inside(p, &format!("ip addr add {v6} dev {dev} nodad"));
            }
            inside(p, &format!("ip link set {dev} up"));
        }
        inside(a, "sysctl -qw net.ipv4.ip_forward=1");
        ip("route add 10.2.0.0/24 via 10.1.0.2");
        inside(b, "ip route add 10.1.0.0/24 via 10.2.0.1");
        if ns::has_ipv6() {
            ip("addr add fd01::1/64 dev near nodad");
            inside(a, "sysctl -qw net.ipv6.conf.all.forwarding=1");
            ip("route add fd02::/64 via fd01::2");
            inside(b, "ip route add fd01::/64 via fd02::1");
        }
        Router { processes }
    }

    /// Who answers, the router on the way, and the ICMP types of its family: time exceeded, echo request.
    fn targets(&self) -> Vec<(IpAddr, IpAddr, u8, u8)> {
        let mut all = vec![("10.2.0.2".parse().unwrap(), "10.1.0.2".parse().unwrap(), v4::TIME_EXCEEDED, v4::ECHO_REQUEST)];
        if ns::has_ipv6() {
            all.push(("fd02::2".parse().unwrap(), "fd01::2".parse().unwrap(), v6::TIME_EXCEEDED, v6::ECHO_REQUEST));
        }
        all
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for p in &mut self.processes {
            let _ = p.kill();
            let _ = p.wait();
        }
    }
}
