//! `hibernet repair-helper`: what it does for whom, and what it refuses.

#[allow(dead_code)]
#[path = "link_kernel/ns.rs"]
mod ns;
mod support;

use hibernet::checkpoint::helper::{Helper, HelperError};
use hibernet::checkpoint::image::TcpSocketImage;
use hibernet::checkpoint::rebuild::{RestoreOptions, load, start};
use hibernet::checkpoint::repair::{RepairError, dump, roll_back};
use hibernet::checkpoint::switch::Switch;
use hibernet::sandbox::fds;
use hibernet::sys::process::unshare;
use hibernet::sys::repair::Repair;
use hibernet::sys::{rlimit, socket};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, capabilities, move_into_link_name_space, set_capabilities,
};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

/// A helper that runs.
struct Running {
    child: Child,
    path: PathBuf,
}

impl Running {
    fn new(name: &str, options: &[&str]) -> Running {
        let path = std::env::temp_dir().join(format!("hibernet-helper-{}-{name}", std::process::id()));
        let child = spawn(&path, options);
        let r = Running { child, path };
        wait("the helper listens", || r.path.exists() && Helper::connect(&r.path).is_ok());
        r
    }

    fn connect(&self) -> Helper {
        Helper::connect(&self.path).unwrap()
    }

    fn raw(&self) -> OwnedFd {
        let s = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None).unwrap();
        rustix::net::connect(&s, &SocketAddrUnix::new(&self.path).unwrap()).unwrap();
        s
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        let status = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(status.success() && !self.path.exists());
        }
    }
}

