//! Matches on tracked connections: `conntrack`, `state`.

use super::super::error::Fault;
use super::super::value as read;
use super::{Extension, Given, Scope, option_value, push, value};
use crate::iptables::{CtMatch, Family, Inv, Match, Net, PortRange, ctstate, ctstatus};

pub(super) static CONNTRACK: Extension<Match> = Extension {
    names: &["conntrack"],
    family: None,
    options: &[
        value(&["ctstate"]).not(),
        value(&["ctproto"]).not(),
        value(&["ctorigsrc"]).not(),
        value(&["ctorigdst"]).not(),
        value(&["ctreplsrc"]).not(),
        value(&["ctrepldst"]).not(),
        value(&["ctorigsrcport"]).not(),
        value(&["ctorigdstport"]).not(),
        value(&["ctreplsrcport"]).not(),
        value(&["ctrepldstport"]).not(),
        value(&["ctstatus"]).not(),
        value(&["ctexpire"]).not(),
        value(&["ctdir"]),
    ],
    build,
};

pub(super) static STATE: Extension<Match> =
    Extension { names: &["state"], family: None, options: &[value(&["state"]).not()], build: build_state };

/// States in the order in which they are printed.
const STATES: [(&str, u16); 7] = [
    ("INVALID", ctstate::INVALID),
    ("NEW", ctstate::NEW),
    ("RELATED", ctstate::RELATED),
    ("ESTABLISHED", ctstate::ESTABLISHED),
    ("UNTRACKED", ctstate::UNTRACKED),
    ("SNAT", ctstate::SNAT),
    ("DNAT", ctstate::DNAT),
];
/// How many of them `state` knows.
const PLAIN_STATES: usize = 5;

const STATUS: [(&str, u16); 5] = [
    ("NONE", 0),
    ("EXPECTED", ctstatus::EXPECTED),
    ("SEEN_REPLY", ctstatus::SEEN_REPLY),
    ("ASSURED", ctstatus::ASSURED),
    ("CONFIRMED", ctstatus::CONFIRMED),
];

fn named(table: &[(&str, u16)], name: &str) -> Option<u16> {
    table.iter().find(|s| s.0.eq_ignore_ascii_case(name)).map(|s| s.1)
}

fn build_state(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let used = given.require("state")?;
    let expected = "a list of INVALID, NEW, RELATED, ESTABLISHED, UNTRACKED";
    let bits = read::bits(used.value(), expected, |name| named(&STATES[..PLAIN_STATES], name))?;
    Ok(Match::State(Inv { not: used.not, value: bits }))
}

fn build(scope: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    if given.uses.is_empty() {
        return Err(given.missing("at least one of the options of conntrack"));
    }
    let family = scope.family;
    let net = |name| given.inv(name, |w| read::full_net(family, w));
    let ports = |name| given.inv(name, read::decimal_ports);
    let states = "a list of INVALID, NEW, RELATED, ESTABLISHED, UNTRACKED, SNAT, DNAT";
    let status = "a list of NONE, EXPECTED, SEEN_REPLY, ASSURED, CONFIRMED";
    Ok(Match::Conntrack(Box::new(CtMatch {
        state: given.inv("ctstate", |w| read::bits(w, states, |name| named(&STATES, name)))?,
        proto: given.inv("ctproto", |w| match read::protocol(w)? {
            0 => Err(w.bad("a protocol that is not 0")),
            proto => Ok(proto),
        })?,
        orig_src: net("ctorigsrc")?,
        orig_dst: net("ctorigdst")?,
        repl_src: net("ctreplsrc")?,
        repl_dst: net("ctrepldst")?,
        orig_sport: ports("ctorigsrcport")?,
        orig_dport: ports("ctorigdstport")?,
        repl_sport: ports("ctreplsrcport")?,
        repl_dport: ports("ctrepldstport")?,
        status: given.inv("ctstatus", |w| read::bits(w, status, |name| named(&STATUS, name)))?,
        expire: given.inv("ctexpire", read::range32)?,
        reply: given.read("ctdir", |w| match w.as_str().to_ascii_uppercase().as_str() {
            "ORIGINAL" => Ok(false),
            "REPLY" => Ok(true),
            _ => Err(w.bad("ORIGINAL or REPLY")),
        })?,
    })))
}

fn print_names(name: &str, table: &[(&str, u16)], bits: &Inv<u16>, out: &mut String) {
    super::option(out, bits.not, name);
    let mut separator = ' ';
    for (name, bit) in table {
        if (*bit == 0 && bits.value == 0) || bits.value & bit != 0 {
            out.push(separator);
            out.push_str(name);
            separator = ',';
        }
    }
}

pub(super) fn print_state(states: &Inv<u16>, out: &mut String) {
    out.push_str(" -m state");
    print_names("state", &STATES[..PLAIN_STATES], states, out);
}

fn print_net(name: &str, net: &Option<Inv<Net>>, family: Family, out: &mut String) {
    let Some(Inv { not, value: net }) = net else { return };
    option_value(out, *not, name, read::Shown(net.addr));
    let bits = if family == Family::V4 { 32 } else { 128 };
    match read::prefix_len(net.mask) {
        Some(len) if len == bits => {}
        Some(len) => push(out, format_args!("/{len}")),
        None => push(out, format_args!("/{}", read::Shown(net.mask))),
    }
}

fn print_range<T: PartialEq + std::fmt::Display>(name: &str, range: &Option<Inv<(T, T)>>, out: &mut String) {
    if let Some(Inv { not, value: (first, last) }) = range {
        option_value(out, *not, name, first);
        if first != last {
            push(out, format_args!(":{last}"));
        }
    }
}

pub(super) fn print(family: Family, ct: &CtMatch, out: &mut String) {
    out.push_str(" -m conntrack");
    if let Some(states) = &ct.state {
        print_names("ctstate", &STATES, states, out);
    }
    if let Some(proto) = ct.proto {
        option_value(out, proto.not, "ctproto", proto.value);
    }
    let nets =
        [("ctorigsrc", &ct.orig_src), ("ctorigdst", &ct.orig_dst), ("ctreplsrc", &ct.repl_src), ("ctrepldst", &ct.repl_dst)];
    nets.into_iter().for_each(|(name, net)| print_net(name, net, family, out));
    let ports: [(&str, &Option<Inv<PortRange>>); 4] = [
        ("ctorigsrcport", &ct.orig_sport),
        ("ctorigdstport", &ct.orig_dport),
        ("ctreplsrcport", &ct.repl_sport),
        ("ctrepldstport", &ct.repl_dport),
    ];
    ports.into_iter().for_each(|(name, range)| print_range(name, range, out));
    if let Some(status) = &ct.status {
        print_names("ctstatus", &STATUS, status, out);
    }
    print_range("ctexpire", &ct.expire, out);
    if let Some(reply) = ct.reply {
        option_value(out, false, "ctdir", if reply { "REPLY" } else { "ORIGINAL" });
    }
}
