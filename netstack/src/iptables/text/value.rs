//! Values of options, as `iptables` reads them.

use super::error::Fault;
use super::lexer::Word;
use super::names;
use crate::iptables::{Family, Net, PortRange};
use crate::wire::Mac;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A number in C's notation: decimal, `0x` hexadecimal, or octal with a leading 0. No sign.
pub(super) fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, radix).ok() } else { None }
}

/// A number between `min` and `max`.
pub(super) fn number_in(word: &Word<'_>, min: u64, max: u64) -> Result<u64, Fault> {
    number(word.as_str()).filter(|n| (min..=max).contains(n)).ok_or_else(|| word.bad(format!("a number from {min} to {max}")))
}

/// A number that fits in 32 bits.
pub(super) fn number32(word: &Word<'_>) -> Result<u32, Fault> {
    Ok(number_in(word, 0, u64::from(u32::MAX))? as u32)
}

/// `FIRST:LAST` of numbers; a missing end stands for the lowest or highest.
pub(super) fn range32(word: &Word<'_>) -> Result<(u32, u32), Fault> {
    let bad = || word.bad("a number of 32 bits, or FIRST:LAST");
    let one = |text: &str, missing: u32| {
        if text.is_empty() { Ok(missing) } else { number(text).and_then(|n| u32::try_from(n).ok()).ok_or_else(bad) }
    };
    let (first, last) = match word.as_str().split_once(':') {
        None if word.as_str().is_empty() => return Err(bad()),
        None => {
            let n = one(word.as_str(), 0)?;
            (n, n)
        }
        Some((first, last)) => (one(first, 0)?, one(last, u32::MAX)?),
    };
    if first <= last { Ok((first, last)) } else { Err(word.bad("a range that does not run backwards")) }
}

/// `FIRST[:LAST]` of numbers of 64 bits; a missing end stands for the lowest or highest.
pub(super) fn range64(word: &Word<'_>) -> Result<(u64, u64), Fault> {
    let bad = || word.bad("a number of 64 bits, or FIRST:LAST");
    let one = |text: &str, missing| if text.is_empty() { Ok(missing) } else { number(text).ok_or_else(bad) };
    let (first, last) = match word.as_str().split_once(':') {
        None if word.as_str().is_empty() => return Err(bad()),
        None => (one(word.as_str(), 0)?, u64::MAX),
        Some((first, last)) => (one(first, 0)?, one(last, u64::MAX)?),
    };
    if first <= last { Ok((first, last)) } else { Err(word.bad("a range that does not run backwards")) }
}

/// Bits of an address.
pub(super) const fn bits_of(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

/// Value and mask, `V[/M]`; the mask is all ones if not given.
pub(super) fn masked(word: &Word<'_>) -> Result<(u32, u32), Fault> {
    let one = |text: &str| number(text).and_then(|n| u32::try_from(n).ok());
    let (value, mask) = word.as_str().split_once('/').map_or((word.as_str(), None), |(v, m)| (v, Some(m)));
    match (one(value), mask.map_or(Some(u32::MAX), one)) {
        (Some(value), Some(mask)) => Ok((value, mask)),
        _ => Err(word.bad("a mark of 32 bits, VALUE[/MASK]")),
    }
}

/// A port by number or service name.
pub(super) fn port(text: &str) -> Option<u16> {
    match number(text) {
        Some(n) => u16::try_from(n).ok(),
        None => names::service(text),
    }
}

/// A port by decimal number or service name: some options do not know C's notation, and 010 is 10 there.
fn decimal_port(text: &str) -> Option<u16> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { names::service(text) }
}

/// `FIRST:LAST` of ports or service names; a missing end stands for 0 or 65535. Numbers as in C.
pub(super) fn ports(word: &Word<'_>) -> Result<PortRange, Fault> {
    range_of_ports(word, port)
}

