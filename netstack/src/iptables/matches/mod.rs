//! Match extensions, compiled: what each tests is what Linux's extension of that name tests.

mod addr;
mod bytes;
mod connbytes;
mod connlimit;
pub(super) mod conntrack;
mod content;
mod extension;
mod fields;
mod hashlimit;
mod limit;
mod meta;
mod recent;
mod sctp;
mod set;
mod statistic;
mod time;
pub(super) mod transport;

pub(super) use connlimit::Connlimit;
use hashlimit::Hashlimit;
pub(super) use limit::{Limit, LimitError};
pub(super) use recent::Recent;
pub(super) use set::{InSet, set_of};

use super::check::RuleFault;
use super::connlimit::Counted;
use super::head::Head;
use super::holds::Holds;
use super::ifaces::IfaceSet;
use super::lookup::Wanted;
use super::named::Named;
use super::program::Tail;
use super::trail::Witness;
use super::{
    ConnbytesMatch, CtMatch, ExtMatch, Family, FieldMatch, IcmpType, Inv, Match, Net, PortRange, Ports, RateUnit, RpFilter,
    SctpMatch, Statistic, TimeMatch, U32Test,
};
use crate::conntrack::Conn;
use crate::iptables::Env;
use crate::iptables::eval::conn_of;
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::proto;
use crate::wire::Mac;
use content::Search;
use core::net::IpAddr;
use statistic::Nth;

/// One test of a rule, behind its header test.
#[derive(Debug)]
pub(super) enum Op {
    /// Inverted `-s` or `-d`.
    Net {
        dst: bool,
        net: Box<Inv<Net>>,
    },
    /// `-i` or `-o` that tells more interfaces apart than header tests can.
    Iface {
        output: bool,
        set: Box<IfaceSet>,
    },
    /// `-p` that tells more protocols apart than header tests can.
    Proto(Inv<u8>),
    /// Ports that are no header test.
    Port {
        dst: bool,
        ports: Inv<PortRange>,
    },
    TcpFlags(Inv<(u8, u8)>),
    TcpOption(Inv<u8>),
    Icmp(Inv<IcmpType>),
    /// Ports from `first` on, as many as `len`, of those of all rules.
    Multiport {
        which: Ports,
        first: u32,
        len: u8,
        not: bool,
    },
    State(Inv<u16>),
    Conntrack(Box<CtMatch>),
    Mark(Inv<(u32, u32)>),
    Connmark(Inv<(u32, u32)>),
    Addrtype(Box<Addrtype>),
    Limit(Box<Limit>),
    Random(Inv<u32>),
    Nth(Nth),
    Mac(Inv<Mac>),
    Range {
        dst: bool,
        range: Box<Inv<(IpAddr, IpAddr)>>,
    },
    Owner(Box<Owner>),
    Field(FieldMatch),
    Sctp(Box<SctpMatch>),
    Time(Box<TimeMatch>),
    Rpfilter(RpFilter),
    Search(Box<Search>),
    U32(Box<Inv<Vec<U32Test>>>),
    Extension(Box<ExtMatch>),
    Set(Box<InSet>),
    Recent(Box<Recent>),
    Connbytes(Box<ConnbytesMatch>),
    Connlimit(Box<Connlimit>),
    Hashlimit(Hashlimit),
}

/// The tests of all rules.
#[derive(Debug, Default)]
pub(super) struct Ops {
    pub(super) list: Vec<Op>,
    /// Ports of `multiport`.
    ports: Vec<PortRange>,
}

/// `addrtype`.
#[derive(Debug)]
pub(super) struct Addrtype {
    src: Option<Inv<u16>>,
    dst: Option<Inv<u16>>,
    limit_in: bool,
    limit_out: bool,
}

/// `owner`.
#[derive(Debug)]
pub(super) struct Owner {
    uid: Option<Inv<(u32, u32)>>,
    gid: Option<Inv<(u32, u32)>>,
    socket: Option<bool>,
}

/// What a test says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// The packet cannot be tested at all, and is dropped (Linux's "hotdrop").
    Broken,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Answer::Yes } else { Answer::No }
    }
}

/// What is remembered of a packet while it is in one table.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// Its connection, looked up when a rule first asks.
    conn: Option<Option<Conn>>,
    /// A CT rule said how to track it.
    pub(super) template: bool,
}

impl Memo {
    /// Forgets the connection: something changed it.
    pub(super) fn forget_conn(&mut self) {
        self.conn = None;
    }

    pub(super) fn conn(&mut self, skb: &Skb<'_>, env: &Env<'_>) -> Option<&Conn> {
        self.conn.get_or_insert_with(|| conn_of(skb, env)).as_ref()
    }
}

