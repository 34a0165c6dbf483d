//! Rewriting a packet gives the bytes that building the translated one from scratch gives.

use super::build::sum;
use super::{Build, skb_of};
use crate::nat::{L4Checksum, MSS_LEN, insert_mss, rewrite, rewrite_built};
use crate::skb::NewMss;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use proptest::prelude::*;

fn addr(v6: bool) -> BoxedStrategy<core::net::IpAddr> {
    // Addresses of many ones and zeros, where one's-complement sums have two zeros.
    if v6 {
        prop_oneof![any::<u128>(), Just(u128::MAX), Just(1)].prop_map(|a| core::net::Ipv6Addr::from_bits(a).into()).boxed()
    } else {
        prop_oneof![any::<u32>(), Just(u32::MAX), Just(1)].prop_map(|a| core::net::Ipv4Addr::from_bits(a).into()).boxed()
    }
}

/// A packet, and the same one translated.
fn pair(v6: bool) -> impl Strategy<Value = (Build, Build)> {
    let icmp = if v6 { proto::ICMPV6 } else { proto::ICMP };
    let protocol = prop_oneof![Just(proto::TCP), Just(proto::UDP), Just(icmp), Just(47), Just(136)];
    let ends = || (addr(v6), addr(v6), any::<u16>(), any::<u16>(), any::<u8>(), any::<u8>());
    let queries = if v6 { vec![128, 129] } else { vec![0, 8, 13, 14, 15, 16, 17, 18] };
    let data = proptest::collection::vec(any::<u8>(), 0..70);
    (ends(), ends(), protocol, proptest::sample::select(queries), data, 0..4usize, proptest::bool::weighted(0.2)).prop_map(
        move |(a, b, proto, ty, data, options, no_checksum)| {
            let make = |(src, dst, sport, dport, hop_limit, tos)| Build {
                src,
                dst,
                proto,
                sport,
                dport,
                ty: (ty, 0),
                tcp: (2, 1, 0),
                data: data.clone(),
                options,
                hop_limit,
                tos,
                no_checksum: no_checksum && !v6,
            };
            (make(a), make(b))
        },
    )
}

fn any_pair() -> impl Strategy<Value = (Build, Build)> {
    prop_oneof![pair(false), pair(true)]
}

/// Two pairs of one family.
fn any_pairs() -> impl Strategy<Value = ((Build, Build), (Build, Build))> {
    prop_oneof![(pair(false), pair(false)), (pair(true), pair(true))]
}

/// Makes the bytes of a packet those of `to`.
fn translate(bytes: &mut [u8], to: &Build, checksum: L4Checksum) -> Result<(), DropReason> {
    let copy = bytes.to_vec();
    let (mut skb, header_len) = skb_of(&copy);
    (skb.src, skb.dst, skb.hop_limit, skb.tos) = (to.src, to.dst, to.hop_limit, to.tos);
    (skb.sport, skb.dport) = (to.sport, to.dport);
    rewrite(&skb, bytes, header_len, checksum)
}

/// An ICMP error quoting the first `cut` bytes of a packet.
fn error(v6: bool, quote: &[u8], ends: (core::net::IpAddr, core::net::IpAddr)) -> Build {
    let mut b = if v6 {
        Build::new(proto::ICMPV6, ("::1", 0), ("::1", 0))
    } else {
        Build::new(proto::ICMP, ("0.0.0.1", 0), ("0.0.0.1", 0))
    };
    (b.src, b.dst) = ends;
    b.ty = (if v6 { 1 } else { 3 }, 1);
    b.data = quote.to_vec();
    b
}

/// The quoted packet of `b` cut off after `cut` bytes, as it should be after translation from `a`.
fn quote_of(a: &Build, b: &Build, cut: usize) -> Vec<u8> {
    let (from, mut to) = (a.bytes(), b.bytes());
    let cut = cut.min(from.len());
    // What a quote says besides its ends stays.
    let header = a.header_len();
    if let Some(at) = a.checksum_at() {
        let whole = match a.proto {
            proto::TCP => 20,
            _ => 8,
        };
        let unchecked = a.no_checksum && a.proto == proto::UDP;
        if cut < header + whole || unchecked {
            to[at..at + 2].copy_from_slice(&from[at..at + 2]);
        }
        // An identifier of which only half is there cannot be translated; nor a port.
        for field in [0, 2, 4] {
            if cut < header + field + 2 && field + header + 2 <= to.len() {
                let range = header + field..header + field + 2;
                to[range.clone()].copy_from_slice(&from[range]);
            }
        }
    }
    to.truncate(cut);
    to
}

