//! Both ends of many TCP connections whose every byte is checked, in both directions at once.
//!
//! ```text
//! usage: streams serve|connect ADDRESS PORT [KEY=VALUE...]
//!   conns=N      so many connections (1); the server ends with the last of them
//!   total=BYTES  sends so many on each connection, then a FIN
//!   stop=FILE    sends until FILE exists, then a FIN
//!   chunk=BYTES every=MS   sends so many every MS milliseconds; else as fast as it can
//!   read=FILE    reads nothing until FILE exists
//!   write=FILE   sends nothing until FILE exists
//! ```
//!
//! A client says first which connection it is. A byte depends on connection, direction and position, so that none can be lost, doubled, moved or
//! given to another connection. While it runs it prints `at up=N sent=N received=N least=N` whenever that changed (`least`: received by the connection
//! that received least), at the end `done sent=N received=N sent-mark=H received-mark=H` where a mark is a sum over connections of a hash of connection
//! and length. Anything wrong is a line `WRONG ...`, and exit status 1.

use rustix::event::{Timespec, epoll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(5);
const REPORT: Duration = Duration::from_millis(20);
const PIECE: usize = 64 << 10;
/// Sent on one connection before the next has its turn.
const TURN: usize = 4 * PIECE;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const LISTENER: u64 = u64::MAX;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bytes of a stream from a position on, as many as fit into `buf` less up to 8. Gives where they begin there.
fn fill(seed: u64, pos: u64, buf: &mut [u8]) -> usize {
    for (word, k) in buf.chunks_exact_mut(8).zip(pos / 8..) {
        word.copy_from_slice(&mix(seed.wrapping_add(k.wrapping_mul(GOLDEN))).to_le_bytes());
    }
    (pos % 8) as usize
}

struct Options {
    conns: usize,
    total: Option<u64>,
    stop: Option<PathBuf>,
    chunk: u64,
    every: Duration,
    read: Option<PathBuf>,
    write: Option<PathBuf>,
}

struct Conn {
    stream: TcpStream,
    /// A client's is known from the start, a server's when the first 8 bytes are there.
    id: Option<u64>,
    head: Vec<u8>,
    sent: u64,
    received: u64,
    /// As many as the pace allows so far.
    allowed: u64,
    next: Instant,
    fin_sent: bool,
    fin_received: bool,
    watched: epoll::EventFlags,
}

struct Ends {
    serves: bool,
    options: Options,
    epoll: std::os::fd::OwnedFd,
    conns: HashMap<u64, Conn>,
    begun: usize,
    finished: usize,
    wrong: bool,
    sent: u64,
    received: u64,
    marks: [u64; 2],
    stopped: bool,
    may_read: bool,
    may_write: bool,
    pattern: Vec<u8>,
    buf: Vec<u8>,
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut word = || args.next().expect("see the head of the source");
    let serves = word() == "serve";
    let to = SocketAddr::new(word().parse::<IpAddr>().expect("an address"), word().parse().expect("a port"));
    let mut options = Options { conns: 1, total: None, stop: None, chunk: 0, every: Duration::ZERO, read: None, write: None };
    for arg in args {
        let (key, value) = arg.split_once('=').expect("KEY=VALUE");
        let number = || value.parse::<u64>().expect("a number");
        match key {
            "conns" => options.conns = number() as usize,
            "total" => options.total = Some(number()),
            "stop" => options.stop = Some(value.into()),
            "chunk" => options.chunk = number(),
            "every" => options.every = Duration::from_millis(number()),
            "read" => options.read = Some(value.into()),
            "write" => options.write = Some(value.into()),
            _ => panic!("{key} is no option"),
        }
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut ends = Ends {
        serves,
        may_read: options.read.is_none(),
        may_write: options.write.is_none(),
        options,
        epoll,
        conns: HashMap::new(),
        begun: 0,
        finished: 0,
        wrong: false,
        sent: 0,
        received: 0,
        marks: [0; 2],
        stopped: false,
        pattern: vec![0; PIECE + 16],
        buf: vec![0; PIECE],
    };
    if serves {
        let listener = TcpListener::bind(to)?;
        listener.set_nonblocking(true)?;
        epoll::add(&ends.epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        ends.run(Some(&listener))?;
    } else {
        for id in 0..ends.options.conns as u64 {
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(&id.to_le_bytes())?;
            ends.begin(stream, Some(id))?;
        }
        ends.run(None)?;
    }
    let [sent, received] = ends.marks;
    println!("done sent={} received={} sent-mark={sent} received-mark={received}", ends.sent, ends.received);
    std::process::exit(i32::from(ends.wrong));
}

fn exists(path: &Option<PathBuf>) -> bool {
    path.as_deref().is_some_and(Path::exists)
}

impl Ends {
    fn begin(&mut self, stream: TcpStream, id: Option<u64>) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let key = self.begun as u64;
        self.begun += 1;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(key), epoll::EventFlags::empty())?;
        // Spread, so that not all send at the same moment.
        let next = Instant::now() + self.options.every.mul_f64((key % 64) as f64 / 64.0);
        let conn = Conn {
            stream,
            id,
            head: Vec::new(),
            sent: 0,
            received: 0,
            allowed: 0,
            next,
            fin_sent: false,
            fin_received: false,
            watched: epoll::EventFlags::empty(),
        };
        self.conns.insert(key, conn);
        self.step(key, false, true);
        Ok(())
    }

    fn run(&mut self, listener: Option<&TcpListener>) -> io::Result<()> {
        let (mut tick, mut reported, mut last) = (Instant::now(), Instant::now(), String::new());
        let mut events = Vec::with_capacity(1024);
        while self.finished < self.options.conns {
            let now = Instant::now();
            if now >= tick {
                tick = now + TICK;
                let before = (self.stopped, self.may_read, self.may_write);
                self.stopped |= exists(&self.options.stop);
                self.may_read |= exists(&self.options.read);
                self.may_write |= exists(&self.options.write);
                let all = (self.stopped, self.may_read, self.may_write) != before;
                let paced = !self.options.every.is_zero();
                let due = self.conns.iter().filter(|(_, c)| all || paced && c.next <= now && c.sent >= c.allowed);
                for key in due.map(|(k, _)| *k).collect::<Vec<_>>() {
                    self.step(key, false, true);
                }
            }
            if now >= reported {
                reported = now + REPORT;
                let line = self.report();
                if line != last {
                    println!("{line}");
                    last = line;
                }
            }
            events.clear();
            let wait = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait))
                .or_else(|e| if e == rustix::io::Errno::INTR { Ok(0) } else { Err(e) })?;
            for event in &events {
                let (key, flags) = (event.data.u64(), event.flags);
                match listener.filter(|_| key == LISTENER) {
                    Some(l) => {
                        while let Ok((stream, _)) = l.accept() {
                            self.begin(stream, None)?;
                        }
                    }
                    None => self.step(key, flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP), true),
                }
            }
        }
        println!("{}", self.report());
        Ok(())
    }

    fn report(&self) -> String {
        let up = self.conns.values().filter(|c| c.id.is_some()).count() + self.finished;
        let least = self.conns.values().map(|c| c.received).min().unwrap_or(0);
        format!("at up={up} sent={} received={} least={least}", self.sent, self.received)
    }

    /// Moves what can be moved on a connection.
    fn step(&mut self, key: u64, readable: bool, writable: bool) {
        let Some(mut c) = self.conns.remove(&key) else { return };
        let done = (if readable { self.read(&mut c) } else { Ok(()) })
            .and_then(|()| if writable { self.write(&mut c) } else { Ok(()) })
            .and_then(|()| self.watch(key, &mut c));
        match done {
            Ok(()) if c.fin_sent && c.fin_received => {
                let id = c.id.unwrap_or(LISTENER);
                for (mark, n) in self.marks.iter_mut().zip([c.sent, c.received]) {
                    *mark = mark.wrapping_add(mix(id.wrapping_mul(GOLDEN) ^ n));
                }
                self.finished += 1;
            }
            Ok(()) => drop(self.conns.insert(key, c)),
            Err(e) => {
                println!("WRONG connection {:?}: {e}, {} sent, {} received", c.id, c.sent, c.received);
                self.wrong = true;
                self.finished += 1;
            }
        }
    }

    fn seed(&self, c: &Conn, of_client: bool) -> u64 {
        mix(c.id.unwrap_or(0) * 2 + u64::from(of_client))
    }

    fn read(&mut self, c: &mut Conn) -> io::Result<()> {
        if c.id.is_none() {
            let mut head = [0; 8];
            let got = match c.stream.read(&mut head[c.head.len()..]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                got => got?,
            };
            let from = c.head.len();
            c.head.extend_from_slice(&head[from..from + got]);
            if got == 0 {
                return Err(io::Error::other("ended before its number"));
            }
            c.id = <[u8; 8]>::try_from(&c.head[..]).ok().map(u64::from_le_bytes);
            return Ok(());
        }
        if !self.may_read || c.fin_received {
            return Ok(());
        }
        let got = match c.stream.read(&mut self.buf) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            got => got?,
        };
        c.fin_received = got == 0;
        let seed = self.seed(c, self.serves);
        let from = fill(seed, c.received, &mut self.pattern[..(got + 16) & !7]);
        if self.buf[..got] != self.pattern[from..from + got] {
            let right = self.buf[..got].iter().zip(&self.pattern[from..]).take_while(|(a, b)| a == b).count();
            return Err(io::Error::other(format!("wrong byte at {}", c.received + right as u64)));
        }
        c.received += got as u64;
        self.received += got as u64;
        Ok(())
    }

    /// How much more is to be sent now.
    fn due(&self, c: &mut Conn) -> u64 {
        if !self.may_write || c.id.is_none() || c.fin_sent {
            return 0;
        }
        if !self.options.every.is_zero() && Instant::now() >= c.next && c.sent >= c.allowed {
            c.allowed = c.sent + self.options.chunk;
            c.next = Instant::now() + self.options.every;
        }
        let paced = if self.options.every.is_zero() { u64::MAX } else { c.allowed };
        if self.stopped { 0 } else { self.options.total.unwrap_or(u64::MAX).min(paced) - c.sent }
    }

    fn write(&mut self, c: &mut Conn) -> io::Result<()> {
        let mut turn = TURN;
        loop {
            let n = self.due(c).min(PIECE as u64) as usize;
            if n == 0 || turn == 0 {
                break;
            }
            let from = fill(self.seed(c, !self.serves), c.sent, &mut self.pattern[..(n + 16) & !7]);
            match c.stream.write(&self.pattern[from..from + n]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                sent => {
                    let sent = sent?;
                    c.sent += sent as u64;
                    self.sent += sent as u64;
                    turn = turn.saturating_sub(sent);
                }
            }
        }
        let all = self.stopped && self.may_write || self.options.total.is_some_and(|t| c.sent >= t);
        if all && c.id.is_some() && !c.fin_sent {
            c.fin_sent = true;
            c.stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn watch(&mut self, key: u64, c: &mut Conn) -> io::Result<()> {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, c.id.is_none() || self.may_read && !c.fin_received);
        flags.set(epoll::EventFlags::OUT, self.due(c) > 0);
        if flags != c.watched {
            c.watched = flags;
            epoll::modify(&self.epoll, &c.stream, epoll::EventData::new_u64(key), flags)?;
        }
        Ok(())
    }
}
