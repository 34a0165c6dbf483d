//! The type of service: matches `tos`, `dscp`, `ecn`, targets `TOS` and `DSCP`.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, push, value};
use crate::iptables::{Alter, EcnMatch, FieldMatch, Inv, Match, Target};

pub(super) static TOS_MATCH: Extension<Match> = Extension {
    names: &["tos"],
    family: None,
    options: &[value(&["tos"]).not()],
    build: |_, given| {
        let used = given.require("tos")?;
        Ok(Match::Field(FieldMatch::Tos(Inv { not: used.not, value: tos(used.value())? })))
    },
};

pub(super) static DSCP_MATCH: Extension<Match> = Extension {
    names: &["dscp"],
    family: None,
    options: &[value(&["dscp"]).not(), value(&["dscp-class"]).not()],
    build: |_, given| {
        let (not, value) = dscp(given, "dscp", "dscp-class")?;
        Ok(Match::Field(FieldMatch::Dscp(Inv { not, value })))
    },
};

pub(super) static ECN: Extension<Match> = Extension {
    names: &["ecn"],
    family: None,
    options: &[flag(&["ecn-tcp-ece"]).not(), flag(&["ecn-tcp-cwr"]).not(), value(&["ecn-ip-ect"]).not()],
    build: build_ecn,
};

pub(super) static TOS: Extension<Target> = Extension {
    names: &["TOS"],
    family: None,
    options: &[value(&["set-tos"]), value(&["and-tos"]), value(&["or-tos"]), value(&["xor-tos"])],
    build: build_tos,
};

pub(super) static DSCP: Extension<Target> = Extension {
    names: &["DSCP"],
    family: None,
    options: &[value(&["set-dscp"]), value(&["set-dscp-class"])],
    build: |_, given| Ok(Target::Alter(Alter::Dscp(dscp(given, "set-dscp", "set-dscp-class")?.1))),
};

/// Types of service by name; they are meant under a mask of [`NAMED`].
const NAMES: [(&str, u8); 5] = [
    ("Minimize-Delay", 0x10),
    ("Maximize-Throughput", 8),
    ("Maximize-Reliability", 4),
    ("Minimize-Cost", 2),
    ("Normal-Service", 0),
];
const NAMED: u8 = 0x3f;

#[rustfmt::skip]
const CLASSES: [(&str, u8); 22] = [
    ("CS0", 0), ("CS1", 8), ("CS2", 16), ("CS3", 24), ("CS4", 32), ("CS5", 40), ("CS6", 48), ("CS7", 56), ("BE", 0),
    ("AF11", 10), ("AF12", 12), ("AF13", 14), ("AF21", 18), ("AF22", 20), ("AF23", 22), ("AF31", 26), ("AF32", 28),
    ("AF33", 30), ("AF41", 34), ("AF42", 36), ("AF43", 38), ("EF", 46),
];

fn by_name(table: &[(&str, u8)], name: &str) -> Option<u8> {
    table.iter().find(|e| e.0.eq_ignore_ascii_case(name)).map(|e| e.1)
}

fn byte(text: &str) -> Option<u8> {
    read::number(text).and_then(|n| u8::try_from(n).ok())
}

/// `VALUE[/MASK]`, or a name.
fn tos(word: &Word<'_>) -> Result<(u8, u8), Fault> {
    let text = word.as_str();
    let found = match text.split_once('/') {
        Some((value, mask)) => byte(value).zip(byte(mask)),
        None => by_name(&NAMES, text).map(|v| (v, NAMED)).or_else(|| byte(text).map(|v| (v, u8::MAX))),
    };
    found.ok_or_else(|| word.bad("a type of service, VALUE[/MASK] of 8 bits or a name such as Minimize-Delay"))
}

/// A code point by number or class, and whether it is inverted.
fn dscp(given: &Given<'_>, number: &str, class: &str) -> Result<(bool, u8), Fault> {
    given.at_most_one(&[number, class])?;
    if let Some(used) = given.get(number) {
        return Ok((used.not, read::number_in(used.value(), 0, 63)? as u8));
    }
    let Some(used) = given.get(class) else { return Err(given.missing(&format!("--{number} or --{class}"))) };
    let found = by_name(&CLASSES, used.value().as_str());
    Ok((used.not, found.ok_or_else(|| used.value().bad("a class of service: CS0 to CS7, BE, AF11 to AF43, EF"))?))
}

fn build_ecn(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let flag = |name: &str| given.get(name).map(|used| !used.not);
    let m = EcnMatch {
        ece: flag("ecn-tcp-ece"),
        cwr: flag("ecn-tcp-cwr"),
        ect: given.inv("ecn-ip-ect", |w| read::number_in(w, 0, 3).map(|n| n as u8))?,
    };
    if m == EcnMatch::default() {
        return Err(given.missing("--ecn-tcp-ece, --ecn-tcp-cwr or --ecn-ip-ect"));
    }
    Ok(Match::Field(FieldMatch::Ecn(m)))
}

fn build_tos(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    given.at_most_one(&["set-tos", "and-tos", "or-tos", "xor-tos"])?;
    let bits = |name: &str| given.read(name, |w| read::number_in(w, 0, 255).map(|n| n as u8));
    let (value, mask) = if let Some(set) = given.read("set-tos", tos)? {
        set
    } else if let Some(bits) = bits("and-tos")? {
        (0, !bits)
    } else if let Some(bits) = bits("or-tos")? {
        (bits, bits)
    } else if let Some(bits) = bits("xor-tos")? {
        (bits, 0)
    } else {
        return Err(given.missing("one of --set-tos, --and-tos, --or-tos, --xor-tos"));
    };
    Ok(Target::Alter(Alter::Tos { value, mask }))
}

pub(super) fn print_match(m: &FieldMatch, out: &mut String) {
    match m {
        FieldMatch::Tos(Inv { not, value: (value, mask) }) => {
            out.push_str(" -m tos");
            option_value(out, *not, "tos", format_args!("{value:#04x}/{mask:#04x}"));
        }
        FieldMatch::Dscp(d) => {
            out.push_str(" -m dscp");
            option_value(out, d.not, "dscp", format_args!("{:#04x}", d.value));
        }
        FieldMatch::Ecn(m) => {
            out.push_str(" -m ecn");
            for (name, test) in [("ecn-tcp-ece", m.ece), ("ecn-tcp-cwr", m.cwr)] {
                if let Some(set) = test {
                    option(out, !set, name);
                }
            }
            if let Some(ect) = m.ect {
                option_value(out, ect.not, "ecn-ip-ect", ect.value);
            }
        }
        _ => {}
    }
}

pub(super) fn print_tos(value: u8, mask: u8, out: &mut String) {
    push(out, format_args!(" -j TOS --set-tos {value:#04x}/{mask:#04x}"));
}

pub(super) fn print_dscp(dscp: u8, out: &mut String) {
    push(out, format_args!(" -j DSCP --set-dscp {dscp:#04x}"));
}
