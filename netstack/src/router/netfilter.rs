//! The hooks: tables, tracking and translation in the way of every packet, in the order of Linux's netfilter.

use super::host::{Asked, Grants};
use super::{Attach, Router};
use crate::config::Config;
use crate::conntrack::tcp::TcpState;
use crate::conntrack::{ConnId, Conntrack, CtInfo, Dir, Proto, Status, Track};
use crate::edge::Token;
use crate::iptables::{
    Bulk, CounterSet, Env, Hook, Iface, Known, LogEntry, LogSink, Named, Outcome, Program, RawHeaders, RejectWith, Stage,
    TableName, TraceEntry, Verdicts,
};
use crate::nat::{self, Nat};
use crate::packet::Packet;
use crate::rng::{Key, Rng};
use crate::skb::Skb;
use crate::time::Time;
use crate::timers::Deadline;
use crate::trace::{Event, Step, Tracing};
use crate::verdict::DropReason;
use crate::wire::{EtherType, Mac, ethernet};
use std::collections::VecDeque;
use std::sync::Arc;

/// Log lines that wait to be fetched; further ones are counted only.
const MAX_LOG: usize = 256;

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It is dropped.
    Drop(DropReason),
    /// It is dropped, and its sender told so.
    Reject(RejectWith),
}

impl From<Stop> for DropReason {
    fn from(s: Stop) -> Self {
        match s {
            Stop::Drop(why) => why,
            Stop::Reject(_) => DropReason::Rejected,
        }
    }
}

impl From<Outcome> for Result<(), Stop> {
    fn from(o: Outcome) -> Self {
        match o {
            Outcome::Accept => Ok(()),
            Outcome::Drop(why) => Err(Stop::Drop(why)),
            Outcome::Reject(with) => Err(Stop::Reject(with)),
        }
    }
}

/// What LOG shows of a packet's headers: those heard last, if it came over a link.
fn raw<'a>(heard: &'a Heard, skb: &Skb<'_>) -> RawHeaders<'a> {
    match skb.input {
        Some(Iface::Link(_)) => heard.raw(),
        Some(Iface::Lo) => RawHeaders { link: if skb.is_v6() { &LO_HEADERS[1] } else { &LO_HEADERS[0] }, ip: &[] },
        Some(Iface::Host0) | None => RawHeaders::default(),
    }
}

/// The link's header of what loops back, by family: addresses are zero, as Linux has them.
const LO_HEADERS: [[u8; ethernet::HEADER_LEN]; 2] =
    [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x00], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xdd]];

/// Rules and tracked connections.
#[derive(Debug)]
pub(crate) struct Netfilter {
    /// Tracked connections; shared by all workers.
    pub(crate) conntrack: Arc<Conntrack>,
    /// Whether packets are tracked: rules of the user's, or published ports, ask for it.
    pub(super) tracking: bool,
    /// By family: IPv4, IPv6.
    pub(super) families: [FamilyRules; 2],
    /// What the names in rules stand for.
    pub(super) named: Named,
    /// What the rules said about connections' packets.
    pub(super) verdicts: Verdicts,
    /// Whether rules of long chains are looked up.
    pub(super) look_ups: bool,
    /// Rules look at what packets carry.
    pub(super) reads_payload: bool,
    pub(super) log: Log,
    /// Headers of the packet received last, for the log.
    pub(super) heard: Heard,
    /// Flows to be ended; empty but for its memory.
    pub(super) closed: Vec<Token>,
    /// When the reaper runs next.
    pub(super) reap_at: Deadline,
}

/// The rules of one family.
#[derive(Debug, Default)]
pub(super) struct FamilyRules {
    pub(super) loaded: Option<(Arc<Program>, CounterSet)>,
    /// They are the user's.
    pub(super) given: bool,
    /// Only the other family's rules were given: nothing of this one passes.
    pub(super) closed: bool,
}

/// What LOG rules said, and where traced packets went.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: Bounded<String>,
    traces: Bounded<Event>,
    pub(super) tracing: Tracing,
}

