//! Frames.

use super::{LONG, connected, frame, running};
use hibernet::link::vhost_user::VhostUserLink;
use hibernet::link::{Link, LinkError};
use hibernet::slots::Slots;
use hibernet_netstack::edge::{Gso, GsoKind, Payload, RxChecksum, Tso, TxChecksum, TxError, TxFrame};
use hibernet_tests::SplitMix;
use hibernet_tests::vmm::{FrontEnd, Options, feature};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

fn bytes(rng: &mut SplitMix, len: usize) -> Vec<u8> {
    let mut all = vec![0; len];
    rng.fill(&mut all);
    all
}

/// The kinds of guests: with and without buffers that are merged, event indices, long buffers.
fn guests() -> Vec<Options> {
    let base = Options::default();
    let large = Options { features: base.features & !feature::MRG_RXBUF, rx_buffer: 68 * 1024, size: 64, ..base };
    let odd = Options { rx_buffer: 777, tx_buffer: 501, size: 512, ..base };
    let mut all = vec![base, large, odd];
    for o in all.clone() {
        all.push(Options { features: o.features | feature::EVENT_IDX, ..o });
    }
    all
}

#[test]
fn frames_of_all_lengths_pass_both_ways() {
    let mut rng = SplitMix::new(1);
    for options in guests() {
        let (mut served, mut front) = running(options);
        for round in 0..300 {
            let len = if round < 20 { 14 + round } else { 14 + (rng.u64() % 65_520) as usize };
            let sent = bytes(&mut rng, len);
            assert!(front.transmit(&sent), "{options:?}: no room for frame {round}");
            served.until_frames(1);
            assert_eq!(served.frames.pop().unwrap(), sent, "{options:?}: {len} bytes from the guest");

            let split = (rng.u64() as usize % len).clamp(1, 200);
            let slot = served.slots.take().unwrap();
            served.slots.slot_mut(slot)[..len - split].copy_from_slice(&sent[split..]);
            let body = Payload { slot, offset: 0, len: (len - split) as u32 };
            served.link.send(&mut served.slots, TxFrame { body, ..frame(&sent[..split]) }).unwrap();
            served.link.flush(&mut served.slots).unwrap();
            assert!(front.called(0, LONG), "{options:?}: the guest was not called");
            assert_eq!(front.receive().map(|(_, f)| f), Some(sent), "{options:?}: {len} bytes to the guest");
            front.rx.want_calls();
            front.refill();
            assert_eq!(served.slots.in_use(), 0);
        }
    }
}

/// Indices of 16 bits wrap several times; the device asks for kicks and gives calls all along.
#[test]
fn many_frames_in_bursts() {
    for event_idx in [0, feature::EVENT_IDX] {
        let options = Options { features: Options::default().features | event_idx, size: 128, ..Options::default() };
        let (mut served, mut front) = running(options);
        let (mut sent, mut received) = (0u32, 0u32);
        let mut rng = SplitMix::new(2);
        while sent < 150_000 {
            let burst = 1 + rng.u64() % 100;
            for _ in 0..burst {
                let mut f = [0; 60];
                f[..4].copy_from_slice(&sent.to_le_bytes());
                if !front.transmit(&f) {
                    break;
                }
                sent += 1;
                served.link.send(&mut served.slots, frame(&f)).unwrap();
            }
            served.turn().unwrap();
            served.until_frames(1);
            while received < sent {
                let Some((_, f)) = front.receive() else {
                    front.rx.want_calls();
                    front.refill();
                    served.turn().unwrap();
                    continue;
                };
                assert_eq!(u32::from_le_bytes(f[..4].try_into().unwrap()), received);
                received += 1;
            }
            front.refill();
            let from_guest = served.frames.drain(..).map(|f| u32::from_le_bytes(f[..4].try_into().unwrap()));
            let first = sent - from_guest.len() as u32;
            assert!(from_guest.eq(first..sent));
        }
        assert_eq!(served.link.stats().tx_frames, u64::from(sent));
    }
}

