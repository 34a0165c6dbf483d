//! NAT: NATPreRedirect*, NATOut*, NATPostSNAT*, TestNATEcho, TestNAT, original destinations.

use super::table;
use core::net::IpAddr;
use hibernet_netstack::Config;
use hibernet_netstack::config::Publish;
use hibernet_netstack::conntrack::OriginalDstError;
use hibernet_netstack::iptables::{Family, text};
use hibernet_netstack::tuple::Endpoint;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::wire::{self, Ip, L4};
use hibernet_tests::{Out, Pair, Probe, TcpGuest, World};

const PROBES: [Probe; 3] = [Probe::Udp(5000, 80), Probe::Tcp(5000, 80), Probe::Ping(5000)];

/// What the server gets of a probe to `to`; its answer must come from there, and a second packet be translated the same.
fn exchange(p: &mut Pair, to: IpAddr, probe: Probe) -> Out {
    p.probe(Client, to, probe);
    let got = p.expect(Server);
    assert_eq!(got.ttl, 63);
    p.answer(Server, &got);
    let back = p.expect(Client);
    assert_eq!((back.src, back.dst), (to, p.node(Client)), "{probe:?}");
    let ports = match probe {
        Probe::Udp(a, b) | Probe::Tcp(a, b) => (b, a),
        Probe::Ping(id) => (id, id),
    };
    assert_eq!(back.ports(), ports, "{probe:?}");
    if !matches!(probe, Probe::Tcp(..)) {
        p.probe(Client, to, probe);
        assert_eq!(p.expect(Server), got, "{probe:?}");
    }
    p.silent();
    got
}

/// SNAT, DNAT, and both, by every target, for UDP, TCP and echo. (A port in the target holds for UDP and TCP.)
#[test]
fn both_ways_by_every_target() {
    let dnat = "-A PREROUTING -d {e} -j DNAT --to-destination {s}";
    let netmap = "-A PREROUTING -d {e} -j NETMAP --to {s}";
    let snat = "-A POSTROUTING -o tap1 -j SNAT --to-source {rs}";
    let masquerade = "-A POSTROUTING -o tap1 -j MASQUERADE";
    let cases: [(&[&str], bool, bool); 8] = [
        (&[dnat], true, false),
        (&[netmap], true, false),
        (&[snat], false, true),
        (&[masquerade], false, true),
        (&[dnat, snat], true, true),
        (&[dnat, masquerade], true, true),
        (&[netmap, masquerade], true, true),
        (&["-A PREROUTING -p sctp -j DNAT --to-destination {s}"], false, false),
    ];
    for (lines, destination, source) in cases {
        Pair::each(&table("nat", lines), |mut p| {
            for probe in PROBES {
                let to = if destination { p.elsewhere() } else { p.node(Server) };
                let got = exchange(&mut p, to, probe);
                assert_eq!(got.dst, p.node(Server), "{lines:?} {probe:?}");
                assert_eq!(got.src, if source { p.router(Server) } else { p.node(Client) }, "{lines:?} {probe:?}");
                // Nobody else has the source port.
                assert_eq!(got.ports().0, 5000);
            }
            assert_eq!(p.connections().len(), 3);
            assert_eq!(p.drops(), []);
        });
    }
}

#[test]
fn ports_and_ranges_of_the_target() {
    for (to, from, dport, sports) in
        [("{S}:8080", "{R}:7000", 8080, 7000..=7000), ("{S}:8080-8081", "{R}:7000-7009", 8080, 7000..=7009)]
    {
        for v6 in [false, true] {
            let p = Pair::bare(Config::default(), v6);
            let name = |side| if v6 { format!("[{side}]") } else { format!("{side}") };
            let (s, r) = (name(p.node(Server)), name(p.router(Server)));
            let lines = [
                format!("-A PREROUTING -p tcp -d {{e}} --dport 80 -j DNAT --to-destination {}", to.replace("{S}", &s)),
                format!("-A PREROUTING -p udp -d {{e}} --dport 80 -j DNAT --to-destination {}", to.replace("{S}", &s)),
                format!("-A POSTROUTING -p tcp -j SNAT --to-source {}", from.replace("{R}", &r)),
                format!("-A POSTROUTING -p udp -j SNAT --to-source {}", from.replace("{R}", &r)),
            ];
            let mut p = Pair::new(v6, &table("nat", &lines.each_ref().map(String::as_str)));
            for probe in [Probe::Udp(5000, 80), Probe::Tcp(5000, 80)] {
                let to = p.elsewhere();
                let got = exchange(&mut p, to, probe);
                assert!(sports.contains(&got.ports().0), "{got:?}");
                assert_eq!(got.ports().1, dport);
            }
        }
    }
}

