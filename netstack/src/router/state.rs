//! What the router's parts share, as it is saved: links, rules with their counters, statistics.

use super::{Link, RateLimit, Router, Via};
use crate::config::{Behind, LinkNet};
use crate::edge::{LinkId, LinkInfo, Token};
use crate::image::LEVEL;
use crate::ipset::{Sets, SetsState};
use crate::iptables::text::{self, PrintOptions, RestoreOptions};
use crate::iptables::{ConnlimitState, Family, HashTable, HashlimitState, RecentState, RecentTable, Ruleset};
use crate::state::{Invalid, StateError, invalid};
use crate::stats::StatsState;
use crate::wire::Mac;
use core::net::IpAddr;
use hibernet_snapshot::Inexpressible;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most links that a stack can have: a [`LinkId`] has 8 bits.
pub(super) const MAX_LINKS: usize = 256;

/// Links and what is known of the guests behind them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinksState {
    links: Vec<LinkState>,
    icmp_limit: RateLimit,
    /// Next identification of an IPv4 packet.
    ident: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LinkState {
    info: LinkInfo,
    behind: Behind,
    name: String,
    neighbours: Vec<(IpAddr, Mac)>,
    last: Option<Mac>,
    ask_limit: RateLimit,
}

/// [`LinksState`] before links had names and could be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinksStateV1 {
    links: Vec<LinkStateV1>,
    icmp_limit: RateLimit,
    ident: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LinkStateV1 {
    info: LinkInfo,
    net: Option<LinkNet>,
    neighbours: Vec<(IpAddr, Mac)>,
    last: Option<Mac>,
    ask_limit: RateLimit,
}

impl From<LinksStateV1> for LinksState {
    fn from(old: LinksStateV1) -> LinksState {
        let link = |l: LinkStateV1| LinkState {
            info: l.info,
            behind: l.net.map_or(Behind::Configured, Behind::Net),
            name: String::new(),
            neighbours: l.neighbours,
            last: l.last,
            ask_limit: l.ask_limit,
        };
        LinksState { links: old.links.into_iter().map(link).collect(), icmp_limit: old.icmp_limit, ident: old.ident }
    }
}

impl TryFrom<&LinksState> for LinksStateV1 {
    type Error = Inexpressible;

    fn try_from(new: &LinksState) -> Result<LinksStateV1, Inexpressible> {
        let net = |behind: Behind| match behind {
            Behind::Configured => Ok(None),
            Behind::Net(net) => Ok(Some(net)),
            Behind::Guest(_) | Behind::Nobody => Err(Inexpressible("sandboxes that have joined, or have left".into())),
        };
        let link = |l: &LinkState| {
            let (info, neighbours, last, ask_limit) = (l.info, l.neighbours.clone(), l.last, l.ask_limit);
            // Of the name of an only link nobody makes use.
            let net = net(l.behind)?;
            let named = new.links.len() > 1 && !l.name.is_empty();
            if named {
                Err(Inexpressible("names of links".into()))
            } else {
                Ok(LinkStateV1 { info, net, neighbours, last, ask_limit })
            }
        };
        let links = new.links.iter().map(link).collect::<Result<_, _>>()?;
        Ok(LinksStateV1 { links, icmp_limit: new.icmp_limit, ident: new.ident })
    }
}

/// The rules of both families.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesState {
    /// Packets are tracked.
    pub tracking: bool,
    /// IPv4, IPv6.
    pub families: [FamilyState; 2],
}

/// The rules of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyState {
    /// In the form of `iptables-save -c`, our own chains included; none if nothing was ever loaded.
    pub text: Option<String>,
    /// They are a user's.
    pub given: bool,
    /// Only the other family's rules were given: nothing of this one passes.
    pub closed: bool,
    /// What matches remember of earlier packets, in the order of the rules.
    pub memory: Vec<u64>,
}

