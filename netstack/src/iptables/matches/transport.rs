//! Tests of transport headers: `tcp`, `udp`, `icmp`, `icmp6`, `multiport`.

use super::Answer;
use crate::iptables::{IcmpType, Inv, PortRange, Ports};
use crate::packet::L4;
use crate::skb::Skb;
use crate::tuple::proto;
use crate::wire::tcp;

/// A port, or a range of them.
pub(super) fn port(ports: &Inv<PortRange>, port: u16) -> bool {
    (ports.value.0 <= port && port <= ports.value.1) != ports.not
}

/// The flags of a TCP header.
pub(in crate::iptables) fn flags(skb: &Skb<'_>) -> u8 {
    // The parsed header has no ECE and CWR; the bytes do.
    match (skb.l4_bytes.get(13), &skb.l4) {
        (Some(b), _) => *b,
        (None, L4::Tcp(h, _)) => h.flags.0,
        _ => 0,
    }
}

/// `--tcp-flags`: mask and what must be set of it.
pub(super) fn tcp_flags(f: &Inv<(u8, u8)>, skb: &Skb<'_>) -> bool {
    (flags(skb) & f.value.0 == f.value.1) != f.not
}

/// `--tcp-option`. As Linux walks the list: an end mark does not end it, nor does a length of 0.
pub(super) fn tcp_option(o: &Inv<u8>, skb: &Skb<'_>) -> Answer {
    let L4::Tcp(h, _) = &skb.l4 else { return Answer::No };
    if usize::from(h.header_len) < tcp::HEADER_LEN {
        return Answer::Broken;
    }
    let options = skb.l4_bytes.get(tcp::HEADER_LEN..usize::from(h.header_len)).unwrap_or_default();
    let mut at = 0;
    let found = loop {
        match options.get(at) {
            None => break false,
            Some(kind) if *kind == o.value => break true,
            Some(0 | 1) => at += 1,
            Some(_) => at += usize::from(options.get(at + 1).copied().unwrap_or(1).max(1)),
        }
    };
    (found != o.not).into()
}

/// `icmp`, `icmp6`.
pub(super) fn icmp(ty: &Inv<IcmpType>, skb: &Skb<'_>) -> Answer {
    let (L4::Icmp(h) | L4::Icmpv6(h)) = &skb.l4 else { return Answer::Broken };
    let t = &ty.value;
    let fits = h.ty == t.ty && t.codes.0 <= h.code && h.code <= t.codes.1;
    (fits != ty.not).into()
}

/// `multiport`. Protocols that the stack does not know (SCTP, DCCP, UDP-Lite) have their ports where TCP has them.
pub(super) fn multiport(which: Ports, ports: &[PortRange], not: bool, skb: &Skb<'_>) -> Answer {
    let (src, dst) = match (skb.protocol, skb.l4_bytes) {
        (proto::TCP | proto::UDP, _) => (skb.sport, skb.dport),
        (_, [a, b, c, d, ..]) => (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
        _ => return Answer::Broken,
    };
    let has = |port: u16| ports.iter().any(|(first, last)| *first <= port && port <= *last);
    let fits = match which {
        Ports::Source => has(src),
        Ports::Destination => has(dst),
        Ports::Either => has(src) || has(dst),
    };
    (fits != not).into()
}
