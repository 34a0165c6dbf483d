//! The safe reach: which destinations the guest may talk to, and where on the host they lead.
//!
//! Explicit openings (mapped loopback, allowed host addresses, metadata) hold under every [`Egress`]; the rest is
//! refused unless the general rule allows it. IPv6 addresses that embed an IPv4 address are judged by that one as well,
//! since somebody on the way may translate them.

use crate::config::{AllowHost, Egress};
use crate::router::Router;
use crate::verdict::DropReason;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services of clouds outside the link-local ranges: Alibaba's, and Azure's wire server.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// Those of Amazon EC2 and Google.
const METADATA_V6: [Ipv6Addr; 2] = [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

impl Router {
    /// Where a packet of the guest for `dst` is sent on the host: `dst` itself, or the host's loopback where that
    /// was mapped. `port` is the destination port, 0 for protocols without.
    ///
    /// [`DropReason::ReachDenied`] for what policy forbids, of which the guest is told; [`DropReason::NoRoute`] for
    /// multicast and broadcast.
    pub(crate) fn host_destination(&self, dst: IpAddr, port: u16) -> Result<IpAddr, DropReason> {
        if let Some(loopback) = self.mapped_loopback(dst) {
            return Ok(loopback);
        }
        match dst {
            IpAddr::V4(a) if a.is_multicast() || a.is_broadcast() => Err(DropReason::NoRoute),
            IpAddr::V6(a) if a.is_multicast() => Err(DropReason::NoRoute),
            IpAddr::V4(a) if self.reaches_v4(a, port) => Ok(dst),
            IpAddr::V6(a) if self.reaches_v6(a, port) => Ok(dst),
            _ => Err(DropReason::ReachDenied),
        }
    }

    /// The host's loopback address for which `dst` stands in the guest's world, if it does.
    pub(crate) fn mapped_loopback(&self, dst: IpAddr) -> Option<IpAddr> {
        self.cfg.reach.map_host_loopback.contains(&dst).then_some(match dst {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        })
    }

    /// Whether an address is one of the host's interfaces' (loopback not among them).
    pub(crate) fn is_host_addr(&self, a: IpAddr) -> bool {
        self.host_addrs.binary_search(&a).is_ok()
    }

    /// Whether the guest must not see this address of the host's side, because its answers would not go back there: the
    /// host's own, link-local ones, and those that mean somebody else to the guest.
    pub(crate) fn hides(&self, a: IpAddr) -> bool {
        let kind = match a {
            IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_unspecified(),
            IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_unspecified(),
        };
        kind || self.is_host_addr(a) || self.is_ours(a) || self.is_guest(a) || self.mapped_loopback(a).is_some()
    }

    /// Our address on the guest links in the family of `a`, if that is switched on.
    pub(crate) fn gateway_of(&self, a: IpAddr) -> Option<IpAddr> {
        match a {
            IpAddr::V4(_) => self.cfg.v4.map(|c| c.gateway.into()),
            IpAddr::V6(_) => self.cfg.v6.map(|c| c.gateway.into()),
        }
    }

    fn opened_host(&self, a: IpAddr, port: u16) -> bool {
        self.cfg.reach.allow_host.iter().any(|open| match open {
            AllowHost::Any => true,
            AllowHost::Addr(addr) => *addr == a,
            AllowHost::Port(e) => e.addr == a && e.port == port,
        })
    }

    fn reaches_v4(&self, a: Ipv4Addr, port: u16) -> bool {
        let reach = &self.cfg.reach;
        let [first, second, ..] = a.octets();
        if first == 0 || first == 127 || first >= 224 || self.is_guest(a.into()) {
            return false;
        }
        if a.is_link_local() || METADATA_V4.contains(&a) {
            return reach.allow_metadata && (!self.is_host_addr(a.into()) || self.opened_host(a.into(), port));
        }
        if self.is_host_addr(a.into()) {
            return self.opened_host(a.into(), port);
        }
        match reach.egress {
            Egress::Open => true,
            // RFC 1918, RFC 6598, RFC 2544.
            Egress::Public => {
                !(a.is_private() || first == 100 && second & 0xc0 == 64 || first == 198 && second & 0xfe == 18)
            }
            Egress::None => false,
        }
    }

    fn reaches_v6(&self, a: Ipv6Addr, port: u16) -> bool {
        let reach = &self.cfg.reach;
        // A mapped address on the wire would alias an IPv4 flow: RFC 4942 section 2.2.
        if a.is_unspecified() || a.is_loopback() || a.to_ipv4_mapped().is_some() || self.is_guest(a.into()) && !a.is_unicast_link_local()
        {
            return false;
        }
        if !embedded(a).iter().flatten().all(|e| self.reaches_embedded(*e, port)) {
            return false;
        }
        if a.is_unicast_link_local() || METADATA_V6.contains(&a) {
            return reach.allow_metadata && (!self.is_host_addr(a.into()) || self.opened_host(a.into(), port));
        }
        if self.is_host_addr(a.into()) {
            return self.opened_host(a.into(), port);
        }
        match reach.egress {
            Egress::Open => true,
            // RFC 4193, and the site-local range of RFC 3879.
            Egress::Public => !(a.is_unique_local() || a.segments()[0] & 0xffc0 == 0xfec0),
            Egress::None => false,
        }
    }

    fn reaches_embedded(&self, e: Embedded, port: u16) -> bool {
        match e {
            Embedded::Sure(a) => self.reaches_v4(a, port),
            // "This network" and reserved addresses lead nowhere, and are what other uses of the bits look like.
            Embedded::Maybe(a) => a.octets()[0] == 0 || a.octets()[0] >= 224 || self.reaches_v4(a, port),
        }
    }
}

/// An IPv4 address within an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Embedded {
    /// That is what the bits mean.
    Sure(Ipv4Addr),
    /// They mean that only if a translator is configured so.
    Maybe(Ipv4Addr),
}