/// What waits to be fetched, in its order, and how much more there was.
#[derive(Debug)]
struct Bounded<T> {
    items: VecDeque<T>,
    lost: u64,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Bounded { items: VecDeque::new(), lost: 0 }
    }
}

impl<T> Bounded<T> {
    fn push(&mut self, item: impl FnOnce() -> T) {
        if self.items.len() < MAX_LOG {
            self.items.push_back(item());
        } else {
            self.lost += 1;
        }
    }

    /// Takes what waits there, as far as there is room.
    fn absorb(&mut self, other: &mut Bounded<T>) {
        let (items, lost) = other.take();
        self.lost += lost;
        items.into_iter().for_each(|item| self.push(|| item));
    }

    fn take(&mut self) -> (Vec<T>, u64) {
        (self.items.drain(..).collect(), core::mem::take(&mut self.lost))
    }
}

/// A step of a traced packet: a rule that it met, before it acted, or the end of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Table.
    pub table: TableName,
    /// Hook.
    pub hook: Hook,
    /// Chain.
    pub chain: String,
    /// Number of the rule, from 1; that of the chain's end is one more than there are rules.
    pub number: usize,
    /// `rule`, `return` or `policy`.
    pub step: &'static str,
    /// The rule as `iptables-save` prints it, or the policy (`-P INPUT DROP`).
    pub rule: String,
    /// The packet as a LOG line shows it.
    pub packet: String,
}

impl core::fmt::Display for Traced {
    /// The kernel's line.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Traced { table, chain, number, step, packet, .. } = self;
        write!(f, "TRACE: {table}:{chain}:{step}:{number} {packet}")
    }
}

impl LogSink for Log {
    fn log(&mut self, entry: &LogEntry<'_>) {
        self.lines.push(|| entry.to_string());
    }

    fn trace(&mut self, e: &TraceEntry<'_>) {
        let traced = || Traced {
            table: e.table,
            hook: e.hook,
            chain: e.chain.to_owned(),
            number: e.number,
            step: e.step.as_str(),
            rule: e.rule(),
            packet: e.packet(),
        };
        self.traces.push(|| Event { packet: self.tracing.packet, what: Step::Rule(traced()) });
    }
}

impl Log {
    pub(super) fn is_empty(&self) -> bool {
        let nothing = |items: usize, lost: u64| items == 0 && lost == 0;
        nothing(self.lines.items.len(), self.lines.lost) && nothing(self.traces.items.len(), self.traces.lost)
    }

    /// Takes what waits: lines, and how many more there would have been.
    pub(super) fn take(&mut self) -> (Vec<String>, u64) {
        self.lines.take()
    }

    /// The same of traces.
    pub(super) fn take_traces(&mut self) -> (Vec<Event>, u64) {
        self.traces.take()
    }

    /// A packet enters, and may be one to be traced.
    fn enters(&mut self, now: Time, skb: &mut Skb<'_>) {
        self.traces.lost += u64::from(self.tracing.enters(now, skb));
    }

    /// Something happened to the packet of this number, which is traced.
    #[cold]
    pub(super) fn step(&mut self, packet: u32, what: Step) {
        self.traces.push(|| Event { packet, what });
    }
}

/// Headers of a received packet, as LOG shows them: the link's, and that of IP without extension headers.
#[derive(Debug)]
pub(super) struct Heard {
    bytes: [u8; ethernet::HEADER_LEN + 15 * 4],
    ip_len: usize,
}

impl Heard {
    fn raw(&self) -> RawHeaders<'_> {
        let (link, ip) = self.bytes.split_at(ethernet::HEADER_LEN);
        RawHeaders { link, ip: &ip[..self.ip_len] }
    }
}

