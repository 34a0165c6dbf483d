//! Address translation: `DNAT`, `SNAT`, `MASQUERADE`, `REDIRECT`, `NETMAP`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Opt, Scope, flag, option, push, value};
use crate::iptables::{Family, Net, Target};
use crate::nat::NatRange;
use core::net::IpAddr;

const RANDOM: Opt = flag(&["random"]);
const RANDOM_FULLY: Opt = flag(&["random-fully"]);
const PERSISTENT: Opt = flag(&["persistent"]);

pub(super) static DNAT: Extension<Target> = Extension {
    names: &["DNAT"],
    family: None,
    options: &[value(&["to-destination"]), RANDOM, PERSISTENT],
    build: |scope, given| Ok(Target::Dnat(build_to(scope, given, "to-destination", true)?)),
};

pub(super) static SNAT: Extension<Target> = Extension {
    names: &["SNAT"],
    family: None,
    options: &[value(&["to-source"]), RANDOM, RANDOM_FULLY, PERSISTENT],
    build: |scope, given| Ok(Target::Snat(build_to(scope, given, "to-source", false)?)),
};

pub(super) static MASQUERADE: Extension<Target> = Extension {
    names: &["MASQUERADE"],
    family: None,
    options: &[value(&["to-ports"]), RANDOM, RANDOM_FULLY],
    build: |scope, given| Ok(Target::Masquerade(build_ports(scope, given)?)),
};

pub(super) static REDIRECT: Extension<Target> = Extension {
    names: &["REDIRECT"],
    family: None,
    options: &[value(&["to-ports"]), RANDOM],
    build: |scope, given| Ok(Target::Redirect(build_ports(scope, given)?)),
};

pub(super) static NETMAP: Extension<Target> =
    Extension { names: &["NETMAP"], family: None, options: &[value(&["to"])], build: build_netmap };

/// Ports, and the base of a shifted range.
type Ports = ((u16, u16), Option<u16>);

/// `FIRST[-LAST[/BASE]]`, or the name of a service.
fn ports(scope: &Scope, word: &Word<'_>, text: &str, shift: bool) -> Result<Ports, Fault> {
    if !scope.proto.is_some_and(|p| matches!(p.value, 1 | 6 | 17 | 33 | 132)) {
        let why = "ports need -p tcp, udp, sctp, dccp or icmp in front";
        return Err(word.fault(ErrorKind::Combination(why.to_owned())));
    }
    let bad = || word.bad("PORT or FIRST-LAST, from 0 to 65535, or the name of a common service");
    // A name may have a hyphen: it is not a range.
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        let port = read::port(text).ok_or_else(bad)?;
        return Ok(((port, port), None));
    }
    let (range, base) = text.split_once('/').map_or((text, None), |(range, base)| (range, Some(base)));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (read::port(first).ok_or_else(bad)?, read::port(last).ok_or_else(bad)?);
    if first > last {
        return Err(word.bad("a range of ports that does not run backwards"));
    }
    let base = match base {
        None => None,
        Some(_) if !shift => {
            return Err(word.fault(ErrorKind::Unsupported {
                what: "a base behind the ports".to_owned(),
                reason: "only DNAT can shift ranges".to_owned(),
            }));
        }
        Some(_) if !range.contains('-') => return Err(word.bad("a range of ports in front of the base")),
        Some(base) => Some(read::port(base).filter(|base| *base > 0).ok_or_else(|| word.bad("a base from 1 to 65535"))?),
    };
    Ok(((first, last), base))
}

