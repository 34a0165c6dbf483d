//! Tests of addresses: masks that are no prefixes, `iprange`, `addrtype`.

use crate::iptables::{Iface, Inv, Net, RpFilter};
use crate::nat::{AddrType, Addresses};
use crate::skb::Skb;
use core::net::{IpAddr, Ipv6Addr};

/// A masked comparison.
pub(super) fn net(net: &Inv<Net>, a: IpAddr) -> bool {
    let same = match (a, net.value.addr, net.value.mask) {
        (IpAddr::V4(a), IpAddr::V4(n), IpAddr::V4(m)) => (a.to_bits() ^ n.to_bits()) & m.to_bits() == 0,
        (IpAddr::V6(a), IpAddr::V6(n), IpAddr::V6(m)) => (a.to_bits() ^ n.to_bits()) & m.to_bits() == 0,
        _ => false,
    };
    same != net.not
}

/// `iprange`: an upside-down range holds nothing.
pub(super) fn range(range: &Inv<(IpAddr, IpAddr)>, a: IpAddr) -> bool {
    (range.value.0 <= a && a <= range.value.1) != range.not
}

/// `addrtype`, without the inversion. `types` is a set of `1 << AddrType`.
pub(super) fn addrtype(types: u16, a: IpAddr, on: Option<Iface>, addrs: &dyn Addresses) -> bool {
    let bit = |t: AddrType| 1 << t as u16;
    let has = |t: AddrType| types & bit(t) != 0;
    let IpAddr::V6(addr) = a else { return types & bit(addrs.kind(a, on)) != 0 };
    // Not one of the types, as for IPv4, but all of the first three; then one of the others (xt_addrtype.c, match_type6).
    if has(AddrType::Multicast) && !addr.is_multicast()
        || has(AddrType::Unicast) && !is_unicast(addr)
        || has(AddrType::Unspec) && !addr.is_unspecified()
    {
        return false;
    }
    let routed = types & (bit(AddrType::Local) | bit(AddrType::Anycast) | bit(AddrType::Unreachable));
    let kind = match addrs.kind(a, on) {
        AddrType::Blackhole | AddrType::Prohibit => AddrType::Unreachable,
        kind => kind,
    };
    routed == 0 || routed & bit(kind) != 0
}

/// As `ipv6_addr_type` has it: neither multicast, nor unspecified, nor IPv4-mapped.
fn is_unicast(a: Ipv6Addr) -> bool {
    !a.is_multicast() && !a.is_unspecified() && a.to_ipv4_mapped().is_none()
}

/// `rpfilter`: whether the answer would leave by the interface that the packet came in on (xt_rpfilter.c, ip6t_rpfilter.c). Marks choose no
/// route here. What loops back always fits.
pub(super) fn rpfilter(m: &RpFilter, skb: &Skb<'_>, addrs: &dyn Addresses) -> bool {
    let fits = match (skb.src, skb.dst) {
        // Whoever asks for an address; and what only this network hears.
        (IpAddr::V4(src), IpAddr::V4(dst))
            if src.octets()[0] == 0 && (dst.is_broadcast() || dst.octets()[..3] == [224, 0, 0]) =>
        {
            true
        }
        (IpAddr::V6(src), _) if src.is_unspecified() => true,
        _ if skb.input == Some(Iface::Lo) => true,
        (src, _) => match addrs.kind(src, None) {
            AddrType::Local => m.accept_local && (m.loose || addrs.kind(src, skb.input) == AddrType::Local),
            AddrType::Unicast => m.loose || skb.input.is_some_and(|i| addrs.way(src) == Some(i)),
            _ => false,
        },
    };
    fits != m.invert
}
