//! ICMP errors about translated connections: gVisor's TestNATICMPError, and what Linux does with what nodes on the way send.

use super::build::sum;
use super::flows::{Family, V4, V6, answer, rule};
use super::world::*;
use super::{Build, skb_of};
use crate::conntrack::{CtInfo, Track};
use crate::iptables::Hook;
use crate::nat::{L4Checksum, rewrite};
use crate::tuple::proto;
use crate::verdict::DropReason;

/// An error of this type from an address, to whoever sent `quote`.
fn error(f: &Family, ty: u8, from: &str, quote: &[u8]) -> Build {
    let mut e = Build::new(f.icmp, (from, 0), (from, 0));
    e.dst = match f.icmp {
        proto::ICMP => <[u8; 4]>::try_from(&quote[12..16]).unwrap().into(),
        _ => <[u8; 16]>::try_from(&quote[8..24]).unwrap().into(),
    };
    e.ty = (ty, 0);
    e.data = quote.to_vec();
    e
}

/// A packet with only its first bytes, as routers quote it.
fn cut(b: &[u8], len: usize) -> Vec<u8> {
    b[..len.min(b.len())].to_vec()
}

/// Types of errors.
fn types(f: &Family) -> &'static [u8] {
    if f.icmp == proto::ICMP { &[3, 4, 11, 12] } else { &[1, 2, 3, 4] }
}

#[test]
fn errors_are_translated_with_their_quotes() {
    for f in [V4, V6] {
        for protocol in [proto::TCP, proto::UDP, f.icmp] {
            for kind in ["snat", "dnat", "dnat-snat", "dnat-masquerade", "plain"] {
                for &ty in types(&f) {
                    let mut w = World::new();
                    let (from, port) = if protocol == f.icmp { (7, 7) } else { (4000, 80) };
                    let request = Build { options: 2, ..Build::new(protocol, (f.client, from), (f.vip, port)) };
                    let header = request.header_len();
                    let original = request.bytes();
                    let sent = w.pass(&original, FORWARD, &|nat, skb, hook| rule(kind, &f, nat, skb, hook)).unwrap();
                    let left = Ends::of(&sent);
                    let reply = answer(&request, left).bytes();
                    let back = w.pass(&reply, FORWARD, &none).unwrap();
                    let translated = kind.starts_with("dnat");

                    for len in [header + 8, header + 12, header + 20, usize::MAX] {
                        // From a router on the way out, about the request; it looks as if it came from where the client sent to.
                        let mut expected = cut(&original, len);
                        if protocol == proto::TCP && len < header + 20 {
                            let n = expected.len().min(header + 16);
                            expected.truncate(n);
                            expected.extend_from_slice(&cut(&sent, len)[n..]);
                        }
                        let e = error(&f, ty, f.transit, &cut(&sent, len));
                        let got = w.pass(&e.bytes(), FORWARD, &asked).unwrap();
                        let seen_from = if translated { f.vip } else { f.transit };
                        assert_eq!(got, error(&f, ty, seen_from, &expected).bytes(), "{kind} {protocol} {ty} {len}");

                        // From the client, about the reply.
                        let e = error(&f, ty, f.client, &cut(&back, len));
                        let got = w.pass(&e.bytes(), FORWARD, &asked).unwrap();
                        assert_eq!(Ends::of(&got), Ends { src: (left.src.0, 0), dst: (left.dst.0, 0) });
                        if len == usize::MAX {
                            let at = got.len() - back.len();
                            assert_eq!(&got[at..], reply, "{kind} {protocol} {ty}");
                        }
                    }
                    assert_eq!(w.ct.len(), 1, "errors begin no connection");
                }
            }
        }
    }
}

fn asked(_: &mut crate::nat::Nat<'_>, _: &mut crate::skb::Skb<'_>, _: Hook) -> Result<(), DropReason> {
    panic!("errors are not asked about")
}

