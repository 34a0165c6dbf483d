//! Rules that are replaced while packets flow.

use core::fmt::Write;
use core::time::Duration;
use hibernet_netstack::admin::Recheck;
use hibernet_netstack::iptables::{Counters, Family, text};
use hibernet_tests::netfilter::Side;
use hibernet_tests::{Pair, Probe};

const RULES: usize = 10_000;

/// Rules of which each kind of packet meets all or none: the first and the last of them accept what the policy would drop, if the first
/// marked it. A packet that saw a part of the old rules and a part of the new ones would meet neither.
fn rules(generation: usize) -> String {
    let mark = 1 + generation % 2;
    let mut t = format!("*mangle\n-A PREROUTING -j MARK --set-mark {mark}\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\n");
    for i in 0..RULES - 2 {
        let (a, b) = (i / 250 % 250, i % 250);
        writeln!(t, "-A FORWARD -s 198.{}.{a}.{b} -p udp -m udp --dport {} -j DROP", 18 + generation % 2, 1024 + i).unwrap();
    }
    writeln!(t, "-A FORWARD -m mark --mark {mark} -j ACCEPT").unwrap();
    t + "COMMIT\n"
}

#[test]
fn no_packet_is_lost_and_each_sees_one_ruleset() {
    let mut p = Pair::new(false, &rules(0));
    let parsed = [0, 1].map(|g| text::parse(Family::V4, &p.text(&rules(g))).unwrap());
    let mut sent = 0;
    for generation in 1..=20 {
        for n in 0..40 {
            // Old connections and new ones, both ways.
            let port = if n % 2 == 0 { 2000 } else { 3000 + (generation * 40 + n) as u16 };
            assert!(p.forwards(Side::Client, Probe::Udp(port, 53)), "generation {generation}, packet {n}");
            if n % 2 == 0 {
                assert!(p.forwards(Side::Server, Probe::Udp(53, port)), "generation {generation}, answer {n}");
                sent += 1;
            }
            sent += 1;
        }
        let rules = p.w.stack.rules(Family::V4);
        let forward =
            rules.table(hibernet_netstack::iptables::TableName::Filter).unwrap().chains.iter().find(|c| c.name == "FORWARD");
        let accepted = forward.unwrap().rules.last().unwrap().counters;
        assert_eq!((accepted.packets, forward.unwrap().counters), (sent, Counters::default()), "generation {generation}");
        let now = p.w.now();
        p.w.stack.set_rules(now, parsed[generation % 2].clone(), Recheck::Keep, &mut p.w.edge).unwrap();
        sent = 0;
        p.run(Duration::from_millis(1));
    }
    assert_eq!(p.drops(), []);
}