/// Only what the rule says is redirected: by port, address, and their inversion.
#[test]
fn destinations_that_a_rule_does_not_mean_stay() {
    for (line, means) in [
        ("-A PREROUTING -p udp --dport 80 -j DNAT --to-destination {s}:99", [true, false]),
        ("-A PREROUTING -p udp ! --dport 80 -j DNAT --to-destination {s}:99", [false, true]),
        ("-A PREROUTING -p udp -d {e} -j DNAT --to-destination {s}:99", [false, false]),
        ("-A PREROUTING -p udp ! -d {e} -j DNAT --to-destination {s}:99", [true, true]),
        ("-A PREROUTING -p tcp -j DNAT --to-destination {s}:99", [false, false]),
        ("-A PREROUTING -p udp -i tap1 -j DNAT --to-destination {s}:99", [false, false]),
        ("-A OUTPUT -p udp -j DNAT --to-destination {s}:99", [false, false]),
        ("-A PREROUTING -p udp -j ACCEPT\n-A PREROUTING -p udp -j DNAT --to-destination {s}:99", [false, false]),
    ] {
        for v6 in [false, true] {
            let line = if v6 { line.replace("{s}:", "[{s}]:") } else { line.to_owned() };
            let mut p = Pair::new(v6, &table("nat", &[&line]));
            for (port, means) in [80, 81].into_iter().zip(means) {
                let to = p.node(Server);
                p.probe(Client, to, Probe::Udp(5000 + port, port));
                assert_eq!(p.expect(Server).ports(), (5000 + port, if means { 99 } else { port }), "{line}");
            }
            p.silent();
        }
    }
}

/// REDIRECT leads to the router; what it answers comes from where the client had called.
#[test]
fn redirect_to_our_own_services() {
    Pair::each(&table("nat", &["-A PREROUTING -i tap0 -j REDIRECT"]), |mut p| {
        let to = p.elsewhere();
        // Echo is answered, a closed port of TCP reset, one of UDP told so.
        p.probe(Client, to, Probe::Ping(321));
        let out = p.expect(Client);
        assert_eq!((out.src, out.dst, out.ports()), (to, p.node(Client), (321, 321)));
        p.probe(Client, to, Probe::Tcp(5000, 80));
        let out = p.expect(Client);
        assert_eq!((out.src, out.ports()), (to, (80, 5000)));
        let sent = p.probe(Client, to, Probe::Udp(5000, 80));
        let out = p.expect(Client);
        let L4::Icmp { ty, code, data, .. } = &out.l4 else { panic!("{out:?}") };
        assert_eq!((*ty, *code), if p.v6 { (1, 4) } else { (3, 3) });
        assert_eq!(*data, sent, "the quote is the packet that the client sent");
        p.silent();
        // The other side is not meant.
        assert!(p.forwards(Server, Probe::Udp(1, 80)));
    });
}

/// A resolver of somebody else's is ours by DNAT: queries go to the host's resolver, answers come from where the client asked.
#[test]
fn dns_by_dnat_to_our_forwarder() {
    for v6 in [false, true] {
        let resolver: IpAddr = "192.0.2.53".parse().unwrap();
        let cfg = Config { resolvers: vec![resolver], ..Config::default() };
        let dns: IpAddr = if v6 { cfg.v6.unwrap().dns.into() } else { cfg.v4.unwrap().dns.into() };
        let rules = format!("*nat\n-A PREROUTING -p udp --dport 53 -j DNAT --to-destination {dns}\nCOMMIT\n");
        let mut p = Pair::with(cfg, v6, &rules);
        let (src, to) = (p.node(Client), p.elsewhere());
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
        p.send(Client, &Ip::new(src, to), 17, &wire::udp(src, to, 5000, 53, query));
        let sock = p.w.edge.host.last();
        assert_eq!(p.w.edge.host.udp(sock).to, Some(Endpoint::new(resolver, 53)));
        let mut answer = p.w.edge.host.udp(sock).sent[0].data.clone();
        answer[2] |= 0x80;
        p.w.edge.host.udp_reply(sock, &answer);
        p.w.settle();
        let out = p.expect(Client);
        assert_eq!((out.src, out.dst, out.ports()), (to, src, (53, 5000)));
        p.silent();
    }
}

