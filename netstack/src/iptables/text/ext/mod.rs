//! Matches and targets: one file per group, one entry of a table per extension.
//!
//! An entry says which options there are; the walker in [`super::options`] collects what a line gives of them, and `build`
//! makes a value of it. Printing is by the kind of value, so that no kind can be forgotten.

mod addrtype;
mod alter;
mod comment;
mod conntrack;
mod content;
mod count;
mod ct;
mod fields;
mod hashlimit;
mod headers;
mod icmp;
mod iprange;
mod limit;
mod log;
mod mac;
mod mark;
mod nat;
mod owner;
mod ports;
mod recent;
mod refused;
mod reject;
mod rpfilter;
mod sctp;
mod set;
mod statistic;
mod time;
mod tos;

use super::error::{ErrorKind, Fault};
use super::lexer::Word;
use crate::iptables::{Family, Inv, Match, Target};
use std::fmt::{self, Write};

pub(super) use refused::{refused_match, refused_target};

/// An option of an extension.
pub(super) struct Opt {
    /// Its names without the dashes, the usual one first.
    pub names: &'static [&'static str],
    /// How many words follow.
    pub values: u8,
    /// Whether `!` may stand before it.
    pub invert: bool,
    /// Why it is not supported, if it is not.
    pub refused: Option<&'static str>,
}

/// An option with one value.
pub(super) const fn value(names: &'static [&'static str]) -> Opt {
    Opt { names, values: 1, invert: false, refused: None }
}

/// An option without value.
pub(super) const fn flag(names: &'static [&'static str]) -> Opt {
    Opt { names, values: 0, invert: false, refused: None }
}

impl Opt {
    /// `!` may stand before it.
    pub const fn not(mut self) -> Self {
        self.invert = true;
        self
    }

    /// It is there only to be refused by name.
    pub const fn refuse(mut self, reason: &'static str) -> Self {
        self.refused = Some(reason);
        self
    }
}

/// A kind of match or target.
pub(super) struct Extension<T: 'static> {
    /// Its names, the one that is printed first.
    pub names: &'static [&'static str],
    /// The family that has it; `None` for both.
    pub family: Option<Family>,
    /// Its options.
    pub options: &'static [Opt],
    /// Makes the value.
    pub build: fn(&Scope, &Given<'_>) -> Result<T, Fault>,
}

/// What surrounds an extension.
pub(super) struct Scope {
    pub family: Family,
    /// `-p` of the rule.
    pub proto: Option<Inv<u8>>,
}

/// An option on a line.
#[derive(Debug)]
pub(super) struct Use<'a> {
    /// Which, by its place in the table of options.
    pub opt: usize,
    /// `!` stood before it.
    pub not: bool,
    /// The option itself.
    pub word: Word<'a>,
    /// Its values.
    pub values: Vec<Word<'a>>,
}

impl<'a> Use<'a> {
    /// The value of an option that has one.
    pub fn value(&self) -> &Word<'a> {
        self.values.first().unwrap_or(&self.word)
    }
}

/// The options that a line gives to an extension.
pub(super) struct Given<'a> {
    /// The name of the extension, or what made it be there.
    pub head: Word<'a>,
    pub options: &'static [Opt],
    pub uses: Vec<Use<'a>>,
}

