//! What two rulesets have not in common.

use crate::V4;
use hibernet_netstack::iptables::Ruleset;
use hibernet_netstack::iptables::text::{RestoreOptions, diff, parse, restore};

fn rules(text: &str) -> Ruleset {
    restore(&Ruleset::new(V4), text, RestoreOptions { counters: true, noflush: false }).expect("text")
}

#[test]
fn equal_rules_differ_in_nothing_whatever_they_counted() {
    let a = rules("*filter\n:INPUT DROP [1:2]\n[3:4] -A INPUT -j ACCEPT\nCOMMIT\n");
    let b = rules("*filter\n:INPUT DROP [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n*nat\nCOMMIT\n");
    assert!(diff(&a, &b).is_equal());
    assert_eq!(diff(&a, &b).to_string(), "");
}

#[test]
fn changes_are_shown_by_table_and_chain_with_what_is_around_them() {
    let rule = |n: u32| format!("-A INPUT -s 10.0.0.{n} -j ACCEPT\n");
    let old: String = (1..=12).map(rule).collect();
    let new: String = (1..=12).filter(|n| *n != 5).map(rule).collect();
    let a = rules(&format!("*filter\n:INPUT ACCEPT [0:0]\n:GONE - [0:0]\n{old}COMMIT\n"));
    let b = rules(&format!("*filter\n:NEW - [0:0]\n{new}-A INPUT -j NEW\nCOMMIT\n*raw\n:OUTPUT DROP [0:0]\nCOMMIT\n"));
    assert_eq!(
        diff(&a, &b).to_string(),
        "*raw\n-:OUTPUT ACCEPT\n+:OUTPUT DROP\n*filter\n@@\n\
         \x20-A INPUT -s 10.0.0.2/32 -j ACCEPT\n\
         \x20-A INPUT -s 10.0.0.3/32 -j ACCEPT\n\
         \x20-A INPUT -s 10.0.0.4/32 -j ACCEPT\n\
         --A INPUT -s 10.0.0.5/32 -j ACCEPT\n\
         \x20-A INPUT -s 10.0.0.6/32 -j ACCEPT\n\
         \x20-A INPUT -s 10.0.0.7/32 -j ACCEPT\n\
         \x20-A INPUT -s 10.0.0.8/32 -j ACCEPT\n\
         @@\n\
         \x20-A INPUT -s 10.0.0.10/32 -j ACCEPT\n\
         \x20-A INPUT -s 10.0.0.11/32 -j ACCEPT\n\
         \x20-A INPUT -s 10.0.0.12/32 -j ACCEPT\n\
         +-A INPUT -j NEW\n\
         -:GONE -\n\
         +:NEW -\n"
    );
    assert!(!diff(&a, &b).is_equal());
    assert!(diff(&b, &a).to_string().contains("\n+-A INPUT -s 10.0.0.5/32 -j ACCEPT\n"));
}

/// Applying the lines of a difference to the old text gives the new one, also where the search for the shortest gives up.
#[test]
fn a_difference_leads_from_one_text_to_the_other() {
    let text = |keep: &dyn Fn(u32) -> bool| {
        let lines: String = (0..3_000).filter(|n| keep(*n)).map(|n| format!("-A INPUT -m mark --mark {n}\n")).collect();
        parse(V4, &format!("*filter\n{lines}COMMIT\n")).expect("text")
    };
    let cases: [(Ruleset, Ruleset); 4] = [
        (text(&|n| n % 7 != 0), text(&|n| n % 5 != 0)),
        (text(&|n| n < 1_500), text(&|n| n >= 1_500)),
        (text(&|_| false), text(&|n| n < 40)),
        (text(&|n| n % 100 == 0), text(&|n| n % 100 == 1)),
    ];
    for (a, b) in &cases {
        let shown = diff(a, b).to_string();
        let with = |mark: char| shown.lines().filter(|l| l.starts_with(mark)).map(|l| l[1..].to_owned()).collect::<Vec<_>>();
        let lines = |rules: &Ruleset| {
            let rule = |l: &&str| l.starts_with("-A");
            crate::plain(rules).lines().filter(rule).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut left = lines(a);
        for line in with('-') {
            left.remove(left.iter().position(|l| *l == line).expect("a removed line was there"));
        }
        left.extend(with('+'));
        let (mut left, mut want) = (left, lines(b));
        left.sort_unstable();
        want.sort_unstable();
        assert_eq!(left, want);
    }
    assert!(diff(&cases[0].0, &cases[0].0).is_equal());
}
