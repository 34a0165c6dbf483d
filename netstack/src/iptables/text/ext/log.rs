//! `LOG`.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, quoted, value};
use crate::iptables::{LogTarget, Target, log_flags};

pub(super) static LOG: Extension<Target> = Extension {
    names: &["LOG"],
    family: None,
    options: &[
        value(&["log-prefix"]),
        value(&["log-level"]),
        flag(&["log-tcp-sequence"]),
        flag(&["log-tcp-options"]),
        flag(&["log-ip-options"]),
        flag(&["log-uid"]),
        flag(&["log-macdecode"]),
    ],
    build,
};

/// Longest prefix in bytes; the rest is cut off.
const PREFIX: usize = 29;
/// warning.
const LEVEL: u8 = 4;

const LEVELS: [(&str, u8); 9] = [
    ("emerg", 0),
    ("panic", 0),
    ("alert", 1),
    ("crit", 2),
    ("error", 3),
    ("warning", 4),
    ("notice", 5),
    ("info", 6),
    ("debug", 7),
];

const FLAGS: [(&str, u8); 5] = [
    ("log-tcp-sequence", log_flags::TCP_SEQUENCE),
    ("log-tcp-options", log_flags::TCP_OPTIONS),
    ("log-ip-options", log_flags::IP_OPTIONS),
    ("log-uid", log_flags::UID),
    ("log-macdecode", log_flags::MACDECODE),
];

fn level(word: &Word<'_>) -> Result<u8, Fault> {
    let text = word.as_str();
    let named = LEVELS.iter().find(|l| l.0 == text).map(|l| l.1);
    let number = || read::number(text).filter(|n| *n <= 7).map(|n| n as u8);
    let expected = "a level from 0 to 7, or emerg, alert, crit, error, warning, notice, info or debug";
    named.or_else(number).ok_or_else(|| word.bad(expected))
}

fn prefix(word: &Word<'_>) -> Result<String, Fault> {
    let text = word.as_str();
    if text.is_empty() {
        return Err(word.bad("a prefix that is not empty"));
    }
    Ok(read::cut(text, PREFIX).to_owned())
}

fn build(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    Ok(Target::Log(Box::new(LogTarget {
        level: given.read("log-level", level)?.unwrap_or(LEVEL),
        prefix: given.read("log-prefix", prefix)?.unwrap_or_default(),
        flags: FLAGS.iter().filter(|(name, _)| given.has(name)).fold(0, |all, (_, bit)| all | bit),
    })))
}

pub(super) fn print(log: &LogTarget, out: &mut String) {
    out.push_str(" -j LOG");
    if !log.prefix.is_empty() {
        option(out, false, "log-prefix");
        quoted(out, &log.prefix);
    }
    if log.level != LEVEL {
        option_value(out, false, "log-level", log.level);
    }
    for (name, _) in FLAGS.iter().filter(|f| log.flags & f.1 != 0) {
        option(out, false, name);
    }
}
