//! The header test of a rule: what most rules are decided by, without a branch.
//!
//! What rules look at of a packet is laid out once as words, the key; a rule is a mask and a value for each of them. Sets
//! (interfaces, protocols, states) are one bit per member, and the mask holds those that are not admitted. So one comparison of all
//! words decides, which the compiler makes one of vectors. For IPv4 a header test is one cache line.

use super::ifaces::Classes;
use super::matches::{conntrack, transport};
use super::{CtMatch, IcmpType, Inv, Net, PortRange, Rule, ctstate};
use crate::conntrack::Dir;
use crate::packet::L4;
use crate::skb::Skb;
use core::net::IpAddr;

/// Words of an IPv4 header test.
pub(super) const V4: usize = 8;
/// Words of an IPv6 header test; the last two are not used.
pub(super) const V6: usize = 16;

// The words behind the addresses.
const PORTS: usize = 0;
const INPUT: usize = 1;
const OUTPUT: usize = 2;
const CLASS: usize = 3;
const MARK: usize = 4;
const L4_FIELDS: usize = 5;

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
pub(super) struct Key<const N: usize>([u32; N]);

/// Words of an address.
const fn addr_words(n: usize) -> usize {
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
    const BASE: usize = 2 * addr_words(N);

    /// Of a packet; `None` if it is of the other family.
    pub(super) fn of(skb: &Skb<'_>, sets: &Sets) -> Option<Self> {
        let mut w = [0; N];
        let a = addr_words(N);
        if !put_addr(skb.src, &mut w[..a]) || !put_addr(skb.dst, &mut w[a..2 * a]) {
            return None;
        }
        w[Self::BASE + PORTS] = u32::from(skb.sport) << 16 | u32::from(skb.dport);
        w[Self::BASE + INPUT] = sets.input.of(skb.input);
        w[Self::BASE + OUTPUT] = sets.output.of(skb.output);
        w[Self::BASE + CLASS] = sets.protos.bit(skb.protocol);
        w[Self::BASE + L4_FIELDS] = match &skb.l4 {
            L4::Tcp(..) => transport::flags(skb).into(),
            L4::Icmp(h) | L4::Icmpv6(h) => icmp(h.ty, h.code),
            L4::Udp(_) | L4::Other => 0,
        };
        let mut key = Key(w);
        key.refresh(skb);
        Some(key)
    }

    /// What targets may have changed: mark and tracking.
    pub(super) fn refresh(&mut self, skb: &Skb<'_>) {
        let dir = match skb.track.info().map(|i| i.dir()) {
            None => DIR_NONE,
            Some(Dir::Original) => DIR_ORIGINAL,
            Some(Dir::Reply) => DIR_REPLY,
        };
        let class = &mut self.0[Self::BASE + CLASS];
        *class = *class >> PROTO_SHIFT << PROTO_SHIFT | u32::from(conntrack::state_bits(&skb.track)) | dir;
        self.0[Self::BASE + MARK] = skb.mark;
    }
}

const fn icmp(ty: u8, code: u8) -> u32 {
    (ty as u32) << 8 | (code as u32) << 16
}

/// The header test of one rule.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Head<const N: usize> {
    mask: [u32; N],
    value: [u32; N],
}

const _: () = assert!(size_of::<Head<V4>>() == 64 && size_of::<Head<V6>>() == 128);

impl<const N: usize> Head<N> {
    /// A test that every packet passes.
    pub(super) const ANY: Self = Head { mask: [0; N], value: [0; N] };

    /// Whether a packet fits.
    #[inline(always)]
    pub(super) fn fits(&self, key: &Key<N>) -> bool {
        let mut differ = 0;
        for i in 0..N {
            differ |= key.0[i] & self.mask[i] ^ self.value[i];
        }
        differ == 0
    }

    /// Adds bits that must have a value. If they are tested for another one already, no packet has both.
    fn must(&mut self, word: usize, mask: u32, value: u32) {
        let both = self.mask[word] & mask;
        if (self.value[word] ^ value) & both != 0 {
            self.never();
        }
        self.mask[word] |= mask;
        self.value[word] |= value;
    }

    /// Adds bits that must not be set.
    fn without(&mut self, word: usize, bits: u32) {
        self.mask[Key::<N>::BASE + word] |= bits;
    }

    /// No packet fits: it has some state.
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

    /// Ports that differ in low bits only. False for other ranges, and inverted.
    pub(super) fn port(&mut self, dst: bool, ports: &Inv<PortRange>) -> bool {
        let (first, last) = ports.value;
        let span = last.wrapping_sub(first);
        if ports.not || first > last || span & span.wrapping_add(1) != 0 || first & span != 0 {
            return false;
        }
        let shift = if dst { 0 } else { 16 };
        self.must(Key::<N>::BASE + PORTS, u32::from(!span) << shift, u32::from(first) << shift);
        true
    }

    /// `mark`. False inverted.
    pub(super) fn mark(&mut self, m: &Inv<(u32, u32)>) -> bool {
        let (value, mask) = m.value;
        if m.not {
            return false;
        }
        if value & !mask != 0 {
            self.never();
        } else {
            self.must(Key::<N>::BASE + MARK, mask, value);
        }
        true
    }

    /// `--tcp-flags`. False inverted.
    pub(super) fn tcp_flags(&mut self, f: &Inv<(u8, u8)>) -> bool {
        let (mask, value) = f.value;
        if f.not {
            return false;
        }
        if value & !mask != 0 {
            self.never();
        } else {
            self.must(Key::<N>::BASE + L4_FIELDS, mask.into(), value.into());
        }
        true
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
            self.must(Key::<N>::BASE + L4_FIELDS, icmp(255, code), icmp(t, codes.0 & code));
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
    let names = super::ifaces::IfaceNames::new();
    let mut sets = Sets::default();
    for rule in rules {
        if let Some(test) = &rule.input {
            sets.input.admit(&names.set(test));
        }
        if let Some(test) = &rule.output {
            sets.output.admit(&names.set(test));
        }
        if let Some(proto) = rule.proto {
            sets.protos.admit(proto.value);
        }
    }
    sets
}