/// What the router answers itself passes OUTPUT and POSTROUTING, but its connection was decided by the packet that it answers.
#[test]
fn answers_of_ours_are_not_asked_again() {
    let lines = ["-A OUTPUT -j DNAT --to-destination {s}", "-A POSTROUTING -s {rc} -j SNAT --to-source {rs}"];
    Pair::each(&table("nat", &lines), |mut p| {
        for probe in [Probe::Ping(1), Probe::Tcp(1, 80)] {
            assert!(p.answers(Client, probe));
        }
    });
}

/// NATOut*, NATLoopbackSkipsPrerouting: clients on the host itself are led on by OUTPUT, those outside by PREROUTING; neither by the
/// other's rules.
#[test]
fn clients_on_the_host_pass_output_and_those_outside_prerouting() {
    let publish = vec![Publish { proto: 6, addr: None, host_ports: (8080, 8080), guest_port: 80 }];
    let host: IpAddr = "203.0.113.9".parse().unwrap();
    let rules = "*nat\n:HIBERNET-PUBLISH - [0:0]\n\
        -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.0.2.15:81\n\
        -A OUTPUT -p tcp --dport 8080 -j DNAT --to-destination 10.0.2.15:82\n\
        -A PREROUTING -j HIBERNET-PUBLISH\n-A OUTPUT -j HIBERNET-PUBLISH\nCOMMIT\n";
    for (client, port) in [("127.0.0.1", 82), ("203.0.113.9", 82), ("198.51.100.7", 81)] {
        let mut w = World::new(Config { publish: publish.clone(), ..Config::default() });
        w.stack.set_host_addresses(vec![host]);
        let now = w.now();
        let rules = text::parse(Family::V4, rules).unwrap_or_else(|e| panic!("{e}"));
        w.stack.set_rules(now, rules, Default::default(), &mut w.edge).unwrap_or_else(|e| panic!("{e}"));
        let client = Endpoint::new(client.parse().unwrap(), 4000);
        let sock = w.accept(client, Endpoint::new(host, 8080));
        // Who is on the host appears as the gateway.
        let seen = if port == 82 { Endpoint::new("10.0.2.2".parse().unwrap(), 4000) } else { client };
        let mut g = TcpGuest::expect_syn(&mut w, port, seen);
        g.complete(&mut w);
        w.edge.host.peer(sock).send(b"hello");
        w.settle();
        g.expect_data(&mut w, b"hello");
        g.send(&mut w, b"welcome");
        assert_eq!(w.edge.host.peer(sock).take_received(), b"welcome");
    }
}

/// The two errors, and what a proxy asks for.
#[test]
fn original_destinations() {
    for v6 in [false, true] {
        let mut p = Pair::bare(Config::default(), v6);
        let ct = p.w.stack.conntrack().clone();
        let now = p.w.now();
        assert_eq!(ct.original_dst(now, &Default::default()), Err(OriginalDstError::NotConnected));
        p.load(&table("nat", &["-A PREROUTING -d {e} -j DNAT --to-destination {s}"]));
        let (to, server) = (p.elsewhere(), p.node(Server));
        for (n, (to, probe)) in
            [(to, Probe::Tcp(5000, 80)), (to, Probe::Udp(5001, 53)), (server, Probe::Tcp(5002, 81))].into_iter().enumerate()
        {
            p.probe(Client, to, probe);
            let got = p.expect(Server);
            p.answer(Server, &got);
            p.expect(Client);
            let (_, conn) = p.connections().into_iter().find(|(_, c)| c.tuples[0].sport == 5000 + n as u16).unwrap();
            let asked = ct.original_dst(p.w.now(), &conn.tuples[1]);
            match n {
                0 => assert_eq!(asked, Ok(Endpoint::new(to, 80))),
                1 => assert_eq!(asked, Ok(Endpoint::new(to, 53))),
                _ => assert_eq!(asked, Err(OriginalDstError::NotTranslated)),
            }
        }
    }
}