impl RulesState {
    /// Whether readers of images of a level (see [`LEVEL`]) know the language of the rules.
    ///
    /// # Errors
    /// A match or target that they do not know.
    pub(crate) fn is_spoken_at(&self, level: u16) -> Result<(), Inexpressible> {
        if level >= LEVEL {
            return Ok(());
        }
        for (family, saved) in [Family::V4, Family::V6].into_iter().zip(&self.families) {
            let Some(text) = &saved.text else { continue };
            let options = RestoreOptions { counters: true, noflush: false };
            let rules = text::restore(&Ruleset::new(family), text, options).map_err(|e| Inexpressible(e.to_string()))?;
            let newer = rules.rules().find_map(|rule| rule.newer_than(level));
            newer.map_or(Ok(()), |name| Err(Inexpressible(name.into())))?;
        }
        Ok(())
    }
}

impl LinksState {
    /// What the links could do, what was behind them, and their names.
    pub fn infos(&self) -> impl Iterator<Item = (LinkInfo, Behind, &str)> {
        self.links.iter().map(|l| (l.info, l.behind, l.name.as_str()))
    }

    /// Puts other links, by their numbers, in place of the saved ones. Those for which there is none are as they were, and are to be
    /// [removed](crate::Stack::remove_link) unless nobody was behind them.
    ///
    /// # Errors
    /// If there are more than were saved, or one where nobody was.
    pub fn replace(&mut self, infos: &[Option<LinkInfo>]) -> Result<(), StateError> {
        let misplaced = infos.iter().enumerate().any(|(i, info)| {
            let there = self.links.get(i).is_some_and(|l| l.behind != Behind::Nobody);
            info.is_some() && !there
        });
        if misplaced {
            let saved = self.links.iter().filter(|l| l.behind != Behind::Nobody).count();
            return Err(StateError::Links { saved, given: infos.iter().flatten().count() });
        }
        for (link, info) in self.links.iter_mut().zip(infos) {
            let Some(info) = info else { continue };
            // Another guest: it does not hear what is sent to the MAC address of the one that was there.
            if info.guest_mac.is_some() && info.guest_mac != link.info.guest_mac {
                link.neighbours.clear();
                link.last = info.guest_mac;
            }
            link.info = LinkInfo { guest_mac: info.guest_mac.or(link.info.guest_mac), ..*info };
        }
        Ok(())
    }
}

impl Router {
    pub(crate) fn save_links(&self) -> LinksState {
        let link = |l: &Link| LinkState {
            info: l.info,
            behind: l.behind,
            name: l.name.clone(),
            neighbours: l.neighbours.entries().to_vec(),
            last: l.neighbours.last(),
            ask_limit: l.ask_limit,
        };
        LinksState { links: self.links.iter().map(link).collect(), icmp_limit: self.icmp_limit, ident: self.ident }
    }

    /// Puts saved links into place of none. `same_stream` if the stack's randomness goes on, too, where it stood.
    pub(crate) fn restore_links(&mut self, state: LinksState, same_stream: bool) -> Result<(), Invalid> {
        if state.links.len() > MAX_LINKS {
            return Err(invalid("more links than a stack can have"));
        }
        for l in state.links {
            let mut link = Link::new(l.info, l.behind, l.name);
            link.neighbours.restore(l.neighbours, l.last).ok_or(invalid("more neighbours than are remembered"))?;
            link.ask_limit.restore(l.ask_limit);
            self.links.push(link);
        }
        self.icmp_limit.restore(state.icmp_limit);
        if same_stream {
            self.ident = state.ident;
        }
        Ok(())
    }

    pub(crate) fn save_rules(&self) -> RulesState {
        let family = |family: Family| {
            let rules = &self.netfilter.families[family as usize];
            FamilyState {
                text: rules
                    .loaded
                    .is_some()
                    .then(|| text::print(&self.ruleset(family), PrintOptions { counters: true, date: None })),
                given: rules.given,
                closed: rules.closed,
                memory: rules.loaded.as_ref().map_or_else(Vec::new, |(p, _)| p.memory()),
            }
        };
        RulesState { tracking: self.netfilter.tracking, families: [family(Family::V4), family(Family::V6)] }
    }

