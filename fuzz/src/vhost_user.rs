//! vhost-user: a front end and a guest that say and write anything.

use hibernet::link::vhost_user::VhostUserLink;
use hibernet::link::{Link, RxBatch};
use hibernet::slots::Slots;
use hibernet_netstack::edge::{Gso, GsoKind, Payload, TxChecksum, TxFrame};
use hibernet_tests::vmm::{FrontEnd, LateBody, Options, code};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What a step is, by its first byte.
const MESSAGE: u8 = 0;
const SET_UP: u8 = 1;
const WRITE: u8 = 2;
const KICK: u8 = 3;
const SEND: u8 = 4;
const TURN: u8 = 5;
const MOVED: u8 = 6;
const STEPS: u8 = 7;

/// Pairs of queues.
const PAIRS: usize = 2;
/// A bit that stands beside the features of a set-up, and no feature: buffers in flight are noted.
const INFLIGHT: u64 = 1 << 63;
/// Where in the guest's memory.
const NOTES: u64 = 0x4_0000;

/// Most turns of the link that one step has: what a hostile guest can keep busy is itself, a batch at a time.
const TURNS: usize = 64;

struct Play<'a> {
    bytes: &'a [u8],
    front: FrontEnd,
    link: VhostUserLink,
    slots: Slots,
    /// Both ends of a pipe, for the network's state.
    pipe: (OwnedFd, OwnedFd),
    over: bool,
}

