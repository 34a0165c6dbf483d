//! The network worker: the stack, its links and host sockets as one subscriber of an event loop.
//!
//! A [`Worker`] registers a handful of descriptors, however many flows there are: links, the inner epoll of the flows'
//! sockets, a timer, listeners, and what it watches on the host. It never waits, and has no thread unless it leads others that serve more queues of its
//! link (`crew`). Whoever owns the event loop runs it until [`Worker::finished`].

mod answers;
mod control;
mod crew;
mod follower;
mod freeze;
mod idle;
mod inbox;
mod links;
mod listen;
mod moving;
mod pause;
mod report;
mod rule_log;
mod setup;
mod thaw;
mod timer;
mod trace;
mod turn;
mod watch;

pub use control::ControlSocket;
pub use crew::MOST_WORKERS;
pub use freeze::{Mode, Prepare, Prepared};
pub(crate) use inbox::Inbox;
pub use links::NewLink;
pub use moving::{Moved, Ports, WantedPorts};
pub use setup::{RulesSetup, WorkerError, WorkerSetup, resolver_update};
pub use thaw::{FlowPolicy, RestorePolicy};

use crate::clock::Clock;
use crate::control::protocol::Recheck;
use crate::edge::RuntimeEdge;
use crate::entropy;
use crate::link::{Link, RxBatch};
use crate::slots::Slots;
use crate::sock::{SocketEvent, Sockets};
use crate::sys::netlink;
use control::Control;
use crew::Crew;
use event_manager::{EventOps, Events, MutEventSubscriber};
use freeze::Freeze;
use hibernet_netstack::config::Behind;
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::{Stack, Time};
use idle::IdleWatch;
use listen::{Listener, Shortage};
use moving::Moving;
use pause::Stillness;
use rule_log::RuleLog;
use setup::listen_udp;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;
use turn::{hand_out_events, receive_batch};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;
use watch::{AddressWatch, ResolverUpdates};

/// Most links of a worker.
pub const MAX_LINKS: usize = 64;
/// Payload slots: address space, of which only what is touched costs memory.
const SLOTS: u32 = 4096;
/// Frames taken from a link before others get their turn.
const FRAME_BUDGET: usize = 256;
/// Rounds of unfinished work in one wake-up before other subscribers of the loop get their turn.
const MAX_ROUNDS: usize = 16;
/// Failures to receive, one after the other, after which a link counts as gone.
const MAX_LINK_FAILURES: u32 = 1000;
/// After how much time without traffic the memory of a burst is given back, and how many slots keep theirs.
const TRIM_AFTER: Duration = Duration::from_secs(5);
const WARM_SLOTS: usize = 16;

/// What a descriptor is to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Source {
    Link,
    Sockets,
    Timer,
    Listener,
    Addresses,
    Resolvers,
    Control,
    Client,
    Stop,
    Kick,
    Inbox,
}

const SOURCES: [Source; 11] = [
    Source::Link,
    Source::Sockets,
    Source::Timer,
    Source::Listener,
    Source::Addresses,
    Source::Resolvers,
    Source::Control,
    Source::Client,
    Source::Stop,
    Source::Kick,
    Source::Inbox,
];

/// The word that comes back with an event: kind and index.
fn word(source: Source, index: usize) -> u32 {
    (source as u32) << 24 | index as u32
}

/// Why a worker has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// All its links are gone.
    LinksGone,
    /// It was told to stop.
    Stopped,
    /// It was frozen, and handed its sockets out.
    Frozen,
    /// Its virtual machine has moved elsewhere, and its network with it.
    Moved,
    /// The event loop refused a descriptor; see the log.
    LoopFailed,
}

/// The stack with everything that it works on. See the module's documentation.
pub struct Worker {
    stack: Stack,
    edge: RuntimeEdge,
    crew: Crew,
    clock: Clock,
    /// Never stops: for those who wait for us.
    host_clock: Clock,
    timer: TimerFd,
    /// When the timer will fire.
    armed: Option<Time>,
    /// The timer has fired and is readable until it is set again or switched off.
    fired: bool,
    listeners: Vec<Listener>,
    /// Listeners wait for free descriptors.
    short: Option<Shortage>,
    stillness: Stillness,
    freeze: Freeze,
    moving: Moving,
    idle: IdleWatch,
    start: Start,
    addresses: AddressWatch,
    resolvers: Option<ResolverUpdates>,
    control: Option<Control>,
    stop: Option<OwnedFd>,
    links: Vec<LinkState>,
    batch: RxBatch,
    events: Vec<SocketEvent>,
    /// When payload memory is given back, if there was traffic since the last time.
    trim_at: Option<Time>,
    wakeups: u64,
    finished: Option<Finished>,
    /// What becomes of flows when rules are replaced and the request does not say.
    recheck: Recheck,
    rule_log: RuleLog,
    tracer: Option<trace::Tracer>,
    log: slog::Logger,
}

