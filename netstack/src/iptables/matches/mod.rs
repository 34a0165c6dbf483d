//! Match extensions, compiled: what each tests is what Linux's extension of that name tests.

mod addr;
pub(super) mod conntrack;
mod limit;
mod meta;
mod statistic;
mod transport;

pub(super) use limit::{Limit, LimitError};
pub(super) use transport::PortSet;

use super::ifaces::IfaceSet;
use super::{CtMatch, Family, IcmpType, Inv, Match, Net, Ports, RateUnit, Statistic};
use crate::conntrack::Conn;
use crate::iptables::Env;
use crate::iptables::eval::conn_of;
use crate::skb::Skb;
use crate::wire::Mac;
use core::net::IpAddr;
use statistic::Nth;
/// One test of a rule, behind its header test.
#[derive(Debug)]
pub(super) enum Op {
    /// `-s` or `-d` whose mask is no prefix (IPv6).
    Net {
        dst: bool,
        net: Inv<Net>,
    },
    /// `-i` or `-o` that tells more interfaces apart than header tests can.
    Iface {
        output: bool,
        set: IfaceSet,
    },
    /// Ports of a second `tcp` or `udp`.
    Port {
        dst: bool,
        ports: Inv<(u16, u16)>,
    },
    TcpFlags(Inv<(u8, u8)>),
    TcpOption(Inv<u8>),
    Icmp {
        ty: Inv<IcmpType>,
        any: bool,
    },
    Multiport {
        which: Ports,
        ports: Inv<PortSet>,
    },
    /// States that a header test cannot decide: the virtual ones.
    State(Inv<u16>),
    Conntrack(Box<CtMatch>),
    Mark(Inv<(u32, u32)>),
    Connmark(Inv<(u32, u32)>),
    Addrtype {
        src: Option<Inv<u16>>,
        dst: Option<Inv<u16>>,
        limit_in: bool,
        limit_out: bool,
        v6: bool,
    },
    Limit(Limit),
    Random(Inv<u32>),
    Nth(Nth),
    Mac(Inv<Mac>),
    Range {
        dst: bool,
        range: Inv<(IpAddr, IpAddr)>,
    },
    Owner {
        uid: Option<Inv<(u32, u32)>>,
        gid: Option<Inv<(u32, u32)>>,
        socket: Option<bool>,
    },
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

impl Op {
    /// What a match means as tests. [`Limit`] is checked to be possible before.
    pub(super) fn compile(m: &Match, family: Family, ops: &mut Vec<Op>) -> Result<(), LimitError> {
        match m {
            Match::Tcp { sport, dport, flags, option } => {
                ops.extend(Op::port(false, sport).into_iter().chain(Op::port(true, dport)));
                ops.extend(flags.map(Op::TcpFlags));
                ops.extend(option.filter(|o| o.value != 0).map(Op::TcpOption));
            }
            Match::Udp { sport, dport } => ops.extend(Op::port(false, sport).into_iter().chain(Op::port(true, dport))),
            Match::Icmp(None) | Match::Comment(_) => {}
            Match::Icmp(Some(ty)) => ops.push(Op::Icmp { ty: *ty, any: family == Family::V4 && ty.value.ty == 255 }),
            Match::Conntrack(c) => ops.push(Op::Conntrack(c.clone())),
            Match::State(s) => ops.push(Op::State(*s)),
            Match::Multiport { which, ports } => {
                ops.push(Op::Multiport { which: *which, ports: Inv { not: ports.not, value: PortSet::new(&ports.value) } });
            }
            Match::Mark(m) => ops.push(Op::Mark(*m)),
            Match::Connmark(m) => ops.push(Op::Connmark(*m)),
            Match::Addrtype { src, dst, limit_in, limit_out } => ops.push(Op::Addrtype {
                src: *src,
                dst: *dst,
                limit_in: *limit_in,
                limit_out: *limit_out,
                v6: family == Family::V6,
            }),
            Match::Limit { rate, unit, burst } => ops.push(Op::Limit(Limit::new(*rate, *unit, *burst)?)),
            Match::Statistic(Statistic::Random(p)) => ops.push(Op::Random(*p)),
            Match::Statistic(Statistic::Nth { every, packet, not }) => ops.push(Op::Nth(Nth::new(*every, *packet, *not))),
            Match::Mac(m) => ops.push(Op::Mac(*m)),
            Match::Iprange { src, dst } => {
                ops.extend(src.map(|range| Op::Range { dst: false, range }));
                ops.extend(dst.map(|range| Op::Range { dst: true, range }));
            }
            Match::Owner { uid, gid, socket } => ops.push(Op::Owner { uid: *uid, gid: *gid, socket: *socket }),
        }
        Ok(())
    }

    fn port(dst: bool, ports: &Option<Inv<(u16, u16)>>) -> Option<Op> {
        ports.map(|ports| Op::Port { dst, ports })
    }

    /// Whether asking changes something, so that it matters which tests were asked before.
    pub(super) const fn is_stateful(&self) -> bool {
        matches!(self, Op::Limit(_) | Op::Random(_) | Op::Nth(_))
    }

    /// Asks.
    pub(super) fn ask(&self, skb: &Skb<'_>, env: &mut Env<'_>, memo: &mut Memo) -> Answer {
        match self {
            Op::Net { dst, net } => addr::net(net, if *dst { skb.dst } else { skb.src }).into(),
            Op::Iface { output, set } => set.has(if *output { skb.output } else { skb.input }).into(),
            Op::Port { dst, ports } => transport::port(ports, if *dst { skb.dport } else { skb.sport }).into(),
            Op::TcpFlags(f) => transport::tcp_flags(f, skb).into(),
            Op::TcpOption(o) => transport::tcp_option(o, skb).into(),
            Op::Icmp { ty, any } => transport::icmp(ty, *any, skb),
            Op::Multiport { which, ports } => transport::multiport(*which, ports, skb),
            Op::State(s) => (s.value & conntrack::state_bits(&skb.track) != 0).ne(&s.not).into(),
            Op::Conntrack(c) => conntrack::conntrack(c, skb, env, memo).into(),
            Op::Mark(m) => meta::mark(m, skb.mark).into(),
            Op::Connmark(m) => memo.conn(skb, env).is_some_and(|c| meta::mark(m, c.mark)).into(),
            Op::Addrtype { src, dst, limit_in, limit_out, v6 } => {
                let on = if *limit_in {
                    skb.input
                } else if *limit_out {
                    skb.output
                } else {
                    None
                };
                let fits = |t: &Option<Inv<u16>>, a| t.is_none_or(|t| addr::addrtype(t.value, a, on, *v6, env.addrs) != t.not);
                (fits(src, skb.src) && fits(dst, skb.dst)).into()
            }
            Op::Limit(l) => l.take(env.now).into(),
            Op::Random(p) => statistic::random(p, env.rng).into(),
            Op::Nth(n) => n.take().into(),
            Op::Mac(m) => skb.src_mac.is_some_and(|mac| (mac == m.value) != m.not).into(),
            Op::Range { dst, range } => addr::range(range, if *dst { skb.dst } else { skb.src }).into(),
            Op::Owner { uid, gid, socket } => meta::owner(uid, gid, *socket, skb.owner).into(),
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
