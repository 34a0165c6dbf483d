//! TestNATICMPError: errors about translated packets reach who sent them, and speak of what was sent.

use super::table;
use core::net::IpAddr;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{self, Ip, L4};
use hibernet_tests::{Pair, Probe};

/// Type, code and the four bytes behind the checksum.
const ERRORS: [&[(u8, u8, u32)]; 2] = [
    &[(3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 4, 1280), (3, 13, 0), (11, 0, 0), (12, 0, 0x0500_0000)],
    &[(1, 0, 0), (1, 1, 0), (1, 4, 0), (2, 0, 1280), (3, 0, 0), (4, 1, 6)],
];

const NAT: [&[&str]; 4] = [
    &["-A PREROUTING -i tap0 -d {e} -j DNAT --to-destination {s}"],
    &["-A POSTROUTING -o tap1 -j SNAT --to-source {rs}"],
    &["-A POSTROUTING -o tap1 -j MASQUERADE"],
    &["-A PREROUTING -i tap0 -d {e} -j DNAT --to-destination {s}", "-A POSTROUTING -o tap1 -j MASQUERADE"],
];

/// The header of IP with hop limit and (IPv4) checksum blanked, and what follows.
fn without_hops(packet: &[u8]) -> Vec<u8> {
    let mut p = packet.to_vec();
    if p[0] >> 4 == 4 {
        assert_eq!(wire::internet_checksum(&[&p[..20]]), 0, "the quoted header's checksum");
        p[8] = 0;
        p[10..12].fill(0);
    } else {
        p[7] = 0;
    }
    p
}

/// The IP packet of the next frame at the server, as bytes.
fn at_server(p: &mut Pair) -> Vec<u8> {
    let frame = p.next_bytes(Server).expect("nothing came out at the server");
    wire::parse(&frame).unwrap_or_else(|e| panic!("{}", e.0));
    let ip = &frame[14..];
    let len =
        if p.v6 { 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])) } else { usize::from(u16::from_be_bytes([ip[2], ip[3]])) };
    ip[..len].to_vec()
}

/// Source and destination of a packet.
fn ends(p: &Pair, packet: &[u8]) -> (IpAddr, IpAddr) {
    if p.v6 {
        let a = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        (a(8), a(24))
    } else {
        let a = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        (a(12), a(16))
    }
}

/// How much of a packet is quoted: all, without data, eight bytes of transport.
fn cuts(v6: bool, packet: &[u8]) -> [usize; 4] {
    let ip = if v6 { 40 } else { 20 };
    [packet.len(), packet.len() - 1, packet.len() - 5, ip + 8]
}

#[test]
fn errors_are_mapped_with_what_they_quote() {
    for lines in NAT {
        let dnat = lines[0].contains("DNAT");
        Pair::each(&table("nat", lines), |mut p| {
            let mut n = 0;
            for &(ty, code, rest) in ERRORS[usize::from(p.v6)] {
                for make in [(|p| Probe::Udp(p, 80)) as fn(u16) -> Probe, |p| Probe::Tcp(p, 80), Probe::Ping] {
                    n += 1;
                    let to = if dnat { p.elsewhere() } else { p.node(Server) };
                    let sent = p.probe(Client, to, make(4000 + n));
                    let got = at_server(&mut p);
                    let (src, dst) = ends(&p, &got);
                    let before = p.connections();
                    for cut in cuts(p.v6, &got) {
                        // From the server itself, and from a router on the way.
                        for from in [dst, p.text(if p.v6 { "fd68:6962:6e65:7401::99" } else { "10.0.3.99" }).parse().unwrap()] {
                            let message = wire::icmp(from, src, ty, code, rest, &got[..cut]);
                            let protocol = if p.v6 { 58 } else { 1 };
                            p.send(Server, &Ip::new(from, src), protocol, &message);
                            let out = p.expect(Client);
                            assert_eq!(out.dst, p.node(Client));
                            assert!(!dnat || from != dst || out.src == to, "{lines:?}: from {}", out.src);
                            let L4::Icmp { ty: t, code: c, rest: r, data } = out.l4 else { panic!("{out:?}") };
                            assert_eq!((t, c, r), (ty, code, rest));
                            let [mut data, mut quote] = [&data[..], &sent[..cut]].map(without_hops);
                            // Linux keeps the checksum of a TCP header that is not whole.
                            let at = if p.v6 { 40 } else { 20 };
                            if matches!(make(0), Probe::Tcp(..)) && (at + 18..at + 20).contains(&cut) {
                                data[at + 16..at + 18].fill(0);
                                quote[at + 16..at + 18].fill(0);
                            }
                            assert_eq!(data, quote, "{lines:?} {ty}/{code} cut at {cut}");
                            p.silent();
                        }
                    }
                    assert_eq!(p.connections(), before, "an error made or renewed a connection");
                }
            }
            assert_eq!(p.drops(), []);
        });
    }
}

