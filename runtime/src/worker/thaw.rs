//! Thawing: a worker that goes on where another one stood.

use super::freeze::lock_name;
use super::{Start, Worker, WorkerError, WorkerSetup};
use crate::checkpoint::carried::{self, Carried, Rebuilt};
use crate::checkpoint::contents::load_connections;
use crate::checkpoint::helper::Helper;
use crate::checkpoint::report::{Flow, FlowKind, FlowOutcome, Outcome, ThawReport, generation_text};
use crate::checkpoint::{Held, RestoreError};
use crate::clock::{self, Clock};
use crate::entropy;
use crate::sock::Sockets;
use crate::sock::{SocketFate, SocketsState, Supplied};
use hibernet_netstack::config::Behind;
use hibernet_netstack::edge::{LinkId, SockId};
use hibernet_netstack::state::{GoesOn, Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_snapshot::{GenerationId, Image};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
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
        held: Held,
        policy: &RestorePolicy,
        mut helper: Option<Helper>,
    ) -> Result<(Worker, ThawReport), RestoreError> {
        let timer = Clock::start();
        let header = image.inventory().header;
        let generation = header.generation;
        if let Some(expected) = policy.expected.filter(|e| *e != generation) {
            let (found, expected) = (generation_text(&generation), generation_text(&expected));
            return Err(RestoreError::WrongToken { found, expected });
        }
        let now = Time::from_nanos(header.stack_time) + policy.age;
        let mut state = StackState::from_image(image)?;
        state.config = setup.config.clone();
        let mut infos: Vec<_> = setup.links.iter().map(|l| Some(l.info())).collect();
        for (number, link) in &setup.joined {
            let at = usize::from(number.0);
            infos.resize(infos.len().max(at + 1), None);
            infos[at] = Some(link.info());
        }
        state.links.replace(&infos)?;
        // Sandboxes that left while the network slept.
        let left: Vec<LinkId> = state
            .links
            .infos()
            .zip(0..)
            .filter_map(|((_, behind, _), i)| {
                let there = infos.get(usize::from(i)).is_some_and(Option::is_some);
                (behind != Behind::Nobody && !there).then_some(LinkId(i))
            })
            .collect();
        for (given, family) in [setup.rules.v4.is_some(), setup.rules.v6.is_some()].into_iter().zip(&mut state.rules.families) {
            if given {
                // They come whole, and before the first packet.
                *family = Default::default();
            }
        }
        if let Some(sets) = &setup.rules.sets {
            // The image's rules must do with them.
            state.sets = sets.beginning(now).save(now);
        }
        let stale = held.generation.is_some_and(|g| g != generation);
        let raw4 = held.raw_icmp4.or(setup.raw_icmp4);
        let raw6 = held.raw_icmp6.or(setup.raw_icmp6);
        let carried: Carried = image.state().unwrap_or_default();
        let wanted = policy.flows == FlowPolicy::Resume && held.generation.is_none();
        let mut udp_listeners = setup.udp_listeners;
        let rebuilt = match wanted {
            true => carried::rebuild(&carried, &mut udp_listeners, &lock_name(&generation), helper.as_mut()),
            false => Rebuilt::default(),
        };
        let Rebuilt { sockets: made, listeners: made_listeners, failed } = rebuilt;
        let (sockets, fates) = restore_sockets(image.state()?, raw4, raw6, held.sockets, made, stale)?;
        let seed = entropy::seed().map_err(WorkerError::system("get entropy"))?;
        let frozen_at = Time::from_nanos(header.stack_time);
        let load = |cfg, key| load_connections(image, cfg, key, frozen_at);
        let stack = Stack::restore(now, state, Randomness::Fresh(seed), load)?;
        let connections = stack.conntrack().len() as u64;
        let listeners = match (held.tcp_listeners.is_empty(), setup.tcp_listeners.is_empty()) {
            (false, _) => held.tcp_listeners,
            (true, false) => setup.tcp_listeners,
            (true, true) => made_listeners,
        };
        let setup = WorkerSetup { tcp_listeners: listeners, udp_listeners, raw_icmp4: None, raw_icmp6: None, ..setup };
        let mut worker = Worker::assemble(setup, stack, sockets, Clock::start_at(now), Start::Thawed)?;
        for (number, connection) in held.links {
            let crate::edge::RuntimeEdge { slots, links, .. } = &mut worker.edge;
            if let Some(Some(link)) = links.get_mut(usize::from(number)) {
                link.take_over(slots, connection);
            }
        }
        let asleep = Duration::from_nanos(clock::wall().saturating_sub(header.created));
        let mut ended = Vec::new();
        for link in left {
            ended.extend(worker.stack.flows_behind(link));
            worker.stack.remove_link(now, link, &mut worker.edge);
        }
        let mut flows = worker.thaw(now, asleep, &fates, &failed, stale, policy.flows);
        let why = "the sandbox that it was of has left";
        flows.extend(ended.iter().map(|f| FlowOutcome { flow: Flow::from(f), outcome: Outcome::Reset, why: Some(why.into()) }));
        let report = ThawReport { generation: generation_text(&generation), connections, took_ns: timer.now().as_nanos(), flows };
        Ok((worker, report))
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

/// Takes the host sockets over, those that are there and are what the image says.
fn restore_sockets(
    state: SocketsState,
    raw4: Option<OwnedFd>,
    raw6: Option<OwnedFd>,
    held: Vec<(SockId, OwnedFd)>,
    mut made: HashMap<SockId, OwnedFd>,
    stale: bool,
) -> Result<(Sockets, HashMap<SockId, SocketFate>), RestoreError> {
    let mut held: HashMap<SockId, OwnedFd> = if stale { HashMap::new() } else { held.into_iter().collect() };
    let (sockets, fates) = Sockets::restore(state, raw4, raw6, &mut |id| {
        held.remove(&id).map(Supplied::Held).or_else(|| made.remove(&id).map(Supplied::Rebuilt))
    })?;
    Ok((sockets, fates.into_iter().collect()))
}
