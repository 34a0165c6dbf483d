//! The channel link and the capture tee.

mod support;

use hibernet::link::channel::{ChannelEnd, ChannelLink, InjectError, Outbound, channel};
use hibernet::link::pcap::PcapLink;
use hibernet::link::{BATCH, Link, LinkError, RxBatch};
use hibernet::slots::Slots;
use hibernet_netstack::edge::{Gso, GsoKind, LinkInfo, Payload, RxChecksum, Tso, TxChecksum, TxError, TxFrame};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const INFO: LinkInfo = LinkInfo { mtu: 1500, checksum: true, tso: Tso::Both, uso: false, guest_mac: None, in_flight: u32::MAX };

fn readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    epoll.wait(limit.as_millis() as i32, &mut [EpollEvent::default()]).unwrap() > 0
}

fn frame(head: &[u8]) -> TxFrame<'_> {
    TxFrame { head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None }
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| i as u8).collect()
}

struct Bench {
    link: ChannelLink,
    end: ChannelEnd,
    slots: Slots,
}

fn bench(depth: usize) -> Bench {
    let (link, end) = channel(INFO, depth).unwrap();
    Bench { link, end, slots: Slots::new(128).unwrap() }
}

impl Bench {
    fn receive(&mut self) -> Result<Vec<Vec<u8>>, LinkError> {
        let mut batch = RxBatch::default();
        self.link.recv_batch(&mut self.slots, &mut batch)?;
        let slots = &mut self.slots;
        Ok(batch
            .drain()
            .map(|r| {
                let bytes = slots.bytes(r.frame).to_vec();
                slots.give(r.slot);
                bytes
            })
            .collect())
    }
}

#[test]
fn frames_pass_both_ways_in_order() {
    let mut b = bench(300);
    for i in 0..200u8 {
        b.end.inject(vec![i; 60], RxChecksum::Unverified, None).unwrap();
    }
    let mut got = Vec::new();
    while readable(b.link.fd(), Duration::ZERO) {
        let batch = b.receive().unwrap();
        assert!(batch.len() <= BATCH);
        got.extend(batch.into_iter().map(|f| f[0]));
    }
    assert_eq!(got, (0..200).collect::<Vec<u8>>());

    let slot = b.slots.take().unwrap();
    b.slots.slot_mut(slot)[5..10].copy_from_slice(b"body!");
    let body = Payload { slot, offset: 5, len: 5 };
    let gso = Some(Gso { kind: GsoKind::Tcp4, size: 2 });
    let checksum = Some(TxChecksum { start: 34, offset: 16 });
    b.link.send(&mut b.slots, TxFrame { body, checksum, gso, ..frame(b"head") }).unwrap();
    b.link.send(&mut b.slots, frame(b"second")).unwrap();
    b.link.flush(&mut b.slots).unwrap();
    assert!(readable(b.end.fd(), Duration::ZERO));
    assert_eq!(b.end.take(), Some(Outbound { bytes: b"headbody!".to_vec(), checksum, gso }));
    assert_eq!(b.end.take().unwrap().bytes, b"second");
    assert_eq!(b.end.take(), None);
    assert!(!readable(b.end.fd(), Duration::ZERO));
    assert_eq!(b.slots.in_use(), 0);
    assert_eq!((b.link.stats().rx_frames, b.link.stats().tx_bytes), (200, 15));
}

#[test]
fn full_queues_refuse_and_count() {
    let mut b = bench(3);
    for _ in 0..3 {
        b.end.inject(bytes(60), RxChecksum::Trusted, None).unwrap();
        b.link.send(&mut b.slots, frame(&[0; 60])).unwrap();
    }
    assert!(matches!(b.end.inject(bytes(61), RxChecksum::Trusted, None), Err(InjectError::Full(f)) if f.len() == 61));
    let slot = b.slots.take().unwrap();
    let body = Payload { slot, offset: 0, len: 9 };
    assert_eq!(b.link.send(&mut b.slots, TxFrame { body, ..frame(&[0; 60]) }), Err(TxError::Full));
    assert_eq!((b.link.stats().tx_full, b.slots.in_use()), (1, 0));
    b.end.take().unwrap();
    assert_eq!(b.link.send(&mut b.slots, frame(&[0; 60])), Ok(()));
}

#[test]
fn bad_frames_are_refused_or_counted() {
    let mut b = bench(8);
    assert!(matches!(b.end.inject(vec![0; 70_000], RxChecksum::Trusted, None), Err(InjectError::TooLong(_))));
    b.end.inject(vec![], RxChecksum::Trusted, None).unwrap();
    b.end.inject(vec![0; 13], RxChecksum::Trusted, None).unwrap();
    b.end.inject(vec![0; 60], RxChecksum::Trusted, Some(Gso { kind: GsoKind::Udp, size: 0 })).unwrap();
    b.end.inject(bytes(65_549), RxChecksum::Trusted, None).unwrap();
    assert_eq!(b.receive().unwrap(), [bytes(65_549)]);
    let s = b.link.stats();
    assert_eq!((s.rx_too_short, s.rx_bad_header, s.rx_frames), (2, 1, 1));
    assert_eq!(b.link.send(&mut b.slots, frame(&[0; 1515])), Err(TxError::TooBig));
    let held: Vec<u32> = std::iter::from_fn(|| b.slots.take()).collect();
    b.end.inject(bytes(60), RxChecksum::Trusted, None).unwrap();
    assert!(b.receive().unwrap().is_empty());
    assert_eq!(b.link.stats().rx_no_slot, 1);
    assert_eq!(held.len(), b.slots.capacity());
}

