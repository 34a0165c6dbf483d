//! How fast frames are received from a packet socket on a veth: one `readv` for each, by `recvmmsg`, and through the ring.
//!
//! Runs itself again in a network namespace of its own, so that it needs no privilege. For each length of frames the ways take turns in several rounds, and for
//! each the median is printed of:
//!
//! - *reader*: frames a second that a reader could take if it did nothing else, by its processor time for bursts that wait already;
//! - *both*: the same with what it costs to send them, on one processor: part of a ring's work is done where the frames come from;
//! - *flood*: frames a second that are received while another processor sends as fast as it can, dropped ones left out;
//! - *delay*: from sending a frame after a pause to having it, median, microseconds.

use hibernet::link::socket::SocketLink;
use hibernet::link::{Link, RxBatch};
use hibernet::slots::Slots;
use hibernet::sys::mmsg;
use hibernet::sys::packet::{self, PacketOptions, PacketSocket};
use hibernet::sys::socket::set_option;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROLE: &str = "HIBERNET_PACKET_BENCH";
const ROUNDS: usize = 5;
const LASTS: Duration = Duration::from_millis(400);
const DELAYS: usize = 200;
/// Most frames that wait when they are read; fewer where they do not fit into half of the socket's buffer.
const BURST: usize = 256;
/// What the kernel counts beside the bytes of a frame, at most.
const BOOKKEEPING: usize = 1024;
/// As the command has it.
const SLOTS: u32 = 2048;
const PACKET_QDISC_BYPASS: libc::c_int = 20;

fn main() {
    if std::env::var(ROLE).is_ok() {
        return inside();
    }
    let exe = std::env::current_exe().expect("this program");
    match Command::new("unshare").arg("-Urn").arg(exe).env(ROLE, "inside").status() {
        Ok(s) if s.success() => {}
        other => println!("no network namespace of our own, nothing measured: {other:?}"),
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Readv,
    Recvmmsg,
    Ring,
}

/// Something that receives.
enum Reader {
    Link(Box<SocketLink>, RxBatch),
    Readv(PacketSocket),
}

impl Reader {
    fn new(way: Way) -> Reader {
        let ring = if matches!(way, Way::Ring) { SLOTS } else { 0 };
        let socket = packet::open_with("far", PacketOptions { ring, queues: 1 }).expect("a packet socket");
        match way {
            Way::Readv => Reader::Readv(socket),
            _ => Reader::Link(Box::new(SocketLink::packet(socket, None).expect("a link")), RxBatch::default()),
        }
    }

    /// Waits for frames, and takes all that there are: how many.
    fn take(&mut self, slots: &mut Slots) -> u64 {
        let fd = match self {
            Reader::Link(l, _) => l.fd(),
            Reader::Readv(s) => s.fd.as_fd(),
        };
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)).expect("poll");
        let mut n = 0;
        match self {
            Reader::Link(link, batch) => loop {
                link.recv_batch(slots, batch).expect("frames");
                if batch.is_empty() {
                    return n;
                }
                n += batch.len() as u64;
                batch.drain().for_each(|r| slots.give(r.slot));
            },
            Reader::Readv(s) => {
                while let Some(slot) = slots.take() {
                    let read = rustix::io::readv(&s.fd, &mut [std::io::IoSliceMut::new(slots.slot_mut(slot))]);
                    slots.give(slot);
                    if read.is_err() {
                        return n;
                    }
                    n += 1;
                }
                n
            }
        }
    }
}

fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("a processor");
}

fn processor_time() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].fill(0xff);
    // A protocol that nobody looks at.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn sender() -> PacketSocket {
    let socket = packet::open("near").expect("a packet socket");
    set_option(socket.fd.as_fd(), libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1).expect("PACKET_QDISC_BYPASS");
    socket
}

