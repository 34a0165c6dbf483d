//! A worker beside the leader: a thread that serves one queue of the guest's link, with a stack and host sockets of its own.
//!
//! Between two wake-ups it can be [held](Fellow::hold) by the leader, who then does with it what is to be done.

use super::inbox::Inbox;
use super::turn::{hand_out_events, receive_batch, receive_handed};
use super::{FRAME_BUDGET, MAX_LINK_FAILURES, MAX_ROUNDS, SLOTS, TRIM_AFTER, WARM_SLOTS, WorkerError};
use crate::clock::{self, Clock};
use crate::edge::RuntimeEdge;
use crate::entropy;
use crate::link::{Link, LinkError, RxBatch};
use crate::slots::Slots;
use crate::sock::{SocketEvent, Sockets};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::{Stack, Time};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// The queue's number among the links of the follower's stack.
const LINK: LinkId = LinkId(0);
/// Words of events.
const FROM_LINK: u64 = 0;
const FROM_SOCKETS: u64 = 1;
const FROM_TIMER: u64 = 2;
const FROM_INBOX: u64 = 3;

/// A follower, as its own thread and the leader have it.
pub(super) struct Fellow {
    state: Mutex<Follower>,
    /// Who waits for the state has this first, so that a follower that is busy lets the leader in.
    gate: Mutex<()>,
    goes_on: Condvar,
    pub(super) inbox: Arc<Inbox>,
    leader: Arc<Inbox>,
    epoll: Epoll,
    /// Its thread has ended before its time.
    failed: AtomicBool,
}

/// A follower that is held, and its gate.
pub(super) struct Hold<'a> {
    follower: MutexGuard<'a, Follower>,
    _gate: MutexGuard<'a, ()>,
}

/// What a follower has.
pub(super) struct Follower {
    pub(super) stack: Stack,
    pub(super) edge: RuntimeEdge,
    pub(super) clock: Clock,
    /// It stands still.
    pub(super) still: bool,
    ended: bool,
    timer: TimerFd,
    armed: Option<Time>,
    batch: RxBatch,
    events: Vec<SocketEvent>,
    /// The queue has failed so often in a row, and is served no longer.
    failures: u32,
    gone: bool,
    /// The queue is watched for taking more.
    waits: bool,
    trim_at: Option<Time>,
    pub(super) wakeups: u64,
    log: slog::Logger,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Who panicked has told that by `failed`, and all ends.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fellow {
    /// A follower of `leader`, number `n` from 1 on, that serves `link`. Its thread is to be [run](Fellow::run).
    pub(super) fn new(
        leader: &mut Stack,
        n: u8,
        link: Box<dyn Link>,
        inboxes: Vec<Arc<Inbox>>,
        clock: Clock,
        log: &slog::Logger,
    ) -> Result<Fellow, WorkerError> {
        let seed = entropy::seed().map_err(WorkerError::system("get entropy"))?;
        let sockets = Sockets::new(None, None).map_err(WorkerError::system("prepare host sockets"))?;
        let slots = Slots::new(SLOTS).map_err(WorkerError::system("map payload memory"))?;
        let timer = TimerFd::new().map_err(|e| WorkerError::System { what: "make a timer", source: e.into() })?;
        let epoll = Epoll::new().map_err(WorkerError::system("make an event loop"))?;
        let (own, first) = (inboxes[usize::from(n)].clone(), inboxes[0].clone());
        let watched = [
            (FROM_LINK, link.fd().as_raw_fd()),
            (FROM_SOCKETS, sockets.fd().as_raw_fd()),
            (FROM_TIMER, timer.as_raw_fd()),
            (FROM_INBOX, own.as_fd().as_raw_fd()),
        ];
        for (word, fd) in watched {
            watch(&epoll, ControlOperation::Add, fd, word, EventSet::IN).map_err(WorkerError::system("watch a queue"))?;
        }
        let follower = Follower {
            stack: leader.share(n, seed),
            edge: RuntimeEdge { slots, links: vec![Some(link)], sockets, inboxes },
            clock,
            still: false,
            ended: false,
            timer,
            armed: None,
            batch: RxBatch::default(),
            events: Vec::new(),
            failures: 0,
            gone: false,
            waits: false,
            trim_at: None,
            wakeups: 0,
            log: log.new(slog::o!("worker" => n)),
        };
        Ok(Fellow {
            state: Mutex::new(follower),
            gate: Mutex::new(()),
            goes_on: Condvar::new(),
            inbox: own,
            leader: first,
            epoll,
            failed: AtomicBool::new(false),
        })
    }

    /// Waits until its wake-up is over; it stands still as long as it is held.
    pub(super) fn hold(&self) -> Hold<'_> {
        let gate = lock(&self.gate);
        Hold { follower: lock(&self.state), _gate: gate }
    }

