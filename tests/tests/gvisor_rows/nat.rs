//! Translation: rows 14, 15, 17, 18, 30.

use hibernet_netstack::edge::{LinkId, RxChecksum};
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::tuple::Endpoint;
use hibernet_netstack::{Config, DropReason};
use hibernet_tests::netfilter::ROUTER_MAC;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{self, Ip};
use hibernet_tests::{Pair, Probe, TcpGuest, World};

const DNAT: &str = "*nat\n-A PREROUTING -d {e} -j DNAT --to-destination {s}\nCOMMIT\n";
const BOTH: &str = "*nat\n-A PREROUTING -d {e} -j DNAT --to-destination {s}\n-A POSTROUTING -o tap1 -j MASQUERADE\nCOMMIT\n";
const PROBES: [Probe; 3] = [Probe::Udp(5000, 80), Probe::Tcp(5000, 80), Probe::Ping(5000)];

/// Row 14: two clients that one translation makes alike get their own answers.
#[test]
fn row_14_two_clients_behind_one_address_get_their_own_answers() {
    Pair::each(BOTH, |mut p| {
        let to = p.elsewhere();
        for make in [|n| Probe::Udp(n, 80), |n| Probe::Tcp(n, 80), Probe::Ping as fn(u16) -> Probe] {
            let clients = ["16", "17", "18"].map(|n| {
                let net = if p.v6 { "fd68:6962:6e65:7400::" } else { "10.0.2." };
                format!("{net}{n}").parse().unwrap()
            });
            let mut got = Vec::new();
            for src in clients {
                let (protocol, l4) = make(5000).l4(src, to);
                p.send(Client, &Ip::new(src, to), protocol, &l4);
                got.push((src, p.expect(Server)));
            }
            for (src, out) in got.iter().rev() {
                assert_eq!(got.iter().filter(|(_, o)| o.ports().0 == out.ports().0).count(), 1);
                p.answer(Server, out);
                let back = p.expect(Client);
                assert_eq!((back.src, back.dst, back.ports().1), (to, *src, 5000));
            }
        }
        p.silent();
    });
}

/// Row 15: both ends of one packet are translated, once each.
#[test]
fn row_15_source_and_destination_of_one_packet() {
    Pair::each(BOTH, |mut p| {
        for probe in PROBES {
            let to = p.elsewhere();
            p.probe(Client, to, probe);
            let got = p.expect(Server);
            assert_eq!((got.src, got.dst), (p.router(Server), p.node(Server)));
            p.answer(Server, &got);
            let back = p.expect(Client);
            assert_eq!((back.src, back.dst), (to, p.node(Client)));
            p.silent();
        }
    });
}

/// Row 17: checksums are right behind every translation, for what was checked by the link as well (every frame that comes out is
/// checked by the kit).
#[test]
fn row_17_checksums_of_what_the_link_vouched_for() {
    for rules in [DNAT, BOTH] {
        Pair::each(rules, |mut p| {
            for probe in PROBES {
                let (src, to) = (p.node(Client), p.elsewhere());
                let (protocol, mut l4) = probe.l4(src, to);
                // As a guest with offload leaves it: the pseudo-header's part only, or nothing of use.
                let at = match probe {
                    Probe::Udp(..) => 6,
                    Probe::Tcp(..) => 16,
                    Probe::Ping(_) => continue,
                };
                l4[at..at + 2].copy_from_slice(&[0x12, 0x34]);
                let ip = Ip::new(src, to);
                let frame = wire::ethernet(ROUTER_MAC, Client.mac(), ip.ethertype(), &ip.packet(protocol, &l4));
                p.w.receive_on(LinkId(0), &frame, RxChecksum::Trusted, None);
                p.w.settle();
                assert_eq!(p.expect(Server).dst, p.node(Server));
            }
        });
    }
}

/// Row 17: a UDP checksum that is not used stays so (IPv4); one that comes out as 0 is written as 0xffff.
#[test]
fn row_17_zero_checksums_of_udp() {
    let mut p = Pair::new(false, DNAT);
    let (src, to, server) = (p.node(Client), p.elsewhere(), p.node(Server));
    let mut udp = wire::udp(src, to, 5000, 80, b"unchecked");
    udp[6..8].fill(0);
    p.send(Client, &Ip::new(src, to), 17, &udp);
    assert_eq!(p.next_bytes(Server).unwrap()[14 + 20 + 6..][..2], [0, 0]);
    Pair::each(DNAT, |mut p| {
        let (src, to, server) = (p.node(Client), p.elsewhere(), if p.v6 { p.node(Server) } else { server });
        // The two bytes with which the translated datagram sums up to zero.
        let data = (0..=u16::MAX).map(u16::to_be_bytes).find(|data| {
            let mut b = wire::udp(src, server, 5000, 80, data);
            b[6..8].fill(0);
            matches!(wire::transport_checksum(src, server, 17, &b), 0 | 0xffff)
        });
        let data = data.expect("there is always one");
        p.send(Client, &Ip::new(src, to), 17, &wire::udp(src, to, 5000, 80, &data));
        let frame = p.next_bytes(Server).unwrap();
        wire::parse(&frame).unwrap_or_else(|e| panic!("{}", e.0));
        let at = 14 + if p.v6 { 40 } else { 20 };
        assert_eq!(frame[at + 6..at + 8], [0xff, 0xff]);
    });
}

