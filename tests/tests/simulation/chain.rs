//! Runs that are cut at every boundary, beside an undisturbed twin.

use crate::canon::{Canon, canon};
use crate::plan::Plan;
use crate::run::{Done, Sim, host_addresses};
use core::hash::{Hash, Hasher};
use core::time::Duration;
use hibernet_netstack::conntrack::image::{Capture, Family, Image as Connections, RECORD_V4, RECORD_V6};
use hibernet_netstack::state::{GoesOn, Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_tests::{Boundary, FakeEdge, SplitMix, image};
use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::rc::Rc;

/// At one boundary in so many a run of its own begins, to the end.
const FORK_EVERY: u64 = 100;

/// What is done at a boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Twin,
    /// Save, restore under the same secrets, go on on the restored stack.
    Replay,
    /// Save, restore under new secrets, go on on the restored stack; now and then as after a sleep.
    Fresh,
    /// Prepare for a freeze, save, and go on as if nothing had been.
    RollBack,
    /// A step of copying the connections; in the end, what was copied is compared with a copy made at once.
    Live,
}

/// A state that the stack came to: many boundaries in a row may have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    at: Time,
    state: u64,
    connections: u64,
    /// Number of the first boundary that has it.
    boundary: u64,
    /// See [`Canon`].
    reaping: Time,
    full: bool,
}

/// What an undisturbed run comes to.
#[derive(Debug, Default)]
struct Twin {
    marks: Vec<Mark>,
    images: Vec<u64>,
}

#[derive(Debug)]
struct Chain {
    mode: Mode,
    seed: [u8; 16],
    rng: SplitMix,
    boundaries: u64,
    marks: Vec<Mark>,
    /// Hashes of all images.
    images: Vec<u64>,
    /// What the twin came to, and how many of its states the stack must come to.
    twin: Rc<Twin>,
    certain: usize,
    /// The first state that is not the twin's, and its number.
    strange: Option<(usize, Canon)>,
    /// The last state, and its image.
    saved: Option<(StackState, u64)>,
    last: Vec<u8>,
    /// Images from which runs begin, with the numbers of their states.
    forks: Vec<(usize, Vec<u8>)>,
    capture: Option<Capture>,
    /// Captures that were finished.
    captures: u64,
}

#[derive(Clone, Debug)]
struct Hook(Rc<RefCell<Chain>>);

impl Boundary for Hook {
    fn flushed(&mut self, now: Time, stack: &mut Stack, edge: &mut FakeEdge) -> bool {
        let mut chain = self.0.borrow_mut();
        chain.boundaries += 1;
        match chain.mode {
            Mode::Twin => {
                let image = image::save(stack, now);
                chain.images.push(hash(&image));
                chain.mark(now, stack, image);
            }
            Mode::Replay => chain.replay(now, stack),
            Mode::Fresh => return chain.fresh(now, stack, edge),
            Mode::RollBack => chain.roll_back(now, stack),
            Mode::Live => chain.live(now, stack),
        }
        false
    }
}

impl Chain {
    /// Notes the state, if it is another one than at the last boundary. Where the reaper stands does not count.
    fn mark(&mut self, now: Time, stack: &Stack, image: Vec<u8>) {
        let saved = (stack.save(), stack.draws());
        if self.saved.as_ref() == Some(&saved) {
            return;
        }
        self.saved = Some(saved);
        let canon = canon(stack, now);
        let Canon { reaping, full, .. } = canon;
        let [state, connections] = [&canon.state, &canon.connections].map(|s| hash(s.as_bytes()));
        let mark = Mark { at: now, state, connections, boundary: self.boundaries - 1, reaping, full };
        self.last = image;
        let n = self.marks.len();
        let same = self.twin.marks.get(n).is_some_and(|t| (t.at, t.state, t.connections) == (now, state, connections));
        if self.mode != Mode::Twin && n < self.certain && !same && self.strange.is_none() {
            eprintln!(
                "state {n}, boundary {}, at {now:?}: not the twin's, which was {:?}",
                mark.boundary,
                self.twin.marks.get(n)
            );
            self.strange = Some((n, canon));
        }
        self.marks.push(mark);
    }

    fn replay(&mut self, now: Time, stack: &mut Stack) {
        let image = image::save(stack, now);
        let restored = restored(&image, Randomness::Replay(self.seed, stack.draws()));
        if self.last.is_empty() || image::body(&image) != image::body(&self.last) {
            assert!(image == image::save(stack, now), "two images of one state differ");
            let again = image::save(&restored, now);
            assert_same(&image, &again, || canon(stack, now).difference(&canon(&restored, now)));
        }
        *stack = restored;
        self.mark(now, stack, image);
        if self.boundaries % FORK_EVERY == FORK_EVERY / 2 {
            self.forks.push((self.marks.len() - 1, self.last.clone()));
        }
    }