/// The device hears of buffers as it has asked to, one by one, and misses none.
#[test]
fn frames_wait_for_buffers_and_are_bounded() {
    for (event_idx, len) in [(0, 60), (0, 20_000), (feature::EVENT_IDX, 60), (feature::EVENT_IDX, 20_000)] {
        let features = Options::default().features | event_idx;
        let (mut served, mut front) = running(Options { size: 16, rx_buffer: 2048, features, ..Options::default() });
        let mut taken = 0u32;
        let full = loop {
            let slot = served.slots.take().unwrap();
            served.slots.slot_mut(slot)[..4].copy_from_slice(&taken.to_le_bytes());
            let body = Payload { slot, offset: 0, len };
            match served.link.send(&mut served.slots, TxFrame { body, ..frame(&[7; 60]) }) {
                Ok(()) => taken += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(full, TxError::Full);
        assert!(taken >= 64, "{taken} frames were taken");
        served.link.flush(&mut served.slots).unwrap();
        let mut done = 0;
        while done < taken {
            while let Some((_, f)) = front.receive() {
                assert_eq!((f.len(), u32::from_le_bytes(f[60..64].try_into().unwrap())), (60 + len as usize, done));
                done += 1;
            }
            let Some(n) = front.rx.take() else { panic!("{done} of {taken} frames of {len} bytes, and then nothing") };
            front.rx.offer_to_write(n);
            front.kick();
            if served.wait(Duration::ZERO) {
                served.turn().unwrap();
            }
        }
        assert_eq!(served.slots.in_use(), 0);
    }
}

#[test]
fn what_the_guest_takes_is_what_it_gets() {
    let (mut served, mut front) = running(Options::default());
    let info = served.link.info();
    assert!(info.checksum && info.tso == Tso::Both && info.uso && served.link.take_change());
    let mut head = [0; 66];
    head[34 + 12] = 8 << 4;
    let gso = Some(Gso { kind: GsoKind::Tcp4, size: 1448 });
    let checksum = Some(TxChecksum { start: 34, offset: 16 });
    served.link.send(&mut served.slots, TxFrame { checksum, gso, ..frame(&head) }).unwrap();
    let (header, _) = front.receive().unwrap();
    assert_eq!(header, [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0]);

    let mut h = [0; 12];
    h[..8].copy_from_slice(&[1, 4, 66, 0, 0xa8, 5, 34, 0]);
    h[8] = 16;
    front.transmit_with(&h, &[9; 4000]);
    let mut batch = hibernet::link::RxBatch::default();
    served.link.recv_batch(&mut served.slots, &mut batch).unwrap();
    let r = batch.frames()[0];
    assert_eq!((r.checksum, r.gso), (RxChecksum::Trusted, Some(Gso { kind: GsoKind::Tcp6, size: 1448 })));

    let plain = Options { features: feature::VERSION_1 | feature::PROTOCOL, rx_buffer: 1600, ..Options::default() };
    let (mut served, mut front) = running(plain);
    let info = served.link.info();
    assert!(!info.checksum && info.tso == Tso::None && !info.uso);
    assert_eq!(served.link.send(&mut served.slots, TxFrame { checksum, gso, ..frame(&head) }), Err(TxError::TooBig));
    assert_eq!(served.link.send(&mut served.slots, frame(&[0; 1700])), Err(TxError::TooBig), "longer than any buffer");
    served.link.send(&mut served.slots, frame(&[3; 1514])).unwrap();
    assert_eq!(front.receive().unwrap().1, [3; 1514]);
    let v4 = feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::MRG_RXBUF;
    let (served, _front) = running(Options { features: plain.features | v4, ..plain });
    assert_eq!(served.link.info().tso, Tso::V4);
}

#[test]
fn a_ring_goes_on_where_it_was_stopped() {
    let (mut served, mut front) = running(Options::default());
    for i in 0..10u8 {
        front.transmit(&[i; 60]);
    }
    served.until_frames(10);
    let stopped = served.while_does(|| front.stop_ring(1).unwrap()).unwrap();
    assert_eq!(stopped, 10);
    for i in 10..15u8 {
        front.transmit(&[i; 60]);
    }
    front.kick_anyway(1);
    assert!(!served.wait(Duration::from_millis(20)), "a stopped ring's kicks are of no interest");
    served.while_does(|| front.start_ring(1, stopped).unwrap()).unwrap();
    served.until_frames(15);
    assert!(served.frames.iter().enumerate().all(|(i, f)| f == &[i as u8; 60]));
}

#[test]
fn a_disabled_ring_throws_frames_away() {
    let (mut served, mut front) = running(Options::default());
    let disable = |n| front.set(hibernet_tests::vmm::code::SET_VRING_ENABLE, &FrontEnd::pair(n, 0), &[]).unwrap();
    assert!(served.while_does(|| disable(0) && disable(1)).unwrap());
    assert_eq!(served.link.send(&mut served.slots, frame(&[1; 60])), Err(TxError::Down));
    front.transmit(&[1; 60]);
    served.turn().unwrap();
    assert_eq!((served.frames.len(), front.tx.used_index()), (0, 1));
}

/// A link at a socket, and the socket's path.
fn listening(name: &str, one_off: bool) -> (super::Served, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("hibernet-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let link = VhostUserLink::listening(listener.into(), one_off, 1500, None).unwrap();
    (super::Served { link, slots: Slots::new(64).unwrap(), frames: Vec::new() }, path)
}

#[test]
fn the_link_ends_with_its_only_front_end() {
    let (mut served, path) = listening("one-off", true);
    let mut front = FrontEnd::new(UnixStream::connect(&path).unwrap(), Options::default());
    served.while_does(|| front.set_up().unwrap()).unwrap();
    front.transmit(&[1; 60]);
    served.until_frames(1);
    drop(front);
    assert!(served.wait(LONG));
    assert!(matches!(served.turn(), Err(LinkError::Closed)));
    UnixStream::connect(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn front_ends_come_and_go() {
    let (mut served, dir) = listening("vhost", false);
    assert_eq!(served.link.send(&mut served.slots, frame(&[1; 60])), Err(TxError::Down));
    for i in 0..3 {
        let mut front = FrontEnd::new(UnixStream::connect(&dir).unwrap(), Options::default());
        served.while_does(|| front.set_up().unwrap()).unwrap();
        front.transmit(&[i; 60]);
        served.until_frames(1);
        assert_eq!(served.frames.pop().unwrap(), [i; 60]);
        served.link.send(&mut served.slots, frame(&[i; 60])).unwrap();
        assert_eq!(front.receive().unwrap().1, [i; 60]);
        // The next one waits while this one is there.
        let next = UnixStream::connect(&dir).unwrap();
        served.turn().unwrap();
        drop(next);
        drop(front);
        while served.link.send(&mut served.slots, frame(&[1; 60])).is_ok() {
            assert!(served.wait(LONG));
            served.turn().unwrap();
        }
    }
    std::fs::remove_file(&dir).unwrap();
}

#[test]
fn nothing_happens_while_nothing_happens() {
    let (mut served, mut front) = running(Options::default());
    served.turn().unwrap();
    assert!(!served.wait(Duration::from_millis(20)));
    front.transmit(&[1; 60]);
    served.until_frames(1);
    served.turn().unwrap();
    assert!(!served.wait(Duration::from_millis(20)), "the kick was taken");
    let (mut served, front) = connected(Options::default());
    drop(front);
    assert!(served.wait(LONG));
    assert!(served.turn().is_err(), "a link without listener ends with its front end");
}
