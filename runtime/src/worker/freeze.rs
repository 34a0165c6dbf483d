//! Freezing a worker: rounds of copying while traffic runs, then a short stop in which the rest is taken.

use super::{Finished, Worker};
use crate::checkpoint::carried::{self, Carried, Dumped};
use crate::checkpoint::contents::{Contents, Origin};
use crate::checkpoint::helper::Helper;
use crate::checkpoint::report::{Flow, FlowTier, FreezeReport, FreezeTimes, Tier, generation_text};
use crate::checkpoint::{CheckpointError, Held};
use crate::clock::{self, Clock};
use crate::entropy;
use crate::link::Connection;
use crate::sock::SocketsState;
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::image::Capture;
use hibernet_netstack::image::LEVEL;
use hibernet_netstack::state::FlowInfo;
use hibernet_snapshot::GenerationId;
use serde::{Deserialize, Serialize};

/// Slots of the table of connections that are copied between two wake-ups: a fraction of a millisecond.
const SLOTS_PER_STEP: u32 = 2048;
/// So few connections are copied in the freeze; more are worth another round.
const FEW: u32 = 512;
/// Rounds after which the freeze begins however much changes.
const MAX_ROUNDS: u32 = 8;
/// Turns of unfinished work before a freeze: what is left then waits in the kernel.
pub(super) const MAX_TURNS: u32 = 64;

/// What is to become of the worker and of its host sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It stands still until [`Worker::commit`] or [`Worker::abort`]; its sockets can be handed over.
    #[default]
    Hold,
    /// It goes on at once. Flows of the image cannot be resumed: their sockets go on too.
    GoOn,
    /// As [`Mode::Hold`], but the sockets are carried over in the image: TCP by the kernel's repair mode, others opened anew.
    Repair,
    /// As [`Mode::Hold`], but the sockets will be closed: every flow is reset on thaw.
    Drop,
}

/// How to freeze.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// What becomes of the worker.
    pub mode: Mode,
    /// Copy while traffic runs, before the freeze. (Whoever calls [`Worker::prepare`] sees to that.)
    pub live: bool,
    /// Flows that must survive, in percent; else nothing happens.
    pub require: u8,
    /// With [`Mode::Repair`]: do not lock the packets of connections that nobody serves. Peers that send meanwhile lose theirs.
    pub unlocked: bool,
    /// Name of the sandbox, for the image.
    pub name: String,
    /// Write the image at this level, for readers that know none above; nothing happens if that cannot be.
    #[serde(default)]
    pub compat: Option<u16>,
}

/// A frozen worker's state. It can be written while the worker goes on.
#[derive(Debug)]
pub struct Prepared {
    /// Which freeze this is: the token for commit, abort, and restore.
    pub token: GenerationId,
    /// What it came to.
    pub report: FreezeReport,
    /// The image to be.
    pub contents: Contents,
}

/// A freeze in progress, or about to be.
#[derive(Debug, Default)]
pub(super) enum Freeze {
    /// None.
    #[default]
    None,
    /// Connections are being copied while traffic runs.
    Copying { capture: Capture, rounds: u32, ready: bool },
    /// Everything was taken; the worker stands still.
    Prepared {
        token: GenerationId,
        /// It stood still before.
        was_paused: bool,
        /// Sockets in repair mode, and who switches it.
        carried: Option<Box<Carrying>>,
    },
}

/// What is to be undone if sockets are not carried over after all.
#[derive(Debug)]
pub(super) struct Carrying {
    pub(super) dumped: Dumped,
    pub(super) state: SocketsState,
    lock: Option<String>,
    pub(super) helper: Helper,
}

/// Whether enough flows survive, of all that there are.
fn enough(all: &[FlowTier], require: u8) -> Result<(), CheckpointError> {
    let surviving = all.iter().filter(|t| t.tier != Tier::Reset).count();
    if surviving * 100 < all.len() * usize::from(require) {
        return Err(CheckpointError::Require { surviving, flows: all.len(), require });
    }
    Ok(())
}

/// Name of the lock of a freeze's packets.
pub(super) fn lock_name(token: &GenerationId) -> String {
    generation_text(token)
}

