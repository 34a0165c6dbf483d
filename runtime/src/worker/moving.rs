//! A virtual machine that moves to another host, or into a file, and its network with it.
//!
//! Its monitor asks at the link ([`Worker::take_transfer`]) when the machine has stopped. Where it was, the network is frozen and written
//! ([`Worker::prepare_to_move`], [`Worker::depart`]), and stands still: if the machine runs here again it goes on, and if its monitor leaves it has moved. Where it
//! will be, the image is read and found good ([`Worker::expect`]), and when the machine runs the network takes its place: until then nothing
//! has happened to its peers, and the machine can still go on where it was.

use super::freeze::Freeze;
use super::thaw::Loaded;
use super::{Finished, Mode, Prepare, Prepared, RestorePolicy, RulesSetup, Worker, WorkerError};
use crate::checkpoint::helper::Helper;
use crate::checkpoint::report::{Outcome, ThawReport};
use crate::checkpoint::{CheckpointError, RestoreError, config_of};
use crate::clock::Clock;
use crate::edge::RuntimeEdge;
use crate::entropy;
use crate::link::{Direction, Link, Transfer};
use crate::sock::Sockets;
use crate::sys::socket;
use event_manager::EventOps;
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::tuple::proto;
use hibernet_netstack::{Config, Time};
use hibernet_snapshot::{GenerationId, Image};
use std::os::fd::{AsFd, OwnedFd};

/// Flows that do not go on of which the log says why.
const REASONS: usize = 32;

/// What has become of a machine that moves.
#[derive(Debug)]
pub enum Moved {
    /// Its network is saved: it stands still, and its sockets are let go of if they are in the image.
    Away,
    /// It runs here: after it was loaded, or again after it was saved; then what became of its flows.
    Here(Box<ThawReport>),
    /// Nothing came of it, and nothing has changed.
    Stayed,
}

/// How far a move is.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    None,
    /// Nobody has taken note yet.
    Asked(Transfer),
    /// Somebody carries it out.
    UnderWay,
    /// Frozen by this freeze, and being written.
    Saving(GenerationId),
    /// Written; the sockets are about to be let go of, then the pipe ends.
    Leaving(GenerationId, OwnedFd),
    /// The machine is elsewhere, or will come back.
    Away(GenerationId),
    /// The machine may begin here.
    Expected(Box<Expected>),
}

/// The network of a machine that may begin here.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) loaded: Loaded,
    pub(super) rules: RulesSetup,
    pub(super) helper: Option<Helper>,
    /// Serves if the image's sockets cannot be watched.
    pub(super) spare: Sockets,
    /// Of the followers' stacks.
    pub(super) seeds: Vec<[u8; 16]>,
    /// Sockets of published ports, where they were asked for.
    pub(super) ports: Option<Ports>,
}

/// Sockets of published ports, each with its index in the configuration's list.
#[derive(Debug, Default)]
pub struct Ports {
    /// Listening.
    pub tcp: Vec<(usize, OwnedFd)>,
    /// Bound.
    pub udp: Vec<(usize, OwnedFd)>,
}

/// Sockets of published ports that are wanted.
#[derive(Clone, Debug)]
pub struct WantedPorts {
    /// Published by this configuration.
    pub config: Config,
    /// Also UDP's; else those are there.
    pub udp: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Moving {
    stage: Stage,
    /// The machine's link.
    link: usize,
    news: Option<Moved>,
    /// Sockets of published ports are asked for, not made.
    asks: bool,
    /// They are wanted.
    wants: bool,
    /// They were asked for, for a machine that runs.
    awaits: bool,
    /// A guest has run here.
    had_guest: bool,
    /// Listeners that came, for a machine that runs.
    supplied: Option<Vec<(usize, OwnedFd)>>,
    /// The clock shows another time than it did when this wake-up began.
    jumped: bool,
}

impl Moving {
    /// Of none; a guest may have run here before.
    pub(super) fn new(had_guest: bool) -> Moving {
        Moving { had_guest, ..Moving::default() }
    }
}

impl Worker {
    /// What the monitor of a machine wants that is to move; to be asked after every turn of the event loop, and to be carried out and ended: by
    /// [`Worker::prepare_to_move`] and [`Worker::depart`], by [`Worker::expect`], or by [`Worker::stay`].
    pub fn take_transfer(&mut self) -> Option<Transfer> {
        match std::mem::take(&mut self.moving.stage) {
            Stage::Asked(t) => {
                self.moving.stage = Stage::UnderWay;
                Some(t)
            }
            other => {
                self.moving.stage = other;
                None
            }
        }
    }

