//! Descriptors by the thousand to another process: this program, which runs itself again.

#[allow(dead_code)]
#[path = "link_kernel/ns.rs"]
mod ns;
mod support;

use hibernet::sandbox::fds::{self, FdsError};
use hibernet::sys::rlimit;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the other process does.
const ROLE: &str = "HIBERNET_FDS_TEST";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// Starts this program as the other side; the socket is its standard input.
fn other_side(role: &str) -> (OwnedFd, Child) {
    let (ours, theirs) = pair();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_side", "--nocapture"])
        .env(ROLE, role)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (ours, child)
}

#[test]
fn the_other_side() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let (role, limit) = role.split_once(' ').unwrap();
    rlimit::set_open_files(limit.parse().unwrap()).unwrap();
    match role {
        "receive" => {
            let all = fds::receive(socket, 10_000, soon()).unwrap();
            // All are the files that their numbers say.
            for (id, fd) in &all {
                let inode = rustix::fs::fstat(fd).unwrap().st_ino;
                assert_eq!(u64::from(*id), inode & 0xffff_ffff);
            }
            fds::send_message(socket, &(all.len() as u32).to_le_bytes(), &[], soon()).unwrap();
        }
        "without-room" => {
            let e = fds::receive(socket, 10_000, soon()).unwrap_err();
            assert!(matches!(e, FdsError::NoRoom), "{e}");
        }
        _ => unreachable!(),
    }
}

fn id(f: &File) -> u32 {
    f.metadata().unwrap().ino() as u32
}

fn ends(mut child: Child) {
    assert!(child.wait().unwrap().success());
}

#[test]
fn thousands_arrive_in_order_and_named() {
    let files = [File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap(), File::open("/proc/self/stat").unwrap()];
    for count in [0, 1, 252, 253, 254, 5000] {
        let (socket, child) = other_side("receive 8000");
        let all = (0..count).map(|i| (id(&files[i % 3]), files[i % 3].as_fd()));
        fds::send(&socket, all, soon()).unwrap();
        let mut bytes = [0; 4];
        assert_eq!(fds::receive_message(socket.as_fd(), &mut bytes, &mut Vec::new(), soon()).unwrap(), 4);
        assert_eq!(u32::from_le_bytes(bytes), count as u32);
        ends(child);
    }
}

#[test]
fn no_room_for_them_is_said_to_both() {
    let file = File::open("/dev/null").unwrap();
    let (socket, child) = other_side("without-room 300");
    let e = fds::send(&socket, vec![(1, file.as_fd()); 5000], soon()).unwrap_err();
    assert!(matches!(e, FdsError::Closed), "{e}");
    ends(child);
}

in_namespace! {
    /// Root of a user namespace is bound by the limit of descriptors in flight as anybody else is; real root is not.
    fn fewer_in_flight_than_there_are() {
        let file = File::open("/dev/null").unwrap();
        let (socket, child) = other_side("receive 8000");
        rlimit::set_open_files(100).unwrap();
        fds::send(&socket, vec![(id(&file), file.as_fd()); 5000], soon()).unwrap();
        ends(child);
    }

    fn others_have_too_many_in_flight() {
        rlimit::set_open_files(100).unwrap();
        let file = File::open("/dev/null").unwrap();
        let (stuck, _unread) = pair();
        fds::send_message(stuck.as_fd(), b"x", &[file.as_fd(); 253], soon()).unwrap();
        let (socket, _other) = pair();
        let e = fds::send(&socket, [(1, file.as_fd())], Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(matches!(e, FdsError::InFlight), "{e}");
    }
}

#[test]
fn a_silent_or_gone_other_side_is_told_apart() {
    let file = File::open("/dev/null").unwrap();
    let at_once = Instant::now() + Duration::from_millis(20);
    let (a, b) = pair();
    assert!(matches!(fds::receive(&a, 1, at_once), Err(FdsError::TimedOut)));
    let many: Vec<(u32, BorrowedFd<'_>)> = vec![(0, file.as_fd()); 2000];
    assert!(matches!(fds::send(&a, many.clone(), at_once), Err(FdsError::TimedOut)));
    drop(b);
    assert!(matches!(fds::receive(&a, 1, soon()), Err(FdsError::Closed)));
    assert!(matches!(fds::send(&a, many, soon()), Err(FdsError::Closed)));
}

#[test]
fn nonsense_is_refused() {
    let file = File::open("/dev/null").unwrap();
    let word = |n: &[u32]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let cases: [(Vec<u8>, usize); 9] = [
        (b"x".to_vec(), 0),
        (word(&[1, 1, 5, 5]), 1),
        (word(&[1, 1, 5]), 0),
        (word(&[1, 1, 5]), 2),
        (word(&[1, 0]), 0),
        (word(&[1, 2, 5, 5]), 2),
        (word(&[0, 1, 5]), 1),
        (word(&[u32::MAX, u32::MAX]), 0),
        (vec![0; 4000], 0),
    ];
    for (bytes, n) in cases {
        let (a, b) = pair();
        fds::send_message(a.as_fd(), &bytes, &vec![file.as_fd(); n], soon()).unwrap();
        let e = fds::receive(&b, 5, soon()).unwrap_err();
        assert!(matches!(e, FdsError::Garbled | FdsError::TooMany(_)), "{bytes:?}: {e}");
    }
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(fds::receive(&a, 5, soon()), Err(FdsError::Os(_))));
}