    /// Whether its thread has ended before its time.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Lets it go on that stood still, or do what came up while it was held.
    pub(super) fn wake(&self) {
        self.goes_on.notify_all();
        self.inbox.tell();
    }

    /// Has its thread end.
    pub(super) fn end(&self) {
        self.hold().follower.ended = true;
        self.wake();
    }

    /// Serves, until it is told to end.
    pub(super) fn run(&self) {
        let done = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let why = match done {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(_) => "it panicked".into(),
        };
        slog::error!(self.hold().follower.log, "a worker has ended"; "why" => why);
        self.failed.store(true, Ordering::Release);
        self.leader.tell();
    }

    fn serve(&self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 8];
        loop {
            let n = match self.epoll.wait(-1, &mut events) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            drop(lock(&self.gate));
            let mut f = lock(&self.state);
            while f.still && !f.ended {
                f = self.goes_on.wait(f).unwrap_or_else(PoisonError::into_inner);
            }
            if f.ended {
                return Ok(());
            }
            let ready = events[..n].iter().map(EpollEvent::data);
            if f.turn(ready, &self.inbox) {
                self.leader.tell();
            }
            f.watch_link(&self.epoll)?;
        }
    }
}

fn watch(epoll: &Epoll, how: ControlOperation, fd: RawFd, word: u64, set: EventSet) -> io::Result<()> {
    epoll.ctl(how, fd, EpollEvent::new(set, word))
}

impl std::ops::Deref for Hold<'_> {
    type Target = Follower;

    fn deref(&self) -> &Follower {
        &self.follower
    }
}

impl std::ops::DerefMut for Hold<'_> {
    fn deref_mut(&mut self) -> &mut Follower {
        &mut self.follower
    }
}

impl Follower {
    /// A wake-up. Whether the leader is to hear of something.
    fn turn(&mut self, ready: impl Iterator<Item = u64>, inbox: &Inbox) -> bool {
        self.wakeups += 1;
        let now = self.clock.now();
        self.stack.set_wall_clock(now, Duration::from_nanos(clock::wall()));
        for word in ready {
            match word {
                FROM_LINK => self.read_link(now),
                FROM_SOCKETS => self.poll_sockets(now),
                // It is not read: setting it, or switching it off, makes it unreadable too.
                FROM_TIMER => self.armed = None,
                _ => {
                    inbox.answer();
                    self.read_inbox(now, inbox);
                }
            }
        }
        self.settle(now, inbox);
        self.stack.has_log()
    }

    fn read_link(&mut self, now: Time) {
        let mut taken = 0;
        while taken < FRAME_BUDGET && !self.gone {
            let RuntimeEdge { slots, links, .. } = &mut self.edge;
            let Some(Some(link)) = links.first_mut() else { break };
            match link.recv_batch(slots, &mut self.batch) {
                Ok(()) => self.failures = 0,
                Err(e) => return self.link_failed(&e),
            }
            if self.batch.is_empty() {
                break;
            }
            taken += receive_batch(&mut self.stack, &mut self.edge, &mut self.batch, LINK, now);
        }
        if taken > 0 {
            self.trim_at = Some(now + TRIM_AFTER);
        }
    }

    /// The queue cannot be used. If that lasts it is served no longer; whether the link as a whole is gone the leader finds out.
    fn link_failed(&mut self, e: &LinkError) {
        self.failures += 1;
        if matches!(e, LinkError::Io(_)) && self.failures < MAX_LINK_FAILURES {
            return;
        }
        if !std::mem::replace(&mut self.gone, true) {
            slog::info!(self.log, "queue is gone"; "error" => %e);
        }
    }

    fn poll_sockets(&mut self, now: Time) {
        if hand_out_events(&mut self.stack, &mut self.edge, &mut self.events, now) {
            self.trim_at = Some(now + TRIM_AFTER);
        }
    }

