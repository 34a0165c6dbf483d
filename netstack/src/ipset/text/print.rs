//! Sets as `ipset save` prints them.

use super::icmp;
use crate::ipset::set::Contents;
use crate::ipset::{Elem, Head, Key, Kind, Set, Sets};
use crate::iptables::text::{Shown, names};
use crate::time::Time;
use crate::tuple::proto;
use core::fmt::{self, Write};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

impl Sets {
    /// The sets with their elements; time-outs are what is left at `now`.
    pub fn print(&self, now: Time) -> String {
        let mut out = String::new();
        self.saved().for_each(|set| set.print(now, &mut out));
        out
    }

    /// The sets in the order in which they are printed: lists behind the sets that they may name.
    pub fn saved(&self) -> impl Iterator<Item = &Arc<Set>> {
        let lists = |list: bool| self.list.iter().filter(move |s| s.head().is_list() == list);
        lists(false).chain(lists(true))
    }
}

impl Set {
    /// The lines of one set.
    pub fn print(&self, now: Time, out: &mut String) {
        self.print_part(now, 0, usize::MAX, out);
    }

    /// A part of its lines: so many elements from a place on, before the first of which stands how the set is created. Whether there
    /// may be more.
    pub fn print_part(&self, now: Time, from: usize, most: usize, out: &mut String) -> bool {
        let head = self.head();
        if from == 0 {
            put(out, format_args!("{}\n", Create(head)));
        }
        match &*self.lock() {
            Contents::Elems(body) => {
                let part = body.part(now, from, most);
                for (key, elem) in &part {
                    put(out, format_args!("add {} {}", head.name, Element(head, key)));
                    options(head, elem, now, out);
                }
                part.len() == most
            }
            // At most as many as there are sets.
            Contents::Members(list) => {
                for m in list.iter().filter(|m| !m.elem.is_over(now)) {
                    put(out, format_args!("add {} {}", head.name, m.set.name()));
                    options(head, &m.elem, now, out);
                }
                false
            }
        }
    }
}

/// Writes to a string, which cannot fail.
fn put(out: &mut String, args: fmt::Arguments<'_>) {
    let written = out.write_fmt(args);
    debug_assert!(written.is_ok());
}

/// What follows an element, and the end of the line.
fn options(head: &Head, elem: &Elem, now: Time, out: &mut String) {
    if head.timeout.is_some() {
        let left = if elem.expires == Time::NEVER { 0 } else { elem.expires.since(now).as_secs().max(1) };
        put(out, format_args!(" timeout {left}"));
    }
    if elem.nomatch {
        out.push_str(" nomatch");
    }
    if head.counters {
        put(out, format_args!(" packets {} bytes {}", elem.packets, elem.bytes));
    }
    if let Some(comment) = &elem.comment {
        put(out, format_args!(" comment \"{comment}\""));
    }
    out.push('\n');
}

struct Create<'a>(&'a Head);

impl fmt::Display for Create<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = self.0;
        write!(f, "create {} {}", h.name, h.kind.name())?;
        match h.kind {
            Kind::List => write!(f, " size {}", h.maxelem)?,
            Kind::Port => write!(f, " range {}-{}", h.range.0, h.range.1)?,
            _ => {
                let family = if h.v6 { "inet6" } else { "inet" };
                write!(f, " family {family} hashsize {} maxelem {}", h.hashsize, h.maxelem)?;
                if h.netmask != h.bits() {
                    write!(f, " netmask {}", h.netmask)?;
                }
            }
        }
        if let Some(timeout) = h.timeout {
            write!(f, " timeout {timeout}")?;
        }
        for (is, name) in [(h.counters, " counters"), (h.comment, " comment"), (h.forceadd, " forceadd")] {
            f.write_str(if is { name } else { "" })?;
        }
        if h.kind.is_hash() {
            write!(f, " bucketsize {}", h.bucketsize)?;
        }
        h.initval.map_or(Ok(()), |initval| write!(f, " initval {initval:#010x}"))
    }
}

struct Element<'a>(&'a Head, &'a Key);

impl fmt::Display for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Element(head, key) = *self;
        if head.kind == Kind::Port {
            return write!(f, "{}", key.port);
        }
        let addr: IpAddr = match head.v6 {
            false => Ipv4Addr::from_bits(key.addr as u32).into(),
            true => Ipv6Addr::from_bits(key.addr).into(),
        };
        write!(f, "{}", Shown(addr))?;
        if head.kind.is_net() && key.prefix != head.bits() {
            write!(f, "/{}", key.prefix)?;
        }
        if !matches!(head.kind, Kind::IpPort | Kind::NetPort) {
            return Ok(());
        }
        match (key.proto, names::protocol_name(key.proto)) {
            (proto::ICMP | proto::ICMPV6, Some(name)) => match icmp::name(key.proto, key.port) {
                Some(known) => write!(f, ",{name}:{known}"),
                None => write!(f, ",{name}:{}/{}", key.port >> 8, key.port & 0xff),
            },
            (proto::TCP | proto::UDP | SCTP | UDP_LITE, Some(name)) => write!(f, ",{name}:{}", key.port),
            (_, Some(name)) => write!(f, ",{name}:0"),
            (number, None) => write!(f, ",{number}:0"),
        }
    }
}
