//! The header test of a rule: what most rules are decided by, without a branch.
//!
//! What rules look at of a packet is laid out once, as the key. Fields are compared under a mask, all of them in one go, which the
//! compiler makes one of vectors. Sets (interfaces, protocols, states) are one bit per member, and the rule holds those that are not
//! admitted. Ports are ranges, which may go over the end: so an inverted range is one too. For IPv4 a header test is one cache line.
//!
//! The cache of verdicts relies on it that nothing is in a key but what [`super::holds::Holds::Connection`] lists.

use super::ifaces::{Classes, IfaceSet};
use super::lookup::Wanted;
use super::matches::{conntrack, transport};
use super::{CtMatch, IcmpType, Inv, Net, PortRange, Rule, ctstate};
use crate::conntrack::Dir;
use crate::packet::L4;
use crate::skb::Skb;
use core::net::IpAddr;

/// Words of an IPv4 packet that are compared: addresses, mark, and fields of the transport header.
pub(super) const V4: usize = 4;
/// Those of an IPv6 packet; the last two are not used.
pub(super) const V6: usize = 12;

// Words of sets.
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const CLASS: usize = 2;
/// Words of sets; the last one is not used.
const SETS: usize = 4;

// Bits of the class word, above those of `ctstate`.
const DIR_ORIGINAL: u32 = 1 << 9;
const DIR_REPLY: u32 = 1 << 10;
const DIR_NONE: u32 = 1 << 11;
const PROTO_SHIFT: u32 = 16;
const PROTO_CLASSES: u8 = 16;
/// The states of which a packet has exactly one.
const STATES: u16 = ctstate::INVALID | ctstate::ESTABLISHED | ctstate::RELATED | ctstate::NEW | ctstate::UNTRACKED;

/// The sets that bits of a key stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Sets {
    pub(super) input: Classes,
    pub(super) output: Classes,
    pub(super) protos: Protos,
}

/// Protocols by class: those that rules ask for, and the rest.
#[derive(Clone, Debug)]
pub(super) struct Protos {
    class: [u8; 256],
    count: u8,
}

impl Default for Protos {
    fn default() -> Self {
        Protos { class: [0; 256], count: 1 }
    }
}

impl Protos {
    /// Gives a protocol a class of its own, if there is one left.
    pub(super) fn admit(&mut self, proto: u8) {
        let class = &mut self.class[usize::from(proto)];
        if *class == 0 && self.count < PROTO_CLASSES {
            *class = self.count;
            self.count += 1;
        }
    }

    fn bit(&self, proto: u8) -> u32 {
        1 << (PROTO_SHIFT + u32::from(self.class[usize::from(proto)]))
    }
}

/// What header tests look at of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<const N: usize> {
    words: [u32; N],
    sets: [u32; SETS],
    ports: [u16; 2],
}

/// Words of an address.
pub(super) const fn addr_words(n: usize) -> usize {
    if n == V4 { 1 } else { 4 }
}

/// Puts an address into words. False if it is of the other family.
fn put_addr(a: IpAddr, words: &mut [u32]) -> bool {
    match (a, words) {
        (IpAddr::V4(a), [w]) => *w = a.to_bits(),
        (IpAddr::V6(a), [a3, a2, a1, a0]) => {
            let bits = a.to_bits();
            (*a3, *a2, *a1, *a0) = ((bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32);
        }
        _ => return false,
    }
    true
}

impl<const N: usize> Key<N> {
    const MARK: usize = 2 * addr_words(N);
    const FIELDS: usize = Self::MARK + 1;

    /// Of a packet; `None` if it is of the other family.
    pub(super) fn of(skb: &Skb<'_>, sets: &Sets) -> Option<Self> {
        let mut key = Key { words: [0; N], sets: [0; SETS], ports: [skb.sport, skb.dport] };
        let n = addr_words(N);
        if !put_addr(skb.src, &mut key.words[..n]) || !put_addr(skb.dst, &mut key.words[n..2 * n]) {
            return None;
        }
        key.words[Self::FIELDS] = match &skb.l4 {
            L4::Tcp(..) => transport::flags(skb).into(),
            L4::Icmp(h) | L4::Icmpv6(h) => icmp(h.ty, h.code),
            L4::Udp(_) | L4::Other => 0,
        };
        key.sets[INPUT] = sets.input.of(skb.input);
        key.sets[OUTPUT] = sets.output.of(skb.output);
        key.sets[CLASS] = sets.protos.bit(skb.protocol);
        key.refresh(skb);
        Some(key)
    }

    /// Addresses, source first; what follows them is not of interest outside.
    #[inline(always)]
    pub(super) const fn words(&self) -> &[u32; N] {
        &self.words
    }

    /// Ports, source first.
    #[inline(always)]
    pub(super) const fn ports(&self) -> [u16; 2] {
        self.ports
    }

    /// What targets may have changed: mark and tracking.
    pub(super) fn refresh(&mut self, skb: &Skb<'_>) {
        let dir = match skb.track.info().map(|i| i.dir()) {
            None => DIR_NONE,
            Some(Dir::Original) => DIR_ORIGINAL,
            Some(Dir::Reply) => DIR_REPLY,
        };
        let class = &mut self.sets[CLASS];
        *class = *class >> PROTO_SHIFT << PROTO_SHIFT | u32::from(conntrack::state_bits(&skb.track)) | dir;
        self.words[Self::MARK] = skb.mark;
    }
}

/// Type and code of an ICMP message, above the TCP flags.
const fn icmp(ty: u8, code: u8) -> u32 {
    (ty as u32) << 8 | (code as u32) << 16
}

/// Ports from `first` on, as many as `span` and one; may go over the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u16,
    span: u16,
}