    fn read_inbox(&mut self, now: Time, inbox: &Inbox) {
        receive_handed(&mut self.stack, &mut self.edge, inbox, now);
        inbox.take_news();
    }

    /// Ends a wake-up: what was put off is done, and the timer stands right.
    fn settle(&mut self, mut now: Time, inbox: &Inbox) {
        for round in 0.. {
            if self.stack.next_deadline().is_some_and(|t| t <= now) {
                self.stack.tick(now, &mut self.edge);
            }
            let mut more = self.stack.flush(now, &mut self.edge);
            self.flush_link();
            more |= self.wake_waiting(now);
            if !more && !self.edge.sockets.has_notices() && inbox.is_empty() {
                break;
            }
            if round == MAX_ROUNDS {
                return self.arm(now, Some(now));
            }
            now = self.clock.now();
            self.read_link(now);
            self.read_inbox(now, inbox);
            self.poll_sockets(now);
        }
        if self.trim_at.is_some_and(|t| t <= now) {
            self.trim_at = None;
            self.edge.sockets.forget_ahead(&mut self.edge.slots);
            self.edge.slots.trim(WARM_SLOTS);
        }
        let deadline = self.stack.next_deadline().into_iter().chain(self.trim_at).min();
        self.arm(now, deadline);
    }

    fn flush_link(&mut self) {
        let RuntimeEdge { slots, links, .. } = &mut self.edge;
        if let Some(Some(link)) = links.first_mut()
            && let Err(e) = link.flush(slots)
        {
            self.link_failed(&e);
        }
    }

    fn wake_waiting(&mut self, now: Time) -> bool {
        let room = self.edge.links[0].as_ref().is_some_and(|l| l.has_room());
        room && self.stack.waits_for_link() && self.stack.link_has_room(now, LINK, &mut self.edge)
    }

    /// Serves another network from now on: flows of the one before end.
    pub(super) fn begin_anew(&mut self, stack: Stack, clock: Clock) {
        let now = self.clock.now();
        self.stack.reset_all(now, &mut self.edge);
        self.stack.flush(now, &mut self.edge);
        (self.stack, self.clock, self.trim_at, self.armed) = (stack, clock, None, None);
        // Times of the other clock mean nothing.
        self.arm(clock.now(), None);
    }

    /// Sends what was put off, so that nothing of it is in our memory alone.
    pub(super) fn settle_down(&mut self, turns: u32) {
        let now = self.clock.now();
        for _ in 0..turns {
            if !self.stack.flush(now, &mut self.edge) {
                break;
            }
        }
        self.edge.sockets.flush(&mut self.edge.slots);
        self.edge.sockets.forget_ahead(&mut self.edge.slots);
        self.flush_link();
    }

    /// Has the timer fire at `deadline`, unless it fires before anyway.
    fn arm(&mut self, now: Time, deadline: Option<Time>) {
        let set = match deadline {
            Some(at) if self.armed.is_none_or(|armed| at < armed) => {
                self.armed = Some(at);
                // A time of zero would switch it off.
                self.timer.reset(at.since(now).max(Duration::from_nanos(1)), None)
            }
            _ if self.armed.is_none() => self.timer.clear(),
            _ => Ok(()),
        };
        if let Err(e) = set {
            slog::error!(self.log, "cannot set the timer"; "error" => %e);
        }
    }

    /// Has the queue watched for taking more while that is wanted, and no longer when it is gone.
    fn watch_link(&mut self, epoll: &Epoll) -> io::Result<()> {
        if self.gone {
            if let Some(mut link) = self.edge.links[0].take() {
                // Others have its descriptor, too: closing ours would not end it.
                watch(epoll, ControlOperation::Delete, link.fd().as_raw_fd(), FROM_LINK, EventSet::empty())?;
                link.stop(&mut self.edge.slots);
            }
            return Ok(());
        }
        let Some(link) = self.edge.links[0].as_ref().filter(|l| l.waits() != self.waits) else { return Ok(()) };
        self.waits = link.waits();
        let set = if self.waits { EventSet::IN | EventSet::OUT } else { EventSet::IN };
        watch(epoll, ControlOperation::Modify, link.fd().as_raw_fd(), FROM_LINK, set)
    }
}