fn spawn(path: &Path, options: &[&str]) -> Child {
    let mut c = Command::new(env!("CARGO_BIN_EXE_hibernet"));
    c.arg("repair-helper").arg("--socket").arg(path).args(options).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pairs(n: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    (0..n).map(|_| (TcpStream::connect(at).unwrap(), listener.accept().unwrap().0)).unzip()
}

fn drop_capability() {
    let all = capabilities(None).unwrap();
    set_capabilities(None, CapabilitySets { effective: all.effective - CapabilitySet::NET_ADMIN, ..all }).unwrap();
}

/// A queue may be a little longer than the kernel lets it grow to, and made again it takes more memory: it is filled in other pieces. Only root's helper may
/// make room beyond the system's limits, so that this is in a network namespace without users of its own.
#[test]
fn a_queue_that_was_full_is_carried_over() {
    let body = || {
        if unshare(libc::CLONE_NEWNET).is_err() {
            return support::skip("a_queue_that_was_full_is_carried_over", "it needs root");
        }
        ns::ip("link set lo up");
        let running = Running::new("full", &[]);
        let (ours, mut peers) = pairs(1);
        let mut helper = running.connect();
        let mut image = dump(&[ours[0].as_fd()], &mut helper).pop().unwrap().unwrap().0;
        drop(ours);
        let most = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap();
        let most: usize = most.split_whitespace().nth(2).unwrap().parse().unwrap();
        let all: Vec<u8> = (0..=250).cycle().take(most + (64 << 10)).collect();
        (image.send.0, image.unsent) = (all.clone(), all.len() as u32);
        let loaded = load(&[&image], &RestoreOptions::default(), &mut helper).pop().unwrap().unwrap();
        let started = start(vec![(loaded, &image)], &mut helper).pop().unwrap();
        let stream = TcpStream::from(started.expect("all of it has room"));
        socket::shutdown_write(stream.as_fd()).unwrap();
        let mut got = Vec::new();
        peers[0].read_to_end(&mut got).unwrap();
        assert!(got == all, "{} of {} bytes", got.len(), all.len());
    };
    std::thread::scope(|s| s.spawn(body).join().unwrap());
}

in_namespace! {
    fn connections_are_carried_over_by_somebody_without_the_capability() {
        ns::ip("link set lo up");
        rlimit::set_open_files(u64::MAX).unwrap();
        let running = Running::new("carry", &[]);
        drop_capability();
        let mut helper = running.connect();
        // More than fit into one message.
        let (ours, mut peers) = pairs(600);
        let fds: Vec<BorrowedFd<'_>> = ours.iter().map(AsFd::as_fd).collect();
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&vec![i as u8; i]).unwrap();
        }
        helper.lock("some_flows", &fds).unwrap();
        let dumped: Vec<_> = dump(&fds, &mut helper).into_iter().map(Result::unwrap).collect();
        let (images, undo): (Vec<TcpSocketImage>, Vec<_>) = dumped.into_iter().unzip();
        roll_back(&fds.iter().copied().zip(undo).collect::<Vec<_>>(), &mut helper);
        let again: Vec<TcpSocketImage> = dump(&fds, &mut helper).into_iter().map(|r| r.unwrap().0).collect();
        assert!(images.iter().zip(&again).all(|(a, b)| a.receive == b.receive && a.send_seq == b.send_seq));
        drop(ours);
        // Another process may remove the lock.
        let loaded = load(&again.iter().collect::<Vec<_>>(), &RestoreOptions::default(), &mut helper);
        let loaded = loaded.into_iter().zip(&again).map(|(fd, image)| (fd.unwrap(), image)).collect();
        let mut other = running.connect();
        assert!(other.unlock("some_flows").unwrap() && !other.unlock("some_flows").unwrap());
        for (i, fd) in start(loaded, &mut other).into_iter().enumerate() {
            let mut stream = TcpStream::from(fd.unwrap());
            stream.set_nonblocking(false).unwrap();
            let mut all = vec![0; i];
            stream.read_exact(&mut all).unwrap();
            assert!(all.iter().all(|b| *b == i as u8));
            stream.write_all(b"x").unwrap();
            peers[i].read_exact(&mut [0]).unwrap();
        }
    }

    fn a_lock_lasts_as_long_as_whoever_made_it() {
        ns::ip("link set lo up");
        let running = Running::new("last", &["--lock-seconds", "1"]);
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.set_nonblocking(true).unwrap();
        let arrives = || {
            // What is dropped at the output is an error of the call.
            let _ = b.send_to(b"x", a.local_addr().unwrap());
            a.recv(&mut [0]).is_ok()
        };
        let mut helper = running.connect();
        helper.lock("port", &[a.as_fd()]).unwrap();
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            assert!(!arrives());
            std::thread::sleep(Duration::from_millis(5));
        }
        // Somebody else unlocks, and it stays so.
        assert!(running.connect().unlock("port").unwrap());
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            assert!(arrives());
            std::thread::sleep(Duration::from_millis(5));
        }
        // Whoever made it is gone.
        helper.lock("port", &[a.as_fd()]).unwrap();
        assert!(!arrives());
        drop(helper);
        wait("the time-out", arrives);
    }

    fn what_it_does_not_serve_is_refused_and_what_came_before_is_said() {
        ns::ip("link set lo up");
        let running = Running::new("refuse", &[]);
        let mut helper = running.connect();
        let (ours, _peers) = pairs(2);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = File::open("/dev/null").unwrap();
        let here = File::open("/proc/thread-self/ns/net").unwrap();
        unshare(libc::CLONE_NEWNET).unwrap();
        let elsewhere = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        move_into_link_name_space(here.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        for (stranger, expected) in [(udp.as_fd(), "TCP connections only"), (file.as_fd(), "TCP"), (elsewhere.as_fd(), "another network")] {
            let e = helper.set(&[ours[0].as_fd(), ours[1].as_fd(), stranger], Repair::On).unwrap_err();
            assert!(e.done == 2 && e.to_string().contains(expected), "{e:?}");
            helper.set(&[ours[0].as_fd(), ours[1].as_fd()], Repair::OffSilently).unwrap();
        }
        let mut dumped = dump(&[ours[0].as_fd(), elsewhere.as_fd()], &mut helper);
        assert!(matches!(dumped.pop(), Some(Err(RepairError::State(7)))));
        let (_, undo) = dumped.pop().unwrap().unwrap();
        roll_back(&[(ours[0].as_fd(), undo)], &mut helper);
        // A port that others may have too is not locked.
        let free = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        assert!(matches!(helper.lock("x", &[free.as_fd()]), Err(HelperError::Os(_))));
        for name in ["", "a b", "../x", &"x".repeat(60)] {
            assert!(matches!(helper.lock(name, &[ours[0].as_fd()]), Err(HelperError::Os(_))) || name.is_empty(), "{name}");
        }
        helper.unlock("").unwrap();
    }

    fn nonsense_hurts_nobody_else() {
        ns::ip("link set lo up");
        let running = Running::new("nonsense", &[]);
        let (ours, _peers) = pairs(1);
        let soon = || Instant::now() + PATIENCE;
        let answer = |bytes: &[u8], fds: &[BorrowedFd<'_>]| {
            let s = running.raw();
            fds::send_message(s.as_fd(), bytes, fds, soon()).unwrap();
            let mut out = [0; 16];
            fds::receive_message(s.as_fd(), &mut out, &mut Vec::new(), soon()).map(|n| out[..n].to_vec())
        };
        for bytes in [&b"?"[..], b"\0", b"l", b"u", b"l\xff\xff"] {
            assert_eq!(answer(bytes, &[ours[0].as_fd()]).unwrap()[4..], libc::EINVAL.to_le_bytes(), "{bytes:?}");
        }
        assert_eq!(answer(b"r", &[]).unwrap(), [0; 8]);
        assert!(answer(&[b'r'; 1000], &[]).is_err());
        // More clients than are served at a time, silent ones; a client that does not read.
        let silent: Vec<OwnedFd> = (0..31).map(|_| running.raw()).collect();
        let deaf = running.raw();
        let mut sent = 0;
        while sent < 100_000 && fds::send_message(deaf.as_fd(), b"r", &[], Instant::now() + Duration::from_millis(50)).is_ok() {
            sent += 1;
        }
        drop(silent);
        drop(deaf);
        let mut helper = running.connect();
        helper.set(&[ours[0].as_fd()], Repair::On).unwrap();
        helper.set(&[ours[0].as_fd()], Repair::OffSilently).unwrap();
    }

    fn one_helper_for_one_path() {
        let running = Running::new("path", &[]);
        let mut second = spawn(&running.path, &[]);
        assert_eq!(second.wait().unwrap().code(), Some(77));
        let mut why = String::new();
        second.stderr.take().unwrap().read_to_string(&mut why).unwrap();
        assert!(why.contains("already"), "{why}");
        running.connect();
        // The rest of one that was killed is no obstacle.
        let path = running.path.with_extension("killed");
        let mut killed = spawn(&path, &[]);
        wait("it listens", || Helper::connect(&path).is_ok());
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(path.exists());
        drop(Running::new(&path.file_name().unwrap().to_str().unwrap().replace(&format!("hibernet-helper-{}-", std::process::id()), ""), &[]));
        assert!(matches!(Helper::connect(&path), Err(HelperError::Missing { .. })));
    }
}