impl Worker {
    /// Begins to copy the connections while traffic runs, so that a [`Worker::prepare`] finds little left to copy. It is ready for that when
    /// [`Worker::is_copied`] says so. Does nothing if that was begun already.
    pub fn begin_copy(&mut self) {
        if matches!(self.freeze, Freeze::None) && self.finished.is_none() {
            let capture = Capture::begin(self.stack.conntrack());
            self.freeze = Freeze::Copying { capture, rounds: 0, ready: false };
            self.kick();
        }
    }

    /// Whether so little is left to copy that a freeze would be short, or that more copying would not make it shorter.
    pub fn is_copied(&self) -> bool {
        matches!(self.freeze, Freeze::Copying { ready: true, .. })
    }

    /// Does a piece of the copying. Whether there is more to be done.
    pub(super) fn copy_some(&mut self) -> bool {
        let Freeze::Copying { capture, rounds, ready } = &mut self.freeze else { return false };
        if *ready {
            return false;
        }
        match capture.step(self.stack.conntrack(), SLOTS_PER_STEP) {
            Ok(p) if !p.complete || p.slots >= SLOTS_PER_STEP => {}
            // The end of a round.
            Ok(_) => {
                *rounds += 1;
                *ready = *rounds >= MAX_ROUNDS || capture.remaining(self.stack.conntrack()) <= FEW;
            }
            // Somebody else's capture took over; the freeze begins anew and copies all.
            Err(_) => {
                self.freeze = Freeze::None;
                return false;
            }
        }
        !matches!(self.freeze, Freeze::Copying { ready: true, .. })
    }

    /// Freezes: the worker stands still, and everything of it is taken. Nobody outside notices anything but a pause.
    ///
    /// `helper` switches the repair mode of sockets; only [`Mode::Repair`] needs one.
    ///
    /// # Errors
    /// [`CheckpointError`]; the worker goes on as if nothing had happened.
    pub fn prepare(&mut self, how: &Prepare, helper: Option<Helper>) -> Result<Prepared, CheckpointError> {
        if self.finished.is_some() {
            return Err(CheckpointError::Finished);
        }
        let was_paused = self.is_paused();
        let mut gathered = 0;
        if !self.crew.is_empty() {
            let timer = Clock::start();
            self.settle_down();
            self.pause();
            self.gather();
            gathered = timer.now().as_nanos();
        }
        let mut done = self.prepare_gathered(how, helper, was_paused);
        match &mut done {
            Ok(prepared) => prepared.report.times.quiesce_ns += gathered,
            Err(_) if was_paused => {}
            Err(_) => self.resume(),
        }
        done
    }

    /// As [`Worker::prepare`], when all flows are the leader's.
    fn prepare_gathered(&mut self, how: &Prepare, helper: Option<Helper>, was_paused: bool) -> Result<Prepared, CheckpointError> {
        enough(&self.tiers(how.mode), how.require)?;
        let (capture, rounds) = match std::mem::take(&mut self.freeze) {
            Freeze::None => (Capture::begin(self.stack.conntrack()), 0),
            Freeze::Copying { capture, rounds, .. } => (capture, rounds),
            prepared @ Freeze::Prepared { .. } => {
                self.freeze = prepared;
                return Err(CheckpointError::InProgress);
            }
        };
        let mut carried = None;
        let mut taken = self.take(how, capture, rounds, helper, &mut carried);
        // Only now it is known which sockets can be carried over, and what is to be written.
        let suits = |p: &Prepared| enough(&p.report.flows, how.require).and_then(|()| p.contents.fits_level());
        if let Ok(Err(e)) = taken.as_ref().map(suits) {
            if let Some(c) = carried.take() {
                self.take_back(*c);
            }
            taken = Err(e);
        }
        let go_on = taken.is_err() || how.mode == Mode::GoOn;
        if go_on && !was_paused {
            self.resume();
        }
        if let (Ok(p), false) = (&taken, go_on) {
            self.freeze = Freeze::Prepared { token: p.token, was_paused, carried };
        }
        taken
    }