    /// What has become of the machine, if there is news. To be asked after every turn of the event loop.
    pub fn take_moved(&mut self) -> Option<Moved> {
        self.moving.news.take()
    }

    /// This process may make no sockets that listen: from now on those of published ports are asked for, of a machine that comes or comes back
    /// ([`Worker::take_wanted_ports`]).
    pub fn ask_for_ports(&mut self) {
        self.moving.asks = true;
    }

    /// Which sockets of published ports are wanted ([`Worker::supply_ports`]), if there are any; once. To be asked after [`Worker::expect`] and
    /// [`Worker::take_moved`].
    pub fn take_wanted_ports(&mut self) -> Option<WantedPorts> {
        let wants = std::mem::take(&mut self.moving.wants);
        wants.then(|| match &self.moving.stage {
            Stage::Expected(e) => WantedPorts { config: e.loaded.config().clone(), udp: true },
            _ => {
                self.moving.awaits = true;
                WantedPorts { config: self.stack.config().clone(), udp: false }
            }
        })
    }

    /// The sockets that were wanted, as far as they can be had.
    pub fn supply_ports(&mut self, ports: Ports) {
        if let Stage::Expected(e) = &mut self.moving.stage {
            e.ports = Some(ports);
            return self.answer_monitor(true);
        }
        // Others came too late.
        if std::mem::take(&mut self.moving.awaits) {
            self.moving.supplied = Some(ports.tcp);
            self.kick();
        }
    }

    /// Freezes, as [`Worker::prepare`], for a machine that moves: without its connections if those cannot be carried over.
    ///
    /// # Errors
    /// Also if the machine has given it up meanwhile.
    pub fn prepare_to_move(&mut self, how: &Prepare, helper: Option<Helper>) -> Result<Prepared, CheckpointError> {
        if !matches!(self.moving.stage, Stage::UnderWay) {
            return Err(CheckpointError::GivenUp);
        }
        let prepared = match self.prepare(how, helper) {
            Err(e @ CheckpointError::Carry(_)) => {
                slog::warn!(self.log, "a virtual machine leaves, its connections do not come along"; "error" => %e);
                self.prepare(&Prepare { mode: Mode::Drop, ..how.clone() }, None)?
            }
            done => done?,
        };
        self.moving.stage = Stage::Saving(prepared.token);
        Ok(prepared)
    }

    /// The image is written into the pipe, which is closed when the sockets are let go of that the image carries: who reads its end may make
    /// them again. [`Moved::Away`] follows.
    ///
    /// # Errors
    /// If the machine has given it up meanwhile.
    pub fn depart(&mut self, pipe: OwnedFd) -> Result<(), CheckpointError> {
        let Stage::Saving(token) = self.moving.stage else { return Err(CheckpointError::GivenUp) };
        self.moving.stage = Stage::Leaving(token, pipe);
        self.kick();
        Ok(())
    }

    /// Nothing comes of what the monitor wants: the network goes on as if nothing had happened, and the monitor hears that.
    pub fn stay(&mut self) {
        match std::mem::take(&mut self.moving.stage) {
            Stage::Saving(token) | Stage::Leaving(token, _) => {
                // The freeze is this one.
                let _ = self.abort(Some(token));
            }
            Stage::None | Stage::Asked(_) | Stage::UnderWay | Stage::Expected(_) => {}
            // It is done already.
            away @ Stage::Away(_) => {
                self.moving.stage = away;
                return;
            }
        }
        self.answer_monitor(false);
    }