impl Ops {
    /// What a match means as tests, behind those that are there. What can be a header test becomes part of it, if it `may_fold`.
    pub(super) fn compile<const N: usize>(
        &mut self,
        m: &Match,
        family: Family,
        head: &mut Head<N>,
        may_fold: bool,
        named: &Named,
    ) -> Result<(), RuleFault> {
        match m {
            Match::Tcp { sport, dport, flags, option } => {
                self.ports_of(sport, dport, head, may_fold);
                if let Some(f) = flags.filter(|f| !(may_fold && head.tcp_flags(f))) {
                    self.list.push(Op::TcpFlags(f));
                }
                self.list.extend(option.filter(|o| o.value != 0).map(Op::TcpOption));
            }
            Match::Udp { sport, dport } => self.ports_of(sport, dport, head, may_fold),
            Match::Icmp(None) | Match::Comment(_) => {}
            Match::Icmp(Some(ty)) => {
                let any = family == Family::V4 && ty.value.ty == 255;
                match (any, ty.not) {
                    (true, true) => head.never(),
                    (true, false) => {}
                    (false, _) if may_fold && head.icmp(ty) => {}
                    (false, _) => self.list.push(Op::Icmp(*ty)),
                }
            }
            Match::Conntrack(c) if may_fold && head.conntrack(c) => {}
            Match::Conntrack(c) => self.list.push(Op::Conntrack(c.clone())),
            Match::State(s) if may_fold && head.state(s) => {}
            Match::State(s) => self.list.push(Op::State(*s)),
            Match::Multiport { which, ports } => {
                let first = self.ports.len() as u32;
                self.ports.extend(&ports.value);
                self.list.push(Op::Multiport { which: *which, first, len: ports.value.len() as u8, not: ports.not });
            }
            Match::Mark(m) if may_fold && head.mark(m) => {}
            Match::Mark(m) => self.list.push(Op::Mark(*m)),
            Match::Connmark(m) => self.list.push(Op::Connmark(*m)),
            Match::Addrtype { src, dst, limit_in, limit_out } => {
                let all = Addrtype { src: *src, dst: *dst, limit_in: *limit_in, limit_out: *limit_out };
                self.list.push(Op::Addrtype(Box::new(all)));
            }
            Match::Limit { rate, unit, burst } => self.list.push(Op::Limit(Box::new(Limit::new(*rate, *unit, *burst)?))),
            Match::Statistic(Statistic::Random(p)) => self.list.push(Op::Random(*p)),
            Match::Statistic(Statistic::Nth { every, packet, not }) => self.list.push(Op::Nth(Nth::new(*every, *packet, *not))),
            Match::Mac(m) => self.list.push(Op::Mac(*m)),
            Match::Iprange { src, dst } => {
                for (dst, range) in [(false, src), (true, dst)] {
                    self.list.extend(range.map(|range| Op::Range { dst, range: Box::new(range) }));
                }
            }
            Match::Owner { uid, gid, socket } => {
                self.list.push(Op::Owner(Box::new(Owner { uid: *uid, gid: *gid, socket: *socket })));
            }
            Match::Field(m) => self.list.push(Op::Field(*m)),
            Match::Sctp(m) => self.list.push(Op::Sctp(m.clone())),
            Match::Time(m) => self.list.push(Op::Time(m.clone())),
            Match::Rpfilter(m) => self.list.push(Op::Rpfilter(*m)),
            Match::String(m) => self.list.push(Op::Search(Box::new(Search::new(m)))),
            Match::U32(m) => self.list.push(Op::U32(Box::new(m.clone()))),
            Match::Extension(m) => self.list.push(Op::Extension(m.clone())),
            Match::Set(m) => self.list.push(Op::Set(Box::new(InSet::new(m, family, named)?))),
            Match::Recent(m) => self.list.push(Op::Recent(Box::new(Recent::new(m, named)))),
            Match::Connbytes(m) => self.list.push(Op::Connbytes(Box::new(*m))),
            Match::Connlimit(m) => self.list.push(Op::Connlimit(Box::new(Connlimit::new(m, named)))),
            Match::Hashlimit(m) => self.list.push(Op::Hashlimit(Hashlimit::new(m, family, named)?)),
        }
        Ok(())
    }

    fn ports_of<const N: usize>(
        &mut self,
        src: &Option<Inv<PortRange>>,
        dst: &Option<Inv<PortRange>>,
        head: &mut Head<N>,
        may_fold: bool,
    ) {
        for (dst, ports) in [(false, src), (true, dst)] {
            if let Some(ports) = ports.filter(|p| !(may_fold && head.port(dst, p))) {
                self.list.push(Op::Port { dst, ports });
            }
        }
    }

