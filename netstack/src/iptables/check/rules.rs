//! What single rules may test and do, and where: what iptables and the kernel's extensions refuse.

mod count;
mod packet;

use super::RuleFault;
use crate::iptables::matches::Limit;
use crate::iptables::{Family, Hook, Inv, Match, Net, RejectWith, Rule, Statistic, TableName, Target, log_flags};
use crate::nat::{AddrType, NatRange};
use crate::tuple::proto;
use core::net::IpAddr;

const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// Where a rule stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) family: Family,
    pub(super) table: TableName,
    /// The hook whose built-in chain it is in.
    pub(super) own: Option<Hook>,
    /// Hooks from which it is reached, as bits.
    pub(super) from: u8,
}

impl Place {
    /// The first hook from which the rule is reached, outside of `allowed`.
    fn outside(&self, allowed: &[Hook]) -> Option<&'static str> {
        Hook::ALL.iter().find(|h| self.from & 1 << **h as u8 != 0 && !allowed.contains(h)).map(|h| h.chain())
    }

    fn is_v6(&self) -> bool {
        self.family == Family::V6
    }

    fn addr(&self, a: IpAddr) -> Result<(), RuleFault> {
        if a.is_ipv6() == self.is_v6() { Ok(()) } else { Err(RuleFault::Family(self.family)) }
    }

    fn net(&self, n: &Net) -> Result<(), RuleFault> {
        self.addr(n.addr)?;
        self.addr(n.mask)
    }

    fn nets<'a>(&self, nets: impl IntoIterator<Item = &'a Option<Inv<Net>>>) -> Result<(), RuleFault> {
        nets.into_iter().flatten().try_for_each(|n| self.net(&n.value))
    }
}

/// Checks one rule.
pub(super) fn check(rule: &Rule, place: &Place) -> Result<(), RuleFault> {
    place.nets([&rule.src, &rule.dst])?;
    if rule.fragment.is_some() && place.is_v6() {
        return Err(RuleFault::Fragment6);
    }
    // As iptables: in built-in chains only. In a user's chain such a rule just does not fit.
    match place.own {
        Some(h @ (Hook::Output | Hook::PostRouting)) if rule.input.is_some() => return Err(RuleFault::InputThere(h.chain())),
        Some(h @ (Hook::PreRouting | Hook::Input)) if rule.output.is_some() => return Err(RuleFault::OutputThere(h.chain())),
        _ => {}
    }
    rule.matches.iter().try_for_each(|m| check_match(m, rule, place))?;
    check_target(rule, place)
}

/// The protocol that `-p` asks for, not inverted.
fn proto_of(rule: &Rule) -> Option<u8> {
    rule.proto.filter(|p| !p.not).map(|p| p.value)
}

/// A match that is of one protocol.
fn needs(rule: &Rule, name: &'static str, number: u8, option: &'static str) -> Result<(), RuleFault> {
    if proto_of(rule) == Some(number) { Ok(()) } else { Err(RuleFault::MatchProto(name, option)) }
}

/// A match that is possible at some hooks.
fn hooks(place: &Place, name: &'static str, hooks: &'static [Hook]) -> Result<(), RuleFault> {
    match place.outside(hooks) {
        Some(from) => Err(RuleFault::MatchHook { name, hooks, from }),
        None => Ok(()),
    }
}

