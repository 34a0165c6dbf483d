//! Address translation.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Quote, Scenario, Side, Talk, beyond, elsewhere, node, router};
use hibernet_tests::wire::flags::{ACK, RST};

use crate::{STATES, with_states};

/// An address as it stands in a rule before a port.
fn colon(a: core::net::IpAddr, ports: &str) -> String {
    if a.is_ipv6() { format!("[{a}]:{ports}") } else { format!("{a}:{ports}") }
}

fn nat(name: &str, v6: bool, rules: &str) -> Scenario {
    let vip = elsewhere(1, v6);
    let text = rules
        .replace("{vip}", &vip.to_string())
        .replace("{c}", &node(Client, v6).to_string())
        .replace("{s}", &node(Server, v6).to_string())
        .replace("{bc}", &beyond(Client, v6).to_string())
        .replace("{rc}", &router(Client, v6).to_string())
        .replace("{rs}", &router(Server, v6).to_string());
    Scenario::new(name, v6, &with_states(&format!("*nat\n{text}\nCOMMIT\n")))
}

/// Everything that can happen to a translated connection: TCP, UDP and echo to `dst`, answers, errors both ways.
fn exercise(s: &mut Scenario, from: Side, dst: core::net::IpAddr, dport: u16) {
    let mut t = Talk::to(s, from, 40_000, dst, dport).scaled([7, 7]);
    let first = t.open(s);
    t.data(s, 0, 100);
    let reply = t.data(s, 1, 50);
    t.ack(s, 0);
    s.error(node(from.other(), s.v6), first, s.time_exceeded(), Some(8));
    s.error(beyond(from.other(), s.v6), first, s.port_unreachable(), None);
    s.error(node(from, s.v6), reply, s.too_big(), Some(20));
    s.error(node(from, s.v6), reply, s.too_big(), None);
    t.close(s, 1);

    let u = s.to(from, 4000, dst, dport, Body::Udp(20));
    let r = s.answer(u, Body::Udp(30));
    s.error(node(from.other(), s.v6), u, s.port_unreachable(), None);
    s.error(node(from, s.v6), r, s.port_unreachable(), Some(8));
    if !s.v6 {
        s.again(u, Body::UdpUnsummed(21));
        s.answer(u, Body::UdpUnsummed(1));
    }

    let p = s.to(from, 77, dst, 0, s.ping(1));
    let r = s.answer(p, s.pong(1));
    s.error(node(from.other(), s.v6), p, s.time_exceeded(), None);
    s.error(node(from, s.v6), r, s.time_exceeded(), Some(8));
    s.again(p, s.ping(2));
    s.check();
}

