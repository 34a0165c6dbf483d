//! Ways through the tables, each kept once.

use super::key::Key;
use crate::conntrack::{ConnId, Conntrack};
use crate::iptables::Outcome;
use crate::rng;
use crate::skb::Skb;
use crate::wire::Mac;
use core::hash::Hasher;
use siphasher::sip::SipHasher13;

/// Paths at most, and numbers of rules in all of them. Beyond that everything is forgotten, and begins anew.
const MAX_PATHS: usize = 1 << 16;
const MAX_COUNTED: usize = 1 << 20;

/// What becomes of packets with this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) key: Key,
    /// `None`: the rules are to be asked each time.
    pub(super) outcome: Option<Outcome>,
    /// The packet's mark in the end.
    pub(super) mark: u32,
    /// Where packets must come from, if rules asked for that.
    mac: Option<Option<Mac>>,
    /// The connection's mark that packets must find, and leave, if rules asked for that.
    conn_mark: Option<u32>,
    /// Where its rules begin, and how many there are.
    first: u32,
    len: u32,
}

impl Path {
    pub(super) const fn new(
        key: Key,
        outcome: Option<Outcome>,
        mark: u32,
        mac: Option<Option<Mac>>,
        conn_mark: Option<u32>,
    ) -> Self {
        Path { key, outcome, mark, mac, conn_mark, first: 0, len: 0 }
    }

    /// Whether it is that of a packet with its key.
    #[inline]
    pub(super) fn holds(&self, skb: &Skb<'_>, id: ConnId, ct: &Conntrack) -> bool {
        self.mac.is_none_or(|mac| mac == skb.src_mac) && self.conn_mark.is_none_or(|mark| ct.mark(id) == Some(mark))
    }

    fn hash(&self, secret: rng::Key, rules: &[u32]) -> u32 {
        let mut h = SipHasher13::new_with_keys(secret.0, secret.1);
        self.key.words().iter().for_each(|&w| h.write_u64(w));
        h.write_u32(self.mark);
        h.write_u64(self.conn_mark.map_or(u64::MAX, u64::from));
        if let Some(Some(mac)) = self.mac {
            h.write(&mac.0);
        }
        rules.iter().for_each(|&r| h.write_u32(r));
        h.finish() as u32
    }
}

/// All paths, numbered from 1.
#[derive(Debug)]
pub(super) struct Paths {
    secret: rng::Key,
    list: Vec<Path>,
    /// Numbers of the rules that count the packets of a path.
    counted: Vec<u32>,
    /// Hash and number of a path, or zeroes: a table with open places, at most half of them taken.
    places: Vec<(u32, u32)>,
}

impl Paths {
    pub(super) const fn new(secret: rng::Key) -> Self {
        Paths { secret, list: Vec::new(), counted: Vec::new(), places: Vec::new() }
    }

    pub(super) fn clear(&mut self) {
        *self = Paths::new(self.secret);
    }

    #[inline]
    pub(super) fn get(&self, n: u32) -> Option<&Path> {
        self.list.get((n as usize).checked_sub(1)?)
    }

    /// The rules that count the packets of a path.
    #[inline]
    pub(super) fn counted(&self, path: &Path) -> &[u32] {
        let first = path.first as usize;
        self.counted.get(first..first + path.len as usize).unwrap_or_default()
    }

    /// The number of a path, which may be there already; `None` if there are too many.
    pub(super) fn add(&mut self, path: Path, rules: &[u32]) -> Option<u32> {
        if 2 * (self.list.len() + 1) > self.places.len() {
            self.grow();
        }
        let hash = path.hash(self.secret, rules);
        let mut at = hash as usize;
        loop {
            at &= self.places.len() - 1;
            match self.places[at] {
                (_, 0) => break,
                (h, n) if h == hash && self.is(n, &path, rules) => return Some(n),
                _ => at += 1,
            }
        }
        if self.list.len() >= MAX_PATHS || self.counted.len() + rules.len() > MAX_COUNTED {
            return None;
        }
        self.list.push(Path { first: self.counted.len() as u32, len: rules.len() as u32, ..path });
        self.counted.extend_from_slice(rules);
        let n = self.list.len() as u32;
        self.places[at] = (hash, n);
        Some(n)
    }

    fn is(&self, n: u32, path: &Path, rules: &[u32]) -> bool {
        self.get(n).is_some_and(|p| *p == Path { first: p.first, len: p.len, ..*path } && self.counted(p) == rules)
    }

    fn grow(&mut self) {
        let len = (2 * self.places.len()).max(64);
        let old = core::mem::replace(&mut self.places, vec![(0, 0); len]);
        for (hash, n) in old.into_iter().filter(|(_, n)| *n != 0) {
            let mut at = hash as usize & (len - 1);
            while self.places[at].1 != 0 {
                at = (at + 1) & (len - 1);
            }
            self.places[at] = (hash, n);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.list.capacity() * size_of::<Path>() + self.counted.capacity() * 4 + self.places.capacity() * size_of::<(u32, u32)>()
    }
}
