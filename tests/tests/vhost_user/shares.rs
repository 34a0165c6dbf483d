//! Pairs of queues that several workers serve. Here a test plays the workers, one after the other.

use super::{LONG, Served, frame};
use hibernet::link::vhost_user::{PairsLink, VhostUserLink};
use hibernet::link::{Link, LinkNews, RxBatch};
use hibernet::sys::event::is_readable;
use hibernet::sys::vanished;
use hibernet_netstack::edge::{Payload, TxError, TxFrame};
use hibernet_tests::vmm::{FrontEnd, Options, code};
use rustix::fs::ftruncate;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A link with its worker, and those beside it.
struct Crew {
    first: Served,
    others: Vec<Served<PairsLink>>,
}

/// So many workers for a device of so many pairs.
fn crew(workers: usize, options: Options) -> (Crew, FrontEnd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let link = VhostUserLink::connected(ours.into(), 65_520, None).unwrap().with_queue_pairs(options.pairs);
    let (link, others) = link.shared_by(workers).unwrap();
    let mut crew = Crew { first: Served::new(link), others: others.into_iter().map(Served::new).collect() };
    let mut front = FrontEnd::new(theirs, options);
    crew.first.while_does(|| front.set_up().unwrap()).unwrap();
    (crew, front)
}

impl Crew {
    fn until_other_has(&mut self, n: usize, frames: usize) {
        self.others[n].until_frames(frames);
    }

    fn news(&mut self) -> Vec<LinkNews> {
        std::iter::from_fn(|| self.first.link.take_news()).collect()
    }
}

#[test]
fn each_has_its_pairs_by_turns() {
    for (workers, pairs, shares) in [(2, 4, 2), (3, 4, 3), (4, 2, 2), (1, 3, 1)] {
        let (mut crew, mut front) = crew(workers, Options { pairs, ..Options::default() });
        assert_eq!(crew.others.len() + 1, shares);
        // Of buffers to receive into.
        front.kick();
        crew.first.turn().unwrap();
        crew.others.iter_mut().for_each(|o| o.turn().unwrap());
        for pair in 0..pairs as u32 {
            assert!(front.transmit_by(pair, &[0; 12], &[pair as u8; 60]));
            let (turn, n) = (pair as usize % shares, 1 + pair as usize / shares);
            // Nobody else wakes up for it.
            let woken: Vec<bool> = std::iter::once(is_readable(crew.first.link.fd()))
                .chain(crew.others.iter().map(|o| is_readable(o.link.fd())))
                .collect();
            assert!(woken.iter().enumerate().all(|(i, w)| *w == (i == turn)), "pair {pair} of {shares} shares: {woken:?}");
            if turn == 0 { crew.first.until_frames(n) } else { crew.until_other_has(turn - 1, n) }
        }
        let frames: Vec<_> = std::iter::once(&crew.first.frames).chain(crew.others.iter().map(|o| &o.frames)).collect();
        for (turn, frames) in frames.into_iter().enumerate() {
            let came: Vec<usize> = frames.iter().map(|f| usize::from(f[0])).collect();
            assert_eq!(came, (turn..pairs).step_by(shares).collect::<Vec<_>>());
        }
        // And each sends by its own.
        crew.first.send(&[1; 60]).unwrap();
        crew.first.link.flush(&mut crew.first.slots).unwrap();
        for (n, o) in crew.others.iter_mut().enumerate() {
            assert_eq!(o.link.info(), crew.first.link.info());
            o.send(&[2 + n as u8; 60]).unwrap();
            o.link.flush(&mut o.slots).unwrap();
        }
        for pair in 0..pairs as u32 {
            while let Some((_, f)) = front.receive_by(pair) {
                assert_eq!(usize::from(f[0]), 1 + pair as usize % shares, "it came by pair {pair}");
            }
        }
        assert!(crew.others.iter().all(|o| o.link.stats().tx_frames == 1));
    }
}

