//! The router as we have it.

use super::{Change, ROUTER_MAC, Router, Side, node, router, rules, second};
use crate::{FakeEdge, SlotKind, image, wire};
use core::net::IpAddr;
use hibernet_netstack::admin::{Recheck, Shortcuts};
use hibernet_netstack::config::{LinkNet, V4Config, V6Config};
use hibernet_netstack::conntrack::list::Line;
use hibernet_netstack::edge::{HEAD_MAX, LinkId, LinkInfo, RxChecksum, RxFrame, Tso};
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::text::{PrintOptions, RestoreOptions, print, restore};
use hibernet_netstack::iptables::{Family, Ruleset};
use hibernet_netstack::state::{GoesOn, Randomness};
use hibernet_netstack::wire::Mac;
use hibernet_netstack::{Config, Stack, Time};
use std::time::{Duration, SystemTime};

/// Stack time at which a case begins.
const BEGIN: Time = Time::from_millis(1000);
/// Our own chains, which the kernel has not.
const OWN: &str = "HIBERNET-";

/// A stack with two links, in virtual time.
#[derive(Debug)]
pub struct Ours {
    stack: Stack,
    edge: FakeEdge,
    now: Time,
    family: Family,
    /// How often rules were loaded.
    loads: u64,
    shortcuts: Shortcuts,
    seed: [u8; 16],
    /// The host's addresses.
    host: Vec<IpAddr>,
}

impl Default for Ours {
    fn default() -> Self {
        Ours {
            stack: Stack::new(config(), [7; 16]),
            edge: FakeEdge::default(),
            now: BEGIN,
            family: Family::V4,
            loads: 0,
            shortcuts: Shortcuts::default(),
            seed: [7; 16],
            host: Vec::new(),
        }
    }
}

fn v4(a: IpAddr) -> core::net::Ipv4Addr {
    match a {
        IpAddr::V4(a) => a,
        IpAddr::V6(_) => panic!("{a} is no IPv4 address"),
    }
}

fn v6(a: IpAddr) -> core::net::Ipv6Addr {
    match a {
        IpAddr::V6(a) => a,
        IpAddr::V4(_) => panic!("{a} is no IPv6 address"),
    }
}

fn config() -> Config {
    let client = Side::Client;
    Config {
        v4: Some(V4Config {
            guest: v4(node(client, false)),
            prefix: 24,
            gateway: v4(router(client, false)),
            dns: v4(second(false)),
        }),
        v6: Some(V6Config {
            guest: v6(node(client, true)),
            prefix: 64,
            gateway: v6(router(client, true)),
            dns: v6(second(true)),
        }),
        gateway_mac: Mac(ROUTER_MAC),
        ..Config::default()
    }
}

impl Ours {
    /// One that takes these shortcuts only.
    pub fn with(shortcuts: Shortcuts) -> Self {
        let mut ours = Ours { shortcuts, ..Ours::default() };
        ours.stack.set_shortcuts(shortcuts);
        ours
    }

    /// Bytes that the cache of verdicts holds.
    pub fn verdict_bytes(&self) -> usize {
        self.stack.verdict_bytes()
    }

    fn replace(&mut self, rules: &str) {
        let sets =
            Sets::default().restore(&rules::sets(rules), self.now).unwrap_or_else(|e| panic!("we refuse the sets: {e}\n{rules}"));
        let text = rules::whole(rules);
        let options = RestoreOptions { counters: true, noflush: false };
        let rules =
            restore(&Ruleset::new(self.family), &text, options).unwrap_or_else(|e| panic!("we refuse the rules: {e}\n{text}"));
        let done = self.stack.set_rules_on(self.now, rules, Some(&sets), Recheck::Keep, &mut self.edge);
        done.unwrap_or_else(|e| panic!("we refuse the rules: {e}\n{text}"));
    }