/// The IPv4 addresses that an IPv6 address embeds.
fn embedded(a: Ipv6Addr) -> [Option<Embedded>; 5] {
    let bits = a.to_bits();
    let at = |shift: u32| Ipv4Addr::from_bits((bits >> shift) as u32);
    let last = Some(Embedded::Sure(at(0)));
    let mut all = [None; 5];
    match a.segments() {
        // IPv4-compatible (RFC 4291 section 2.5.5.1), IPv4-translated (RFC 2765), NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => all[0] = last,
        // NAT64 with a local prefix (RFC 8215): every place that RFC 6052 section 2.2 knows for prefixes this long. Bits
        // 64 to 71 are passed over.
        [0x64, 0xff9b, 1, ..] => {
            let split = |high: u32, low: u32, low_bits: u32| {
                Ipv4Addr::from_bits((((bits >> high) as u32) << low_bits) | ((bits >> low) as u32 & ((1 << low_bits) - 1)))
            };
            all[0] = last;
            all[1] = Some(Embedded::Maybe(split(64, 40, 16)));
            all[2] = Some(Embedded::Maybe(split(64, 32, 24)));
            all[3] = Some(Embedded::Maybe(at(24)));
        }
        // 6to4, RFC 3056.
        [0x2002, ..] => all[0] = Some(Embedded::Sure(at(80))),
        // Teredo, RFC 4380: the server, and the client with all bits inverted.
        [0x2001, 0, ..] => {
            all[0] = Some(Embedded::Sure(at(64)));
            all[1] = Some(Embedded::Sure(Ipv4Addr::from_bits(!(bits as u32))));
        }
        _ => {}
    }
    // ISATAP, RFC 5214 section 6.1, under any prefix.
    if a.segments()[4] & 0xfcff == 0 && a.segments()[5] == 0x5efe {
        all[4] = last;
    }
    all
}
