//! FilterInput, FilterOutput, TestIPTablesStatsForInput, TestForwardingHook, TestFilteringEchoPacketsWithLocalForwarding.

use super::table;
use hibernet_tests::Probe::{self, Ping, Tcp, Udp};
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::{Pair, netfilter::Side};

/// Rules of filter, and whether packets pass.
type Case = (&'static [&'static str], &'static [(Side, Probe, bool)]);

fn check(what: &str, cases: &[Case], passes: impl Fn(&mut Pair, Side, Probe) -> bool) {
    for (lines, probes) in cases {
        Pair::each(&table("filter", lines), |mut p| {
            for &(side, probe, expected) in *probes {
                let passed = passes(&mut p, side, probe);
                let v = if p.v6 { 6 } else { 4 };
                assert_eq!(passed, expected, "{what}, IPv{v}: {probe:?} from the {side:?} by\n{}", lines.join("\n"));
            }
        });
    }
}

/// The router's answer (echo, reset, port unreachable) tells that a packet got in.
#[test]
fn input() {
    check(
        "INPUT",
        &[
            (&["-A INPUT -p udp -j DROP"], &[(Client, Udp(1, 80), false), (Client, Tcp(1, 80), true), (Client, Ping(1), true)]),
            (&["-A INPUT -p udp --dport 80 -j DROP"], &[(Client, Udp(1, 80), false), (Client, Udp(1, 81), true)]),
            (&["-A INPUT -p tcp --dport 80 -j DROP"], &[(Client, Tcp(1, 80), false), (Client, Tcp(1, 81), true)]),
            (&["-A INPUT -p tcp --sport 80 -j DROP"], &[(Client, Tcp(80, 1), false), (Client, Tcp(81, 1), true)]),
            (&["-A INPUT -j DROP"], &[(Client, Udp(1, 80), false), (Client, Tcp(1, 80), false), (Server, Ping(1), false)]),
            (&[":INPUT ACCEPT [0:0]"], &[(Client, Ping(1), true)]),
            (&[":INPUT DROP [0:0]"], &[(Client, Ping(1), false)]),
            (
                &[":INPUT DROP [0:0]", "-A INPUT -p tcp --dport 80 -j RETURN", "-A INPUT -j ACCEPT"],
                &[(Client, Tcp(1, 80), false), (Client, Tcp(1, 81), true)],
            ),
            (
                &[":INPUT ACCEPT [0:0]", "-A INPUT -p tcp --dport 80 -j RETURN", "-A INPUT -j DROP"],
                &[(Client, Tcp(1, 80), true), (Client, Tcp(1, 81), false)],
            ),
            (&["-A INPUT ! -d {rc} -j DROP"], &[(Client, Ping(1), true), (Server, Ping(1), false)]),
            (&["-A INPUT -d {rc} -j DROP"], &[(Client, Ping(1), false), (Server, Ping(1), true)]),
            (&["-A INPUT -s {c} -j DROP"], &[(Client, Ping(1), false), (Server, Ping(1), true)]),
            (&["-A INPUT ! -s {c} -j DROP"], &[(Client, Ping(1), true), (Server, Ping(1), false)]),
            (&["-A INPUT -i tap0 -j DROP"], &[(Client, Ping(1), false), (Server, Ping(1), true)]),
            (&["-A INPUT ! -i tap0 -j DROP"], &[(Client, Ping(1), true), (Server, Ping(1), false)]),
            (&["-A INPUT -i tap+ -j DROP"], &[(Client, Ping(1), false), (Server, Ping(1), false)]),
            (&["-A INPUT ! -i tap+ -j DROP"], &[(Client, Ping(1), true), (Server, Ping(1), true)]),
            (&["-A INPUT -i host0 -j DROP"], &[(Client, Ping(1), true), (Server, Ping(1), true)]),
            (&[":INPUT DROP [0:0]", "-A INPUT -i tap1 -j ACCEPT"], &[(Client, Ping(1), false), (Server, Ping(1), true)]),
            (
                &["-A INPUT -p tcp ! --dport 80 -j DROP"],
                &[(Client, Tcp(1, 80), true), (Client, Tcp(1, 81), false), (Client, Udp(1, 81), true)],
            ),
            (
                &["-A INPUT -p udp -m multiport --sports 0:65535 -j DROP"],
                &[(Client, Udp(0, 80), false), (Client, Udp(65535, 80), false), (Client, Tcp(1, 80), true)],
            ),
            (
                &["-A INPUT -p tcp -m multiport ! --dports 80,82 -j DROP"],
                &[(Client, Tcp(1, 80), true), (Client, Tcp(1, 81), false), (Client, Tcp(1, 82), true)],
            ),
        ],
        Pair::answers,
    );
}