impl Netfilter {
    /// Keeps the headers of a packet that was received.
    pub(crate) fn hear(&mut self, p: &Packet<'_>, to: Mac) {
        let ethertype = if p.ip.src.is_ipv4() { EtherType::Ipv4 } else { EtherType::Ipv6 };
        let (link, ip) = self.heard.bytes.split_at_mut(ethernet::HEADER_LEN);
        ethernet::Header { dst: to, src: p.src_mac, ethertype }.emit(link);
        let n = usize::from(p.ip.header_len).min(p.head.len()).min(ip.len());
        ip[..n].copy_from_slice(&p.head[..n]);
        self.heard.ip_len = n;
    }

    pub(super) fn new(cfg: &Config, rng: &mut Rng) -> Self {
        let key = rng.key();
        Netfilter {
            conntrack: Arc::new(Conntrack::new(cfg.conntrack.clone(), key)),
            verdicts: Verdicts::new(key),
            look_ups: true,
            reads_payload: false,
            tracking: false,
            families: Default::default(),
            named: Named::new(key),
            log: Log::default(),
            heard: Heard { bytes: [0; ethernet::HEADER_LEN + 15 * 4], ip_len: 0 },
            closed: Vec::new(),
            reap_at: Deadline::default(),
        }
    }

    /// Key of the table of connections.
    pub(crate) fn key(&self) -> Key {
        self.conntrack.key()
    }

    /// Puts another table of connections in place of the one that is there.
    pub(crate) fn set_conntrack(&mut self, table: Arc<Conntrack>) {
        self.conntrack = table;
        self.verdicts.clear();
    }

    /// Tracks the connections that another worker does.
    pub(crate) fn share(&mut self, with: &Netfilter) {
        self.conntrack = with.conntrack.clone();
        self.verdicts = Verdicts::new(self.key());
    }

    /// Takes over what another worker's counted, logged and traced.
    pub(crate) fn absorb(&mut self, other: &mut Netfilter) {
        for (mine, theirs) in self.families.iter_mut().zip(&mut other.families) {
            if let (Some((_, mine)), Some((_, theirs))) = (&mut mine.loaded, &mut theirs.loaded) {
                mine.add(theirs);
                theirs.clear();
            }
        }
        self.log.lines.absorb(&mut other.log.lines);
        self.log.traces.absorb(&mut other.log.traces);
    }

    /// The flow is over; the connection ages by its state.
    pub(crate) fn unpin(&self, now: Time, id: ConnId) {
        self.conntrack.unpin(now, id);
    }

    /// A reset is sent in place of a segment of this connection.
    pub(super) fn close(&self, now: Time, id: ConnId) {
        let life = self.conntrack.config().timeouts.tcp.close;
        self.conntrack.modify(id, |conn| {
            if let Proto::Tcp(t) = &mut conn.proto
                && t.state != TcpState::Close
            {
                t.state = TcpState::Close;
                conn.expires = now + life;
            }
        });
    }

    /// When a connection expires, unless a packet renews it.
    pub(crate) fn expires(&self, id: ConnId) -> Option<Time> {
        self.conntrack.get(id).map(|c| c.expires)
    }
}

impl Router {
    /// PREROUTING: raw, tracking, mangle, nat (destination).
    pub(crate) fn pre_routing(&mut self, skb: &mut Skb<'_>, attach: &Attach<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.netfilter.log.enters(self.now, skb);
        let closed = self.netfilter.families[usize::from(skb.is_v6())].closed;
        let asked =
            if closed { Err(Stop::Drop(DropReason::NoRules)) } else { self.ask(TableName::Raw, Hook::PreRouting, skb, bulk) };
        if skb.traced && skb.input != Some(Iface::Host0) {
            self.netfilter.log.tracing.is_received();
        }
        asked?;
        self.track(skb, attach)?;
        self.pass(Stage::PreRouting, skb, bulk)?;
        self.translate(Hook::PreRouting, skb, bulk)
    }

    /// INPUT: mangle, filter, security, nat (source); then the connection is confirmed.
    pub(crate) fn input(&mut self, skb: &mut Skb<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.pass(Stage::Input, skb, bulk)?;
        self.translate(Hook::Input, skb, bulk)?;
        self.confirm(skb)
    }