/// Nothing is done that concerns all before they stand still.
#[test]
fn requests_wait_until_all_stand_still() {
    let (mut crew, front) = crew(2, Options { pairs: 2, ..Options::default() });
    let Served { link, slots, .. } = &mut crew.first;
    front.send(code::GET_VRING_BASE, 0, &FrontEnd::pair(2, 0), &[]).unwrap();
    let mut batch = RxBatch::default();
    for _ in 0..3 {
        link.recv_batch(slots, &mut batch).unwrap();
        assert!(batch.is_empty() && link.asks_for_all());
        assert!(!is_readable(front.socket()), "it is answered");
    }
    link.answer_peer(slots).unwrap();
    assert!(!link.asks_for_all() && is_readable(front.socket()));
    assert_eq!(front.answer().unwrap().0, code::GET_VRING_BASE);
}

/// A kick that comes together with a request is not forgotten over it.
#[test]
fn frames_come_although_a_request_came_with_them() {
    let (mut crew, mut front) = crew(2, Options { pairs: 2, ..Options::default() });
    front.kick();
    while crew.first.wait(Duration::ZERO) {
        crew.first.turn().unwrap();
    }
    let Served { link, slots, .. } = &mut crew.first;
    front.send(code::GET_QUEUE_NUM, 0, &[], &[]).unwrap();
    front.kick_anyway(1);
    let mut batch = RxBatch::default();
    link.recv_batch(slots, &mut batch).unwrap();
    assert!(batch.is_empty() && link.asks_for_all());
    // What the kick was for, if it came behind the look at the queue.
    assert!(front.queue(1).send(&[[0; 12].to_vec(), vec![3; 60]].concat()));
    link.answer_peer(slots).unwrap();
    assert_eq!(front.answer().unwrap().1, 2);
    link.flush(slots).unwrap();
    crew.first.until_frames(1);
}

/// A guest that no longer receives by the pairs of a worker gets its frames by those of another.
#[test]
fn who_has_no_pair_borrows_one() {
    let options = Options { pairs: 2, size: 16, ..Options::default() };
    let (mut crew, mut front) = crew(2, options);
    let enable = |crew: &mut Crew, front: &FrontEnd, pair: u32, on: bool| {
        let all = || (2 * pair..2 * pair + 2).try_for_each(|ring| front.enable_ring(ring, on)).unwrap();
        crew.first.while_does(all).unwrap();
    };
    enable(&mut crew, &front, 1, false);
    assert_eq!(crew.news(), [LinkNews::Connected], "the link is there all the same");
    while front.called(0, Duration::ZERO) {}
    let Served { link, slots, .. } = &mut crew.others[0];
    assert!(!link.reads_in_place() && !link.has_room());
    let body = slots.take().unwrap();
    slots.slot_mut(body)[..40].fill(9);
    let frame_with =
        TxFrame { head: &[8; 20], body: Payload { slot: body, offset: 0, len: 40 }, keep_body: false, checksum: None, gso: None };
    link.send(slots, frame_with).unwrap();
    assert_eq!(slots.in_use(), 0);
    assert!(front.called(0, LONG), "the guest hears of it at once");
    assert_eq!(front.receive_by(0).unwrap().1, [&[8; 20][..], &[9; 40]].concat());
    // Without buffers it is told so, and nothing waits in a queue that is another's.
    let sent = (0..100).take_while(|n| link.send(slots, frame(&[*n; 60])) == Ok(())).count();
    assert_eq!((sent, slots.in_use()), (15, 0));
    assert_eq!(link.send(slots, frame(&[1; 60])), Err(TxError::Full));
    // What waits there goes first.
    crew.first.send(&[77; 60]).unwrap();
    let got: Vec<u8> = std::iter::from_fn(|| front.receive_by(0)).map(|(_, f)| f[0]).collect();
    assert_eq!(got, (0..15).collect::<Vec<u8>>());
    front.queue(0).fill();
    let Served { link, slots, .. } = &mut crew.others[0];
    assert_eq!(link.send(slots, frame(&[78; 60])), Err(TxError::Full));
    front.kick_anyway(0);
    crew.first.turn().unwrap();
    let Served { link, slots, .. } = &mut crew.others[0];
    link.send(slots, frame(&[78; 60])).unwrap();
    let got: Vec<u8> = std::iter::from_fn(|| front.receive_by(0)).map(|(_, f)| f[0]).collect();
    assert_eq!(got, [77, 78]);
    // The other way round, and with its own again.
    enable(&mut crew, &front, 1, true);
    enable(&mut crew, &front, 0, false);
    crew.first.send(&[5; 60]).unwrap();
    assert_eq!(front.receive_by(1).unwrap().1, [5; 60]);
    enable(&mut crew, &front, 1, false);
    for sent in [crew.first.send(&[5; 60]), crew.others[0].send(&[5; 60])] {
        assert_eq!(sent, Err(TxError::Down));
    }
    assert!(matches!(crew.news()[..], [LinkNews::Disconnected(_)]));
}

