//! REJECT: FilterInputReject, TestRejectWith, TestRejectWithTCPReset. What the sender is told, byte by byte.

use super::table;
use hibernet_netstack::DropReason;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{self, Ip, L4, TcpSegment, flags, internet_checksum};
use hibernet_tests::{Pair, Probe};

/// Names and what they are on the wire, IPv4 and IPv6.
const KINDS: [&[(&str, u8, u8)]; 2] = [
    &[
        ("icmp-net-unreachable", 3, 0),
        ("icmp-host-unreachable", 3, 1),
        ("icmp-proto-unreachable", 3, 2),
        ("icmp-port-unreachable", 3, 3),
        ("icmp-net-prohibited", 3, 9),
        ("icmp-host-prohibited", 3, 10),
        ("icmp-admin-prohibited", 3, 13),
    ],
    &[
        ("icmp6-no-route", 1, 0),
        ("icmp6-adm-prohibited", 1, 1),
        ("icmp6-addr-unreachable", 1, 3),
        ("icmp6-port-unreachable", 1, 4),
        ("icmp6-policy-fail", 1, 5),
        ("icmp6-reject-route", 1, 6),
    ],
];

/// The packet with its hop limit (and the IPv4 checksum over it) blanked: Linux quotes forwarded packets with one hop less.
fn without_hops(packet: &[u8]) -> Vec<u8> {
    let mut p = packet.to_vec();
    if p[0] >> 4 == 4 {
        assert_eq!(internet_checksum(&[&p[..20]]), 0, "the quoted header's checksum");
        p[8] = 0;
        p[10..12].fill(0);
    } else {
        p[7] = 0;
    }
    p
}

/// The error that comes back for a packet.
#[track_caller]
fn expect_error(p: &mut Pair, from: core::net::IpAddr, ty: u8, code: u8, packet: &[u8]) {
    let out = p.expect(Client);
    assert_eq!((out.src, out.dst, out.ttl), (from, p.node(Client), 64));
    let L4::Icmp { ty: t, code: c, rest, data } = out.l4 else { panic!("{out:?}") };
    assert_eq!((t, c, rest), (ty, code, 0));
    // RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c).
    let most = if p.v6 { 1280 - 48 } else { 576 - 28 };
    let n = packet.len().min(most);
    assert_eq!(without_hops(&data), without_hops(&packet[..n]));
    p.silent();
}

#[test]
fn every_kind_in_input_and_forward() {
    for v6 in [false, true] {
        for &(name, ty, code) in KINDS[usize::from(v6)] {
            let with = format!("--reject-with {name}");
            let lines = [format!("-A FORWARD -p udp -j REJECT {with}"), format!("-A INPUT -p udp -j REJECT {with}")];
            let mut p = Pair::new(v6, &table("filter", &[&lines[0], &lines[1]]));
            for (to, from) in [(p.node(Server), p.router(Client)), (p.router(Client), p.router(Client))] {
                let sent = p.probe(Client, to, Probe::Udp(5000, 80));
                expect_error(&mut p, from, ty, code, &sent);
            }
            // The rest passes.
            assert!(p.forwards(Client, Probe::Tcp(5000, 80)) && p.answers(Client, Probe::Ping(1)));
            assert_eq!(p.w.dropped(DropReason::Rejected), 2);
            assert_eq!(p.connections().iter().filter(|(_, c)| c.tuples[0].proto == 17).count(), 0, "{name}: an entry is left");
        }
    }
}

#[test]
fn the_default_is_port_unreachable_and_long_packets_are_quoted_in_part() {
    Pair::each(&table("filter", &["-A FORWARD -j REJECT"]), |mut p| {
        let (ty, code) = if p.v6 { (1, 4) } else { (3, 3) };
        let (src, dst, router) = (p.node(Client), p.node(Server), p.router(Client));
        for len in [0, 1, 8, 500, 600, 1200, 1400] {
            let ip = Ip::new(src, dst);
            let udp = wire::udp(src, dst, 5000, 80, &vec![0xa5; len]);
            p.send(Client, &ip, 17, &udp);
            expect_error(&mut p, router, ty, code, &ip.packet(17, &udp));
        }
        let sent = p.probe(Client, dst, Probe::Ping(9));
        expect_error(&mut p, router, ty, code, &sent);
        let sent = p.probe(Client, dst, Probe::Tcp(5000, 80));
        expect_error(&mut p, router, ty, code, &sent);
    });
}

