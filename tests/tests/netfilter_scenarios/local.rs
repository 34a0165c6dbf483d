//! Packets to the router itself, and what it answers.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Quote, Scenario, elsewhere, router, second};
use hibernet_tests::wire::flags::{ACK, FIN, PSH, RST, SYN};

use crate::STATES;

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        let mut s = Scenario::new("local", v6, STATES);
        for (i, dst) in [router(Client, v6), router(Server, v6), second(v6)].into_iter().enumerate() {
            let i = i as u16;
            s.to(Client, 10 + i, dst, 0, s.ping(1));
            s.to(Client, 10 + i, dst, 0, s.ping(2));
            s.to(Client, 10 + i, dst, 0, s.pong(1));
            s.to(Client, 4000, dst, 9, Body::Udp(20));
            s.to(Client, 4000, dst, 9, Body::Udp(1400));
            for (j, flags) in [SYN, ACK, PSH | ACK, FIN | ACK, SYN | ACK, RST, RST | ACK, FIN, 0].into_iter().enumerate() {
                let body = s.tcp(flags, 100, 200, if flags & PSH != 0 { 30 } else { 0 });
                s.to(Client, 5000 + 20 * i + j as u16, dst, 80, body);
            }
        }
        s.check();
        all.push(s);

        let mut s = Scenario::new("local-wrong", v6, STATES);
        let me = router(Client, v6);
        let wrong = |b: Body| Body::Broken(Box::new(b), 77);
        s.to(Client, 10, me, 0, wrong(s.ping(1)));
        s.to(Client, 4000, me, 9, wrong(Body::Udp(20)));
        s.to(Client, 4000, me, 80, wrong(s.syn(1)));
        s.to(Client, 4000, me, 9, Body::Cut(Box::new(Body::Udp(20)), 5));
        let u = s.to(Client, 4000, me, 9, Body::Udp(20));
        let (ty, code) = s.port_unreachable();
        // Errors to the router: about what it never sent, and about what it did.
        s.to(Server, 0, router(Server, v6), 0, Body::Error { ty, code, rest: 0, quote: Quote::Sent(u), len: None });
        s.to(Client, 0, me, 0, Body::Error { ty, code, rest: 0, quote: Quote::Seen(u), len: None });
        s.to(Client, 0, me, 0, Body::Raw(253, vec![1; 10]));
        all.push(s);

        let mut s = Scenario::new(
            "local-policy",
            v6,
            "*filter\n:INPUT DROP\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A INPUT -p udp -j ACCEPT\n-A OUTPUT -m conntrack --ctstate NEW -j DROP\n-A OUTPUT -m conntrack --ctstate RELATED\nCOMMIT\n",
        );
        s.to(Client, 10, me, 0, s.ping(1));
        s.to(Client, 4000, me, 9, Body::Udp(20));
        s.to(Client, 4000, me, 80, s.syn(1));
        all.push(s);

        let mut s = Scenario::new(
            "local-output-tables",
            v6,
            "*raw\n-A OUTPUT\n-A PREROUTING -p udp -j CT --notrack\nCOMMIT\n*mangle\n-A OUTPUT\n-A INPUT\n-A POSTROUTING -o tap0\n-A POSTROUTING -o tap1\nCOMMIT\n*nat\n-A OUTPUT\n-A INPUT\n-A POSTROUTING\nCOMMIT\n*security\n-A INPUT\n-A OUTPUT\nCOMMIT\n*filter\n-A INPUT -m conntrack --ctstate NEW\nCOMMIT\n",
        );
        s.to(Client, 10, me, 0, s.ping(1));
        s.to(Client, 4000, me, 9, Body::Udp(20));
        s.to(Client, 4000, me, 80, s.syn(1));
        let u = s.across(Client, 4000, 9, Body::Udp(20));
        s.ip(|ip| ip.ttl = 1);
        let _ = u;
        all.push(s);

        let mut s = Scenario::new(
            "local-redirected",
            v6,
            &format!(
                "*nat\n-A PREROUTING -d {} -j REDIRECT\n-A PREROUTING -p udp --dport 53 -j DNAT --to-destination {}\nCOMMIT\n{STATES}",
                elsewhere(1, v6),
                router(Server, v6)
            ),
        );
        s.to(Client, 10, elsewhere(1, v6), 0, s.ping(1));
        s.to(Client, 10, elsewhere(1, v6), 0, s.ping(2));
        s.to(Client, 4000, elsewhere(1, v6), 9, Body::Udp(20));
        s.to(Client, 4000, elsewhere(1, v6), 80, s.syn(1));
        s.across(Client, 4000, 53, Body::Udp(20));
        all.push(s);
        all.extend([looped(v6, "local-looped", ""), looped(v6, "local-looped-dropped", "-A INPUT -i lo -j DROP\n")]);
    }
    all
}

