//! How long host sockets take to change their owner: handed to another process, and carried over by TCP repair.
//!
//! Runs itself again in a network namespace of its own, so that it needs no privilege. Prints one line for each step: best and median of
//! several rounds, and the least processor time of the thread, which says what a machine without other work would need (it leaves out
//! waiting for the other process and for the kernel's grace periods). In `repair`, all that is queued towards the peers was not sent
//! yet, so that `start` includes sending it.

use hibernet::checkpoint::image::TcpSocketImage;
use hibernet::checkpoint::lock::{Lock, Locked, TIME_OUT};
use hibernet::checkpoint::rebuild::{RestoreOptions, load, start};
use hibernet::checkpoint::repair::dump;
use hibernet::checkpoint::switch::Direct;
use hibernet::sandbox::fds;
use hibernet::sock::{SocketFate, Sockets, SocketsState, Supplied};
use hibernet::sys::{rlimit, socket, tcp};
use hibernet_netstack::edge::{Source, Token, TokenKind};
use hibernet_netstack::tuple::Endpoint;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROLE: &str = "HIBERNET_SOCKETS_BENCH";
const ROUNDS: usize = 7;
/// Most bytes that are queued each way.
const QUEUED: usize = 16 << 10;

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("inside") => inside(),
        Ok("successor") => successor(),
        _ => {
            let exe = std::env::current_exe().expect("this program");
            let status = Command::new("unshare").arg("-Urn").arg(exe).env(ROLE, "inside").status();
            match status {
                Ok(s) if s.success() => {}
                other => println!("no network namespace of our own, nothing measured: {other:?}"),
            }
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn inside() {
    rlimit::set_open_files(u64::MAX).expect("the limit of open files");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
    assert!(up.success());
    for n in [1000, 5000] {
        handover(n);
        repair(n);
    }
}

/// Connected flow sockets and their peers; each peer has sent something.
fn connections(n: usize) -> (Sockets, Vec<TcpStream>) {
    let mut sockets = Sockets::new(None, None).expect("sockets");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let to = Endpoint::from(listener.local_addr().expect("its address"));
    let mut peers = Vec::new();
    for i in 0..n {
        let id = sockets.tcp_connect(Token::new(TokenKind::Tcp, i as u32, 1), to, Source::ANY).expect("a connection");
        let (mut peer, _) = listener.accept().expect("its peer");
        assert_eq!(id.0 & 0xf_ffff, i as u32);
        peer.write_all(&vec![7; queued(i)]).expect("room");
        peers.push(peer);
    }
    (sockets, peers)
}

fn queued(i: usize) -> usize {
    (i * 7919) % (QUEUED + 1)
}

/// Time that has passed, and processor time of this thread.
#[derive(Clone, Copy)]
struct Spent {
    wall: Duration,
    cpu: Duration,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.wall += other.wall;
        self.cpu += other.cpu;
    }
}

struct Clock(Instant, Duration);