#[test]
fn user_chains() {
    check(
        "chains",
        &[
            (&[":C - [0:0]", "-A INPUT -p udp -j C", "-A C -j DROP"], &[(Client, Udp(1, 80), false), (Client, Tcp(1, 80), true)]),
            (
                &[":C - [0:0]", "-A INPUT -p tcp -j C", "-A INPUT -p tcp --dport 80 -j DROP", "-A C -p tcp --dport 81 -j DROP"],
                &[(Client, Tcp(1, 80), false), (Client, Tcp(1, 81), false), (Client, Tcp(1, 82), true)],
            ),
            (
                &[":C - [0:0]", "-A INPUT -j C", "-A INPUT -j DROP", "-A C -p udp -j RETURN", "-A C -j ACCEPT"],
                &[(Client, Udp(1, 80), false), (Client, Tcp(1, 80), true)],
            ),
            (
                &[
                    ":A - [0:0]",
                    ":B - [0:0]",
                    "-A INPUT -j A",
                    "-A INPUT -j DROP",
                    "-A A -j B",
                    "-A A -p udp -j ACCEPT",
                    "-A B -p tcp -j ACCEPT",
                ],
                &[(Client, Tcp(1, 80), true), (Client, Udp(1, 80), true), (Client, Ping(1), false)],
            ),
            // What goes to B does not come back to A, but to INPUT.
            (
                &[":A - [0:0]", ":B - [0:0]", "-A INPUT -j A", "-A A -g B", "-A A -j DROP", "-A B -p udp -j DROP"],
                &[(Client, Tcp(1, 80), true), (Client, Udp(1, 80), false)],
            ),
        ],
        Pair::answers,
    );
}

/// What the router makes itself: an echo reply, a reset, an ICMP error. Nobody owns these.
#[test]
fn output() {
    check(
        "OUTPUT",
        &[
            (&["-A OUTPUT -p tcp --dport 80 -j DROP"], &[(Client, Tcp(80, 1), false), (Client, Tcp(81, 1), true)]),
            (&["-A OUTPUT -p tcp --sport 80 -j DROP"], &[(Client, Tcp(1, 80), false), (Client, Tcp(1, 81), true)]),
            (&["-A OUTPUT -p tcp ! --sport 80 -j DROP"], &[(Client, Tcp(1, 80), true), (Client, Tcp(1, 81), false)]),
            (
                &["-A OUTPUT -p {icmp} -j DROP"],
                &[(Client, Ping(1), false), (Client, Udp(1, 80), false), (Client, Tcp(1, 80), true)],
            ),
            (&["-A OUTPUT -d {c} -j DROP"], &[(Client, Ping(1), false), (Server, Ping(1), true)]),
            (&["-A OUTPUT ! -d {c} -j DROP"], &[(Client, Ping(1), true), (Server, Ping(1), false)]),
            (&["-A OUTPUT -o tap0 -j DROP"], &[(Client, Ping(1), false), (Server, Ping(1), true)]),
            (&["-A OUTPUT ! -o tap0 -j DROP"], &[(Client, Ping(1), true), (Server, Ping(1), false)]),
            (&["-A OUTPUT -o tap+ -j DROP"], &[(Client, Ping(1), false), (Server, Tcp(1, 80), false)]),
            (&["-A OUTPUT -o host0 -j DROP"], &[(Client, Ping(1), true)]),
            (&[":OUTPUT DROP [0:0]", "-A OUTPUT -o tap1 -j ACCEPT"], &[(Client, Ping(1), false), (Server, Ping(1), true)]),
            (
                &["-A OUTPUT -p tcp -m multiport --sports 80:90 -j DROP"],
                &[(Client, Tcp(1, 85), false), (Client, Tcp(1, 91), true)],
            ),
            (
                &["-A OUTPUT -m owner --uid-owner 0 -j DROP", "-A OUTPUT -m owner --gid-owner 0 -j DROP"],
                &[(Client, Tcp(1, 80), true), (Client, Udp(1, 80), true), (Client, Ping(1), true)],
            ),
            (&["-A OUTPUT -m owner ! --uid-owner 1000 -j DROP"], &[(Client, Tcp(1, 80), false), (Client, Ping(1), false)]),
            (&["-A OUTPUT -m conntrack --ctstate RELATED -j DROP"], &[(Client, Udp(1, 80), false), (Client, Ping(1), true)]),
            (&["-A OUTPUT -m conntrack --ctstate ESTABLISHED -j DROP"], &[(Client, Ping(1), false), (Client, Udp(1, 80), true)]),
            // INPUT and FORWARD have nothing to do with it.
            (&[":FORWARD DROP [0:0]"], &[(Client, Ping(1), true)]),
        ],
        Pair::answers,
    );
}

