//! The state of a stack as it is saved: plain data beside the live structs, without handles of the host's, secrets, or instants of
//! any clock but the stack's own.
//!
//! A state is taken between two calls into the stack, after [`Stack::flush`]. The tracked connections are not part of it: they are many, and are
//! captured while traffic runs (`conntrack::image`). What a state cannot hold is handed in again: randomness, and which of the host's sockets
//! are still there.
//!
//! Slots keep their places and generations, so tokens, socket handles and [`ConnId`](crate::conntrack::ConnId)s mean the same before and after.
//! Stack time goes on where it stood, so instants do too.
//!
//! Fragments under reassembly are not saved: they are as lost as any fragment may be.

use crate::config::Config;
use crate::conntrack::{Conntrack, CtConfig};
use crate::edge::{Edge, LinkId, SockId, Token, TokenKind};
use crate::gateway::GatewayState;
use crate::ipset::SetsState;
use crate::iptables::{ConnlimitState, HashlimitState, RecentState};
use crate::rng::{Key, Rng};
use crate::router::{LinksState, RulesState};
use crate::stack::Stack;
use crate::stats::{Stats, StatsState};
use crate::time::Time;
use crate::translate::icmp::IcmpState;
use crate::translate::tcp::{TcpStage, TcpState};
use crate::translate::udp::UdpState;
use crate::tuple::{Endpoint, Tuple};
use core::time::Duration;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Everything of a stack but its tracked connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackState {
    /// Configuration. What changed meanwhile (published ports, resolvers, addresses) is put in before the restore.
    pub config: Config,
    /// Links and neighbours.
    pub links: LinksState,
    /// Rules and their counters. Others may be put in before the restore.
    pub rules: RulesState,
    /// Sets that rules name.
    pub sets: SetsState,
    /// Addresses that rules remember (`recent`).
    pub recent: RecentState,
    /// What rules of `hashlimit` remember.
    pub hashlimit: HashlimitState,
    /// Connections that rules of `connlimit` count.
    pub connlimit: ConnlimitState,
    /// The gateway's services.
    pub gateway: GatewayState,
    /// TCP flows.
    pub tcp: TcpState,
    /// UDP flows.
    pub udp: UdpState,
    /// Echo flows.
    pub icmp: IcmpState,
    /// Statistics.
    pub stats: StatsState,
}

/// What is wrong with a part of a state that has passed its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(&'static str);

/// A part of a state that cannot be true.
pub(crate) const fn invalid(what: &'static str) -> Invalid {
    Invalid(what)
}

/// Why a state is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A part of it cannot be true.
    #[error("the saved state of {part} is not valid: {why}")]
    Invalid {
        /// Which part.
        part: &'static str,
        /// What is wrong.
        why: Invalid,
    },
    /// The saved rules cannot be put in force.
    #[error("the saved rules cannot be loaded: {0}")]
    Rules(String),
    /// There are more or fewer links than were saved.
    #[error("the state has {saved} links, but {given} were given, or under other numbers")]
    Links {
        /// Links in the state.
        saved: usize,
        /// Links at hand.
        given: usize,
    },
    /// The tracked connections cannot be loaded.
    #[error("the saved connections cannot be loaded: {0}")]
    Conntrack(String),
}

fn part(part: &'static str) -> impl FnOnce(Invalid) -> StateError {
    move |why| StateError::Invalid { part, why }
}

/// Where a restored stack's randomness comes from.
#[derive(Clone, Copy, Debug)]
pub enum Randomness {
    /// A new secret seed: keys, initial sequence numbers and ports differ from those of every other restore of the state.
    Fresh([u8; 16]),
    /// The seed of the stack that was saved, and how far it had come ([`Stack::draws`]): a replay. Never outside of tests.
    Replay([u8; 16], u64),
}

/// What is told of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// Its name; its kind is the flow's.
    pub token: Token,
    /// Its host socket.
    pub sock: SockId,
    /// Tuple of the guest's packets, as translated.
    pub tuple: Tuple,
    /// Somebody outside opened it.
    pub inbound: bool,
    /// The socket is a published port's, which other flows use too.
    pub shared_socket: bool,
    /// For TCP: how far it is.
    pub tcp: Option<TcpStage>,
}

/// Whether a flow goes on after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoesOn {
    /// Its socket is there, and stands where the flow does.
    Yes,
    /// Its socket is gone, or is not to be used.
    No,
    /// As [`GoesOn::No`], and the guest has gone on since the state was saved.
    Behind,
}