/// An error that we send ourselves about a packet on its way through: it quotes what was translated so far, and must speak
/// of what the sender knows. As seen on Linux, it comes from where the sender sent to.
#[test]
fn our_own_errors_speak_of_what_the_sender_knows() {
    for f in [V4, V6] {
        for known in [false, true] {
            for kind in ["snat", "dnat", "dnat-snat"] {
                let mut w = World::new();
                let request = Build::new(proto::UDP, (f.client, 4000), (f.vip, 80));
                let original = request.bytes();
                let rules: Rules<'_> = &|nat, skb, hook| rule(kind, &f, nat, skb, hook);
                if known {
                    w.pass(&original, FORWARD, rules).unwrap();
                }
                // It comes as far as FORWARD.
                let (mut skb, header_len) = skb_of(&original);
                skb.input = Some(IN);
                w.ct.track(w.now, &mut skb).unwrap();
                w.hooks(&mut skb, &[Hook::PreRouting, Hook::Forward], rules).unwrap();
                let mut so_far = original.clone();
                rewrite(&skb, &mut so_far, header_len, L4Checksum::Complete).unwrap();
                verify(&so_far);

                let e = error(&f, if f.icmp == proto::ICMP { 3 } else { 1 }, f.inside, &so_far);
                let bytes = e.bytes();
                let (mut about, header_len) = skb_of(&bytes);
                about.output = Some(IN);
                about.track = match skb.track {
                    Track::Fresh { conn, len, .. } => Track::Fresh { conn, related: true, len },
                    Track::Known { id, status, .. } => Track::Known { id, info: CtInfo::RelatedReply, status },
                    other => panic!("{other:?}"),
                };
                w.hooks(&mut about, OUTPUT, &asked).unwrap();
                let mut out = bytes.clone();
                rewrite(&about, &mut out, header_len, L4Checksum::Complete).unwrap();
                let from = if kind.starts_with("dnat") { f.vip } else { f.inside };
                assert_eq!(out, Build { data: original, ..error(&f, e.ty.0, from, &request.bytes()) }.bytes(), "{kind} {known}");
            }
        }
    }
}

/// Linux drops what it cannot translate: a quote without eight bytes of the transport header.
#[test]
fn short_quotes_of_translated_connections_are_dropped() {
    for protocol in [proto::TCP, proto::UDP] {
        for (kind, translated) in [("snat", true), ("plain", false)] {
            let mut w = World::new();
            let request = Build::new(protocol, (V4.client, 4000), (V4.vip, 80));
            let sent = w.pass(&request.bytes(), FORWARD, &|nat, skb, hook| rule(kind, &V4, nat, skb, hook)).unwrap();
            for len in 20..sent.len() {
                let e = error(&V4, 3, V4.transit, &sent[..len]);
                let got = w.pass(&e.bytes(), FORWARD, &asked);
                match len - 20 {
                    // Without ports nobody knows what it is about: INVALID, and passed on as it is.
                    0..4 => assert_eq!(Ends::of(&got.unwrap()).dst, Ends::of(&e.bytes()).dst),
                    4..8 if translated => assert_eq!(got, Err(DropReason::Truncated)),
                    _ => assert_eq!(Ends::of(&got.unwrap()).dst.0, request.src),
                }
            }
        }
    }
}

/// An ICMP redirect tells of addresses that the receiver does not know.
#[test]
fn redirects_about_translated_connections_are_dropped() {
    for (kind, passes) in [("snat", false), ("dnat", false), ("plain", true)] {
        let mut w = World::new();
        let request = Build::new(proto::UDP, (V4.client, 4000), (V4.vip, 80));
        let sent = w.pass(&request.bytes(), FORWARD, &|nat, skb, hook| rule(kind, &V4, nat, skb, hook)).unwrap();
        let e = error(&V4, 5, V4.transit, &sent);
        let got = w.pass(&e.bytes(), FORWARD, &asked);
        assert_eq!(got.is_ok(), passes, "{kind}");
        assert!(passes || got == Err(DropReason::IcmpUnhandled));
    }
}

/// A quote that was damaged on the way is passed on as damaged: the checksum over it stays as wrong as it was.
#[test]
fn a_damaged_quote_stays_damaged() {
    let mut w = World::new();
    let request = Build::new(proto::UDP, (V4.client, 4000), (V4.vip, 80));
    let mut sent = w.pass(&request.bytes(), FORWARD, &|nat, skb, hook| rule("snat", &V4, nat, skb, hook)).unwrap();
    sent[10] ^= 0x55;
    let bytes = error(&V4, 3, V4.transit, &sent).bytes();
    let (mut skb, header_len) = skb_of(&bytes);
    w.ct.track(w.now, &mut skb).unwrap();
    w.hooks(&mut skb, FORWARD, &asked).unwrap();
    let mut out = bytes.clone();
    rewrite(&skb, &mut out, header_len, L4Checksum::Complete).unwrap();
    assert_eq!(sum(&[&out[20..]]), 0xffff);
    assert_ne!(sum(&[&out[28..48]]), 0xffff);
}
