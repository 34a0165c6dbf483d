//! Thawing: a worker that goes on where another one stood.

use super::{Start, Worker, WorkerError, WorkerSetup};
use crate::checkpoint::contents::load_connections;
use crate::checkpoint::report::{Flow, FlowKind, FlowOutcome, Outcome, ThawReport, generation_text};
use crate::checkpoint::{Held, RestoreError};
use crate::clock::{self, Clock};
use crate::entropy;
use crate::sock::Sockets;
use crate::sock::{SocketFate, SocketsState, Supplied};
use hibernet_netstack::edge::SockId;
use hibernet_netstack::state::{GoesOn, Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_snapshot::{GenerationId, Image};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What becomes of the flows of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default)]
pub struct RestorePolicy {
    /// Which freeze the image must be of; any if it does not say.
    pub expected: Option<GenerationId>,
    /// What becomes of flows.
    pub flows: FlowPolicy,
    /// How much of the time asleep connections age. Leases and the like always do.
    pub age: Duration,
}

impl Worker {
    /// A worker that goes on where the one stood of which the image is. The configuration in `setup` is in force, which begins as
    /// [the image's](crate::checkpoint::config_of); rules in `setup` take the place of the image's, family by family, before the first packet. Listeners
    /// in `setup` are used where `held` has none.
    ///
    /// # Errors
    /// [`RestoreError`]: the image is damaged, of another freeze, or cannot be true; or something that it needs cannot be had.
    pub fn restore(
        setup: WorkerSetup,
        image: &Image<'_>,
        held: Held,
        policy: &RestorePolicy,
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
        let infos: Vec<_> = setup.links.iter().map(|l| l.info()).collect();
        state.links.replace(&infos)?;
        for (given, family) in [setup.rules.v4.is_some(), setup.rules.v6.is_some()].into_iter().zip(&mut state.rules.families) {
            if given {
                // They come whole, and before the first packet.
                *family = Default::default();
            }
        }
        let stale = held.generation.is_some_and(|g| g != generation);
        let raw4 = held.raw_icmp4.or(setup.raw_icmp4);
        let raw6 = held.raw_icmp6.or(setup.raw_icmp6);
        let (sockets, fates) = restore_sockets(image.state()?, raw4, raw6, held.sockets, stale)?;
        let seed = entropy::seed().map_err(WorkerError::system("get entropy"))?;
        let frozen_at = Time::from_nanos(header.stack_time);
        let load = |cfg, key| load_connections(image, cfg, key, frozen_at);
        let stack = Stack::restore(now, state, Randomness::Fresh(seed), load)?;
        let connections = stack.conntrack().len() as u64;
        let listeners = if held.tcp_listeners.is_empty() { setup.tcp_listeners } else { held.tcp_listeners };
        let setup = WorkerSetup { tcp_listeners: listeners, raw_icmp4: None, raw_icmp6: None, ..setup };
        let mut worker = Worker::assemble(setup, stack, sockets, Clock::start_at(now), Start::Thawed)?;
        let asleep = Duration::from_nanos(clock::wall().saturating_sub(header.created));
        let flows = worker.thaw(now, asleep, &fates, stale, policy.flows);
        let report = ThawReport { generation: generation_text(&generation), connections, took_ns: timer.now().as_nanos(), flows };
        Ok((worker, report))
    }

    /// Ends the flows that do not go on, and wakes the others.
    fn thaw(
        &mut self,
        now: Time,
        asleep: Duration,
        fates: &HashMap<SockId, SocketFate>,
        stale: bool,
        policy: FlowPolicy,
    ) -> Vec<FlowOutcome> {
        let fate = |sock: SockId| match policy {
            FlowPolicy::Reset => Err("all flows are to be reset".to_owned()),
            FlowPolicy::Clone => Err("others go on from the same image".to_owned()),
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
    stale: bool,
) -> Result<(Sockets, HashMap<SockId, SocketFate>), RestoreError> {
    let mut held: HashMap<SockId, OwnedFd> = if stale { HashMap::new() } else { held.into_iter().collect() };
    let (sockets, fates) = Sockets::restore(state, raw4, raw6, &mut |id| held.remove(&id).map(Supplied::Held))?;
    Ok((sockets, fates.into_iter().collect()))
}