    /// FORWARD: mangle, filter, security.
    pub(crate) fn forward(&mut self, skb: &mut Skb<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.pass(Stage::Forward, skb, bulk)
    }

    /// OUTPUT: raw, tracking, mangle, nat (destination), filter, security. Sets the interface by the destination, again
    /// after translation.
    pub(crate) fn output(&mut self, skb: &mut Skb<'_>, attach: &Attach<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.netfilter.log.enters(self.now, skb);
        if self.netfilter.families[usize::from(skb.is_v6())].closed {
            return Err(Stop::Drop(DropReason::NoRules));
        }
        skb.output = skb.output.or_else(|| self.addrs().way_to(skb.dst));
        if let (Attach::About(track), true) = (attach, self.netfilter.tracking) {
            skb.track = track.answer();
        }
        self.ask(TableName::Raw, Hook::Output, skb, bulk)?;
        self.track(skb, attach)?;
        self.pass(Stage::OutputMangle, skb, bulk)?;
        self.translate(Hook::Output, skb, bulk)?;
        self.pass(Stage::Output, skb, bulk)?;
        // As Linux: rules of OUTPUT see the interface of before the translation, those of POSTROUTING that of the way it takes.
        skb.output = self.addrs().way_to(skb.dst).or(skb.output);
        Ok(())
    }

    /// The way of a packet of our own that has passed OUTPUT and is for the router itself: as on Linux, out of `lo` and in again. It keeps its mark
    /// and its connection, under which it comes back.
    pub(super) fn loop_back(&mut self, skb: &mut Skb<'_>, attach: &Attach<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.post_routing(skb, bulk)?;
        (skb.input, skb.output, skb.owner) = (skb.output, None, None);
        self.ask(TableName::Raw, Hook::PreRouting, skb, bulk)?;
        self.track(skb, attach)?;
        self.pass(Stage::PreRouting, skb, bulk)?;
        self.translate(Hook::PreRouting, skb, bulk)?;
        self.trace_route(skb, None);
        self.input(skb, bulk)
    }

    /// POSTROUTING: mangle, nat (source); then the connection is confirmed.
    pub(crate) fn post_routing(&mut self, skb: &mut Skb<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.pass(Stage::PostRouting, skb, bulk)?;
        self.translate(Hook::PostRouting, skb, bulk)?;
        self.confirm(skb)
    }

    /// Tables that are asked in a row: as the packets of the connection before it passed them, or one after the other.
    pub(super) fn pass(&mut self, stage: Stage, skb: &mut Skb<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        let Router { cfg, links, host_addrs, rng, netfilter, now, wall, .. } = self;
        let Netfilter { families, verdicts, conntrack, log, heard, .. } = netfilter;
        let Some((program, counters)) = &mut families[usize::from(skb.is_v6())].loaded else { return Ok(()) };
        let known = if skb.traced { Known::Ask } else { verdicts.take(stage, program, skb, conntrack, counters) };
        let place = match known {
            Known::Path(outcome) => return outcome.into(),
            Known::Ask => None,
            Known::Keep(place) => Some(place),
        };
        let mut env = Env {
            now: *now,
            rng,
            ct: conntrack,
            addrs: &super::Addrs { cfg, links, host: host_addrs },
            counters,
            log,
            raw: raw(heard, skb),
            bulk,
            wall: *wall,
        };
        match place {
            Some(place) => verdicts.ask(place, program, skb, &mut env),
            None => stage.run(program, skb, &mut env),
        }
        .into()
    }

    /// One table at one hook.
    fn ask(&mut self, table: TableName, hook: Hook, skb: &mut Skb<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.ask_on(table, hook, skb, bulk, &mut |_, _| true)
    }

