//! Rules that count: what connections carried, how many there are, how much comes in a time.

use super::remembered::{scenario, traffic};
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::netfilter::{Body, Scenario, Talk};
use hibernet_tests::wire::flags::{ACK, RST};

fn connbytes(v6: bool) -> Vec<Scenario> {
    let mut rules = String::new();
    for what in ["packets", "bytes", "avgpkt"] {
        for dir in ["original", "reply", "both"] {
            for range in ["1", "2:3", "40:120", "100:", ":60"] {
                for not in ["", "! "] {
                    rules += &format!(
                        "-A FORWARD -m connbytes {not}--connbytes {range} --connbytes-mode {what} --connbytes-dir {dir}\n"
                    );
                }
            }
        }
    }
    let mut all = scenario("connbytes", v6, "", &rules);
    traffic(&mut all);
    all.check();
    // Errors do not count; nor do repeated SYNs and what is INVALID.
    let syn = all.across(Client, 41_000, 443, all.syn(1000));
    all.again(syn, all.syn(1000));
    let u = all.across(Client, 41_001, 53, Body::Udp(70));
    all.error(all.node(Server), u, all.port_unreachable(), None);
    all.across(Client, 41_002, 53, all.tcp(RST, 5, 0, 0));
    all.across(Client, 41_003, 22, all.tcp(ACK, 5, 6, 10));
    let mut t = Talk::new(&all, Client, 41_004, 80);
    t.open(&mut all);
    t.data(&mut all, 0, 100);
    all.again(syn, all.tcp(ACK, 900_000, 900_000, 10));
    t.data(&mut all, 1, 1000);

    let places = "-A PREROUTING -m connbytes --connbytes 1:1 --connbytes-mode packets --connbytes-dir both\n\
         -A PREROUTING -m connbytes --connbytes 2: --connbytes-mode packets --connbytes-dir both -j MARK --set-mark 1\n\
         -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 700\n\
         -A POSTROUTING -m connbytes --connbytes 64: --connbytes-mode bytes --connbytes-dir original\n\
         -A INPUT -m connbytes --connbytes 1: --connbytes-mode packets --connbytes-dir original\n\
         -A OUTPUT -m connbytes --connbytes 1: --connbytes-mode packets --connbytes-dir reply";
    let mut at = Scenario::new("connbytes-places", v6, &format!("*mangle\n{places}\nCOMMIT\n"));
    traffic(&mut at);
    at.check();
    let ping = at.to(Client, 9, at.router(Client), 0, at.ping(2));
    at.again(ping, at.ping(3));
    at.to(Client, 45_000, at.router(Client), 81, at.syn(7));

    let dropped = "-A FORWARD -p udp -m connbytes --connbytes 2: --connbytes-mode packets --connbytes-dir original -j DROP\n\
         -A FORWARD -m connbytes --connbytes 3: --connbytes-mode packets --connbytes-dir both -j CONNMARK --set-mark 3";
    let dropped = format!("*mangle\n{dropped}\nCOMMIT\n*raw\n-A PREROUTING -p udp --dport 443 -j NOTRACK\nCOMMIT\n");
    let mut dropped = Scenario::new("connbytes-drop", v6, &dropped);
    traffic(&mut dropped);
    vec![all, at, dropped]
}

/// A tick of the kernel's clock passes, so that it looks for connections that are gone.
fn tick(s: &mut Scenario) {
    s.wait(9);
}

