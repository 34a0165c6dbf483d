//! What the cache of verdicts may never say.

use core::time::Duration;
use hibernet_netstack::admin::{Recheck, Shortcuts};
use hibernet_netstack::iptables::{Family, text};
use hibernet_tests::netfilter::Side;
use hibernet_tests::{Pair, Probe};

const FLOW: Probe = Probe::Udp(2000, 53);
const BACK: Probe = Probe::Udp(53, 2000);

/// A connection whose verdicts are kept.
fn settled(rules: &str) -> Pair {
    let mut p = Pair::new(false, rules);
    for _ in 0..3 {
        p.forwards(Side::Client, FLOW);
        p.forwards(Side::Server, BACK);
    }
    assert!(p.w.stack.verdict_bytes() > 0);
    p
}

#[test]
fn replaced_rules_hold_from_the_next_packet_on() {
    for recheck in [Recheck::Keep, Recheck::Cut] {
        let mut p = settled("*filter\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n");
        assert!(p.forwards(Side::Client, FLOW));
        let now = p.w.now();
        let drop = text::parse(Family::V4, "*filter\n-A FORWARD -p udp -j DROP\nCOMMIT\n").unwrap();
        p.w.stack.set_rules(now, drop, recheck, &mut p.w.edge).unwrap();
        assert!(!p.forwards(Side::Client, FLOW) && !p.forwards(Side::Server, BACK), "{recheck:?}");
        assert!(
            p.counted("[2:66] -A FORWARD -p udp -j DROP") || p.counted("[2:66] -A FORWARD -p udp -m udp -j DROP"),
            "{recheck:?}"
        );
    }
}

#[test]
fn a_change_of_the_host_s_addresses_counts_at_once() {
    let mut p = settled("*filter\n-A FORWARD -m addrtype --dst-type LOCAL -j DROP\nCOMMIT\n");
    assert!(p.forwards(Side::Client, FLOW));
    let server = p.node(Side::Server);
    p.w.stack.set_host_addresses(vec![server]);
    assert!(!p.forwards(Side::Client, FLOW));
    p.w.stack.set_host_addresses(Vec::new());
    assert!(p.forwards(Side::Client, FLOW));
}

#[test]
fn a_connection_s_mark_counts_at_once_whoever_changes_it() {
    let mut p = settled("*filter\n-A FORWARD -m connmark --mark 7 -j DROP\nCOMMIT\n");
    assert!(p.forwards(Side::Client, FLOW));
    let (id, _) = p.connections()[0];
    for (mark, passes) in [(7, false), (8, true), (7, false), (0, true)] {
        p.w.stack.conntrack().modify(id, |c| c.mark = mark);
        assert_eq!((p.forwards(Side::Client, FLOW), p.forwards(Side::Server, BACK)), (passes, passes), "mark {mark}");
    }
    // By a rule, in the other direction.
    let mut p = settled(
        "*mangle\n-A FORWARD -s {s} -m statistic --mode nth --every 5 --packet 4 -j CONNMARK --set-mark 7\nCOMMIT\n*filter\n-A FORWARD -s {c} -m connmark --mark 7 -j DROP\nCOMMIT\n",
    );
    assert!(p.forwards(Side::Client, FLOW) && p.forwards(Side::Server, BACK));
    assert!(p.forwards(Side::Client, FLOW) && p.forwards(Side::Server, BACK), "the fifth answer marks");
    assert!(!p.forwards(Side::Client, FLOW));
}

#[test]
fn a_slot_s_next_connection_is_asked_anew() {
    let mut p = settled(
        "*filter\n-A FORWARD -p udp -m udp --dport 53 -j ACCEPT\n-A FORWARD -p udp -m udp --sport 53 -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n",
    );
    let (id, _) = p.connections()[0];
    let now = p.w.now();
    p.w.stack.delete_connections(now, &[id], &mut p.w.edge);
    p.load("*filter\n-A FORWARD -p udp -m udp --dport 54 -j ACCEPT\n-A FORWARD -p udp -m udp --sport 54 -m statistic --mode nth --every 2 --packet 1 -j DROP\nCOMMIT\n");
    let answers = (0..6).map(|_| {
        assert!(p.forwards(Side::Client, Probe::Udp(2000, 54)));
        p.forwards(Side::Server, Probe::Udp(54, 2000))
    });
    assert_eq!(answers.collect::<Vec<_>>(), [true, false, true, false, true, false]);
}

/// Tests and targets that differ from packet to packet, and their counters after ten packets each way of an established connection.
#[test]
fn what_is_not_the_same_for_every_packet_is_asked_each_time() {
    let cases = [
        ("-m statistic --mode nth --every 5 --packet 0", 4),
        ("-m limit --limit 1/hour --limit-burst 3", 3),
        ("-j LOG --log-prefix x", 20),
        ("-m conntrack --ctexpire 1:1000000", 20),
    ];
    for (test, hits) in cases {
        let mut p = settled("*filter\nCOMMIT\n*mangle\n-A FORWARD\nCOMMIT\n");
        p.load(&format!("*filter\n-A FORWARD {test}\nCOMMIT\n"));
        p.w.stack.take_log();
        for _ in 0..10 {
            assert!(p.forwards(Side::Client, FLOW) && p.forwards(Side::Server, BACK));
        }
        let rules = text::print(&p.w.stack.rules(Family::V4), text::PrintOptions { counters: true, date: None });
        assert!(rules.contains(&format!("[{hits}:{}] -A FORWARD", hits * 33)), "{test}: {rules}");
        let lines = p.w.stack.take_log().0.len();
        assert_eq!(lines, if test.contains("LOG") { 20 } else { 0 }, "{test}");
    }
}

#[test]
fn what_it_holds_is_bounded_and_goes_with_the_rules() {
    let mut p = settled("*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n");
    for port in 10_000..14_000 {
        p.forwards(Side::Client, Probe::Udp(port, 53));
        p.forwards(Side::Server, Probe::Udp(53, port));
    }
    let bytes = p.w.stack.verdict_bytes();
    assert!(bytes <= 4_600 * 32 + 16_384, "{bytes} bytes for {} connections", p.connections().len());
    p.w.stack.set_shortcuts(Shortcuts { verdicts: false, ..Shortcuts::default() });
    assert_eq!(p.w.stack.verdict_bytes(), 0);
    p.run(Duration::from_millis(1));
    assert!(p.forwards(Side::Client, FLOW));
    assert_eq!(p.w.stack.verdict_bytes(), 0);
}