    fn mark(&mut self, n: usize, mark: u32) {
        let mut all = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.stack.conntrack().dump(self.now, from, u32::MAX, |id, _| all.push(id));
        }
        if let Some(id) = n.checked_rem(all.len()).and_then(|n| all.get(n)) {
            self.stack.conntrack().modify(*id, |c| c.mark = mark);
        }
    }

    fn revive(&mut self) {
        let image = image::save(&self.stack, self.now);
        let chance = Randomness::Replay(self.seed, self.stack.draws());
        self.stack = image::restore(&image, chance, &self.host).unwrap_or_else(|e| panic!("{e}"));
        self.stack.set_shortcuts(self.shortcuts);
        self.stack.thaw(self.now, Duration::ZERO, &|_| GoesOn::Yes, &mut self.edge);
        self.settle();
    }

    fn settle(&mut self) {
        while self.stack.next_deadline().is_some_and(|d| d <= self.now) {
            self.stack.tick(self.now, &mut self.edge);
        }
        self.stack.flush(self.now, &mut self.edge);
        self.edge.pool.assert_balanced();
    }

    fn take(&mut self) -> Vec<(Side, Vec<u8>)> {
        let mut all = Vec::new();
        for side in Side::BOTH {
            while let Some(c) = self.edge.links[side.index()].sent.pop_front() {
                all.extend(wire::complete(&c).into_iter().map(|f| (side, f)));
            }
        }
        all
    }
}

impl Router for Ours {
    fn load(&mut self, is_v6: bool, rules: &str, settings: &[(&'static str, u32)]) {
        let mut cfg = config();
        // There is no switch for what checksums are: see the scenarios' list of what differs.
        for &(name, value) in settings.iter().filter(|(name, _)| *name != "checksum") {
            cfg.conntrack.set(name, value.into()).unwrap_or_else(|e| panic!("{e}"));
        }
        // Chance falls otherwise each time, as the kernel's does.
        let loads = self.loads + 1;
        let mut seed = [7; 16];
        seed[..8].copy_from_slice(&loads.to_le_bytes());
        *self = Ours { stack: Stack::new(cfg, seed), loads, shortcuts: self.shortcuts, seed, ..Ours::default() };
        self.stack.set_shortcuts(self.shortcuts);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.stack.set_wall_clock(self.now, wall);
        self.family = if is_v6 { Family::V6 } else { Family::V4 };
        for side in Side::BOTH {
            let info = LinkInfo {
                mtu: 1500,
                checksum: false,
                tso: Tso::None,
                uso: false,
                guest_mac: Some(Mac(side.mac())),
                in_flight: u32::MAX,
            };
            let net = LinkNet { v4: Some((v4(router(side, false)), 24)), v6: Some((v6(router(side, true)), 64)) };
            self.stack.add_link_with(info, net);
            self.edge.add_link(info);
        }
        self.replace(rules);
    }

    fn now(&self) -> Duration {
        self.now.since(BEGIN)
    }

    fn pass(&mut self, until: Duration) {
        let end = BEGIN + until;
        while let Some(next) = self.stack.next_deadline().filter(|d| *d <= end) {
            self.now = next.max(self.now);
            self.edge.host.advance(self.now);
            self.settle();
        }
        self.now = end.max(self.now);
        self.edge.host.advance(self.now);
    }

    fn exchange(&mut self, side: Side, frame: &[u8]) -> Vec<(Side, Vec<u8>)> {
        let payload = self.edge.pool.put(SlotKind::Frame, frame.to_vec());
        let head = &frame[..frame.len().min(HEAD_MAX)];
        let link = LinkId(side.index() as u8);
        let rx = RxFrame { link, head, frame: payload, checksum: RxChecksum::Unverified, gso: None };
        self.stack.receive(self.now, &rx, &mut self.edge);
        self.edge.pool.end_frame(payload);
        self.settle();
        self.take()
    }

    fn rules(&mut self) -> String {
        let text = print(&self.stack.rules(self.family), PrintOptions { counters: true, date: None });
        text.lines().filter(|l| !l.contains(OWN)).map(|l| format!("{l}\n")).collect()
    }

    fn connections(&mut self) -> String {
        let v6 = self.family == Family::V6;
        let mut out = String::new();
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.stack.conntrack().dump(self.now, from, u32::MAX, |id, conn| {
                if conn.tuples[0].v6 == v6 {
                    out += &format!("{}\n", Line::new(conn, self.now).counting(self.stack.conntrack().counts(id)).extended());
                }
            });
        }
        out
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Rules(rules) => self.replace(rules),
            Change::Mark(n, mark) => self.mark(*n, *mark),
            Change::Addresses(all) => {
                self.host.clone_from(all);
                self.stack.set_host_addresses(all.clone());
            }
            Change::Restore => self.revive(),
        }
    }
}
