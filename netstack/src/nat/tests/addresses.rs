//! Which address of a range a connection gets: always the same one, and the one that Linux takes.

use super::super::address::choose;
use super::super::mapping::Mapping;
use crate::conntrack::{Conn, CtTuple, Proto, Status};
use crate::nat::{Manip, NatRange};
use crate::time::Time;
use crate::tuple::proto;
use core::net::IpAddr;
use proptest::prelude::*;

fn conn(src: IpAddr, dst: IpAddr) -> Conn {
    let v6 = src.is_ipv6();
    let (src, dst) = (src.into(), dst.into());
    let original = CtTuple { src, dst, sport: 5000, dport: 80, zone: 0, proto: proto::UDP, v6 };
    let reply = CtTuple { src: dst, dst: src, sport: 80, dport: 5000, ..original };
    Conn {
        tuples: [original, reply],
        status: Status::default(),
        mark: 0,
        expires: Time::NEVER,
        proto: Proto::Udp { stream_after: Time::ZERO },
        flow: None,
    }
}

fn chosen(src: IpAddr, dst: IpAddr, range: (IpAddr, IpAddr), manip: Manip, persistent: bool) -> IpAddr {
    let mut mapping = Mapping::of(&conn(src, dst));
    choose(&mut mapping, manip, &NatRange { addrs: Some(range), persistent, ..NatRange::default() }, 0);
    mapping.addr(manip).ip(src.is_ipv6())
}

/// Seen on Linux 6.18 (x86-64) with iptables-legacy.
#[test]
fn the_choice_is_that_of_linux() {
    use Manip::{Destination, Source};
    let v4 = ("10.1.1.1", "10.1.3.200");
    let s6 = ("fd02::1:0:1", "fd02::1:ffff:ffff");
    let d6 = ("fd09:1::", "fd09:2:3::77");
    for (src, dst, range, manip, persistent, expected) in [
        ("10.0.0.2", "1.2.3.4", v4, Source, false, "10.1.1.189"),
        ("10.0.0.3", "1.2.3.4", v4, Source, false, "10.1.2.5"),
        ("10.0.0.4", "1.2.3.4", v4, Source, false, "10.1.1.149"),
        ("10.0.0.6", "1.2.3.4", v4, Source, false, "10.1.1.255"),
        ("10.0.0.2", "1.2.3.4", v4, Source, true, "10.1.3.184"),
        ("10.0.0.3", "1.2.3.4", v4, Source, true, "10.1.3.79"),
        ("10.0.0.5", "1.2.3.4", v4, Destination, false, "10.1.2.22"),
        ("fd01::2", "2001:db8::1", s6, Source, false, "fd02::1:2c61:5465"),
        ("fd01::5", "2001:db8::1", s6, Source, false, "fd02::1:c270:c676"),
        ("fd01::2", "2001:db8:5:6:7:8:9:a", s6, Source, false, "fd02::1:e488:d168"),
        ("fd01::2", "2001:db8::1", d6, Destination, false, "fd09:2:1:c345:d3af:5db7:64f2:f26a"),
        ("fd01::4", "2001:db8::1", d6, Destination, false, "fd09:1:2d4:af99:9b7b:7b97:c00:2"),
        ("fd01::3", "2001:db8::1", d6, Destination, true, "fd09:1:705f:9e0a:705f:9e0a:705f:9e0a"),
    ] {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let got = chosen(ip(src), ip(dst), (ip(range.0), ip(range.1)), manip, persistent);
        assert_eq!(got, ip(expected), "{src} {dst} {manip:?} {persistent}");
    }
}

/// A client keeps its address under `--persistent`, wherever it goes.
#[test]
fn persistent_ignores_the_destination() {
    let ip = |s: &str| s.parse::<IpAddr>().unwrap();
    let range = (ip("10.1.0.0"), ip("10.1.255.255"));
    let of = |dst: u32, persistent| chosen(ip("10.0.0.2"), IpAddr::V4(dst.into()), range, Manip::Source, persistent);
    assert!((1..1000u32).all(|dst| of(dst, true) == of(0, true)));
    assert!((1..1000u32).any(|dst| of(dst, false) != of(0, false)));
}

proptest! {
    #[test]
    fn the_choice_is_in_the_range(src: u128, dst: u128, a: u128, b: u128, v6: bool, persistent: bool, close: bool, destination: bool) {
        // Ranges in which the first words are the same, too.
        let b = if close { a ^ (b >> 70) } else { b };
        let ip = |bits: u128| -> IpAddr { if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) } };
        let range = (ip(a).min(ip(b)), ip(a).max(ip(b)));
        let manip = if destination { Manip::Destination } else { Manip::Source };
        let got = chosen(ip(src), ip(dst), range, manip, persistent);
        prop_assert!((range.0..=range.1).contains(&got), "{got} not in {range:?}");
        prop_assert_eq!(got, chosen(ip(src), ip(dst), range, manip, persistent));
    }
}
