//! UDP and protocols without ports.

use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Scenario};

use crate::STATES;

fn udp(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();

    let mut s = Scenario::new("udp", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    s.check();
    s.again(u, Body::Udp(0));
    s.answer(u, Body::Udp(300));
    s.check();
    s.again(u, Body::Udp(20));
    s.answer(u, Body::Udp(1));
    s.across(Server, 53, 4001, Body::Udp(9));
    all.push(s);

    let mut s = Scenario::new("udp-stream", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    s.answer(u, Body::Udp(20));
    s.wait(2300);
    s.again(u, Body::Udp(20));
    s.check();
    s.answer(u, Body::Udp(20));
    let one = s.across(Client, 4002, 53, Body::Udp(20));
    s.wait(2300);
    s.again(one, Body::Udp(20));
    s.check();
    s.answer(one, Body::Udp(20));
    s.check();
    s.again(one, Body::Udp(20));
    all.push(s);

    let mut s = Scenario::new("udp-timeout", v6, STATES).with("udp_timeout", 1);
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    s.wait(1300);
    // An answer that comes too late begins a connection of its own.
    s.answer(u, Body::Udp(20));
    s.check();
    s.again(u, Body::Udp(20));
    all.push(s);

    let mut s = Scenario::new("udp-stream-timeout", v6, STATES).with("udp_timeout_stream", 1).with("udp_timeout", 10);
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    s.answer(u, Body::Udp(20));
    s.wait(2300);
    s.again(u, Body::Udp(20));
    s.wait(1300);
    s.answer(u, Body::Udp(20));
    all.push(s);

    let mut s = Scenario::new("udp-malformed", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    let good = Body::Udp(20);
    s.again(u, Body::Broken(Box::new(good.clone()), 9));
    s.answer(u, Body::Broken(Box::new(good.clone()), 9));
    s.again(u, Body::Cut(Box::new(good.clone()), 4));
    s.again(u, Body::Cut(Box::new(good), 20));
    s.again(u, Body::UdpUnsummed(20));
    s.answer(u, Body::UdpUnsummed(20));
    all.push(s);
    all
}

fn others(v6: bool) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut s = Scenario::new("generic", v6, STATES);
    for protocol in [50, 103, 253] {
        let a = s.send(
            Client,
            (s.node(Client), 0),
            (s.node(Server), 0),
            Body::Raw(protocol, vec![0x20, 0, 0x88, 0xb, 1, 2, 3, 4, 5, 6, 7, 8]),
        );
        s.answer(a, Body::Raw(protocol, vec![0x20, 0, 0x88, 0xb, 9, 9, 9, 9]));
        s.again(a, Body::Raw(protocol, vec![0; 30]));
    }
    s.check();
    all.push(s);

    // Version 0, with and without a key; version 1, whose call identifiers are its ports; version 1 of another kind.
    let mut s = Scenario::new("gre", v6, STATES).with("gre_timeout", 20).with("gre_timeout_stream", 1);
    let plain = |data: u8| Body::Raw(47, vec![0, 0, 8, 0, data, data]);
    let call = |id: u8, kind: u8| Body::Raw(47, vec![0x20, 1, 0x88, kind, 0, 4, 0, id, 1, 2, 3, 4]);
    let (c, d) = ((s.node(Client), 0), (s.node(Server), 0));
    let g = s.send(Client, c, d, plain(1));
    s.again(g, Body::Raw(47, vec![0x20, 0, 8, 0, 0, 0, 0, 7]));
    s.check();
    s.answer(g, plain(2));
    s.check();
    s.again(g, plain(3));
    for (id, kind) in [(5, 0x0b), (6, 0x0b), (7, 0x0c)] {
        let one = s.send(Client, c, d, call(id, kind));
        s.answer(one, call(id, kind));
        s.again(one, call(id, kind));
    }
    s.send(Client, c, d, Body::Raw(47, vec![0, 1, 0x88, 0x0b]));
    s.check();
    s.wait(1300);
    s.answer(g, plain(4));
    all.push(s);

    let mut s = Scenario::new("pieces", v6, STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(1000));
    s.ip(|ip| ip.pieces = Some(400));
    s.answer(u, Body::Udp(900));
    s.ip(|ip| ip.pieces = Some(512));
    s.across(Client, 33, 0, s.ping(1));
    s.ip(|ip| ip.pieces = Some(16));
    all.push(s);
    all
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        all.extend(udp(v6));
        all.extend(others(v6));
    }
    let mut s = Scenario::v4("ip-options", STATES);
    let u = s.across(Client, 4000, 53, Body::Udp(20));
    s.ip(|ip| ip.options = vec![1, 1, 1, 0]);
    s.answer(u, Body::Udp(20));
    s.ip(|ip| ip.options = vec![0x94, 4, 0, 0]);
    all.push(s);
    let mut s = Scenario::v6("extension-headers", STATES);
    for (i, number) in [0, 60, 43].into_iter().enumerate() {
        let header = if number == 43 { vec![0, 0, 4, 0, 0, 0, 0, 0] } else { vec![0, 0, 1, 4, 0, 0, 0, 0] };
        let u = s.across(Client, 4000 + i as u16, 53, Body::Udp(20));
        s.ip(|ip| ip.extensions = vec![(number, header.clone())]);
        s.answer(u, Body::Udp(20));
        s.ip(|ip| ip.extensions = vec![(number, header.clone())]);
        s.again(u, Body::Udp(7));
    }
    s.across(Client, 4009, 80, s.syn(1));
    s.ip(|ip| ip.extensions = vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0]), (60, vec![0, 0, 1, 4, 0, 0, 0, 0])]);
    all.push(s);
    for v6 in [false, true] {
        let mut s = Scenario::new("hop-limit", v6, STATES);
        for ttl in [1, 2, 255] {
            let u = s.across(Client, 4000 + u16::from(ttl), 53, Body::Udp(20));
            s.ip(|ip| ip.ttl = ttl);
            s.answer(u, Body::Udp(20));
        }
        s.across(Client, 4999, 80, s.syn(1));
        s.ip(|ip| ip.ttl = 1);
        s.to(Client, 5, s.router(Client), 0, s.ping(1));
        s.ip(|ip| ip.ttl = 1);
        s.across(Client, 5, 0, s.ping(1));
        s.ip(|ip| ip.tos = 0x28);
        all.push(s);
    }
    all
}