/// `FIRST:LAST` of ports or service names; a missing end stands for 0 or 65535. Decimal numbers.
pub(super) fn decimal_ports(word: &Word<'_>) -> Result<PortRange, Fault> {
    range_of_ports(word, decimal_port)
}

fn range_of_ports(word: &Word<'_>, port: fn(&str) -> Option<u16>) -> Result<PortRange, Fault> {
    let bad = || word.bad("a port (0 to 65535, or the name of a common service) or FIRST:LAST");
    let one = |text: &str, missing| if text.is_empty() { Ok(missing) } else { port(text).ok_or_else(bad) };
    let (first, last) = match word.as_str().split_once(':') {
        None => {
            let n = port(word.as_str()).ok_or_else(bad)?;
            (n, n)
        }
        Some((first, last)) => (one(first, 0)?, one(last, u16::MAX)?),
    };
    if first <= last { Ok((first, last)) } else { Err(word.bad("a range of ports that does not run backwards")) }
}

/// A protocol by number or name, in any case.
pub(super) fn protocol(word: &Word<'_>) -> Result<u8, Fault> {
    let text = word.as_str().to_ascii_lowercase();
    let known = match number(&text) {
        Some(n) => u8::try_from(n).ok(),
        None => names::protocol(&text),
    };
    known.ok_or_else(|| word.bad("a protocol: a number from 0 to 255 or a common name; `!` stands before the option"))
}

/// An address of the family. IPv4 may be shortened (`10.1` is 10.1.0.0), each part as in C.
pub(super) fn address(family: Family, text: &str) -> Option<IpAddr> {
    match family {
        Family::V4 if text == "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        Family::V6 if text == "localhost" => Some(Ipv6Addr::LOCALHOST.into()),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        Family::V4 => {
            let mut octets = [0; 4];
            let mut parts = text.split('.');
            for (i, octet) in octets.iter_mut().enumerate() {
                match parts.next() {
                    Some(part) => *octet = number(part).and_then(|n| u8::try_from(n).ok())?,
                    None if i > 0 => break,
                    None => return None,
                }
            }
            if parts.next().is_some() { None } else { Some(Ipv4Addr::from(octets).into()) }
        }
    }
}

/// What to write for an address.
pub(super) fn address_expected(family: Family) -> &'static str {
    match family {
        Family::V4 => "an IPv4 address (host names are not looked up)",
        Family::V6 => "an IPv6 address (host names are not looked up)",
    }
}

/// The mask of a prefix length.
pub(super) fn prefix_mask(family: Family, len: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into(),
        Family::V6 => Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).into(),
    }
}

/// The address with the bits outside of the mask cleared.
pub(super) fn masked_address(addr: IpAddr, mask: IpAddr) -> IpAddr {
    match (addr, mask) {
        (IpAddr::V4(a), IpAddr::V4(m)) => Ipv4Addr::from(u32::from(a) & u32::from(m)).into(),
        (IpAddr::V6(a), IpAddr::V6(m)) => Ipv6Addr::from(u128::from(a) & u128::from(m)).into(),
        _ => addr,
    }
}

/// The length of a mask's prefix; `None` if it is not one.
pub(super) fn prefix_len(mask: IpAddr) -> Option<u8> {
    let (ones, rest) = match mask {
        IpAddr::V4(m) => {
            (u32::from(m).leading_ones(), u128::from(u32::from(m).checked_shl(u32::from(m).leading_ones()).unwrap_or(0)))
        }
        IpAddr::V6(m) => (u128::from(m).leading_ones(), u128::from(m).checked_shl(u128::from(m).leading_ones()).unwrap_or(0)),
    };
    (rest == 0).then_some(ones as u8)
}

/// `ADDRESS[/MASK]` as of `-s`: the mask is a length or an address; under a mask of zero the address does not matter
/// (`any/0`).
pub(super) fn net(family: Family, word: &Word<'_>, text: &str) -> Result<Net, Fault> {
    net_of(family, word, text, address)
}

