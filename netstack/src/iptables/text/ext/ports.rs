//! Matches on ports and the TCP header: `tcp`, `udp`, `multiport`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Opt, Scope, option, option_value, push, value};
use crate::iptables::{Inv, Match, PortRange, Ports};

const SPORT: Opt = value(&["sport", "source-port"]).not();
const DPORT: Opt = value(&["dport", "destination-port"]).not();

pub(super) static TCP: Extension<Match> = Extension {
    names: &["tcp"],
    family: None,
    options: &[
        SPORT,
        DPORT,
        Opt { names: &["tcp-flags"], values: 2, invert: true, refused: None },
        Opt { names: &["syn"], values: 0, invert: true, refused: None },
        value(&["tcp-option"]).not(),
    ],
    build: build_tcp,
};

pub(super) static UDP: Extension<Match> = Extension { names: &["udp"], family: None, options: &[SPORT, DPORT], build: build_udp };

pub(super) static MULTIPORT: Extension<Match> = Extension {
    names: &["multiport"],
    family: None,
    options: &[value(&["sports", "source-ports"]).not(), value(&["dports", "destination-ports"]).not(), value(&["ports"]).not()],
    build: build_multiport,
};

const FLAGS: [(&str, u8); 6] = [("FIN", 1), ("SYN", 2), ("RST", 4), ("PSH", 8), ("ACK", 16), ("URG", 32)];
const SYN: (u8, u8) = (0x17, 0x02);

type ReadPorts = fn(&Word<'_>) -> Result<PortRange, Fault>;

/// A range of ports, unless it is every port.
fn range(given: &Given<'_>, name: &str, read: ReadPorts) -> Result<Option<Inv<PortRange>>, Fault> {
    let every = |p: &Inv<PortRange>| !p.not && p.value == (0, u16::MAX);
    Ok(given.inv(name, read)?.filter(|p| !every(p)))
}

fn flags(word: &Word<'_>) -> Result<u8, Fault> {
    let one = |name: &str| match name.to_ascii_uppercase().as_str() {
        "ALL" => Some(0x3f),
        "NONE" => Some(0),
        name => FLAGS.iter().find(|f| f.0 == name).map(|f| u16::from(f.1)),
    };
    read::bits(word, "a list of SYN, ACK, FIN, RST, URG, PSH, ALL, NONE", one).map(|bits| bits as u8)
}

fn build_tcp(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    given.at_most_one(&["tcp-flags", "syn"])?;
    let both = |u: &super::Use<'_>| match u.values.as_slice() {
        [mask, set] => Ok(Inv { not: u.not, value: (flags(mask)?, flags(set)?) }),
        _ => Err(u.word.fault(ErrorKind::NeedsValue)),
    };
    let flags = given.get("tcp-flags").map(both).transpose()?;
    let flags = flags.or_else(|| given.get("syn").map(|u| Inv { not: u.not, value: SYN }));
    Ok(Match::Tcp {
        sport: range(given, "sport", read::ports)?,
        dport: range(given, "dport", read::ports)?,
        flags: flags.filter(|f| f.not || f.value != (0, 0)),
        option: given.inv("tcp-option", |w| read::number_in(w, 1, 255).map(|n| n as u8))?,
    })
}

fn build_udp(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let read = read::decimal_ports;
    Ok(Match::Udp { sport: range(given, "sport", read)?, dport: range(given, "dport", read)? })
}

fn build_multiport(scope: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    const PLACES: usize = 15;
    given.at_most_one(&["sports", "dports", "ports"])?;
    if !scope.proto.is_some_and(|p| !p.not && matches!(p.value, 6 | 17 | 33 | 132 | 136)) {
        let why = "multiport needs -p tcp, udp, udplite, sctp or dccp";
        return Err(given.head.fault(ErrorKind::Combination(why.to_owned())));
    }
    let which = [("sports", Ports::Source), ("dports", Ports::Destination), ("ports", Ports::Either)];
    let found = which.into_iter().find_map(|(name, which)| given.get(name).map(|u| (which, u)));
    let Some((which, list)) = found else { return Err(given.missing("--sports, --dports or --ports")) };
    let word = list.value();
    let bad = || word.bad("ports and ranges FIRST:LAST, separated by commas");
    let mut ports = Vec::new();
    let mut places = 0;
    for part in word.as_str().split(',') {
        let port = |text: &str| read::port(text).filter(|_| !text.is_empty()).ok_or_else(bad);
        let one = match part.split_once(':') {
            None => port(part).map(|p| (p, p))?,
            Some((first, last)) => (port(first)?, port(last)?),
        };
        places += if part.contains(':') { 2 } else { 1 };
        if places > PLACES {
            return Err(word.bad(format!("at most {PLACES} ports, where a range takes two places")));
        }
        if part.contains(':') && one.0 >= one.1 {
            return Err(word.bad("ranges whose last port is greater than the first"));
        }
        ports.push(one);
    }
    Ok(Match::Multiport { which, ports: Inv { not: list.not, value: ports } })
}

fn print_range(name: &str, range: &Option<Inv<PortRange>>, out: &mut String) {
    if let Some(Inv { not, value: (first, last) }) = *range {
        option_value(out, not, name, first);
        if first != last {
            push(out, format_args!(":{last}"));
        }
    }
}

fn print_flags(flags: u8, out: &mut String) {
    let mut separator = ' ';
    for (name, _) in FLAGS.iter().filter(|f| flags & f.1 != 0) {
        out.push(separator);
        out.push_str(name);
        separator = ',';
    }
    if separator == ' ' {
        out.push_str(" NONE");
    }
}

pub(super) fn print_tcp(
    sport: &Option<Inv<PortRange>>,
    dport: &Option<Inv<PortRange>>,
    flags: &Option<Inv<(u8, u8)>>,
    kind: &Option<Inv<u8>>,
    out: &mut String,
) {
    out.push_str(" -m tcp");
    print_range("sport", sport, out);
    print_range("dport", dport, out);
    if let Some(kind) = kind {
        option_value(out, kind.not, "tcp-option", kind.value);
    }
    if let Some(Inv { not, value: (mask, set) }) = *flags {
        option(out, not, "tcp-flags");
        print_flags(mask, out);
        print_flags(set, out);
    }
}

pub(super) fn print_udp(sport: &Option<Inv<PortRange>>, dport: &Option<Inv<PortRange>>, out: &mut String) {
    out.push_str(" -m udp");
    print_range("sport", sport, out);
    print_range("dport", dport, out);
}

pub(super) fn print_multiport(which: Ports, ports: &Inv<Vec<PortRange>>, out: &mut String) {
    out.push_str(" -m multiport");
    let name = match which {
        Ports::Source => "sports",
        Ports::Destination => "dports",
        Ports::Either => "ports",
    };
    option(out, ports.not, name);
    let mut separator = ' ';
    for (first, last) in &ports.value {
        push(out, format_args!("{separator}{first}"));
        if first != last {
            push(out, format_args!(":{last}"));
        }
        separator = ',';
    }
}
