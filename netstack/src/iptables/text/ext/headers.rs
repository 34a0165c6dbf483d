//! Extension headers of IPv6: `ah`, `frag`, `hbh`, `dst`, `rt`, `ipv6header`, `eui64`, `mh`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::fields::print_span;
use super::{Extension, Given, Scope, flag, option, option_value, push, value};
use crate::iptables::{ExtMatch, Family, FragMatch, Inv, Match, OptionsMatch, RouteMatch, header_bits as bits};
use core::net::Ipv6Addr;

const V6: Option<Family> = Some(Family::V6);

pub(super) static AH: Extension<Match> = Extension {
    names: &["ah"],
    family: V6,
    options: &[value(&["ahspi"]).not(), value(&["ahlen"]).not(), flag(&["ahres"])],
    build: |_, given| {
        let (spi, len) = (range(given, "ahspi")?, given.inv("ahlen", read::number32)?);
        extension(ExtMatch::Ah { spi, len, reserved: given.has("ahres") })
    },
};

pub(super) static FRAG: Extension<Match> = Extension {
    names: &["frag"],
    family: V6,
    options: &[
        value(&["fragid"]).not(),
        value(&["fraglen"]).not(),
        flag(&["fragres"]),
        flag(&["fragfirst"]),
        flag(&["fragmore"]),
        flag(&["fraglast"]),
    ],
    build: build_frag,
};

pub(super) static HBH: Extension<Match> = Extension {
    names: &["hbh"],
    family: V6,
    options: &[value(&["hbh-len"]).not(), value(&["hbh-opts"])],
    build: |_, given| options(given, false, "hbh-len", "hbh-opts"),
};

pub(super) static DST: Extension<Match> = Extension {
    names: &["dst"],
    family: V6,
    options: &[value(&["dst-len"]).not(), value(&["dst-opts"])],
    build: |_, given| options(given, true, "dst-len", "dst-opts"),
};

pub(super) static RT: Extension<Match> = Extension {
    names: &["rt"],
    family: V6,
    options: &[
        value(&["rt-type"]).not(),
        value(&["rt-segsleft"]).not(),
        value(&["rt-len"]).not(),
        flag(&["rt-0-res"]),
        value(&["rt-0-addrs"]),
        flag(&["rt-0-not-strict"]),
    ],
    build: build_route,
};

pub(super) static IPV6HEADER: Extension<Match> =
    Extension { names: &["ipv6header"], family: V6, options: &[value(&["header"]).not(), flag(&["soft"])], build: build_headers };

pub(super) static EUI64: Extension<Match> =
    Extension { names: &["eui64"], family: V6, options: &[], build: |_, _| extension(ExtMatch::Eui64) };

pub(super) static MH: Extension<Match> =
    Extension { names: &["mh"], family: V6, options: &[value(&["mh-type"]).not()], build: build_mobility };

/// Most options of a header, and most addresses.
const MOST: usize = 16;

/// Names in the order in which they are printed, other names, numbers of protocols, bits.
#[rustfmt::skip]
const HEADERS: [(&str, &str, &str, u8); 8] = [
    ("hop-by-hop", "hop", "0", bits::HOP), ("ipv6-opts", "dst", "60", bits::DEST), ("ipv6-route", "route", "43", bits::ROUTE),
    ("ipv6-frag", "frag", "44", bits::FRAGMENT), ("ah", "auth", "51", bits::AH), ("esp", "esp", "50", bits::ESP),
    ("ipv6-nonxt", "none", "59", bits::NONE), ("protocol", "prot", "255", bits::PROTOCOL),
];

const MOBILITY: [(&str, u8); 8] = [("brr", 0), ("hoti", 1), ("coti", 2), ("hot", 3), ("cot", 4), ("bu", 5), ("ba", 6), ("be", 7)];

fn extension(m: ExtMatch) -> Result<Match, Fault> {
    Ok(Match::Extension(Box::new(m)))
}

/// A range of numbers, unless it is every number.
fn range(given: &Given<'_>, name: &str) -> Result<Option<Inv<(u32, u32)>>, Fault> {
    Ok(given.inv(name, read::range32)?.filter(|r| r.not || r.value != (0, u32::MAX)))
}

fn build_frag(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    given.at_most_one(&["fragmore", "fraglast"])?;
    extension(ExtMatch::Frag(FragMatch {
        id: range(given, "fragid")?,
        len: given.inv("fraglen", read::number32)?,
        reserved: given.has("fragres"),
        first: given.has("fragfirst"),
        more: if given.has("fragmore") { Some(true) } else { given.has("fraglast").then_some(false) },
    }))
}

fn options(given: &Given<'_>, dest: bool, len: &str, list: &str) -> Result<Match, Fault> {
    let one = |text: &str| {
        let byte = |text: &str| read::number(text).and_then(|n| u8::try_from(n).ok());
        match text.split_once(':') {
            None => Some((byte(text)?, None)),
            // The greatest length stands for any.
            Some((ty, len)) => Some((byte(ty)?, Some(byte(len)?).filter(|len| *len != u8::MAX))),
        }
    };
    let all = |word: &Word<'_>| {
        let found: Option<Vec<_>> = word.as_str().split(',').map(one).collect();
        let expected = "at most 16 options, TYPE[:LENGTH], separated by commas";
        found.filter(|f| f.len() <= MOST).ok_or_else(|| word.bad(expected))
    };
    let len = given.inv(len, read::number32)?;
    extension(ExtMatch::Options(OptionsMatch { dest, len, options: given.read(list, all)?.unwrap_or_default() }))
}

