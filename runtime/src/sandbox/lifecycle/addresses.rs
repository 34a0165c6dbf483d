//! Which addresses a sandbox gets that joins a network: those of the first one, so many networks further.

use crate::control::lifecycle::Join;
use hibernet_netstack::config::{AllowHost, Config, GuestNet, V4Config, V6Config};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many networks are looked at.
const TRIES: u32 = 255;

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    pub(super) fn new(addr: IpAddr, len: u8) -> Prefix {
        Prefix { addr, len }
    }

    fn overlaps(self, other: Prefix) -> bool {
        let len = u32::from(self.len.min(other.len));
        match (self.addr, other.addr) {
            (IpAddr::V4(a), IpAddr::V4(b)) => ((a.to_bits() ^ b.to_bits()) as u64) << len.min(32) & 0xffff_ffff_0000_0000 == 0,
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(128 - len.min(128)).unwrap_or(0) == 0,
            _ => false,
        }
    }
}

/// The networks that a guest's addresses stand for.
fn networks(net: GuestNet) -> impl Iterator<Item = Prefix> {
    let v4 = net.v4.map(|c| [(c.guest, c.prefix), (c.gateway, 32), (c.dns, 32)].map(|(a, len)| Prefix::new(a.into(), len)));
    let v6 = net.v6.map(|c| [(c.guest, c.prefix), (c.gateway, 128), (c.dns, 128)].map(|(a, len)| Prefix::new(a.into(), len)));
    v4.into_iter().chain(v6).flatten()
}

/// Addresses that are taken: those of the guests, of what they reach by address, and `others`.
fn taken(cfg: &Config, members: &[GuestNet], others: &[Prefix]) -> Vec<Prefix> {
    let first = GuestNet { v4: cfg.v4, v6: cfg.v6 };
    let opened = cfg.reach.allow_host.iter().filter_map(|open| match open {
        AllowHost::Any => None,
        AllowHost::Addr(a) => Some(*a),
        AllowHost::Port(e) => Some(e.addr),
    });
    let named = cfg.resolvers.iter().copied().chain(cfg.reach.map_host_loopback.iter().copied()).chain(opened);
    let named = named.map(|a| Prefix::new(a, if a.is_ipv4() { 32 } else { 128 }));
    [first].iter().chain(members).flat_map(|n| networks(*n)).chain(named).chain(others.iter().copied()).collect()
}

/// Addresses for one more guest. `others` are networks of the host's.
///
/// # Errors
/// Why there are none.
pub(super) fn grant(cfg: &Config, members: &[GuestNet], others: &[Prefix], wish: &Join) -> Result<GuestNet, String> {
    let taken = taken(cfg, members, others);
    let is_free = |net: GuestNet| networks(net).all(|n| !taken.iter().any(|t| t.overlaps(n)));
    let v4 = match (cfg.v4.filter(|_| !wish.no_v4), wish.v4) {
        (Some(_), Some(v4)) => Some(check_v4(v4)?),
        (Some(first), None) => {
            let free = candidates_v4(first).find(|c| is_free(GuestNet { v4: Some(*c), v6: None }));
            Some(free.ok_or("there is no free IPv4 network next to the first sandbox's; give one with --address")?)
        }
        (None, Some(_)) => return Err("the network has no IPv4".into()),
        (None, None) => None,
    };
    let v6 = match (cfg.v6.filter(|_| !wish.no_v6), wish.v6) {
        (Some(_), Some(v6)) => Some(check_v6(v6)?),
        (Some(first), None) => {
            let free = candidates_v6(first).find(|c| is_free(GuestNet { v4: None, v6: Some(*c) }));
            Some(free.ok_or("there is no free IPv6 network next to the first sandbox's; give one with --address6")?)
        }
        (None, Some(_)) => return Err("the network has no IPv6".into()),
        (None, None) => None,
    };
    let net = GuestNet { v4, v6 };
    if v4.is_none() && v6.is_none() {
        return Err("the network has none of the address families that are wanted".into());
    }
    let wished = GuestNet { v4: wish.v4, v6: wish.v6 };
    if let Some(n) = networks(wished).find(|n| taken.iter().any(|t| t.overlaps(*n))) {
        return Err(format!("{}/{} is taken, by another sandbox of the network or on the host", n.addr, n.len));
    }
    Ok(net)
}

fn check_v4(c: V4Config) -> Result<V4Config, String> {
    let bad =
        c.prefix > 30 || [c.guest, c.gateway, c.dns].iter().any(|a| a.is_loopback() || a.is_multicast() || a.is_unspecified());
    if bad || c.guest == c.gateway || c.guest == c.dns { Err("not addresses that a sandbox can have".into()) } else { Ok(c) }
}

fn check_v6(c: V6Config) -> Result<V6Config, String> {
    let bad =
        c.prefix > 126 || [c.guest, c.gateway, c.dns].iter().any(|a| a.is_loopback() || a.is_multicast() || a.is_unspecified());
    if bad || c.guest == c.gateway || c.guest == c.dns { Err("not addresses that a sandbox can have".into()) } else { Ok(c) }
}

/// The private range that an address is in.
fn private_range(a: Ipv4Addr) -> Option<(u32, u32)> {
    let ranges = [([10, 0, 0, 0], 8), ([172, 16, 0, 0], 12), ([192, 168, 0, 0], 16)];
    ranges.into_iter().map(|(net, len)| (u32::from_be_bytes(net), len)).find(|&(net, len)| (a.to_bits() ^ net) >> (32 - len) == 0)
}

