//! `create`: what a set is made as.

use super::words::{Word, Words};
use super::{SetError, SetFault};
use crate::ipset::{Head, Kind, MAX_ELEMENTS, MAX_NAME};

/// Names of types, the old ones of ipset 4 too.
fn kind(name: &str) -> Option<Kind> {
    let old = match name {
        "iphash" => Some(Kind::Ip),
        "nethash" => Some(Kind::Net),
        "ipporthash" => Some(Kind::IpPort),
        "portmap" => Some(Kind::Port),
        "setlist" => Some(Kind::List),
        _ => None,
    };
    old.or_else(|| Kind::ALL.into_iter().find(|k| k.name() == name))
}

/// The name of a set.
pub(super) fn name<'a>(words: &mut Words<'a>) -> Result<Word<'a>, SetError> {
    let word = words.need("the name of a set")?;
    let good = !word.text.is_empty() && word.text.len() <= MAX_NAME && !word.text.contains([' ', '\t', '"']);
    if good { Ok(word) } else { Err(word.fault(SetFault::Name)) }
}

/// What follows `create`.
pub(super) fn head<'a>(words: &mut Words<'a>) -> Result<(Word<'a>, Head), SetError> {
    let name = name(words)?;
    let ty = words.need("the type of the set")?;
    let kind = kind(ty.text).ok_or_else(|| ty.fault(SetFault::Type))?;
    let mut head = Head::new(name.text, kind, false);
    let mut given: Vec<&str> = Vec::new();
    let mut netmask = None;
    while let Some(option) = words.next() {
        let canonical = match option.text {
            "-exist" => continue,
            "maxelem" if kind == Kind::List => return Err(option.fault(SetFault::Option)),
            // `-4` and `-6` are of old files.
            "-4" | "-6" => "family",
            text => text,
        };
        if given.contains(&canonical) {
            return Err(option.fault(SetFault::Repeated));
        }
        given.push(canonical);
        let hash = kind.is_hash();
        match option.text {
            "family" if hash => {
                let value = words.need("inet or inet6")?;
                head.v6 = match value.text {
                    "inet" | "4" | "ipv4" | "-4" => false,
                    "inet6" | "6" | "ipv6" | "-6" => true,
                    _ => return Err(value.bad("inet or inet6")),
                };
            }
            "-4" if hash => head.v6 = false,
            "-6" if hash => head.v6 = true,
            "hashsize" if hash => {
                let n = words.need("a number")?.number(u32::MAX.into(), "a number of 32 bits")?;
                head.hashsize = (n as u32).max(64).checked_next_power_of_two().unwrap_or(1 << 31);
            }
            "maxelem" if hash => {
                let n = words.need("a number")?.number(MAX_ELEMENTS.into(), "a number of elements up to 1048576")?;
                head.maxelem = n as u32;
            }
            "size" if kind == Kind::List => {
                let n = words.need("a number")?.number(65_536, "a number of members up to 65536")?;
                head.maxelem = (n as u32).max(4);
            }
            "netmask" if kind == Kind::Ip => netmask = Some(words.need("a length of prefix")?),
            "bitmask" if hash => return Err(option.fault(SetFault::Unsupported("masks that are no prefix; use netmask"))),
            "range" if kind == Kind::Port => {
                let value = words.need("FIRST-LAST")?;
                head.range = super::element::port_range(&value)?;
            }
            "timeout" => {
                let value = words.need("seconds")?;
                head.timeout = Some(super::element::timeout(&value)?);
            }
            "counters" => head.counters = true,
            "comment" => head.comment = true,
            "forceadd" if hash => head.forceadd = true,
            "bucketsize" if hash => {
                head.bucketsize = words.need("a number")?.number(255, "a number up to 255")? as u8;
            }
            "initval" if hash => {
                head.initval = Some(words.need("a number")?.number(u32::MAX.into(), "a number of 32 bits")? as u32);
            }
            // Without effect in ipset as well.
            "probes" | "resize" if hash => _ = words.need("a number")?,
            "skbinfo" => {
                return Err(option.fault(SetFault::Unsupported("marks, priorities and queues come from rules only (MARK)")));
            }
            _ => return Err(option.fault(SetFault::Option)),
        }
    }
    if kind == Kind::Port && !given.contains(&"range") {
        return Err(words.need("range FIRST-LAST").err().unwrap_or_else(|| ty.fault(SetFault::Missing("range FIRST-LAST"))));
    }
    head.netmask = match netmask {
        Some(word) => match word.number(head.bits().into(), "a length of prefix from 1 on")? {
            0 => return Err(word.bad("a length of prefix from 1 on")),
            n => n as u8,
        },
        None => head.bits(),
    };
    Ok((name, head))
}
