//! The safe reach: which destinations the guest may talk to, and where on the host they lead.
//!
//! Explicit openings (mapped loopback, allowed host addresses, metadata) hold under every [`Egress`]; the rest is
//! refused unless the general rule allows it. IPv6 addresses that embed an IPv4 address are judged by that one as well,
//! since somebody on the way may translate them.

use crate::config::{AllowHost, Egress};
use crate::router::Router;
use crate::tuple::{Tuple, proto};
use crate::verdict::DropReason;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services of clouds outside the link-local ranges: Alibaba's, and Azure's wire server.
pub(crate) const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// Those of Amazon EC2 and Google.
pub(crate) const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

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

    /// Whether UDP of this tuple to one of our addresses is for a service of ours, or of a guest without an address.
    pub(crate) fn serves(&self, tuple: &Tuple) -> bool {
        let service = matches!(tuple.dst.port, 67 | 547) || tuple.dst.port == 53 && self.is_dns(tuple.dst.addr);
        !self.is_guest(tuple.src.addr) || tuple.proto == proto::UDP && service
    }

    /// Whether an address is one of the host's interfaces' (loopback not among them).
    pub(crate) fn is_host_addr(&self, a: IpAddr) -> bool {
        self.addrs().is_host(a)
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
            Egress::Public => !(a.is_private() || first == 100 && second & 0xc0 == 64 || first == 198 && second & 0xfe == 18),
            Egress::None => false,
        }
    }

    fn reaches_v6(&self, a: Ipv6Addr, port: u16) -> bool {
        let reach = &self.cfg.reach;
        // A mapped address on the wire would alias an IPv4 flow: RFC 4942 section 2.2.
        if a.is_unspecified()
            || a.is_loopback()
            || a.to_ipv4_mapped().is_some()
            || self.is_guest(a.into()) && !a.is_unicast_link_local()
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
            all[0] = Some(Embedded::Maybe(at(0)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Reach};
    use crate::rng::Rng;
    use crate::tuple::Endpoint;

    fn router(reach: Reach) -> Router {
        let mut r = Router::new(Config { reach, ..Config::default() }, Rng::new([7; 16]));
        r.host_addrs = ["192.168.1.5", "203.0.113.9", "169.254.7.7", "2001:db8::5", "fe80::5"].map(|a| a.parse().unwrap()).into();
        r.host_addrs.sort();
        r
    }

    fn verdict(r: &Router, a: &str, port: u16) -> char {
        let a = a.parse().unwrap();
        match r.host_destination(a, port) {
            Ok(to) if to == a => 'y',
            Ok(_) => 'm',
            Err(DropReason::ReachDenied) => 'n',
            Err(DropReason::NoRoute) => '-',
            Err(_) => '?',
        }
    }

    fn table(r: &Router, port: u16, rows: &str) {
        for row in rows.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let (want, addrs) = row.split_at(1);
            for a in addrs.split_whitespace() {
                assert_eq!(verdict(r, a, port).to_string(), want, "{a} port {port}");
            }
        }
    }

    const NEVER: &str = "
        - 224.0.0.1 239.255.255.250 255.255.255.255 ff02::1 ff0e::1
        n 127.0.0.1 127.255.255.254 127.0.0.53 0.0.0.0 0.1.2.3 240.0.0.1 254.1.1.1 10.0.2.15
        n :: ::1 ::ffff:1.1.1.1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:192.168.1.5
        n ::127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::7f00:1 64:ff9b::0.0.0.0 64:ff9b:1::127.0.0.1
        n 64:ff9b:1:7f00:0:100:: 64:ff9b:1:7f:0:1:: 64:ff9b:1:0:7f:0:100:0 64:ff9b:1:7f00:0:100::9
        n 2002:7f00:1:: 2002:7f00:1:1::5 2001:0:7f00:1::1 2001:0:808:808:0:0:80ff:fffe
        n 2001:db8::5efe:127.0.0.1 2001:db8::200:5efe:127.0.0.1 fd00::5efe:127.0.0.1 2001:db8:1:2:300:5efe:7f00:1
        n fd68:6962:6e65:7400::99";
    const WORLD: &str = "
        y 8.8.8.8 1.1.1.1 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 198.17.1.1 198.20.0.1 168.63.129.17 223.255.255.255
        y 2606:4700::1111 2001:db8::6 64:ff9b::8.8.8.8 64:ff9b:1::8.8.8.8 64:ff9b:1:fffe::8.8.8.8 2002:808:808::1 2001:0:808:808::f7f7:f7f7
        y 2001:db8::5efe:8.8.8.8 2001:db8::5eff:127.0.0.1";
    const PRIVATE: &str = "
        10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.6 100.64.0.1 100.127.255.254 198.18.0.1 198.19.255.255
        fd00::1 fc00::1 fec0::1 64:ff9b::10.1.2.3 2002:c0a8:106::1 2001:db8::5efe:10.0.0.1";
    const HOST: &str = "192.168.1.5 203.0.113.9 2001:db8::5";
    const HOST_EMBEDDED: &str =
        "64:ff9b::192.168.1.5 64:ff9b::203.0.113.9 2002:cb00:7109::1 ::203.0.113.9 fd00::5efe:203.0.113.9";
    const METADATA: &str =
        "169.254.169.254 169.254.0.1 fe80::1 fe80::a00:1 febf::1 fd00:ec2::254 fd20:ce::254 100.100.100.200 168.63.129.16
        64:ff9b::169.254.169.254 64:ff9b::168.63.129.16 2002:a9fe:a9fe::1 2001:0:a9fe:a9fe::f7f7:f7f7 ::169.254.169.254
        64:ff9b:1:a9fe:a9:fe00:: 2606:4700::5efe:169.254.169.254";

    fn rows(verdict: char, addrs: &str) -> String {
        addrs.lines().map(|l| format!("{verdict} {}\n", l.trim())).collect()
    }

    #[test]
    fn by_default_the_world_is_open_and_the_host_is_not() {
        let r = router(Reach::default());
        for port in [0, 53, 80] {
            table(&r, port, NEVER);
            table(&r, port, WORLD);
            table(&r, port, &rows('y', PRIVATE));
            table(&r, port, &rows('n', HOST));
            table(&r, port, &rows('n', HOST_EMBEDDED));
            table(&r, port, &rows('n', METADATA));
            table(&r, port, "n 169.254.7.7 fe80::5");
        }
    }

    #[test]
    fn public_egress_has_no_private_ranges() {
        let r = router(Reach { egress: Egress::Public, ..Reach::default() });
        table(&r, 80, NEVER);
        table(&r, 80, WORLD);
        for denied in [PRIVATE, HOST, HOST_EMBEDDED, METADATA] {
            table(&r, 80, &rows('n', denied));
        }
    }

    #[test]
    fn without_egress_only_what_was_opened_is_reached() {
        let reach = Reach {
            egress: Egress::None,
            map_host_loopback: vec!["10.0.2.2".parse().unwrap()],
            allow_host: vec![AllowHost::Addr("192.168.1.5".parse().unwrap())],
            ..Reach::default()
        };
        let r = router(reach);
        table(&r, 80, NEVER);
        table(&r, 80, &WORLD.replace('y', "n"));
        for denied in [PRIVATE, HOST_EMBEDDED.split_once(' ').unwrap().1, METADATA] {
            table(&r, 80, &rows('n', denied));
        }
        table(&r, 80, "y 192.168.1.5\nm 10.0.2.2\nn 203.0.113.9");
    }

    #[test]
    fn metadata_can_be_opened_and_nothing_else_with_it() {
        let r = router(Reach { allow_metadata: true, ..Reach::default() });
        table(&r, 80, NEVER);
        table(&r, 80, &rows('y', METADATA));
        table(&r, 80, &rows('n', HOST));
        // Link-local addresses of the host's own stay the host's.
        table(&r, 80, "n 169.254.7.7 fe80::5");
    }

    #[test]
    fn host_addresses_can_be_opened_one_by_one() {
        let open = |allow_host| router(Reach { allow_host: vec![allow_host], ..Reach::default() });
        let any = open(AllowHost::Any);
        table(&any, 80, NEVER);
        table(&any, 0, &rows('y', HOST));
        table(&any, 80, "n 169.254.7.7 fe80::5 169.254.169.254");
        let one = open(AllowHost::Addr("192.168.1.5".parse().unwrap()));
        table(&one, 80, "y 192.168.1.5\nn 203.0.113.9 2001:db8::5 127.0.0.1");
        let port = open(AllowHost::Port(Endpoint::new("2001:db8::5".parse().unwrap(), 443)));
        table(&port, 443, "y 2001:db8::5\nn 192.168.1.5 ::1");
        table(&port, 80, "n 2001:db8::5");
        table(&port, 0, "n 2001:db8::5");
    }

    #[test]
    fn a_mapped_address_leads_to_the_loopback_of_its_family_and_only_that_address() {
        let map = ["10.0.2.2", "10.9.9.9", "fd68:6962:6e65:7400::2"].map(|a| a.parse().unwrap()).into();
        let r = router(Reach { map_host_loopback: map, ..Reach::default() });
        table(&r, 80, NEVER);
        for (a, to) in [("10.0.2.2", "127.0.0.1"), ("10.9.9.9", "127.0.0.1"), ("fd68:6962:6e65:7400::2", "::1")] {
            assert_eq!(r.host_destination(a.parse().unwrap(), 80), Ok(to.parse().unwrap()));
        }
        table(&r, 80, "y 10.9.9.8");
    }
}