/// Full addresses only, `FIRST[-LAST]`.
fn addresses(family: Family, word: &Word<'_>, text: &str) -> Result<(IpAddr, IpAddr), Fault> {
    let one = |text: &str| read::full_address(family, text);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (one(first), one(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        (Some(_), Some(_)) => Err(word.bad("a range of addresses that does not run backwards")),
        _ => Err(word.bad(match family {
            Family::V4 => "ADDRESS[-ADDRESS][:PORTS] or :PORTS",
            Family::V6 => "ADDRESS[-ADDRESS], [ADDRESS[-ADDRESS]]:PORTS or :PORTS",
        })),
    }
}

fn flags(given: &Given<'_>) -> NatRange {
    NatRange {
        random: given.has("random"),
        random_fully: given.has("random-fully"),
        persistent: given.has("persistent"),
        ..NatRange::default()
    }
}

fn build_to(scope: &Scope, given: &Given<'_>, name: &str, shift: bool) -> Result<NatRange, Fault> {
    let word = given.require(name)?.value();
    let text = word.as_str();
    let (addrs, after) = match text.strip_prefix('[') {
        Some(_) if scope.family == Family::V4 => return Err(word.bad("an IPv4 address, which has no brackets")),
        Some(inner) => {
            let (addrs, rest) = inner.split_once(']').ok_or_else(|| word.bad("a closing bracket"))?;
            let ports = rest.strip_prefix(':');
            if ports.is_none() && !rest.is_empty() {
                return Err(word.bad("`:` and ports after the bracket"));
            }
            (addrs, ports)
        }
        // More than one colon is an IPv6 address.
        None => match text.split_once(':') {
            Some((addrs, ports)) if !ports.contains(':') => (addrs, Some(ports)),
            _ => (text, None),
        },
    };
    let mut range = flags(given);
    if let Some(after) = after {
        let (ports, base) = ports(scope, word, after, shift)?;
        (range.ports, range.base) = (Some(ports), base);
    }
    if after.is_none() || !addrs.is_empty() {
        range.addrs = Some(addresses(scope.family, word, addrs)?);
    }
    Ok(range)
}

fn build_ports(scope: &Scope, given: &Given<'_>) -> Result<NatRange, Fault> {
    let mut range = flags(given);
    range.ports = given.read("to-ports", |w| ports(scope, w, w.as_str(), false).map(|p| p.0))?;
    Ok(range)
}

fn build_netmap(scope: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    let word = given.require("to")?.value();
    let net = read::full_net(scope.family, word)?;
    if read::prefix_len(net.mask).is_none() {
        return Err(word.bad("a network: a mask whose ones are all in front"));
    }
    Ok(Target::Netmap(net))
}

fn print_flags(range: &NatRange, out: &mut String) {
    let all = [("random", range.random), ("random-fully", range.random_fully), ("persistent", range.persistent)];
    all.into_iter().filter(|f| f.1).for_each(|(name, _)| option(out, false, name));
}

fn print_port_range(range: &NatRange, out: &mut String) {
    if let Some((first, last)) = range.ports {
        push(out, format_args!("{first}"));
        if first != last {
            push(out, format_args!("-{last}"));
        }
        if let Some(base) = range.base {
            push(out, format_args!("/{base}"));
        }
    }
}

pub(super) fn print_nat(target: &str, name: &str, range: &NatRange, out: &mut String) {
    push(out, format_args!(" -j {target}"));
    if range.addrs.is_some() || range.ports.is_some() {
        option(out, false, name);
        out.push(' ');
    }
    if let Some((first, last)) = range.addrs {
        let brackets = first.is_ipv6() && range.ports.is_some();
        out.push_str(if brackets { "[" } else { "" });
        push(out, format_args!("{}", read::Shown(first)));
        if first != last {
            push(out, format_args!("-{}", read::Shown(last)));
        }
        out.push_str(if brackets { "]" } else { "" });
    }
    if range.ports.is_some() {
        out.push(':');
        print_port_range(range, out);
    }
    print_flags(range, out);
}

pub(super) fn print_ports(target: &str, range: &NatRange, out: &mut String) {
    push(out, format_args!(" -j {target}"));
    if range.ports.is_some() {
        option(out, false, "to-ports");
        out.push(' ');
        print_port_range(range, out);
    }
    print_flags(range, out);
}

pub(super) fn print_netmap(net: &Net, out: &mut String) {
    push(out, format_args!(" -j NETMAP --to {}", read::Shown(net.addr)));
    match read::prefix_len(net.mask) {
        Some(len) => push(out, format_args!("/{len}")),
        None => push(out, format_args!("/{}", read::Shown(net.mask))),
    }
}
