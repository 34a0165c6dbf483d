//! One set, as packets meet it.

use super::body::{Body, Elem, Key, Refused};
use super::head::{Head, Kind};
use crate::iptables::{Family, SetDirs};
use crate::packet::L4;
use crate::rng;
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::proto;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard};

const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// A comparison with a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterTest {
    /// `eq`.
    Equal(u64),
    /// `! eq`.
    Other(u64),
    /// `lt`.
    Less(u64),
    /// `gt`.
    Greater(u64),
}

impl CounterTest {
    fn fits(self, n: u64) -> bool {
        match self {
            CounterTest::Equal(m) => n == m,
            CounterTest::Other(m) => n != m,
            CounterTest::Less(m) => n < m,
            CounterTest::Greater(m) => n > m,
        }
    }
}

/// How a packet is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Which parts of the packet.
    pub dirs: SetDirs,
    /// Exceptions match, and nothing else does.
    pub return_nomatch: bool,
    /// Do not count at elements.
    pub no_counters: bool,
    /// Do not count at elements of a list's members.
    pub no_subcounters: bool,
    /// What the packets counted at the element must be.
    pub packets: Option<CounterTest>,
    /// What the bytes must be.
    pub bytes: Option<CounterTest>,
}

/// How a packet is added.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Which parts of the packet.
    pub dirs: SetDirs,
    /// An element that is there begins anew.
    pub exist: bool,
    /// Seconds; 0 for ever; the set's if not given.
    pub timeout: Option<u32>,
}

/// A set.
#[derive(Debug)]
pub struct Set {
    head: Head,
    body: Mutex<Contents>,
    /// A rule adds packets to it, or deletes them.
    changes: AtomicBool,
}

#[derive(Debug)]
pub(super) enum Contents {
    Elems(Body),
    Members(Vec<Member>),
}

/// A member of a list.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) set: Arc<Set>,
    pub(super) elem: Elem,
}

/// What was found: an element, or an exception.
enum Found {
    Match,
    Exception,
}

impl Set {
    /// An empty set.
    pub fn new(head: Head, key: rng::Key) -> Set {
        let body = if head.is_list() { Contents::Members(Vec::new()) } else { Contents::Elems(Body::new(key)) };
        Set { head, body: Mutex::new(body), changes: AtomicBool::new(false) }
    }

