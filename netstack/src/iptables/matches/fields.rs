//! Tests of single header fields.

use super::Answer;
use super::transport;
use crate::iptables::{EcnMatch, FieldMatch, HopTest, Inv, SpiRange};
use crate::packet::L4;
use crate::skb::Skb;
use crate::wire::{be16, be32, tcp};

/// Bits of the type of service that are ECN's.
const ECN: u8 = 3;
/// Flags of a TCP header.
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Whether a packet fits.
pub(super) fn field(m: &FieldMatch, skb: &Skb<'_>) -> Answer {
    match m {
        FieldMatch::Pkttype(p) => ((p.value == skb.cast) != p.not).into(),
        FieldMatch::HopLimit(test) => match *test {
            HopTest::Is(n) => (skb.hop_limit == n).into(),
            HopTest::IsNot(n) => (skb.hop_limit != n).into(),
            HopTest::Below(n) => (skb.hop_limit < n).into(),
            HopTest::Above(n) => (skb.hop_limit > n).into(),
        },
        FieldMatch::Length(l) => ((u32::from(l.value.0) <= skb.len && skb.len <= l.value.1.into()) != l.not).into(),
        FieldMatch::Tos(t) => ((skb.tos & t.value.1 == t.value.0) != t.not).into(),
        FieldMatch::Dscp(d) => ((skb.tos >> 2 == d.value) != d.not).into(),
        FieldMatch::Ecn(e) => ecn(e, skb),
        FieldMatch::TcpMss(m) => tcp_mss(m, skb),
        FieldMatch::Esp(range) => spi(range, skb, 0, 8),
        FieldMatch::Ah(range) => spi(range, skb, 4, 12),
        FieldMatch::Ipcomp(range) => match (skb.l4_bytes.get(..4), range) {
            (None, _) => Answer::Broken,
            (Some(h), Some(r)) => within(r, be16(h, 2).into()),
            (Some(_), None) => Answer::Yes,
        },
    }
}

fn within(r: &Inv<SpiRange>, spi: u32) -> Answer {
    ((r.value.0 <= spi && spi <= r.value.1) != r.not).into()
}

/// The index of a security association, `at` bytes into a header of `len` bytes.
fn spi(range: &Option<Inv<SpiRange>>, skb: &Skb<'_>, at: usize, len: usize) -> Answer {
    match (skb.l4_bytes.get(..len), range) {
        (None, _) => Answer::Broken,
        (Some(h), Some(r)) => within(r, be32(h, at)),
        (Some(_), None) => Answer::Yes,
    }
}

fn ecn(m: &EcnMatch, skb: &Skb<'_>) -> Answer {
    if m.ect.is_some_and(|e| (skb.tos & ECN == e.value) == e.not) {
        return Answer::No;
    }
    if m.ece.is_none() && m.cwr.is_none() {
        return Answer::Yes;
    }
    if skb.l4_bytes.len() < tcp::HEADER_LEN {
        return Answer::No;
    }
    let flags = transport::flags(skb);
    let fits = |want: Option<bool>, bit: u8| want.is_none_or(|want| (flags & bit != 0) == want);
    (fits(m.ece, ECE) && fits(m.cwr, CWR)).into()
}

/// A header without the option fits an inverted test.
fn tcp_mss(m: &Inv<(u16, u16)>, skb: &Skb<'_>) -> Answer {
    let L4::Tcp(h, _) = &skb.l4 else { return Answer::Broken };
    if usize::from(h.header_len) < tcp::HEADER_LEN || skb.l4_bytes.len() < usize::from(h.header_len) {
        return Answer::Broken;
    }
    let said = || tcp::mss_option(skb.l4_bytes).map(|at| be16(skb.l4_bytes, at + 2));
    let mss = skb.altered.mss.map(|new| new.value).or_else(said);
    (mss.is_some_and(|mss| m.value.0 <= mss && mss <= m.value.1) != m.not).into()
}