/// How a worker begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The guest hears of us.
    New,
    /// The guest knows us, and is not to notice anything.
    Thawed,
}

#[derive(Clone, Copy, Debug, Default)]
struct LinkState {
    gone: bool,
    /// What the event loop is to hear of it.
    change: Option<links::Change>,
    failures: u32,
    /// Frames wait, so that its descriptor is watched for being writable too.
    waits: bool,
    /// Since when it has no peer, where peers come and go.
    alone: Option<Time>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("edge", &self.edge).field("finished", &self.finished).finish_non_exhaustive()
    }
}

impl Worker {
    /// Makes a worker. It does nothing before it is added to an event manager.
    pub fn new(setup: WorkerSetup) -> Result<Worker, WorkerError> {
        if setup.links.len() > MAX_LINKS {
            return Err(WorkerError::TooManyLinks(setup.links.len()));
        }
        let seed = entropy::seed().map_err(WorkerError::system("get entropy"))?;
        let mut stack = Stack::new(setup.config.clone(), seed);
        for (i, l) in setup.links.iter().enumerate() {
            let name = if i == 0 { setup.name.clone() } else { String::new() };
            stack.add_named_link(l.info(), Behind::Configured, name);
        }
        let WorkerSetup { raw_icmp4, raw_icmp6, .. } = setup;
        let sockets = Sockets::new(raw_icmp4, raw_icmp6).map_err(WorkerError::system("prepare host sockets"))?;
        let setup = WorkerSetup { raw_icmp4: None, raw_icmp6: None, ..setup };
        Worker::assemble(setup, stack, sockets, Clock::start(), Start::New)
    }

    /// A worker of a stack that has its links, and of the sockets that its flows have.
    fn assemble(
        setup: WorkerSetup,
        mut stack: Stack,
        mut sockets: Sockets,
        clock: Clock,
        start: Start,
    ) -> Result<Worker, WorkerError> {
        let WorkerSetup { config, links, tcp_listeners, udp_listeners, .. } = setup;
        let count = config.publish.len();
        let all = tcp_listeners.iter().chain(&udp_listeners);
        if let Some(&(index, _)) = all.into_iter().find(|(i, _)| *i >= count) {
            return Err(WorkerError::NoSuchPublish { index, count });
        }
        let slots = Slots::new(SLOTS).map_err(WorkerError::system("map payload memory"))?;
        let watch = match setup.address_watch {
            Some(fd) => fd,
            None => netlink::open_address_watch().map_err(WorkerError::system("open a route socket"))?,
        };
        let (addresses, list) = AddressWatch::new(watch).map_err(WorkerError::system("list the host's addresses"))?;
        stack.set_host_addresses(list);
        for (_, fd) in udp_listeners {
            listen_udp(&mut stack, &mut sockets, fd)?;
        }
        let mut listeners = Vec::with_capacity(tcp_listeners.len());
        for (index, fd) in tcp_listeners {
            listeners.push(Listener::new(index, fd).map_err(WorkerError::system("prepare a published TCP port"))?);
        }
        let resolvers = setup.resolver_updates.map(ResolverUpdates::new).transpose();
        let timer = TimerFd::new().map_err(|e| WorkerError::System { what: "make a timer", source: e.into() })?;
        let control = setup.control.map(Control::new).transpose();
        let stillness = Stillness::new().map_err(WorkerError::system("make an event descriptor"))?;
        let mut links: Vec<Option<Box<dyn Link>>> = links.into_iter().map(Some).collect();
        for (number, link) in setup.joined {
            let at = usize::from(number.0);
            links.resize_with(links.len().max(at + 1), || None);
            links[at] = Some(link);
        }
        let states: Vec<_> = links.iter().map(|l| LinkState { gone: l.is_none(), ..LinkState::default() }).collect();
        let mut edge = RuntimeEdge::new(slots, links, sockets);
        if let Some(sets) = &setup.rules.sets {
            stack.set_sets(clock.now(), &sets.beginning(clock.now()))?;
        }
        for rules in [setup.rules.v4, setup.rules.v6].into_iter().flatten() {
            stack.set_rules(clock.now(), rules, setup.rules.recheck.into(), &mut edge)?;
        }
        if !setup.queues.is_empty() && states.len() != 1 {
            return Err(WorkerError::OneLink);
        }
        let crew = Crew::hire(&mut stack, &mut edge, setup.queues, clock, &setup.log)?;
        Ok(Worker {
            stack,
            links: states,
            edge,
            crew,
            clock,
            host_clock: Clock::start(),
            timer,
            armed: None,
            fired: false,
            listeners,
            short: None,
            stillness,
            freeze: Freeze::default(),
            moving: Moving::new(start == Start::Thawed),
            idle: IdleWatch::default(),
            start,
            addresses,
            resolvers: resolvers.map_err(WorkerError::system("read updates of the resolvers"))?,
            control: control.map_err(WorkerError::system("prepare the control socket"))?,
            stop: setup.stop,
            batch: RxBatch::default(),
            events: Vec::new(),
            trim_at: None,
            wakeups: 0,
            finished: None,
            recheck: setup.rules.recheck,
            rule_log: RuleLog::new(&setup.log),
            tracer: None,
            log: setup.log,
        })
    }