/// An error from the client about an answer goes the other way.
#[test]
fn errors_about_answers_are_mapped_as_well() {
    for lines in NAT {
        let dnat = lines[0].contains("DNAT");
        Pair::each(&table("nat", lines), |mut p| {
            let to = if dnat { p.elsewhere() } else { p.node(Server) };
            p.probe(Client, to, Probe::Udp(5000, 80));
            let got = p.expect(Server);
            let answer = wire::udp(got.dst, got.src, 80, got.ports().0, b"answer");
            let answer_ip = Ip::new(got.dst, got.src);
            p.send(Server, &answer_ip, 17, &answer);
            let frame = p.next_bytes(Client).unwrap();
            let len = if p.v6 { 40 } else { 20 } + answer.len();
            let (ty, code) = if p.v6 { (1, 4) } else { (3, 3) };
            let client = p.node(Client);
            let message = wire::icmp(client, to, ty, code, 0, &frame[14..14 + len]);
            p.send(Client, &Ip::new(client, to), if p.v6 { 58 } else { 1 }, &message);
            let out = p.expect(Server);
            assert_eq!((out.src, out.dst), (got.src, got.dst), "{lines:?}");
            let L4::Icmp { data, .. } = out.l4 else { panic!() };
            assert_eq!(without_hops(&data), without_hops(&answer_ip.packet(17, &answer)), "{lines:?}");
            p.silent();
        });
    }
}

/// What quotes nothing known, or too little, is INVALID: never related, and never translated.
#[test]
fn errors_about_nothing_known_are_invalid() {
    let rules = table("nat", NAT[0]) + &table("filter", &["-A FORWARD -m conntrack --ctstate INVALID -j DROP"]);
    Pair::each(&rules, |mut p| {
        let to = p.elsewhere();
        p.probe(Client, to, Probe::Udp(5000, 80));
        let got = at_server(&mut p);
        let (src, dst) = ends(&p, &got);
        let (protocol, ty, code, ip_len) = if p.v6 { (58, 1, 4, 40) } else { (1, 3, 3, 20) };
        let other = Ip::new(src, dst).packet(17, &wire::udp(src, dst, 5001, 80, b"probe"));
        // The other way round: as if the server had sent it.
        let reversed = Ip::new(dst, src).packet(17, &wire::udp(dst, src, 80, 5000, b"probe"));
        let mut quotes = vec![other, reversed];
        quotes.extend([0, 1, ip_len - 1, ip_len, ip_len + 3].map(|n| got[..n].to_vec()));
        for quote in quotes {
            p.send(Server, &Ip::new(dst, src), protocol, &wire::icmp(dst, src, ty, code, 0, &quote));
            p.silent();
        }
        assert_eq!(p.connections().len(), 1);
    });
}

/// RELATED is what the rules call it, and not NEW.
#[test]
fn errors_are_related() {
    let lines = [
        ":FORWARD DROP [0:0]",
        "-A FORWARD -m conntrack --ctstate RELATED -j ACCEPT",
        "-A FORWARD -i tap0 -p udp -m conntrack --ctstate NEW -j ACCEPT",
    ];
    Pair::each(&table("filter", &lines), |mut p| {
        assert!(p.forwards(Client, Probe::Udp(5000, 80)));
        let (src, dst) = (p.node(Client), p.node(Server));
        let packet = Ip::new(src, dst).packet(17, &wire::udp(src, dst, 5000, 80, b"probe"));
        let (protocol, ty, code) = if p.v6 { (58, 1, 4) } else { (1, 3, 3) };
        p.send(Server, &Ip::new(dst, src), protocol, &wire::icmp(dst, src, ty, code, 0, &packet));
        assert_eq!(p.expect(Client).src, dst);
        assert!(!p.forwards(Server, Probe::Ping(1)), "a query is not related");
    });
}