fn connlimit(v6: bool) -> Vec<Scenario> {
    let mut rules = String::new();
    for (n, of) in [(0, "--connlimit-above"), (1, "--connlimit-above"), (2, "--connlimit-upto"), (5, "--connlimit-above")] {
        for side in ["", " --connlimit-daddr", " --connlimit-mask 0", " --connlimit-mask {net} --connlimit-saddr"] {
            rules += &format!("-A FORWARD -m connlimit {of} {n}{side}\n");
        }
    }
    let mut all = scenario("connlimit", v6, "", &rules);
    traffic(&mut all);
    for port in 0..4 {
        tick(&mut all);
        all.across(Client, 42_000 + port, 443, all.syn(1000));
    }
    tick(&mut all);
    all.across(Server, 42_000, 443, all.syn(1000));

    let tcp = "-A FORWARD -p tcp --syn -m connlimit --connlimit-above 2 -j REJECT --reject-with tcp-reset";
    let mut limited = scenario("connlimit-syn", v6, "", tcp);
    let mut talks = Vec::new();
    for port in 0..4 {
        let mut t = Talk::new(&limited, Client, 43_000 + port, 80);
        t.open(&mut limited);
        tick(&mut limited);
        talks.push(t);
    }
    // One is over: there is room for another.
    talks[0].fin(&mut limited, 0);
    talks[0].fin(&mut limited, 1);
    for port in 0..3 {
        tick(&mut limited);
        let mut t = Talk::new(&limited, Client, 44_000 + port, 80);
        t.open(&mut limited);
    }
    // A connection that never came to be counts no longer.
    let drop = "-A FORWARD -p udp -m connlimit --connlimit-above 1\n-A FORWARD -p udp -m connlimit --connlimit-above 2\n\
         -A FORWARD -p udp --dport 80 -j DROP";
    let mut dropped = scenario("connlimit-drop", v6, "", drop);
    for (port, dport) in [(1, 80), (2, 53), (3, 80), (4, 53), (5, 53)] {
        dropped.across(Client, 43_000 + port, dport, Body::Udp(10));
        tick(&mut dropped);
    }
    // ASSURED connections that the rule did not see begin.
    let later = "-A FORWARD -p tcp --dport 81 -j RETURN\n-A FORWARD -p tcp --sport 81 -j RETURN\n\
         -A FORWARD -m connlimit --connlimit-above 0 --connlimit-mask 0\n-A FORWARD -m connlimit --connlimit-above 1 --connlimit-mask 0\n\
         -A FORWARD -m connlimit --connlimit-above 2 --connlimit-mask 0";
    let later = format!("-N LATER\n-A FORWARD -j LATER\n{}", later.replace("-A FORWARD", "-A LATER"));
    let later = later
        .replace("--dport 81 -j RETURN", "--dport 81 -m length --length :52 -j RETURN")
        .replace("--sport 81 -j", "--sport 81 -m length --length :52 -j");
    let mut later = scenario("connlimit-later", v6, "", &later.replace(":52", if v6 { ":72" } else { ":52" }));
    let mut talks = Vec::new();
    for port in 0..3 {
        let mut t = Talk::new(&later, Client, 47_000 + port, 81);
        t.open(&mut later);
        talks.push(t);
        tick(&mut later);
    }
    later.across(Client, 47_100, 53, Body::Udp(100));
    for t in &mut talks {
        tick(&mut later);
        t.data(&mut later, 0, 100);
        tick(&mut later);
        t.data(&mut later, 1, 100);
        later.check();
    }
    let own = "-A OUTPUT\n-A OUTPUT -m connlimit --connlimit-above 0 --connlimit-mask 0\n\
         -A OUTPUT -m connlimit --connlimit-above 1 --connlimit-mask 0\n-A OUTPUT";
    let mut own = scenario("connlimit-own", v6, "", own);
    let closed = own.to(Client, 46_000, own.router(Client), 81, own.syn(7));
    tick(&mut own);
    own.check();
    own.across(Client, 46_001, 53, Body::Udp(10));
    tick(&mut own);
    own.across(Client, 46_001, 53, Body::Udp(11));
    own.ip(|ip| ip.ttl = 1);
    own.check();
    tick(&mut own);
    own.across(Client, 46_001, 53, Body::Udp(11));
    own.ip(|ip| ip.ttl = 1);
    own.check();
    own.again(closed, own.syn(7));
    vec![all, limited, dropped, later, own]
}

