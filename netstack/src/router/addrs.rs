//! Who has which address: the stack, guests, the host.

use super::Link;
use crate::config::{Behind, Config, LinkNet, V4Config, V6Config};
use crate::edge::LinkId;
use crate::iptables::Iface;
use crate::nat::{AddrType, Addresses};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// As Linux has it.
const LO_MTU: u32 = 65_536;

/// A view of what the router knows of addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addrs<'a> {
    pub(super) cfg: &'a Config,
    pub(super) links: &'a [Link],
    pub(super) host: &'a [IpAddr],
}

impl Addrs<'_> {
    fn link(&self, link: LinkId) -> Option<&Link> {
        self.links.get(usize::from(link.0))
    }

    /// Link behind which a guest address is.
    pub(crate) fn route(&self, dst: IpAddr) -> Option<LinkId> {
        if self.is_ours(dst) {
            return None;
        }
        let on = |found: Option<usize>| found.map(|i| LinkId(i as u8));
        if is_link_local(dst) {
            // Every link has these: who was heard there, else the first guest.
            let heard = self.links.iter().position(|l| l.net().is_none() && l.neighbours.knows(dst));
            let known = heard.or_else(|| self.links.iter().position(|l| l.v6(self.cfg).is_some()));
            return on(known.filter(|_| dst.is_ipv6()));
        }
        on(self.links.iter().position(|l| self.holds(l, dst)))
    }

    /// The interface by which an address is reached that is a guest's, or of the router itself (or the host, which is one with it).
    pub(crate) fn way_to(&self, dst: IpAddr) -> Option<Iface> {
        self.route(dst).map(Iface::Link).or_else(|| (self.kind(dst, None) == AddrType::Local).then_some(Iface::Lo))
    }

    /// Whether an address, none of ours and not link-local, belongs behind a link: over IPv6 a guest may make its own of its
    /// prefix, by SLAAC.
    fn holds(&self, link: &Link, a: IpAddr) -> bool {
        match (link.behind, a) {
            (Behind::Net(net), _) => net.holds(a),
            (_, IpAddr::V4(a)) => link.v4(self.cfg).is_some_and(|c| c.guest == a),
            (_, IpAddr::V6(_)) => link.v6(self.cfg).is_some_and(|c| in_prefix(a, c.guest.into(), c.prefix)),
        }
    }

    /// Whether an address belongs to a guest: a configured one, over IPv6 any of its prefix that is not ours (a guest
    /// may make its own by SLAAC) and any link-local one; on a link with a network of its own all of that.
    pub(crate) fn is_guest(&self, a: IpAddr) -> bool {
        if self.is_ours(a) {
            return false;
        }
        // That of the configuration is a guest's also when nobody is there any more.
        let configured = match a {
            IpAddr::V4(a) => self.cfg.v4.is_some_and(|c| c.guest == a),
            IpAddr::V6(v6) => self.cfg.v6.is_some_and(|c| v6.is_unicast_link_local() || in_prefix(a, c.guest.into(), c.prefix)),
        };
        configured || self.links.iter().any(|l| self.holds(l, a))
    }

    /// Whether packets from `a` may come over `link`.
    pub(crate) fn is_behind(&self, link: LinkId, a: IpAddr) -> bool {
        let Some(l) = self.link(link) else { return false };
        let local = match l.behind {
            Behind::Nobody => false,
            Behind::Net(_) => is_link_local(a),
            Behind::Configured | Behind::Guest(_) => a.is_ipv6() && is_link_local(a) && l.v6(self.cfg).is_some(),
        };
        (local || self.holds(l, a)) && !self.is_ours(a)
    }

    /// Whether an address is one of the stack's own.
    pub(crate) fn is_ours(&self, a: IpAddr) -> bool {
        let on_link = |l: &Link| match (l.behind, a) {
            (Behind::Net(net), _) => net.ours(a.is_ipv6()) == Some(a),
            (Behind::Guest(g), IpAddr::V4(a)) => g.v4.is_some_and(|c| a == c.gateway || a == c.dns),
            (Behind::Guest(g), IpAddr::V6(a)) => g.v6.is_some_and(|c| a == c.gateway || a == c.dns),
            (Behind::Configured | Behind::Nobody, _) => false,
        };
        self.is_configured_ours(a) || self.links.iter().any(on_link)
    }

    fn is_configured_ours(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => self.cfg.v4.is_some_and(|c| a == c.gateway || a == c.dns),
            IpAddr::V6(a) => self.cfg.v6.is_some_and(|c| a == c.gateway || a == c.dns) || a == self.link_local(),
        }
    }

    /// Whether DNS is served at an address.
    pub(crate) fn is_dns(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => {
                let here = |c: Option<V4Config>| c.is_some_and(|c| c.dns == a);
                here(self.cfg.v4) || self.links.iter().any(|l| here(l.v4(self.cfg)))
            }
            IpAddr::V6(a) => {
                let here = |c: Option<V6Config>| c.is_some_and(|c| c.dns == a);
                here(self.cfg.v6) || self.links.iter().any(|l| here(l.v6(self.cfg)))
            }
        }
    }

    /// Whether a packet for `a` is for the router itself.
    pub(crate) fn is_local(&self, a: IpAddr) -> bool {
        if self.is_ours(a) {
            return true;
        }
        match a {
            IpAddr::V4(a) => a.is_multicast() || self.is_broadcast(a),
            IpAddr::V6(a) => a.is_multicast(),
        }
    }

    /// Whether an address means all stations of a link.
    pub(crate) fn is_broadcast(&self, a: Ipv4Addr) -> bool {
        let last = |addr: Ipv4Addr, prefix: u8| {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            prefix < 31 && a.to_bits() == (addr.to_bits() | host)
        };
        let on_link = |l: &Link| match l.behind {
            Behind::Net(net) => net.v4.is_some_and(|(addr, prefix)| last(addr, prefix)),
            Behind::Guest(g) => g.v4.is_some_and(|c| last(c.guest, c.prefix)),
            Behind::Configured | Behind::Nobody => false,
        };
        a.is_broadcast() || self.cfg.v4.is_some_and(|c| last(c.guest, c.prefix)) || self.links.iter().any(on_link)
    }

    /// Our address on a link.
    pub(crate) fn gateway_on(&self, link: LinkId, v6: bool) -> Option<IpAddr> {
        let link = self.link(link)?;
        match link.net() {
            Some(net) => net.ours(v6),
            None if v6 => link.v6(self.cfg).map(|c| c.gateway.into()),
            None => link.v4(self.cfg).map(|c| c.gateway.into()),
        }
    }

    /// Whether an address is one of the host's interfaces' (loopback not among them).
    pub(crate) fn is_host(&self, a: IpAddr) -> bool {
        self.host.binary_search(&a).is_ok()
    }

    /// The host's first address of a family.
    pub(crate) fn host_primary(&self, v6: bool) -> Option<IpAddr> {
        self.host.iter().copied().find(|a| a.is_ipv6() == v6 && !is_link_local(*a))
    }

    /// Our link-local address, from our MAC address.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        let mut b = [0; 16];
        b[0] = 0xfe;
        b[1] = 0x80;
        b[8..].copy_from_slice(&self.cfg.gateway_mac.eui64());
        b.into()
    }
}

