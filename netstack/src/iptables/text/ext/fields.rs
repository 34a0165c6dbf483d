//! Matches on single header fields: `pkttype`, `ttl`, `hl`, `length`, `tcpmss`, and the indices of `esp`, `ah` and `ipcomp`.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Opt, Scope, option_value, push, value};
use crate::iptables::{Family, FieldMatch, HopTest, Inv, Match, SpiRange};
use crate::skb::Cast;

pub(super) static PKTTYPE: Extension<Match> =
    Extension { names: &["pkttype"], family: None, options: &[value(&["pkt-type"]).not()], build: build_pkttype };

pub(super) static TTL: Extension<Match> = Extension {
    names: &["ttl"],
    family: Some(Family::V4),
    options: &[value(&["ttl-eq", "ttl"]).not(), value(&["ttl-lt"]), value(&["ttl-gt"])],
    build: |_, given| hop_limit(given, "ttl-eq", "ttl-lt", "ttl-gt"),
};

pub(super) static HL: Extension<Match> = Extension {
    names: &["hl"],
    family: Some(Family::V6),
    options: &[value(&["hl-eq", "hl"]).not(), value(&["hl-lt"]), value(&["hl-gt"])],
    build: |_, given| hop_limit(given, "hl-eq", "hl-lt", "hl-gt"),
};

pub(super) static LENGTH: Extension<Match> = Extension {
    names: &["length"],
    family: None,
    options: &[value(&["length"]).not()],
    build: |_, given| {
        let used = given.require("length")?;
        Ok(Match::Field(FieldMatch::Length(Inv { not: used.not, value: span16(used.value())? })))
    },
};

pub(super) static TCPMSS: Extension<Match> = Extension {
    names: &["tcpmss"],
    family: None,
    options: &[value(&["mss"]).not()],
    build: |_, given| {
        let used = given.require("mss")?;
        let span = span16(used.value())?;
        if span.0 > span.1 {
            return Err(used.value().bad("a range that does not run backwards"));
        }
        Ok(Match::Field(FieldMatch::TcpMss(Inv { not: used.not, value: span })))
    },
};

const ESP_OPTIONS: &[Opt] = &[value(&["espspi"]).not()];
const AH_OPTIONS: &[Opt] = &[value(&["ahspi"]).not()];
const IPCOMP_OPTIONS: &[Opt] = &[value(&["ipcompspi"]).not()];

pub(super) static ESP: Extension<Match> = Extension {
    names: &["esp"],
    family: None,
    options: ESP_OPTIONS,
    build: |_, given| Ok(Match::Field(FieldMatch::Esp(spi(given, "espspi")?))),
};

pub(super) static AH: Extension<Match> = Extension {
    names: &["ah"],
    family: Some(Family::V4),
    options: AH_OPTIONS,
    build: |_, given| Ok(Match::Field(FieldMatch::Ah(spi(given, "ahspi")?))),
};

pub(super) static IPCOMP: Extension<Match> = Extension {
    names: &["ipcomp"],
    family: None,
    options: IPCOMP_OPTIONS,
    build: |_, given| Ok(Match::Field(FieldMatch::Ipcomp(spi(given, "ipcompspi")?))),
};

const CASTS: [(&str, Cast); 7] = [
    ("unicast", Cast::Unicast),
    ("broadcast", Cast::Broadcast),
    ("multicast", Cast::Multicast),
    ("otherhost", Cast::OtherHost),
    ("host", Cast::Unicast),
    ("bcast", Cast::Broadcast),
    ("mcast", Cast::Multicast),
];

fn build_pkttype(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let used = given.require("pkt-type")?;
    let word = used.value();
    let found = CASTS.iter().find(|c| c.0.eq_ignore_ascii_case(word.as_str())).map(|c| c.1);
    let value = found.ok_or_else(|| word.bad("unicast, broadcast, multicast or otherhost"))?;
    Ok(Match::Field(FieldMatch::Pkttype(Inv { not: used.not, value })))
}