    fn fresh(&mut self, now: Time, stack: &mut Stack, edge: &mut FakeEdge) -> bool {
        let mut seed = [0; 16];
        self.rng.fill(&mut seed);
        *stack = restored(&image::save(stack, now), Randomness::Fresh(seed));
        let slept = self.rng.chance(3);
        if slept {
            let asleep = Duration::from_millis(self.rng.below(3000));
            let lost = stack.thaw(now, asleep, &|_| GoesOn::Yes, edge);
            assert!(lost.is_empty(), "flows were lost whose sockets are there");
        }
        slept
    }

    fn roll_back(&mut self, now: Time, stack: &Stack) {
        let table = stack.conntrack();
        table.quiesce();
        let mut capture = Capture::begin(table);
        for _ in 0..self.rng.below(3) {
            capture.step(table, self.rng.below(40) as u32).expect("nobody else captures");
        }
        let image = image::save(stack, now);
        table.restart(now);
        let twin = self.twin.images.get(self.images.len());
        assert!(twin == Some(&hash(&image)), "boundary {} at {now:?}: the state is not the twin's", self.images.len());
        self.images.push(hash(&image));
    }

    fn live(&mut self, now: Time, stack: &Stack) {
        let table = stack.conntrack();
        let capture = self.capture.get_or_insert_with(|| Capture::begin(table));
        capture.step(table, self.rng.below(20) as u32).expect("nobody else captures");
        if self.rng.chance(3) {
            table.quiesce();
            let live = self.capture.take().expect("it was begun").finish(table).expect("nobody else captures");
            let at_once = table.save();
            table.restart(now);
            assert_close(&live, &at_once);
            self.captures += 1;
        }
    }
}

/// Goes on from an image at one boundary.
#[derive(Debug)]
struct Fork {
    at: u64,
    boundaries: u64,
    image: Vec<u8>,
    /// Seed of the stack that was saved, if secrets are to be the same.
    replay: Option<[u8; 16]>,
}

impl Boundary for Fork {
    fn flushed(&mut self, _: Time, stack: &mut Stack, _: &mut FakeEdge) -> bool {
        if self.boundaries == self.at {
            let randomness = match self.replay {
                Some(seed) => Randomness::Replay(seed, stack.draws()),
                None => Randomness::Fresh([self.at as u8 ^ 0x5a; 16]),
            };
            *stack = restored(&self.image, randomness);
        }
        self.boundaries += 1;
        false
    }
}

/// Describes the state at one boundary.
#[derive(Debug)]
struct Witness {
    at: u64,
    boundaries: u64,
    seen: Rc<RefCell<Option<Canon>>>,
}

impl Boundary for Witness {
    fn flushed(&mut self, now: Time, stack: &mut Stack, _: &mut FakeEdge) -> bool {
        if self.boundaries == self.at {
            *self.seen.borrow_mut() = Some(canon(stack, now));
        }
        self.boundaries += 1;
        false
    }
}

fn restored(bytes: &[u8], randomness: Randomness) -> Stack {
    image::restore(bytes, randomness, &host_addresses()).unwrap_or_else(|e| panic!("an image of our own is refused: {e}"))
}

fn assert_same(a: &[u8], b: &[u8], difference: impl FnOnce() -> String) {
    assert!(image::body(a) == image::body(b), "the image of a restored stack is another one:\n{}", difference());
}

