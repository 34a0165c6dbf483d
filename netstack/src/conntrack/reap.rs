//! The reaper: connections that timed out go without anybody asking for them.
//!
//! A turn over all slots is made of 128 runs, a run of steps that are bounded. How soon the next run comes depends on what this one found: if
//! half of the connections or more had timed out, in 10 ms, else 10 ms later than the last time, at most 60 s / 128. It begins 5 s after
//! the first connection. Runs visit slots, not buckets: that is the order in which memory is read fast, and no run is longer
//! because of a long chain.

use super::bucket::entry;
use super::early_drop::is_expendable;
use super::image::{HeadError, Reaping};
use super::slot::Held;
use super::sync::Ordering::Relaxed;
use super::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, lock};
use super::table::{Conntrack, Tables, is_live, is_pinned};
use crate::time::Time;
use core::time::Duration;

/// Runs in a turn.
const RUNS: u32 = 128;

/// Longest turn.
const TURN: Duration = Duration::from_secs(60);

/// Shortest interval between runs, and by what it grows.
const LEAST: Duration = Duration::from_millis(10);

/// Longest interval between runs.
const MOST: Duration = Duration::from_nanos(TURN.as_nanos() as u64 / RUNS as u64);

/// From the first connection to the first run.
const DELAY: Duration = Duration::from_secs(5);

/// What a step does at most: slots passed over, and connections looked at.
const STEP_SLOTS: u32 = 16_384;
const STEP_CONNS: u32 = 512;

/// Connections whose memory is got on its way together.
const BATCH: usize = 32;

/// How soon a connection is looked at again that timed out but is pinned.
const PINNED: Duration = Duration::from_secs(60);

/// When the reaper runs, and where it stands.
#[derive(Debug)]
pub(super) struct Reaper {
    state: Mutex<State>,
    /// When the next step is due, in nanoseconds; [`Time::NEVER`] before the start.
    due: AtomicU64,
    quiesced: AtomicBool,
    /// The table was full and nothing could go.
    pressed: AtomicBool,
    /// Where the next search for one connection that timed out begins.
    search: AtomicU32,
}

#[derive(Debug)]
struct State {
    /// Next slot.
    cursor: u32,
    /// Slots left of this run.
    left: u32,
    /// Connections that this run came by, and those of them that had timed out.
    passed: u32,
    expired: u32,
    interval: Duration,
    /// Slots left of the turn in which room is made.
    pressure: u32,
}

impl Reaper {
    pub(super) fn new() -> Self {
        Reaper {
            state: Mutex::new(State { cursor: 0, left: 0, passed: 0, expired: 0, interval: MOST, pressure: 0 }),
            due: AtomicU64::new(Time::NEVER.as_nanos()),
            quiesced: AtomicBool::new(false),
            pressed: AtomicBool::new(false),
            search: AtomicU32::new(0),
        }
    }

    fn due(&self) -> Time {
        Time::from_nanos(self.due.load(Relaxed))
    }

    /// There is a connection: begins, unless that was done.
    #[inline]
    pub(super) fn start(&self, now: Time) {
        if self.due() == Time::NEVER {
            self.due.fetch_min((now + DELAY).as_nanos(), Relaxed);
        }
    }

    /// The table is full: the next run comes soon, and makes room.
    pub(super) fn press(&self, now: Time) {
        self.pressed.store(true, Relaxed);
        self.due.fetch_min((now + LEAST).as_nanos(), Relaxed);
    }

    /// Where to search `n` slots.
    pub(super) fn look_from(&self, n: u32) -> u32 {
        self.search.fetch_add(n, Relaxed)
    }
}

impl Conntrack {
    /// When [`Conntrack::reap`] wants to be called at the latest; `None` before the first connection, and while quiesced. It may move to
    /// earlier with every call to the table.
    #[inline]
    pub fn reap_due(&self) -> Option<Time> {
        let due = self.reaper.due();
        (due != Time::NEVER && !self.reaper.quiesced.load(Relaxed)).then_some(due)
    }

    /// One step of the reaper, if it is due: at most 512 connections are looked at and 16,384 slots passed. Returns when the next one is
    /// due, as [`Conntrack::reap_due`]; that is at once if the run is not at its end.
    ///
    /// To be called by one worker at a time (others would wait); all other calls go on meanwhile.
    pub fn reap(&self, now: Time) -> Option<Time> {
        let mut state = lock(&self.reaper.state);
        let due = self.reap_due()?;
        let Some(t) = self.tables().filter(|_| due <= now) else { return Some(due) };
        let next = state.step(self, t, now);
        self.reaper.due.store(next.as_nanos(), Relaxed);
        if self.reaper.pressed.load(Relaxed) {
            self.reaper.due.fetch_min((now + LEAST).as_nanos(), Relaxed);
        }
        self.reap_due()
    }

    /// Stops the reaper: when this returns no step is in progress, and none will be before [`Conntrack::restart`]. Any number of times, also
    /// before the reaper ever ran.
    pub fn quiesce(&self) {
        let _state = lock(&self.reaper.state);
        self.reaper.quiesced.store(true, Relaxed);
    }

    /// Lets the reaper go on where it stood; what became due meanwhile is due now. Does not start one that was never needed. Any number of times.
    pub fn restart(&self, now: Time) {
        let _state = lock(&self.reaper.state);
        let due = self.reaper.due();
        if due != Time::NEVER {
            self.reaper.due.store(due.max(now).as_nanos(), Relaxed);
        }
        self.reaper.quiesced.store(false, Relaxed);
    }
}