fn check_match(m: &Match, rule: &Rule, place: &Place) -> Result<(), RuleFault> {
    let needs = |name, number, option| needs(rule, name, number, option);
    let hooks = |name, at| hooks(place, name, at);
    match m {
        Match::Tcp { .. } => needs("tcp", proto::TCP, "-p tcp"),
        Match::Udp { .. } => needs("udp", proto::UDP, "-p udp"),
        Match::Icmp(_) if place.is_v6() => needs("icmp6", proto::ICMPV6, "-p ipv6-icmp"),
        Match::Icmp(_) => needs("icmp", proto::ICMP, "-p icmp"),
        Match::Conntrack(c) => place.nets([&c.orig_src, &c.orig_dst, &c.repl_src, &c.repl_dst]),
        Match::State(_) | Match::Comment(_) | Match::Mark(_) | Match::Connmark(_) => Ok(()),
        Match::Multiport { ports, .. } => {
            let known = [proto::TCP, proto::UDP, UDP_LITE, SCTP, DCCP];
            if !proto_of(rule).is_some_and(|p| known.contains(&p)) {
                return Err(RuleFault::MatchProto("multiport", "-p tcp, udp, udplite, sctp or dccp"));
            }
            let places: usize = ports.value.iter().map(|(first, last)| if first == last { 1 } else { 2 }).sum();
            value((1..=15).contains(&places), "multiport", "1 to 15 ports, a range counts as two: use several rules")
        }
        Match::Addrtype { src, dst, limit_in, limit_out } => {
            if *limit_out {
                hooks("addrtype --limit-iface-out", &[Hook::Forward, Hook::Output, Hook::PostRouting])?;
            }
            if *limit_in {
                hooks("addrtype --limit-iface-in", &[Hook::PreRouting, Hook::Input, Hook::Forward])?;
            }
            value(!(*limit_in && *limit_out), "addrtype", "--limit-iface-in and --limit-iface-out exclude each other")?;
            value(src.is_some() || dst.is_some(), "addrtype", "needs --src-type or --dst-type")?;
            let types = [src, dst].into_iter().flatten().fold(0, |all, t| all | t.value);
            let none6 = 1 << AddrType::Broadcast as u16 | 1 << AddrType::Blackhole as u16;
            let routes = 1 << AddrType::Prohibit as u16;
            let v6 = !place.is_v6() || types & none6 == 0 && types < routes;
            value(v6, "addrtype", "IPv6 has no BROADCAST, BLACKHOLE, PROHIBIT, THROW, NAT and XRESOLVE addresses")
        }
        Match::Limit { rate, unit, burst } => {
            Limit::new(*rate, *unit, *burst)?;
            Ok(())
        }
        Match::Statistic(Statistic::Random(p)) => value(p.value <= 1 << 31, "statistic", "--probability is at most 1"),
        Match::Statistic(Statistic::Nth { every, packet, .. }) => {
            value(*every > 0 && packet < every, "statistic", "--every is at least 1, --packet less than that")
        }
        Match::Mac(_) => hooks("mac", &[Hook::PreRouting, Hook::Input, Hook::Forward]),
        Match::Iprange { src, dst } => {
            let mut ranges = [src, dst].into_iter().flatten();
            ranges.try_for_each(|r| place.addr(r.value.0).and_then(|()| place.addr(r.value.1)))
        }
        Match::Owner { .. } => hooks("owner", &[Hook::Output, Hook::PostRouting]),
        Match::Field(f) => packet::field(f, rule, place),
        Match::Sctp(m) => packet::sctp(m, rule),
        Match::Time(m) => packet::time(m),
        Match::Rpfilter(m) => packet::rpfilter(m, place),
        Match::String(m) => packet::string(m),
        Match::U32(m) => packet::u32(&m.value),
        Match::Extension(m) => packet::extension(m, rule, place),
        Match::Set(_) => Ok(()),
        Match::Recent(m) => count::recent(m, place),
        Match::Connbytes(_) => Ok(()),
        Match::Connlimit(m) => count::prefixes("connlimit", &[m.prefix], place),
        Match::Hashlimit(m) => count::hashlimit(m, place),
    }
}

fn value(fine: bool, name: &'static str, why: &'static str) -> Result<(), RuleFault> {
    if fine { Ok(()) } else { Err(RuleFault::Value(name, why)) }
}

