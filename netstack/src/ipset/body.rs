//! The elements of a set.

use super::head::{Head, Kind};
use crate::rng;
use crate::time::Time;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// An element: the parts that its set's kind does not have are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Address as a number; of IPv4 32 bits.
    pub addr: u128,
    /// Bits of the address that count.
    pub prefix: u8,
    /// Protocol of the port.
    pub proto: u8,
    /// Port; of ICMP `type << 8 | code`.
    pub port: u16,
}

impl Key {
    /// The number of an address.
    pub(super) fn number(addr: IpAddr) -> u128 {
        match addr {
            IpAddr::V4(a) => a.to_bits().into(),
            IpAddr::V6(a) => a.to_bits(),
        }
    }

    /// With so many bits of its address, of `bits`.
    #[must_use]
    pub(super) fn masked(self, prefix: u8, bits: u8) -> Key {
        Key { addr: self.addr & mask(prefix, bits), prefix, ..self }
    }

    /// Whether a set of this head can have it.
    pub(super) fn fits(&self, head: &Head) -> bool {
        let bits = head.bits();
        let plain = self.addr & !mask(self.prefix.min(bits), bits) == 0;
        match head.kind {
            Kind::Ip => plain && self.prefix == head.netmask && self.addr != 0 && self.proto == 0 && self.port == 0,
            Kind::Net => plain && (1..=bits).contains(&self.prefix) && self.proto == 0 && self.port == 0,
            Kind::IpPort => plain && self.prefix == bits && self.proto != 0,
            Kind::NetPort => plain && (1..=bits).contains(&self.prefix) && self.proto != 0,
            Kind::Port => {
                self.addr == 0 && self.prefix == 0 && self.proto == 0 && (head.range.0..=head.range.1).contains(&self.port)
            }
            Kind::List => false,
        }
    }
}

/// The first bits of an address of so many.
pub(super) fn mask(prefix: u8, bits: u8) -> u128 {
    let all = u128::MAX >> (128 - u32::from(bits));
    if prefix == 0 { 0 } else { all & !(all.checked_shr(prefix.into()).unwrap_or(0)) }
}

/// What goes with an element.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elem {
    /// When it is no element any more.
    pub expires: Time,
    /// Packets that matched it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// It is an exception.
    pub nomatch: bool,
    /// What was said of it.
    pub comment: Option<Box<str>>,
}

impl Default for Elem {
    fn default() -> Self {
        Elem { expires: Time::NEVER, packets: 0, bytes: 0, nomatch: false, comment: None }
    }
}

impl Elem {
    pub(super) fn is_over(&self, now: Time) -> bool {
        self.expires <= now
    }
}

/// Why an element was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is there.
    #[error("the element is in the set already")]
    Exists,
    /// There are as many as there may be.
    #[error("the set is full: give it a larger maxelem when it is created")]
    Full,
}

/// Elements by their key.
#[derive(Clone, Debug)]
pub(super) struct Body {
    pub(super) elems: HashMap<Key, Elem, rng::Key>,
    /// How many elements there are of each length of prefix, the longest first; of nets only.
    prefixes: Vec<(u8, u32)>,
    /// No sweep before.
    sweep_at: Time,
}

/// Shortest time between two searches of a full set for elements that are over.
const SWEEP: core::time::Duration = core::time::Duration::from_secs(1);

impl Body {
    pub(super) fn new(key: rng::Key) -> Body {
        Body { elems: HashMap::with_hasher(key), prefixes: Vec::new(), sweep_at: Time::ZERO }
    }

    /// The same under another key.
    pub(super) fn copy(&self, key: rng::Key) -> Body {
        let mut elems = HashMap::with_capacity_and_hasher(self.elems.len(), key);
        elems.extend(self.elems.iter().map(|(k, e)| (*k, e.clone())));
        Body { elems, prefixes: self.prefixes.clone(), sweep_at: self.sweep_at }
    }

    /// An element, if it is not over.
    pub(super) fn live(&mut self, key: &Key, now: Time) -> Option<&mut Elem> {
        self.elems.get_mut(key).filter(|e| !e.is_over(now))
    }

    /// The lengths of prefixes that there are, the longest first.
    pub(super) fn prefix(&self, n: usize) -> Option<u8> {
        self.prefixes.get(n).map(|p| p.0)
    }

    pub(super) fn add(&mut self, head: &Head, key: Key, elem: Elem, exist: bool, now: Time) -> Result<(), Refused> {
        if let Some(there) = self.elems.get_mut(&key) {
            if !exist && !there.is_over(now) {
                return Err(Refused::Exists);
            }
            *there = elem;
            return Ok(());
        }
        let most = head.maxelem as usize;
        if head.kind.is_hash() && self.elems.len() >= most {
            self.make_room(head, now);
            if self.elems.len() >= most {
                return Err(Refused::Full);
            }
        }
        self.elems.insert(key, elem);
        if head.kind.is_net() {
            match self.prefixes.iter_mut().find(|p| p.0 <= key.prefix) {
                Some(p) if p.0 == key.prefix => p.1 += 1,
                _ => {
                    let place = self.prefixes.iter().position(|p| p.0 < key.prefix).unwrap_or(self.prefixes.len());
                    self.prefixes.insert(place, (key.prefix, 1));
                }
            }
        }
        Ok(())
    }

    fn make_room(&mut self, head: &Head, now: Time) {
        if head.timeout.is_some() && now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            let over: Vec<Key> = self.elems.iter().filter(|(_, e)| e.is_over(now)).map(|(k, _)| *k).collect();
            over.iter().for_each(|k| _ = self.remove(k));
        }
        if head.forceadd && self.elems.len() >= head.maxelem as usize {
            // Any: the order is that of a keyed hash.
            let victim = self.elems.keys().next().copied();
            victim.map(|k| self.remove(&k));
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Elem> {
        let gone = self.elems.remove(key)?;
        if let Some(place) = self.prefixes.iter().position(|p| p.0 == key.prefix) {
            self.prefixes[place].1 -= 1;
            if self.prefixes[place].1 == 0 {
                self.prefixes.remove(place);
            }
        }
        Some(gone)
    }

    /// Deletes an element; whether it was there.
    pub(super) fn del(&mut self, key: &Key, now: Time) -> bool {
        self.remove(key).is_some_and(|e| !e.is_over(now))
    }

    pub(super) fn clear(&mut self) {
        self.elems.clear();
        self.prefixes.clear();
    }

    /// Elements that are not over, in the order of their keys.
    pub(super) fn sorted(&self, now: Time) -> Vec<(Key, Elem)> {
        let part = self.part(now, 0, self.elems.len());
        part.into_iter().map(|(k, e)| (k, e.clone())).collect()
    }

    /// A part of them: so many from a place on.
    pub(super) fn part(&self, now: Time, from: usize, most: usize) -> Vec<(Key, &Elem)> {
        let mut all: Vec<_> = self.elems.iter().filter(|(_, e)| !e.is_over(now)).map(|(k, e)| (*k, e)).collect();
        if from >= all.len() {
            return Vec::new();
        }
        all.select_nth_unstable_by_key(from, |(k, _)| *k);
        let mut rest = all.split_off(from);
        if most < rest.len() {
            rest.select_nth_unstable_by_key(most, |(k, _)| *k);
            rest.truncate(most);
        }
        rest.sort_unstable_by_key(|(k, _)| *k);
        rest
    }
}