#[test]
fn no_error_about_an_error() {
    Pair::each(&table("filter", &["-A FORWARD -j REJECT"]), |mut p| {
        let (src, dst) = (p.node(Client), p.node(Server));
        let (protocol, ty) = if p.v6 { (58, 1) } else { (1, 3) };
        let quote = Ip::new(dst, src).packet(17, &wire::udp(dst, src, 1, 2, b""));
        p.send(Client, &Ip::new(src, dst), protocol, &wire::icmp(src, dst, ty, 1, 0, &quote));
        p.silent();
        assert_eq!(p.w.dropped(DropReason::Rejected), 1);
    });
}

#[test]
fn our_own_packets_are_dropped_by_reject_in_output() {
    Pair::each(&table("filter", &["-A OUTPUT -p {icmp} -j REJECT"]), |mut p| {
        assert!(!p.answers(Client, Probe::Ping(1)));
        assert!(p.answers(Client, Probe::Tcp(1, 80)));
        assert_eq!(p.w.dropped(DropReason::Rejected), 1);
    });
}

/// RFC 9293 section 3.10.7.1: the reset's numbers, and none for a reset.
#[test]
fn tcp_reset() {
    use flags::{ACK, FIN, PSH, RST, SYN};
    let segment = |flags, data: &[u8]| TcpSegment {
        src_port: 5000,
        dst_port: 80,
        seq: 0xffff_fff0,
        ack: if flags & ACK != 0 { 777 } else { 0 },
        flags,
        window: 1000,
        data: data.to_vec(),
        ..TcpSegment::default()
    };
    let first = 0xffff_fff0_u32;
    let cases = [
        (segment(SYN, b""), Some((0, first.wrapping_add(1), RST | ACK))),
        (segment(SYN, &[7; 30]), Some((0, first.wrapping_add(31), RST | ACK))),
        (segment(SYN | ACK, b""), Some((777, 0, RST))),
        (segment(ACK, b""), Some((777, 0, RST))),
        (segment(ACK | PSH, b"data"), Some((777, 0, RST))),
        (segment(FIN | ACK, b"data"), Some((777, 0, RST))),
        (segment(RST, b""), None),
        (segment(RST | ACK, b""), None),
    ];
    for hook in ["INPUT", "FORWARD"] {
        let line = format!("-A {hook} -p tcp --dport 80 -j REJECT --reject-with tcp-reset");
        Pair::each(&table("filter", &[&line]), |mut p| {
            let src = p.node(Client);
            let dst = if hook == "INPUT" { p.router(Client) } else { p.node(Server) };
            for (sent, expected) in &cases {
                p.send(Client, &Ip::new(src, dst), 6, &sent.bytes(src, dst));
                let Some((seq, ack, flags)) = *expected else {
                    p.silent();
                    continue;
                };
                let out = p.expect(Client);
                let L4::Tcp(rst) = &out.l4 else { panic!("{out:?}") };
                assert_eq!((out.src, out.dst), (dst, src));
                let plain = TcpSegment { src_port: 80, dst_port: 5000, seq, ack, flags, ..TcpSegment::default() };
                assert_eq!(*rst, plain, "for {sent:?}");
                p.silent();
            }
            assert!(p.connections().is_empty());
            match hook {
                "INPUT" => assert!(p.answers(Client, Probe::Tcp(1, 81))),
                _ => assert!(p.forwards(Client, Probe::Tcp(1, 81))),
            }
        });
    }
}

/// Within a connection that stands, translated: the reset speaks of what the sender knows.
#[test]
fn a_reset_comes_from_where_the_sender_had_called() {
    let nat = table("nat", &["-A PREROUTING -d {e} -p tcp -j DNAT --to-destination {s}"]);
    let dnat = nat.replace("{s}\n", "{s}\n-A POSTROUTING -j MASQUERADE\n");
    Pair::each(&dnat, |mut p| {
        let to = p.elsewhere();
        p.probe(Client, to, Probe::Tcp(5000, 80));
        let syn = p.expect(Server);
        p.answer(Server, &syn);
        assert_eq!(p.expect(Client).src, to);
        p.load(&(dnat.clone() + &table("filter", &["-A FORWARD -p tcp --dport 80 -j REJECT --reject-with tcp-reset"])));
        let src = p.node(Client);
        let ack = TcpSegment {
            src_port: 5000,
            dst_port: 80,
            seq: 1001,
            ack: 7001,
            flags: flags::ACK,
            window: 9,
            ..TcpSegment::default()
        };
        p.send(Client, &Ip::new(src, to), 6, &ack.bytes(src, to));
        let out = p.expect(Client);
        assert_eq!((out.src, out.dst, out.ports()), (to, src, (80, 5000)));
        let L4::Tcp(rst) = out.l4 else { panic!() };
        assert_eq!((rst.seq, rst.flags), (7001, flags::RST));
        p.silent();
    });
}