    /// Why it has finished; `None` while it runs. A worker that has finished watches nothing any more and can be removed.
    pub fn finished(&self) -> Option<Finished> {
        self.finished
    }

    /// The stack.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Every descriptor that is watched.
    fn watched(&self) -> Vec<(Source, usize, RawFd)> {
        let mut all = vec![
            (Source::Sockets, 0, self.edge.sockets.fd().as_raw_fd()),
            (Source::Timer, 0, self.timer.as_raw_fd()),
            (Source::Kick, 0, self.stillness.fd()),
            (Source::Addresses, 0, self.addresses.fd().as_raw_fd()),
        ];
        let links = self.edge.links.iter().zip(&self.links).enumerate();
        let watched = links.filter(|(_, (_, s))| !s.gone && s.change != Some(links::Change::Comes));
        all.extend(watched.filter_map(|(i, (l, _))| Some((Source::Link, i, l.as_ref()?.fd().as_raw_fd()))));
        all.extend(self.crew.fd().map(|fd| (Source::Inbox, 0, fd)));
        all.extend(self.listeners.iter().enumerate().map(|(i, l)| (Source::Listener, i, l.raw())));
        all.extend(self.resolvers.as_ref().map(|r| (Source::Resolvers, 0, r.fd())));
        if let Some(c) = &self.control {
            let (listener, clients) = c.watched();
            all.extend(listener.map(|fd| (Source::Control, 0, fd)));
            all.extend(clients.map(|(i, fd)| (Source::Client, i, fd)));
        }
        all.extend(self.stop.as_ref().map(|s| (Source::Stop, 0, s.as_raw_fd())));
        all
    }

    /// Ends: nothing is watched any more, and the links are stopped.
    fn finish(&mut self, why: Finished, ops: &mut EventOps<'_>) {
        if self.finished.is_some() {
            return;
        }
        for (_, _, fd) in self.watched() {
            // One that was never added is not there to be removed.
            let _ = ops.remove(Events::empty_raw(fd));
        }
        self.crew.end();
        for l in self.edge.links.iter_mut().flatten() {
            l.stop(&mut self.edge.slots);
        }
        self.finished = Some(why);
        slog::info!(self.log, "worker finished"; "why" => ?why);
    }

    /// Takes frames from a link until it has no more, or others must have their turn.
    fn read_link(&mut self, mut now: Time, index: usize, ops: &mut EventOps<'_>) {
        let mut taken = 0;
        while taken < FRAME_BUDGET && !self.links[index].gone {
            let RuntimeEdge { slots, links, .. } = &mut self.edge;
            let Some(link) = &mut links[index] else { break };
            let mut received = link.recv_batch(slots, &mut self.batch);
            let asks_for_all = link.asks_for_all();
            if asks_for_all {
                received = received.and(self.answer_peer(index));
            }
            now = self.hear_of_peer(now, index, ops);
            if asks_for_all {
                self.still_followers(self.is_paused());
            }
            match received {
                Ok(()) => self.links[index].failures = 0,
                Err(e) => {
                    self.link_failed(index, &e, ops);
                    break;
                }
            }
            if self.batch.is_empty() {
                break;
            }
            taken += receive_batch(&mut self.stack, &mut self.edge, &mut self.batch, LinkId(index as u8), now);
        }
        if taken > 0 {
            self.trim_at = Some(now + TRIM_AFTER);
        }
    }

