//! Translation of connections, both directions.

use super::Build;
use super::world::*;
use crate::conntrack::{CtTuple, Dir, OriginalDstError, Status};
use crate::iptables::Hook;
use crate::nat::{Manip, Nat, NatRange, bind, masquerade, redirect};
use crate::skb::Skb;
use crate::tuple::{Endpoint, proto};
use crate::verdict::DropReason;
use core::net::IpAddr;
use core::time::Duration;

pub const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

pub fn to(addr: &str) -> NatRange {
    let addr = addr.parse().unwrap();
    NatRange { addrs: Some((addr, addr)), ..NatRange::default() }
}

/// Addresses of a family: client, server, the address that the client knows, the router's way out, the router on the inside.
pub struct Family {
    pub client: &'static str,
    pub other: &'static str,
    pub server: &'static str,
    pub vip: &'static str,
    pub out: &'static str,
    pub inside: &'static str,
    pub loopback: &'static str,
    /// A router on the way to the servers.
    pub transit: &'static str,
    pub icmp: u8,
}

pub const V4: Family = Family {
    client: "10.0.2.15",
    other: "10.0.2.16",
    server: "203.0.113.9",
    vip: "198.51.100.7",
    out: NAT4,
    inside: "10.0.2.2",
    loopback: "127.0.0.1",
    transit: "203.0.113.200",
    icmp: proto::ICMP,
};
pub const V6: Family = Family {
    client: "fd00::15",
    other: "fd00::16",
    server: "2001:db8::9",
    vip: "2001:db8:7::7",
    out: NAT6,
    inside: "fd00::1",
    loopback: "::1",
    transit: "2001:db8::200",
    icmp: proto::ICMPV6,
};

/// The answer to a packet that left as `ends`.
pub fn answer(request: &Build, ends: Ends) -> Build {
    let text = |e: (IpAddr, u16)| (e.0.to_string(), e.1);
    let (src, dst) = (text(ends.dst), text(ends.src));
    let mut b = Build::new(request.proto, (&src.0, src.1), (&dst.0, dst.1));
    b.ty.0 = if request.proto == proto::ICMP { 0 } else { 129 };
    b.tcp = (SYN_ACK, 100, request.tcp.1 + 1 + request.data.len() as u32);
    b
}

/// Kinds of rules, of gVisor's TestNATEcho and TestNAT.
const KINDS: [&str; 6] = ["snat", "masquerade", "dnat", "redirect", "dnat-masquerade", "dnat-snat"];

pub fn rule(kind: &str, f: &Family, nat: &mut Nat<'_>, skb: &mut Skb<'_>, hook: Hook) -> Result<(), DropReason> {
    let at = |port: u16| Some((port, port)).filter(|_| skb.protocol != f.icmp);
    match hook {
        Hook::PreRouting if kind.starts_with("dnat") => {
            let ports = at(8080);
            bind(nat, skb, Manip::Destination, &NatRange { ports, ..to(f.server) })
        }
        Hook::PreRouting if kind == "redirect" => {
            let ports = at(15_001);
            redirect(nat, skb, hook, &NatRange { ports, ..NatRange::default() })
        }
        Hook::PostRouting if kind.ends_with("snat") => bind(nat, skb, Manip::Source, &to(f.out)),
        Hook::PostRouting if kind.ends_with("masquerade") => masquerade(nat, skb, &NatRange::default()),
        _ => Ok(()),
    }
}

fn asked_again(_: &mut Nat<'_>, _: &mut Skb<'_>, _: Hook) -> Result<(), DropReason> {
    panic!("rules are asked about first packets only")
}