#[test]
fn forward() {
    check(
        "FORWARD",
        &[
            (&[":FORWARD ACCEPT [0:0]"], &[(Client, Udp(1, 80), true), (Server, Tcp(1, 80), true), (Client, Ping(1), true)]),
            (&[":FORWARD DROP [0:0]"], &[(Client, Udp(1, 80), false), (Server, Tcp(1, 80), false), (Client, Ping(1), false)]),
            // The router's own traffic is another matter.
            (&[":INPUT DROP [0:0]", ":OUTPUT DROP [0:0]"], &[(Client, Udp(1, 80), true), (Server, Ping(1), true)]),
            (&["-A FORWARD -i tap0 -j DROP"], &[(Client, Ping(1), false), (Server, Ping(2), true)]),
            (&["-A FORWARD -o tap0 -j DROP"], &[(Client, Ping(1), true), (Server, Ping(2), false)]),
            (&["-A FORWARD ! -i tap0 -j DROP"], &[(Client, Ping(1), true), (Server, Ping(2), false)]),
            (&["-A FORWARD ! -o tap0 -j DROP"], &[(Client, Ping(1), false), (Server, Ping(2), true)]),
            (&["-A FORWARD -i tap0 -o tap1 -j DROP"], &[(Client, Ping(1), false), (Server, Ping(2), true)]),
            (&["-A FORWARD -i tap1 -o tap1 -j DROP"], &[(Client, Ping(1), true), (Server, Ping(2), true)]),
            (&["-A FORWARD -i tap+ -o tap+ -j DROP"], &[(Client, Ping(1), false), (Server, Ping(2), false)]),
            (
                &["-A FORWARD -i host0 -j DROP", "-A FORWARD -o host0 -j DROP"],
                &[(Client, Ping(1), true), (Server, Ping(2), true)],
            ),
            (&["-A FORWARD -s {c} -d {s} -p udp --dport 80 -j DROP"], &[(Client, Udp(1, 80), false), (Server, Udp(1, 80), true)]),
            (&["-A FORWARD ! -s {c} -j DROP"], &[(Client, Udp(1, 80), true), (Server, Udp(1, 81), false)]),
            // A packet has one hop less when FORWARD sees it.
            (&["-A FORWARD -p tcp --syn -j DROP"], &[(Client, Tcp(1, 80), false), (Client, Udp(1, 80), true)]),
            (
                &["-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-A FORWARD -i tap1 -j DROP"],
                &[
                    (Server, Udp(80, 1), false),
                    (Client, Udp(1, 80), true),
                    (Server, Udp(80, 1), true),
                    (Server, Udp(81, 1), false),
                ],
            ),
        ],
        Pair::forwards,
    );
}

/// Counters of rules and policies, and of drops, say what happened.
#[test]
fn what_was_dropped_is_counted() {
    let rules = table("filter", &[":FORWARD DROP [0:0]", "-A FORWARD -p udp --dport 80 -j DROP", "-A FORWARD -p tcp -j ACCEPT"]);
    Pair::each(&rules, |mut p| {
        let sent = [Udp(1, 80), Udp(2, 80), Tcp(1, 80), Ping(7)];
        let len = if p.v6 { 40 } else { 20 };
        for probe in sent {
            p.forwards(Client, probe);
        }
        assert!(p.counted(&format!("[2:{}] -A FORWARD -p udp -m udp --dport 80 -j DROP", 2 * (len + 13))), "{p:?}");
        assert!(p.counted(&format!("[1:{}] -A FORWARD -p tcp -j ACCEPT", len + 20)));
        assert!(p.counted(&format!(":FORWARD DROP [1:{}]", len + 13)));
        use hibernet_netstack::DropReason::{Policy, Rule};
        assert_eq!(p.drops(), [(Rule, 2), (Policy, 1)]);
        assert_eq!(p.connections().len(), 1, "dropped packets left connections");
    });
}

/// A batch: each packet has its own verdict, in order.
#[test]
fn every_packet_of_a_batch_has_its_own_verdict() {
    Pair::each(&table("filter", &["-A FORWARD -p udp --dport 80 -j DROP"]), |mut p| {
        for n in 0..100_u16 {
            let dst = p.node(Server);
            p.probe(Client, dst, Udp(1000 + n, 80 + n % 2));
        }
        let got: Vec<u16> = core::iter::from_fn(|| p.next(Server)).map(|o| o.ports().0).collect();
        assert_eq!(got, (0..100).filter(|n| n % 2 == 1).map(|n| 1000 + n).collect::<Vec<_>>());
    });
}
