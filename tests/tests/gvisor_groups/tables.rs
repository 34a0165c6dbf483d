//! Tables and hooks in their order, and connections that are older than a rule.

use super::table;
use hibernet_netstack::Config;
use hibernet_tests::netfilter::Side::{Client, Server};
use hibernet_tests::{Pair, Probe};

/// Every table at every hook says that a packet passed, in the order of the log.
#[test]
fn tables_are_asked_in_linux_order() {
    let log = |table_name: &str, hooks: &[&str]| {
        let lines: Vec<_> =
            hooks.iter().map(|h| format!("-A {h} -p {{icmp}} -j LOG --log-prefix \"{table_name}-{h} \"")).collect();
        table(table_name, &lines.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let all = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let rules = [
        log("security", &all[1..4]),
        log("filter", &all[1..4]),
        log("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
        log("mangle", &all),
        log("raw", &["PREROUTING", "OUTPUT"]),
    ];
    Pair::each(&rules.concat(), |mut p| {
        let passed = |p: &mut Pair| -> Vec<String> {
            let (lines, lost) = p.w.stack.take_log();
            assert_eq!(lost, 0);
            lines.iter().map(|l| l[..l.find(" IN=").unwrap()].trim().rsplit(' ').next().unwrap().to_owned()).collect()
        };
        assert!(p.forwards(Client, Probe::Ping(1)));
        let first = ["raw-PREROUTING", "mangle-PREROUTING", "nat-PREROUTING"];
        let forward = ["mangle-FORWARD", "filter-FORWARD", "security-FORWARD", "mangle-POSTROUTING", "nat-POSTROUTING"];
        assert_eq!(passed(&mut p), [&first[..], &forward].concat());
        // Further packets of the connection are not asked by nat.
        assert!(p.forwards(Client, Probe::Ping(1)));
        let without_nat = |v: Vec<&str>| v.into_iter().filter(|s| !s.starts_with("nat")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(passed(&mut p), without_nat([&first[..], &forward].concat()));
        assert!(p.answers(Client, Probe::Ping(2)));
        let input = ["mangle-INPUT", "filter-INPUT", "security-INPUT", "nat-INPUT"];
        let answer = ["raw-OUTPUT", "mangle-OUTPUT", "filter-OUTPUT", "security-OUTPUT", "mangle-POSTROUTING"];
        assert_eq!(passed(&mut p), [&first[..], &input, &answer].concat());
    });
}

/// The default of every table is to accept.
#[test]
fn tables_accept_unless_told_otherwise() {
    let empty = ["raw", "mangle", "nat", "filter", "security"].map(|t| format!("*{t}\nCOMMIT\n")).concat();
    for rules in [empty.as_str(), "*filter\nCOMMIT\n"] {
        Pair::each(rules, |mut p| {
            for probe in [Probe::Udp(1, 2), Probe::Tcp(1, 2), Probe::Ping(3)] {
                assert!(p.forwards(Client, probe) && p.answers(Client, probe));
            }
            let faults = p.drops().into_iter().filter(|d| d.0 != hibernet_netstack::DropReason::NoService);
            assert_eq!(faults.count(), 0, "{:?}", p.drops());
        });
    }
}

/// A connection that began without translation is not translated by rules that come later, in neither direction; nor is one that is
/// older than tracking, whose first packet seen says where it goes.
#[test]
fn rules_that_come_later_do_not_translate_what_lives() {
    let later = table("nat", &["-A PREROUTING -d {s} -j DNAT --to-destination {e}", "-A POSTROUTING -j MASQUERADE"]);
    for v6 in [false, true] {
        let mut p = Pair::with(Config::default(), v6, "*filter\nCOMMIT\n");
        let mut got = Vec::new();
        for probe in [Probe::Udp(5000, 80), Probe::Tcp(5000, 80), Probe::Ping(5000)] {
            let to = p.node(Server);
            p.probe(Client, to, probe);
            got.push((probe, p.expect(Server)));
        }
        p.load(&later);
        for (probe, first) in got {
            let to = p.node(Server);
            p.probe(Client, to, probe);
            assert_eq!(p.expect(Server), first);
            p.answer(Server, &first);
            assert_eq!(p.expect(Client).src, to);
        }
        p.silent();
    }
}
