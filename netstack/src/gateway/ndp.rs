//! Neighbour discovery and router advertisements, RFC 4861 and RFC 8106.

use super::icmpv6;
use crate::edge::{Edge, LinkId, Token, TokenKind};
use crate::packet::Packet;
use crate::router::Router;
use crate::time::Time;
use crate::timers::Deadline;
use crate::verdict::DropReason;
use crate::wire::icmp::{self, v6};
use crate::wire::ndp::{self as wire, Neighbor, Options, RouterAdvert};
use crate::wire::{Mac, Writer};
use core::net::{IpAddr, Ipv6Addr};
use core::time::Duration;

/// Hop limit of all neighbour discovery: what comes with less crossed a router (RFC 4861 section 7.1).
pub(super) const HOP_LIMIT: u8 = 255;
/// Length of a neighbour solicitation or advertisement with its link-layer address.
pub(super) const NEIGHBOR_LEN: usize = icmp::HEADER_LEN + 24;
/// Longest message: fragments are not allowed here (RFC 6980), and every link carries 1280 bytes.
const MAX_LEN: usize = 1280 - 40;
/// Seconds between unsolicited router advertisements: MinRtrAdvInterval and MaxRtrAdvInterval of RFC 4861 section 6.2.1.
const INTERVAL: (u32, u32) = (1200, 1800);
/// For how many seconds an advertisement holds: AdvDefaultLifetime of three times the interval, with room for a loss more.
const LIFETIME: u16 = 9000;

/// Router advertisements of the links.
///
/// They are sent regularly only on links on which somebody asked for one: a guest that was configured otherwise
/// must not be woken.
#[derive(Debug, Default)]
pub(super) struct Adverts {
    pub(super) links: Vec<Deadline>,
}

impl Adverts {
    pub(super) fn token(link: LinkId) -> Token {
        Token::new(TokenKind::Gateway, link.0.into(), 0)
    }

    /// Sets when the next unsolicited one is due.
    fn schedule(&mut self, r: &mut Router, link: LinkId) {
        let wait = Duration::from_secs(u64::from(INTERVAL.0 + r.rng.below(INTERVAL.1 - INTERVAL.0)));
        if let Some(deadline) = self.links.get_mut(usize::from(link.0)) {
            r.timers.set(deadline, Self::token(link), r.now + wait);
        }
    }

    fn solicited<E: Edge>(&mut self, r: &mut Router, link: LinkId, to: Option<Ipv6Addr>, mac: Mac, edge: &mut E) {
        if self.links.len() <= usize::from(link.0) {
            self.links.resize_with(usize::from(link.0) + 1, Deadline::default);
        }
        // To the one station that asked, even where the group is named: RFC 6085.
        advertise_router(r, edge, link, mac, to.unwrap_or(wire::ALL_NODES));
        self.schedule(r, link);
    }

    pub(super) fn link_down(&mut self, r: &mut Router, link: LinkId) {
        if let Some(deadline) = self.links.get_mut(usize::from(link.0)) {
            r.timers.cancel(deadline);
            *deadline = Deadline::default();
        }
    }

    fn unsolicited<E: Edge>(&mut self, r: &mut Router, link: LinkId, edge: &mut E) {
        advertise_router(r, edge, link, wire::multicast_mac(wire::ALL_NODES), wire::ALL_NODES);
        self.schedule(r, link);
    }

    /// A link came up again: whoever listened to advertisements before learns that we are still there.
    pub(super) fn link_up<E: Edge>(&mut self, r: &mut Router, link: LinkId, edge: &mut E) {
        if self.links.get(usize::from(link.0)).is_some_and(|d| d.due() != Time::NEVER) {
            self.unsolicited(r, link, edge);
        }
    }

    pub(super) fn timer<E: Edge>(&mut self, r: &mut Router, token: Token, queued: Time, edge: &mut E) {
        let Ok(link) = u8::try_from(token.index()) else { return };
        let Some(deadline) = self.links.get_mut(usize::from(link)) else { return };
        let now = r.now;
        if r.timers.fired(deadline, token, queued, now) {
            self.unsolicited(r, LinkId(link), edge);
        }
    }
}

/// A message of neighbour discovery for one of our addresses or groups.
pub(super) fn input<E: Edge>(
    adverts: &mut Adverts,
    r: &mut Router,
    p: &Packet<'_>,
    h: &icmp::Header,
    edge: &mut E,
) -> Result<(), DropReason> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (p.ip.src, p.ip.dst) else { return Err(DropReason::IcmpUnhandled) };
    let mut body = [0; MAX_LEN];
    if p.ip.hop_limit != HOP_LIMIT || h.code != 0 || p.payload.len() > body.len() {
        return Err(DropReason::Malformed);
    }
    let n = edge.read(p.payload, &mut body);
    let body = &body[..n];
    match h.ty {
        v6::NEIGHBOR_SOLICIT => neighbor_solicit(r, p, src, dst, body, edge),
        v6::NEIGHBOR_ADVERT => neighbor_advert(r, p, dst, h, body),
        v6::ROUTER_SOLICIT => {
            let options = Options::parse(body)?;
            // RFC 4861 section 6.1.1.
            if src.is_unspecified() && options.source_mac.is_some() {
                return Err(DropReason::Malformed);
            }
            let mac = options.source_mac.filter(|m| m.is_unicast()).unwrap_or(p.src_mac);
            adverts.solicited(r, p.link, (!src.is_unspecified()).then_some(src), mac, edge);
            Ok(())
        }
        // The guest is no router of ours.
        _ => Err(DropReason::IcmpUnhandled),
    }
}