fn check_target(rule: &Rule, place: &Place) -> Result<(), RuleFault> {
    use Hook::*;
    match &rule.target {
        Target::Drop if place.table == TableName::Nat => Err(RuleFault::NatDrop),
        Target::None | Target::Accept | Target::Drop | Target::Return | Target::Jump(_) | Target::Goto(_) => Ok(()),
        Target::Mark { .. } | Target::Connmark(_) | Target::Set(_) => Ok(()),
        Target::Reject(with) => {
            only("REJECT", TableName::Filter, &[Input, Forward, Output], place)?;
            match (with, place.family) {
                (RejectWith::TcpReset, _) if proto_of(rule) != Some(proto::TCP) => {
                    Err(RuleFault::TargetProto("REJECT --reject-with tcp-reset", "-p tcp, not inverted"))
                }
                (RejectWith::TcpReset, _) => Ok(()),
                (RejectWith::Icmp(code), Family::V4) => {
                    value(matches!(code, 0..=3 | 9 | 10 | 13), "REJECT", "unknown kind of rejection")
                }
                (RejectWith::Icmp6(code), Family::V6) => {
                    value(matches!(code, 0 | 1 | 3..=6), "REJECT", "unknown kind of rejection")
                }
                _ => Err(RuleFault::Value("REJECT", "a kind of rejection of the other family")),
            }
        }
        Target::Log(log) => {
            let known =
                log_flags::TCP_SEQUENCE | log_flags::TCP_OPTIONS | log_flags::IP_OPTIONS | log_flags::UID | log_flags::MACDECODE;
            value(log.level < 8, "LOG", "--log-level is 0 to 7")?;
            value(log.prefix.len() < 30, "LOG", "--log-prefix has at most 29 bytes")?;
            value(log.flags & !known == 0, "LOG", "unknown option")
        }
        Target::Dnat(range) => nat("DNAT", &[PreRouting, Output], range, rule, place),
        Target::Redirect(range) => nat("REDIRECT", &[PreRouting, Output], range, rule, place),
        Target::Snat(range) => nat("SNAT", &[Input, PostRouting], range, rule, place),
        Target::Masquerade(range) => nat("MASQUERADE", &[PostRouting], range, rule, place),
        Target::Netmap(net) => {
            only("NETMAP", TableName::Nat, &[PreRouting, Input, Output, PostRouting], place)?;
            place.net(net)
        }
        Target::Ct(_) => only("CT", TableName::Raw, &[PreRouting, Output], place),
        Target::Alter(a) => packet::alter(a, rule, place),
        Target::Nflog(log) => value(log.prefix.len() < 64, "NFLOG", "--nflog-prefix has at most 63 bytes"),
        Target::Trace => only("TRACE", TableName::Raw, &[PreRouting, Output], place),
    }
}

/// A target of one table, at some of its hooks.
fn only(name: &'static str, table: TableName, hooks: &'static [Hook], place: &Place) -> Result<(), RuleFault> {
    if place.table != table {
        return Err(RuleFault::TargetTable(name, table));
    }
    match place.outside(hooks) {
        Some(from) => Err(RuleFault::TargetHook { name, hooks, from }),
        None => Ok(()),
    }
}

fn nat(name: &'static str, hooks: &'static [Hook], range: &NatRange, rule: &Rule, place: &Place) -> Result<(), RuleFault> {
    only(name, TableName::Nat, hooks, place)?;
    if let Some((first, last)) = range.addrs {
        place.addr(first)?;
        place.addr(last)?;
        value(first <= last, name, "the range of addresses is upside down")?;
    }
    if let Some((first, last)) = range.ports {
        // iptables does not mind an inverted -p here.
        let icmp = if place.is_v6() { proto::ICMPV6 } else { proto::ICMP };
        let known = [proto::TCP, proto::UDP, SCTP, DCCP, icmp];
        if !rule.proto.is_some_and(|p| known.contains(&p.value)) {
            return Err(RuleFault::TargetProto(name, "-p tcp, udp, sctp or dccp if it names ports"));
        }
        value(first <= last, name, "the range of ports is upside down")?;
    }
    Ok(())
}
