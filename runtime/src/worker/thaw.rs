//! Thawing: a worker that goes on where another one stood.

use super::freeze::{Carrying, lock_name};
use super::moving::Expected;
use super::setup::listen_udp;
use super::{RulesSetup, Start, Worker, WorkerError, WorkerSetup};
use crate::checkpoint::carried::{self, Carried, Rebuilt};
use crate::checkpoint::contents::load_connections;
use crate::checkpoint::helper::Helper;
use crate::checkpoint::report::{Flow, FlowKind, FlowOutcome, Outcome, ThawReport, generation_text};
use crate::checkpoint::{Held, RestoreError};
use crate::clock::{self, Clock};
use crate::entropy;
use crate::sock::Sockets;
use crate::sock::{HoldError, SocketFate, SocketsState, Supplied};
use event_manager::EventOps;
use hibernet_netstack::config::{Behind, Config};
use hibernet_netstack::edge::{LinkId, LinkInfo, SockId};
use hibernet_netstack::state::{GoesOn, Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_snapshot::{GenerationId, Image};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What becomes of the flows of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FlowPolicy {
    /// Those whose sockets are there go on.
    #[default]
    Resume,
    /// None goes on: the guest gets resets.
    Reset,
    /// As [`FlowPolicy::Reset`], because others go on from the same image.
    Clone,
}

/// How to thaw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePolicy {
    /// Which freeze the image must be of; any if it does not say.
    #[serde(with = "token")]
    pub expected: Option<GenerationId>,
    /// What becomes of flows.
    pub flows: FlowPolicy,
    /// How much of the time asleep connections age. Leases and the like always do.
    pub age: Duration,
}

