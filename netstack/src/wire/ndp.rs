//! Neighbour discovery, RFC 4861, with the options of RFC 8106.
//!
//! All parsers take what follows the eight bytes of [`super::icmp::Header`].

use super::{Mac, WireError, Writer, dns};
use core::net::Ipv6Addr;

/// All nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers of the link.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Flag of a neighbour advertisement: the sender is a router.
pub const ROUTER: u32 = 0x8000_0000;
/// Flag of a neighbour advertisement: it answers a solicitation.
pub const SOLICITED: u32 = 0x4000_0000;
/// Flag of a neighbour advertisement: it overrides a cached address.
pub const OVERRIDE: u32 = 0x2000_0000;

const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

/// The group that a holder of `a` listens to: RFC 4291 section 2.7.1.
pub fn solicited_node(a: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | a.to_bits() & 0xff_ffff)
}

/// The MAC address of a multicast group: RFC 2464 section 7.
pub fn multicast_mac(a: Ipv6Addr) -> Mac {
    let o = a.octets();
    Mac([0x33, 0x33, o[12], o[13], o[14], o[15]])
}

/// Options that matter to us; others are passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Source link-layer address.
    pub source_mac: Option<Mac>,
    /// Target link-layer address.
    pub target_mac: Option<Mac>,
}

impl Options {
    /// Reads options up to the end of `b`. An option of length zero makes the message invalid (RFC 4861 section 4.6).
    pub fn parse(mut b: &[u8]) -> Result<Options, WireError> {
        let mut o = Options::default();
        while !b.is_empty() {
            let &[kind, units, ..] = b else { return Err(WireError::Truncated) };
            let len = usize::from(units) * 8;
            if len == 0 {
                return Err(WireError::Malformed);
            }
            let (option, rest) = b.split_at_checked(len).ok_or(WireError::Truncated)?;
            let mac = Mac(core::array::from_fn(|i| option[2 + i]));
            match kind {
                SOURCE_MAC if units == 1 => o.source_mac = Some(mac),
                TARGET_MAC if units == 1 => o.target_mac = Some(mac),
                _ => {}
            }
            b = rest;
        }
        Ok(o)
    }
}

/// What a neighbour solicitation or advertisement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// The address in question. Never a multicast one.
    pub target: Ipv6Addr,
    /// Options.
    pub options: Options,
}

impl Neighbor {
    /// Reads target and options.
    pub fn parse(b: &[u8]) -> Result<Neighbor, WireError> {
        let (target, options) = b.split_first_chunk::<16>().ok_or(WireError::Truncated)?;
        let target = Ipv6Addr::from(*target);
        if target.is_multicast() {
            return Err(WireError::Malformed);
        }
        Ok(Neighbor { target, options: Options::parse(options)? })
    }
}

/// Appends target and link-layer address of a neighbour solicitation (`solicit`) or advertisement.
pub fn put_neighbor(w: &mut Writer<'_>, solicit: bool, target: Ipv6Addr, mac: Mac) {
    w.put(&target.octets());
    put_mac(w, if solicit { SOURCE_MAC } else { TARGET_MAC }, mac);
}

fn put_mac(w: &mut Writer<'_>, kind: u8, mac: Mac) {
    w.put(&[kind, 1]);
    w.put(&mac.0);
}

/// What a router advertisement says behind its first eight bytes.
#[derive(Clone, Copy, Debug)]
pub struct RouterAdvert<'a> {
    /// Our MAC address.
    pub mac: Mac,
    /// MTU of the link; left out if smaller than IPv6 allows.
    pub mtu: u16,
    /// The link's prefix, host bits zero, and its length.
    pub prefix: (Ipv6Addr, u8),
    /// Address of the resolver.
    pub dns: Ipv6Addr,
    /// Seconds for which the resolver and the search list hold.
    pub dns_lifetime: u32,
    /// Search list. Names that the DNS cannot carry, and those that do not fit, are left out.
    pub search: &'a [String],
}