/// Frames that wait are in the slots of who sent them, and it is he who drops them.
#[test]
fn what_waits_for_a_guest_that_goes_is_dropped_by_its_sender() {
    let options = Options { pairs: 2, size: 16, ..Options::default() };
    let (mut crew, front) = crew(2, options);
    while crew.first.send(&[7; 60]).is_ok() {}
    while crew.others[0].send(&[7; 60]).is_ok() {}
    let (mine, theirs) = (crew.first.slots.in_use(), crew.others[0].slots.in_use());
    assert_eq!((mine, theirs), (128, 128));
    drop(front);
    assert!(crew.first.turn().is_err(), "the only front end has gone");
    assert_eq!((crew.first.slots.in_use(), crew.others[0].slots.in_use()), (0, theirs));
    crew.others[0].turn().unwrap();
    assert_eq!(crew.others[0].slots.in_use(), 0);
    assert_eq!(crew.others[0].send(&[7; 60]), Err(TxError::Down));
    assert_eq!(crew.others[0].link.stats().tx_down, 128 + 1);
}

#[test]
fn long_frames_are_lent_by_each_and_given_back() {
    let (mut crew, mut front) = crew(2, Options { pairs: 2, ..Options::default() });
    // Asks for the checksum to be completed, as a guest does that sends long frames.
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    for pair in 0..2 {
        assert!(front.transmit_by(pair, &header, &[pair as u8; 20_000]));
    }
    let Served { link, slots, .. } = &mut crew.others[0];
    let mut batch = RxBatch::default();
    link.recv_batch(slots, &mut batch).unwrap();
    let lent = batch.frames()[0];
    assert!(batch.len() == 1 && slots.lent(lent.frame).is_some());
    assert_eq!(front.queue(3).used_index(), 0, "the guest has it back while it is lent");
    batch.drain().for_each(|r| slots.give(r.slot));
    link.flush(slots).unwrap();
    assert_eq!((front.queue(3).used_index(), front.queue(1).used_index()), (1, 0));
    crew.first.until_frames(1);
    assert_eq!((&crew.first.frames[0][..], front.queue(1).used_index()), (&[0; 20_000][..], 1));
}

/// Only who has the session can tell, and hears of it from the others.
#[test]
fn troubles_of_all_are_told() {
    let (mut crew, mut front) = crew(2, Options { pairs: 2, ..Options::default() });
    assert_eq!(crew.news(), [LinkNews::Connected]);
    front.queue(3).claim(5000);
    front.kick_anyway(3);
    assert!(crew.others[0].wait(LONG));
    crew.others[0].turn().unwrap();
    assert!(crew.first.wait(LONG), "it is to hear of that");
    crew.first.turn().unwrap();
    let news = crew.news();
    assert!(matches!(&news[..], [LinkNews::Trouble(what)] if what.contains("queue 3 makes no sense")), "{news:?}");
    assert!(!crew.first.wait(Duration::ZERO), "once");
}