/// What the router sends of its own about packets that are not tracked, and what translation turns to the router itself: it leaves by `lo`, and
/// comes back.
fn looped(v6: bool, name: &str, filter: &str) -> Scenario {
    let (icmp, addr) = if v6 { ("ipv6-icmp", router(Server, v6)) } else { ("icmp", router(Server, v6)) };
    let mut rules =
        "*raw\n-A PREROUTING -i tap0 -j CT --notrack\n-A PREROUTING -i lo -j CT --notrack\n-A PREROUTING -i lo\n".to_owned();
    rules +=
        "-A PREROUTING -i lo -m rpfilter\n-A PREROUTING ! -i tap+ -m mark --mark 7\n-A OUTPUT -o lo\n-A OUTPUT -o tap0\nCOMMIT\n";
    rules += "*mangle\n-A PREROUTING -i lo -m addrtype --dst-type LOCAL\n-A PREROUTING -i lo -m addrtype --dst-type LOCAL --limit-iface-in\n";
    rules += "-A PREROUTING -i lo -m pkttype --pkt-type unicast\n-A PREROUTING -i lo -j MARK --or-mark 8\n";
    rules += "-A OUTPUT -o tap0 -j MARK --set-mark 7\n-A OUTPUT -o lo\n-A POSTROUTING -o lo\n-A INPUT -i lo -m mark --mark 15\nCOMMIT\n";
    rules +=
        &format!("*nat\n-A PREROUTING -i tap1 -j DNAT --to-destination {addr}\n-A PREROUTING -i lo\n-A OUTPUT\n-A INPUT -i lo\n");
    rules += "-A POSTROUTING -o lo\nCOMMIT\n";
    let mut last =
        "-A FORWARD -i tap0 -p tcp -j REJECT --reject-with tcp-reset\n-A FORWARD -i tap0 -p udp --dport 54 -j REJECT\n"
            .to_owned();
    last += &format!("-A OUTPUT -o tap0 -p {icmp}\n-A OUTPUT -o lo\n-A INPUT -i lo -m conntrack --ctstate RELATED\n");
    last += &format!("-A INPUT -i lo -m conntrack --ctstate ESTABLISHED\n{filter}COMMIT\n");
    rules += &STATES.replace("COMMIT\n", &last);
    let mut s = Scenario::new(name, v6, &rules);
    for port in [53, 54] {
        s.across(Server, port, 40_000, Body::Udp(20));
    }
    s.across(Server, 80, 40_000, s.syn(1));
    s.across(Client, 40_000, 53, Body::Udp(20));
    s.ip(|ip| ip.ttl = 1);
    s.check();
    s.across(Client, 40_000, 54, Body::Udp(20));
    s.check();
    s.across(Client, 40_000, 80, s.tcp(ACK, 100, 200, 0));
    s.check();
    // Not looped: of no connection that is translated.
    s.across(Client, 40_001, 54, Body::Udp(20));
    s
}