impl Stack {
    /// The state now. To be called after [`Stack::flush`]; changes nothing.
    pub fn save(&self) -> StackState {
        StackState {
            config: self.router.cfg.clone(),
            links: self.router.save_links(),
            rules: self.router.save_rules(),
            sets: self.router.sets().save(self.router.now),
            recent: self.router.save_recent(),
            hashlimit: self.router.save_hashlimit(),
            connlimit: self.router.save_connlimit(),
            gateway: self.gateway.save(),
            tcp: self.translator.tcp.save(),
            udp: self.translator.udp.save(),
            icmp: self.translator.icmp.save(),
            stats: self.router.save_stats(),
        }
    }

    /// A stack that goes on where the saved one stood. `now` is the stack time of the freeze, or later by as much as the sleep is
    /// to count. `conntrack` loads the table of connections under the key that it is given.
    ///
    /// # Errors
    /// If the state cannot be true, whoever wrote it. Nothing happens before all of it was looked at.
    pub fn restore(
        now: Time,
        state: StackState,
        randomness: Randomness,
        conntrack: impl FnOnce(CtConfig, Key) -> Result<Conntrack, String>,
    ) -> Result<Stack, StateError> {
        let (seed, position) = match randomness {
            Randomness::Fresh(seed) => (seed, None),
            Randomness::Replay(seed, position) => (seed, Some(position)),
        };
        let StackState { config, links, rules, sets, recent, hashlimit, connlimit, gateway, tcp, udp, icmp, stats } = state;
        let limits = config.limits;
        let mut stack = Stack::without_rules(config, seed);
        let Stack { router, gateway: services, translator, .. } = &mut stack;
        (router.now, router.moved) = (now, now);
        let table = conntrack(router.cfg.conntrack.clone(), router.netfilter.key()).map_err(StateError::Conntrack)?;
        router.netfilter.set_conntrack(Arc::new(table));
        router.restore_links(links, position.is_some()).map_err(part("links"))?;
        router.restore_sets(sets).map_err(part("sets"))?;
        let _recent = router.restore_recent(recent).map_err(part("recent"))?;
        let _hashlimit = router.restore_hashlimit(hashlimit).map_err(part("hashlimit"))?;
        router.restore_rules(rules)?;
        router.restore_connlimit(&connlimit).map_err(part("connlimit"))?;
        services.restore(gateway, router).map_err(part("gateway services"))?;
        translator.tcp.restore(tcp, router).map_err(part("TCP flows"))?;
        translator.udp.restore(udp, limits.udp_flows, router).map_err(part("UDP flows"))?;
        translator.icmp.restore(icmp, limits.icmp_flows, router).map_err(part("echo flows"))?;
        router.stats = Stats::restore(&stats).map_err(part("statistics"))?;
        if let Some(position) = position {
            router.rng = Rng::at(seed, position);
        }
        router.schedule_reaper();
        Ok(stack)
    }

    /// How far the stack's randomness has come, for [`Randomness::Replay`].
    pub fn draws(&self) -> u64 {
        self.router.rng.position()
    }

    /// When data or connections moved last. Keep-alives do not count.
    pub fn last_moved(&self) -> Time {
        self.router.moved
    }

    /// Whether nothing is under way: no connection is being opened or closed, both ends have all that was sent, and whoever asked was
    /// answered.
    pub fn is_quiet(&self) -> bool {
        self.translator.tcp.is_quiet() && self.gateway.is_quiet()
    }

    /// Takes out of the host sockets what the guest has acknowledged, which else stays there for a moment. Before a sleep in which whoever holds
    /// the sockets waits for news: what is left in them is news.
    pub fn consume_acknowledged<E: Edge>(&mut self, edge: &mut E) {
        self.translator.tcp.consume_acknowledged(edge);
    }

    /// All flows, TCP first.
    pub fn flows(&self) -> impl Iterator<Item = FlowInfo> {
        let t = &self.translator;
        t.tcp.list().chain(t.udp.list()).chain(t.icmp.list())
    }

    /// The flows of the guest behind a link.
    pub fn flows_behind(&self, link: LinkId) -> Vec<FlowInfo> {
        let tokens = self.translator.behind(link);
        self.flows().filter(|f| tokens.contains(&f.token)).collect()
    }

    /// Sockets that are no flow's: of DNS queries in flight, and of published UDP ports.
    pub fn service_sockets(&self) -> impl Iterator<Item = (Token, SockId)> {
        self.gateway.sockets().chain(self.udp_listeners().map(|(token, sock, _)| (token, sock)))
    }

