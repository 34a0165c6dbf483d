//! The header test of a rule: what most rules are decided by, in one cache line and without a branch.

use super::ifaces::IfaceBits;
use super::{Inv, Net};
use crate::skb::Skb;
use core::net::IpAddr;

/// `! -s`.
pub(super) const INV_SRC: u8 = 1 << 0;
/// `! -d`.
pub(super) const INV_DST: u8 = 1 << 1;
/// `! -p`.
pub(super) const INV_PROTO: u8 = 1 << 2;
/// `! --sport`.
pub(super) const INV_SPORT: u8 = 1 << 3;
/// `! --dport`.
pub(super) const INV_DPORT: u8 = 1 << 4;
/// No `-p`.
pub(super) const ANY_PROTO: u8 = 1 << 5;
/// No `-s`, or one of length 0 (IPv6).
pub(super) const ANY_SRC: u8 = 1 << 6;
/// No `-d`, or one of length 0 (IPv6).
pub(super) const ANY_DST: u8 = 1 << 7;

/// What a rule does once it fits, without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Action {
    /// The next rule.
    Next,
    /// ACCEPT.
    Accept,
    /// DROP.
    Drop,
    /// RETURN, and the end of a user's chain.
    Return,
    /// To the rule `arg`, and back.
    Jump,
    /// To the rule `arg`.
    Goto,
    /// Target extension `arg`.
    Target,
    /// The end of a built-in chain: policy ACCEPT.
    PolicyAccept,
    /// The end of a built-in chain: policy DROP.
    PolicyDrop,
}

/// Ports from `first` on, as many as `span` and one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u16,
    pub(super) span: u16,
}

impl Span {
    /// Every port.
    pub(super) const ALL: Span = Span { first: 0, span: u16::MAX };

    const fn has(self, port: u16) -> bool {
        port.wrapping_sub(self.first) <= self.span
    }
}

/// One rule: its header test, and where to go on. `A` is the part that depends on the family.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Head<A> {
    pub(super) addrs: A,
    pub(super) sport: Span,
    pub(super) dport: Span,
    /// Classes of interfaces that `-i` admits.
    pub(super) input: u32,
    /// Classes of interfaces that `-o` admits.
    pub(super) output: u32,
    /// First match.
    pub(super) matches: u32,
    /// What the action is about.
    pub(super) arg: u32,
    /// States of tracking that are admitted, as `--ctstate` numbers them.
    pub(super) states: u16,
    /// Bits that do not count of the addresses (IPv6).
    pub(super) shifts: [u8; 2],
    pub(super) proto: u8,
    pub(super) flags: u8,
    /// How many matches.
    pub(super) match_count: u8,
    pub(super) action: Action,
}

impl<A: Addrs> Head<A> {
    /// A rule that every packet fits.
    pub(super) fn any(action: Action, arg: u32) -> Self {
        Head {
            addrs: A::default(),
            sport: Span::ALL,
            dport: Span::ALL,
            input: u32::MAX,
            output: u32::MAX,
            matches: 0,
            arg,
            states: u16::MAX,
            shifts: [0; 2],
            proto: 0,
            flags: ANY_PROTO | ANY_SRC | ANY_DST,
            match_count: 0,
            action,
        }
    }

    /// Whether a packet fits. Every part is looked at whatever the others say: no branch to be guessed wrongly.
    #[inline(always)]
    pub(super) fn fits(&self, key: &Key<A>) -> bool {
        let f = self.flags;
        let inv = |bit: u8| f & bit != 0;
        A::fit(self, key)
            & (self.sport.has(key.sport) ^ inv(INV_SPORT))
            & (self.dport.has(key.dport) ^ inv(INV_DPORT))
            & (((self.proto == key.proto) ^ inv(INV_PROTO)) | inv(ANY_PROTO))
            & (self.input & key.input != 0)
            & (self.output & key.output != 0)
            & (self.states & key.states != 0)
    }
}

/// What header tests look at of a packet, taken together once per table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<A: Addrs> {
    src: A::Addr,
    dst: A::Addr,
    sport: u16,
    dport: u16,
    input: u32,
    output: u32,
    pub(super) states: u16,
    proto: u8,
}