impl<'a> Given<'a> {
    /// An option by the first of its names.
    pub fn get(&self, name: &str) -> Option<&Use<'a>> {
        self.uses.iter().find(|u| self.options.get(u.opt).is_some_and(|o| o.names.first() == Some(&name)))
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// An option that must be there.
    pub fn require(&self, name: &str) -> Result<&Use<'a>, Fault> {
        self.get(name).ok_or_else(|| self.missing(&format!("--{name}")))
    }

    pub fn missing(&self, what: &str) -> Fault {
        self.head.fault(ErrorKind::Missing(what.to_owned()))
    }

    /// Value of an option, with its `!`.
    pub fn inv<T>(&self, name: &str, read: impl FnOnce(&Word<'a>) -> Result<T, Fault>) -> Result<Option<Inv<T>>, Fault> {
        self.get(name).map(|u| Ok(Inv { not: u.not, value: read(u.value())? })).transpose()
    }

    /// Value of an option.
    pub fn read<T>(&self, name: &str, read: impl FnOnce(&Word<'a>) -> Result<T, Fault>) -> Result<Option<T>, Fault> {
        self.get(name).map(|u| read(u.value())).transpose()
    }

    /// Refuses more than one of some options.
    pub fn at_most_one(&self, names: &[&str]) -> Result<(), Fault> {
        let mut given = names.iter().filter_map(|n| self.get(n).map(|u| (n, u)));
        match (given.next(), given.next()) {
            (Some((a, _)), Some((b, u))) => {
                Err(u.word.fault(ErrorKind::Combination(format!("--{a} and --{b} exclude each other"))))
            }
            _ => Ok(()),
        }
    }
}

/// All matches. A new one needs an entry here and an arm in [`print_match`].
static MATCHES: &[&Extension<Match>] = &[
    &ports::TCP,
    &ports::UDP,
    &ports::MULTIPORT,
    &icmp::ICMP,
    &icmp::ICMP6,
    &conntrack::CONNTRACK,
    &conntrack::STATE,
    &comment::COMMENT,
    &mark::MARK_MATCH,
    &mark::CONNMARK_MATCH,
    &addrtype::ADDRTYPE,
    &limit::LIMIT,
    &statistic::STATISTIC,
    &mac::MAC,
    &iprange::IPRANGE,
    &owner::OWNER,
    &fields::PKTTYPE,
    &fields::TTL,
    &fields::HL,
    &fields::LENGTH,
    &fields::TCPMSS,
    &fields::ESP,
    &fields::AH,
    &fields::IPCOMP,
    &tos::TOS_MATCH,
    &tos::DSCP_MATCH,
    &tos::ECN,
    &sctp::SCTP,
    &time::TIME,
    &rpfilter::RPFILTER,
    &content::STRING,
    &content::U32,
    &headers::AH,
    &headers::FRAG,
    &headers::HBH,
    &headers::DST,
    &headers::RT,
    &headers::IPV6HEADER,
    &headers::EUI64,
    &headers::MH,
    &set::SET_MATCH,
    &recent::RECENT,
    &count::CONNBYTES,
    &count::CONNLIMIT,
    &hashlimit::HASHLIMIT,
];

/// All targets but the verdicts. A new one needs an entry here and an arm in [`print_target`].
static TARGETS: &[&Extension<Target>] = &[
    &reject::REJECT,
    &log::LOG,
    &nat::DNAT,
    &nat::SNAT,
    &nat::MASQUERADE,
    &nat::REDIRECT,
    &nat::NETMAP,
    &mark::MARK,
    &mark::CONNMARK,
    &ct::CT,
    &ct::NOTRACK,
    &alter::TTL,
    &alter::HL,
    &alter::TCPMSS,
    &alter::CHECKSUM,
    &alter::TRACE,
    &alter::NFLOG,
    &tos::TOS,
    &tos::DSCP,
    &set::SET,
];

fn find<T>(table: &[&'static Extension<T>], family: Family, name: &str) -> Option<&'static Extension<T>> {
    table.iter().find(|e| e.names.contains(&name) && e.family.is_none_or(|f| f == family)).copied()
}

/// A match by its name.
pub(super) fn find_match(family: Family, name: &str) -> Option<&'static Extension<Match>> {
    find(MATCHES, family, name)
}

/// A target by its name.
pub(super) fn find_target(family: Family, name: &str) -> Option<&'static Extension<Target>> {
    find(TARGETS, family, name)
}

/// The match or target that has an option of this name, for advice.
pub(super) fn owner_of(family: Family, option: &str) -> Option<(char, &'static str)> {
    fn has<T>(table: &[&'static Extension<T>], family: Family, option: &str) -> Option<&'static str> {
        let mut of_family = table.iter().filter(|e| e.family.is_none_or(|f| f == family));
        of_family.find(|e| e.options.iter().any(|o| o.names.contains(&option))).and_then(|e| e.names.first()).copied()
    }
    has(MATCHES, family, option).map(|n| ('m', n)).or_else(|| has(TARGETS, family, option).map(|n| ('j', n)))
}

/// ` --name`, after ` !` if inverted.
fn option(out: &mut String, not: bool, name: &str) {
    out.push_str(if not { " ! --" } else { " --" });
    out.push_str(name);
}

/// ` --name value`.
fn option_value(out: &mut String, not: bool, name: &str, value: impl fmt::Display) {
    option(out, not, name);
    push(out, format_args!(" {value}"));
}

/// Writes to a string, which cannot fail.
pub(super) fn push(out: &mut String, args: fmt::Arguments<'_>) {
    let written = out.write_fmt(args);
    debug_assert!(written.is_ok());
}

/// A string as `iptables-save` quotes it, after a blank: bare if it is made of letters, digits, `_` and `-` only.
fn quoted(out: &mut String, text: &str) {
    out.push(' ');
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// The name of a table. The real tools never quote it; where they could not read it back it is quoted all the same.
fn table_name(out: &mut String, name: &str) {
    if name.is_empty()
        || name.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || matches!(b, b'"' | b'\'' | b'\\'))
    {
        return quoted(out, name);
    }
    out.push(' ');
    out.push_str(name);
}

/// ` -m NAME` and its options.
pub(super) fn print_match(m: &Match, family: Family, out: &mut String) {
    match m {
        Match::Tcp { sport, dport, flags, option } => ports::print_tcp(sport, dport, flags, option, out),
        Match::Udp { sport, dport } => ports::print_udp(sport, dport, out),
        Match::Multiport { which, ports } => ports::print_multiport(*which, ports, out),
        Match::Icmp(ty) => icmp::print(family, ty, out),
        Match::Conntrack(ct) => conntrack::print(family, ct, out),
        Match::State(states) => conntrack::print_state(states, out),
        Match::Comment(text) => comment::print(text, out),
        Match::Mark(mark) => mark::print_match("mark", mark, out),
        Match::Connmark(mark) => mark::print_match("connmark", mark, out),
        Match::Addrtype { src, dst, limit_in, limit_out } => addrtype::print(src, dst, *limit_in, *limit_out, out),
        Match::Limit { rate, unit, burst } => limit::print(*rate, *unit, *burst, out),
        Match::Statistic(statistic) => statistic::print(statistic, out),
        Match::Mac(mac) => mac::print(mac, out),
        Match::Iprange { src, dst } => iprange::print(src, dst, out),
        Match::Owner { uid, gid, socket } => owner::print(uid, gid, *socket, out),
        Match::Field(m) => fields::print(m, family, out),
        Match::Sctp(m) => sctp::print(m, out),
        Match::Time(m) => time::print(m, out),
        Match::Rpfilter(m) => rpfilter::print(m, out),
        Match::String(m) => content::print_string(m, out),
        Match::U32(m) => content::print_u32(m, out),
        Match::Extension(m) => headers::print(m, out),
        Match::Set(m) => set::print_match(m, out),
        Match::Recent(m) => recent::print(m, out),
        Match::Connbytes(m) => count::print_connbytes(m, out),
        Match::Connlimit(m) => count::print_connlimit(m, out),
        Match::Hashlimit(m) => hashlimit::print(m, family, out),
    }
}

/// ` -j NAME` and its options.
pub(super) fn print_target(target: &Target, family: Family, out: &mut String) {
    match target {
        Target::None => {}
        Target::Accept => out.push_str(" -j ACCEPT"),
        Target::Drop => out.push_str(" -j DROP"),
        Target::Return => out.push_str(" -j RETURN"),
        Target::Jump(chain) => push(out, format_args!(" -j {chain}")),
        Target::Goto(chain) => push(out, format_args!(" -g {chain}")),
        Target::Reject(with) => reject::print(*with, out),
        Target::Log(log) => log::print(log, out),
        Target::Dnat(range) => nat::print_nat("DNAT", "to-destination", range, out),
        Target::Snat(range) => nat::print_nat("SNAT", "to-source", range, out),
        Target::Masquerade(range) => nat::print_ports("MASQUERADE", range, out),
        Target::Redirect(range) => nat::print_ports("REDIRECT", range, out),
        Target::Netmap(net) => nat::print_netmap(net, out),
        Target::Mark { value, mask } => mark::print_mark(*value, *mask, out),
        Target::Connmark(connmark) => mark::print_connmark(connmark, out),
        Target::Ct(ct) => ct::print(ct, out),
        Target::Alter(a) => alter::print(a, family, out),
        Target::Nflog(log) => alter::print_nflog(log, out),
        Target::Trace => out.push_str(" -j TRACE"),
        Target::Set(t) => set::print_target(t, out),
    }
}