/// A token in messages.
mod token {
    use hibernet_snapshot::GenerationId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(token: &Option<GenerationId>, s: S) -> Result<S::Ok, S::Error> {
        token.map(|t| t.0).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<GenerationId>, D::Error> {
        Ok(Option::<[u8; 16]>::deserialize(d)?.map(GenerationId))
    }
}

/// What an image says of a network: everything but its sockets, checked as a whole. Nothing has happened yet.
pub(super) struct Loaded {
    stack: Stack,
    sockets: SocketsState,
    carried: Carried,
    generation: GenerationId,
    /// Stack time when it goes on.
    now: Time,
    /// Wall clock at the freeze.
    created: u64,
    /// Links of sandboxes that left while the network slept.
    left: Vec<LinkId>,
    flows: FlowPolicy,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Loaded {
    /// The configuration that will be in force.
    pub(super) fn config(&self) -> &Config {
        self.stack.config()
    }

    /// Refuses it if fewer flows than required, in percent, would go on here.
    pub(super) fn require(&self, require: u8, has_helper: bool) -> Result<(), RestoreError> {
        if require == 0 {
            return Ok(());
        }
        let tcp = self.carried.tcp.iter().map(|(id, _)| *id);
        let there: HashSet<SockId> = tcp.chain(self.carried.datagram.iter().map(|(id, _)| *id)).collect();
        let hopeless = carried::hopeless(&self.carried, has_helper);
        let (mut flows, mut surviving) = (0, 0);
        for f in self.stack.flows() {
            flows += 1;
            surviving += usize::from(there.contains(&f.sock) && !hopeless.contains(&f.sock));
        }
        if surviving * 100 < flows * usize::from(require) {
            return Err(RestoreError::Require { surviving, flows, require });
        }
        Ok(())
    }

    /// Other ports than the image's are published.
    pub(super) fn forget_listeners(&mut self) {
        self.carried.listeners.clear();
    }

    /// Reads an image, for these links. `config` is in force, and `rules` take the place of the image's: they come whole when the network goes on.
    pub(super) fn from_image(
        image: &Image<'_>,
        config: &Config,
        links: &[Option<LinkInfo>],
        rules: &RulesSetup,
        policy: &RestorePolicy,
    ) -> Result<Loaded, RestoreError> {
        let header = image.inventory().header;
        let generation = header.generation;
        if let Some(expected) = policy.expected.filter(|e| *e != generation) {
            let (found, expected) = (generation_text(&generation), generation_text(&expected));
            return Err(RestoreError::WrongToken { found, expected });
        }
        let frozen_at = Time::from_nanos(header.stack_time);
        let now = frozen_at + policy.age;
        let mut state = StackState::from_image(image)?;
        state.config = config.clone();
        state.links.replace(links)?;
        let left: Vec<LinkId> = state
            .links
            .infos()
            .zip(0..)
            .filter_map(|((_, behind, _), i)| {
                let there = links.get(usize::from(i)).is_some_and(Option::is_some);
                (behind != Behind::Nobody && !there).then_some(LinkId(i))
            })
            .collect();
        for (given, family) in [rules.v4.is_some(), rules.v6.is_some()].into_iter().zip(&mut state.rules.families) {
            if given {
                // They come whole, and before the first packet.
                *family = Default::default();
            }
        }
        if let Some(sets) = &rules.sets {
            // The image's rules must do with them.
            state.sets = sets.beginning(now).save(now);
        }
        let sockets: SocketsState = image.state()?;
        Sockets::validate(&sockets)?;
        let seed = entropy::seed().map_err(WorkerError::system("get entropy"))?;
        let load = |cfg, key| load_connections(image, cfg, key, frozen_at);
        let stack = Stack::restore(now, state, Randomness::Fresh(seed), load)?;
        Ok(Loaded {
            stack,
            sockets,
            carried: image.state().unwrap_or_default(),
            generation,
            now,
            created: header.created,
            left,
            flows: policy.flows,
        })
    }
}

/// Host sockets for a network that goes on.
#[derive(Debug)]
struct Found {
    sockets: Sockets,
    fates: HashMap<SockId, SocketFate>,
    /// Those that could not be made again, and why.
    failed: HashMap<SockId, String>,
    /// Listeners that were made again.
    listeners: Vec<(usize, OwnedFd)>,
}

/// Takes the host sockets over that are held, or makes those again that an image carries. Published UDP ports that are open are taken from `udp`.
fn find_sockets(
    state: SocketsState,
    carried: &Carried,
    generation: &GenerationId,
    held: &mut Held,
    udp: &mut Vec<(usize, OwnedFd)>,
    wanted: bool,
    helper: Option<&mut Helper>,
) -> Result<Found, HoldError> {
    let stale = held.generation.is_some_and(|g| g != *generation);
    let rebuilt = match wanted && held.generation.is_none() {
        true => carried::rebuild(carried, udp, &lock_name(generation), helper),
        false => Rebuilt::default(),
    };
    let Rebuilt { sockets: mut made, listeners, failed } = rebuilt;
    let (raw4, raw6) = (held.raw_icmp4.take(), held.raw_icmp6.take());
    let there = std::mem::take(&mut held.sockets);
    let mut there: HashMap<SockId, OwnedFd> = if stale { HashMap::new() } else { there.into_iter().collect() };
    let (sockets, fates) = Sockets::restore(state, raw4, raw6, &mut |id| {
        there.remove(&id).map(Supplied::Held).or_else(|| made.remove(&id).map(Supplied::Rebuilt))
    })?;
    Ok(Found { sockets, fates: fates.into_iter().collect(), failed, listeners })
}

impl Worker {
    /// A worker that goes on where the one stood of which the image is. The configuration in `setup` is in force, which begins as
    /// [the image's](crate::checkpoint::config_of); rules in `setup` take the place of the image's, family by family, before the first packet. Listeners
    /// in `setup` are used where `held` has none. `helper` switches the repair mode of TCP sockets that the image carries.
    ///
    /// # Errors
    /// [`RestoreError`]: the image is damaged, of another freeze, or cannot be true; or something that it needs cannot be had.
    pub fn restore(
        setup: WorkerSetup,
        image: &Image<'_>,
        mut held: Held,
        policy: &RestorePolicy,
        mut helper: Option<Helper>,
    ) -> Result<(Worker, ThawReport), RestoreError> {
        let timer = Clock::start();
        let mut infos: Vec<_> = setup.links.iter().map(|l| Some(l.info())).collect();
        for (number, link) in &setup.joined {
            let at = usize::from(number.0);
            infos.resize(infos.len().max(at + 1), None);
            infos[at] = Some(link.info());
        }
        let loaded = Loaded::from_image(image, &setup.config, &infos, &setup.rules, policy)?;
        let Loaded { stack, sockets, carried, generation, now, created, left, flows: policy } = loaded;
        let stale = held.generation.is_some_and(|g| g != generation);
        held.raw_icmp4 = held.raw_icmp4.or(setup.raw_icmp4);
        held.raw_icmp6 = held.raw_icmp6.or(setup.raw_icmp6);
        let mut udp_listeners = setup.udp_listeners;
        let wanted = policy == FlowPolicy::Resume;
        let found = find_sockets(sockets, &carried, &generation, &mut held, &mut udp_listeners, wanted, helper.as_mut())?;
        let connections = stack.conntrack().len() as u64;
        let listeners = match (held.tcp_listeners.is_empty(), setup.tcp_listeners.is_empty()) {
            (false, _) => held.tcp_listeners,
            (true, false) => setup.tcp_listeners,
            (true, true) => found.listeners,
        };
        let setup = WorkerSetup { tcp_listeners: listeners, udp_listeners, raw_icmp4: None, raw_icmp6: None, ..setup };
        let mut worker = Worker::assemble(setup, stack, found.sockets, Clock::start_at(now), Start::Thawed)?;
        for (number, connection) in held.links {
            let crate::edge::RuntimeEdge { slots, links, .. } = &mut worker.edge;
            if let Some(Some(link)) = links.get_mut(usize::from(number)) {
                link.take_over(slots, connection);
            }
        }
        let asleep = Duration::from_nanos(clock::wall().saturating_sub(created));
        let ended = worker.remove_links(now, left);
        let mut flows = worker.thaw(now, asleep, &found.fates, &found.failed, stale, policy);
        flows.extend(ended);
        let report = ThawReport { generation: generation_text(&generation), connections, took_ns: timer.now().as_nanos(), flows };
        Ok((worker, report))
    }