#[test]
fn every_kind_of_nat_both_ways() {
    for f in [V4, V6] {
        for protocol in [proto::TCP, proto::UDP, f.icmp] {
            for kind in KINDS {
                let mut w = World::new();
                let icmp = protocol == f.icmp;
                let (from, port) = if icmp { (7, 7) } else { (4000, 80) };
                let mut request = Build::new(protocol, (f.client, from), (f.vip, port));
                let (way, back_way) = if kind == "redirect" { (INPUT, OUTPUT) } else { (FORWARD, FORWARD) };
                let left = w.send(&request, way, &|nat, skb, hook| rule(kind, &f, nat, skb, hook)).unwrap();
                let src = if kind.ends_with("snat") || kind.ends_with("masquerade") { f.out } else { f.client };
                let dst = match kind {
                    "redirect" => (f.inside, if icmp { port } else { 15_001 }),
                    k if k.starts_with("dnat") => (f.server, if icmp { port } else { 8080 }),
                    _ => (f.vip, port),
                };
                assert_eq!(left, Ends::new((src, from), dst), "{kind} {protocol}");
                let conn = w.conn(&request);
                assert_eq!(conn.status.has(Status::SRC_NAT), src != f.client);
                assert_eq!(conn.status.has(Status::DST_NAT), dst.0 != f.vip);

                // The answer comes from where the client asked.
                let back = w.send(&answer(&request, left), back_way, &asked_again).unwrap();
                assert_eq!(back, Ends::new((f.vip, port), (f.client, from)), "{kind} {protocol}");
                // And the next packet goes where the first one went, whatever the rules say now; also after a while.
                request.tcp = (ACK, 6, 105);
                for _ in 0..2 {
                    assert_eq!(w.send(&request, way, &asked_again).unwrap(), left, "{kind} {protocol}");
                    assert_eq!(w.send(&data(&answer(&request, left)), back_way, &asked_again).unwrap(), back);
                    w.now = w.now + Duration::from_secs(if protocol == proto::TCP { 121 } else { 20 });
                }
                assert_eq!(w.ct.len(), 1);
            }
        }
    }
}

/// A segment of data after the handshake of [`answer`].
fn data(b: &Build) -> Build {
    Build { tcp: (ACK, 105, 6), ..b.clone() }
}

/// gVisor's TestLocallyRoutedPackets: a connection from an end to itself.
#[test]
fn a_connection_with_itself() {
    for f in [V4, V6] {
        for protocol in [proto::TCP, proto::UDP] {
            let mut w = World::new();
            let packet = Build::new(protocol, (f.out, 4000), (f.out, 4000));
            assert_eq!(w.send(&packet, OUTPUT, &none).unwrap(), Ends::new((f.out, 4000), (f.out, 4000)));
            assert_eq!(
                w.send(&packet, &[Hook::PreRouting, Hook::Input], &none).unwrap(),
                Ends::new((f.out, 4000), (f.out, 4000))
            );
            assert_eq!(w.ct.len(), 1);
        }
    }
}

/// An INVALID packet keeps its addresses, whatever the rules say and whatever its connection is translated to.
#[test]
fn invalid_packets_pass_untranslated() {
    let mut w = World::new();
    let rules: Rules<'_> = &|nat, skb, hook| rule("dnat", &V4, nat, skb, hook);
    let syn = Build::new(proto::TCP, (V4.client, 4000), (V4.vip, 80));
    let left = w.send(&syn, FORWARD, rules).unwrap();
    w.send(&answer(&syn, left), FORWARD, rules).unwrap();
    let far = Build { tcp: (ACK, 1 << 30, 101), ..syn.clone() };
    assert_eq!(w.send(&far, FORWARD, rules).unwrap(), Ends::of(&far.bytes()));
    let null = Build { tcp: (0, 1, 0), sport: 4001, ..syn };
    assert_eq!(w.send(&null, FORWARD, rules).unwrap(), Ends::of(&null.bytes()));
    assert_eq!(w.ct.len(), 1);
}

#[test]
fn original_destination() {
    let mut w = World::new();
    let rules: Rules<'_> = &|nat, skb, hook| rule("redirect", &V4, nat, skb, hook);
    let request = Build::new(proto::TCP, (V4.client, 4000), (V4.vip, 80));
    let original = w.ct.original_dst(w.now, &CtTuple::default());
    assert_eq!(original, Err(OriginalDstError::NotConnected), "of a table that was never used");
    w.send(&request, INPUT, rules).unwrap();
    // What a service of ours asks: from its socket's own ends.
    let conn = w.conn(&request);
    let of_socket = conn.tuples[Dir::Reply as usize];
    assert_eq!(w.ct.original_dst(w.now, &of_socket), Ok(Endpoint::new(V4.vip.parse().unwrap(), 80)));
    let plain = Build::new(proto::TCP, (V4.client, 4001), (V4.inside, 80));
    w.send(&plain, INPUT, &none).unwrap();
    let tuple = w.conn(&plain).tuples[Dir::Reply as usize];
    assert_eq!(w.ct.original_dst(w.now, &tuple), Err(OriginalDstError::NotTranslated));
    let unknown = CtTuple { sport: 9, ..tuple };
    assert_eq!(w.ct.original_dst(w.now, &unknown), Err(OriginalDstError::NotConnected));
}