proptest! {
    #[test]
    fn rewritten_is_rebuilt((a, b) in any_pair()) {
        let mut bytes = a.bytes();
        translate(&mut bytes, &b, L4Checksum::Complete).unwrap();
        prop_assert_eq!(bytes, b.bytes());
    }

    #[test]
    fn there_and_back_is_the_same((a, b) in any_pair()) {
        let mut bytes = a.bytes();
        translate(&mut bytes, &b, L4Checksum::Complete).unwrap();
        translate(&mut bytes, &a, L4Checksum::Complete).unwrap();
        prop_assert_eq!(bytes, a.bytes());
    }

    /// What was damaged before must not look whole afterwards.
    #[test]
    fn a_wrong_checksum_stays_wrong((a, b) in any_pair(), flip in 1..=0xffffu16) {
        let Some(at) = a.checksum_at() else { return Ok(()) };
        let mut bytes = a.bytes();
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        // Zero and 0xffff are the same number; a UDP checksum of zero is none.
        prop_assume!(![0, 0xffff].contains(&(old ^ flip)) && old != 0);
        bytes[at..at + 2].copy_from_slice(&(old ^ flip).to_be_bytes());
        translate(&mut bytes, &b, L4Checksum::Complete).unwrap();
        prop_assert_ne!(bytes, b.bytes());
    }

    /// A segment whose checksum the link completes: the field holds the sum of the pseudo-header.
    #[test]
    fn a_partial_checksum_follows_the_addresses((a, b) in any_pair()) {
        if !matches!(a.proto, proto::TCP | proto::UDP) || a.no_checksum {
            return Ok(());
        }
        let at = a.checksum_at().unwrap();
        let len = a.bytes().len() - a.header_len();
        let partial = |x: &Build| {
            let mut bytes = x.bytes();
            bytes[at..at + 2].copy_from_slice(&sum(&[&x.pseudo(len)]).to_be_bytes());
            bytes
        };
        let mut bytes = partial(&a);
        translate(&mut bytes, &b, L4Checksum::Partial).unwrap();
        prop_assert_eq!(bytes, partial(&b));
    }

    #[test]
    fn a_quote_is_rewritten_wherever_it_is_cut(((a, b), outer) in any_pairs(), cut in 0..140usize) {
        let v6 = a.src.is_ipv6();
        let b = Build { hop_limit: a.hop_limit, tos: a.tos, ..b };
        let quote = a.bytes();
        let quote = &quote[..cut.min(quote.len())];
        let from = error(v6, quote, (outer.0.src, outer.0.dst));
        // Nothing is known of a quote in which not even the addresses are whole, or whose extension headers are.
        let least = if v6 { 40 } else { 20 };
        let expected = if cut < least { quote.to_vec() } else { quote_of(&a, &b, cut) };
        let to = error(v6, &expected, (outer.1.src, outer.1.dst));
        let mut bytes = from.bytes();
        let copy = bytes.clone();
        let (mut skb, header_len) = skb_of(&copy);
        (skb.src, skb.dst) = (to.src, to.dst);
        let ident = matches!(a.proto, proto::ICMP | proto::ICMPV6);
        skb.quoted = Some(Tuple {
            src: Endpoint::new(b.src, b.sport),
            dst: Endpoint::new(b.dst, if ident { 0 } else { b.dport }),
            proto: a.proto,
        });
        rewrite(&skb, &mut bytes, header_len, L4Checksum::Complete).unwrap();
        prop_assert_eq!(&bytes, &to.bytes());

        // And of an error that we build: the same, but for the checksum that is computed later.
        let mut built = copy[header_len..].to_vec();
        rewrite_built(&skb, &mut built).unwrap();
        built[2..4].copy_from_slice(&bytes[header_len + 2..header_len + 4]);
        prop_assert_eq!(built, &bytes[header_len..]);
    }

    #[test]
    fn no_quote_makes_it_panic(data in proptest::collection::vec(any::<u8>(), 0..120), (a, _) in any_pair(), first in 0..4u8) {
        let (v6, mut data) = (a.src.is_ipv6(), data);
        if let Some(b) = data.first_mut() {
            *b = *b & 0xf | [0x40, 0x60, *b & 0xf0, 0x40][usize::from(first)];
        }
        let packet = error(v6, &data, (a.src, a.dst)).bytes();
        let mut bytes = packet.clone();
        let (mut skb, header_len) = skb_of(&packet);
        let ends = |addr, port| Endpoint::new(addr, port);
        skb.quoted = Some(Tuple { src: ends(a.src, a.sport), dst: ends(a.dst, a.dport), proto: a.proto });
        rewrite(&skb, &mut bytes, header_len, L4Checksum::Complete).unwrap();
        // Whatever was changed, the checksum over it is right.
        let pseudo = if v6 { error(v6, &data, (a.src, a.dst)).pseudo(bytes.len() - header_len) } else { vec![] };
        prop_assert_eq!(sum(&[&pseudo, &bytes[header_len..]]), 0xffff);
    }
}

