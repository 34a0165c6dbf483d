//! Ports, flags, options, ICMP types.

use super::{both, fits, with};
use crate::kit::*;
use hibernet_netstack::DropReason;
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};
use hibernet_netstack::packet::L4;

#[test]
fn ports() {
    for v6 in [false, true] {
        for (range, port, expected) in [
            ((80, 80), 80, true),
            ((80, 80), 81, false),
            ((80, 90), 80, true),
            ((80, 90), 90, true),
            ((80, 90), 79, false),
            ((80, 90), 91, false),
            ((0, 65535), 0, true),
            ((0, 65535), 65535, true),
            ((0, 0), 0, true),
            ((65535, 65535), 65535, true),
            ((65535, 65535), 0, false),
            ((90, 80), 85, false),
        ] {
            let tcp_s = |p| with(6, Match::Tcp { sport: Some(p), dport: None, flags: None, option: None });
            let tcp_d = |p| with(6, Match::Tcp { sport: None, dport: Some(p), flags: None, option: None });
            both(expected, &tcp(v6, port, 7, 2), range, tcp_s);
            both(expected, &tcp(v6, 7, port, 2), range, tcp_d);
            both(expected, &udp(v6, port, 7), range, |p| with(17, Match::Udp { sport: Some(p), dport: None }));
            both(expected, &udp(v6, 7, port), range, |p| with(17, Match::Udp { sport: None, dport: Some(p) }));
        }
        // Both inverted; and the ports as they are translated so far.
        let neither = with(6, Match::Tcp { sport: not((1, 1)), dport: not((2, 2)), flags: None, option: None });
        let mut skb = tcp(v6, 3, 4, 2);
        assert!(fits(neither.clone(), &skb));
        skb.dport = 2;
        assert!(!fits(neither, &skb));
    }
}

#[test]
fn a_second_block_of_the_same_match_counts_too() {
    let block = |r: Inv<PortRange>| Match::Tcp { sport: None, dport: Some(r), flags: None, option: None };
    for (first, second, expected) in [
        (Inv { not: false, value: (1, 10) }, Inv { not: false, value: (5, 20) }, [false, true, true, false]),
        (Inv { not: false, value: (1, 10) }, Inv { not: true, value: (5, 20) }, [true, false, false, false]),
        (Inv { not: true, value: (1, 5) }, Inv { not: true, value: (10, 20) }, [false, false, false, true]),
    ] {
        for (port, expected) in [4, 5, 10, 21].into_iter().zip(expected) {
            let r = Rule { proto: is(6), matches: vec![block(first), block(second)], ..Rule::default() };
            assert_eq!(fits(r, &tcp(false, 1, port, 2)), expected, "{first:?} {second:?} {port}");
        }
    }
}

#[test]
fn tcp_flags() {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    for v6 in [false, true] {
        for (mask, set, flags, expected) in [
            (0x17, SYN, SYN, true),
            (0x17, SYN, SYN | ACK, false),
            (0x17, SYN, SYN | 0x08, true),
            (0x3f, 0, 0, true),
            (0x3f, 0, ACK, false),
            (0x3f, 0x3f, 0x3f, true),
            (0x00, 0x00, ACK, true),
            (SYN, ACK, SYN | ACK, false),
            // ECE and CWR are bits of the byte as well.
            (0xc0, 0xc0, 0xc2, true),
            (0x3f, SYN, 0xc2, true),
        ] {
            both(expected, &tcp(v6, 1, 2, flags), (mask, set), |f| {
                with(6, Match::Tcp { sport: None, dport: None, flags: Some(f), option: None })
            });
        }
    }
}

#[test]
fn tcp_options() {
    let skb = |options: &[u8]| {
        let mut b = vec![0; 20];
        b[12] = ((20 + options.len()) as u8 / 4) << 4;
        b.extend(options);
        tcp_bytes(false, b)
    };
    for (options, kind, expected) in [
        (&[][..], 2, false),
        (&[2, 4, 5, 180], 2, true),
        (&[2, 4, 5, 180], 5, false),
        (&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], 8, true),
        (&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], 3, false),
        (&[1, 1, 1, 3], 1, true),
        // An end mark does not end the list, nor does a length of 0; one that leads behind the end does.
        (&[0, 2, 4, 5], 2, true),
        (&[9, 0, 2, 4], 2, true),
        (&[9, 200, 2, 4], 2, false),
        (&[1, 1, 1, 9], 2, false),
    ] {
        both(expected, &skb(options), kind, |o| with(6, Match::Tcp { sport: None, dport: None, flags: None, option: Some(o) }));
    }
    // Option 0 is no test (as in Linux).
    assert!(fits(with(6, Match::Tcp { sport: None, dport: None, flags: None, option: is(0) }), &skb(&[])));
}