    /// Hands on what happened at the host sockets.
    fn poll_sockets(&mut self, now: Time) {
        if hand_out_events(&mut self.stack, &mut self.edge, &mut self.events, now) {
            self.trim_at = Some(now + TRIM_AFTER);
        }
    }

    /// Ends a wake-up: what was put off is done, and the timer stands right.
    fn settle(&mut self, mut now: Time, ops: &mut EventOps<'_>) {
        if self.is_paused() {
            return self.settle_still(now, ops);
        }
        for round in 0.. {
            if self.stack.next_deadline().is_some_and(|t| t <= now) {
                self.stack.tick(now, &mut self.edge);
            }
            let mut more = self.stack.flush(now, &mut self.edge);
            self.flush_links(ops);
            if self.finished.is_some() {
                return;
            }
            more |= self.wake_waiting(now);
            if !more && !self.edge.sockets.has_notices() && !self.has_handed() {
                break;
            }
            if round == MAX_ROUNDS {
                self.watch_links(ops);
                // Comes back at once, after the other subscribers.
                self.arm(now, Some(now));
                return;
            }
            now = self.clock.now();
            for index in 0..self.links.len() {
                self.read_link(now, index, ops);
            }
            if self.finished.is_some() {
                return;
            }
            now = self.after_jump(now);
            self.read_inbox(now);
            self.poll_sockets(now);
        }
        self.watch_links(ops);
        let (lines, lost) = self.stack.take_log();
        self.rule_log.write(now, &lines, lost);
        self.keep_traces();
        self.end_shortage(now, ops);
        self.trim(now);
        self.expire_clients(ops);
        let clients = self.client_deadline(now);
        let own = self.short.map(|s| s.until).into_iter().chain(self.trim_at).chain(clients).chain(self.watch_idle(now)).min();
        let copying = self.copy_some().then_some(now);
        let deadline = self.stack.next_deadline().into_iter().chain(own).chain(copying).min();
        self.arm(now, deadline);
    }

    fn trim(&mut self, now: Time) {
        if self.trim_at.is_some_and(|t| t <= now) {
            self.trim_at = None;
            self.edge.sockets.forget_ahead(&mut self.edge.slots);
            self.edge.slots.trim(WARM_SLOTS);
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = self.crew.start() {
            slog::error!(self.log, "cannot start a worker's thread"; "error" => %e);
            self.finish(Finished::LoopFailed, ops);
            return;
        }
        for (source, index, fd) in self.watched() {
            if let Err(e) = ops.add(Events::with_data_raw(fd, word(source, index), EventSet::IN)) {
                slog::error!(self.log, "the event loop refuses a descriptor"; "for" => ?source, "error" => ?e);
                self.finish(Finished::LoopFailed, ops);
                return;
            }
        }
        let now = self.clock.now();
        if self.start == Start::New {
            for index in 0..self.links.len() {
                self.stack.link_up(now, LinkId(index as u8), &mut self.edge);
            }
        }
        self.change_links(ops);
        self.settle(now, ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.finished.is_some() {
            return;
        }
        self.wakeups += 1;
        self.forget_jump();
        let now = self.clock.now();
        self.stack.set_wall_clock(now, Duration::from_nanos(crate::clock::wall()));
        let index = (events.data() & 0xff_ffff) as usize;
        let Some(source) = SOURCES.get((events.data() >> 24) as usize) else { return };
        if self.park(*source, index, ops) {
            return;
        }
        match source {
            Source::Link if index < self.links.len() => self.read_link(now, index, ops),
            Source::Link => {}
            Source::Sockets => self.poll_sockets(now),
            Source::Timer => self.timer_fired(),
            Source::Listener => self.accept(now, index, ops),
            Source::Addresses => self.addresses_changed(),
            Source::Resolvers => self.resolvers_changed(ops),
            Source::Control => self.control_ready(ops),
            Source::Client => self.client_ready(now, index, ops),
            Source::Kick => self.kicked(ops),
            Source::Inbox => self.inbox_ready(now, ops),
            Source::Stop => self.finish(Finished::Stopped, ops),
        }
        if self.finished.is_none() {
            let now = self.after_jump(now);
            self.settle(now, ops);
        }
    }
}