impl Span {
    const ALL: Span = Span { first: 0, span: u16::MAX };

    #[inline(always)]
    const fn has(self, port: u16) -> bool {
        port.wrapping_sub(self.first) <= self.span
    }
}

/// The header test of one rule.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Head<const N: usize> {
    mask: [u32; N],
    value: [u32; N],
    /// Members of sets that are not admitted.
    without: [u32; SETS],
    ports: [Span; 2],
}

const _: () = assert!(size_of::<Head<V4>>() == 64 && size_of::<Head<V6>>() == 128);

impl<const N: usize> Head<N> {
    /// A test that every packet passes.
    pub(super) const ANY: Self = Head { mask: [0; N], value: [0; N], without: [0; SETS], ports: [Span::ALL; 2] };

    /// Whether a packet fits.
    #[inline(always)]
    pub(super) fn fits(&self, key: &Key<N>) -> bool {
        let mut differ = [0; SETS];
        for i in 0..N {
            differ[i % SETS] |= key.words[i] & self.mask[i] ^ self.value[i];
        }
        for (d, (set, without)) in differ.iter_mut().zip(key.sets.iter().zip(&self.without)) {
            *d |= set & without;
        }
        let same = differ.iter().fold(0, |all, d| all | d) == 0;
        same & self.ports[0].has(key.ports[0]) & self.ports[1].has(key.ports[1])
    }

    /// Bits of a word must have a value. If another one is asked for already, no packet has both.
    fn must(&mut self, word: usize, mask: u32, value: u32) {
        let both = self.mask[word] & mask;
        if (self.value[word] ^ value) & both != 0 {
            self.never();
        }
        self.mask[word] |= mask;
        self.value[word] |= value;
    }

    /// Members of a set are not admitted.
    fn without(&mut self, set: usize, bits: u32) {
        self.without[set] |= bits;
    }

    /// No packet fits: each has some state.
    pub(super) fn never(&mut self) {
        self.without(CLASS, u32::MAX);
    }

    /// `-s` (`side` 0) or `-d` (`side` 1). False if it cannot be a header test.
    pub(super) fn addr(&mut self, side: usize, net: &Inv<Net>) -> bool {
        let n = addr_words(N);
        let (mut addr, mut mask) = ([0; 4], [0; 4]);
        if net.not || !put_addr(net.value.addr, &mut addr[..n]) || !put_addr(net.value.mask, &mut mask[..n]) {
            return false;
        }
        for i in 0..n {
            self.must(side * n + i, mask[i], addr[i] & mask[i]);
        }
        true
    }

    /// Classes of interfaces that `-i` or `-o` admits.
    pub(super) fn iface(&mut self, output: bool, classes: u32) {
        self.without(if output { OUTPUT } else { INPUT }, !classes);
    }

    /// `-p`. False if it cannot be a header test.
    pub(super) fn proto(&mut self, proto: Inv<u8>, protos: &Protos) -> bool {
        if protos.class[usize::from(proto.value)] == 0 {
            return false;
        }
        let bit = protos.bit(proto.value);
        self.without(CLASS, if proto.not { bit } else { !bit & (u32::MAX << PROTO_SHIFT) });
        true
    }