    /// Goes on with the network of an image, its sockets made again, in place of one that was nobody's. It never fails: flows whose sockets cannot be had are reset.
    /// `spare` serves if none can be watched.
    pub(super) fn take_place(&mut self, expected: Expected, ops: &mut EventOps<'_>) -> ThawReport {
        let timer = Clock::start();
        let Expected { loaded, rules, mut helper, spare, seeds, ports } = expected;
        self.unwatch_sockets(ops);
        let mut udp = self.published_udp();
        let supplied = ports.map(|ports| {
            udp.extend(ports.udp);
            ports.tcp
        });
        let tcp: Vec<_> = self.listeners.drain(..).map(|l| (l.publish(), l.into_fd())).collect();
        // Whoever has found a published port meanwhile has found nobody there.
        let before = self.clock.now();
        for index in 0..self.links.len() {
            self.stack.remove_link(before, LinkId(index as u8), &mut self.edge);
        }
        let Loaded { stack, sockets, mut carried, generation, now, created, left, flows: policy } = loaded;
        if supplied.is_some() || !tcp.is_empty() {
            carried.listeners.clear();
        }
        self.stack = stack;
        self.start_clock_at(now);
        let raw = self.edge.sockets.raw_descriptors().map(|fd| fd.and_then(|fd| fd.try_clone_to_owned().ok()));
        let [raw_icmp4, raw_icmp6] = raw;
        let mut held = Held { raw_icmp4, raw_icmp6, ..Held::default() };
        let wanted = policy == FlowPolicy::Resume;
        let found = find_sockets(sockets, &carried, &generation, &mut held, &mut udp, wanted, helper.as_mut());
        let found = found.unwrap_or_else(|e| {
            slog::error!(self.log, "no host socket can be taken over"; "error" => %e);
            Found { sockets: spare, fates: HashMap::new(), failed: HashMap::new(), listeners: Vec::new() }
        });
        self.edge.sockets = found.sockets;
        self.listen_again(if tcp.is_empty() { supplied.unwrap_or(found.listeners) } else { tcp });
        for (_, fd) in udp {
            if let Err(e) = listen_udp(&mut self.stack, &mut self.edge.sockets, fd) {
                slog::error!(self.log, "a published UDP port is lost"; "error" => %e);
            }
        }
        self.addresses_anew();
        let recheck = rules.recheck.into();
        for rules in [rules.v4, rules.v6].into_iter().flatten() {
            // They were in force before.
            if let Err(e) = self.stack.set_rules(now, rules, recheck, &mut self.edge) {
                slog::error!(self.log, "the rules that were given are not in force"; "error" => %e);
            }
        }
        self.lead_anew(seeds);
        self.watch_sockets(ops);
        let asleep = Duration::from_nanos(clock::wall().saturating_sub(created));
        let ended = self.remove_links(now, left);
        let mut flows = self.thaw(now, asleep, &found.fates, &found.failed, false, policy);
        flows.extend(ended);
        let connections = self.stack.conntrack().len() as u64;
        ThawReport { generation: generation_text(&generation), connections, took_ns: timer.now().as_nanos(), flows }
    }