fn hashlimit(v6: bool) -> Vec<Scenario> {
    let one = |name: &str, rules: &str| {
        let mut s = scenario(name, v6, "", rules);
        traffic(&mut s);
        s
    };
    let mut modes = String::new();
    for (n, mode) in ["srcip", "dstip", "srcport", "dstport", "srcip,dstport", "srcip,dstip,srcport,dstport"].iter().enumerate() {
        for burst in [1, 3] {
            let of = if burst == 1 { "above" } else { "upto" };
            modes += &format!(
                "-A FORWARD -m hashlimit --hashlimit-{of} 1/hour --hashlimit-burst {burst} --hashlimit-mode {mode} --hashlimit-name m{n}-{burst}\n"
            );
        }
    }
    modes += "-A FORWARD -m hashlimit --hashlimit-upto 1/hour --hashlimit-burst 6 --hashlimit-name none\n";
    modes += "-A FORWARD -m hashlimit --hashlimit-upto 1/hour --hashlimit-mode srcip --hashlimit-srcmask {net} --hashlimit-name masked\n";
    modes += "-A FORWARD -m hashlimit --hashlimit-upto 1/hour --hashlimit-mode srcip,dstip --hashlimit-srcmask 0 --hashlimit-dstmask 9 --hashlimit-name zero\n";
    let mut all = vec![one("hashlimit-modes", &modes)];
    all.push(one(
        "hashlimit-shared",
        "-A FORWARD -p udp -m hashlimit --hashlimit-upto 1/hour --hashlimit-burst 4 --hashlimit-mode srcip --hashlimit-name shared-a\n\
         -A FORWARD -p tcp -m hashlimit --hashlimit-above 1/min --hashlimit-burst 9 --hashlimit-mode dstip --hashlimit-name shared-a\n\
         -A FORWARD -m hashlimit --hashlimit-upto 1/hour --hashlimit-burst 2 --hashlimit-mode srcip,srcport --hashlimit-name shared-b -j DROP",
    ));
    all.push(one(
        "hashlimit-bytes",
        "-A FORWARD -m hashlimit --hashlimit-upto 32b/s --hashlimit-mode srcip --hashlimit-name bytes-a\n\
         -A FORWARD -m hashlimit --hashlimit-upto 100b/s --hashlimit-burst 300b --hashlimit-mode srcip --hashlimit-name bytes-b\n\
         -A FORWARD -m hashlimit --hashlimit-above 1kb/s --hashlimit-mode dstip --hashlimit-name bytes-c\n\
         -A FORWARD -m hashlimit --hashlimit-above 64b/s --hashlimit-burst 1kb --hashlimit-mode dstport --hashlimit-name bytes-d",
    ));
    all.push(one(
        "hashlimit-rate",
        "-A FORWARD -m hashlimit --hashlimit-upto 3/hour --hashlimit-rate-match --hashlimit-mode srcip --hashlimit-burst 1 --hashlimit-name rate-a\n\
         -A FORWARD -m hashlimit --hashlimit-above 5/sec --hashlimit-rate-match --hashlimit-rate-interval 30 --hashlimit-mode dstip --hashlimit-name rate-b\n\
         -A FORWARD -m hashlimit --hashlimit-above 100b/s --hashlimit-rate-match --hashlimit-rate-interval 30 --hashlimit-name rate-c\n\
         -A FORWARD -m hashlimit --hashlimit-above 64b/s --hashlimit-burst 256b --hashlimit-rate-match --hashlimit-rate-interval 30 --hashlimit-name rate-d",
    ));
    // Whom the table cannot take is dropped.
    all.push(one(
        "hashlimit-full",
        "-A FORWARD -m hashlimit --hashlimit-upto 1/hour --hashlimit-mode srcport --hashlimit-htable-size 2 --hashlimit-htable-max 2 --hashlimit-name full",
    ));
    // Not how long entries live: the kernel's sweep may wait for as long as its processor sleeps.
    let mut time = scenario(
        "hashlimit-time",
        v6,
        "",
        "-A FORWARD -m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name time-a\n\
         -A FORWARD -m hashlimit --hashlimit-above 60/min --hashlimit-burst 1 --hashlimit-mode dstip --hashlimit-name time-b\n\
         -A FORWARD -m hashlimit --hashlimit-upto 160b/s --hashlimit-name time-c\n\
         -A FORWARD -m hashlimit --hashlimit-upto 1/sec --hashlimit-rate-match --hashlimit-burst 1 --hashlimit-htable-expire 60000 --hashlimit-name time-d",
    );
    for wait in [0, 300, 300, 900, 0, 0, 1_500, 0] {
        time.wait(wait);
        time.across(Client, 5000, 53, Body::Udp(20));
        time.across(Client, 5000, 53, Body::Udp(20));
    }
    all.push(time);
    all
}

pub fn all() -> Vec<Scenario> {
    let of = |v6| [connbytes(v6), connlimit(v6), hashlimit(v6)].concat();
    [of(false), of(true)].concat()
}