impl Clock {
    fn start() -> Clock {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Clock(Instant::now(), Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }

    /// What was spent since the start or the last lap.
    fn lap(&mut self) -> Spent {
        let now = Clock::start();
        let spent = Spent { wall: now.0 - self.0, cpu: now.1 - self.1 };
        *self = now;
        spent
    }
}

/// Prints the best and the median of times.
fn report(n: usize, what: &str, spent: &[Spent]) {
    let sorted = |of: fn(&Spent) -> Duration| {
        let mut all: Vec<f64> = spent.iter().map(|s| of(s).as_secs_f64() * 1e3).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (wall, cpu) = (sorted(|s| s.wall), sorted(|s| s.cpu));
    println!("{n:5} {what:42} {:8.2} ms best {:8.2} ms median {:8.2} ms cpu", wall[0], wall[wall.len() / 2], cpu[0]);
}

fn spawn() -> (OwnedFd, Child) {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
    let exe = std::env::current_exe().expect("this program");
    let child = Command::new(exe).env(ROLE, "successor").stdin(Stdio::from(theirs)).spawn().expect("it starts");
    // It has got everything that it needs of the file system.
    expect_byte(ours.as_fd());
    (ours, child)
}

fn expect_byte(fd: BorrowedFd<'_>) {
    fds::receive_message(fd, &mut [0; 2], &mut Vec::new(), soon()).expect("a message");
}

/// The other process: takes the sockets, and says so.
fn successor() {
    rlimit::set_open_files(u64::MAX).expect("the limit of open files");
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    fds::send_message(socket, &[1], &[], soon()).expect("the other side");
    let mut received = fds::receive(socket, 1 << 20, soon()).expect("the state");
    let mut json = Vec::new();
    let (_, file) = received.pop().expect("a file");
    std::fs::File::from(file).read_to_end(&mut json).expect("the state");
    let state: SocketsState = serde_json::from_slice(&json).expect("the state");
    fds::send_message(socket, &[1], &[], soon()).expect("the other side");
    let mut held: HashMap<u32, OwnedFd> = fds::receive(socket, 1 << 20, soon()).expect("the sockets").into_iter().collect();
    let (all, fates) =
        Sockets::restore(state, None, None, &mut |id| held.remove(&id.0).map(Supplied::Held)).expect("a good state");
    fds::send_message(socket, &[1], &[], soon()).expect("the other side");
    assert!(fates.iter().all(|(_, f)| *f == SocketFate::Resumed), "{:?}", fates.iter().find(|(_, f)| *f != SocketFate::Resumed));
    assert_eq!(all.len(), fates.len());
}

fn handover(n: usize) {
    let (sockets, peers) = connections(n);
    let (mut saved, mut handed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (socket, mut child) = spawn();
        let mut clock = Clock::start();
        let state = sockets.save().expect("the numbers");
        saved.push(clock.lap());
        let file = rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        let mut file = std::fs::File::from(file);
        file.write_all(&serde_json::to_vec(&state).expect("memory")).expect("memory");
        std::io::Seek::rewind(&mut file).expect("a file");
        fds::send(&socket, [(0, file.as_fd())], soon()).expect("the other side");
        expect_byte(socket.as_fd());
        // The image is written and read elsewhere; here it is about the sockets.
        let all: Vec<_> = sockets.descriptors().map(|(id, fd)| (id.0, fd)).collect();
        clock.lap();
        fds::send(&socket, all, soon()).expect("the other side");
        expect_byte(socket.as_fd());
        handed.push(clock.lap());
        assert!(child.wait().expect("it ends").success());
    }
    report(n, "handover: numbers written down", &saved);
    report(n, "handover: sent, compared, watched again", &handed);
    drop(peers);
}

fn repair(n: usize) {
    // The last is the bench's own.
    let steps = ["lock", "dump", "close", "load", "unlock", "start", ""];
    let mut times = vec![Vec::new(); steps.len()];
    let (mut frozen, mut restored) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (sockets, mut peers) = connections(n);
        let ours = sockets.release();
        // What is sent behind the lock stays in the send queue.
        let locked = || ours.iter().map(|(_, fd)| Locked::of(fd.as_fd()).expect("its addresses"));
        let first = Lock::new("fill", locked(), TIME_OUT).expect("nf_tables");
        for (i, (_, fd)) in ours.iter().enumerate() {
            let bytes = vec![9; queued(i + 1)];
            assert_eq!(socket::send(fd.as_fd(), &bytes).expect("room"), bytes.len());
        }
        let mut clock = Clock::start();
        let mut lap = |i: usize| {
            let spent = clock.lap();
            times[i].push(spent);
            spent
        };
        let lock = Lock::new("bench", locked(), TIME_OUT).expect("nf_tables");
        let mut freeze = lap(0);
        let fds: Vec<_> = ours.iter().map(|(_, fd)| fd.as_fd()).collect();
        let images: Vec<TcpSocketImage> = dump(&fds, &mut Direct).into_iter().map(|r| r.expect("a connection").0).collect();
        freeze += lap(1);
        drop(ours);
        freeze += lap(2);
        frozen.push(freeze);
        first.remove().expect("nf_tables");
        lap(6);
        let loaded = load(&images.iter().collect::<Vec<_>>(), &RestoreOptions::default(), &mut Direct);
        let loaded: Vec<_> = loaded.into_iter().zip(&images).map(|(fd, image)| (fd.expect("a socket"), image)).collect();
        let mut restore = lap(3);
        lock.remove().expect("nf_tables");
        restore += lap(4);
        let alive = start(loaded, &mut Direct);
        restore += lap(5);
        restored.push(restore);
        for (i, (fd, peer)) in alive.into_iter().zip(&mut peers).enumerate() {
            let fd = fd.expect("a socket");
            assert_eq!(tcp::unread(fd.as_fd()).expect("a socket") as usize, queued(i));
            let mut all = vec![0; queued(i + 1)];
            peer.read_exact(&mut all).expect("what was sent");
            assert!(all.iter().all(|b| *b == 9));
        }
    }
    for (step, times) in steps.iter().zip(times).filter(|(step, _)| !step.is_empty()) {
        report(n, &format!("repair: {step}"), &times);
    }
    report(n, "repair: frozen (lock, dump, close)", &frozen);
    report(n, "repair: restored (load, unlock, start)", &restored);
}