    /// Goes on where it stood, its sockets made again that it had let go of.
    pub(super) fn come_back(&mut self, carrying: Carrying, token: &GenerationId, ops: &mut EventOps<'_>) -> ThawReport {
        let timer = Clock::start();
        let Carrying { mut dumped, state, mut helper, .. } = carrying;
        if self.asks_for_ports() {
            dumped.carried.listeners.clear();
        }
        let [raw_icmp4, raw_icmp6] = self.edge.sockets.raw_descriptors().map(|fd| fd.and_then(|fd| fd.try_clone_to_owned().ok()));
        let mut held = Held { raw_icmp4, raw_icmp6, ..Held::default() };
        let found = find_sockets(state, &dumped.carried, token, &mut held, &mut Vec::new(), true, Some(&mut helper));
        let (fates, mut failed) = match found {
            Ok(Found { sockets, fates, failed, listeners }) => {
                self.edge.sockets = sockets;
                self.listen_again(listeners);
                (fates, failed)
            }
            Err(e) => {
                slog::error!(self.log, "no host socket can be made again"; "error" => %e);
                (HashMap::new(), HashMap::new())
            }
        };
        failed.extend(dumped.failed);
        self.watch_sockets(ops);
        self.resume();
        // For how long it was away those that go on have heard already.
        let flows = self.thaw(self.clock.now(), Duration::ZERO, &fates, &failed, false, FlowPolicy::Resume);
        let connections = self.stack.conntrack().len() as u64;
        ThawReport { generation: generation_text(token), connections, took_ns: timer.now().as_nanos(), flows }
    }

    /// Links of sandboxes that left while the network slept; what became of their flows.
    fn remove_links(&mut self, now: Time, left: Vec<LinkId>) -> Vec<FlowOutcome> {
        let mut ended = Vec::new();
        for link in left {
            ended.extend(self.stack.flows_behind(link));
            self.stack.remove_link(now, link, &mut self.edge);
        }
        let why = "the sandbox that it was of has left";
        ended.iter().map(|f| FlowOutcome { flow: Flow::from(f), outcome: Outcome::Reset, why: Some(why.into()) }).collect()
    }

    /// Ends the flows that do not go on, and wakes the others.
    fn thaw(
        &mut self,
        now: Time,
        asleep: Duration,
        fates: &HashMap<SockId, SocketFate>,
        failed: &HashMap<SockId, String>,
        stale: bool,
        policy: FlowPolicy,
    ) -> Vec<FlowOutcome> {
        let fate = |sock: SockId| match policy {
            FlowPolicy::Reset => Err("all flows are to be reset".to_owned()),
            FlowPolicy::Clone => Err("others go on from the same image".to_owned()),
            FlowPolicy::Resume if failed.contains_key(&sock) => Err(failed[&sock].clone()),
            FlowPolicy::Resume => match fates.get(&sock) {
                Some(SocketFate::Resumed) => Ok(()),
                Some(SocketFate::Stale) => Err("stale generation: its socket went on since the freeze".to_owned()),
                Some(SocketFate::Unusable(e)) => Err(format!("its socket cannot be used{}", reason(*e))),
                Some(SocketFate::Missing) | None if stale => {
                    Err("stale generation: the sockets are held for another freeze".to_owned())
                }
                Some(SocketFate::Missing) | None => Err("its socket is gone".to_owned()),
            },
        };
        let all: Vec<_> = self.stack.flows().collect();
        let behind = |sock| stale || fates.get(&sock) == Some(&SocketFate::Stale);
        let goes_on = |sock| match fate(sock) {
            Ok(()) => GoesOn::Yes,
            Err(_) if behind(sock) => GoesOn::Behind,
            Err(_) => GoesOn::No,
        };
        self.stack.thaw(now, asleep, &goes_on, &mut self.edge);
        let outcome = |f: &hibernet_netstack::state::FlowInfo| {
            let flow = Flow::from(f);
            match fate(f.sock) {
                Ok(()) => FlowOutcome { flow, outcome: Outcome::Resumed, why: None },
                // The guest's next datagram opens another.
                Err(why) => {
                    let outcome = if flow.kind == FlowKind::Tcp { Outcome::Reset } else { Outcome::Skipped };
                    FlowOutcome { flow, outcome, why: Some(why) }
                }
            }
        };
        all.iter().map(outcome).collect()
    }
}

fn reason(errno: Option<i32>) -> String {
    errno.map_or_else(String::new, |e| format!(": {}", std::io::Error::from_raw_os_error(e)))
}