fn kinds(v6: bool) -> Vec<Scenario> {
    let port = |a, p: &str| colon(a, p);
    let s = node(Server, v6);
    let rs = router(Server, v6);
    let texts: Vec<(&str, String)> = vec![
        ("dnat-address", "-A PREROUTING -d {vip} -j DNAT --to-destination {s}".into()),
        ("dnat-port", format!("-A PREROUTING -d {{vip}} -p tcp -j DNAT --to-destination {0}\n-A PREROUTING -d {{vip}} -p udp -j DNAT --to-destination {0}\n-A PREROUTING -d {{vip}} -j DNAT --to-destination {{s}}", port(s, "8080"))),
        ("dnat-port-only", "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination :8081\n-A PREROUTING -p udp --dport 80 -j DNAT --to-destination :8082\n-A PREROUTING -d {vip} -j DNAT --to-destination {s}".into()),
        ("snat-address", "-A POSTROUTING -s {c} -o tap1 -j SNAT --to-source {vip}".into()),
        ("snat-own-address", "-A POSTROUTING -o tap1 -j SNAT --to-source {rs}".into()),
        ("snat-port", format!("-A POSTROUTING -o tap1 -p tcp -j SNAT --to-source {0}\n-A POSTROUTING -o tap1 -p udp -j SNAT --to-source {0}", port(rs, "1234"))),
        ("masquerade", "-A POSTROUTING -o tap1 -j MASQUERADE".into()),
        ("masquerade-port", "-A POSTROUTING -o tap1 -p tcp -j MASQUERADE --to-ports 2000\n-A POSTROUTING -o tap1 -p udp -j MASQUERADE --to-ports 2001".into()),
        ("twice", "-A PREROUTING -d {vip} -j DNAT --to-destination {s}\n-A POSTROUTING -d {s} -j MASQUERADE".into()),
        ("random", "-A POSTROUTING -o tap1 -j MASQUERADE --random".into()),
        ("random-fully", "-A POSTROUTING -o tap1 -j SNAT --to-source {rs} --random-fully".into()),
        ("snat-port-range", format!("-A POSTROUTING -o tap1 -p tcp -j SNAT --to-source {0}\n-A POSTROUTING -o tap1 -p udp -j SNAT --to-source {0}", port(rs, "3000-3999"))),
    ];
    let mut all = Vec::new();
    for (name, text) in texts {
        let mut s = nat(&format!("nat-{name}"), v6, &text);
        let dst = if name != "dnat-port-only" && text.contains("-A PREROUTING") { elsewhere(1, v6) } else { node(Server, v6) };
        exercise(&mut s, Client, dst, 80);
        all.push(s);
    }

    let mut s = nat(
        "nat-netmap",
        v6,
        &if v6 {
            "-A PREROUTING -d 2001:db8::/64 -j NETMAP --to fd68:6962:6e65:7401::/64".to_owned()
        } else {
            "-A PREROUTING -d 203.0.113.0/24 -j NETMAP --to 10.0.3.0/24".to_owned()
        },
    );
    let dst = if v6 { "2001:db8::15".parse() } else { "203.0.113.15".parse() }.expect("an address");
    exercise(&mut s, Client, dst, 80);
    all.push(s);

    let mut s = nat(
        "nat-netmap-source",
        v6,
        &if v6 {
            "-A POSTROUTING -o tap1 -j NETMAP --to 2001:db8::/64".to_owned()
        } else {
            "-A POSTROUTING -o tap1 -j NETMAP --to 203.0.113.0/24".to_owned()
        },
    );
    exercise(&mut s, Client, node(Server, v6), 80);
    all.push(s);

    let mut s = nat(
        "nat-dnat-port-range-base",
        v6,
        &format!("-A PREROUTING -p tcp --dport 9000:9010 -j DNAT --to-destination {}", port(node(Server, v6), "8000-8010/9000")),
    );
    for dport in [9000, 9004, 9010, 9011] {
        let mut t = Talk::to(&s, Client, 40_000 + dport, router(Client, v6), dport);
        t.open(&mut s);
    }
    all.push(s);

    // Over IPv6 the kernel sends a redirect as well, and cannot be told not to.
    if v6 {
        return all;
    }
    let mut s = nat(
        "nat-redirect",
        v6,
        "-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080\n-A PREROUTING -p udp --dport 80 -j REDIRECT --to-ports 8081\n-A PREROUTING -i tap1 -j REDIRECT",
    );
    let syn = s.across(Client, 40_000, 80, s.syn(1));
    s.again(syn, s.tcp(ACK, 2, 2, 10));
    s.across(Client, 4000, 80, Body::Udp(20));
    s.across(Server, 4000, 81, Body::Udp(20));
    s.across(Server, 7, 0, s.ping(1));
    s.across(Server, 7, 0, s.ping(2));
    all.push(s);

    let mut s =
        nat("nat-hairpin", v6, "-A PREROUTING -d {vip} -j DNAT --to-destination {c}\n-A POSTROUTING -s {c} -d {c} -j MASQUERADE");
    let mut t = Talk::to(&s, Client, 40_000, elsewhere(1, v6), 80);
    t.open(&mut s);
    t.data(&mut s, 0, 10);
    let u = s.to(Client, 4000, elsewhere(1, v6), 80, Body::Udp(20));
    s.answer(u, Body::Udp(20));
    s.error(s.node(Client), u, s.port_unreachable(), None);
    all.push(s);
    all
}

