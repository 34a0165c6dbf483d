//! Targets that change packets, or tell of them: `TTL`, `HL`, `TCPMSS`, `CHECKSUM`, `TRACE`, `NFLOG`.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Opt, Scope, flag, option, option_value, push, quoted, value};
use crate::iptables::{Alter, Family, HopChange, NflogTarget, Target};

const TTL_OPTIONS: &[Opt] = &[value(&["ttl-set"]), value(&["ttl-inc"]), value(&["ttl-dec"])];
const HL_OPTIONS: &[Opt] = &[value(&["hl-set"]), value(&["hl-inc"]), value(&["hl-dec"])];

pub(super) static TTL: Extension<Target> = Extension {
    names: &["TTL"],
    family: Some(Family::V4),
    options: TTL_OPTIONS,
    build: |_, given| hop_limit(given, "ttl-set", "ttl-inc", "ttl-dec"),
};

pub(super) static HL: Extension<Target> = Extension {
    names: &["HL"],
    family: Some(Family::V6),
    options: HL_OPTIONS,
    build: |_, given| hop_limit(given, "hl-set", "hl-inc", "hl-dec"),
};

pub(super) static TCPMSS: Extension<Target> = Extension {
    names: &["TCPMSS"],
    family: None,
    options: &[value(&["set-mss"]), flag(&["clamp-mss-to-pmtu"])],
    build: build_mss,
};

pub(super) static CHECKSUM: Extension<Target> = Extension {
    names: &["CHECKSUM"],
    family: None,
    options: &[flag(&["checksum-fill"])],
    build: |_, given| given.require("checksum-fill").map(|_| Target::Alter(Alter::Checksum)),
};

pub(super) static TRACE: Extension<Target> =
    Extension { names: &["TRACE"], family: None, options: &[], build: |_, _| Ok(Target::Trace) };

pub(super) static NFLOG: Extension<Target> = Extension {
    names: &["NFLOG"],
    family: None,
    options: &[
        value(&["nflog-group"]),
        value(&["nflog-prefix"]),
        value(&["nflog-range"]),
        value(&["nflog-size"]),
        value(&["nflog-threshold"]),
    ],
    build: build_nflog,
};

/// Longest prefix of NFLOG in bytes; the rest is cut off.
const PREFIX: usize = 63;

fn hop_limit(given: &Given<'_>, set: &str, inc: &str, dec: &str) -> Result<Target, Fault> {
    given.at_most_one(&[set, inc, dec])?;
    let byte = |name: &str, least| given.read(name, |w: &Word<'_>| read::number_in(w, least, 255).map(|n| n as u8));
    let change = if let Some(n) = byte(set, 0)? {
        HopChange::Set(n)
    } else if let Some(n) = byte(inc, 1)? {
        HopChange::Add(n)
    } else if let Some(n) = byte(dec, 1)? {
        HopChange::Subtract(n)
    } else {
        return Err(given.missing(&format!("--{set}, --{inc} or --{dec}")));
    };
    Ok(Target::Alter(Alter::HopLimit(change)))
}

fn build_mss(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    given.at_most_one(&["set-mss", "clamp-mss-to-pmtu"])?;
    if given.has("clamp-mss-to-pmtu") {
        return Ok(Target::Alter(Alter::Mss(None)));
    }
    // 65535 means to Linux that it is to be clamped.
    let mss = given.read("set-mss", |w| read::number_in(w, 0, u64::from(u16::MAX) - 1).map(|n| n as u16))?;
    Ok(Target::Alter(Alter::Mss(Some(mss.ok_or_else(|| given.missing("--set-mss or --clamp-mss-to-pmtu"))?))))
}

fn build_nflog(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    given.at_most_one(&["nflog-range", "nflog-size"])?;
    let prefix = |word: &Word<'_>| match word.as_str() {
        "" => Err(word.bad("a prefix that is not empty")),
        text => Ok(read::cut(text, PREFIX).to_owned()),
    };
    let short = |word: &Word<'_>| read::number_in(word, 0, u16::MAX.into()).map(|n| n as u16);
    Ok(Target::Nflog(Box::new(NflogTarget {
        prefix: given.read("nflog-prefix", prefix)?.unwrap_or_default(),
        group: given.read("nflog-group", short)?.unwrap_or_default(),
        range: given.read("nflog-range", read::number32)?.unwrap_or_default(),
        size: given.read("nflog-size", read::number32)?,
        threshold: given.read("nflog-threshold", short)?.unwrap_or_default(),
    })))
}

pub(super) fn print(a: &Alter, family: Family, out: &mut String) {
    match a {
        Alter::HopLimit(change) => {
            let (name, option) = if family == Family::V4 { ("TTL", "ttl") } else { ("HL", "hl") };
            let (how, n) = match change {
                HopChange::Set(n) => ("set", n),
                HopChange::Add(n) => ("inc", n),
                HopChange::Subtract(n) => ("dec", n),
            };
            push(out, format_args!(" -j {name} --{option}-{how} {n}"));
        }
        Alter::Tos { value, mask } => super::tos::print_tos(*value, *mask, out),
        Alter::Dscp(dscp) => super::tos::print_dscp(*dscp, out),
        Alter::Mss(None) => out.push_str(" -j TCPMSS --clamp-mss-to-pmtu"),
        Alter::Mss(Some(mss)) => push(out, format_args!(" -j TCPMSS --set-mss {mss}")),
        Alter::Checksum => out.push_str(" -j CHECKSUM --checksum-fill"),
    }
}

pub(super) fn print_nflog(log: &NflogTarget, out: &mut String) {
    out.push_str(" -j NFLOG");
    if !log.prefix.is_empty() {
        option(out, false, "nflog-prefix");
        quoted(out, &log.prefix);
    }
    let mut number = |name, n: u32, shown: bool| {
        if shown {
            option_value(out, false, name, n);
        }
    };
    number("nflog-group", log.group.into(), log.group != 0);
    number("nflog-size", log.size.unwrap_or_default(), log.size.is_some());
    number("nflog-range", log.range, log.range != 0);
    number("nflog-threshold", log.threshold.into(), log.threshold != 0);
}