fn hop_limit(given: &Given<'_>, eq: &str, lt: &str, gt: &str) -> Result<Match, Fault> {
    given.at_most_one(&[eq, lt, gt])?;
    let byte = |w: &Word<'_>| read::number_in(w, 0, 255).map(|n| n as u8);
    let test = if let Some(eq) = given.inv(eq, byte)? {
        if eq.not { HopTest::IsNot(eq.value) } else { HopTest::Is(eq.value) }
    } else if let Some(n) = given.read(lt, byte)? {
        HopTest::Below(n)
    } else if let Some(n) = given.read(gt, byte)? {
        HopTest::Above(n)
    } else {
        return Err(given.missing(&format!("--{eq}, --{lt} or --{gt}")));
    };
    Ok(Match::Field(FieldMatch::HopLimit(test)))
}

/// `FIRST:LAST` of 16 bits, which may run backwards; a missing end stands for 0 or 65535.
fn span16(word: &Word<'_>) -> Result<(u16, u16), Fault> {
    let bad = || word.bad("a number from 0 to 65535, or FIRST:LAST");
    let one = |text: &str, missing| {
        if text.is_empty() { Ok(missing) } else { read::number(text).and_then(|n| u16::try_from(n).ok()).ok_or_else(bad) }
    };
    match word.as_str().split_once(':') {
        None if word.as_str().is_empty() => Err(bad()),
        None => one(word.as_str(), 0).map(|n| (n, n)),
        Some((first, last)) => Ok((one(first, 0)?, one(last, u16::MAX)?)),
    }
}

/// A range of indices, unless it is every index.
fn spi(given: &Given<'_>, name: &str) -> Result<Option<Inv<SpiRange>>, Fault> {
    let every = |r: &Inv<SpiRange>| !r.not && r.value == (0, u32::MAX);
    Ok(given.inv(name, read::range32)?.filter(|r| !every(r)))
}

/// ` --name FIRST[:LAST]`.
pub(super) fn print_span<T: Copy + Ord + std::fmt::Display>(name: &str, range: &Inv<(T, T)>, out: &mut String) {
    let (first, last) = range.value;
    option_value(out, range.not, name, first);
    if first != last {
        push(out, format_args!(":{last}"));
    }
}

fn print_spi(name: &str, option: &str, range: &Option<Inv<SpiRange>>, out: &mut String) {
    push(out, format_args!(" -m {name}"));
    if let Some(range) = range {
        print_span(option, range, out);
    }
}

pub(super) fn print(m: &FieldMatch, family: Family, out: &mut String) {
    match m {
        FieldMatch::Pkttype(p) => {
            out.push_str(" -m pkttype");
            let name = CASTS.iter().find(|c| c.1 == p.value).map_or("", |c| c.0);
            option_value(out, p.not, "pkt-type", name);
        }
        FieldMatch::HopLimit(test) => {
            let name = if family == Family::V4 { "ttl" } else { "hl" };
            push(out, format_args!(" -m {name}"));
            let (not, how, n) = match *test {
                HopTest::Is(n) => (false, "eq", n),
                HopTest::IsNot(n) => (true, "eq", n),
                HopTest::Below(n) => (false, "lt", n),
                HopTest::Above(n) => (false, "gt", n),
            };
            option_value(out, not, &format!("{name}-{how}"), n);
        }
        FieldMatch::Length(span) => {
            out.push_str(" -m length");
            print_span("length", span, out);
        }
        FieldMatch::TcpMss(span) => {
            out.push_str(" -m tcpmss");
            print_span("mss", span, out);
        }
        FieldMatch::Esp(range) => print_spi("esp", "espspi", range, out),
        FieldMatch::Ah(range) => print_spi("ah", "ahspi", range, out),
        FieldMatch::Ipcomp(range) => print_spi("ipcomp", "ipcompspi", range, out),
        FieldMatch::Tos(_) | FieldMatch::Dscp(_) | FieldMatch::Ecn(_) => super::tos::print_match(m, out),
    }
}