    fn take(
        &mut self,
        how: &Prepare,
        capture: Capture,
        rounds: u32,
        helper: Option<Helper>,
        carried: &mut Option<Box<Carrying>>,
    ) -> Result<Prepared, CheckpointError> {
        let system = |what| move |source| CheckpointError::System { what, source };
        let token = GenerationId(entropy::seed().map_err(system("get entropy"))?);
        let timer = Clock::start();
        let mut last = Time::ZERO;
        let mut lap = || {
            let now = timer.now();
            now.since(std::mem::replace(&mut last, now)).as_nanos() as u64
        };
        self.settle_down();
        self.pause();
        if how.mode == Mode::Hold {
            self.stack.consume_acknowledged(&mut self.edge);
        }
        let mut times = FreezeTimes { quiesce_ns: lap(), rounds, ..FreezeTimes::default() };
        times.connections_copied = capture.remaining(self.stack.conntrack());
        let connections = capture.finish(self.stack.conntrack())?;
        times.connections_ns = lap();
        let stack = self.stack.save();
        times.stack_ns = lap();
        let mut sockets = self.edge.sockets.save().map_err(system("ask the host sockets"))?;
        let mut flows = self.tiers(how.mode);
        let mut images = Carried::default();
        if how.mode == Mode::Repair {
            let carrying = self.carry(&mut sockets, &token, how, helper)?;
            images = carrying.dumped.carried.clone();
            for (flow, tier) in self.stack.flows().zip(&mut flows) {
                if let Some(why) = carrying.dumped.failed.get(&flow.sock) {
                    (tier.tier, tier.why) = (Tier::Reset, Some(why.clone()));
                }
            }
            *carried = Some(Box::new(carrying));
        }
        times.sockets_ns = lap();
        let origin =
            Origin { version: env!("CARGO_PKG_VERSION").into(), name: how.name.clone(), went_on: how.mode == Mode::GoOn };
        let head = connections.head();
        let report = FreezeReport {
            generation: generation_text(&token),
            times,
            connections: u64::from(head.v4) + u64::from(head.v6),
            flows,
        };
        let (now, created) = (self.clock.now(), clock::wall());
        let level = how.compat.unwrap_or(LEVEL).min(LEVEL);
        let contents = Contents { generation: token, now, created, level, origin, stack, connections, sockets, carried: images };
        Ok(Prepared { token, report, contents })
    }

    /// Writes the sockets down so that they can be made again.
    fn carry(
        &mut self,
        state: &mut SocketsState,
        token: &GenerationId,
        how: &Prepare,
        helper: Option<Helper>,
    ) -> Result<Carrying, CheckpointError> {
        let mut helper = helper.ok_or(CheckpointError::NoHelper)?;
        let lock = (!how.unlocked).then(|| lock_name(token));
        let listeners: Vec<_> = self.listeners.iter().map(|l| (l.publish(), l.fd())).collect();
        let dumped = carried::dump(&self.edge.sockets, state, &listeners, lock.as_deref(), &mut helper);
        let dumped = dumped.map_err(CheckpointError::Carry)?;
        Ok(Carrying { dumped, state: state.clone(), lock, helper })
    }

    /// Which tier each flow takes under a mode.
    pub fn tiers(&self, mode: Mode) -> Vec<FlowTier> {
        let (tier, why) = match mode {
            Mode::Hold => (Tier::Hold, None),
            Mode::Repair => (Tier::Repair, None),
            Mode::GoOn => (Tier::Reset, Some("the worker and its sockets go on")),
            Mode::Drop => (Tier::Reset, Some("its socket is not kept")),
        };
        let tier = |f: FlowInfo| FlowTier { flow: Flow::from(&f), tier, why: why.map(str::to_owned) };
        let others = self.of_followers(|o| o.stack.flows().collect::<Vec<_>>());
        self.stack.flows().chain(others.into_iter().flatten()).map(tier).collect()
    }

    /// Sends what was put off, so that nothing of it is in our memory alone.
    fn settle_down(&mut self) {
        if self.is_paused() {
            return;
        }
        let now = self.clock.now();
        let mut turns = 0;
        while self.stack.flush(now, &mut self.edge) && turns < MAX_TURNS {
            turns += 1;
        }
        self.edge.sockets.flush(&mut self.edge.slots);
        // Other sockets may be in their place when it goes on.
        self.edge.sockets.forget_ahead(&mut self.edge.slots);
        let crate::edge::RuntimeEdge { slots, links, .. } = &mut self.edge;
        for (link, state) in links.iter_mut().zip(&self.links) {
            if let (Some(link), false) = (link, state.gone) {
                // A link that fails is found out about when it is read.
                let _ = link.flush(slots);
            }
        }
    }