fn build_route(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let addrs = |word: &Word<'_>| {
        let found: Result<Vec<Ipv6Addr>, _> = word.as_str().split(',').map(str::parse).collect();
        found.ok().filter(|f| f.len() <= MOST).ok_or_else(|| word.bad("at most 16 IPv6 addresses, separated by commas"))
    };
    let m = RouteMatch {
        ty: given.inv("rt-type", read::number32)?,
        left: range(given, "rt-segsleft")?,
        len: given.inv("rt-len", read::number32)?,
        reserved: given.has("rt-0-res"),
        addrs: given.read("rt-0-addrs", addrs)?.unwrap_or_default(),
        not_strict: given.has("rt-0-not-strict"),
    };
    let zero = m.ty.is_some_and(|t| t.value == 0 && !t.not);
    if let Some(used) = given.get("rt-0-res").or(given.get("rt-0-addrs")).filter(|_| !zero) {
        return Err(used.word.fault(ErrorKind::Combination("it needs --rt-type 0 before".to_owned())));
    }
    if let Some(used) = given.get("rt-0-not-strict").filter(|_| m.addrs.is_empty()) {
        return Err(used.word.fault(ErrorKind::Combination("it needs --rt-0-addrs before".to_owned())));
    }
    extension(ExtMatch::Route(m))
}

fn build_headers(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let used = given.require("header")?;
    let one = |text: &str| HEADERS.iter().find(|h| h.0 == text || h.1 == text || h.2 == text).map(|h| u16::from(h.3));
    let expected =
        "hop-by-hop, ipv6-opts, ipv6-route, ipv6-frag, ah, esp, ipv6-nonxt, protocol, or hop, dst, route, frag, auth, none, prot";
    let value = read::bits(used.value(), expected, one)? as u8;
    extension(ExtMatch::Headers { bits: Inv { not: used.not, value }, soft: given.has("soft") })
}

fn build_mobility(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let types = |word: &Word<'_>| {
        let one = |text: &str, missing: u8| {
            let named = MOBILITY.iter().find(|m| m.0.eq_ignore_ascii_case(text)).map(|m| m.1);
            let number = || read::number(text).and_then(|n| u8::try_from(n).ok());
            if text.is_empty() { Some(missing) } else { named.or_else(number) }
        };
        let found = match word.as_str().split_once(':') {
            None => one(word.as_str(), 0).filter(|_| !word.as_str().is_empty()).map(|n| (n, n)),
            Some((first, last)) => one(first, 0).zip(one(last, u8::MAX)),
        };
        found.filter(|(first, last)| first <= last).ok_or_else(|| word.bad("a type of mobility header, or FIRST:LAST"))
    };
    let types = given.inv("mh-type", types)?.filter(|t| t.not || t.value != (0, u8::MAX));
    extension(ExtMatch::Mobility(types))
}

fn print_number(name: &str, number: &Option<Inv<u32>>, out: &mut String) {
    if let Some(n) = number {
        option_value(out, n.not, name, n.value);
    }
}

fn print_flags(flags: &[(&str, bool)], out: &mut String) {
    flags.iter().filter(|f| f.1).for_each(|f| option(out, false, f.0));
}

pub(super) fn print(m: &ExtMatch, out: &mut String) {
    match m {
        ExtMatch::Ah { spi, len, reserved } => {
            out.push_str(" -m ah");
            spi.iter().for_each(|r| print_span("ahspi", r, out));
            print_number("ahlen", len, out);
            print_flags(&[("ahres", *reserved)], out);
        }
        ExtMatch::Frag(f) => {
            out.push_str(" -m frag");
            f.id.iter().for_each(|r| print_span("fragid", r, out));
            print_number("fraglen", &f.len, out);
            let (more, last) = (f.more == Some(true), f.more == Some(false));
            print_flags(&[("fragres", f.reserved), ("fragfirst", f.first), ("fragmore", more), ("fraglast", last)], out);
        }
        ExtMatch::Options(o) => print_options(o, out),
        ExtMatch::Route(r) => print_route(r, out),
        ExtMatch::Headers { bits, soft } => {
            out.push_str(" -m ipv6header");
            option(out, bits.not, "header");
            let names = HEADERS.iter().filter(|h| bits.value & h.3 != 0);
            names.enumerate().for_each(|(n, h)| push(out, format_args!("{}{}", if n == 0 { " " } else { "," }, h.0)));
            print_flags(&[("soft", *soft)], out);
        }
        ExtMatch::Eui64 => out.push_str(" -m eui64"),
        ExtMatch::Mobility(types) => {
            out.push_str(" -m mh");
            types.iter().for_each(|t| print_span("mh-type", t, out));
        }
    }
}

fn print_options(o: &OptionsMatch, out: &mut String) {
    let (name, len, list) = if o.dest { ("dst", "dst-len", "dst-opts") } else { ("hbh", "hbh-len", "hbh-opts") };
    push(out, format_args!(" -m {name}"));
    print_number(len, &o.len, out);
    if o.options.is_empty() {
        return;
    }
    option(out, false, list);
    for (n, (ty, len)) in o.options.iter().enumerate() {
        push(out, format_args!("{}{ty}", if n == 0 { " " } else { "," }));
        len.iter().for_each(|len| push(out, format_args!(":{len}")));
    }
}

fn print_route(r: &RouteMatch, out: &mut String) {
    out.push_str(" -m rt");
    print_number("rt-type", &r.ty, out);
    r.left.iter().for_each(|left| print_span("rt-segsleft", left, out));
    print_number("rt-len", &r.len, out);
    print_flags(&[("rt-0-res", r.reserved)], out);
    if !r.addrs.is_empty() {
        option(out, false, "rt-0-addrs");
        for (n, addr) in r.addrs.iter().enumerate() {
            push(out, format_args!("{}{}", if n == 0 { " " } else { "," }, read::Shown((*addr).into())));
        }
    }
    print_flags(&[("rt-0-not-strict", r.not_strict)], out);
}