    /// What the tests from `from` on, which are those of one rule for a protocol, ask of addresses and ports besides its header test.
    pub(super) fn want(&self, from: usize, proto: Option<Inv<u8>>, wanted: &mut Wanted) {
        let bits = |a: IpAddr| match a {
            IpAddr::V4(a) => u128::from(a.to_bits()),
            IpAddr::V6(a) => a.to_bits(),
        };
        let has_ports = has_ports(proto);
        for op in self.list.get(from..).unwrap_or_default() {
            match op {
                Op::Range { dst, range } if !range.not => {
                    let (first, last) = range.value;
                    wanted.want(usize::from(*dst), [(bits(first), bits(last))].into_iter());
                }
                Op::Multiport { which: which @ (Ports::Source | Ports::Destination), first, len, not: false } if has_ports => {
                    let ports = self.ports.get(*first as usize..).unwrap_or_default().iter().take(usize::from(*len));
                    let side = if *which == Ports::Source { 2 } else { 3 };
                    wanted.want(side, ports.map(|&(first, last)| (first.into(), last.into())));
                }
                Op::Net { .. } | Op::Iface { .. } | Op::Proto(_) | Op::Port { .. } | Op::Range { .. } => {}
                Op::TcpFlags(_) | Op::State(_) | Op::Conntrack(_) | Op::Mark(_) | Op::Connmark(_) => {}
                // It may drop the packet or change something, whatever tests behind it say; or nobody said that it does not.
                _ => return,
            }
        }
    }

    /// Asks the tests of a rule in their order.
    #[inline(always)]
    pub(super) fn ask(
        &self,
        tail: &Tail,
        skb: &Skb<'_>,
        env: &mut Env<'_>,
        memo: &mut Memo,
        witness: &mut impl Witness,
    ) -> Answer {
        let from = tail.matches as usize;
        for op in self.list.get(from..from + usize::from(tail.match_count)).unwrap_or_default() {
            witness.relied_on(op.holds());
            match self.ask_one(op, skb, env, memo) {
                Answer::Yes => {}
                other => return other,
            }
        }
        Answer::Yes
    }

    /// Not in line: the loop around it would load whatever any test looks at, for each rule.
    #[inline(never)]
    fn ask_one(&self, op: &Op, skb: &Skb<'_>, env: &mut Env<'_>, memo: &mut Memo) -> Answer {
        match op {
            Op::Net { dst, net } => addr::net(net, if *dst { skb.dst } else { skb.src }).into(),
            Op::Iface { output, set } => set.has(if *output { skb.output } else { skb.input }).into(),
            Op::Proto(p) => ((p.value == skb.protocol) != p.not).into(),
            Op::Port { dst, ports } => transport::port(ports, if *dst { skb.dport } else { skb.sport }).into(),
            Op::TcpFlags(f) => transport::tcp_flags(f, skb).into(),
            Op::TcpOption(o) => transport::tcp_option(o, skb),
            Op::Icmp(ty) => transport::icmp(ty, skb),
            Op::Multiport { which, first, len, not } => {
                let first = *first as usize;
                let ports = self.ports.get(first..first + usize::from(*len)).unwrap_or_default();
                transport::multiport(*which, ports, *not, skb)
            }
            Op::State(s) => ((s.value & conntrack::state_bits(&skb.track) != 0) != s.not).into(),
            Op::Conntrack(c) => conntrack::conntrack(c, skb, env, memo).into(),
            Op::Mark(m) => meta::mark(m, skb.mark).into(),
            Op::Connmark(m) => memo.conn(skb, env).is_some_and(|c| meta::mark(m, c.mark)).into(),
            Op::Addrtype(t) => {
                let on = if t.limit_in {
                    skb.input
                } else if t.limit_out {
                    skb.output
                } else {
                    None
                };
                let fits = |t: &Option<Inv<u16>>, a| t.is_none_or(|t| addr::addrtype(t.value, a, on, env.addrs) != t.not);
                (fits(&t.src, skb.src) && fits(&t.dst, skb.dst)).into()
            }
            Op::Limit(l) => l.take(env.now).into(),
            Op::Random(p) => statistic::random(p, env.rng).into(),
            Op::Nth(n) => n.take().into(),
            Op::Mac(m) => skb.src_mac.is_some_and(|mac| (mac == m.value) != m.not).into(),
            Op::Range { dst, range } => addr::range(range, if *dst { skb.dst } else { skb.src }).into(),
            Op::Owner(o) => meta::owner(&o.uid, &o.gid, o.socket, skb.owner).into(),
            Op::Field(m) => fields::field(m, skb),
            Op::Sctp(m) => sctp::sctp(m, skb, env.bulk),
            Op::Time(m) => env.wall.is_some_and(|wall| time::time(m, (wall + env.now.since(Time::ZERO)).as_secs())).into(),
            Op::Rpfilter(m) => addr::rpfilter(m, skb, env.addrs).into(),
            Op::Search(s) => s.fits(skb, env.bulk).into(),
            Op::U32(m) => content::u32(m, skb, env.bulk).into(),
            Op::Extension(m) => extension::extension(m, skb),
            Op::Set(s) => s.has(skb, env.now).into(),
            Op::Recent(r) => r.ask(skb, env.now).into(),
            Op::Connbytes(m) => connbytes::connbytes(m, skb, env.ct).into(),
            Op::Connlimit(l) => l.ask(skb, env),
            Op::Hashlimit(l) => l.ask(skb, env.now),
        }
    }
}

