//! Tests of IPv6 extension headers.

use super::Answer;
use crate::iptables::{ExtMatch, OptionsMatch, RouteMatch, header_bits as bits};
use crate::skb::Skb;
use crate::wire::{be32, ipv6};
use core::net::{IpAddr, Ipv6Addr};

const HOP: u8 = 0;
const ROUTE: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTH: u8 = 51;
const NONE: u8 = 59;
const DEST: u8 = 60;

/// Extension headers of a packet: number, and bytes.
struct Headers<'a> {
    bytes: &'a [u8],
    next: u8,
    at: usize,
}

impl<'a> Headers<'a> {
    fn of(skb: &Skb<'a>) -> Self {
        Headers { bytes: skb.ip_bytes, next: skb.ip_bytes.get(6).copied().unwrap_or(skb.protocol), at: ipv6::HEADER_LEN }
    }

    fn find(skb: &Skb<'a>, number: u8) -> Option<&'a [u8]> {
        Headers::of(skb).find_map(|(n, bytes)| (n == number).then_some(bytes))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let units = usize::from(*self.bytes.get(self.at + 1)?);
        let len = match self.next {
            HOP | ROUTE | DEST => (units + 1) * 8,
            AUTH => (units + 2) * 4,
            FRAGMENT => 8,
            _ => return None,
        };
        let bytes = self.bytes.get(self.at..self.at + len)?;
        let number = core::mem::replace(&mut self.next, bytes[0]);
        self.at += len;
        Some((number, bytes))
    }
}

/// Whether a packet fits.
pub(super) fn extension(m: &ExtMatch, skb: &Skb<'_>) -> Answer {
    match m {
        ExtMatch::Ah { spi, len, reserved } => Headers::find(skb, AUTH)
            .is_some_and(|h| {
                h.len() >= 12
                    && spi.is_none_or(|s| (s.value.0 <= be32(h, 4) && be32(h, 4) <= s.value.1) != s.not)
                    && len.is_none_or(|l| l.value == 0 || (l.value as usize == h.len()) != l.not)
                    && !(*reserved && h[2..4] != [0, 0])
            })
            .into(),
        ExtMatch::Frag(_) => Answer::No,
        ExtMatch::Options(m) => options(m, skb).into(),
        ExtMatch::Route(m) => Headers::find(skb, ROUTE).is_some_and(|h| route(m, h)).into(),
        ExtMatch::Headers { bits, soft } => {
            let there = present(skb);
            if *soft {
                // Inverted, none of them is there.
                (there & bits.value == if bits.not { 0 } else { bits.value }).into()
            } else {
                ((there == bits.value) != bits.not).into()
            }
        }
        ExtMatch::Eui64 => match (skb.src_mac, skb.src) {
            (Some(mac), IpAddr::V6(src)) => (src.octets()[8..] == mac.eui64()).into(),
            _ => Answer::No,
        },
        ExtMatch::Mobility(types) => match skb.l4_bytes {
            // Nothing follows a mobility header.
            [NONE, _, ty, _, _, _, ..] => types.is_none_or(|t| (t.value.0 <= *ty && *ty <= t.value.1) != t.not).into(),
            _ => Answer::Broken,
        },
    }
}

/// Which headers there are, as [`bits`].
fn present(skb: &Skb<'_>) -> u8 {
    let one = |number| match number {
        HOP => bits::HOP,
        ROUTE => bits::ROUTE,
        FRAGMENT => bits::FRAGMENT,
        AUTH => bits::AH,
        _ => bits::DEST,
    };
    let last = match skb.protocol {
        ESP => bits::ESP,
        NONE => bits::NONE,
        _ => bits::PROTOCOL,
    };
    Headers::of(skb).fold(last, |all, (number, _)| all | one(number))
}

fn options(m: &OptionsMatch, skb: &Skb<'_>) -> bool {
    let Some(h) = Headers::find(skb, if m.dest { DEST } else { HOP }) else { return false };
    if m.len.is_some_and(|l| (l.value as usize == h.len()) == l.not) {
        return false;
    }
    let mut rest = &h[2..];
    for (n, (ty, len)) in m.options.iter().enumerate() {
        let next = match rest {
            [found, ..] if found != ty => return false,
            [0, next @ ..] => next,
            [_, found, ..] if len.is_some_and(|l| l != *found) => return false,
            [_, found, next @ ..] => match next.get(usize::from(*found)..) {
                Some(next) => next,
                // Too long: it counts if it was the last one to be found.
                None => return n + 1 == m.options.len(),
            },
            _ => return false,
        };
        rest = next;
    }
    true
}

fn route(m: &RouteMatch, h: &[u8]) -> bool {
    let fixed = m.left.is_none_or(|l| {
        let left = u32::from(h[3]);
        (l.value.0 <= left && left <= l.value.1) != l.not
    }) && m.len.is_none_or(|l| (l.value as usize == h.len()) != l.not)
        && m.ty.is_none_or(|t| (t.value == u32::from(h[2])) != t.not)
        && !(m.reserved && h[4..8] != [0; 4]);
    if !fixed || m.addrs.is_empty() {
        return fixed;
    }
    let mut there = h[8..].chunks_exact(16).map(|a| Ipv6Addr::from(<[u8; 16]>::try_from(a).unwrap_or_default()));
    if m.not_strict {
        // In this order, others between them.
        m.addrs.iter().all(|wanted| there.any(|a| a == *wanted))
    } else {
        there.eq(m.addrs.iter().copied())
    }
}