/// In an image.
impl Conntrack {
    /// Where the reaper stands, when no step is in progress.
    pub(super) fn reaping(&self) -> Reaping {
        let r = &self.reaper;
        let state = lock(&r.state);
        let due = r.due();
        Reaping {
            due: (due != Time::NEVER).then_some(due),
            cursor: state.cursor,
            left: state.left,
            passed: state.passed,
            expired: state.expired,
            interval: state.interval,
            pressure: state.pressure,
            pressed: r.pressed.load(Relaxed),
            search: r.search.load(Relaxed),
        }
    }

    /// Goes on where another table's reaper stood, which has as many slots or more.
    pub(super) fn resume_reaping(&self, from: &Reaping, slots: u32) {
        let r = &self.reaper;
        let mut state = lock(&r.state);
        *state = State {
            cursor: if from.cursor < slots { from.cursor } else { 0 },
            left: from.left.min(slots),
            passed: from.passed,
            expired: from.expired,
            interval: from.interval,
            pressure: from.pressure.min(slots),
        };
        r.due.store(from.due.unwrap_or(Time::NEVER).as_nanos(), Relaxed);
        r.pressed.store(from.pressed, Relaxed);
        r.search.store(from.search, Relaxed);
    }
}

impl Default for Reaping {
    fn default() -> Self {
        Reaping { due: None, cursor: 0, left: 0, passed: 0, expired: 0, interval: MOST, pressure: 0, pressed: false, search: 0 }
    }
}

impl Reaping {
    /// Whether a reaper can stand there in a table of so many slots.
    pub(super) fn check(&self, slots: u32, now: Time) -> Result<(), HeadError> {
        let place = (self.cursor < slots || self.cursor == 0) && self.left <= slots.div_ceil(RUNS) && self.pressure <= slots;
        let counts = self.passed <= slots && self.expired <= self.passed;
        let times = (LEAST..=MOST).contains(&self.interval) && self.due.is_none_or(|due| due <= now + DELAY);
        // Without slots there is nothing that its step could put off.
        let needed = slots > 0 || self.due.is_none();
        if place && counts && times && needed { Ok(()) } else { Err(HeadError::Reaper) }
    }
}

impl State {
    /// One step; returns when the next is due.
    fn step(&mut self, table: &Conntrack, t: &Tables, now: Time) -> Time {
        let used = t.arena.used();
        if self.left == 0 {
            (self.passed, self.expired) = (0, 0);
            self.left = used.div_ceil(RUNS);
        }
        if table.reaper.pressed.swap(false, Relaxed) {
            self.pressure = used;
        }
        let (mut slots, mut conns) = (STEP_SLOTS, STEP_CONNS);
        while self.left > 0 && slots > 0 && conns > 0 {
            let mut batch = [0; BATCH];
            let all = self.pressure > 0;
            let end = used.min(self.cursor + self.left.min(slots));
            let (n, passed, at) = t.arena.look(self.cursor, end, (!all).then_some(now), &mut batch);
            let seen = at - self.cursor;
            self.passed += passed;
            self.left -= seen;
            self.pressure = self.pressure.saturating_sub(seen);
            self.cursor = if at < used { at } else { 0 };
            slots -= seen;
            conns = conns.saturating_sub(n as u32);
            self.expired += table.reap_batch(t, now, &batch[..n], all);
        }
        if self.left > 0 {
            return now;
        }
        let stale = self.expired > 0 && u64::from(self.expired) * 2 >= u64::from(self.passed);
        self.interval = if stale || self.pressure > 0 { LEAST } else { (self.interval + LEAST).min(MOST) };
        now + self.interval
    }
}

/// Notes when the reaper is to come back to a connection that lives.
fn put_off(t: &Tables, held: &Held<'_>, now: Time) {
    let pinned = is_pinned(&held.conn) && held.conn.expires <= now;
    t.arena.reap_at(held, if pinned { now + PINNED } else { held.conn.expires });
}

impl Conntrack {
    /// Looks at connections, and removes those that timed out (and, if need be, those that can be spared); returns how many went.
    fn reap_batch(&self, t: &Tables, now: Time, batch: &[u32], make_room: bool) -> u32 {
        batch.iter().for_each(|&i| t.arena.prefetch(i));
        let buckets = batch.iter().flat_map(|&i| [entry(i, 0), entry(i, 1)]);
        buckets.filter_map(|e| t.buckets.get(self.bucket_of(t.arena.hash(e)))).for_each(|b| b.prefetch());
        let mut gone = [0; BATCH];
        let (mut n, mut expired) = (0, 0);
        for &index in batch {
            let Some(held) = t.arena.hold(index) else { continue };
            let live = is_live(&held.conn, now);
            if live && !(make_room && is_expendable(&held.conn) && self.is_crowded(n)) {
                put_off(t, &held, now);
                continue;
            }
            expired += u32::from(!live);
            self.unlink(t, &t.arena.vacate(held));
            gone[n] = index;
            n += 1;
        }
        if n > 0 {
            self.free(t, &gone[..n]);
            self.counters.expired.fetch_add(expired.into(), Relaxed);
            self.counters.early_drop.fetch_add(n as u64 - u64::from(expired), Relaxed);
        }
        n as u32
    }

    /// Whether so much of the table is in use, without `gone`, that the reaper makes room: 95 %, as Linux.
    fn is_crowded(&self, gone: usize) -> bool {
        u64::from(self.count.load(Relaxed)) - gone as u64 >= u64::from(self.max) * 95 / 100
    }
}