    /// A range of ports. False if one is tested for already.
    pub(super) fn port(&mut self, dst: bool, ports: &Inv<PortRange>) -> bool {
        let place = &mut self.ports[usize::from(dst)];
        if *place != Span::ALL {
            return false;
        }
        let (first, last) = ports.value;
        match (last.checked_sub(first), ports.not) {
            (Some(span), false) => *place = Span { first, span },
            // The others are those behind it, round to those before it.
            (Some(span), true) if span < u16::MAX => *place = Span { first: last.wrapping_add(1), span: u16::MAX - 1 - span },
            // Nothing is in a range that is upside down.
            (None, true) => {}
            (Some(_), true) | (None, false) => self.never(),
        }
        true
    }

    /// `mark`. False inverted.
    pub(super) fn mark(&mut self, m: &Inv<(u32, u32)>) -> bool {
        if !m.not {
            self.masked(Key::<N>::MARK, m.value.0, m.value.1);
        }
        !m.not
    }

    /// `--tcp-flags`. False inverted.
    pub(super) fn tcp_flags(&mut self, f: &Inv<(u8, u8)>) -> bool {
        if !f.not {
            self.masked(Key::<N>::FIELDS, f.value.1.into(), f.value.0.into());
        }
        !f.not
    }

    /// What is asked of addresses (up to the first bit that is not) and ports.
    pub(super) fn wanted(&self) -> Wanted {
        if self.without[CLASS] == u32::MAX {
            return Wanted::nothing();
        }
        let mut wanted = Wanted::default();
        let n = addr_words(N);
        for side in 0..2 {
            let join = |words: &[u32; N]| words[side * n..][..n].iter().fold(0, |all, &w| all << 32 | u128::from(w));
            let all = u128::MAX >> (128 - 32 * n);
            let bits = (join(&self.mask) << (128 - 32 * n)).leading_ones();
            let rest = all.checked_shr(bits).unwrap_or(0);
            let first = join(&self.value) & !rest;
            wanted.want(side, (bits > 0).then_some((first, first | rest)).into_iter());
        }
        for (side, ports) in self.ports.iter().enumerate().filter(|(_, p)| **p != Span::ALL) {
            let last = ports.first.checked_add(ports.span);
            wanted.want(2 + side, last.map(|last| (ports.first.into(), last.into())).into_iter());
        }
        wanted
    }

    /// What is asked of TCP flags: bits that are looked at, and what they must be.
    pub(super) fn asked_flags(&self) -> Option<(u8, u8)> {
        let mask = self.mask[Key::<N>::FIELDS] as u8;
        (mask != 0).then_some((mask, self.value[Key::<N>::FIELDS] as u8))
    }

    /// A value under a mask; bits outside of it are never there.
    fn masked(&mut self, word: usize, value: u32, mask: u32) {
        if value & !mask != 0 {
            self.never();
        } else {
            self.must(word, mask, value);
        }
    }

    /// A type with all codes, or one. False for others, and inverted.
    pub(super) fn icmp(&mut self, ty: &Inv<IcmpType>) -> bool {
        let IcmpType { ty: t, codes } = ty.value;
        let code = match codes {
            (0, 255) => 0,
            (a, b) if a == b => 255,
            _ => return false,
        };
        if !ty.not {
            self.must(Key::<N>::FIELDS, icmp(255, code), icmp(t, codes.0 & code));
        }
        !ty.not
    }

    /// States. False if the virtual ones are among them, which a packet has in addition.
    pub(super) fn state(&mut self, s: &Inv<u16>) -> bool {
        if s.value & !STATES != 0 {
            return false;
        }
        self.without(CLASS, if s.not { s.value } else { STATES & !s.value }.into());
        true
    }

    /// States and direction, if that is all that is asked for. Whoever asks for a state does not ask more of a packet without connection.
    pub(super) fn conntrack(&mut self, m: &CtMatch) -> bool {
        if conntrack::asks_connection(m) || m.state.is_some_and(|s| s.value & !STATES != 0) {
            return false;
        }
        let none = if m.state.is_some() { 0 } else { DIR_NONE };
        let other = match m.reply {
            Some(true) => DIR_ORIGINAL,
            Some(false) => DIR_REPLY,
            None => 0,
        };
        self.without(CLASS, none | other);
        m.state.is_none_or(|s| self.state(&s))
    }
}

/// Finds what rules tell apart.
pub(super) fn sets<'a>(rules: impl Iterator<Item = &'a Rule>) -> Sets {
    let mut sets = Sets::default();
    for rule in rules {
        if let Some(test) = &rule.input {
            sets.input.admit(&IfaceSet::of(test));
        }
        if let Some(test) = &rule.output {
            sets.output.admit(&IfaceSet::of(test));
        }
        if let Some(proto) = rule.proto {
            sets.protos.admit(proto.value);
        }
    }
    sets
}
