//! A device whose monitor is in this process.

use super::{Served, frame};
use hibernet::link::vhost_user::{FEATURES, VhostUserLink, Vring, VringPair, Vrings};
use hibernet::link::{Link, LinkNews};
use hibernet::slots::Slots;
use hibernet_tests::vmm::{DriverQueue, Layout, feature};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::OwnedFd;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 4 << 20;
const RECEIVE: Layout = Layout { size: 64, base: 0, buffers: 1 << 20, buffer: 1536 };
const TRANSMIT: Layout = Layout { size: 64, base: 1 << 19, buffers: 2 << 20, buffer: 4096 };

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// A guest, with the eventfds that its kicks signal and that interrupt it.
struct Guest {
    memory: GuestMemoryMmap,
    receive: DriverQueue,
    transmit: DriverQueue,
    kicks: [OwnedFd; 2],
    calls: [OwnedFd; 2],
}

impl Guest {
    fn new() -> Guest {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let [receive, transmit] = [RECEIVE, TRANSMIT].map(|l| DriverQueue::new(memory.clone(), l, true));
        Guest { memory, receive, transmit, kicks: [event(), event()], calls: [event(), event()] }
    }

    fn vring(&self, i: usize, l: Layout) -> Vring {
        let [kick, call] = [&self.kicks[i], &self.calls[i]].map(|fd| fd.try_clone().unwrap());
        Vring { size: l.size, desc: l.desc(), avail: l.avail(), used: l.used(), kick, call }
    }

    fn vrings(&self) -> Vrings {
        let memory = self.memory.clone();
        let pair = VringPair { receive: self.vring(0, RECEIVE), transmit: self.vring(1, TRANSMIT) };
        Vrings { memory, features: FEATURES, pairs: vec![pair] }
    }

    fn serve(&self) -> io::Result<Served> {
        let link = VhostUserLink::in_process(self.vrings(), 1500, None)?;
        Ok(Served { link, slots: Slots::new(256).unwrap(), frames: Vec::new() })
    }

    /// Sends a frame, and kicks if the device wants to know.
    fn send(&mut self, frame: &[u8]) {
        self.transmit.reclaim();
        assert!(self.transmit.send(&[&[0; 12], frame].concat()));
        if self.transmit.wants_kick() {
            rustix::io::write(&self.kicks[1], &1_u64.to_ne_bytes()).unwrap();
        }
    }

    fn received(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.receive.used()?;
        let bytes = self.receive.read(head, len as usize);
        self.receive.give(head);
        Some(bytes[12..].to_vec())
    }
}

#[test]
fn frames_go_both_ways_and_another_link_goes_on() {
    let mut guest = Guest::new();
    // More than a queue has entries: it has gone round once when the second begins.
    for round in 0..3_u8 {
        let mut served = guest.serve().unwrap();
        assert_eq!(served.link.take_news(), Some(LinkNews::Connected));
        assert!(served.link.info().checksum);
        guest.receive.fill();
        for n in 0..50 {
            guest.send(&[round, n, 7].repeat(20));
            served.until_frames(usize::from(n) + 1);
            assert_eq!(served.frames[usize::from(n)], [round, n, 7].repeat(20));
            let sent = [n, round, 9].repeat(30);
            served.link.send(&mut served.slots, frame(&sent)).unwrap();
            served.link.flush(&mut served.slots).unwrap();
            assert_eq!(guest.received(), Some(sent));
            guest.receive.fill();
        }
        served.link.stop(&mut served.slots);
        assert_eq!(served.slots.in_use(), 0);
        assert!(served.link.send(&mut served.slots, frame(&[0; 60])).is_err());
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let guest = Guest::new();
    let bad = |change: fn(&mut Vrings)| {
        let mut v = guest.vrings();
        change(&mut v);
        VhostUserLink::in_process(v, 1500, None).unwrap_err()
    };
    for e in [
        bad(|v| v.pairs[0].receive.size = 0),
        bad(|v| v.pairs[0].transmit.size = 48),
        bad(|v| v.pairs[0].transmit.size = 2048),
        bad(|v| v.pairs[0].receive.desc = MEMORY as u64 - 100),
        bad(|v| v.pairs[0].transmit.used = u64::MAX),
        bad(|v| v.pairs[0].receive.kick = rustix::pipe::pipe().unwrap().0),
        bad(|v| v.memory = GuestMemoryMmap::new()),
    ] {
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput, "{e}");
    }
    let unknown = Vrings { features: !0, ..guest.vrings() };
    let link = VhostUserLink::in_process(unknown, 1500, None).unwrap();
    assert!(link.info().checksum, "others than those offered count for nothing");
    assert_eq!(FEATURES & feature::VERSION_1, feature::VERSION_1);
}

#[test]
fn several_workers_have_a_pair_each() {
    let mut guest = Guest::new();
    let layouts = [
        Layout { base: 1 << 16, buffers: 3 << 20, ..RECEIVE },
        Layout { base: (1 << 19) + (1 << 16), buffers: (3 << 20) + (1 << 19), ..TRANSMIT },
    ];
    let [mut receive, mut transmit] = layouts.map(|l| DriverQueue::new(guest.memory.clone(), l, true));
    let kick = event();
    let mut vrings = guest.vrings();
    let [r, mut t] = [0, 1].map(|i| guest.vring(i, layouts[i]));
    t.kick = kick.try_clone().unwrap();
    // Its own too: one eventfd is in one set once.
    let r = Vring { kick: event(), ..r };
    vrings.pairs.push(VringPair { receive: r, transmit: t });
    let (link, mut others) = VhostUserLink::in_process_for(2, vrings, 1500, None).unwrap();
    let (mut first, mut second) = (Served::new(link), Served::new(others.pop().unwrap()));
    assert!(others.is_empty() && first.link.take_news() == Some(LinkNews::Connected));
    receive.fill();
    guest.receive.fill();
    for n in 0..100_u8 {
        guest.send(&[n, 1].repeat(30));
        transmit.reclaim();
        assert!(transmit.send(&[[0; 12].to_vec(), [n, 2].repeat(30)].concat()));
        if transmit.wants_kick() {
            rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
        }
        first.until_frames(usize::from(n) + 1);
        second.until_frames(usize::from(n) + 1);
        let n = usize::from(n);
        assert_eq!((first.frames[n][1], second.frames[n][1]), (1, 2));
    }
    second.send(&[8; 60]).unwrap();
    second.link.flush(&mut second.slots).unwrap();
    assert!(guest.received().is_none() && receive.used().is_some());
}