/// Two connections that would look the same to the other end.
fn clashes(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();

    // Neither has a rule of its own for the source: only the null binding can move a port.
    let mut s = nat("nat-clash-null-binding", v6, "-A PREROUTING -d {vip} -j DNAT --to-destination {s}");
    for sport in [40_000, 500, 700, 2000] {
        let mut t = Talk::new(&s, Client, sport, 80);
        t.open(&mut s);
        let mut t = Talk::to(&s, Client, sport, elsewhere(1, v6), 80);
        t.open(&mut s);
        t.data(&mut s, 1, 10);
        let u = s.across(Client, sport, 53, Body::Udp(20));
        s.answer(u, Body::Udp(10));
        let u = s.to(Client, sport, elsewhere(1, v6), 53, Body::Udp(20));
        s.answer(u, Body::Udp(10));
        s.error(s.node(Server), u, s.port_unreachable(), None);
        let p = s.across(Client, sport, 0, s.ping(1));
        s.answer(p, s.pong(1));
        let p = s.to(Client, sport, elsewhere(1, v6), 0, s.ping(1));
        s.answer(p, s.pong(1));
    }
    all.push(s);

    let mut s = nat(
        "nat-clash-snat",
        v6,
        "-A POSTROUTING -o tap1 -p tcp -j SNAT --to-source {rs}\n-A PREROUTING -d {vip} -j DNAT --to-destination {s}",
    );
    for dst in [node(Server, v6), elsewhere(1, v6)] {
        let mut t = Talk::to(&s, Client, 40_000, dst, 80);
        t.open(&mut s);
        t.data(&mut s, 0, 10);
        t.data(&mut s, 1, 10);
    }
    all.push(s);

    let mut s = nat(
        "nat-exhausted",
        v6,
        &format!(
            "-A POSTROUTING -o tap1 -p udp -j SNAT --to-source {}\n-A PREROUTING -d {{vip}} -j DNAT --to-destination {{s}}",
            colon(router(Server, v6), "3000-3000")
        ),
    );
    s.across(Client, 4000, 53, Body::Udp(20));
    s.across(Client, 4001, 53, Body::Udp(20));
    s.across(Client, 4002, 54, Body::Udp(20));
    all.push(s);

    // The same source keeps its mapping towards another destination.
    let mut s = nat(
        "nat-same-source",
        v6,
        "-A POSTROUTING -o tap1 -j MASQUERADE --random\n-A PREROUTING -d {vip} -j DNAT --to-destination {s}",
    );
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    s.answer(u, Body::Udp(20));
    s.across(Client, 4000, 54, Body::Udp(20));
    s.across(Client, 4000, 55, Body::Udp(20));
    all.push(s);

    // The identifier that the first translation has chosen is what the second one goes by.
    if !v6 {
        let mut s = nat(
            "nat-two-queries",
            v6,
            "-A PREROUTING -d {vip} -j DNAT --to-destination {s} --random\n-A POSTROUTING -o tap1 -j MASQUERADE",
        );
        for ty in [15, 8, 13, 17] {
            s.to(Client, 700, elsewhere(1, v6), 0, Body::Icmp { ty, code: 0, seq: 1, data: 12 });
        }
        all.push(s);
    }
    all
}

/// Which address of a range: always the same for a source and a destination, or with `--persistent` for a source.
fn ranges(v6: bool) -> Vec<Scenario> {
    let (range, net) = match v6 {
        true => ("2001:db8::40-2001:db8::72", "fd68:6962:6e65:7400::"),
        false => ("203.0.113.64-203.0.113.114", "10.0.2."),
    };
    let mut all = Vec::new();
    for (name, rules) in [
        ("range", format!("-A POSTROUTING -o tap1 -j SNAT --to-source {range}")),
        ("range-persistent", format!("-A POSTROUTING -o tap1 -j SNAT --to-source {range} --persistent")),
        (
            "range-zone",
            format!("-A POSTROUTING -o tap1 -j SNAT --to-source {range}\nCOMMIT\n*raw\n-A PREROUTING -j CT --zone 300"),
        ),
    ] {
        let mut s = nat(&format!("nat-{name}"), v6, &rules);
        for n in 20..50 {
            let src = format!("{net}{n}").parse().expect("an address");
            for dst in [node(Server, v6), beyond(Server, v6)] {
                s.send(Client, (src, 4000), (dst, 53), Body::Udp(20));
                s.send(Client, (src, 4000), (dst, 80), s.syn(1));
                s.send(Client, (src, 4000), (dst, 0), s.ping(1));
            }
        }
        s.check();
        exercise(&mut s, Client, node(Server, v6), 80);
        all.push(s);
    }
    all
}

