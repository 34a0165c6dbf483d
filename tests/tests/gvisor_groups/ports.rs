//! TestNATConflict, TestSNATHandlePortOrIdentConflicts, TestSNATLocallyGeneratedTrafficPorts: two who would look alike.

use super::table;
use core::net::IpAddr;
use hibernet_netstack::DropReason;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::Ip;
use hibernet_tests::{Out, Pair, Probe};
use std::collections::BTreeSet;

/// Further clients beside the one that the pair has.
fn client(p: &Pair, n: u16) -> IpAddr {
    if p.v6 { format!("fd68:6962:6e65:7400::1:{n:x}") } else { format!("10.0.2.{}", 100 + n) }.parse().unwrap()
}

fn probe(p: &mut Pair, src: IpAddr, probe: Probe) -> Option<Out> {
    let dst = p.node(Server);
    let (protocol, l4) = probe.l4(src, dst);
    p.send(Client, &Ip::new(src, dst), protocol, &l4);
    p.next(Server)
}

/// The classes of ports that a translation stays in, as Linux has them: below 512, 512-1023 (of which 600 and up are taken), the rest.
#[test]
fn clients_with_one_port_get_ports_of_its_class() {
    for target in ["MASQUERADE", "SNAT --to-source {rs}"] {
        let line = format!("-A POSTROUTING -o tap1 -j {target}");
        for (port, class) in [
            (79_u16, 1..=511_u16),
            (511, 1..=511),
            (512, 600..=1023),
            (1023, 600..=1023),
            (1024, 1024..=65535),
            (65535, 1024..=65535),
        ] {
            for make in [(|p| Probe::Udp(p, 80)) as fn(u16) -> Probe, |p| Probe::Tcp(p, 80), Probe::Ping] {
                Pair::each(&table("nat", &[&line]), |mut p| {
                    let ping = matches!(make(port), Probe::Ping(_));
                    let mut seen = BTreeSet::new();
                    for n in 0..4 {
                        let src = client(&p, n);
                        let out = probe(&mut p, src, make(port)).expect("translated");
                        assert_eq!(out.src, p.router(Server));
                        let got = out.ports().0;
                        assert!(seen.insert(got), "{got} was given away twice");
                        match n {
                            0 => assert_eq!(got, port, "the first keeps its own"),
                            _ => assert!(ping || class.contains(&got), "{port} became {got}"),
                        }
                        // The answer finds who asked.
                        p.answer(Server, &out);
                        let back = p.expect(Client);
                        assert_eq!(back.dst, src);
                        assert_eq!(back.ports().1, port);
                    }
                    assert_eq!(p.connections().len(), 4);
                    p.silent();
                });
            }
        }
    }
}

/// Two clients, one port to be had: the second is dropped and leaves nothing; when the first has gone, it gets it.
#[test]
fn who_finds_no_port_is_dropped() {
    for v6 in [false, true] {
        let to = if v6 { "[{rs}]:7000" } else { "{rs}:7000" };
        let mut p = Pair::new(v6, &table("nat", &[&format!("-A POSTROUTING -p udp -j SNAT --to-source {to}")]));
        let (a, b) = (client(&p, 0), client(&p, 1));
        assert_eq!(probe(&mut p, a, Probe::Udp(5000, 80)).unwrap().ports(), (7000, 80));
        assert_eq!(probe(&mut p, b, Probe::Udp(5000, 80)), None);
        assert_eq!(p.connections().len(), 1);
        let why = p.drops();
        assert!(matches!(why[..], [(DropReason::NatExhausted | DropReason::ConntrackClash, 1)]), "{why:?}");
        // Another destination is no conflict.
        assert_eq!(probe(&mut p, b, Probe::Udp(5000, 81)).unwrap().ports(), (7000, 81));
        p.run(core::time::Duration::from_secs(31));
        assert_eq!(probe(&mut p, b, Probe::Udp(5000, 80)).unwrap().ports(), (7000, 80));
    }
}

/// A client that nothing translates has the port that another one's translation would take.
#[test]
fn an_untranslated_connection_in_the_way() {
    Pair::each(&table("nat", &["-A POSTROUTING -p udp -s {c} -j SNAT --to-source {e}"]), |mut p| {
        // Two destinations that are one by DNAT: both ends of the pair ask for the same reply tuple.
        p.load(&table("nat", &["-A PREROUTING -p udp -d {e} -j DNAT --to-destination {s}", "-A POSTROUTING -p tcp -j ACCEPT"]));
        let (c, to) = (p.node(Client), p.elsewhere());
        let direct = probe(&mut p, c, Probe::Udp(5000, 80)).unwrap();
        assert_eq!(direct.ports(), (5000, 80));
        p.probe(Client, to, Probe::Udp(5000, 80));
        let other = p.expect(Server);
        assert_ne!(other.ports().0, 5000, "both look alike to the server");
        for (out, from) in [(direct, p.node(Server)), (other, to)] {
            p.answer(Server, &out);
            let back = p.expect(Client);
            assert_eq!((back.src, back.ports()), (from, (80, 5000)));
        }
    });
}
