//! The vhost-user link, with a front end and a guest's driver that a test plays.

mod hostile;
mod in_place;
mod in_process;
mod inflight;
mod lent;
mod log;
mod peers;
mod queues;
mod requests;
mod shares;
mod state;
mod traffic;

use hibernet::link::vhost_user::VhostUserLink;
use hibernet::link::{Link, LinkError, RxBatch};
use hibernet::slots::Slots;
use hibernet_netstack::edge::{Payload, TxError, TxFrame};
use hibernet_tests::vmm::{FrontEnd, Options};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A link, and what a worker does with it.
struct Served<L = VhostUserLink> {
    link: L,
    slots: Slots,
    /// Frames that the guest has sent.
    frames: Vec<Vec<u8>>,
}

/// Nothing here takes so long.
const LONG: Duration = Duration::from_secs(20);

/// A link and a front end that has said nothing yet.
fn connected(options: Options) -> (Served, FrontEnd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let link = VhostUserLink::connected(ours.into(), 65_520, None).unwrap();
    let served = Served { link, slots: Slots::new(1024).unwrap(), frames: Vec::new() };
    (served, FrontEnd::new(theirs, options))
}

/// A link that a front end has set up.
fn running(options: Options) -> (Served, FrontEnd) {
    let (mut served, mut front) = connected(options);
    served.while_does(|| front.set_up().unwrap()).unwrap();
    (served, front)
}

fn frame(head: &[u8]) -> TxFrame<'_> {
    TxFrame { head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None }
}

impl<L: Link> Served<L> {
    fn new(link: L) -> Served<L> {
        Served { link, slots: Slots::new(1024).unwrap(), frames: Vec::new() }
    }

    /// Sends a frame to the guest.
    fn send(&mut self, bytes: &[u8]) -> Result<(), TxError> {
        self.link.send(&mut self.slots, frame(bytes))
    }

    /// One wake-up of a worker.
    fn turn(&mut self) -> Result<(), LinkError> {
        let mut batch = RxBatch::default();
        loop {
            self.link.recv_batch(&mut self.slots, &mut batch)?;
            if self.link.asks_for_all() {
                self.link.answer_peer(&mut self.slots)?;
            }
            if batch.is_empty() {
                break;
            }
            for r in batch.drain() {
                let mut bytes = vec![0; r.frame.len()];
                assert_eq!(self.slots.read(r.frame, &mut bytes), bytes.len());
                self.frames.push(bytes);
                self.slots.give(r.slot);
            }
        }
        self.link.flush(&mut self.slots)
    }

    /// Waits for something to happen at the link's descriptor, at most so long; whether it did.
    fn wait(&self, at_most: Duration) -> bool {
        let timeout = Timespec::try_from(at_most).unwrap();
        poll(&mut [PollFd::new(&self.link.fd(), PollFlags::IN)], Some(&timeout)).unwrap() == 1
    }

    /// Serves while the front end does something that waits for answers.
    fn while_does<T: Send>(&mut self, f: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
        std::thread::scope(|s| {
            let work = s.spawn(f);
            let mut end = Ok(());
            while !work.is_finished() {
                if end.is_ok() && self.wait(Duration::from_millis(2)) {
                    end = self.turn();
                }
            }
            let done = work.join().expect("the front end");
            end.map(|()| done)
        })
    }

    /// Serves until `n` frames came from the guest.
    fn until_frames(&mut self, n: usize) {
        let end = Instant::now() + LONG;
        while self.frames.len() < n {
            assert!(Instant::now() < end, "{} of {n} frames came", self.frames.len());
            assert!(self.wait(LONG), "nothing more happens after {} of {n} frames", self.frames.len());
            self.turn().unwrap();
        }
    }
}