impl Play<'_> {
    fn take(&mut self, n: usize) -> Vec<u8> {
        let (now, later) = self.bytes.split_at(n.min(self.bytes.len()));
        self.bytes = later;
        let mut all = now.to_vec();
        all.resize(n, 0);
        all
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    fn turn(&mut self) {
        let mut batch = RxBatch::default();
        for _ in 0..TURNS {
            let more = self.link.recv_batch(&mut self.slots, &mut batch);
            let none = batch.is_empty();
            for r in batch.drain() {
                assert!(r.frame.len() >= 14);
                // Some are kept for longer.
                if r.frame.len() % 2 == 1 {
                    let _ = self.slots.private(r.frame);
                }
                assert_eq!(self.slots.read(r.frame, &mut vec![0; r.frame.len()]), r.frame.len());
                self.slots.give(r.slot);
            }
            while self.link.take_news().is_some() {}
            self.over |= more.is_err();
            if more.is_err() || none {
                break;
            }
        }
        self.over |= self.link.flush(&mut self.slots).is_err();
        // Answers are of no interest, but must not fill the socket.
        while matches!(self.front.socket().read(&mut [0; 4096]), Ok(1..)) {}
    }

    fn say(&mut self, request: u32, flags: u32, body: &[u8], fds: &[u8]) {
        let all: Vec<BorrowedFd<'_>> = fds
            .iter()
            .map(|n| match n % 8 {
                0 => self.front.file(),
                1 => self.front.call_fd(0),
                n @ (2 | 3) => self.front.kick_fd(usize::from(n - 2)),
                4 => self.pipe.0.as_fd(),
                5 => self.pipe.1.as_fd(),
                n => self.front.kick_fd(usize::from(n - 4)),
            })
            .collect();
        // Without room for it, or after the end, nothing is said.
        let _ = self.front.send(request, flags, body, &all);
    }

    /// What a front end says that means well, without waiting for answers.
    fn set_up(&mut self, features: u64) {
        self.say(code::SET_PROTOCOL_FEATURES, 0, &0x8_901fu64.to_ne_bytes(), &[]);
        self.say(code::SET_FEATURES, 0, &(features & !INFLIGHT).to_ne_bytes(), &[]);
        let table = self.front.memory_table();
        self.say(code::SET_MEM_TABLE, 0, &table, &[0]);
        self.turn();
        if features & INFLIGHT != 0 {
            // Where buffers in flight are noted is behind the rings, where the guest writes too.
            let numbers = (2 * PAIRS as u64) | 16 << 16;
            let body: Vec<u8> = [4096, NOTES, numbers].iter().flat_map(|v| v.to_ne_bytes()).collect();
            self.say(code::SET_INFLIGHT_FD, 0, &body, &[0]);
        }
        for i in 0..2 * PAIRS as u32 {
            let layout = self.front.queue(i).layout;
            self.say(code::SET_VRING_NUM, 0, &FrontEnd::pair(i, layout.size.into()), &[]);
            self.say(code::SET_VRING_BASE, 0, &FrontEnd::pair(i, 0), &[]);
            self.say(code::SET_VRING_ADDR, 0, &FrontEnd::addresses(i, &layout), &[]);
            self.say(code::SET_VRING_CALL, 0, &u64::from(i).to_ne_bytes(), &[1]);
            self.say(code::SET_VRING_KICK, 0, &u64::from(i).to_ne_bytes(), &[2 + i as u8 % 2 + 4 * (i as u8 / 2)]);
            self.say(code::SET_VRING_ENABLE, 0, &FrontEnd::pair(i, 1), &[]);
            self.turn();
        }
    }

    /// A frame to the guest, with what it may have besides.
    fn send(&mut self, len: u16, how: u8) {
        let Some(slot) = self.slots.take() else { return };
        let mut head = [7; 54];
        // Flows go by different pairs.
        head[12..15].copy_from_slice(&[8, 0, 0x45]);
        (head[23], head[34], head[34 + 12]) = (6, how, 5 << 4);
        let checksum = (how & 1 != 0).then_some(TxChecksum { start: 34, offset: 16 });
        let gso = (how & 2 != 0).then_some(Gso { kind: GsoKind::Tcp4, size: 1400 });
        let body = Payload { slot, offset: 0, len: len.into() };
        let frame = TxFrame { head: &head, body, keep_body: how & 4 != 0, checksum, gso };
        if how & 8 != 0 {
            // Its body is still to be read, and may be shorter than was said, once or for good.
            let mut late = LateBody::new(&vec![how; len.into()], u32::from(how >> 4) % 3);
            let _ = self.link.send_unread(
                &mut self.slots,
                TxFrame { body: Payload { slot: u32::MAX - 1, ..body }, ..frame },
                &mut late,
            );
            return self.slots.give(slot);
        }
        let _ = self.link.send(&mut self.slots, frame);
        if how & 4 != 0 {
            self.slots.give(slot);
        }
    }

    fn step(&mut self) {
        match self.take(1)[0] % STEPS {
            MESSAGE => {
                let [request, flags, len, count] = self.take(4).try_into().expect("four bytes");
                let body = self.take(len.into());
                let fds = self.take((count % 10).into());
                self.say(request.into(), flags.into(), &body, &fds);
            }
            SET_UP => {
                let features = self.number();
                self.set_up(features);
            }
            WRITE => {
                use vm_memory::{Bytes, GuestAddress};
                let [a, b, c, len] = self.take(4).try_into().expect("four bytes");
                let bytes = self.take(usize::from(len % 64));
                // Near the rings: elsewhere are only buffers. Bit 7: what is noted of buffers in flight.
                let near = u64::from(u16::from_le_bytes([a, b]) % 2048);
                let ring = u64::from(c & 1) * (1 << 19) + (u64::from(c >> 1) % PAIRS as u64 * (1 << 16));
                let at = if c & 0x80 != 0 { NOTES + near } else { ring + near };
                let _ = self.front.memory().write_slice(&bytes, GuestAddress(at));
            }
            KICK => {
                let i = usize::from(self.take(1)[0]) % (2 * PAIRS);
                self.front.kick_anyway(i);
            }
            SEND => {
                let [a, b, how] = self.take(3).try_into().expect("three bytes");
                self.send(u16::from_le_bytes([a, b]), how);
            }
            MOVED => {
                let _ = self.link.take_transfer();
                let done = self.take(1)[0] & 1 != 0;
                self.link.end_transfer(&mut self.slots, done);
            }
            _ => self.turn(),
        }
    }
}

/// Plays a story. Whatever it is: no panic, an end, and nothing kept.
pub fn play(bytes: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    for s in [&ours, &theirs] {
        s.set_nonblocking(true).expect("socket");
    }
    let options = Options { pairs: PAIRS, size: 16, rx_buffer: 2048, tx_buffer: 2048, ..Options::default() };
    let front = FrontEnd::new(theirs, options);
    let link = VhostUserLink::connected(ours.into(), 1500, None).expect("link").with_queue_pairs(PAIRS);
    let (reader, writer) = std::io::pipe().expect("pipe");
    let pipe = (OwnedFd::from(reader), OwnedFd::from(writer));
    let mut play = Play { bytes, front, link, slots: Slots::new(600).expect("memory"), pipe, over: false };
    while !play.bytes.is_empty() && !play.over {
        play.step();
    }
    play.turn();
    play.link.stop(&mut play.slots);
    assert_eq!(play.slots.in_use(), 0, "slots were kept");
}

