//! TCP connections into images and out of them, in a network namespace of the test's own: what we rely on of the kernel, and that no byte
//! is lost.

mod common;
#[allow(dead_code)]
#[path = "link_kernel/ns.rs"]
mod ns;
mod support;

use common::{Host, PATIENCE, token};
use hibernet::checkpoint::image::{HostAddr, TcpSocketImage};
use hibernet::checkpoint::lock::{self, Lock, LockError, LockMode, Locked};
use hibernet::checkpoint::probe::{can_lock, can_repair};
use hibernet::checkpoint::rebuild::{RestoreOptions, load, restore, start};
use hibernet::checkpoint::repair::{RepairError, Undo, connecting, dump, roll_back, state_name};
use hibernet::checkpoint::switch::Direct;
use hibernet::sock::{SocketFate, Sockets, Supplied, prepare_tcp};
use hibernet::sys::tcp::{self, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_SENT, TcpInfo};
use hibernet::sys::{rlimit, socket};
use hibernet_netstack::edge::{Close, HostSockets, Peek};
use ns::{ip, sysctl};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const PLAIN: RestoreOptions = RestoreOptions { foreign_address: false };

/// Bytes that tell where in the stream they stand.
fn stream(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

fn set_up() {
    ip("link set lo up");
    rlimit::set_open_files(u64::MAX).unwrap();
    // Buffers that hold what the cases queue; an ordinary user may change them in a namespace of his own.
    for name in ["ipv4/tcp_wmem", "ipv4/tcp_rmem"] {
        sysctl(name, "4096 16777216 16777216");
    }
}

/// Addresses to listen at and to connect to: IPv4, IPv6, and IPv4 that an IPv6 socket takes.
fn families() -> Vec<(SocketAddr, IpAddr)> {
    let at = |listen: &str, connect: &str| (listen.parse().unwrap(), connect.parse().unwrap());
    let mut all = vec![at("127.0.0.1:0", "127.0.0.1")];
    if ns::has_ipv6() {
        all.extend([at("[::1]:0", "::1"), at("[::]:0", "127.0.0.1")]);
    }
    all
}

/// A connection: our socket, which was accepted at a listener that goes on, and the peer.
struct Pair {
    listener: TcpListener,
    ours: OwnedFd,
    peer: TcpStream,
}

fn pair(family: (SocketAddr, IpAddr)) -> Pair {
    pair_with(family, None)
}

/// With a receive buffer of the peer's.
fn pair_with((listen, connect): (SocketAddr, IpAddr), buffer: Option<i32>) -> Pair {
    let listener = TcpListener::bind(listen).unwrap();
    prepare_tcp(listener.as_fd()).unwrap();
    let peer = socket::socket(socket::family(connect), libc::SOCK_STREAM, 0).unwrap();
    if let Some(n) = buffer {
        socket::set_option(peer.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, n).unwrap();
    }
    socket::connect(peer.as_fd(), (connect, listener.local_addr().unwrap().port()).into()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    let peer = TcpStream::from(peer);
    peer.set_nonblocking(false).unwrap();
    peer.set_nodelay(true).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    Pair { listener, ours: ours.into(), peer }
}

fn state(fd: impl AsFd) -> u8 {
    TcpInfo::of(fd.as_fd()).unwrap().state
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

fn dump_one(fd: BorrowedFd<'_>) -> (TcpSocketImage, Undo) {
    dump(&[fd], &mut Direct).pop().unwrap().unwrap()
}

/// Sends as much of a stream from `from` on as is taken, at most `most`; returns how much.
fn write(fd: BorrowedFd<'_>, from: usize, most: usize) -> usize {
    let bytes = stream(from, most);
    let mut done = 0;
    while done < most {
        match socket::send(fd, &bytes[done..]) {
            Ok(n) => done += n,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    done
}

/// Reads exactly `n` bytes.
fn read(fd: BorrowedFd<'_>, n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    let mut done = 0;
    let until = Instant::now() + PATIENCE;
    while done < n {
        match socket::recv(fd, &mut out[done..], 0) {
            Ok(0) => panic!("the end after {done} of {n} bytes in {}", state_name(state(fd))),
            Ok(got) => done += got,
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        assert!(Instant::now() < until, "{done} of {n} bytes in {}", state_name(state(fd)));
    }
    out
}

/// A receive buffer that is full soon.
const SMALL: i32 = 20_000;

/// Where our FIN is not to arrive it stands behind bytes for which the peer has no room.
fn is_stuck(state: u8) -> bool {
    matches!(state, FIN_WAIT1 | LAST_ACK | CLOSING)
}

/// Brings a connection into a state, with `queued` bytes or some more each way. Returns how many were sent and received by us.
fn bring(p: &mut Pair, to: u8, queued: usize) -> (usize, usize) {
    let fd = p.ours.as_fd();
    p.peer.write_all(&stream(0, queued)).unwrap();
    wait("received", || tcp::unread(fd).unwrap() as usize == queued);
    let is_stuck = is_stuck(to);
    let sent = write(fd, 0, if is_stuck { queued.max(2 * SMALL as usize) } else { queued });
    assert!(!is_stuck || tcp::unsent(fd).unwrap() > 0);
    let end_peer = |p: &Pair| p.peer.shutdown(Shutdown::Write).unwrap();
    let end_ours = || socket::shutdown_write(fd).unwrap();
    match to {
        FIN_WAIT1 | FIN_WAIT2 => end_ours(),
        CLOSE_WAIT => end_peer(p),
        LAST_ACK => {
            end_peer(p);
            wait("CLOSE_WAIT", || state(fd) == CLOSE_WAIT);
            end_ours();
        }
        CLOSING => {
            end_ours();
            end_peer(p);
        }
        _ => {}
    }
    wait(state_name(to), || state(fd) == to);
    (sent, queued)
}

fn same(what: &str, got: &[u8], expected: &[u8]) {
    let at = got.iter().zip(expected).position(|(a, b)| a != b);
    assert!(got.len() == expected.len() && at.is_none(), "{what}: {} of {} bytes, {at:?}", got.len(), expected.len());
}

/// A connection in a state with bytes queued, dumped, its socket closed, restored: nothing is missing.
fn round_trip(family: (SocketAddr, IpAddr), to: u8, queued: usize) {
    let what = format!("{family:?} {} {queued}", state_name(to));
    let mut p = pair_with(family, is_stuck(to).then_some(SMALL));
    let (sent, received) = bring(&mut p, to, queued);
    let (image, _) = dump_one(p.ours.as_fd());
    assert_eq!((image.state, image.receive.0.len()), (to, received), "{what}");
    let held = image.send.0.len();
    same(&what, &image.send.0, &stream(sent - held, held));
    let (image_text, binary) = (format!("{image:?}"), serde_json::to_vec(&image).unwrap());
    assert!(image_text.len() < 2000, "payload is shown");
    let image: TcpSocketImage = serde_json::from_slice(&binary).unwrap();
    drop(p.ours);
    let ours = restore(&image, &PLAIN, &mut Direct).unwrap_or_else(|e| panic!("{what}: {e}"));
    let fd = ours.as_fd();
    // A listener at the same port is in nobody's way.
    assert_eq!(socket::local_addr(fd).unwrap().port(), p.listener.local_addr().unwrap().port());
    same(&what, &read(fd, received), &stream(0, received));
    let mut got = vec![0; sent];
    p.peer.read_exact(&mut got).unwrap_or_else(|e| panic!("{what}: {e}"));
    same(&what, &got, &stream(0, sent));
    let peer_ended = image.peer_finished();
    let we_ended = matches!(to, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING);
    // It goes on as far as it may.
    if !peer_ended {
        p.peer.write_all(b"from the peer").unwrap();
        assert_eq!(read(fd, 13), b"from the peer", "{what}");
    }
    if !we_ended {
        assert_eq!(write(fd, sent, 20_000), 20_000, "{what}");
        let mut got = vec![0; 20_000];
        p.peer.read_exact(&mut got).unwrap_or_else(|e| panic!("{what}: {e}"));
        same(&what, &got, &stream(sent, 20_000));
        socket::shutdown_write(fd).unwrap();
    }
    assert_eq!(p.peer.read(&mut [0]).unwrap_or_else(|e| panic!("{what}: {e}")), 0, "{what}");
    wait("our FIN is acknowledged", || tcp::unacknowledged(fd).unwrap() == 0);
    if !peer_ended {
        p.peer.shutdown(Shutdown::Write).unwrap();
        wait("the end", || socket::recv(fd, &mut [0], 0).is_ok_and(|n| n == 0));
    }
    assert_eq!(socket::get_int(fd, libc::SOL_SOCKET, libc::SO_ERROR).unwrap(), 0, "{what}");
}

in_namespace! {
    fn no_byte_is_lost_in_any_state() {
        set_up();
        for family in families() {
            for to in [ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING] {
                for queued in [0, 1, 10_000, 300_000] {
                    round_trip(family, to, queued);
                }
            }
        }
    }

    fn long_queues_are_carried_over() {
        set_up();
        for to in [ESTABLISHED, CLOSE_WAIT, LAST_ACK] {
            round_trip(families()[0], to, 4 << 20);
        }
    }

    fn closing_in_repair_mode_tells_the_peer_nothing() {
        set_up();
        for family in families() {
            let mut p = pair(family);
            let (image, _) = dump_one(p.ours.as_fd());
            let before = TcpInfo::of(p.peer.as_fd()).unwrap();
            drop(p.ours);
            p.peer.set_nonblocking(true).unwrap();
            assert_eq!(p.peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!(TcpInfo::of(p.peer.as_fd()).unwrap().bytes_received, before.bytes_received);
            assert_eq!(state(&p.peer), ESTABLISHED);
            restore(&image, &PLAIN, &mut Direct).unwrap();
        }
    }

    fn what_was_agreed_upon_and_the_options_are_those_of_before() {
        set_up();
        for family in families() {
            for (timestamps, sack, scaling) in [("1", "1", "1"), ("0", "0", "0"), ("1", "0", "1")] {
                sysctl("ipv4/tcp_timestamps", timestamps);
                sysctl("ipv4/tcp_sack", sack);
                sysctl("ipv4/tcp_window_scaling", scaling);
                let p = pair(family);
                let fd = p.ours.as_fd();
                let tcp = |name, value| socket::set_option(fd, libc::IPPROTO_TCP, name, value).unwrap();
                tcp(libc::TCP_KEEPIDLE, 77);
                tcp(libc::TCP_KEEPINTVL, 11);
                tcp(libc::TCP_KEEPCNT, 5);
                socket::set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
                socket::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 50_000).unwrap();
                let (before, _) = dump_one(fd);
                let agreed = (before.agreed.timestamp.is_some(), before.agreed.sack, before.agreed.window_scale.is_some());
                assert_eq!(agreed, (timestamps == "1", sack == "1", scaling == "1"));
                assert_eq!(before.options.keep_alive, Some((77, 11, 5)));
                assert_eq!((before.options.receive_buffer, before.options.send_buffer), (Some(100_000), None));
                assert!(before.options.nodelay && before.options.oob_inline);
                drop(p.ours);
                let again = restore(&before, &PLAIN, &mut Direct).unwrap();
                let (mut after, _) = dump_one(again.as_fd());
                // The clock goes on, and the window was asked for again.
                let (was, is) = (before.agreed.timestamp, after.agreed.timestamp);
                assert!(was.zip(is).is_none_or(|(was, is)| is.wrapping_sub(was) < 10_000), "{was:?} {is:?}");
                after.agreed.timestamp = was;
                after.window = before.window;
                assert_eq!(after, before);
            }
        }
    }

    fn a_dump_that_is_rolled_back_changes_nothing() {
        set_up();
        for family in families() {
            let mut p = pair(family);
            let fd = p.ours.as_fd();
            socket::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
            let has_offset = socket::set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 3).is_ok();
            p.peer.write_all(b"abcdef").unwrap();
            wait("received", || tcp::unread(fd).unwrap() == 6);
            let before = TcpInfo::of(p.peer.as_fd()).unwrap();
            let (image, undo) = dump_one(fd);
            assert_eq!(image.receive.0, b"abcdef");
            roll_back(&[(fd, undo)], &mut Direct);
            // Nothing was sent.
            assert_eq!(TcpInfo::of(p.peer.as_fd()).unwrap().bytes_acked, before.bytes_acked);
            assert_eq!(socket::get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), 1);
            if has_offset {
                let mut rest = [0; 10];
                assert_eq!(socket::recv(fd, &mut rest, libc::MSG_PEEK).unwrap(), 3);
                assert_eq!(&rest[..3], b"def");
            }
            assert_eq!(read(fd, 6), b"abcdef");
            socket::send(fd, b"back").unwrap();
            p.peer.read_exact(&mut [0; 4]).unwrap();
            assert_eq!(hibernet::sys::repair::window(fd).unwrap_err().raw_os_error(), Some(libc::EPERM));
        }
    }

    fn data_behind_an_urgent_mark_are_read() {
        set_up();
        let mut p = pair(families()[0]);
        p.peer.write_all(b"before").unwrap();
        socket::send_urgent(p.peer.as_fd(), b"!").unwrap();
        p.peer.write_all(b"after").unwrap();
        wait("received", || tcp::unread(p.ours.as_fd()).unwrap() == 12);
        let peeks = socket::get_int(p.ours.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF).is_ok();
        match dump(&[p.ours.as_fd()], &mut Direct).pop().unwrap() {
            Ok((image, _)) => assert_eq!(image.receive.0, b"before!after"),
            Err(RepairError::Urgent) => assert!(!peeks),
            Err(e) => panic!("{e}"),
        }
    }

    fn a_peer_that_sends_meanwhile_is_reset_without_a_lock_and_waits_with_one() {
        set_up();
        for family in families() {
            let mut p = pair(family);
            let (image, _) = dump_one(p.ours.as_fd());
            drop(p.ours);
            p.peer.write_all(b"lost").unwrap();
            wait("RST", || p.peer.take_error().unwrap().is_some());

            let mut p = pair(family);
            let lock = Lock::new("test", [Locked::of(p.ours.as_fd()).unwrap()], lock::TIME_OUT).unwrap();
            let (locked_image, _) = dump_one(p.ours.as_fd());
            drop(p.ours);
            p.peer.write_all(&stream(0, 5000)).unwrap();
            // At least one retransmission hits the lock.
            let info = || TcpInfo::of(p.peer.as_fd()).unwrap();
            let since = Instant::now();
            wait("a retransmission", || since.elapsed() > Duration::from_millis(300));
            assert_eq!((info().state, tcp::unacknowledged(p.peer.as_fd()).unwrap()), (ESTABLISHED, 5000));
            let loaded = load(&[&locked_image], &PLAIN, &mut Direct).pop().unwrap().unwrap();
            lock.remove().unwrap();
            let ours = start(vec![(loaded, &locked_image)], &mut Direct).pop().unwrap().unwrap();
            same("locked", &read(ours.as_fd(), 5000), &stream(0, 5000));
            drop(image);
        }
    }

    fn a_lock_holds_what_it_names_and_ends_by_itself() {
        set_up();
        let tables = || std::process::Command::new("nft").args(["list", "tables"]).output().ok().map(|o| o.stdout);
        for at in ["127.0.0.1", "::1"] {
            let at: IpAddr = at.parse().unwrap();
            if at.is_ipv6() && !ns::has_ipv6() {
                continue;
            }
            let (a, b) = (UdpSocket::bind((at, 0)).unwrap(), UdpSocket::bind((at, 0)).unwrap());
            let other = UdpSocket::bind((at, 0)).unwrap();
            a.set_nonblocking(true).unwrap();
            let to_a = a.local_addr().unwrap();
            a.connect(b.local_addr().unwrap()).unwrap();
            let arrives = |from: &UdpSocket, to: SocketAddr, at: &UdpSocket| {
                // What is dropped at the output is an error of the call.
                let _ = from.send_to(b"x", to);
                at.set_nonblocking(true).unwrap();
                at.recv(&mut [0]).is_ok()
            };
            assert!(arrives(&b, to_a, &a));
            let mut lock = Lock::new("udp", [Locked::of(a.as_fd()).unwrap()], Duration::from_millis(500)).unwrap();
            assert!(!arrives(&b, to_a, &a));
            assert!(a.send(b"x").is_err());
            assert!(arrives(&b, other.local_addr().unwrap(), &other));
            lock.renew().unwrap();
            assert!(!arrives(&b, to_a, &a));
            wait("the time-out", || arrives(&b, to_a, &a));
            // By name, as another process does.
            let lock = Lock::new("udp", [Locked::of(a.as_fd()).unwrap()], lock::TIME_OUT).unwrap();
            assert!(!arrives(&b, to_a, &a));
            drop(lock);
            assert!(!arrives(&b, to_a, &a));
            assert!(lock::remove("udp").unwrap() && !lock::remove("udp").unwrap());
            assert!(arrives(&b, to_a, &a));
            // A port at which anybody may call, of one address and of all.
            for any in [false, true] {
                let port = other.local_addr().unwrap().port();
                let mut locked = Locked::of(other.as_fd()).unwrap();
                assert_eq!((locked.peer, locked.port), (None, port));
                if any {
                    locked.local = if at.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
                }
                let lock = Lock::new("port", [locked], lock::TIME_OUT).unwrap();
                assert!(!arrives(&b, other.local_addr().unwrap(), &other), "{any}");
                assert!(arrives(&b, to_a, &a));
                lock.remove().unwrap();
                assert!(arrives(&b, other.local_addr().unwrap(), &other));
            }
            // Remains of a crash are removed by the next one.
            Lock::new("crashed", [Locked::of(a.as_fd()).unwrap()], Duration::from_millis(1)).unwrap();
            wait("the remains", || {
                Lock::new("next", [], lock::TIME_OUT).unwrap().remove().unwrap();
                !lock::remove("crashed").unwrap() || arrives(&b, to_a, &a)
            });
            assert!(tables().is_none_or(|t| t.is_empty()), "{:?}", tables());
        }
        assert!(matches!(Lock::new("a b", [], lock::TIME_OUT), Err(LockError::Os(_))));
    }

    fn a_lock_takes_thousands() {
        set_up();
        for at in ["127.0.0.1", "2001:db8::1"] {
            let addr = |port| HostAddr { ip: at.parse().unwrap(), port, scope: 0 };
            let all = (1..=20_000).map(|n| Locked::new(6, addr(n), Some(addr(9))));
            let mut lock = Lock::new("many", all, lock::TIME_OUT).unwrap();
            lock.renew().unwrap();
            lock.remove().unwrap();
        }
    }

    fn pings_are_locked() {
        set_up();
        sysctl("ipv4/ping_group_range", "0 0");
        for at in families().into_iter().take(2).map(|(_, at)| at) {
            let kind = if at.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
            let open = || {
                let fd = socket::socket(socket::family(at), libc::SOCK_DGRAM, kind).unwrap();
                socket::connect(fd.as_fd(), (at, 0).into()).unwrap();
                fd
            };
            let (a, b) = (open(), open());
            let request = [if at.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 1];
            let ask = |fd: &OwnedFd| socket::send(fd.as_fd(), &request).and_then(|_| socket::recv(fd.as_fd(), &mut [0; 64], 0));
            let lock = Lock::new("ping", [Locked::of(a.as_fd()).unwrap()], lock::TIME_OUT).unwrap();
            ask(&a).unwrap_err();
            ask(&b).unwrap();
            lock.remove().unwrap();
            ask(&a).unwrap();
        }
    }

    fn without_the_capability_nothing_is_changed_and_the_reason_is_said() {
        use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
        set_up();
        assert!(can_repair().is_ok() && can_lock().is_ok());
        let mut p = pair(families()[0]);
        let (image, undo) = dump_one(p.ours.as_fd());
        roll_back(&[(p.ours.as_fd(), undo)], &mut Direct);
        let all = capabilities(None).unwrap();
        set_capabilities(None, CapabilitySets { effective: all.effective - CapabilitySet::NET_ADMIN, ..all }).unwrap();
        let not_permitted = |e: RepairError| assert!(matches!(e, RepairError::NotPermitted(_)), "{e}");
        not_permitted(can_repair().unwrap_err());
        not_permitted(dump(&[p.ours.as_fd()], &mut Direct).pop().unwrap().unwrap_err());
        not_permitted(restore(&image, &PLAIN, &mut Direct).unwrap_err());
        assert!(matches!(can_lock(), Err(LockError::NotPermitted)));
        let wanted = |mode| lock::acquire(mode, "x", [], lock::TIME_OUT);
        assert!(matches!(wanted(LockMode::Auto), Ok(Err(Some(LockError::NotPermitted)))));
        assert!(matches!(wanted(LockMode::Nft), Err(LockError::NotPermitted)));
        assert!(matches!(wanted(LockMode::None), Ok(Err(None))));
        p.peer.write_all(b"goes on").unwrap();
        assert_eq!(read(p.ours.as_fd(), 7), b"goes on");
    }

    fn an_address_that_is_not_there_or_is_in_use() {
        set_up();
        ip("addr add 192.0.2.1/32 dev lo");
        let mut p = pair(("192.0.2.1:0".parse().unwrap(), "192.0.2.1".parse().unwrap()));
        let (image, _) = dump_one(p.ours.as_fd());
        let in_use = restore(&image, &PLAIN, &mut Direct).unwrap_err();
        assert!(matches!(in_use, RepairError::Address { .. }), "{in_use}");
        drop(p.ours);
        let lock = Lock::new("x", [Locked::new(6, image.local, Some(image.peer))], lock::TIME_OUT).unwrap();
        ip("addr del 192.0.2.1/32 dev lo");
        let absent = restore(&image, &PLAIN, &mut Direct).unwrap_err();
        assert!(matches!(absent, RepairError::Address { .. }), "{absent}");
        let mut image2 = image.clone();
        image2.peer.ip = "127.0.0.1".parse().unwrap();
        let foreign = load(&[&image2], &RestoreOptions { foreign_address: true }, &mut Direct).pop().unwrap();
        foreign.unwrap();
        ip("addr add 192.0.2.1/32 dev lo");
        let loaded = load(&[&image], &PLAIN, &mut Direct).pop().unwrap().unwrap();
        lock.remove().unwrap();
        let ours = start(vec![(loaded, &image)], &mut Direct).pop().unwrap().unwrap();
        p.peer.write_all(b"on").unwrap();
        assert_eq!(read(ours.as_fd(), 2), b"on");
    }

    fn a_connect_under_way_is_begun_again() {
        set_up();
        for (listen, at) in families() {
            let listener = TcpListener::bind(listen).unwrap();
            socket::listen(listener.as_fd(), 0).unwrap();
            let to: SocketAddr = (at, listener.local_addr().unwrap().port()).into();
            let _filler = TcpStream::connect(to).unwrap();
            let ours = socket::socket(socket::family(at), libc::SOCK_STREAM, 0).unwrap();
            socket::connect(ours.as_fd(), to).unwrap();
            assert_eq!(state(&ours), SYN_SENT);
            assert_eq!(socket::destination(ours.as_fd()).unwrap(), to);
            let refused = dump(&[ours.as_fd()], &mut Direct).pop().unwrap().unwrap_err();
            assert!(refused.to_string().contains("SYN_SENT"), "{refused}");
            let image = connecting(ours.as_fd(), to).unwrap();
            drop(ours);
            listener.accept().unwrap();
            let ours = restore(&image, &PLAIN, &mut Direct).unwrap();
            let (mut peer, from) = listener.accept().unwrap();
            assert_eq!(from.port(), image.local.port);
            wait("connected", || state(&ours) == ESTABLISHED);
            socket::send(ours.as_fd(), b"hello").unwrap();
            peer.read_exact(&mut [0; 5]).unwrap();
        }
    }

    fn damaged_images_are_refused() {
        set_up();
        let p = pair(families()[0]);
        let (image, undo) = dump_one(p.ours.as_fd());
        roll_back(&[(p.ours.as_fd(), undo)], &mut Direct);
        let changes: [fn(&mut TcpSocketImage); 9] = [
            |i| i.state = 10,
            |i| i.state = 200,
            |i| i.local.ip = "::1".parse().unwrap(),
            |i| i.peer.port = 0,
            |i| i.local.port = 0,
            |i| i.unsent = 1,
            |i| i.agreed.window_scale = Some((15, 0)),
            |i| i.agreed.mss = 0,
            |i| (i.state, i.send.0) = (FIN_WAIT2, vec![1]),
        ];
        for change in changes {
            let mut bad = image.clone();
            change(&mut bad);
            let e = restore(&bad, &PLAIN, &mut Direct).unwrap_err();
            assert!(matches!(e, RepairError::Invalid(_)), "{e}");
        }
        let dead = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let all = dump(&[dead.as_fd(), p.listener.as_fd(), p.ours.as_fd()], &mut Direct);
        assert!(matches!(all[..], [Err(RepairError::State(7)), Err(RepairError::State(10)), Ok(_)]), "{all:?}");
    }

    /// The stack's view: sockets with the ids of before, and the end of a stream whose FIN the kernel has forgotten.
    fn rebuilt_sockets_go_on_behind_the_edge() {
        set_up();
        for at in common::loopbacks() {
            let mut host = Host::new();
            let (a, mut peer_a) = host.connected(token(1), at);
            let (b, mut peer_b) = host.connected(token(2), at);
            peer_a.write_all(&stream(0, 9000)).unwrap();
            peer_b.write_all(&stream(0, 5000)).unwrap();
            peer_b.shutdown(Shutdown::Write).unwrap();
            host.wait(token(2), |r| r.peer_closed);
            assert_eq!(host.peek_bytes(a, 4000, 100), stream(4000, 100));
            host.edge.tcp_consume(a, 2000).unwrap();
            host.edge.tcp_consume(b, 1000).unwrap();
            for round in 0..3 {
                let state = host.edge.sockets.save().unwrap();
                let fds: Vec<_> = host.edge.sockets.descriptors().map(|(_, fd)| fd).collect();
                let images: Vec<_> = dump(&fds, &mut Direct).into_iter().map(|r| r.unwrap().0).collect();
                drop(host.replace(Sockets::new(None, None).unwrap()));
                let mut fds = images.iter().map(|i| restore(i, &PLAIN, &mut Direct).unwrap());
                let rebuilt = Sockets::restore(state, None, None, &mut |_| fds.next().map(Supplied::Rebuilt));
                let (sockets, fates) = rebuilt.unwrap();
                assert_eq!(fates, [(a, SocketFate::Resumed), (b, SocketFate::Resumed)]);
                host.replace(sockets);
                host.wait(token(1), |r| r.readable && r.writable);
                host.wait(token(2), |r| r.readable && r.peer_closed);
                assert_eq!(host.peek_bytes(a, 0, 9000), stream(2000, 7000), "{round}");
                assert_eq!(host.peek_bytes(b, 1000, 9000), stream(2000, 3000), "{round}");
                assert_eq!(host.edge.tcp_peek(b, 4000, 10), Ok(Peek::Eof));
                assert_eq!(host.edge.tcp_peek(a, 7000, 10), Ok(Peek::Empty));
                assert_eq!(host.edge.tcp_send_bytes(b, b"half"), Ok(4));
                peer_b.read_exact(&mut [0; 4]).unwrap();
            }
            host.edge.tcp_consume(b, 4000).unwrap();
            assert_eq!(host.edge.tcp_peek(b, 0, 10), Ok(Peek::Eof));
            host.edge.tcp_shutdown(b).unwrap();
            assert_eq!(peer_b.read(&mut [0]).unwrap(), 0);
            host.edge.close(b, Close::Graceful);
            host.assert_no_slots();
        }
    }
}