    /// Puts saved sets in place of none; to be done before rules that name them are loaded.
    pub(crate) fn restore_sets(&mut self, state: SetsState) -> Result<(), Invalid> {
        let key = self.netfilter.named.sets.key();
        self.netfilter.named.sets = Sets::load(state, key)?;
        Ok(())
    }

    pub(crate) fn save_recent(&self) -> RecentState {
        self.netfilter.named.recent.save()
    }

    /// Saved tables of `recent`, for the rules that are loaded while they are held.
    pub(crate) fn restore_recent(&self, state: RecentState) -> Result<Vec<Arc<RecentTable>>, Invalid> {
        self.netfilter.named.recent.load(state)
    }

    pub(crate) fn save_hashlimit(&self) -> HashlimitState {
        self.netfilter.named.hashlimit.save()
    }

    /// Saved tables of `hashlimit`, for the rules that are loaded while they are held.
    pub(crate) fn restore_hashlimit(&self, state: HashlimitState) -> Result<Vec<Arc<HashTable>>, Invalid> {
        self.netfilter.named.hashlimit.load(state)
    }

    pub(crate) fn save_connlimit(&self) -> ConnlimitState {
        let of = |f: Family| self.netfilter.families[f as usize].loaded.as_ref().map_or_else(Vec::new, |(p, _)| p.connections());
        ConnlimitState { families: [of(Family::V4), of(Family::V6)] }
    }

    /// Has the rules, which are loaded, go on from the connections that they counted.
    pub(crate) fn restore_connlimit(&self, state: &ConnlimitState) -> Result<(), Invalid> {
        state.check(self.netfilter.conntrack.most())?;
        for (rules, saved) in self.netfilter.families.iter().zip(&state.families) {
            if let Some((program, _)) = &rules.loaded {
                program.recall_connections(saved);
            }
        }
        Ok(())
    }

    /// Puts saved rules in place of none. Our own chains are made anew from the configuration, and keep their counters where they are
    /// the same as before.
    pub(crate) fn restore_rules(&mut self, state: RulesState) -> Result<(), StateError> {
        self.netfilter.tracking = state.tracking || !self.cfg.publish.is_empty();
        for (family, saved) in [Family::V4, Family::V6].into_iter().zip(state.families) {
            if let Some(text) = saved.text {
                let base = Ruleset::new(family);
                let options = RestoreOptions { counters: true, noflush: false };
                let rules = text::restore(&base, &text, options).map_err(|e| StateError::Rules(e.to_string()))?;
                let tracked = self.netfilter.tracking;
                let program = self.compile(rules, tracked).map_err(|e| StateError::Rules(e.to_string()))?;
                program.recall(&saved.memory);
                self.replace(family, program);
            } else {
                self.load_own_rules_of(family);
            }
            let rules = &mut self.netfilter.families[family as usize];
            (rules.given, rules.closed) = (saved.given, saved.closed);
        }
        Ok(())
    }

    pub(crate) fn save_stats(&self) -> StatsState {
        self.stats.save()
    }

    /// Whether what ties a flow to the guest can be true.
    pub(crate) fn check_via(&self, via: &Via) -> Result<(), Invalid> {
        let there = |l: LinkId| usize::from(l.0) < self.links.len();
        let input = match via.input {
            Some(crate::iptables::Iface::Link(l)) => there(l),
            _ => true,
        };
        if there(via.link) && input { Ok(()) } else { Err(invalid("a flow behind a link that is not there")) }
    }
}

impl Via {
    /// Ties a restored flow to its tracked connection again, if that is there.
    pub(crate) fn resume(&mut self, r: &Router, token: Token) {
        if let Some(id) = self.conn
            && !r.pin(id, token)
        {
            self.conn = None;
        }
    }
}