impl RouterAdvert<'_> {
    /// The fixed part's second word: hop limit 64, managed addresses and other configuration by DHCPv6 (RFC 4861 section
    /// 4.2), and for how many seconds we are a default router.
    pub const fn word(lifetime: u16) -> u32 {
        64 << 24 | 0xc0 << 16 | lifetime as u32
    }

    /// Appends reachable time, retransmission timer (both unspecified) and the options.
    pub fn put(&self, w: &mut Writer<'_>) {
        w.zeros(8);
        put_mac(w, SOURCE_MAC, self.mac);
        if self.mtu >= 1280 {
            w.put(&[MTU, 1, 0, 0]);
            w.put32(u32::from(self.mtu));
        }
        let (prefix, len) = self.prefix;
        // On-link; autonomous only where stateless addresses of 64-bit identifiers can be made (RFC 4862 section 5.5.3).
        w.put(&[PREFIX, 4, len, if len == 64 { 0xc0 } else { 0x80 }]);
        w.put32(u32::MAX);
        w.put32(u32::MAX);
        w.zeros(4);
        w.put(&prefix.octets());
        w.put(&[RDNSS, 3, 0, 0]);
        w.put32(self.dns_lifetime);
        w.put(&self.dns.octets());
        self.put_search(w);
    }

    fn put_search(&self, w: &mut Writer<'_>) {
        let start = w.len();
        w.put(&[DNSSL, 0, 0, 0]);
        w.put32(self.dns_lifetime);
        for name in self.search {
            let before = w.len();
            // The padded option may not outgrow the buffer.
            if dns::put_name(name, w) && w.room() < w.len().next_multiple_of(8) - w.len() {
                w.truncate(before);
            }
        }
        let used = w.len() - start;
        if used <= 8 || used > 255 * 8 {
            w.truncate(start);
            return;
        }
        w.zeros(used.next_multiple_of(8) - used);
        w.patch(start + 1, &[used.div_ceil(8) as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn advert(search: &[String], room: usize) -> Vec<u8> {
        let mut b = vec![0; room];
        let mut w = Writer::new(&mut b);
        RouterAdvert {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 65_520,
            prefix: ("fd00::".parse().unwrap(), 64),
            dns: "fd00::3".parse().unwrap(),
            dns_lifetime: 9000,
            search,
        }
        .put(&mut w);
        w.written().to_vec()
    }

    #[test]
    fn groups_and_their_mac_addresses() {
        let a: Ipv6Addr = "fd00::1:2345:6789".parse().unwrap();
        assert_eq!(solicited_node(a), "ff02::1:ff45:6789".parse::<Ipv6Addr>().unwrap());
        assert_eq!(multicast_mac(solicited_node(a)), Mac([0x33, 0x33, 0xff, 0x45, 0x67, 0x89]));
    }

    #[test]
    fn an_option_without_length_or_with_too_much_is_refused() {
        assert_eq!(Options::parse(&[1, 0, 0, 0, 0, 0, 0, 0]), Err(WireError::Malformed));
        assert_eq!(Options::parse(&[1, 2, 0, 0, 0, 0, 0, 0]), Err(WireError::Truncated));
        assert_eq!(Options::parse(&[1]), Err(WireError::Truncated));
        let o = Options::parse(&[14, 1, 9, 9, 9, 9, 9, 9, 1, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        assert_eq!(o.source_mac, Some(Mac([2, 3, 4, 5, 6, 7])));
    }

    #[test]
    fn the_search_list_is_padded_and_cut_at_whole_names() {
        let names = ["example.org".to_string(), "bad..name".into(), "corp.example".into()];
        let full = advert(&names, 1232);
        let dnssl = &full[8 + 8 + 8 + 32 + 24..];
        assert_eq!((dnssl[0], usize::from(dnssl[1]) * 8), (DNSSL, dnssl.len()));
        assert_eq!(&dnssl[8..], b"\x07example\x03org\0\x04corp\x07example\0\0\0\0\0\0");
        assert!(Options::parse(&full[8..]).is_ok());
        let cut = advert(&names, full.len() - 8);
        assert!(Options::parse(&cut[8..]).is_ok());
        assert!(cut.ends_with(b"\x07example\x03org\0\0\0\0"));
        assert_eq!(advert(&[], 1232).len(), 80);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(b in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Neighbor::parse(&b);
            let _ = Options::parse(&b);
        }

        #[test]
        fn an_advert_is_well_formed_in_any_room(search in proptest::collection::vec("[a-z.]{0,70}", 0..20), room in 80usize..1300) {
            prop_assert!(Options::parse(&advert(&search, room)[8..]).is_ok());
        }
    }
}