impl<A: Addrs> Key<A> {
    /// Of a packet; `None` if it is of the other family.
    pub(super) fn of(skb: &Skb<'_>, bits: &IfaceBits) -> Option<Self> {
        Some(Key {
            src: A::addr(skb.src)?,
            dst: A::addr(skb.dst)?,
            sport: skb.sport,
            dport: skb.dport,
            input: bits.input(skb.input),
            output: bits.output(skb.output),
            states: super::matches::conntrack::state_bits(&skb.track),
            proto: skb.protocol,
        })
    }
}

/// Addresses of a family, and their test.
pub(super) trait Addrs: Clone + Default + core::fmt::Debug {
    /// An address.
    type Addr: Copy + core::fmt::Debug;

    /// An address of this family; `None` for the other.
    fn addr(a: IpAddr) -> Option<Self::Addr>;

    /// The test of both addresses.
    fn fit(head: &Head<Self>, key: &Key<Self>) -> bool;

    /// Makes `-s` (`side` 0) or `-d` (`side` 1) part of the header test. False if it has no room for it.
    fn put(head: &mut Head<Self>, side: usize, net: &Inv<Net>) -> bool;
}

/// `-s` and `-d` of IPv4: value and mask each.
#[derive(Clone, Debug, Default)]
pub(super) struct V4([[u32; 2]; 2]);

impl Addrs for V4 {
    type Addr = u32;

    fn addr(a: IpAddr) -> Option<u32> {
        match a {
            IpAddr::V4(a) => Some(a.to_bits()),
            IpAddr::V6(_) => None,
        }
    }

    #[inline(always)]
    fn fit(head: &Head<V4>, key: &Key<V4>) -> bool {
        let [src, dst] = head.addrs.0;
        let f = head.flags;
        ((key.src & src[1] == src[0]) ^ (f & INV_SRC != 0)) & ((key.dst & dst[1] == dst[0]) ^ (f & INV_DST != 0))
    }

    fn put(head: &mut Head<V4>, side: usize, net: &Inv<Net>) -> bool {
        let (IpAddr::V4(addr), IpAddr::V4(mask)) = (net.value.addr, net.value.mask) else { return false };
        head.addrs.0[side] = [addr.to_bits() & mask.to_bits(), mask.to_bits()];
        if net.not {
            head.flags |= [INV_SRC, INV_DST][side];
        }
        true
    }
}

/// `-s` and `-d` of IPv6, if they are prefixes.
#[derive(Clone, Debug, Default)]
pub(super) struct V6([u128; 2]);

impl Addrs for V6 {
    type Addr = u128;

    fn addr(a: IpAddr) -> Option<u128> {
        match a {
            IpAddr::V4(_) => None,
            IpAddr::V6(a) => Some(a.to_bits()),
        }
    }

    #[inline(always)]
    fn fit(head: &Head<V6>, key: &Key<V6>) -> bool {
        let f = head.flags;
        let [src, dst] = head.addrs.0;
        let [s, d] = head.shifts;
        let src = ((key.src ^ src) >> (s & 127) == 0) | (f & ANY_SRC != 0);
        let dst = ((key.dst ^ dst) >> (d & 127) == 0) | (f & ANY_DST != 0);
        (src ^ (f & INV_SRC != 0)) & (dst ^ (f & INV_DST != 0))
    }

    fn put(head: &mut Head<V6>, side: usize, net: &Inv<Net>) -> bool {
        let (IpAddr::V6(addr), IpAddr::V6(mask)) = (net.value.addr, net.value.mask) else { return false };
        let mask = mask.to_bits();
        if mask.leading_ones() + mask.trailing_zeros() < 128 {
            return false;
        }
        if mask != 0 {
            head.flags &= !([ANY_SRC, ANY_DST][side]);
            head.shifts[side] = mask.trailing_zeros() as u8;
            head.addrs.0[side] = addr.to_bits() & mask;
        }
        if net.not {
            head.flags |= [INV_SRC, INV_DST][side];
        }
        true
    }
}

const _: () = assert!(size_of::<Head<V4>>() == 64 && size_of::<Head<V6>>() == 64);