/// Row 17, towards the guest: what the link is to complete leads to the right checksum (the kit completes and compares).
#[test]
fn row_17_offloaded_segments_of_translated_connections() {
    let mut w = World::with_link(Config::default(), World::offload_link(1500));
    let rules = "*nat\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 192.0.2.7:8080\nCOMMIT\n";
    let now = w.now();
    w.stack.set_rules(now, text::parse(Family::V4, rules).unwrap(), Default::default(), &mut w.edge).unwrap();
    let mut g = TcpGuest::connect(&mut w, 5000, Endpoint::new("198.51.100.1".parse().unwrap(), 80));
    let sock = w.edge.host.last();
    assert_eq!(w.edge.host.tcp(sock).remote, Endpoint::new("192.0.2.7".parse().unwrap(), 8080));
    let data: Vec<u8> = (0..40_000).map(|n| (n % 251) as u8).collect();
    w.edge.host.peer(sock).send(&data);
    w.settle();
    assert_eq!(g.read(&mut w, data.len(), core::time::Duration::from_secs(5)), data);
}

/// Row 18: answers to redirected datagrams and queries come from where the client had asked.
#[test]
fn row_18_datagrams_are_translated_back() {
    Pair::each(
        "*nat\n-A PREROUTING -i tap0 -p udp --dport 53 -j DNAT --to-destination {s}\n-A PREROUTING -p {icmp} -d {e} -j REDIRECT\nCOMMIT\n",
        |mut p| {
            let to = p.elsewhere();
            p.probe(Client, to, Probe::Udp(5000, 53));
            let got = p.expect(Server);
            p.answer(Server, &got);
            let back = p.expect(Client);
            assert_eq!((back.src, back.ports()), (to, (53, 5000)));
            p.probe(Client, to, Probe::Ping(77));
            let back = p.expect(Client);
            assert_eq!((back.src, back.ports().0), (to, 77));
        },
    );
}

/// Row 30: a flow keeps the translation that its first packet got, whatever tables come between its packets.
#[test]
fn row_30_tables_are_replaced_between_the_packets_of_a_flow() {
    let rules = |port: u16, v6| {
        let s = if v6 { "[{s}]" } else { "{s}" };
        format!(
            "*nat\n-A PREROUTING -p udp -d {{e}} -j DNAT --to-destination {s}:{port}\n-A PREROUTING -p tcp -d {{e}} -j DNAT --to-destination {s}:{port}\nCOMMIT\n"
        )
    };
    for v6 in [false, true] {
        let mut p = Pair::new(v6, &rules(8001, v6));
        let to = p.elsewhere();
        let mut old = Vec::new();
        for probe in [Probe::Udp(5000, 80), Probe::Tcp(5000, 80)] {
            p.probe(Client, to, probe);
            let got = p.expect(Server);
            assert_eq!(got.ports().1, 8001);
            old.push((probe, got));
        }
        for other in [rules(8002, v6), "*filter\nCOMMIT\n".to_owned(), rules(8003, v6)] {
            p.load(&other);
            for (probe, got) in &old {
                p.probe(Client, to, *probe);
                assert_eq!(p.expect(Server), *got, "translated anew");
                p.answer(Server, got);
                let back = p.expect(Client);
                assert_eq!((back.src, back.ports()), (to, (80, 5000)));
            }
        }
        p.probe(Client, to, Probe::Udp(5001, 80));
        assert_eq!(p.expect(Server).ports(), (5001, 8003));
    }
}

/// What the router sends, and a translation leads back to it, passes `lo`; rules that log it say so, as Linux does.
#[test]
fn what_is_led_back_to_the_router_comes_in_by_lo() {
    let rules = "*raw\n-A PREROUTING -i tap0 -j CT --notrack\nCOMMIT\n\
        *mangle\n-A POSTROUTING -o lo -j LOG --log-prefix \"out \"\n-A PREROUTING -i lo -j LOG --log-prefix \"pre \"\n\
        -A INPUT -i lo -j LOG --log-macdecode --log-prefix \"in \"\nCOMMIT\n\
        *nat\n-A PREROUTING -i tap1 -p udp -j DNAT --to-destination {rs}\nCOMMIT\n";
    Pair::each(rules, |mut p| {
        let (client, server) = (p.node(Client), p.node(Server));
        p.probe(Server, client, Probe::Udp(53, 40_000));
        p.expect(Server);
        let unserved = p.w.dropped(DropReason::NoService);
        // Not tracked, and as if it were an answer: the error about it is of the connection.
        let (protocol, l4) = Probe::Udp(40_000, 53).l4(client, server);
        p.send(Client, &Ip { ttl: 1, ..Ip::new(client, server) }, protocol, &l4);
        p.silent();
        assert_eq!(p.w.dropped(DropReason::NoService), unserved + 1);
        let (log, lost) = p.w.stack.take_log();
        assert_eq!((log.len(), lost), (3, 0), "{log:?}");
        let mac = format!("MAC=00:00:00:00:00:00:00:00:00:00:00:00:{} SRC=", if p.v6 { "86:dd" } else { "08:00" });
        let starts = ["out IN= OUT=lo SRC=".to_owned(), format!("pre IN=lo OUT= {mac}"), format!("in IN=lo OUT= {mac}")];
        for (line, start) in log.iter().zip(starts) {
            assert!(line.starts_with(&start), "{line}");
        }
    });
}