/// Whether a rule is for a protocol whose ports every packet has.
fn has_ports(proto: Option<Inv<u8>>) -> bool {
    proto.is_some_and(|p| !p.not && matches!(p.value, proto::TCP | proto::UDP))
}

impl Op {
    /// Whether asking changes something, so that it matters which tests were asked before.
    pub(super) const fn is_stateful(&self) -> bool {
        matches!(
            self,
            Op::Limit(_) | Op::Random(_) | Op::Nth(_) | Op::Set(_) | Op::Recent(_) | Op::Connlimit(_) | Op::Hashlimit(_)
        )
    }

    /// Whether it looks behind the headers that a packet was parsed from.
    pub(super) const fn reads_payload(&self) -> bool {
        matches!(self, Op::Sctp(_) | Op::Search(_) | Op::U32(_))
    }

    /// Whether there are packets that asking drops, in a rule for this protocol: malformed ones.
    pub(super) fn may_drop(&self, proto: Option<Inv<u8>>) -> bool {
        match self {
            Op::TcpOption(_) | Op::Icmp(_) | Op::Field(_) | Op::Sctp(_) | Op::Extension(_) => true,
            Op::Multiport { .. } => !has_ports(proto),
            _ => false,
        }
    }

    /// What it asks of TCP flags: bits that are looked at, and what they must be, or must not.
    pub(super) const fn asked_flags(&self) -> Option<(u8, u8)> {
        match self {
            Op::TcpFlags(f) => Some(f.value),
            _ => None,
        }
    }

    /// For which packets its answer holds. Tests that header tests take over look at nothing but what [`Holds::Connection`] lists.
    pub(super) fn holds(&self) -> Holds {
        match self {
            Op::Net { .. } | Op::Iface { .. } | Op::Proto(_) | Op::Port { .. } | Op::Range { .. } => Holds::Connection,
            Op::TcpFlags(_) | Op::Icmp(_) | Op::Multiport { .. } => Holds::Connection,
            Op::State(_) | Op::Mark(_) | Op::Addrtype(_) | Op::Owner(_) => Holds::Connection,
            // Time runs.
            Op::Conntrack(c) if c.expire.is_some() => Holds::Packet,
            Op::Conntrack(_) => Holds::Connection,
            Op::Mac(_) => Holds::Mac,
            Op::Connmark(_) => Holds::ConnMark,
            Op::TcpOption(_) | Op::Field(_) | Op::Extension(_) | Op::Rpfilter(_) => Holds::Packet,
            Op::Sctp(_) | Op::Search(_) | Op::U32(_) | Op::Time(_) => Holds::Packet,
            Op::Limit(_) | Op::Random(_) | Op::Nth(_) | Op::Recent(_) => Holds::Packet,
            Op::Connbytes(_) | Op::Connlimit(_) | Op::Hashlimit(_) => Holds::Packet,
            Op::Set(s) => s.holds(),
        }
    }

    /// The connections that it counts, if it does.
    pub(super) fn counted(&self) -> Option<&Counted> {
        match self {
            Op::Connlimit(l) => Some(&l.counted),
            _ => None,
        }
    }

    /// What it remembers of earlier packets, if it is a test that does.
    pub(super) fn memory(&self) -> Option<u64> {
        match self {
            Op::Limit(l) => Some(l.memory()),
            Op::Nth(n) => Some(n.memory()),
            _ => None,
        }
    }

    /// Goes on from [`Op::memory`].
    pub(super) fn recall(&self, word: u64) {
        match self {
            Op::Limit(l) => l.recall(word),
            Op::Nth(n) => n.recall(word),
            _ => {}
        }
    }
}

/// Seconds of a unit.
const fn seconds(unit: RateUnit) -> u32 {
    match unit {
        RateUnit::Second => 1,
        RateUnit::Minute => 60,
        RateUnit::Hour => 3_600,
        RateUnit::Day => 86_400,
    }
}