/// `ADDRESS[/MASK]` as of the options of extensions: the address must be written in full. (There, 10 is not 10.0.0.0 but
/// 0.0.0.10.)
pub(super) fn full_net(family: Family, word: &Word<'_>) -> Result<Net, Fault> {
    net_of(family, word, word.as_str(), full_address)
}

fn net_of(family: Family, word: &Word<'_>, text: &str, address: fn(Family, &str) -> Option<IpAddr>) -> Result<Net, Fault> {
    let bad = || word.bad(format!("{}, with /LENGTH or /MASK if wanted", address_expected(family)));
    let bits = if family == Family::V4 { 32 } else { 128 };
    let (addr, mask) = match text.rsplit_once('/') {
        None => (text, prefix_mask(family, bits)),
        Some((addr, mask)) => match number(mask) {
            Some(n) => (addr, prefix_mask(family, u8::try_from(n).ok().filter(|n| *n <= bits).ok_or_else(bad)?)),
            None => (addr, full_address(family, mask).ok_or_else(bad)?),
        },
    };
    if prefix_len(mask) == Some(0) {
        return Ok(Net { addr: mask, mask });
    }
    let addr = address(family, addr).ok_or_else(bad)?;
    Ok(Net { addr: masked_address(addr, mask), mask })
}

/// An address written in full.
pub(super) fn full_address(family: Family, text: &str) -> Option<IpAddr> {
    match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    }
}

/// Addresses `FIRST[-LAST]`, which may run backwards.
pub(super) fn address_range(family: Family, word: &Word<'_>, text: &str) -> Result<(IpAddr, IpAddr), Fault> {
    let one = |text: &str| address(family, text).ok_or_else(|| word.bad(address_expected(family)));
    match text.split_once('-') {
        None => one(text).map(|a| (a, a)),
        Some((first, last)) => Ok((one(first)?, one(last)?)),
    }
}

/// A MAC address; a digit of a pair may be missing.
pub(super) fn mac(word: &Word<'_>) -> Result<Mac, Fault> {
    let mut octets = [0; 6];
    let mut parts = word.as_str().split(':');
    let good = octets.iter_mut().all(|octet| {
        let part = parts.next().filter(|p| matches!(p.len(), 1 | 2) && p.bytes().all(|b| b.is_ascii_hexdigit()));
        part.and_then(|p| u8::from_str_radix(p, 16).ok()).map(|n| *octet = n).is_some()
    });
    if good && parts.next().is_none() { Ok(Mac(octets)) } else { Err(word.bad("a MAC address such as 02:00:00:00:00:01")) }
}

/// A list of names with commas, each of which `one` must know, as the bits that they stand for.
pub(super) fn bits(word: &Word<'_>, expected: &str, one: impl Fn(&str) -> Option<u16>) -> Result<u16, Fault> {
    word.as_str().split(',').try_fold(0, |all, name| Some(all | one(name)?)).ok_or_else(|| word.bad(expected))
}

/// The entry of a table of names that begins with `name`, whatever the case, if it is one only or the name is complete.
pub(super) fn by_prefix<T: Copy>(table: &[(&'static str, T)], name: &str) -> Option<T> {
    let begins = |full: &str| full.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    let mut found = table.iter().filter(|(full, _)| !name.is_empty() && begins(full));
    let first = found.next()?;
    let complete = |e: &&(&'static str, T)| e.0.len() == name.len();
    if complete(&first) || found.clone().next().is_none() { Some(first.1) } else { found.find(complete).map(|e| e.1) }
}

/// An address as C libraries write it: unlike Rust, they show the last 32 bits of IPv4-compatible addresses as IPv4.
pub(crate) struct Shown(pub IpAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(v6) if u128::from(v6) >> 32 == 0 && u128::from(v6) >> 16 != 0 => {
                write!(f, "::{}", Ipv4Addr::from(u128::from(v6) as u32))
            }
            addr => write!(f, "{addr}"),
        }
    }
}

/// The longest start of a text that has at most `most` bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}