/// If HIBERNET_FUZZ_SEEDS names a directory, writes stories of ordinary use there and ends the process.
pub fn write_seeds_if_asked() {
    let Some(dir) = std::env::var_os("HIBERNET_FUZZ_SEEDS") else { return };
    let descriptor = |addr: u64, len: u32, flags: u16, next: u16| {
        (u128::from(addr) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112).to_le_bytes()
    };
    let write = |ring: u8, at: u16, bytes: &[u8]| [&[WRITE, at as u8, (at >> 8) as u8, ring, bytes.len() as u8], bytes].concat();
    let avail = 16 * 16;
    for (n, features) in
        [0x1_4000_0000u64, 0x1_4000_8000, 0x1_7040_ba8b, 0x1_5000_8183, INFLIGHT | 0x1_4000_8000, INFLIGHT | 0x1_7040_ba8b]
            .into_iter()
            .enumerate()
    {
        let mut story = [&[SET_UP][..], &features.to_le_bytes()].concat();
        // What another back end has noted: buffers that were taken, and a batch that was shown.
        let note = |at: u16, bytes: &[u8]| write(0x80, at, bytes);
        story.extend(note(320 + 8, &[1, 0, 16, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]));
        story.extend(note(8, &[1, 0, 16, 0, 0, 0, 0xff, 0xff]));
        for (ring, flags) in [(0, 2), (1, 0), (2, 2), (3, 0)] {
            for d in 0..4u16 {
                story.extend(write(ring, d * 16, &descriptor(1 << 20 | u64::from(d) << 11, 2048, flags, 0)));
            }
            story.extend(write(ring, avail, &[0, 0, 4, 0, 0, 0, 1, 0, 2, 0, 3, 0]));
            story.extend([KICK, ring]);
        }
        if features & INFLIGHT != 0 {
            story.extend([&[SET_UP][..], &features.to_le_bytes()].concat());
        }
        story.extend([
            TURN, SEND, 0x90, 1, 8, SEND, 0x90, 1, 0x18, SEND, 0x90, 1, 0x28, SEND, 100, 0, 0, SEND, 0xe8, 3, 3, SEND, 0xff,
            0xff, 4, TURN,
        ]);
        // A long frame that is lent, twice; the guest changes it, and the ring is stopped.
        story.extend(write(1, 1536, &[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]));
        story.extend(write(1, 0, &descriptor((1 << 19) + 1536, 20_000 + n as u32, 0, 0)));
        story.extend(write(1, avail, &[0, 0, 6, 0, 0, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0]));
        story.extend([KICK, 1, TURN]);
        story.extend(write(1, 0, &descriptor(1 << 19, 16, 4, 0)));
        story.extend(write(1, avail, &[0, 0, 7, 0]));
        story.extend([KICK, 1, TURN, MESSAGE, code::GET_VRING_BASE as u8, 1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, TURN]);
        // A log in the guest's own memory; then the state is saved.
        let say = |request: u32, body: &[u8], fds: &[u8]| {
            [&[MESSAGE, request as u8, 1, body.len() as u8, fds.len() as u8], body, fds].concat()
        };
        story.extend(say(code::SET_LOG_BASE, &[4096u64.to_le_bytes(), [0; 8]].concat(), &[0]));
        story.extend(say(code::SET_LOG_FD, &[], &[1]));
        story.extend(say(code::GET_QUEUE_NUM, &[], &[]));
        story.extend(say(code::GET_INFLIGHT_FD, &[&[0; 16][..], &[4, 0, 16, 0, 0, 0, 0, 0]].concat(), &[]));
        story.extend(say(code::SET_VRING_ENABLE, &[2, 0, 0, 0, 0, 0, 0, 0], &[]));
        story.extend([TURN, SEND, 100, 0, 0]);
        story.extend(say(code::GET_VRING_BASE, &[0; 8], &[]));
        let way = n as u8 & 1;
        story.extend(say(code::SET_DEVICE_STATE_FD, &[way, 0, 0, 0, 0, 0, 0, 0], &[4 + way]));
        story.push(TURN);
        story.extend(say(code::CHECK_DEVICE_STATE, &[], &[]));
        story.extend([TURN, MOVED, n as u8, TURN]);
        play(&story);
        std::fs::write(Path::new(&dir).join(format!("seed-{n:03}")), story).expect("seed is written");
    }
    std::process::exit(0);
}
