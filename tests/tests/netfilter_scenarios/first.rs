//! The ordinary ways of packets.

use hibernet_tests::netfilter::Side::Client;
use hibernet_tests::netfilter::{Body, Scenario, Talk};

/// Forwarded and local TCP, UDP and echo.
pub fn all() -> Vec<Scenario> {
    let rules = "*filter\n-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n";
    let mut all = Vec::new();
    for v6 in [false, true] {
        let mut s = Scenario::new("ordinary", v6, rules);
        let mut t = Talk::new(&s, Client, 40000, 80).scaled([7, 9]);
        t.open(&mut s);
        t.data(&mut s, 0, 100);
        t.ack(&mut s, 1);
        t.close(&mut s, 0);
        let u = s.across(Client, 4000, 53, Body::Udp(20));
        s.answer(u, Body::Udp(30));
        s.to(Client, 77, s.router(Client), 0, s.ping(1));
        s.to(Client, 4000, s.router(Client), 9, Body::Udp(20));
        s.to(Client, 4000, s.router(Client), 9, s.syn(10));
        all.push(s);
    }
    all
}
