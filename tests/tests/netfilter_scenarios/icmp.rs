//! ICMP and ICMPv6: queries, errors and what they quote.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Ends, IpFields, Packet, Quote, Scenario, Step, Talk, beyond};
use hibernet_tests::wire::flags::RST;

use crate::STATES;

/// Errors of both families, with those that are none.
fn kinds(v6: bool) -> Vec<(u8, u8)> {
    if v6 {
        vec![(1, 0), (1, 1), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 1), (5, 0), (127, 0)]
    } else {
        vec![(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (4, 0), (5, 1), (11, 0), (11, 1), (12, 0), (6, 0), (9, 0), (40, 0)]
    }
}

fn queries() -> Vec<Scenario> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        let mut s = Scenario::new("echo", v6, STATES);
        let p = s.across(Client, 77, 0, s.ping(1));
        s.check();
        s.answer(p, s.pong(1));
        s.check();
        s.answer(p, s.pong(1));
        s.again(p, s.ping(2));
        s.across(Server, 78, 0, s.pong(1));
        s.across(Server, 0, 0, s.ping(1));
        s.across(Client, 77, 0, Body::Broken(Box::new(s.ping(3)), 1));
        s.across(Client, 79, 0, Body::Broken(Box::new(s.ping(3)), 1));
        all.push(s);

        let mut s = Scenario::new("echo-timeout", v6, STATES).with(if v6 { "icmpv6_timeout" } else { "icmp_timeout" }, 1);
        let p = s.across(Client, 77, 0, s.ping(1));
        s.wait(1300);
        s.answer(p, s.pong(1));
        all.push(s);
    }
    let mut s = Scenario::v4("icmp-pairs", STATES);
    for (ask, tell) in [(13, 14), (15, 16), (17, 18), (8, 14), (10, 9)] {
        let body = |ty| Body::Icmp { ty, code: 0, seq: 1, data: 12 };
        let p = s.across(Client, u16::from(ask), 0, body(ask));
        s.answer(p, body(tell));
        s.again(p, body(ask));
    }
    s.across(Client, 9, 0, Body::Icmp { ty: 8, code: 3, seq: 1, data: 12 });
    all.push(s);

    let mut s = Scenario::v6("icmpv6-untracked", STATES);
    for ty in [130, 131, 132, 133, 134, 135, 136, 137, 143, 151, 152, 153, 144, 200] {
        s.across(Client, 5, 0, Body::Icmp { ty, code: 0, seq: 0, data: 20 });
    }
    s.across(Client, 5, 0, s.ping(1));
    all.push(s);
    all
}

/// Errors of every kind about a connection, from the other end and from a router on the way.
fn errors(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();

    let mut s = Scenario::new("errors", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(40));
    let r = s.answer(u, Body::Udp(50));
    for kind in kinds(v6) {
        s.error(s.node(Server), u, kind, None);
        s.error(beyond(Server, v6), u, kind, Some(8));
        s.error(s.node(Client), r, kind, Some(8));
    }
    s.check();
    all.push(s);

    let mut s = Scenario::new("errors-of-all-protocols", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(40));
    let mut t = Talk::new(&s, Client, 4001, 80);
    let syn = t.syn(&mut s);
    let p = s.across(Client, 9, 0, s.ping(1));
    let g = s.send(Client, (s.node(Client), 0), (s.node(Server), 0), Body::Raw(50, vec![0; 20]));
    for about in [u, syn, p, g] {
        for len in [None, Some(20), Some(8), Some(7), Some(4), Some(3), Some(0)] {
            s.error(s.node(Server), about, s.port_unreachable(), len);
        }
        s.error(s.node(Server), about, s.time_exceeded(), None);
        s.error(s.node(Server), about, s.too_big(), None);
    }
    s.check();
    all.push(s);

    let mut s = Scenario::new("errors-unrelated", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(40));
    let (ty, code) = s.port_unreachable();
    let error = |quote| Body::Error { ty, code, rest: 0, quote, len: None };
    // About nothing that is known, to somebody else than who sent it, with a wrong checksum, in the wrong direction.
    let nothing = s.across(Client, 4002, 53, s.tcp(RST, 1, 0, 0));
    s.error(s.node(Server), nothing, (ty, code), None);
    s.to(Server, 0, s.router(Server), 0, error(Quote::Seen(u)));
    s.to(Server, 0, s.node(Client), 0, Body::Broken(Box::new(error(Quote::Seen(u))), 1));
    s.to(Client, 0, s.node(Server), 0, error(Quote::Sent(u)));
    s.to(Server, 0, s.node(Client), 0, Body::Cut(Box::new(error(Quote::Seen(u))), 44));
    // An error about an error.
    let e = s.error(s.node(Server), u, (ty, code), None);
    s.error(s.node(Client), e, (ty, code), None);
    s.check();
    all.push(s);

    let mut s = Scenario::new("errors-about-the-first-packet", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(40));
    s.error(s.node(Server), u, s.port_unreachable(), None);
    s.check();
    s.error(s.node(Server), u, s.port_unreachable(), None);
    s.push(Step::Send(Packet {
        from: Client,
        ends: Ends::Again(u),
        ip: IpFields { ttl: 1, ..IpFields::default() },
        body: Body::Udp(40),
    }));
    all.push(s);
    all
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    [queries(), errors(false), errors(true)].concat()
}
