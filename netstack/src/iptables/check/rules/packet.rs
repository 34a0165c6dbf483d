//! What tests of packets, and targets that change them, may be, and where.

use super::super::RuleFault;
use super::{Place, hooks, needs, only, value};
use crate::iptables::{
    Alter, ExtMatch, FieldMatch, Hook, HopChange, Match, RpFilter, Rule, SctpMatch, StringMatch, TableName, TimeMatch, U32Step,
    U32Test,
};
use crate::tuple::proto;

const ESP: u8 = 50;
const AH: u8 = 51;
const IPCOMP: u8 = 108;
const SCTP: u8 = 132;
const MOBILITY: u8 = 135;

/// Most of what `u32` may have of tests, steps, values.
const U32_MOST: usize = 10;
/// Longest pattern of `string`.
const PATTERN_MOST: usize = 128;
/// Most options of `hbh` and `dst`, and addresses of `rt`.
const LIST_MOST: usize = 16;

pub(super) fn field(f: &FieldMatch, rule: &Rule, place: &Place) -> Result<(), RuleFault> {
    match f {
        FieldMatch::Pkttype(_) | FieldMatch::HopLimit(_) | FieldMatch::Length(_) | FieldMatch::Tos(_) => Ok(()),
        FieldMatch::Dscp(d) => value(d.value < 64, "dscp", "a value is 0 to 63"),
        FieldMatch::Ecn(e) => {
            value(e.ect.is_none_or(|e| e.value < 4), "ecn", "--ecn-ip-ect is 0 to 3")?;
            if e.ece.is_some() || e.cwr.is_some() { needs(rule, "ecn of TCP", proto::TCP, "-p tcp") } else { Ok(()) }
        }
        FieldMatch::TcpMss(_) => needs(rule, "tcpmss", proto::TCP, "-p tcp"),
        FieldMatch::Esp(_) => needs(rule, "esp", ESP, "-p esp"),
        FieldMatch::Ah(_) if place.is_v6() => Err(RuleFault::Value("ah", "over IPv6 it is an extension header")),
        FieldMatch::Ah(_) => needs(rule, "ah", AH, "-p ah"),
        FieldMatch::Ipcomp(_) => needs(rule, "ipcomp", IPCOMP, "-p ipcomp"),
    }
}

pub(super) fn sctp(m: &SctpMatch, rule: &Rule) -> Result<(), RuleFault> {
    needs(rule, "sctp", SCTP, "-p sctp")?;
    let once = |flags: &[(u8, u8, u8)]| flags.iter().enumerate().all(|(i, f)| flags[..i].iter().all(|g| g.0 != f.0));
    value(m.chunks.as_ref().is_none_or(|c| once(&c.value.flags)), "sctp", "flags of a chunk are given once")
}

pub(super) fn time(m: &TimeMatch) -> Result<(), RuleFault> {
    let day = m.day.0.max(m.day.1) <= TimeMatch::LAST_SECOND;
    value(day && m.dates.0.max(m.dates.1) <= TimeMatch::LAST_DATE, "time", "a day ends at 23:59:59, dates at 2038-01-19T03:14:07")
}

pub(super) fn rpfilter(_: &RpFilter, place: &Place) -> Result<(), RuleFault> {
    if !matches!(place.table, TableName::Raw | TableName::Mangle) {
        return Err(RuleFault::Value("rpfilter", "it is for the tables raw and mangle: move the rule there"));
    }
    hooks(place, "rpfilter", &[Hook::PreRouting])
}

pub(super) fn string(m: &StringMatch) -> Result<(), RuleFault> {
    value((1..=PATTERN_MOST).contains(&m.pattern.len()), "string", "the pattern has 1 to 128 bytes")?;
    value(m.span.0 <= m.span.1, "string", "--from is at most --to")
}

pub(super) fn u32(tests: &[U32Test]) -> Result<(), RuleFault> {
    let few = |n: usize, least: usize| (least..=U32_MOST).contains(&n);
    let fine = |t: &U32Test| t.steps.len() < U32_MOST && few(t.values.len(), 1);
    value(few(tests.len(), 1) && tests.iter().all(fine), "u32", "at most 10 tests, each of at most 9 steps and 10 values")?;
    let shift = |s: &U32Step| !matches!(s, U32Step::Left(n) | U32Step::Right(n) if *n > 31);
    value(tests.iter().flat_map(|t| &t.steps).all(shift), "u32", "numbers are shifted by at most 31 bits")
}

pub(super) fn extension(m: &ExtMatch, rule: &Rule, place: &Place) -> Result<(), RuleFault> {
    if !place.is_v6() {
        return Err(RuleFault::Value("extension headers", "only IPv6 has them"));
    }
    match m {
        ExtMatch::Ah { .. } | ExtMatch::Frag(_) | ExtMatch::Headers { .. } => Ok(()),
        ExtMatch::Options(o) => value(o.options.len() <= LIST_MOST, "hbh, dst", "at most 16 options"),
        ExtMatch::Route(r) => {
            let zero = r.ty.is_some_and(|t| t.value == 0 && !t.not);
            value(zero || !r.reserved && r.addrs.is_empty(), "rt", "--rt-0-res and --rt-0-addrs need --rt-type 0")?;
            value(r.addrs.len() <= LIST_MOST, "rt", "at most 16 addresses")
        }
        ExtMatch::Eui64 => hooks(place, "eui64", &[Hook::PreRouting, Hook::Input, Hook::Forward]),
        ExtMatch::Mobility(_) => needs(rule, "mh", MOBILITY, "-p mh"),
    }
}

pub(super) fn alter(a: &Alter, rule: &Rule, place: &Place) -> Result<(), RuleFault> {
    let mangle = |name| only(name, TableName::Mangle, &Hook::ALL, place);
    match a {
        Alter::HopLimit(change) => {
            let name = if place.is_v6() { "HL" } else { "TTL" };
            value(!matches!(change, HopChange::Add(0) | HopChange::Subtract(0)), name, "a change by 0 is none")?;
            mangle(name)
        }
        Alter::Tos { .. } => mangle("TOS"),
        Alter::Dscp(dscp) => {
            value(*dscp < 64, "DSCP", "a value is 0 to 63")?;
            mangle("DSCP")
        }
        Alter::Checksum => mangle("CHECKSUM"),
        Alter::Mss(mss) => {
            needs(rule, "TCPMSS", proto::TCP, "-p tcp").map_err(|_| RuleFault::TargetProto("TCPMSS", "-p tcp, not inverted"))?;
            let syn = |m: &Match| matches!(m, Match::Tcp { flags: Some(f), .. } if !f.not && f.value.1 & 2 != 0);
            value(rule.matches.iter().any(syn), "TCPMSS", "needs a test for SYN: add --tcp-flags SYN,RST SYN")?;
            let known: &[Hook] = &[Hook::Forward, Hook::Output, Hook::PostRouting];
            match place.outside(known).filter(|_| mss.is_none()) {
                Some(from) => Err(RuleFault::TargetHook {
                    name: "TCPMSS --clamp-mss-to-pmtu",
                    hooks: &[Hook::Forward, Hook::Output, Hook::PostRouting],
                    from,
                }),
                None => Ok(()),
            }
        }
    }
}
