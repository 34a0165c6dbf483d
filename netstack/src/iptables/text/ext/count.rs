//! `connbytes`, `connlimit`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, push, value};
use crate::iptables::{ConnbytesMatch, ConnlimitMatch, CountDir, CountOf, Family, Match};
use core::net::IpAddr;

pub(super) static CONNBYTES: Extension<Match> = Extension {
    names: &["connbytes"],
    family: None,
    options: &[value(&["connbytes"]).not(), value(&["connbytes-mode"]), value(&["connbytes-dir"])],
    build: build_connbytes,
};

const WHAT: [(&str, CountOf); 3] = [("packets", CountOf::Packets), ("bytes", CountOf::Bytes), ("avgpkt", CountOf::Average)];
const DIRS: [(&str, CountDir); 3] = [("original", CountDir::Original), ("reply", CountDir::Reply), ("both", CountDir::Both)];

fn named<T: Copy>(table: &[(&str, T); 3], word: &Word<'_>) -> Result<T, Fault> {
    let known = table.iter().find(|e| e.0 == word.as_str()).map(|e| e.1);
    known.ok_or_else(|| word.bad(format!("{}, {} or {}", table[0].0, table[1].0, table[2].0)))
}

fn build_connbytes(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let used = given.require("connbytes")?;
    let (from, to) = read::range64(used.value())?;
    Ok(Match::Connbytes(ConnbytesMatch {
        // As there: a range of one is not inverted, since the ends of an inverted one are exchanged to say so.
        not: used.not && from != to,
        from,
        to,
        what: named(&WHAT, given.require("connbytes-mode")?.value())?,
        dir: named(&DIRS, given.require("connbytes-dir")?.value())?,
    }))
}

pub(super) fn print_connbytes(m: &ConnbytesMatch, out: &mut String) {
    out.push_str(" -m connbytes");
    option_value(out, m.not, "connbytes", m.from);
    if m.to != u64::MAX {
        push(out, format_args!(":{}", m.to));
    }
    option_value(out, false, "connbytes-mode", WHAT.iter().find(|e| e.1 == m.what).map_or("", |e| e.0));
    option_value(out, false, "connbytes-dir", DIRS.iter().find(|e| e.1 == m.dir).map_or("", |e| e.0));
}

pub(super) static CONNLIMIT: Extension<Match> = Extension {
    names: &["connlimit"],
    family: None,
    options: &[
        value(&["connlimit-upto"]).not(),
        value(&["connlimit-above"]).not(),
        value(&["connlimit-mask"]),
        flag(&["connlimit-saddr"]),
        flag(&["connlimit-daddr"]),
    ],
    build: build_connlimit,
};

fn build_connlimit(scope: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    given.at_most_one(&["connlimit-upto", "connlimit-above"])?;
    given.at_most_one(&["connlimit-saddr", "connlimit-daddr"])?;
    let (used, above) = match (given.get("connlimit-upto"), given.get("connlimit-above")) {
        (Some(u), _) => (u, u.not),
        (_, Some(u)) => (u, !u.not),
        _ => return Err(given.missing("--connlimit-upto or --connlimit-above")),
    };
    Ok(Match::Connlimit(ConnlimitMatch {
        above,
        limit: read::number32(used.value())?,
        prefix: given.read("connlimit-mask", |w| prefix(scope.family, w))?.unwrap_or_else(|| read::bits_of(scope.family)),
        dest: given.has("connlimit-daddr"),
    }))
}

/// The length of a prefix, or a mask that is one.
fn prefix(family: Family, word: &Word<'_>) -> Result<u8, Fault> {
    let most = read::bits_of(family);
    let mask = |a: IpAddr| read::prefix_len(a);
    let length = match read::number(word.as_str()) {
        Some(n) => u8::try_from(n).ok().filter(|n| *n <= most),
        None => read::full_address(family, word.as_str()).and_then(mask),
    };
    length.ok_or_else(|| word.fault(ErrorKind::BadValue(format!("the length of a prefix, 0 to {most}"))))
}

pub(super) fn print_connlimit(m: &ConnlimitMatch, out: &mut String) {
    out.push_str(" -m connlimit");
    option_value(out, false, if m.above { "connlimit-above" } else { "connlimit-upto" }, m.limit);
    option_value(out, false, "connlimit-mask", m.prefix);
    option(out, false, if m.dest { "connlimit-daddr" } else { "connlimit-saddr" });
}
