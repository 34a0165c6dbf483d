//! `addrtype`: kinds of addresses.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, value};
use crate::iptables::{Inv, Match};

pub(super) static ADDRTYPE: Extension<Match> = Extension {
    names: &["addrtype"],
    family: None,
    options: &[value(&["src-type"]).not(), value(&["dst-type"]).not(), flag(&["limit-iface-in"]), flag(&["limit-iface-out"])],
    build,
};

/// Kinds by the number of their bit.
const KINDS: [&str; 12] = [
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
];

/// A list of kinds; of each a beginning is enough, and the first that fits is taken.
fn kinds(word: &Word<'_>) -> Result<u16, Fault> {
    let begins = |kind: &str, name: &str| kind.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    let one = |name: &str| KINDS.iter().position(|k| !name.is_empty() && begins(k, name)).map(|bit| 1 << bit);
    read::bits(word, "a list of UNSPEC, UNICAST, LOCAL, BROADCAST, ANYCAST, MULTICAST, BLACKHOLE, UNREACHABLE, PROHIBIT", one)
}

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    given.at_most_one(&["limit-iface-in", "limit-iface-out"])?;
    let (src, dst) = (given.inv("src-type", kinds)?, given.inv("dst-type", kinds)?);
    if src.is_none() && dst.is_none() {
        return Err(given.missing("--src-type or --dst-type"));
    }
    Ok(Match::Addrtype { src, dst, limit_in: given.has("limit-iface-in"), limit_out: given.has("limit-iface-out") })
}

fn print_kinds(name: &str, kinds: &Option<Inv<u16>>, out: &mut String) {
    let Some(Inv { not, value }) = kinds else { return };
    option(out, *not, name);
    let mut separator = ' ';
    for (bit, kind) in KINDS.iter().enumerate() {
        if value & (1 << bit) != 0 {
            out.push(separator);
            out.push_str(kind);
            separator = ',';
        }
    }
}

pub(super) fn print(src: &Option<Inv<u16>>, dst: &Option<Inv<u16>>, limit_in: bool, limit_out: bool, out: &mut String) {
    out.push_str(" -m addrtype");
    print_kinds("src-type", src, out);
    print_kinds("dst-type", dst, out);
    if limit_in {
        option(out, false, "limit-iface-in");
    }
    if limit_out {
        option(out, false, "limit-iface-out");
    }
}