#[test]
fn without_the_capability_it_does_not_start() {
    let Ok(out) = Command::new("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", env!("CARGO_BIN_EXE_hibernet"), "repair-helper"])
        .args(["--socket", "/nonexistent/x"])
        .output()
    else {
        return support::skip("without_the_capability_it_does_not_start", "needs setpriv");
    };
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    if why.contains("setpriv") {
        return support::skip("without_the_capability_it_does_not_start", "needs root");
    }
    assert_eq!(out.status.code(), Some(71), "{why}");
    assert!(why.contains("CAP_NET_ADMIN"), "{why}");
}

/// Needs the machine's root, since other users do not exist in a namespace of one's own.
#[test]
fn other_users_are_served_when_they_are_allowed() {
    let can = hibernet::checkpoint::probe::can_repair().is_ok() && rustix::process::geteuid().is_root();
    if !can {
        return support::skip("other_users_are_served_when_they_are_allowed", "needs root");
    }
    let connect_as = |path: &Path, uid: u32| {
        std::thread::scope(|s| {
            let in_thread = || {
                let uid = rustix::process::Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                let ours = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
                let mut helper = Helper::connect(path)?;
                helper.set(&[ours.as_fd()], Repair::On).map_err(|e| HelperError::Os(e.error))
            };
            s.spawn(in_thread).join().unwrap()
        })
    };
    let own = Running::new("own", &[]);
    assert!(matches!(connect_as(&own.path, 4711), Err(HelperError::NotAllowed)));
    connect_as(&own.path, 0).unwrap();
    let shared = Running::new("shared", &["--allow-uid", "4711"]);
    connect_as(&shared.path, 4711).unwrap();
    let refused = connect_as(&shared.path, 4712).unwrap_err().to_string();
    assert!(refused.contains("does not serve this user"), "{refused}");
}