fn neighbor_solicit<E: Edge>(
    r: &mut Router,
    p: &Packet<'_>,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    body: &[u8],
    edge: &mut E,
) -> Result<(), DropReason> {
    let m = Neighbor::parse(body)?;
    let unspecified = src.is_unspecified();
    // RFC 4861 section 7.1.1.
    if unspecified && (dst != wire::solicited_node(m.target) || m.options.source_mac.is_some()) {
        return Err(DropReason::Malformed);
    }
    let ours = r.is_ours(m.target.into());
    if !ours && (unspecified || !is_proxied(r, p.link, m.target)) {
        // Whoever looks for duplicates of an address of its own hears nothing.
        return Ok(());
    }
    let (to, mac, solicited) = match unspecified {
        true => (wire::ALL_NODES, wire::multicast_mac(wire::ALL_NODES), 0),
        false => (src, m.options.source_mac.filter(|m| m.is_unicast()).unwrap_or(p.src_mac), wire::SOLICITED),
    };
    // A proxy does not override (RFC 4861 section 7.2.8).
    let overrides = if ours { wire::OVERRIDE } else { 0 };
    advertise(r, edge, p.link, mac, m.target, to, solicited | overrides);
    Ok(())
}

/// Whether an address of the prefix, not ours, is reached through us: it is not the guest's configured one, nor one
/// that the guest was seen to use.
fn is_proxied(r: &Router, link: LinkId, a: Ipv6Addr) -> bool {
    let Some(cfg) = r.v6_on(link) else { return false };
    let on_link = prefix_of(a, cfg.prefix) == prefix_of(cfg.guest, cfg.prefix);
    on_link && a != cfg.guest && !r.links[usize::from(link.0)].neighbours.knows(a.into())
}

fn neighbor_advert(r: &mut Router, p: &Packet<'_>, dst: Ipv6Addr, h: &icmp::Header, body: &[u8]) -> Result<(), DropReason> {
    let m = Neighbor::parse(body)?;
    // RFC 4861 section 7.1.2.
    if dst.is_multicast() && h.rest & wire::SOLICITED != 0 {
        return Err(DropReason::Malformed);
    }
    if !r.addrs().is_behind(p.link, m.target.into()) {
        return Err(DropReason::SpoofedSource);
    }
    r.learn(p.link, m.target.into(), m.options.target_mac.unwrap_or(p.src_mac));
    Ok(())
}

/// Sends a neighbour advertisement for `target`.
pub(super) fn advertise<E: Edge>(
    r: &mut Router,
    edge: &mut E,
    link: LinkId,
    mac: Mac,
    target: Ipv6Addr,
    to: Ipv6Addr,
    flags: u32,
) {
    let mut message = [0; NEIGHBOR_LEN];
    put_message(&mut message, v6::NEIGHBOR_ADVERT, wire::ROUTER | flags, |w| {
        wire::put_neighbor(w, false, target, r.cfg.gateway_mac);
    });
    // A drop is counted by the router; there is nothing else to do about it.
    let _ = r.send_on(edge, link, mac, &icmpv6(target, to, HOP_LIMIT, &message));
}

fn advertise_router<E: Edge>(r: &mut Router, edge: &mut E, link: LinkId, mac: Mac, to: Ipv6Addr) {
    let (prefix, len, dns) = match (r.links[usize::from(link.0)].net(), r.v6_on(link)) {
        (Some(net), _) => match net.v6 {
            Some((ours, len)) => (ours, len, r.cfg.v6.map_or(ours, |c| c.dns)),
            None => return,
        },
        (None, Some(cfg)) => (cfg.guest, cfg.prefix, cfg.dns),
        (None, None) => return,
    };
    let mut message = [0; MAX_LEN];
    let n = put_message(&mut message, v6::ROUTER_ADVERT, RouterAdvert::word(LIFETIME), |w| {
        let advert = RouterAdvert {
            mac: r.cfg.gateway_mac,
            mtu: r.links[usize::from(link.0)].info.mtu,
            prefix: (prefix_of(prefix, len), len),
            dns,
            dns_lifetime: LIFETIME.into(),
            search: &r.cfg.search,
        };
        advert.put(w);
    });
    // A drop is counted by the router; the guest asks again.
    let _ = r.send_on(edge, link, mac, &icmpv6(r.link_local(), to, HOP_LIMIT, &message[..n]));
}

/// Builds a message from its fixed part and what `rest` appends. Returns its length.
pub(super) fn put_message(b: &mut [u8], ty: u8, word: u32, rest: impl FnOnce(&mut Writer<'_>)) -> usize {
    let mut w = Writer::new(b);
    w.put(&[ty, 0, 0, 0]);
    w.put32(word);
    rest(&mut w);
    w.len()
}

/// The first `len` bits of an address.
pub(super) fn prefix_of(a: Ipv6Addr, len: u8) -> Ipv6Addr {
    Ipv6Addr::from_bits(a.to_bits() & !u128::MAX.checked_shr(len.into()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_no_host_bits() {
        let a: Ipv6Addr = "fd00:1:2:3:4:5:6:7".parse().unwrap();
        for (len, expected) in [(64, "fd00:1:2:3::"), (0, "::"), (128, "fd00:1:2:3:4:5:6:7"), (200, "fd00:1:2:3:4:5:6:7")] {
            assert_eq!(prefix_of(a, len), expected.parse::<Ipv6Addr>().unwrap(), "/{len}");
        }
    }
}
