//! A router of hooks, tracking and translation, without anything else.

use super::build::sum;
use super::{Build, skb_of};
use crate::conntrack::{Conn, Conntrack, CtConfig, Track};
use crate::edge::LinkId;
use crate::iptables::{Hook, Iface};
use crate::nat::{AddrType, Addresses, L4Checksum, Nat, asks, rewrite, settle};
use crate::rng::{Key, Rng};
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::proto;
use crate::verdict::DropReason;
use core::net::IpAddr;

/// Interfaces of the router.
pub const IN: Iface = Iface::Link(LinkId(0));
pub const OUT: Iface = Iface::Host0;

/// Ways of packets.
pub const FORWARD: &[Hook] = &[Hook::PreRouting, Hook::Forward, Hook::PostRouting];
pub const INPUT: &[Hook] = &[Hook::PreRouting, Hook::Input];
pub const OUTPUT: &[Hook] = &[Hook::Output, Hook::PostRouting];

pub const NAT4: &str = "192.0.2.1";
pub const NAT6: &str = "2001:db8:ffff::1";

/// Addresses of the router: those that packets leave with, and those on the inside.
#[derive(Default)]
pub struct Router {
    /// The way out has no address.
    pub bare: bool,
}

impl Addresses for Router {
    fn kind(&self, _: IpAddr, _: Option<Iface>) -> AddrType {
        AddrType::Unicast
    }

    fn primary(&self, out: Iface, v6: bool) -> Option<IpAddr> {
        (out == OUT && !self.bare).then(|| if v6 { NAT6 } else { NAT4 }.parse().unwrap())
    }

    fn first(&self, input: Iface, v6: bool) -> Option<IpAddr> {
        (input == IN && !self.bare).then(|| if v6 { "fd00::1" } else { "10.0.2.2" }.parse().unwrap())
    }
}

/// What the nat table does with the first packet of a connection.
pub type Rules<'a> = &'a dyn Fn(&mut Nat<'_>, &mut Skb<'_>, Hook) -> Result<(), DropReason>;

pub struct World {
    pub ct: Conntrack,
    pub rng: Rng,
    pub now: Time,
    pub addrs: Router,
}

impl World {
    pub fn new() -> World {
        World {
            ct: Conntrack::new(CtConfig::default(), Key(1, 2)),
            rng: Rng::new([7; 16]),
            now: Time::from_millis(1_000),
            addrs: Router::default(),
        }
    }

    /// Sends a packet through; gives it as it left, with its checksums verified.
    pub fn pass(&mut self, bytes: &[u8], way: &[Hook], rules: Rules<'_>) -> Result<Vec<u8>, DropReason> {
        let (mut skb, header_len) = skb_of(bytes);
        skb.input = (way[0] == Hook::PreRouting).then_some(IN);
        skb.output = (way[way.len() - 1] == Hook::PostRouting).then_some(OUT);
        self.ct.track(self.now, &mut skb)?;
        self.hooks(&mut skb, way, rules)?;
        self.ct.confirm(self.now, &mut skb)?;
        let mut out = bytes.to_vec();
        rewrite(&skb, &mut out, header_len, L4Checksum::Complete)?;
        verify(&out);
        Ok(out)
    }

    pub fn hooks(&mut self, skb: &mut Skb<'_>, way: &[Hook], rules: Rules<'_>) -> Result<(), DropReason> {
        for &hook in way {
            let mut nat = Nat { now: self.now, rng: &mut self.rng, table: &self.ct, addrs: &self.addrs };
            if asks(skb, hook) {
                rules(&mut nat, skb, hook)?;
            }
            settle(&mut nat, skb, hook)?;
        }
        Ok(())
    }

    /// Sends a packet, and says from where to where it left.
    pub fn send(&mut self, build: &Build, way: &[Hook], rules: Rules<'_>) -> Result<Ends, DropReason> {
        self.pass(&build.bytes(), way, rules).map(|b| Ends::of(&b))
    }

    /// The connection that a packet belongs to.
    pub fn conn(&self, build: &Build) -> Conn {
        let bytes = build.bytes();
        let (mut skb, _) = skb_of(&bytes);
        self.ct.track(self.now, &mut skb).unwrap();
        match skb.track {
            Track::Known { id, .. } => self.ct.get(id).unwrap(),
            other => panic!("not in the table: {other:?}"),
        }
    }
}

/// No rules.
pub fn none(_: &mut Nat<'_>, _: &mut Skb<'_>, _: Hook) -> Result<(), DropReason> {
    Ok(())
}

/// From where to where a packet goes; of ICMP queries both ports are the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
}

impl Ends {
    pub fn of(bytes: &[u8]) -> Ends {
        let (skb, _) = skb_of(bytes);
        let dport = if matches!(skb.protocol, proto::ICMP | proto::ICMPV6) { skb.sport } else { skb.dport };
        Ends { src: (skb.src, skb.sport), dst: (skb.dst, dport) }
    }

    pub fn new(src: (&str, u16), dst: (&str, u16)) -> Ends {
        Ends { src: (src.0.parse().unwrap(), src.1), dst: (dst.0.parse().unwrap(), dst.1) }
    }
}

/// Verifies every checksum, those of a quoted packet included.
pub fn verify(bytes: &[u8]) {
    let (skb, header_len) = skb_of(bytes);
    if !skb.is_v6() {
        assert_eq!(sum(&[&bytes[..header_len]]), 0xffff, "IPv4 header checksum");
    }
    let l4 = skb.l4_bytes;
    let mut pseudo = Build::new(skb.protocol, ("::1", 0), ("::1", 0));
    (pseudo.src, pseudo.dst) = (skb.src, skb.dst);
    let pseudo = if skb.protocol == proto::ICMP { vec![] } else { pseudo.pseudo(l4.len()) };
    let unchecked = skb.protocol == proto::UDP && l4[6..8] == [0, 0];
    if matches!(skb.protocol, proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6) && !unchecked {
        assert_eq!(sum(&[&pseudo, l4]), 0xffff, "checksum of protocol {}", skb.protocol);
    }
    let error = matches!((skb.protocol, l4[0]), (proto::ICMP, 3 | 4 | 5 | 11 | 12) | (proto::ICMPV6, 0..128));
    // A quoted packet that is all there.
    let whole = |q: &[u8]| match q[0] >> 4 {
        4 => q.len() == usize::from(u16::from_be_bytes([q[2], q[3]])),
        _ => q.len() == 40 + usize::from(u16::from_be_bytes([q[4], q[5]])),
    };
    if error && l4.len() > 48 && whole(&l4[8..]) {
        verify(&l4[8..]);
    }
}