fn special(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();

    let mut s = nat("nat-invalid-bypasses", v6, "-A PREROUTING -d {rc} -p tcp --dport 80 -j DNAT --to-destination {s}");
    let mut t = Talk::to(&s, Client, 40_000, router(Client, v6), 80);
    let first = t.open(&mut s);
    t.data(&mut s, 0, 10);
    t.ack(&mut s, 1);
    s.again(first, s.tcp(ACK, t.next[0].wrapping_add(5_000_000), t.next[1], 10));
    s.answer(first, s.tcp(ACK, t.next[1].wrapping_add(5_000_000), t.next[0], 10));
    s.answer(first, s.tcp(RST, t.next[1].wrapping_sub(5_000_000), 0, 0));
    t.data(&mut s, 0, 10);
    all.push(s);

    let mut s = nat(
        "nat-input-output",
        v6,
        "-A INPUT -p udp -j SNAT --to-source {bc}\n-A OUTPUT -p udp -j DNAT --to-destination {s}\n-A OUTPUT -p icmp -j ACCEPT\n-A POSTROUTING -o tap0 -j SNAT --to-source {rs}",
    );
    s.to(Client, 4000, router(Client, v6), 9, Body::Udp(20));
    s.to(Client, 4000, router(Client, v6), 9, Body::Udp(20));
    s.to(Client, 40_000, router(Client, v6), 9, s.syn(1));
    s.to(Client, 5, router(Client, v6), 0, s.ping(1));
    all.push(s);

    let mut s = nat(
        "nat-only-first-packets",
        v6,
        "-A PREROUTING -p udp --dport 53 -j DNAT --to-destination {s}\n-A POSTROUTING -p udp -j MASQUERADE",
    );
    let u = s.to(Client, 4000, elsewhere(3, v6), 53, Body::Udp(20));
    for _ in 0..3 {
        s.again(u, Body::Udp(20));
        s.answer(u, Body::Udp(20));
    }
    s.answer(u, Body::Udp(20));
    // The server's own packet to where replies go, from another port: no reply.
    s.to(Server, 54, router(Server, v6), 4000, Body::Udp(9));
    all.push(s);

    let mut s = nat(
        "nat-errors-of-the-router",
        v6,
        "-A PREROUTING -d {vip} -j DNAT --to-destination {s}\n-A POSTROUTING -o tap1 -j MASQUERADE",
    );
    let u = s.to(Client, 4000, elsewhere(1, v6), 53, Body::Udp(20));
    s.answer(u, Body::Udp(20));
    s.again(u, Body::Udp(20));
    s.ip(|ip| ip.ttl = 1);
    s.answer(u, Body::Udp(20));
    s.ip(|ip| ip.ttl = 1);
    let (ty, code) = s.port_unreachable();
    s.to(Server, 0, router(Server, v6), 0, Body::Error { ty, code, rest: 0, quote: Quote::Seen(u), len: None });
    all.push(s);

    let mut s =
        nat("nat-pieces", v6, "-A PREROUTING -d {vip} -j DNAT --to-destination {s}\n-A POSTROUTING -o tap1 -j MASQUERADE");
    let u = s.to(Client, 4000, elsewhere(1, v6), 53, Body::Udp(1000));
    s.ip(|ip| ip.pieces = Some(400));
    s.answer(u, Body::Udp(1000));
    s.ip(|ip| ip.pieces = Some(400));
    all.push(s);

    // Protocols without ports: only addresses can be translated.
    let mut s = nat(
        "nat-without-ports",
        v6,
        "-A PREROUTING -d {vip} -j DNAT --to-destination {s}\n-A POSTROUTING -o tap1 -j MASQUERADE --random-fully",
    );
    let tunnel = vec![0, 0, 8, 0, 1, 1, 1, 1];
    let call = vec![0x20, 1, 0x88, 0x0b, 0, 4, 0, 9, 1, 2, 3, 4];
    for (protocol, bytes) in [(47, tunnel), (47, call), (50, vec![3; 20]), (253, vec![1; 9])] {
        for dst in [elsewhere(1, v6), node(Server, v6)] {
            let g = s.send(Client, (s.node(Client), 0), (dst, 0), Body::Raw(protocol, bytes.clone()));
            s.answer(g, Body::Raw(protocol, bytes.clone()));
            s.error(s.node(Server), g, s.time_exceeded(), None);
        }
    }
    all.push(s);

    let text = format!(
        "*raw\n-A PREROUTING -p udp --dport 53 -j CT --notrack\nCOMMIT\n*nat\n-A PREROUTING -p udp -j DNAT --to-destination {}\nCOMMIT\n{STATES}",
        node(Server, v6)
    );
    let mut s = Scenario::new("nat-untracked", v6, &text);
    s.across(Client, 4000, 53, Body::Udp(20));
    s.to(Client, 4000, elsewhere(1, v6), 54, Body::Udp(20));
    all.push(s);
    all
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        all.extend(kinds(v6));
        all.extend(clashes(v6));
        all.extend(ranges(v6));
        all.extend(special(v6));
    }
    all
}