/// As the kernel does it, seen on Linux 6.18: an error about a segment of 10.0.0.7 that was masqueraded as 10.1.0.1. The checksum of a
/// TCP header that is not all there stays as it is.
#[test]
fn quotes_as_linux_rewrites_them() {
    let quoted = Build { data: vec![], hop_limit: 63, ..Build::new(proto::TCP, ("10.1.0.1", 5000), ("1.2.3.4", 80)) };
    let wanted = Build { src: "10.0.0.7".parse().unwrap(), ..quoted.clone() };
    for cut in 28..=40 {
        let packet = error(false, &quoted.bytes()[..cut], ("1.2.3.4".parse().unwrap(), "10.1.0.1".parse().unwrap())).bytes();
        let mut bytes = packet.clone();
        let (mut skb, header_len) = skb_of(&packet);
        skb.quoted = Some(Tuple { src: Endpoint::new(wanted.src, 5000), dst: Endpoint::new(wanted.dst, 80), proto: proto::TCP });
        rewrite(&skb, &mut bytes, header_len, L4Checksum::Complete).unwrap();
        let mut expected = wanted.bytes();
        if cut < 40 {
            expected[36..38].copy_from_slice(&quoted.bytes()[36..38]);
        }
        assert_eq!(&bytes[28..], &expected[..cut], "{cut}");
        assert_eq!(sum(&[&bytes[20..]]), 0xffff);
    }
}

#[test]
fn headers_that_are_cut_off_are_refused() {
    for build in [
        Build::new(proto::TCP, ("10.0.0.1", 1), ("10.0.0.2", 2)),
        Build::new(proto::UDP, ("fd00::1", 1), ("fd00::2", 2)),
        Build::new(proto::ICMP, ("10.0.0.1", 1), ("10.0.0.2", 2)),
    ] {
        let packet = build.bytes();
        let (skb, header_len) = skb_of(&packet);
        let l4 = if build.proto == proto::TCP { 20 } else { 8 };
        for cut in 0..header_len + l4 {
            let mut bytes = packet[..cut].to_vec();
            assert_eq!(rewrite(&skb, &mut bytes, header_len, L4Checksum::Complete), Err(DropReason::Truncated), "{cut}");
        }
    }
}

/// A SYN with options, its IP header first.
fn syn(options: &[u8]) -> Vec<u8> {
    let mut b = vec![0x45, 0, 0, 40 + options.len() as u8, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    b.extend([0, 80, 1, 0, 0, 0, 0, 7, 0, 0, 0, 0, (5 + options.len() as u8 / 4) << 4, 2, 3, 232, 0, 0, 0, 0]);
    b.extend(options);
    let ip = Sum::default().bytes(&b[..20]).finish();
    b[10..12].copy_from_slice(&ip.to_be_bytes());
    let tcp = tcp_sum(&b).finish();
    b[36..38].copy_from_slice(&tcp.to_be_bytes());
    b
}

fn tcp_sum(b: &[u8]) -> Sum {
    let (src, dst) = ([b[12], b[13], b[14], b[15]].into(), [b[16], b[17], b[18], b[19]].into());
    Sum::default().pseudo(src, dst, proto::TCP, b.len() as u32 - 20).bytes(&b[20..])
}

#[test]
fn a_segment_size_is_put_at_any_place_or_added_with_right_checksums() {
    for (options, at) in [
        (&[2, 4, 5, 180][..], 40),
        (&[1, 2, 4, 5, 180, 1, 1, 1], 41),
        (&[3, 3, 7, 2, 4, 9, 9, 0], 43),
        (&[], 40),
        (&[3, 3, 7, 0], 40),
    ] {
        let mut packet = syn(options);
        let original = packet.clone();
        let (mut skb, _) = skb_of(&original);
        let added = !options.contains(&2);
        skb.altered.mss = Some(NewMss { value: 0x1234, added });
        if added {
            packet.extend([0; MSS_LEN]);
            insert_mss(&mut packet, 20, L4Checksum::Complete).unwrap();
        }
        rewrite(&skb, &mut packet, 20, L4Checksum::Complete).unwrap();
        assert_eq!(packet[at..at + 4], [2, 4, 0x12, 0x34], "{options:?}");
        assert_eq!((packet.len(), usize::from(packet[32] >> 4) * 4), (usize::from(packet[3]), packet.len() - 20), "{options:?}");
        assert_eq!((Sum::default().bytes(&packet[..20]).finish(), tcp_sum(&packet).finish()), (0, 0), "{options:?}");
    }
}