fn candidates_v4(first: V4Config) -> impl Iterator<Item = V4Config> {
    let range = private_range(first.guest);
    let step = 1u32.checked_shl(32 - u32::from(first.prefix)).filter(|_| range.is_some());
    (1..=TRIES).filter_map(move |n| {
        let by = step?.checked_mul(n)?;
        let move_on = |a: Ipv4Addr| {
            let moved = Ipv4Addr::from_bits(a.to_bits().checked_add(by)?);
            (private_range(moved) == range).then_some(moved)
        };
        Some(V4Config { guest: move_on(first.guest)?, gateway: move_on(first.gateway)?, dns: move_on(first.dns)?, ..first })
    })
}

fn candidates_v6(first: V6Config) -> impl Iterator<Item = V6Config> {
    let step = 1u128.checked_shl(128 - u32::from(first.prefix)).filter(|_| first.guest.is_unique_local());
    (1..=TRIES).filter_map(move |n| {
        let by = step?.checked_mul(n.into())?;
        let move_on = |a: Ipv6Addr| {
            let moved = Ipv6Addr::from_bits(a.to_bits().checked_add(by)?);
            moved.is_unique_local().then_some(moved)
        };
        Some(V6Config { guest: move_on(first.guest)?, gateway: move_on(first.gateway)?, dns: move_on(first.dns)?, ..first })
    })
}

/// IPv4 networks to which this host has routes, but for its default route.
pub(super) fn routed() -> Vec<Prefix> {
    networks_in(&std::fs::read_to_string("/proc/self/net/route").unwrap_or_default())
}

fn networks_in(table: &str) -> Vec<Prefix> {
    let number = |w: Option<&&str>| u32::from_str_radix(w?, 16).ok().map(u32::from_be);
    let network = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (to, mask) = (number(words.get(1))?, number(words.get(7))?);
        (mask != 0).then(|| Prefix::new(Ipv4Addr::from_bits(to).into(), mask.leading_ones() as u8))
    };
    table.lines().skip(1).filter_map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(net: GuestNet) -> [String; 6] {
        let (v4, v6) = (net.v4.unwrap(), net.v6.unwrap());
        [
            v4.guest.to_string(),
            v4.gateway.to_string(),
            v4.dns.to_string(),
            v6.guest.to_string(),
            v6.gateway.to_string(),
            v6.dns.to_string(),
        ]
    }

    #[test]
    fn each_gets_the_next_free_network() {
        let cfg = Config::default();
        let one = grant(&cfg, &[], &[], &Join::default()).unwrap();
        let base = "fd68:6962:6e65:740";
        let v6 = |n: u8, host: &str| format!("{base}{n}::{host}");
        assert_eq!(texts(one), ["10.0.3.15".into(), "10.0.3.2".into(), "10.0.3.3".into(), v6(1, "15"), v6(1, "2"), v6(1, "3")]);
        let two = grant(&cfg, &[one], &[], &Join::default()).unwrap();
        assert_eq!(two.v4.unwrap().guest.to_string(), "10.0.4.15");
        // What leaves is free again.
        assert_eq!(grant(&cfg, &[two], &[], &Join::default()).unwrap(), one);
    }

    #[test]
    fn networks_of_the_host_are_left_out() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                     eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\n\
                     lxcbr0\t0003000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";
        let others = networks_in(table);
        assert_eq!(others, [Prefix::new(Ipv4Addr::new(10, 0, 3, 0).into(), 24)]);
        let net = grant(&Config::default(), &[], &others, &Join::default()).unwrap();
        assert_eq!(net.v4.unwrap().guest.to_string(), "10.0.4.15");
        let cfg = Config { resolvers: vec!["10.0.4.1".parse().unwrap()], ..Config::default() };
        assert_eq!(grant(&cfg, &[], &others, &Join::default()).unwrap().v4.unwrap().guest.to_string(), "10.0.5.15");
    }

    #[test]
    fn wishes_are_checked() {
        let cfg = Config::default();
        let v4 = |c: u8| V4Config {
            guest: Ipv4Addr::new(10, 0, c, 9),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, c, 1),
            dns: Ipv4Addr::new(10, 0, c, 1),
        };
        let ask = |v4: Option<V4Config>, no_v6: bool| grant(&cfg, &[], &[], &Join { v4, no_v6, ..Join::default() });
        assert_eq!(ask(Some(v4(7)), true), Ok(GuestNet { v4: Some(v4(7)), v6: None }));
        assert!(ask(Some(v4(2)), true).unwrap_err().contains("10.0.2"));
        assert!(ask(Some(V4Config { gateway: Ipv4Addr::new(10, 0, 2, 15), ..v4(7) }), true).is_err());
        assert!(ask(Some(V4Config { prefix: 31, ..v4(7) }), true).is_err());
        assert!(grant(&cfg, &[], &[], &Join { no_v4: true, no_v6: true, ..Join::default() }).is_err());
        assert!(grant(&Config { v4: None, ..cfg.clone() }, &[], &[], &Join { v4: Some(v4(7)), ..Join::default() }).is_err());
    }

    #[test]
    fn the_end_of_a_range_is_no_place() {
        let first = V4Config {
            guest: Ipv4Addr::new(192, 168, 255, 15),
            prefix: 24,
            gateway: Ipv4Addr::new(192, 168, 255, 2),
            dns: Ipv4Addr::new(192, 168, 255, 3),
        };
        assert!(grant(&Config { v4: Some(first), ..Config::default() }, &[], &[], &Join::default()).is_err());
        let public = V4Config { guest: Ipv4Addr::new(192, 0, 2, 15), ..first };
        assert_eq!(candidates_v4(public).count(), 0);
        assert_eq!(candidates_v4(V4Config { prefix: 0, ..first }).count(), 0);
    }
}
