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
    }
    all
}