/// Frames a second while another processor sends.
fn flood(way: Way, len: usize, cpu: usize) -> f64 {
    let (mut reader, mut slots) = (Reader::new(way), Slots::new(4096).expect("slots"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(cpu);
            let (socket, header, frame) = (sender(), [0; 10], frame(len));
            let messages = [[IoSlice::new(&header), IoSlice::new(&frame)]; mmsg::MAX];
            while !stop.load(Ordering::Relaxed) {
                // What is not taken is sent again.
                let _ = mmsg::send(socket.fd.as_fd(), &messages);
            }
        });
        stay_on(0);
        reader.take(&mut slots);
        let (begun, mut n) = (Instant::now(), 0);
        while begun.elapsed() < LASTS {
            n += reader.take(&mut slots);
        }
        let rate = n as f64 / begun.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        rate
    })
}

/// Frames a second of processor time: of the reader alone, and with the sender.
fn bursts(way: Way, len: usize) -> [f64; 2] {
    let (mut reader, mut slots) = (Reader::new(way), Slots::new(4096).expect("slots"));
    let (socket, header, frame) = (sender(), [0; 10], frame(len));
    let messages = [[IoSlice::new(&header), IoSlice::new(&frame)]; mmsg::MAX];
    let fits = socket.receive_buffer as usize / 2 / (2 * len + BOOKKEEPING);
    let burst = BURST.min(fits).max(1);
    stay_on(0);
    let begun = Instant::now();
    let (mut frames, mut reading, mut all) = (0, Duration::ZERO, Duration::ZERO);
    while begun.elapsed() < LASTS {
        let before = processor_time();
        let mut sent = 0;
        while sent < burst {
            sent += mmsg::send(socket.fd.as_fd(), &messages[..mmsg::MAX.min(burst - sent)]).expect("frames");
        }
        let between = processor_time();
        let mut came = 0;
        while came < sent as u64 {
            let n = reader.take(&mut slots);
            // After a second in which nothing came, the rest was dropped.
            came += n;
            if n == 0 {
                break;
            }
        }
        let after = processor_time();
        frames += came;
        reading += after - between;
        all += after - before;
    }
    [reading, all].map(|t| frames as f64 / t.as_secs_f64())
}

/// From sending to having it, microseconds.
fn delay(way: Way, len: usize) -> f64 {
    let (mut reader, mut slots) = (Reader::new(way), Slots::new(64).expect("slots"));
    let (socket, header, frame) = (sender(), [0; 10], frame(len));
    let mut all: Vec<f64> = (0..DELAYS)
        .map(|_| {
            std::thread::sleep(Duration::from_micros(500));
            let begun = Instant::now();
            mmsg::send(socket.fd.as_fd(), &[[IoSlice::new(&header), IoSlice::new(&frame)]]).expect("a frame");
            while reader.take(&mut slots) == 0 {}
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    median(&mut all)
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn inside() {
    let up = "ip link add near mtu 65520 type veth peer name far mtu 65520 && ip link set near up && ip link set far up";
    let quiet = "for i in near far; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done 2>/dev/null";
    let made = Command::new("sh").args(["-c", &format!("{up}; {quiet}; true")]).status().expect("sh runs");
    assert!(made.success());
    let other = usize::from(std::thread::available_parallelism().is_ok_and(|n| n.get() > 1));
    let ways = [Way::Readv, Way::Recvmmsg, Way::Ring];
    println!("{:>6} {:9} {:>11} {:>11} {:>11} {:>9}", "length", "way", "reader/s", "both/s", "flood/s", "delay us");
    for len in [60, 300, 1514, 9000, 65_000] {
        let mut rounds = ways.map(|_| [const { Vec::new() }; 4]);
        for _ in 0..ROUNDS {
            for (way, figures) in ways.into_iter().zip(&mut rounds) {
                let [alone, both] = bursts(way, len);
                let all = [alone, both, flood(way, len, other), delay(way, len)];
                figures.iter_mut().zip(all).for_each(|(f, x)| f.push(x));
            }
        }
        for (way, figures) in ways.into_iter().zip(&mut rounds) {
            let [alone, both, flood, delay] = figures.each_mut().map(|f| median(f));
            println!("{len:>6} {:9} {alone:>11.0} {both:>11.0} {flood:>11.0} {delay:>9.1}", format!("{way:?}").to_lowercase());
        }
    }
}