    /// Sockets of published UDP ports, with what they are bound to.
    pub fn udp_listeners(&self) -> impl Iterator<Item = (Token, SockId, Endpoint)> {
        self.translator.udp.listeners()
    }

    /// Gives a published UDP port, one of [`Stack::udp_listeners`], another socket.
    pub fn set_udp_listener(&mut self, token: Token, sock: SockId) {
        self.translator.udp.set_listener(token, sock);
    }

    /// The first call into a restored stack: ends the flows of which `goes_on` says that they do not, TCP with resets to the guest, and has the
    /// others ask their sockets and the guest for what happened meanwhile: `asleep` is for how long the guest and its peers went on without
    /// us. Returns the flows that were ended. [`Stack::flush`] is to follow.
    pub fn thaw<E: Edge>(
        &mut self,
        now: Time,
        asleep: Duration,
        goes_on: &dyn Fn(SockId) -> GoesOn,
        edge: &mut E,
    ) -> Vec<FlowInfo> {
        self.router.now = now;
        let lost: Vec<FlowInfo> = self.flows().filter(|f| goes_on(f.sock) != GoesOn::Yes).collect();
        for f in &lost {
            match f.token.kind() {
                TokenKind::Tcp if goes_on(f.sock) == GoesOn::Behind => {
                    self.translator.tcp.forget(&mut self.router, f.token, edge);
                }
                _ => self.translator.reset(&mut self.router, f.token, edge),
            }
        }
        self.gateway.forget_sockets(&mut self.router, &|sock| goes_on(sock) == GoesOn::Yes);
        self.translator.tcp.thaw(&mut self.router, asleep, edge);
        self.router.netfilter.conntrack.restart(now);
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Publish;
    use crate::iptables::Family;
    use crate::tuple::proto;

    const SEED: [u8; 16] = [5; 16];

    fn stack() -> Stack {
        let publish = vec![Publish { proto: proto::TCP, addr: None, host_ports: (8080, 8080), guest_port: 80 }];
        Stack::new(Config { publish, ..Config::default() }, SEED)
    }

    fn restore(state: StackState, randomness: Randomness) -> Result<Stack, StateError> {
        Stack::restore(Time::from_millis(5), state, randomness, |cfg, key| Ok(Conntrack::new(cfg, key)))
    }

    #[test]
    fn a_replay_goes_on_with_the_same_randomness_and_others_do_not() {
        let mut saved = stack();
        let state = saved.save();
        let mut replay = restore(state.clone(), Randomness::Replay(SEED, saved.draws())).unwrap();
        assert_eq!((replay.save(), replay.draws()), (state.clone(), saved.draws()));
        assert_eq!(replay.router.rng.u64(), saved.router.rng.u64());
        let mut fresh = restore(state.clone(), Randomness::Fresh([6; 16])).unwrap();
        assert_ne!(fresh.save().links, state.links, "the identification of packets goes on where it stood");
        assert_ne!(fresh.router.rng.u64(), saved.router.rng.u64());
    }

    #[test]
    fn our_own_rules_are_in_force_whatever_was_saved_of_rules() {
        let own = stack().rules(Family::V4);
        let mut state = stack().save();
        for family in &mut state.rules.families {
            *family = crate::router::FamilyState::default();
        }
        state.rules.tracking = false;
        let restored = restore(state, Randomness::Fresh(SEED)).unwrap();
        assert_eq!(restored.rules(Family::V4), own);
        assert!(restored.save().rules.tracking, "a published port needs it");
    }

    #[test]
    fn what_cannot_be_loaded_is_an_error_with_its_part() {
        let state = stack().save();
        let failed = Stack::restore(Time::ZERO, state.clone(), Randomness::Fresh(SEED), |_, _| Err("no such table".into()));
        assert_eq!(failed.unwrap_err(), StateError::Conntrack("no such table".into()));
        let mut bad = state.clone();
        bad.rules.families[0].text = Some("*filter\n-A FORWARD -j NOWHERE\nCOMMIT\n".into());
        assert!(matches!(restore(bad, Randomness::Fresh(SEED)), Err(StateError::Rules(_))));
        let mut bad = state;
        assert_eq!(bad.links.replace(&[]), Ok(()));
        let link = crate::edge::LinkInfo {
            mtu: 1500,
            checksum: false,
            tso: crate::edge::Tso::None,
            uso: false,
            guest_mac: None,
            in_flight: 0,
        };
        assert_eq!(bad.links.replace(&[Some(link)]), Err(StateError::Links { saved: 0, given: 1 }));
    }
}