    fn ask_on(
        &mut self,
        table: TableName,
        hook: Hook,
        skb: &mut Skb<'_>,
        bulk: &dyn Bulk,
        grants: Grants<'_>,
    ) -> Result<(), Stop> {
        let Router { cfg, links, host_addrs, rng, netfilter, now, wall, .. } = self;
        let family = &mut netfilter.families[usize::from(skb.is_v6())];
        let Some((program, counters)) = family.loaded.as_mut().filter(|(p, _)| p.has(table, hook)) else { return Ok(()) };
        let addrs = Asked::new(super::Addrs { cfg, links, host: host_addrs }, grants);
        let mut env = Env {
            now: *now,
            rng,
            ct: &netfilter.conntrack,
            addrs: &addrs,
            counters,
            log: &mut netfilter.log,
            raw: raw(&netfilter.heard, skb),
            bulk,
            wall: *wall,
        };
        program.run(table, hook, skb, &mut env).into()
    }

    /// Finds the packet's connection.
    fn track(&mut self, skb: &mut Skb<'_>, attach: &Attach<'_>) -> Result<(), Stop> {
        if !self.netfilter.tracking || skb.track != Track::None {
            return Ok(());
        }
        match attach {
            Attach::Invalid => return Ok(()),
            Attach::Flow(id, dir) if self.netfilter.conntrack.track_known(self.now, *id, *dir, skb) => return Ok(()),
            _ => {}
        }
        self.netfilter.conntrack.track(self.now, skb).map_err(Stop::Drop)
    }

    /// Decides how the first packet of a connection is translated, and translates packets of all connections that are.
    fn translate(&mut self, hook: Hook, skb: &mut Skb<'_>, bulk: &dyn Bulk) -> Result<(), Stop> {
        self.translate_on(hook, skb, bulk, &mut |_, _| true)
    }

    pub(super) fn translate_on(
        &mut self,
        hook: Hook,
        skb: &mut Skb<'_>,
        bulk: &dyn Bulk,
        grants: Grants<'_>,
    ) -> Result<(), Stop> {
        if !self.netfilter.tracking {
            return Ok(());
        }
        if nat::asks(skb, hook) {
            self.ask_on(TableName::Nat, hook, skb, bulk, &mut *grants)?;
        }
        let Router { cfg, links, host_addrs, rng, netfilter, now, .. } = self;
        let addrs = Asked::new(super::Addrs { cfg, links, host: host_addrs }, grants);
        let mut nat = Nat { now: *now, rng, table: &*netfilter.conntrack, addrs: &addrs };
        nat::settle(&mut nat, skb, hook).map_err(Stop::Drop)
    }

    /// The packet has passed all hooks: its connection, if it is new, is made known.
    pub(super) fn confirm(&mut self, skb: &mut Skb<'_>) -> Result<(), Stop> {
        if !self.netfilter.tracking {
            return Ok(());
        }
        self.netfilter.conntrack.confirm(self.now, skb).map_err(Stop::Drop)
    }
}

impl Track {
    /// What an answer to a packet has that is sent in its place: an ICMP error, or a reset. That to a packet without a connection
    /// is tracked as any other.
    fn answer(&self) -> Track {
        match *self {
            Track::Fresh { conn, len, .. } => Track::Fresh { conn, related: true, len },
            Track::Known { id, info, status } => {
                let info = match info.dir() {
                    Dir::Original => CtInfo::RelatedReply,
                    Dir::Reply => CtInfo::Related,
                };
                Track::Known { id, info, status }
            }
            Track::None | Track::Untracked => Track::None,
        }
    }

    /// Whether it is a packet against the direction of its connection.
    pub(crate) fn is_reply(&self) -> bool {
        matches!(self, Track::Known { info, .. } if info.dir() == Dir::Reply)
    }

    /// Whether it is a reply within a connection whose source is translated.
    pub(crate) fn is_reply_to_translated(&self) -> bool {
        matches!(self, Track::Known { status, .. } if self.is_reply() && status.has(Status::SRC_NAT))
    }

    /// The connection in the table, and the packet's direction in it.
    pub(crate) fn known(&self) -> Option<(ConnId, Dir)> {
        match self {
            Track::Known { id, info, .. } if !info.is_related() => Some((*id, info.dir())),
            _ => None,
        }
    }
}
