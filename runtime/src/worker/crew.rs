//! The leader and its followers: several workers that serve the queues of one link together ([`hibernet_netstack::workers`]).
//!
//! Whatever concerns the network as a whole the leader does, while it holds all others between two of their wake-ups. A frozen network is the leader's
//! alone: it takes over all flows before, so that images, hand-overs and moves know nothing of followers.

use super::follower::{Fellow, Follower, Hold};
use super::freeze::MAX_TURNS;
use super::inbox::Inbox;
use super::turn::receive_handed;
use super::{Finished, Worker, WorkerError};
use crate::clock::Clock;
use crate::edge::RuntimeEdge;
use crate::link::Link;
use event_manager::EventOps;
use hibernet_netstack::state::GoesOn;
use hibernet_netstack::workers::MAX_WORKERS;
use hibernet_netstack::{Stack, Time};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Most workers of a network.
pub const MOST_WORKERS: usize = MAX_WORKERS as usize;

/// The followers of a leader; none, mostly.
#[derive(Default)]
pub(super) struct Crew {
    fellows: Vec<Arc<Fellow>>,
    threads: Vec<JoinHandle<()>>,
    /// What they have for the leader.
    inbox: Option<Arc<Inbox>>,
}

impl Crew {
    /// A follower for each of these queues.
    pub(super) fn hire(
        stack: &mut Stack,
        edge: &mut RuntimeEdge,
        queues: Vec<Box<dyn Link>>,
        clock: Clock,
        log: &slog::Logger,
    ) -> Result<Crew, WorkerError> {
        if queues.is_empty() {
            return Ok(Crew::default());
        }
        if queues.len() >= MOST_WORKERS {
            return Err(WorkerError::TooManyQueues(queues.len() + 1));
        }
        let inboxes = (0..=queues.len()).map(|_| Inbox::new().map(Arc::new));
        let inboxes = inboxes.collect::<std::io::Result<Vec<_>>>().map_err(WorkerError::system("make an event descriptor"))?;
        let mut fellows = Vec::new();
        for (n, queue) in (1..).zip(queues) {
            fellows.push(Arc::new(Fellow::new(stack, n, queue, inboxes.clone(), clock, log)?));
        }
        // Now that all are there.
        fellows.iter().for_each(|f| f.hold().stack.follow(stack));
        let inbox = Some(inboxes[0].clone());
        edge.inboxes = inboxes;
        Ok(Crew { fellows, threads: Vec::new(), inbox })
    }

    /// Has them serve.
    pub(super) fn start(&mut self) -> std::io::Result<()> {
        for f in &self.fellows[self.threads.len()..] {
            let fellow = f.clone();
            self.threads.push(thread::Builder::new().spawn(move || fellow.run())?);
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fellows.is_empty()
    }

    pub(super) fn fd(&self) -> Option<RawFd> {
        self.inbox.as_ref().map(|i| i.as_fd().as_raw_fd())
    }

    /// All of them; each is to be [held](Fellow::hold).
    pub(super) fn fellows(&self) -> Vec<Arc<Fellow>> {
        self.fellows.clone()
    }

    fn wake(&self) {
        self.fellows.iter().for_each(|f| f.wake());
    }

    /// Ends them.
    pub(super) fn end(&mut self) {
        self.fellows.iter().for_each(|f| f.end());
        for t in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = t.join();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.end();
    }
}

impl Worker {
    /// Does something while all followers stand still; what they counted is the leader's then.
    pub(super) fn together<R>(&mut self, f: impl FnOnce(&mut Worker, &mut [Hold<'_>]) -> R) -> R {
        let fellows = self.crew.fellows();
        let mut held: Vec<Hold<'_>> = fellows.iter().map(|f| f.hold()).collect();
        for other in &mut held {
            self.stack.absorb(&mut other.stack);
        }
        f(self, &mut held)
    }

    /// Has all followers do as the leader does now.
    pub(super) fn lead(&mut self) {
        self.together(|w, others| others.iter_mut().for_each(|o| o.stack.follow(&w.stack)));
        self.wake_followers();
    }

    /// Followers do what was left for them to do while they were held.
    pub(super) fn wake_followers(&self) {
        self.crew.wake();
    }

    /// Something of every follower's.
    pub(super) fn of_followers<R>(&self, mut f: impl FnMut(&Follower) -> R) -> Vec<R> {
        self.crew.fellows().iter().map(|fellow| f(&fellow.hold())).collect()
    }

    /// Followers have frames for the leader, or something to tell.
    pub(super) fn inbox_ready(&mut self, now: Time, ops: &mut EventOps<'_>) {
        let Some(inbox) = self.crew.inbox.clone() else { return };
        inbox.answer();
        self.read_inbox(now);
        if !inbox.take_news() {
            return;
        }
        if self.crew.fellows.iter().any(|f| f.has_failed()) {
            return self.finish(Finished::LoopFailed, ops);
        }
        // What their rules logged is written by the leader.
        self.together(|_, _| ());
    }

    /// Takes the frames that followers have for the leader.
    pub(super) fn read_inbox(&mut self, now: Time) {
        if let Some(inbox) = &self.crew.inbox {
            receive_handed(&mut self.stack, &mut self.edge, inbox, now);
        }
    }

    /// Whether followers have frames for the leader.
    pub(super) fn has_handed(&self) -> bool {
        self.crew.inbox.as_ref().is_some_and(|i| !i.is_empty())
    }

    /// Followers stand still, or go on, as the leader does; its clock is theirs.
    pub(super) fn still_followers(&mut self, still: bool) {
        let clock = self.clock;
        for fellow in self.crew.fellows() {
            let mut other = fellow.hold();
            (other.clock, other.still) = (clock, still);
        }
        if !still {
            self.crew.wake();
        }
    }

    /// The flows of followers have heard nothing of their guest, or of their peers, for so long.
    pub(super) fn thaw_followers(&mut self, now: Time, asleep: Duration) {
        self.together(|_, others| {
            for Follower { stack, edge, .. } in others.iter_mut().map(|o| &mut **o) {
                stack.thaw(now, asleep, &|_| GoesOn::Yes, edge);
            }
        });
    }

    /// The leader has another network's stack and clock: followers begin anew beside it. A seed for each.
    pub(super) fn lead_anew(&mut self, seeds: Vec<[u8; 16]>) {
        let fellows = self.crew.fellows();
        let mut held: Vec<Hold<'_>> = fellows.iter().map(|f| f.hold()).collect();
        for (n, (other, seed)) in (1..).zip(held.iter_mut().zip(seeds)) {
            other.begin_anew(self.stack.share(n, seed), self.clock);
        }
        // Now that all are there.
        held.iter_mut().for_each(|o| o.stack.follow(&self.stack));
    }

    /// How many followers there are.
    pub(super) fn followers(&self) -> usize {
        self.crew.fellows.len()
    }

    /// Takes over all flows, with their sockets; the followers, who stand still, have none any more.
    pub(super) fn gather(&mut self) {
        self.together(|w, others| {
            for other in others {
                other.settle_down(MAX_TURNS);
                let Follower { stack, edge, .. } = &mut **other;
                let RuntimeEdge { sockets: mine, .. } = &mut w.edge;
                w.stack.take_over(stack, &mut |sock, token| mine.adopt_from(&mut edge.sockets, sock, token));
                let now = w.clock.now();
                stack.reset_all(now, edge);
                stack.flush(now, edge);
            }
        });
    }
}
