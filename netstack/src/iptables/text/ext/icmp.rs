//! `icmp` and `icmp6`.

use super::super::error::Fault;
use super::super::value as read;
use super::{Extension, Given, Scope, option_value, push, value};
use crate::iptables::{Family, IcmpType, Inv, Match};

pub(super) static ICMP: Extension<Match> =
    Extension { names: &["icmp"], family: Some(Family::V4), options: &[value(&["icmp-type"]).not()], build };

pub(super) static ICMP6: Extension<Match> = Extension {
    names: &["icmp6", "icmpv6", "ipv6-icmp"],
    family: Some(Family::V6),
    options: &[value(&["icmpv6-type"]).not()],
    build,
};

/// Every code.
const ALL: (u8, u8) = (0, 255);

type Name = (&'static str, (u8, (u8, u8)));

#[rustfmt::skip]
const TYPES4: &[Name] = &[
    ("any", (255, ALL)),
    ("echo-reply", (0, ALL)), ("pong", (0, ALL)),
    ("destination-unreachable", (3, ALL)),
    ("network-unreachable", (3, (0, 0))), ("host-unreachable", (3, (1, 1))), ("protocol-unreachable", (3, (2, 2))),
    ("port-unreachable", (3, (3, 3))), ("fragmentation-needed", (3, (4, 4))), ("source-route-failed", (3, (5, 5))),
    ("network-unknown", (3, (6, 6))), ("host-unknown", (3, (7, 7))), ("network-prohibited", (3, (9, 9))),
    ("host-prohibited", (3, (10, 10))), ("TOS-network-unreachable", (3, (11, 11))),
    ("TOS-host-unreachable", (3, (12, 12))), ("communication-prohibited", (3, (13, 13))),
    ("host-precedence-violation", (3, (14, 14))), ("precedence-cutoff", (3, (15, 15))),
    ("source-quench", (4, ALL)),
    ("redirect", (5, ALL)), ("network-redirect", (5, (0, 0))), ("host-redirect", (5, (1, 1))),
    ("TOS-network-redirect", (5, (2, 2))), ("TOS-host-redirect", (5, (3, 3))),
    ("echo-request", (8, ALL)), ("ping", (8, ALL)),
    ("router-advertisement", (9, ALL)), ("router-solicitation", (10, ALL)),
    ("time-exceeded", (11, ALL)), ("ttl-exceeded", (11, ALL)),
    ("ttl-zero-during-transit", (11, (0, 0))), ("ttl-zero-during-reassembly", (11, (1, 1))),
    ("parameter-problem", (12, ALL)), ("ip-header-bad", (12, (0, 0))), ("required-option-missing", (12, (1, 1))),
    ("timestamp-request", (13, ALL)), ("timestamp-reply", (14, ALL)),
    ("address-mask-request", (17, ALL)), ("address-mask-reply", (18, ALL)),
];

#[rustfmt::skip]
const TYPES6: &[Name] = &[
    ("destination-unreachable", (1, ALL)),
    ("no-route", (1, (0, 0))), ("communication-prohibited", (1, (1, 1))), ("beyond-scope", (1, (2, 2))),
    ("address-unreachable", (1, (3, 3))), ("port-unreachable", (1, (4, 4))), ("failed-policy", (1, (5, 5))),
    ("reject-route", (1, (6, 6))),
    ("packet-too-big", (2, ALL)),
    ("time-exceeded", (3, ALL)), ("ttl-exceeded", (3, ALL)),
    ("ttl-zero-during-transit", (3, (0, 0))), ("ttl-zero-during-reassembly", (3, (1, 1))),
    ("parameter-problem", (4, ALL)), ("bad-header", (4, (0, 0))), ("unknown-header-type", (4, (1, 1))),
    ("unknown-option", (4, (2, 2))),
    ("echo-request", (128, ALL)), ("ping", (128, ALL)), ("echo-reply", (129, ALL)), ("pong", (129, ALL)),
    ("mld-listener-query", (130, ALL)), ("mld-listener-report", (131, ALL)), ("mld-listener-done", (132, ALL)),
    ("mld-listener-reduction", (132, ALL)),
    ("router-solicitation", (133, ALL)), ("router-advertisement", (134, ALL)),
    ("neighbour-solicitation", (135, ALL)), ("neighbor-solicitation", (135, ALL)),
    ("neighbour-advertisement", (136, ALL)), ("neighbor-advertisement", (136, ALL)),
    ("redirect", (137, ALL)),
];

fn build(scope: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let (table, option) = if scope.family == Family::V4 { (TYPES4, "icmp-type") } else { (TYPES6, "icmpv6-type") };
    let used = given.require(option)?;
    let word = used.value();
    let number = |text: &str| read::number(text).and_then(|n| u8::try_from(n).ok());
    let numeric = || match word.as_str().split_once('/') {
        None => number(word.as_str()).map(|ty| (ty, ALL)),
        Some((ty, codes)) => {
            let (first, last) = codes.split_once(':').unwrap_or((codes, codes));
            Some((number(ty)?, (number(first)?, number(last)?)))
        }
    };
    let known = read::by_prefix(table, word.as_str()).or_else(numeric);
    let Some((ty, codes)) = known else {
        return Err(word.bad("an ICMP type by its name (or a beginning that no other has), TYPE or TYPE/CODE"));
    };
    if codes.0 > codes.1 {
        return Err(word.bad("a range of codes that does not run backwards"));
    }
    Ok(Match::Icmp(Some(Inv { not: used.not, value: IcmpType { ty, codes } })))
}

pub(super) fn print(family: Family, ty: &Option<Inv<IcmpType>>, out: &mut String) {
    let (name, option) = if family == Family::V4 { ("icmp", "icmp-type") } else { ("icmp6", "icmpv6-type") };
    push(out, format_args!(" -m {name}"));
    let Some(Inv { not, value: IcmpType { ty, codes } }) = *ty else { return };
    if family == Family::V4 && ty == 255 && codes == ALL {
        option_value(out, not, option, "any");
        return;
    }
    option_value(out, not, option, ty);
    if codes.0 == codes.1 {
        push(out, format_args!("/{}", codes.0));
    } else if codes != ALL {
        push(out, format_args!("/{}:{}", codes.0, codes.1));
    }
}
