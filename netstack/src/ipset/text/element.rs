//! Elements as they are written: one word, that may stand for many.

use super::words::Word;
use super::{SetError, SetFault, icmp};
use crate::ipset::body::mask;
use crate::ipset::{Head, Key, Kind};
use crate::iptables::text::names;
use crate::tuple::proto;
use core::net::{Ipv4Addr, Ipv6Addr};

const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// Seconds of a time-out.
pub(super) fn timeout(word: &Word<'_>) -> Result<u32, SetError> {
    Ok(word.number(Head::MAX_TIMEOUT.into(), "seconds from 0 to 2147483")? as u32)
}

/// What a word stands for: addresses times ports.
pub(super) struct Range {
    addrs: Addrs,
    proto: u8,
    ports: (u16, u16),
}

/// Addresses from one to another, in steps; or the nets that cover them.
struct Addrs {
    first: u128,
    last: u128,
    /// Length of the prefix of each; `None` for the largest nets that fit.
    prefix: Option<u8>,
    bits: u8,
}

impl Range {
    /// Reads an element of a set.
    pub(super) fn read(head: &Head, word: &Word<'_>) -> Result<Range, SetError> {
        let none = Addrs { first: 0, last: 0, prefix: Some(0), bits: 0 };
        match head.kind {
            Kind::Ip | Kind::Net => Ok(Range { addrs: addresses(head, word)?, proto: 0, ports: (0, 0) }),
            Kind::IpPort | Kind::NetPort => {
                let (addr, port) = word.text.split_once(',').ok_or_else(|| word.fault(SetFault::Missing("`,` and a port")))?;
                let (proto, ports) = protocol_ports(&word.part(port))?;
                Ok(Range { addrs: addresses(head, &word.part(addr))?, proto, ports })
            }
            Kind::Port => {
                let ports = port_range(word)?;
                let inside = head.range.0 <= ports.0 && ports.1 <= head.range.1;
                if inside { Ok(Range { addrs: none, proto: 0, ports }) } else { Err(word.fault(SetFault::Range)) }
            }
            Kind::List => Err(word.fault(SetFault::Option)),
        }
    }

    /// The elements, until `each` has enough.
    pub(super) fn try_each(&self, mut each: impl FnMut(Key) -> Result<(), SetFault>) -> Result<(), SetFault> {
        let Addrs { mut first, last, prefix, bits } = self.addrs;
        loop {
            let prefix = prefix.unwrap_or_else(|| largest_net(first, last, bits));
            for port in self.ports.0..=self.ports.1 {
                each(Key { addr: first, prefix, proto: self.proto, port })?;
            }
            let end = first | (mask(bits, bits.max(1)) & !mask(prefix, bits.max(1)));
            if bits == 0 || end >= last {
                return Ok(());
            }
            first = end + 1;
        }
    }
}

/// The largest net that begins with an address and does not go beyond another.
fn largest_net(first: u128, last: u128, bits: u8) -> u8 {
    let end = |prefix: u8| first | (mask(bits, bits) & !mask(prefix, bits));
    (1..bits).find(|&p| first & !mask(p, bits) == 0 && end(p) <= last).unwrap_or(bits)
}

const ADDRESS: &str = "an IPv4 address, a range FIRST-LAST or a net ADDRESS/LENGTH; names are not looked up";
const ADDRESS6: &str = "an IPv6 address; names are not looked up";
const NET: &str = "ADDRESS/LENGTH with a length that is not 0, or a range FIRST-LAST; names are not looked up";
const NET6: &str = "an IPv6 net, ADDRESS/LENGTH with a length that is not 0; names are not looked up";

