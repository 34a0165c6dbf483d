//! Rules in force: loading them, asking them about live flows, and the reaper of what they track.

use super::netfilter::FamilyRules;
use super::own_rules;
use super::{Addrs, Router, Via};
use crate::admin::Shortcuts;
use crate::conntrack::tcp::TcpTrack;
use crate::conntrack::{Conn, ConnId, Conntrack, CtTuple, Dir, Proto, Status, Track};
use crate::edge::{LinkId, Token, TokenKind};
use crate::ipset::Sets;
use crate::iptables::{
    CounterSet, Env, Family, Hook, Iface, Named, NoBulk, Outcome, Program, RawHeaders, RuleError, Ruleset, TableName,
};
use crate::packet::L4;
use crate::skb::Skb;
use crate::time::Time;
use crate::trace;
use crate::tuple::{Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::icmp::{v4, v6};
use crate::wire::tcp::{self, Flags, Seq};
use crate::wire::udp;
use std::sync::Arc;

const REAPER: Token = Token::new(TokenKind::Conntrack, 0, 0);

impl Router {
    /// Puts the rules that the configuration stands for in force. Tracking is on if they need it.
    pub(crate) fn load_own_rules(&mut self) {
        self.netfilter.tracking = !self.cfg.publish.is_empty();
        [Family::V4, Family::V6].into_iter().for_each(|family| self.load_own_rules_of(family));
    }

    pub(super) fn load_own_rules_of(&mut self, family: Family) {
        let empty = Ruleset { family, tables: Vec::new() };
        // What we write ourselves compiles: `own_rules` tests it for every option.
        if let Ok(program) = self.compile(empty, self.netfilter.tracking) {
            self.replace(family, program);
        }
    }

    /// A ruleset with our own chains.
    pub(crate) fn with_own(&self, rules: Ruleset, tracked: bool) -> Ruleset {
        own_rules::with_own(&self.cfg, rules, tracked)
    }

    /// Checks and compiles a ruleset, our own chains put in.
    pub(crate) fn compile(&self, rules: Ruleset, tracked: bool) -> Result<Arc<Program>, RuleError> {
        self.compile_on(rules, tracked, None)
    }

    /// As [`Router::compile`], for the sets that are to be in force.
    pub(crate) fn compile_on(&self, rules: Ruleset, tracked: bool, on: Option<&Rebuilt>) -> Result<Arc<Program>, RuleError> {
        let named = on.map_or(&self.netfilter.named, |r| &r.named);
        Program::compile_with(&self.with_own(rules, tracked), named).map(Arc::new)
    }

    /// The sets in force.
    pub(crate) fn sets(&self) -> &Sets {
        &self.netfilter.named.sets
    }

    /// Compiles the rules in force, but those of one family, for other sets.
    pub(crate) fn rebuild(&self, sets: &Sets, but: Option<Family>) -> Result<Rebuilt, RuleError> {
        let own = self.netfilter.named.sets.key();
        let named = self.netfilter.named.with_sets(sets.copy(own));
        let mut programs = Vec::new();
        for family in [Family::V4, Family::V6].into_iter().filter(|f| Some(*f) != but) {
            if let Some((old, counters)) = &self.netfilter.families[family as usize].loaded {
                let program = Program::compile_with(&old.ruleset([counters]), &named)?;
                program.recall(&old.memory());
                program.recall_connections(&old.connections());
                programs.push(Arc::new(program));
            }
        }
        Ok(Rebuilt { named, programs })
    }

    /// Puts other sets in force.
    pub(crate) fn install_sets(&mut self, rebuilt: Rebuilt) {
        self.netfilter.named = rebuilt.named;
        rebuilt.programs.into_iter().for_each(|program| self.replace(program.family(), program));
    }

    pub(super) fn replace(&mut self, family: Family, program: Arc<Program>) {
        let rules = &mut self.netfilter.families[family as usize];
        if program.needs_accounting() {
            self.netfilter.conntrack.account();
        }
        let mut counters = CounterSet::new(&program);
        counters.set_look_ups(self.netfilter.look_ups);
        rules.loaded = Some((program, counters));
        let mut programs = self.netfilter.families.iter().filter_map(|f| f.loaded.as_ref());
        self.netfilter.reads_payload = programs.any(|(p, _)| p.reads_payload());
        self.spread_flows();
        let loaded = |f: &FamilyRules| f.loaded.as_ref().is_some_and(|(p, _)| p.has_rules());
        if self.netfilter.families.iter().any(loaded) {
            self.netfilter.verdicts.forget();
        } else {
            self.netfilter.verdicts.clear();
        }
    }

    /// To be called whenever something changes that rules look at besides the packet and its connection: what [`Router::addrs`] says, sets.
    /// What they said before holds no longer.
    pub(crate) fn forget_verdicts(&mut self) {
        self.netfilter.verdicts.forget();
    }

    pub(crate) fn set_shortcuts(&mut self, shortcuts: Shortcuts) {
        self.netfilter.verdicts.set_off(!shortcuts.verdicts);
        self.netfilter.look_ups = shortcuts.look_ups;
        let loaded = self.netfilter.families.iter_mut().filter_map(|f| f.loaded.as_mut());
        loaded.for_each(|(_, counters)| counters.set_look_ups(shortcuts.look_ups));
    }

    pub(crate) fn verdict_bytes(&self) -> usize {
        self.netfilter.verdicts.bytes()
    }

    /// Has the leader's rules in force, and counts anew what was not counted under them.
    pub(crate) fn follow_rules(&mut self, leader: &Router) {
        self.netfilter.look_ups = leader.netfilter.look_ups;
        self.netfilter.tracking = leader.netfilter.tracking;
        self.netfilter.named = leader.netfilter.named.clone();
        for (family, theirs) in [Family::V4, Family::V6].into_iter().zip(&leader.netfilter.families) {
            let mine = &mut self.netfilter.families[family as usize];
            (mine.given, mine.closed) = (theirs.given, theirs.closed);
            let Some((program, _)) = &theirs.loaded else { continue };
            if mine.loaded.as_ref().is_none_or(|(p, _)| !Arc::ptr_eq(p, program)) {
                self.replace(family, program.clone());
            }
        }
    }

    /// Lets packets of a family pass that was dropped for want of rules.
    pub(crate) fn open(&mut self, family: Family) {
        self.netfilter.families[family as usize].closed = false;
    }

    /// Puts a user's rules in force. Returns whether the other family is dropped from now on.
    pub(crate) fn install(&mut self, family: Family, program: Arc<Program>) -> bool {
        self.replace(family, program);
        let [v4, v6] = &mut self.netfilter.families;
        let (this, other) = if family == Family::V4 { (v4, v6) } else { (v6, v4) };
        this.given = true;
        this.closed = false;
        other.closed = !other.given;
        other.closed
    }

    /// Whether rules look at what packets carry.
    pub(crate) const fn reads_payload(&self) -> bool {
        self.netfilter.reads_payload
    }

    /// Whether rules decide which connection packets belong to.
    pub(crate) fn decides_tracking(&self) -> bool {
        self.netfilter.families.iter().any(|f| f.loaded.as_ref().is_some_and(|(p, _)| p.decides_tracking()))
    }

    /// The rules of a family that are in force, compiled.
    pub(crate) fn program(&self, family: Family) -> Option<Arc<Program>> {
        self.netfilter.families[family as usize].loaded.as_ref().map(|(p, _)| p.clone())
    }

    /// The rules in force, with what they counted.
    pub(crate) fn ruleset(&self, family: Family) -> Ruleset {
        let rules = &self.netfilter.families[family as usize];
        match &rules.loaded {
            Some((program, counters)) => program.ruleset([counters]),
            None => Ruleset { family, tables: Vec::new() },
        }
    }

    /// The tracked connections.
    pub(crate) fn conntrack(&self) -> &Arc<Conntrack> {
        &self.netfilter.conntrack
    }

    /// Forgets the connections of the guest behind a link.
    pub(crate) fn forget_connections(&self, link: LinkId) {
        let addrs = self.addrs();
        let of_guest = |c: &Conn| c.tuples.iter().any(|t| [t.src, t.dst].iter().any(|a| addrs.is_behind(link, a.ip(t.v6))));
        self.netfilter.conntrack.remove_if(self.now, of_guest);
    }

    /// Has packets tracked from now on. Whether they were not before.
    pub(crate) fn begin_tracking(&mut self) -> bool {
        !core::mem::replace(&mut self.netfilter.tracking, true)
    }

    /// Flows whose connection is gone. The memory is to be [given back](Router::give_back).
    pub(crate) fn take_closed(&mut self) -> Vec<Token> {
        let mut closed = core::mem::take(&mut self.netfilter.closed);
        self.netfilter.conntrack.take_closed(self.place.me, &mut closed);
        closed
    }

    pub(crate) fn give_back(&mut self, closed: Vec<Token>) {
        self.netfilter.closed = closed;
    }

    /// Whether rules wrote something, or packets were traced.
    pub(crate) fn has_log(&self) -> bool {
        !self.netfilter.log.is_empty()
    }

    /// What LOG rules wrote.
    pub(crate) fn take_log(&mut self) -> (Vec<String>, u64) {
        self.netfilter.log.take()
    }

    /// Where traced packets went.
    pub(crate) fn take_traces(&mut self) -> (Vec<trace::Event>, u64) {
        self.netfilter.log.take_traces()
    }

    /// See [`Stack::set_trace`](crate::Stack::set_trace).
    pub(crate) fn set_trace(&mut self, filter: Option<trace::Filter>) {
        self.netfilter.log.tracing.set(filter);
    }

    /// The packet that entered last is routed.
    pub(crate) fn trace_route(&mut self, skb: &Skb<'_>, to: Option<Iface>) {
        if skb.traced {
            let packet = self.netfilter.log.tracing.packet;
            self.netfilter.log.step(packet, trace::Step::Route(to));
        }
    }

    /// The packet that entered last, one of ours or of the host's, has gone or not.
    pub(crate) fn trace_end(&mut self, skb: &Skb<'_>, end: Result<(), DropReason>) {
        if skb.traced {
            let packet = self.netfilter.log.tracing.packet;
            self.netfilter.log.step(packet, trace::Step::End(end));
        }
    }

    /// The packet that a link brought has gone or not. Others may have entered since.
    pub(crate) fn trace_end_of_received(&mut self, end: Result<(), DropReason>) {
        if let Some(packet) = self.netfilter.log.tracing.take_received() {
            self.netfilter.log.step(packet, trace::Step::End(end));
        }
    }

    /// Whether a live flow's connection could begin under other rules: its first packet, as translated then, is put before the
    /// filter table of `program`. Flows of the other family always may.
    pub(crate) fn may_begin(&mut self, via: &Via, family: Family, program: &Program) -> bool {
        let Some(conn) = via.conn.and_then(|id| self.netfilter.conntrack.get(id)) else { return true };
        if conn.tuples[0].v6 != (family == Family::V6) {
            return true;
        }
        let (orig, reply) = (&conn.tuples[Dir::Original as usize], &conn.tuples[Dir::Reply as usize]);
        let (guest, host) = (Some(Iface::Link(via.link)), via.input);
        let inbound = via.is_from_outside();
        let (input, output) = if inbound { (host, guest) } else { (guest, host) };
        let hook = match (inbound, host) {
            (_, Some(_)) => Hook::Forward,
            (false, None) => Hook::Input,
            (true, None) => Hook::Output,
        };
        let (sport, dport) = (orig.sport, if reply.has_ports() { reply.sport } else { 0 });
        let mut l4_bytes = [0; tcp::HEADER_LEN];
        let l4 = match orig.proto {
            proto::TCP => {
                let h = tcp::Header {
                    src_port: sport,
                    dst_port: dport,
                    seq: Seq(0),
                    ack: Seq(0),
                    header_len: tcp::HEADER_LEN as u8,
                    flags: Flags::SYN,
                    window: 0,
                    checksum: 0,
                    urgent: 0,
                };
                h.emit(&mut l4_bytes);
                L4::Tcp(h, tcp::Options::default())
            }
            proto::UDP => {
                let h = udp::Header { src_port: sport, dst_port: dport, len: udp::HEADER_LEN as u16, checksum: 0 };
                h.emit(&mut l4_bytes);
                L4::Udp(h)
            }
            _ => {
                let (ty, code) = ((orig.dport >> 8) as u8, orig.dport as u8);
                let h = crate::wire::icmp::Header { ty, code, checksum: 0, rest: u32::from(sport) << 16 };
                h.emit(&mut l4_bytes);
                if orig.v6 { L4::Icmpv6(h) } else { L4::Icmp(h) }
            }
        };
        let mut skb = Skb {
            input,
            output,
            src_mac: None,
            src: orig.src_ip(),
            dst: reply.src_ip(),
            protocol: orig.proto,
            sport,
            dport,
            l4,
            l4_bytes: &l4_bytes,
            l4_len: l4_bytes.len() as u32,
            len: l4_bytes.len() as u32 + 20,
            tos: 0,
            hop_limit: 64,
            mark: 0,
            zones: [0; 2],
            track: Track::Fresh { conn, related: false, len: 0 },
            quoted: None,
            owner: None,
            cast: Default::default(),
            ip_bytes: &[],
            body: crate::edge::Payload::EMPTY,
            traced: false,
            altered: Default::default(),
        };
        let Router { cfg, links, host_addrs, rng, netfilter, now, wall, .. } = self;
        let addrs = Addrs { cfg, links, host: host_addrs };
        // A question, not a packet: it counts nowhere and is not logged.
        let mut counters = CounterSet::new(program);
        let mut env = Env {
            now: *now,
            rng,
            ct: &netfilter.conntrack,
            addrs: &addrs,
            counters: &mut counters,
            log: &mut Unheard,
            raw: RawHeaders::default(),
            bulk: &NoBulk,
            wall: *wall,
        };
        program.run(TableName::Filter, hook, &mut skb, &mut env) == Outcome::Accept
    }

    /// Sees to it that the reaper of tracked connections is called when it is due.
    pub(crate) fn schedule_reaper(&mut self) {
        let due = self.netfilter.conntrack.reap_due().unwrap_or(Time::NEVER);
        if self.netfilter.reap_at.due() == due {
            return;
        }
        if due == Time::NEVER {
            self.timers.cancel(&mut self.netfilter.reap_at);
        } else {
            self.timers.set(&mut self.netfilter.reap_at, REAPER, due);
        }
    }

    /// The reaper's deadline.
    pub(crate) fn reap(&mut self, token: Token, queued: Time) {
        let now = self.now;
        if self.timers.fired(&mut self.netfilter.reap_at, token, queued, now) {
            self.netfilter.conntrack.reap(now);
        }
    }

    /// The tracked connection of a flow that is older than tracking: as one picked up in its middle, since nobody knows its
    /// sequence numbers. `tuple` is that of the guest's packets.
    pub(crate) fn adopt(&mut self, tuple: &Tuple, via: &Via) -> Option<(ConnId, Dir)> {
        let guest_first = !via.is_from_outside();
        let (first, back) = if guest_first { (*tuple, tuple.reversed()) } else { (tuple.reversed(), *tuple) };
        let echo = echo_types(tuple);
        let entry = |t: &Tuple, code: u8| CtTuple {
            src: t.src.addr.into(),
            dst: t.dst.addr.into(),
            sport: if echo.is_some() { tuple.src.port } else { t.src.port },
            dport: if echo.is_some() { u16::from(code) << 8 } else { t.dst.port },
            zone: 0,
            proto: t.proto,
            v6: t.src.addr.is_ipv6(),
        };
        let (request, reply) = echo.unwrap_or_default();
        let mut status = Status::SEEN_REPLY;
        let cfg = self.netfilter.conntrack.config();
        let (proto, life) = match tuple.proto {
            proto::TCP => {
                status.set(Status::ASSURED);
                (Proto::Tcp(TcpTrack::picked_up()), cfg.timeouts.tcp.established)
            }
            proto::UDP => (Proto::Udp { stream_after: self.now }, cfg.timeouts.udp),
            proto::ICMP => (Proto::Icmp, cfg.timeouts.icmp),
            _ => (Proto::Icmp, cfg.timeouts.icmpv6),
        };
        status.set(Status::SRC_NAT_DONE);
        status.set(Status::DST_NAT_DONE);
        let tuples = [entry(&first, request), entry(&back, reply)];
        let conn = Conn { tuples, status, mark: 0, expires: self.now + life, proto, flow: None };
        let track = self.netfilter.conntrack.adopt(self.now, conn).ok()?;
        track.known().map(|(id, _)| (id, if guest_first { Dir::Reply } else { Dir::Original }))
    }
}

/// Types of the request and the reply, if the tuple is that of an echo.
fn echo_types(t: &Tuple) -> Option<(u8, u8)> {
    match t.proto {
        proto::ICMP => Some((v4::ECHO_REQUEST, v4::ECHO_REPLY)),
        proto::ICMPV6 => Some((v6::ECHO_REQUEST, v6::ECHO_REPLY)),
        _ => None,
    }
}

/// Other sets, and the rules in force compiled for them.
pub(crate) struct Rebuilt {
    named: Named,
    programs: Vec<Arc<Program>>,
}

/// A log that nobody reads.
struct Unheard;

impl crate::iptables::LogSink for Unheard {
    fn log(&mut self, _entry: &crate::iptables::LogEntry<'_>) {}
}