impl Addresses for Addrs<'_> {
    fn kind(&self, addr: IpAddr, on: Option<Iface>) -> AddrType {
        let (broadcast, multicast) = match addr {
            IpAddr::V4(a) => (self.is_broadcast(a), a.is_multicast()),
            IpAddr::V6(a) => (false, a.is_multicast()),
        };
        if addr.is_unspecified() {
            return AddrType::Unspec;
        }
        if broadcast {
            return AddrType::Broadcast;
        }
        if multicast {
            return AddrType::Multicast;
        }
        let local = match on {
            None => addr.is_loopback() || self.is_ours(addr) || self.is_host(addr),
            Some(Iface::Host0) => self.is_host(addr),
            Some(Iface::Lo) => addr.is_loopback(),
            Some(Iface::Link(link)) => {
                let of_guest = self.link(link).is_some_and(|l| match addr {
                    IpAddr::V4(a) => l.v4(self.cfg).is_some_and(|c| a == c.gateway || a == c.dns),
                    IpAddr::V6(a) => l.v6(self.cfg).is_some_and(|c| a == c.gateway || a == c.dns),
                });
                of_guest || self.gateway_on(link, addr.is_ipv6()) == Some(addr) || addr == IpAddr::V6(self.link_local())
            }
        };
        if local { AddrType::Local } else { AddrType::Unicast }
    }

    fn primary(&self, out: Iface, v6: bool) -> Option<IpAddr> {
        match out {
            Iface::Link(link) => self.gateway_on(link, v6),
            Iface::Host0 => self.host_primary(v6),
            // As Linux, which takes none of its loopback's for what is not of it.
            Iface::Lo => self.gateway_on(LinkId(0), v6),
        }
    }

    fn first(&self, input: Iface, v6: bool) -> Option<IpAddr> {
        self.primary(input, v6)
    }

    fn way(&self, to: IpAddr) -> Option<Iface> {
        Some(self.way_to(to).unwrap_or(Iface::Host0))
    }

    fn mtu(&self, on: Iface) -> u32 {
        match on {
            Iface::Link(link) => self.links.get(usize::from(link.0)).map_or(u16::MAX, |l| l.info.mtu).into(),
            // The host's sockets find the path's by themselves.
            Iface::Host0 => u16::MAX.into(),
            Iface::Lo => LO_MTU,
        }
    }
}

impl LinkNet {
    /// Whether an address is in one of the network's prefixes, and none that means the network or all of it.
    fn holds(&self, a: IpAddr) -> bool {
        match a {
            IpAddr::V4(a) => self.v4.is_some_and(|(addr, prefix)| {
                let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let number = a.to_bits() & host;
                in_prefix(a.into(), addr.into(), prefix) && (prefix >= 31 || number != 0 && number != host)
            }),
            IpAddr::V6(_) => self.v6.is_some_and(|(addr, prefix)| in_prefix(a, addr.into(), prefix)),
        }
    }

    /// Our address in it.
    pub(crate) fn ours(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.v6.map(|(a, _)| a.into()) } else { self.v4.map(|(a, _)| a.into()) }
    }
}

fn is_link_local(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// Whether `a` and `b`, of one family, have their first `len` bits in common.
fn in_prefix(a: IpAddr, b: IpAddr, len: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let shift = 32 - u32::from(len.min(32));
            (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let shift = 128 - u32::from(len.min(128));
            (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    }
}