/// Records are the same but for the last use, which may be older by less than a second.
fn assert_close(live: &Connections, at_once: &Connections) {
    assert_eq!(live.head(), at_once.head(), "a live capture is not the table");
    for (family, size) in [(Family::V4, RECORD_V4), (Family::V6, RECORD_V6)] {
        let [live, at_once] = [live, at_once].map(|i| i.records(family).to_vec());
        assert_eq!(live.len(), at_once.len(), "connections of a live capture");
        for (live, at_once) in live.chunks(size).zip(at_once.chunks(size)) {
            let expires = |r: &[u8]| u64::from_le_bytes(r[8..16].try_into().expect("8 bytes"));
            let late = expires(at_once).checked_sub(expires(live));
            let same = live[..8] == at_once[..8] && live[16..] == at_once[16..];
            assert!(same && late.is_some_and(|l| l < 1_000_000_000), "a live capture: {live:02x?}, not {at_once:02x?}");
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// What was done.
#[derive(Debug, Default)]
pub struct Tally {
    pub worlds: u64,
    pub boundaries: u64,
    pub states: u64,
    /// States that were the twin's; others were not certain.
    pub compared: u64,
    pub forks: u64,
    pub captures: u64,
}

impl Tally {
    pub fn add(&mut self, o: &Tally) {
        self.worlds += o.worlds;
        self.boundaries += o.boundaries;
        self.states += o.states;
        self.compared += o.compared;
        self.forks += o.forks;
        self.captures += o.captures;
    }
}

/// How many of a twin's states are certain.
fn certain(twin: &[Mark]) -> usize {
    let ends = |n: usize| twin[n].full || n > 0 && twin[n - 1].reaping <= twin[n].at;
    (0..twin.len()).find(|&n| ends(n)).unwrap_or(twin.len())
}

fn run(plan: &Plan, seed: u64, mode: Mode, twin: &Rc<Twin>) -> (Done, Chain) {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let chain = Rc::new(RefCell::new(Chain {
        mode,
        seed: key,
        rng: SplitMix::new(seed ^ 0x6368_6169_6e20),
        boundaries: 0,
        marks: Vec::new(),
        twin: twin.clone(),
        certain: certain(&twin.marks),
        strange: None,
        images: Vec::new(),
        saved: None,
        last: Vec::new(),
        forks: Vec::new(),
        capture: None,
        captures: 0,
    }));
    let done = Sim::new(plan, seed, Some(Box::new(Hook(chain.clone())))).finish();
    let chain = Rc::into_inner(chain).expect("the world is gone").into_inner();
    (done, chain)
}

/// Runs a seed's small world in every mode.
pub fn seed(seed: u64) -> Tally {
    let plan = Plan::small(seed);
    let (undisturbed, chain) = run(&plan, seed, Mode::Twin, &Rc::default());
    let twin = Rc::new(Twin { marks: chain.marks, images: chain.images });
    let (marks, certain) = (&twin.marks, certain(&twin.marks));
    let full = marks.iter().any(|m| m.full);
    let mut tally = Tally { worlds: 1, states: marks.len() as u64, compared: certain as u64, ..Tally::default() };

    let (done, chain) = run(&plan, seed, Mode::Replay, &twin);
    if let Some((n, state)) = &chain.strange {
        let twin = marks.get(*n).and_then(|m| state_at(&plan, seed, m.boundary));
        panic!("state {n} is not the twin's:\n{}", twin.map_or_else(String::new, |t| t.difference(state)));
    }
    assert!(chain.marks.len() >= certain, "not as many states as the twin");
    assert!(full || done.hash() == undisturbed.hash(), "restored: other frames than the twin's");
    tally.boundaries += chain.boundaries;
    for (number, (n, image)) in chain.forks.into_iter().enumerate() {
        let Some(mark) = marks.get(n).filter(|_| n < certain) else { continue };
        tally.forks += 1;
        let replay = number.is_multiple_of(2).then_some(chain.seed);
        let fork = Fork { at: mark.boundary, boundaries: 0, image, replay };
        let done = Sim::new(&plan, seed, Some(Box::new(fork))).finish();
        assert!(full || replay.is_none() || done.hash() == undisturbed.hash(), "other frames than the twin's from state {n} on");
    }

    tally.boundaries += run(&plan, seed, Mode::Fresh, &twin).1.boundaries;

    let (done, rolled_back) = run(&plan, seed, Mode::RollBack, &twin);
    assert_eq!(done.hash(), undisturbed.hash(), "rolled back: other frames than the twin's");
    assert_eq!(rolled_back.images.len(), twin.images.len(), "rolled back: other boundaries than the twin's");
    tally.boundaries += rolled_back.boundaries;

    let (done, live) = run(&plan, seed, Mode::Live, &twin);
    assert_eq!(done.hash(), undisturbed.hash(), "other frames than the twin's while connections are copied");
    tally.captures += live.captures;
    tally
}

/// What the undisturbed world of a seed comes to at a boundary.
fn state_at(plan: &Plan, seed: u64, boundary: u64) -> Option<Canon> {
    let seen = Rc::new(RefCell::default());
    let witness = Witness { at: boundary, boundaries: 0, seen: seen.clone() };
    Sim::new(plan, seed, Some(Box::new(witness))).finish();
    seen.take()
}