    /// How it was made.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.head.name
    }

    /// Nothing that is done under the lock can panic half-way.
    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        self.body.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The same with the same elements, its members those of the same name among `others`.
    pub(super) fn copy(&self, key: rng::Key, others: &[Arc<Set>]) -> Set {
        let body = match &*self.lock() {
            Contents::Elems(body) => Contents::Elems(body.copy(key)),
            Contents::Members(list) => Contents::Members(
                list.iter()
                    .filter_map(|m| {
                        let set = others.iter().find(|o| o.name() == m.set.name())?.clone();
                        Some(Member { set, elem: m.elem.clone() })
                    })
                    .collect(),
            ),
        };
        Set { head: self.head.clone(), body: Mutex::new(body), changes: AtomicBool::new(false) }
    }

    /// Has all elements end later.
    pub(super) fn put_off(&self, by: Duration) {
        match &mut *self.lock() {
            Contents::Elems(body) => body.elems.values_mut().for_each(|e| e.expires = e.expires + by),
            Contents::Members(list) => list.iter_mut().for_each(|m| m.elem.expires = m.elem.expires + by),
        }
    }

    /// From now on rules change it, and the members of a list.
    pub(crate) fn rules_change_it(&self) {
        self.changes.store(true, Ordering::Relaxed);
        if let Contents::Members(list) = &*self.lock() {
            list.iter().for_each(|m| m.set.rules_change_it());
        }
    }

    /// Whether a packet is in it or not whenever it is asked, and asking changes nothing: elements have no end and count nothing, and
    /// no rule changes them.
    pub(crate) fn is_constant(&self) -> bool {
        if self.head.timeout.is_some() || self.head.counters || self.changes.load(Ordering::Relaxed) {
            return false;
        }
        !self.head.is_list() || matches!(&*self.lock(), Contents::Members(list) if list.iter().all(|m| m.set.is_constant()))
    }

    fn takes(&self, skb: &Skb<'_>, dirs: SetDirs) -> bool {
        dirs.count >= self.head.kind.dimension() && self.head.takes(if skb.is_v6() { Family::V6 } else { Family::V4 })
    }

    /// Whether a packet is in it (the kernel's `ip_set_test`).
    pub fn has(&self, skb: &Skb<'_>, asked: &Asked, now: Time) -> bool {
        if !self.takes(skb, asked.dirs) {
            return false;
        }
        match &mut *self.lock() {
            Contents::Elems(body) => match self.find(body, skb, asked, now) {
                Some(Found::Match) => !(asked.return_nomatch && self.head.kind.is_net()),
                Some(Found::Exception) => asked.return_nomatch,
                None => false,
            },
            Contents::Members(list) => {
                let inner =
                    Asked { packets: None, bytes: None, no_counters: asked.no_counters || asked.no_subcounters, ..*asked };
                list.iter_mut()
                    .filter(|m| !m.elem.is_over(now))
                    .any(|m| m.set.has(skb, &inner, now) && self.count(&mut m.elem, skb.len, asked))
            }
        }
    }

    fn find(&self, body: &mut Body, skb: &Skb<'_>, asked: &Asked, now: Time) -> Option<Found> {
        let key = self.key(skb, asked.dirs)?;
        if !self.head.kind.is_net() {
            let elem = body.live(&key, now)?;
            return self.count(elem, skb.len, asked).then_some(Found::Match);
        }
        let mut n = 0;
        while let Some(prefix) = body.prefix(n) {
            n += 1;
            if let Some(elem) = body.live(&key.masked(prefix, self.head.bits()), now)
                && self.count(elem, skb.len, asked)
            {
                return Some(if elem.nomatch { Found::Exception } else { Found::Match });
            }
        }
        None
    }

    /// Counts a packet at an element; whether its counters are as asked.
    fn count(&self, elem: &mut Elem, len: u32, asked: &Asked) -> bool {
        if !self.head.counters {
            return true;
        }
        if !asked.no_counters {
            elem.packets = elem.packets.wrapping_add(1);
            elem.bytes = elem.bytes.wrapping_add(len.into());
        }
        asked.packets.is_none_or(|t| t.fits(elem.packets)) && asked.bytes.is_none_or(|t| t.fits(elem.bytes))
    }

    /// Adds a packet.
    ///
    /// # Errors
    /// It is there, the set is full, or it cannot have such an element.
    pub fn add(&self, skb: &Skb<'_>, change: &Change, now: Time) -> Result<(), Option<Refused>> {
        if !self.takes(skb, change.dirs) {
            return Err(None);
        }
        match &mut *self.lock() {
            Contents::Elems(body) => {
                let key = self.key(skb, change.dirs).ok_or(None)?;
                let key = self.of_this_set(body, key);
                let elem = Elem { expires: self.end(change.timeout, now), packets: 1, bytes: skb.len.into(), ..Elem::default() };
                body.add(&self.head, key, elem, change.exist, now).map_err(Some)
            }
            // The first member that takes it has it.
            Contents::Members(list) => {
                let mut members = list.iter().filter(|m| !m.elem.is_over(now));
                if members.any(|m| m.set.add(skb, change, now).is_ok()) { Ok(()) } else { Err(None) }
            }
        }
    }

    /// Deletes a packet. Whether it was there.
    pub fn del(&self, skb: &Skb<'_>, dirs: SetDirs, now: Time) -> bool {
        if !self.takes(skb, dirs) {
            return false;
        }
        match &mut *self.lock() {
            Contents::Elems(body) => {
                let Some(key) = self.key(skb, dirs) else { return false };
                let key = self.of_this_set(body, key);
                body.del(&key, now)
            }
            Contents::Members(list) => list.iter().filter(|m| !m.elem.is_over(now)).any(|m| m.set.del(skb, dirs, now)),
        }
    }

    /// A packet's address stands for a net of the longest prefix that the set has.
    fn of_this_set(&self, body: &Body, key: Key) -> Key {
        match body.prefix(0) {
            Some(prefix) if self.head.kind.is_net() => key.masked(prefix, self.head.bits()),
            _ => key,
        }
    }

    /// When an element ends that gets this time-out now.
    pub(super) fn end(&self, timeout: Option<u32>, now: Time) -> Time {
        let Some(default) = self.head.timeout else { return Time::NEVER };
        match timeout.unwrap_or(default).min(Head::MAX_TIMEOUT) {
            0 => Time::NEVER,
            seconds => now + Duration::from_secs(seconds.into()),
        }
    }

    /// What a packet is as an element; `None` if it cannot be one.
    fn key(&self, skb: &Skb<'_>, dirs: SetDirs) -> Option<Key> {
        let head = &self.head;
        let addr = || Key::number(if dirs.is_src(0) { skb.src } else { skb.dst });
        let key = match head.kind {
            Kind::Ip => Key { addr: addr(), ..Key::default() }.masked(head.netmask, head.bits()),
            Kind::Net => Key { addr: addr(), prefix: head.bits(), ..Key::default() },
            Kind::IpPort | Kind::NetPort => {
                let port = port(skb, dirs.is_src(1));
                Key { addr: addr(), prefix: head.bits(), proto: skb.protocol, port }
            }
            Kind::Port => match skb.protocol {
                proto::TCP | proto::UDP => Key { port: port(skb, dirs.is_src(0)), ..Key::default() },
                _ => return None,
            },
            Kind::List => return None,
        };
        key.fits(head).then_some(key)
    }
}

/// A packet's port, as sets see it: type and code of ICMP, 0 for protocols without.
fn port(skb: &Skb<'_>, src: bool) -> u16 {
    match (skb.protocol, &skb.l4) {
        (proto::ICMP, L4::Icmp(h)) | (proto::ICMPV6, L4::Icmpv6(h)) => u16::from(h.ty) << 8 | u16::from(h.code),
        (proto::TCP | proto::UDP, _) => {
            if src {
                skb.sport
            } else {
                skb.dport
            }
        }
        // Not translated, so the bytes are what they were.
        (SCTP | UDP_LITE, _) => {
            let at = if src { 0 } else { 2 };
            skb.l4_bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
        }
        _ => 0,
    }
}