fn addresses(head: &Head, word: &Word<'_>) -> Result<Addrs, SetError> {
    let bits = head.bits();
    let expected = match (head.kind.is_net(), head.v6) {
        (false, false) => ADDRESS,
        (false, true) => ADDRESS6,
        (true, false) => NET,
        (true, true) => NET6,
    };
    let bad = || word.bad(expected);
    let one = |text: &str| if head.v6 { ipv6(text) } else { ipv4(text) }.ok_or_else(bad);
    let single = if head.kind == Kind::Ip { head.netmask } else { bits };
    let addrs = if let (Some((first, last)), false) = (word.text.split_once('-'), head.v6) {
        let (a, b) = (one(first)?, one(last)?);
        let prefix = if head.kind.is_net() { None } else { Some(single) };
        Addrs { first: a.min(b), last: a.max(b), prefix, bits }
    } else if let Some((addr, len)) = word.text.split_once('/') {
        let len = word.part(len).number(bits.into(), "a length of prefix")? as u8;
        if len == 0 || (head.v6 && !head.kind.is_net() && len != bits) {
            return Err(bad());
        }
        let first = one(addr)? & mask(len, bits);
        let last = first | (mask(bits, bits) & !mask(len, bits));
        let net = head.kind.is_net();
        Addrs { first, last: if net { first } else { last }, prefix: Some(if net { len } else { single }), bits }
    } else {
        let first = one(word.text)?;
        Addrs { first, last: first, prefix: Some(single), bits }
    };
    let first = addrs.prefix.map_or(addrs.first, |p| addrs.first & mask(p, bits));
    // Nothing is 0 in a hash of addresses; the whole of IPv4 as nets would need a prefix of length 0.
    if first == 0 && head.kind == Kind::Ip || addrs.prefix.is_none() && first == 0 && addrs.last == mask(bits, bits) {
        return Err(word.bad("another address than 0, which a hash cannot hold"));
    }
    Ok(Addrs { first, ..addrs })
}

/// As C libraries read it: 1.2 is 1.0.0.2.
fn ipv4(text: &str) -> Option<u128> {
    if text == "localhost" {
        return Some(Ipv4Addr::LOCALHOST.to_bits().into());
    }
    let parts: Vec<&str> = text.split('.').collect();
    let (last, front) = parts.split_last()?;
    let decimal = |t: &&str| {
        let good = !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()) && (t.len() == 1 || !t.starts_with('0'));
        if good { t.parse::<u32>().ok() } else { None }
    };
    if front.len() > 3 {
        return None;
    }
    let room = 8 * (4 - front.len() as u32);
    let low = decimal(last).filter(|n| u64::from(*n) < 1 << room)?;
    let mut all = low;
    for (n, part) in front.iter().enumerate() {
        all |= decimal(part).filter(|n| *n < 256)? << (24 - 8 * n);
    }
    Some(all.into())
}

fn ipv6(text: &str) -> Option<u128> {
    if text == "localhost" { Some(1) } else { text.parse::<Ipv6Addr>().ok().map(|a| a.to_bits()) }
}

fn port(word: &Word<'_>) -> Result<u16, SetError> {
    match names::service(word.text) {
        Some(port) => Ok(port),
        None => Ok(word.number(u16::MAX.into(), "a port from 0 to 65535, or the name of a service")? as u16),
    }
}

/// `FIRST-LAST` of ports; upside down is as good.
pub(super) fn port_range(word: &Word<'_>) -> Result<(u16, u16), SetError> {
    // Names of services have dashes too.
    if let Ok(one) = port(word) {
        return Ok((one, one));
    }
    let (first, last) = word.text.split_once('-').unwrap_or((word.text, word.text));
    let (a, b) = (port(&word.part(first))?, port(&word.part(last))?);
    Ok((a.min(b), a.max(b)))
}

/// `[PROTOCOL:]PORT[-PORT]`.
fn protocol_ports(word: &Word<'_>) -> Result<(u8, (u16, u16)), SetError> {
    let Some((name, rest)) = word.text.split_once(':') else { return Ok((proto::TCP, port_range(word)?)) };
    let (name, ports) = (word.part(name), word.part(rest));
    let protocol = match names::protocol(&name.text.to_ascii_lowercase()) {
        Some(p) => p,
        None => name.number(255, "a protocol by number or name")? as u8,
    };
    match protocol {
        0 => Err(name.bad("a protocol that is not 0")),
        proto::TCP | proto::UDP | SCTP | UDP_LITE => Ok((protocol, port_range(&ports)?)),
        proto::ICMP | proto::ICMPV6 => {
            let type_code = |text: &str| {
                let (ty, code) = text.split_once('/').unwrap_or((text, "0"));
                Some(u16::from(ty.parse::<u8>().ok()?) << 8 | u16::from(code.parse::<u8>().ok()?))
            };
            let one = icmp::number(protocol, ports.text).or_else(|| type_code(ports.text));
            one.map(|n| (protocol, (n, n))).ok_or_else(|| ports.bad("a type of ICMP by name, or TYPE/CODE"))
        }
        _ if ports.text == "0" => Ok((protocol, (0, 0))),
        _ => Err(ports.bad("0: the protocol has no ports")),
    }
}
