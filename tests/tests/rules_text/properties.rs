//! What holds for every text and every ruleset.

use crate::generate::ruleset;
use crate::{V4, V6, plain};
use hibernet_netstack::iptables::text::{ErrorKind, MAX_RULES, PrintOptions, RestoreOptions, diff, parse, print, restore};
use hibernet_netstack::iptables::{Counters, Ruleset};
use proptest::prelude::*;

const COUNTERS: RestoreOptions = RestoreOptions { counters: true, noflush: false };

/// Pieces from which texts are put together that are nearly right.
const PIECES: &[&str] = &[
    "*filter\n",
    "*nat\n",
    "*mangle\n",
    "COMMIT\n",
    "COMMIT",
    "\n",
    "\r\n",
    " ",
    "\t",
    "\"",
    "\\",
    "!",
    "! ",
    "-",
    "--",
    "=",
    ",",
    ":",
    "/",
    "[",
    "]",
    "[1:2] ",
    "\0",
    "é",
    ":INPUT ACCEPT [0:0]\n",
    ":X - [0:0]\n",
    "-A INPUT ",
    "-I INPUT 1 ",
    "-R X 1 ",
    "-D X 1\n",
    "-N X\n",
    "-X\n",
    "-F\n",
    "-Z\n",
    "-E X Y\n",
    "-P INPUT DROP\n",
    "-s 1.2.3.4 ",
    "-s ::1/64 ",
    "-p tcp ",
    "-p 58 ",
    "-i e+ ",
    "-f ",
    "-c 1 2 ",
    "-m tcp ",
    "--dport 80 ",
    "--tcp-flags SYN,ACK ",
    "--syn ",
    "-m multiport --ports ",
    "1,2:3 ",
    "-m comment --comment ",
    "-m conntrack ",
    "--ctstate NEW,DNAT ",
    "--ctorigsrc ",
    "-m limit --limit 3/m ",
    "-m statistic --mode random --probability ",
    "0.5 ",
    "1e309 ",
    "-m mark --mark ",
    "0x1/0x2 ",
    "-m addrtype --dst-type L ",
    "-m owner --uid-owner 1-2 ",
    "-m iprange --src-range ",
    "1.1.1.1-2.2.2.2 ",
    "-m mac --mac-source ",
    "1:2:3:4:5:6 ",
    "-m icmp --icmp-type ",
    "echo",
    "255/0:9 ",
    "-m recent ",
    "-j ACCEPT\n",
    "-j X\n",
    "-g X\n",
    "-j LOG --log-prefix ",
    "-j DNAT --to ",
    "[::1]:80-90/70 ",
    "-j REDIRECT --to-ports 1 ",
    "-j NETMAP --to 1/2 ",
    "-j CT --zone ",
    "-j REJECT --reject-with t ",
    "-j TPROXY ",
    "-t ",
    "-L\n",
    "99999999999999999999 ",
    "-1 ",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_printed_is_read_back(rules in ruleset()) {
        let text = print(&rules, PrintOptions { counters: true, date: Some("today") });
        let read = restore(&Ruleset::new(rules.family), &text, COUNTERS);
        prop_assert_eq!(read.as_ref(), Ok(&rules), "{}", text);
        prop_assert!(diff(&rules, &rules).is_equal());
    }

    #[test]
    fn deleting_every_rule_by_its_text_leaves_none(rules in ruleset()) {
        let text = plain(&rules);
        let deletions: String = text
            .lines()
            .filter(|l| !l.starts_with(':'))
            .map(|l| l.strip_prefix("-A ").map_or_else(|| format!("{l}\n"), |rule| format!("-D {rule}\n")))
            .collect();
        let noflush = RestoreOptions { counters: false, noflush: true };
        let after = restore(&rules, &deletions, noflush).expect("the rules are there");
        prop_assert!(after.tables.iter().flat_map(|t| &t.chains).all(|c| c.rules.is_empty()));
    }

    #[test]
    fn nothing_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = parse(V4, &text);
        let _ = parse(V6, &format!("*filter\n{text}\nCOMMIT\n"));
    }

    #[test]
    fn nearly_right_texts_are_read_or_refused_and_what_is_read_stays(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40),
        v6: bool,
    ) {
        let text = format!("*filter\n:X - [0:0]\n{}\nCOMMIT\n", pieces.concat());
        let family = if v6 { V6 } else { V4 };
        if let Ok(rules) = parse(family, &text) {
            let printed = print(&rules, PrintOptions { counters: true, date: None });
            let again = restore(&Ruleset::new(family), &printed, COUNTERS);
            prop_assert_eq!(again.as_ref(), Ok(&rules), "{}\n{}", text, printed);
        }
    }
}

#[test]
fn long_lines_and_many_rules_are_read() {
    let comment = "x".repeat(64 * 1024);
    let e = parse(V4, &format!("*filter\n-A INPUT -m comment --comment {comment}\nCOMMIT\n")).expect_err("too long");
    assert!(matches!(e.kind, ErrorKind::BadValue(_)) && e.to_string().len() < 300, "{e}");
    let addresses = vec!["10.0.0.1"; 8_000].join(",");
    let rules = parse(V4, &format!("*filter\n-A INPUT -s {addresses}\nCOMMIT\n")).expect("text");
    assert_eq!(rules.tables[0].chains[0].rules.len(), 8_000);
    let many: String = (0..100_000)
        .map(|n| format!("-I INPUT {} -s 10.{}.{}.1 -p tcp --dport 80 -j DROP\n", n / 2 + 1, n >> 8 & 255, n & 255))
        .collect();
    let rules = parse(V4, &format!("*filter\n{many}COMMIT\n")).expect("text");
    assert_eq!(rules.tables[0].chains[0].rules.len(), 100_000);
    assert!(rules.tables[0].chains[0].rules.iter().all(|r| r.counters == Counters::default()));
}

#[test]
fn lists_of_addresses_cannot_make_more_rules_than_there_may_be() {
    let addresses = vec!["1.1.1.1"; 1_100].join(",");
    let e = parse(V4, &format!("*filter\n-A INPUT -s {addresses} -d {addresses}\nCOMMIT\n")).expect_err("too many");
    assert_eq!((e.kind, e.line), (ErrorKind::TooMany(MAX_RULES), 2));
    // All tables together.
    let half = vec!["1.1.1.1"; 250].join(",");
    let text = |chain| format!("-A {chain} -s {half} -d {half}\nCOMMIT\n");
    let e = parse(V4, &format!("*raw\n{}*filter\n{}", text("OUTPUT"), text("OUTPUT"))).expect_err("too many");
    assert_eq!((e.kind, e.line), (ErrorKind::TooMany(MAX_RULES), 5));
}