    /// Awaits the machine of which the image is, with this worker's resolvers and, if it has any, published ports; `rules` take the place of the
    /// image's, family by family. The monitor hears whether the image is good, when the ports that are wanted have come. It is not if fewer of its flows than
    /// `require`, in percent, would go on here.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing has changed.
    pub fn expect(
        &mut self,
        image: &Image<'_>,
        rules: RulesSetup,
        helper: Option<Helper>,
        require: u8,
    ) -> Result<(), RestoreError> {
        let read = || -> Result<Expected, RestoreError> {
            // Also what could be left out.
            image.check()?;
            let mut config = config_of(image)?;
            let own = self.stack.config();
            config.resolvers.clone_from(&own.resolvers);
            let publishes = !own.publish.is_empty();
            if publishes {
                config.publish.clone_from(&own.publish);
            }
            let links: Vec<_> = self.edge.links.iter().map(|l| l.as_ref().map(Link::info)).collect();
            let mut loaded = Loaded::from_image(image, &config, &links, &rules, &RestorePolicy::default())?;
            loaded.require(require, helper.is_some())?;
            if publishes {
                loaded.forget_listeners();
            }
            let spare = Sockets::new(None, None).map_err(WorkerError::system("prepare host sockets"))?;
            let seeds = (0..self.followers()).map(|_| entropy::seed()).collect::<std::io::Result<_>>();
            let seeds = seeds.map_err(WorkerError::system("get entropy"))?;
            Ok(Expected { loaded, rules, helper, spare, seeds, ports: None })
        };
        let expected = read();
        let going_on = matches!(self.moving.stage, Stage::UnderWay);
        match expected {
            Ok(e) if going_on => {
                let publishes = !self.stack.config().publish.is_empty();
                self.moving.wants = self.moving.asks && !publishes && !e.loaded.config().publish.is_empty();
                self.moving.stage = Stage::Expected(Box::new(e));
                if !self.moving.wants {
                    self.answer_monitor(true);
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(e) => {
                if going_on {
                    self.stay();
                }
                Err(e)
            }
        }
    }

    /// Whether listeners are made by others.
    pub(super) fn asks_for_ports(&self) -> bool {
        self.moving.asks
    }

    /// Whether the machine's monitor has to be heard although the worker stands still.
    pub(super) fn is_moving(&self) -> bool {
        matches!(self.moving.stage, Stage::Saving(_) | Stage::Leaving(..) | Stage::Away(_))
    }

    /// What time it is in this wake-up, if it was `now` when that began.
    pub(super) fn after_jump(&self, now: Time) -> Time {
        if self.moving.jumped { self.clock.now() } else { now }
    }

    /// A wake-up begins.
    pub(super) fn forget_jump(&mut self) {
        self.moving.jumped = false;
    }

    fn answer_monitor(&mut self, done: bool) {
        self.answer_monitor_at(self.moving.link, done);
    }

    /// It may have gone, and its session with it, which is everybody's.
    fn answer_monitor_at(&mut self, index: usize, done: bool) {
        self.together(|w, _| {
            let RuntimeEdge { slots, links, .. } = &mut w.edge;
            if let Some(Some(link)) = links.get_mut(index) {
                link.end_transfer(slots, done);
            }
        });
    }

    /// The monitor at a link wants something.
    pub(super) fn transfer_asked(&mut self, index: usize, ops: &mut EventOps<'_>) {
        let Some(Some(link)) = self.edge.links.get_mut(index) else { return };
        let Some(transfer) = link.take_transfer() else { return };
        // An image brings rules along, and whom the guest may reach. A monitor that its guest has taken over has no say in that.
        if transfer.direction == Direction::Load && self.moving.had_guest {
            slog::warn!(self.log, "no state is loaded where a guest has run already; start another hibernet for it"; "link" => index);
            self.answer_monitor_at(index, false);
            return;
        }
        match std::mem::take(&mut self.moving.stage) {
            // Once more: from where it stands.
            Stage::Away(token) => self.machine_is_back(token, ops),
            Stage::Expected(_) => self.moving.news = Some(Moved::Stayed),
            _ => {}
        }
        self.moving.stage = Stage::Asked(transfer);
        self.moving.link = index;
    }

    /// In the event loop: listeners that came are watched.
    pub(super) fn listen_supplied(&mut self, ops: &mut EventOps<'_>) {
        if let Some(listeners) = self.moving.supplied.take() {
            self.unwatch_sockets(ops);
            self.listen_again(listeners);
            self.watch_sockets(ops);
        }
    }

    /// In the event loop: sockets are let go of, then the pipe ends, then the monitor hears that all is well.
    pub(super) fn leave(&mut self, ops: &mut EventOps<'_>) {
        let (token, pipe) = match std::mem::take(&mut self.moving.stage) {
            Stage::Leaving(token, pipe) => (token, pipe),
            other => {
                self.moving.stage = other;
                return;
            }
        };
        if matches!(self.freeze, Freeze::Prepared { carried: Some(_), .. }) {
            let raw = self.edge.sockets.raw_descriptors().map(|fd| fd.and_then(|fd| fd.try_clone_to_owned().ok()));
            let [raw4, raw6] = raw;
            let empty = match Sockets::new(raw4, raw6) {
                Ok(s) => s,
                Err(e) => {
                    slog::error!(self.log, "the machine stays: its sockets cannot be let go of"; "error" => %e);
                    self.moving.stage = Stage::Saving(token);
                    self.stay();
                    self.moving.news = Some(Moved::Stayed);
                    return;
                }
            };
            self.unwatch_sockets(ops);
            // Those that are not in the image end for good.
            let old = std::mem::replace(&mut self.edge.sockets, empty).release();
            old.iter().for_each(|(_, fd)| drop(socket::set_linger_reset(fd.as_fd())));
            drop(old);
            self.listeners.clear();
        } else if self.moving.asks && !self.listeners.is_empty() {
            // Those can be had again.
            self.unwatch_sockets(ops);
            self.listeners.clear();
            self.watch_sockets(ops);
        }
        drop(pipe);
        self.moving.stage = Stage::Away(token);
        self.moving.news = Some(Moved::Away);
        self.answer_monitor(true);
    }

    /// The machine runs, before any frame of it is looked at.
    pub(super) fn machine_runs(&mut self, index: usize, ops: &mut EventOps<'_>) {
        self.moving.had_guest = true;
        if index != self.moving.link {
            return;
        }
        match std::mem::take(&mut self.moving.stage) {
            Stage::None => {}
            Stage::Expected(e) => {
                let report = self.take_place(*e, ops);
                self.machine_is_here("a virtual machine has come with its network", report);
            }
            Stage::Away(token) => self.machine_is_back(token, ops),
            stage => {
                self.moving.stage = stage;
                self.stay();
                self.moving.news = Some(Moved::Stayed);
            }
        }
    }

    /// The machine runs where it was.
    fn machine_is_back(&mut self, token: GenerationId, ops: &mut EventOps<'_>) {
        let carried = match &mut self.freeze {
            Freeze::Prepared { carried, .. } => carried.take(),
            _ => None,
        };
        let Some(carrying) = carried else {
            // Its flows' sockets are where they were.
            let _ = self.abort(Some(token));
            self.moving.wants = self.moving.asks && self.listeners.is_empty() && self.publishes_tcp();
            self.moving.news = Some(Moved::Stayed);
            return;
        };
        self.freeze = Freeze::None;
        self.moving.wants = self.moving.asks && self.publishes_tcp();
        let report = self.come_back(*carrying, &token, ops);
        self.machine_is_here("the virtual machine has come back", report);
    }

    fn publishes_tcp(&self) -> bool {
        self.stack.config().publish.iter().any(|p| p.proto == proto::TCP)
    }

    fn machine_is_here(&mut self, what: &'static str, report: ThawReport) {
        let [resumed, reset, skipped] = [Outcome::Resumed, Outcome::Reset, Outcome::Skipped].map(|o| report.count(o));
        slog::info!(self.log, "{}", what; "resumed" => resumed, "reset" => reset, "skipped" => skipped, "us" => report.took_ns / 1000);
        for f in report.flows.iter().filter(|f| f.outcome != Outcome::Resumed).take(REASONS) {
            slog::info!(self.log, "a flow of the virtual machine does not go on"; "flow" => %f.flow, "why" => f.why.as_deref());
        }
        self.moving.news = Some(Moved::Here(Box::new(report)));
    }

    /// The monitor has left with its machine.
    pub(super) fn machine_left(&mut self, now: Time, index: usize, why: &str, ops: &mut EventOps<'_>) {
        self.links[index].alone.get_or_insert(now);
        match std::mem::take(&mut self.moving.stage) {
            Stage::Away(_) => {
                slog::info!(self.log, "the virtual machine has moved away, and its monitor has left"; "why" => why);
                // Those that are in an image have been let go of.
                self.edge.sockets.descriptors().for_each(|(_, fd)| drop(socket::set_linger_reset(fd)));
                self.finish(Finished::Moved, ops);
            }
            Stage::None => {}
            stage => {
                slog::warn!(self.log, "the monitor has left while its machine was to move"; "why" => why);
                self.moving.stage = stage;
                self.stay();
                self.moving.news = Some(Moved::Stayed);
            }
        }
    }

    /// Stack time is that of another network from now on.
    pub(super) fn start_clock_at(&mut self, now: Time) {
        self.clock = Clock::start_at(now);
        (self.moving.jumped, self.armed, self.trim_at, self.tracer) = (true, None, None, None);
        if let Some(s) = &mut self.short {
            s.until = now;
        }
        for (index, state) in self.links.iter_mut().enumerate() {
            state.alone = None;
            if let Some(Some(link)) = self.edge.links.get(index) {
                self.stack.set_link_info(LinkId(index as u8), link.info());
            }
        }
    }
}