/// Whoever finds that the front end has taken memory away, it is the one with the session who ends that, while all stand still.
#[test]
fn memory_that_another_finds_missing_ends_the_session() {
    vanished::survive().unwrap();
    let (mut crew, mut front) = crew(2, Options { pairs: 2, ..Options::default() });
    assert_eq!(crew.news(), [LinkNews::Connected]);
    while crew.first.wait(Duration::ZERO) {
        crew.first.turn().unwrap();
    }
    assert!(front.transmit_by(1, &[0; 12], &[3; 60]));
    ftruncate(front.file(), 0).unwrap();
    assert!(crew.others[0].wait(LONG));
    crew.others[0].turn().unwrap();
    assert!(crew.others[0].frames.is_empty());
    assert!(crew.first.wait(LONG), "it is to hear of that");
    let Served { link, slots, .. } = &mut crew.first;
    link.recv_batch(slots, &mut RxBatch::default()).unwrap();
    assert!(link.asks_for_all());
    assert!(link.answer_peer(slots).is_err(), "the only front end has gone");
    let news = crew.news();
    assert!(matches!(news.last(), Some(LinkNews::Disconnected(why)) if why.contains("shorter")), "{news:?}");
    assert_eq!(crew.others[0].send(&[7; 60]), Err(TxError::Down));
}

/// Memory, log and rings change while others serve, and none of them has anything that is not so any more.
#[test]
fn what_is_agreed_on_holds_for_all() {
    let (mut crew, mut front) = crew(2, Options { pairs: 2, ..Options::default() });
    let end = front.memory_len();
    let logged = |crew: &mut Crew, front: &mut FrontEnd| {
        assert!(front.transmit_by(1, &[0; 12], &[3; 60]));
        let n = crew.others[0].frames.len() + 1;
        crew.until_other_has(0, n);
        front.queue(3).layout.used() / hibernet_tests::vmm::LOG_PAGE
    };
    assert!(crew.first.while_does(|| front.share_log(end).unwrap()).unwrap());
    crew.first.while_does(|| front.set_logging(true).unwrap()).unwrap();
    let page = logged(&mut crew, &mut front);
    assert!(front.take_logged().contains(&page));
    crew.first.while_does(|| front.set_logging(false).unwrap()).unwrap();
    logged(&mut crew, &mut front);
    assert!(front.take_logged().is_empty());
    for _ in 0..20 {
        crew.first.while_does(|| front.share_memory().unwrap()).unwrap();
        logged(&mut crew, &mut front);
    }
    // Rings that stopped give nothing, those that run again go on where they stood.
    let base = crew.first.while_does(|| front.stop_ring(3).unwrap()).unwrap();
    assert_eq!(usize::from(base), crew.others[0].frames.len());
    assert!(front.transmit_by(1, &[0; 12], &[4; 60]));
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(20) {
        crew.others[0].turn().unwrap();
    }
    assert_eq!(usize::from(base), crew.others[0].frames.len());
    crew.first.while_does(|| front.start_ring(3, base).unwrap()).unwrap();
    front.kick_anyway(3);
    crew.until_other_has(0, usize::from(base) + 1);
}

#[test]
fn a_link_that_is_stopped_leaves_nothing_to_the_others() {
    let (mut crew, mut front) = crew(2, Options { pairs: 2, ..Options::default() });
    crew.first.link.stop(&mut crew.first.slots);
    assert!(front.transmit_by(1, &[0; 12], &[3; 60]));
    crew.others[0].turn().unwrap();
    assert!(crew.others[0].frames.is_empty());
    assert_eq!(crew.others[0].send(&[7; 60]), Err(TxError::Down));
    let Served { link, slots, .. } = &mut crew.others[0];
    link.stop(slots);
    assert!(crew.others[0].turn().is_err());
}