    /// Gives a freeze up: the worker goes on as if nothing had happened. Also ends the copying of [`Worker::begin_copy`].
    ///
    /// # Errors
    /// [`CheckpointError::WrongToken`] if the freeze is another one.
    pub fn abort(&mut self, token: Option<GenerationId>) -> Result<(), CheckpointError> {
        match (&mut self.freeze, token) {
            (Freeze::Prepared { token: held, was_paused, carried }, Some(token)) if *held == token => {
                let (was_paused, carried) = (*was_paused, carried.take());
                self.freeze = Freeze::None;
                if let Some(c) = carried {
                    self.take_back(*c);
                }
                if !was_paused {
                    self.resume();
                }
                Ok(())
            }
            (Freeze::Copying { .. } | Freeze::None, None) => {
                self.freeze = Freeze::None;
                Ok(())
            }
            _ => Err(CheckpointError::WrongToken),
        }
    }

    /// Sockets are not carried over: they go on.
    fn take_back(&mut self, carrying: Carrying) {
        let Carrying { dumped, state, lock, mut helper } = carrying;
        carried::undo(dumped, &state, &mut self.edge.sockets, lock.as_deref(), &mut helper);
    }

    /// Ends a frozen worker and hands its sockets out, in whose owner's hands the network is from now on. The worker is to be removed from its
    /// event manager before; if there is another holder of copies of the descriptors, dropping what is returned ends nothing.
    ///
    /// # Errors
    /// [`CheckpointError::WrongToken`] if the freeze is another one; the worker is returned.
    pub fn commit(mut self, token: GenerationId) -> Result<Held, (Box<Worker>, CheckpointError)> {
        match &self.freeze {
            Freeze::Prepared { token: held, .. } if *held == token => {}
            _ => return Err((Box::new(self), CheckpointError::WrongToken)),
        }
        // Without a descriptor for it the peer has to connect anew.
        let links = self.connections().unwrap_or_default();
        for l in self.edge.links.iter_mut().flatten() {
            l.stop(&mut self.edge.slots);
        }
        self.finished = Some(Finished::Frozen);
        let raw = self.edge.sockets.raw_descriptors().map(|fd| fd.and_then(|fd| fd.try_clone_to_owned().ok()));
        let [raw_icmp4, raw_icmp6] = raw;
        Ok(Held {
            generation: Some(token),
            sockets: self.edge.sockets.release(),
            tcp_listeners: self.listeners.into_iter().map(|l| (l.publish(), l.into_fd())).collect(),
            raw_icmp4,
            raw_icmp6,
            links,
        })
    }

    /// Copies of the connections of links whose peers come and go.
    fn connections(&self) -> std::io::Result<Vec<(u8, Connection)>> {
        let mut all = Vec::new();
        for (n, link) in (0..).zip(&self.edge.links) {
            if let Some(link) = link {
                all.extend(link.connection(&self.edge.slots)?.map(|c| (n, c)));
            }
        }
        Ok(all)
    }

    /// Copies of all sockets of a frozen worker, for whoever is to hold them. The worker keeps its own until it ends.
    ///
    /// # Errors
    /// If descriptors ran out.
    pub fn copies(&self, token: GenerationId) -> Result<Held, CheckpointError> {
        match &self.freeze {
            Freeze::Prepared { token: held, .. } if *held == token => {}
            _ => return Err(CheckpointError::WrongToken),
        }
        let copy = || -> std::io::Result<Held> {
            let sockets = self.edge.sockets.descriptors().map(|(id, fd)| Ok((id, fd.try_clone_to_owned()?)));
            let [raw4, raw6] = self.edge.sockets.raw_descriptors();
            let listeners = self.listeners.iter().map(|l| Ok((l.publish(), l.try_clone()?)));
            Ok(Held {
                generation: Some(token),
                sockets: sockets.collect::<std::io::Result<_>>()?,
                tcp_listeners: listeners.collect::<std::io::Result<_>>()?,
                raw_icmp4: raw4.map(|fd| fd.try_clone_to_owned()).transpose()?,
                raw_icmp6: raw6.map(|fd| fd.try_clone_to_owned()).transpose()?,
                links: self.connections()?,
            })
        };
        copy().map_err(|source| CheckpointError::System { what: "copy the descriptors of host sockets", source })
    }
}