#[test]
fn icmp_types_and_codes() {
    for (v6, ty, codes, of, expected) in [
        (false, 8, (0, 255), (8, 0), true),
        (false, 8, (0, 255), (0, 0), false),
        (false, 3, (3, 3), (3, 3), true),
        (false, 3, (3, 3), (3, 2), false),
        (false, 3, (1, 3), (3, 2), true),
        (false, 255, (0, 255), (13, 7), true),
        (true, 128, (0, 255), (128, 0), true),
        (true, 1, (4, 4), (1, 4), true),
        (true, 1, (4, 4), (1, 3), false),
        // 255 is a type like others in IPv6.
        (true, 255, (0, 255), (128, 0), false),
    ] {
        let proto = if v6 { 58 } else { 1 };
        both(expected, &icmp(v6, of.0, of.1), IcmpType { ty, codes }, |t| with(proto, Match::Icmp(Some(t))));
    }
    assert!(fits(with(1, Match::Icmp(None)), &icmp(false, 42, 1)));
}

#[test]
fn a_packet_that_cannot_be_tested_is_dropped() {
    let codes = Match::Icmp(is(IcmpType { ty: 8, codes: (1, 5) }));
    let mut b = Bench::new(&ruleset(V4, Filter, vec![chain("INPUT", vec![with(1, codes)])]));
    let mut broken = packet("10.0.0.1", "10.0.0.2", L4::Other, &[]);
    broken.protocol = 1;
    assert_eq!(b.run(Filter, Input, &mut broken), Outcome::Drop(DropReason::Malformed));
    let ports = Match::Multiport { which: Ports::Either, ports: Inv { not: false, value: vec![(1, 1)] } };
    let mut b = Bench::new(&ruleset(V4, Filter, vec![chain("INPUT", vec![with(132, ports)])]));
    let mut broken = packet("10.0.0.1", "10.0.0.2", L4::Other, &[0, 1, 0]);
    broken.protocol = 132;
    assert_eq!(b.run(Filter, Input, &mut broken), Outcome::Drop(DropReason::Malformed));
    assert_eq!(b.counts("INPUT"), [0, 0]);
}

#[test]
fn multiport() {
    for v6 in [false, true] {
        let set = vec![(22, 22), (80, 90), (443, 443)];
        for (which, s, d, expected) in [
            (Ports::Source, 22, 1, true),
            (Ports::Source, 1, 22, false),
            (Ports::Source, 85, 1, true),
            (Ports::Destination, 1, 90, true),
            (Ports::Destination, 1, 91, false),
            (Ports::Destination, 443, 1, false),
            (Ports::Either, 443, 1, true),
            (Ports::Either, 1, 80, true),
            (Ports::Either, 1, 79, false),
        ] {
            for skb in [tcp(v6, s, d, 2), udp(v6, s, d)] {
                for not in [false, true] {
                    let m = Match::Multiport { which, ports: Inv { not, value: set.clone() } };
                    assert_eq!(fits(with(skb.protocol, m), &skb), expected != not, "{which:?} {s} {d}");
                }
            }
        }
    }
    // Protocols whose ports are in the bytes only.
    let mut sctp = packet("10.0.0.1", "10.0.0.2", L4::Other, &[0, 5, 0, 6, 0, 0, 0, 0]);
    sctp.protocol = 132;
    let m = |which, p| with(132, Match::Multiport { which, ports: Inv { not: false, value: vec![(p, p)] } });
    assert!(fits(m(Ports::Source, 5), &sctp) && fits(m(Ports::Destination, 6), &sctp) && !fits(m(Ports::Source, 6), &sctp));
}