#[test]
fn each_side_learns_of_the_other_ones_end() {
    let Bench { mut link, end, mut slots } = bench(8);
    end.inject(bytes(60), RxChecksum::Trusted, None).unwrap();
    drop(end);
    let mut batch = RxBatch::default();
    assert!(readable(link.fd(), Duration::ZERO));
    link.recv_batch(&mut slots, &mut batch).unwrap();
    assert_eq!(batch.len(), 1, "what was injected before the end is delivered");
    assert!(readable(link.fd(), Duration::ZERO));
    assert!(matches!(link.recv_batch(&mut slots, &mut batch), Err(LinkError::Closed)));
    assert_eq!(link.send(&mut slots, frame(&[0; 60])), Err(TxError::Down));

    let mut b = bench(8);
    b.link.send(&mut b.slots, frame(&[1; 60])).unwrap();
    b.link.stop(&mut b.slots);
    assert!(readable(b.end.fd(), Duration::ZERO) && b.end.is_closed());
    assert!(b.end.take().is_some() && b.end.take().is_none());
    assert!(matches!(b.end.inject(bytes(60), RxChecksum::Trusted, None), Err(InjectError::Closed(_))));
    assert!(readable(b.end.fd(), Duration::ZERO), "the end stays visible");
}

#[test]
fn no_event_is_lost_between_threads() {
    const FRAMES: u32 = 50_000;
    let Bench { mut link, end, mut slots } = bench(16);
    let guest = std::thread::spawn(move || {
        let (mut sent, mut got) = (0u32, 0u32);
        while got < FRAMES {
            while sent < FRAMES {
                let mut f = end.buffer();
                f.resize(60, 0);
                f[20..24].copy_from_slice(&sent.to_be_bytes());
                match end.inject(f, RxChecksum::Trusted, None) {
                    Ok(()) => sent += 1,
                    Err(InjectError::Full(f)) => {
                        end.recycle(f);
                        break;
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            while let Some(f) = end.take() {
                assert_eq!(f.bytes[20..24], got.to_be_bytes());
                got += 1;
                end.recycle(f.bytes);
            }
            // With nothing on its way there is nothing to wait for, but room to inject.
            assert!(got == sent || readable(end.fd(), Duration::from_secs(10)), "no event after {got} frames");
        }
    });
    let mut batch = RxBatch::default();
    let mut waiting = std::collections::VecDeque::new();
    loop {
        assert!(readable(link.fd(), Duration::from_secs(10)), "no event for the link");
        match link.recv_batch(&mut slots, &mut batch) {
            Err(LinkError::Closed) => break,
            other => other.unwrap(),
        }
        for r in batch.drain() {
            waiting.push_back(slots.bytes(r.frame).to_vec());
            slots.give(r.slot);
        }
        while let Some(f) = waiting.pop_front() {
            while link.send(&mut slots, frame(&f)).is_err() {
                link.flush(&mut slots).unwrap();
                std::thread::yield_now();
            }
        }
        link.flush(&mut slots).unwrap();
    }
    guest.join().unwrap();
}

#[test]
fn checksums_left_to_the_receiver_are_completed() {
    // UDP over IPv4 from 10.0.2.2:7 to 10.0.2.15:7; the checksum field holds the pseudo-header's sum.
    let pseudo: u32 = 0x0a00 + 0x0202 + 0x0a00 + 0x020f + 17 + 11;
    let mut f = Outbound { bytes: vec![0; 34], checksum: Some(TxChecksum { start: 34, offset: 6 }), gso: None };
    f.bytes.extend([0, 7, 0, 7, 0, 11, (pseudo >> 8) as u8, pseudo as u8]);
    f.bytes.extend(b"abc");
    f.complete_checksum();
    let sum = pseudo + 7 + 7 + 11 + 0x6162 + 0x6300;
    let expected = !(((sum >> 16) + (sum & 0xffff)) as u16);
    assert_eq!((&f.bytes[40..42], f.checksum), (&expected.to_be_bytes()[..], None));
    let mut short = Outbound { bytes: vec![0; 40], checksum: Some(TxChecksum { start: 34, offset: 6 }), gso: None };
    short.complete_checksum();
    assert_eq!(short.bytes, vec![0; 40]);
}

/// A file in memory that can fail.
#[derive(Clone, Default)]
struct Shared {
    bytes: Arc<Mutex<Vec<u8>>>,
    full: Arc<Mutex<bool>>,
    writes: Arc<AtomicUsize>,
}

impl Write for Shared {
    fn write(&mut self, b: &[u8]) -> io::Result<usize> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if *self.full.lock().unwrap() {
            return Err(io::Error::other("no space left"));
        }
        self.bytes.lock().unwrap().extend_from_slice(b);
        Ok(b.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts log records.
struct Count(Arc<AtomicUsize>);

impl slog::Drain for Count {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, _: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn tee(depth: usize) -> (PcapLink<ChannelLink>, ChannelEnd, Shared, Arc<AtomicUsize>) {
    let (link, end) = channel(INFO, depth).unwrap();
    let (file, warnings) = (Shared::default(), Arc::new(AtomicUsize::new(0)));
    let log = slog::Logger::root(Count(warnings.clone()), slog::o!());
    (PcapLink::new(link, Box::new(file.clone()), log).unwrap(), end, file, warnings)
}

/// Takes a capture apart: time and bytes of each record.
fn parse(file: &[u8]) -> Vec<(Duration, Vec<u8>)> {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(8), word(12), word(20)), (0xa1b2_3c4d, 4 << 16 | 2, 0, 0, 1));
    assert!(word(16) >= 65_535);
    let (mut at, mut records) = (24, Vec::new());
    while at < file.len() {
        assert!(word(at + 4) < 1_000_000_000);
        assert_eq!(word(at + 8), word(at + 12));
        let len = word(at + 8) as usize;
        records.push((Duration::new(word(at).into(), word(at + 4)), file[at + 16..at + 16 + len].to_vec()));
        at += 16 + len;
    }
    records
}

#[test]
fn captures_hold_what_passed_and_nothing_else() {
    let (mut link, end, file, warnings) = tee(4);
    let mut slots = Slots::new(16).unwrap();
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    end.inject(bytes(60), RxChecksum::Trusted, None).unwrap();
    end.inject(bytes(65_549), RxChecksum::Trusted, Some(Gso { kind: GsoKind::Tcp4, size: 1448 })).unwrap();
    end.inject(bytes(3), RxChecksum::Trusted, None).unwrap();
    let mut batch = RxBatch::default();
    link.recv_batch(&mut slots, &mut batch).unwrap();
    batch.drain().for_each(|r| slots.give(r.slot));
    let slot = slots.take().unwrap();
    slots.slot_mut(slot)[..5].copy_from_slice(b"body!");
    link.send(&mut slots, TxFrame { body: Payload { slot, offset: 0, len: 5 }, ..frame(&[9; 60]) }).unwrap();
    assert_eq!(link.send(&mut slots, frame(&[0; 2000])), Err(TxError::TooBig));
    link.flush(&mut slots).unwrap();
    let records = parse(&file.bytes.lock().unwrap());
    let frames: Vec<&[u8]> = records.iter().map(|r| &r.1[..]).collect();
    assert_eq!(frames, [&bytes(60)[..], &bytes(65_549), &[&[9; 60][..], b"body!"].concat()]);
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(records.iter().all(|r| (before..=after).contains(&r.0)));
    assert_eq!(warnings.load(Ordering::Relaxed), 0);
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_link() {
    let (mut link, end, file, warnings) = tee(64);
    let mut slots = Slots::new(16).unwrap();
    *file.full.lock().unwrap() = true;
    for _ in 0..10 {
        link.send(&mut slots, frame(&[1; 60])).unwrap();
        link.flush(&mut slots).unwrap();
    }
    assert_eq!(std::iter::from_fn(|| end.take()).count(), 10);
    assert_eq!((warnings.load(Ordering::Relaxed), file.writes.load(Ordering::Relaxed)), (1, 2));
}

#[test]
fn long_batches_are_written_piece_by_piece() {
    let (mut link, end, file, _) = tee(64);
    let mut slots = Slots::new(64).unwrap();
    for _ in 0..20 {
        end.inject(bytes(65_000), RxChecksum::Trusted, None).unwrap();
    }
    let mut batch = RxBatch::default();
    link.recv_batch(&mut slots, &mut batch).unwrap();
    assert_eq!(batch.len(), 20);
    assert!(file.writes.load(Ordering::Relaxed) > 4, "gathered without bound");
    drop(link);
    assert_eq!(parse(&file.bytes.lock().unwrap()).len(), 20);
}

#[test]
fn tcpdump_reads_a_capture() {
    if Command::new("tcpdump").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return support::skip("tcpdump_reads_a_capture", "there is no tcpdump");
    }
    let (mut link, _end, file, _) = tee(4);
    let mut slots = Slots::new(4).unwrap();
    let mut udp = vec![0xff; 6];
    udp.extend([2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0x62, 0xbb, 10, 0, 2, 2, 10, 0, 2, 15]);
    udp.extend([0, 7, 0, 9, 0, 11, 0, 0, b'a', b'b', b'c']);
    link.send(&mut slots, frame(&udp)).unwrap();
    link.flush(&mut slots).unwrap();
    let mut child = Command::new("tcpdump")
        .args(["-nn", "-e", "-tt", "-r", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&file.bytes.lock().unwrap()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.contains("10.0.2.2.7 > 10.0.2.15.9: UDP, length 3"), "{text}");
    assert!(text.contains("02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff"), "{text}");
}
