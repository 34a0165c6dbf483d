//! A text carried out on rules in force.

use crate::{V4, plain};
use hibernet_netstack::iptables::text::{ErrorKind, PrintOptions, RestoreOptions, locate, parse, print, restore};
use hibernet_netstack::iptables::{Program, Ruleset, TableName};

const COUNTERS: RestoreOptions = RestoreOptions { counters: true, noflush: false };
const NOFLUSH: RestoreOptions = RestoreOptions { counters: false, noflush: true };

fn rules(text: &str) -> Ruleset {
    restore(&Ruleset::new(V4), text, COUNTERS).expect("text")
}

/// The text of one table with counters.
fn counted(rules: &Ruleset) -> String {
    print(rules, PrintOptions { counters: true, date: None })
}

fn base() -> Ruleset {
    rules(
        "*filter\n:INPUT DROP [1:2]\n:FORWARD ACCEPT [0:0]\n:OUTPUT DROP [3:4]\n:OWN - [0:0]\n:REST - [0:0]\n\
         [5:6] -A INPUT -j OWN\n[7:8] -A OWN -j ACCEPT\n[9:10] -A REST -j DROP\nCOMMIT\n\
         *mangle\n:PREROUTING ACCEPT [11:12]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :POSTROUTING ACCEPT [0:0]\n[13:14] -A PREROUTING -j MARK --set-mark 1\nCOMMIT\n",
    )
}

#[test]
fn a_mentioned_table_is_flushed_and_policies_of_others_chains_stay() {
    let after = restore(&base(), "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 1.1.1.1\nCOMMIT\n", RestoreOptions::default());
    let after = after.expect("text");
    assert_eq!(after.table(TableName::Mangle), base().table(TableName::Mangle));
    let filter = counted(&after).split("*filter").nth(1).map(str::to_owned).expect("filter");
    assert_eq!(
        filter,
        "\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT DROP [3:4]\n[0:0] -A INPUT -s 1.1.1.1/32\nCOMMIT\n"
    );
}

#[test]
fn without_flush_only_declared_chains_are_emptied() {
    let text = "*filter\n:INPUT - [0:0]\n:OWN - [0:0]\n-A OWN -j DROP\n-A INPUT -j RETURN\nCOMMIT\n";
    let after = restore(&base(), text, NOFLUSH).expect("text");
    let filter = counted(&after).split("*filter").nth(1).map(str::to_owned).expect("filter");
    assert_eq!(
        filter,
        "\n:INPUT DROP [1:2]\n:FORWARD ACCEPT [0:0]\n:OUTPUT DROP [3:4]\n:OWN - [0:0]\n:REST - [0:0]\n\
         [5:6] -A INPUT -j OWN\n[0:0] -A INPUT -j RETURN\n[0:0] -A OWN -j DROP\n[9:10] -A REST -j DROP\nCOMMIT\n"
    );
}

#[test]
fn a_chain_that_is_led_to_can_be_deleted_only_after_the_rule() {
    let delete = |text: &str| restore(&base(), &format!("*filter\n{text}COMMIT\n"), NOFLUSH).map_err(|e| e.kind);
    assert_eq!(delete("-F OWN\n-X OWN\n"), Err(ErrorKind::ChainInUse(1)));
    assert_eq!(delete("-X REST\n"), Err(ErrorKind::ChainNotEmpty));
    let after = delete("-D INPUT 1\n-F OWN\n-X OWN\n-F\n-X REST\n").expect("text");
    assert_eq!(after.table(TableName::Filter).map(|t| t.chains.len()), Some(3));
}

#[test]
fn a_renamed_chain_is_still_led_to() {
    let after = restore(&base(), "*filter\n-E OWN zz\n-A zz -j REST\n-C INPUT -j zz\nCOMMIT\n", NOFLUSH).expect("text");
    let text = plain(&after);
    assert!(text.contains("-A INPUT -j zz\n-A REST -j DROP\n-A zz -j ACCEPT\n-A zz -j REST\n"), "{text}");
    assert!(!text.contains("OWN"), "{text}");
}

#[test]
fn counters_are_taken_over_only_if_asked_for() {
    let text = "*filter\n:INPUT DROP [7:8]\n[3:4] -A INPUT -j DROP\n-A INPUT -c 5 6 -j ACCEPT\nCOMMIT\n";
    let with = restore(&Ruleset::new(V4), text, COUNTERS).expect("text");
    assert!(counted(&with).starts_with(
        "*filter\n:INPUT DROP [7:8]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n[3:4] -A INPUT -j DROP\n[5:6] -A INPUT -j ACCEPT\n"
    ));
    let without = parse(V4, text).expect("text");
    assert!(counted(&without).contains("[0:0] -A INPUT -j DROP\n[5:6] -A INPUT -j ACCEPT\n"));
    assert!(counted(&without).contains(":INPUT DROP [0:0]\n"));
    let zeroed = restore(&with, "*filter\n-Z INPUT 1\nCOMMIT\n", NOFLUSH).expect("text");
    assert!(counted(&zeroed).contains("[0:0] -A INPUT -j DROP\n[5:6] -A INPUT -j ACCEPT\n"));
    let zeroed = restore(&with, "*filter\n-Z\nCOMMIT\n", NOFLUSH).expect("text");
    assert!(!counted(&zeroed).contains(|c: char| ('1'..='9').contains(&c)));
}

#[test]
fn an_error_in_the_last_table_takes_the_first_back() {
    let e = restore(&base(), "*filter\n-F\nCOMMIT\n*nat\n-A PREROUTING -j DROP\nCOMMIT\n", NOFLUSH).expect_err("DROP in nat");
    assert_eq!((e.line, e.exit_code()), (5, 2));
}

#[test]
fn a_table_may_come_twice() {
    let after = parse(V4, "*filter\n:X - [0:0]\n-A INPUT -j X\nCOMMIT\n*filter\n-A INPUT -j DROP\nCOMMIT\n").expect("text");
    assert_eq!(after, parse(V4, "*filter\n-A INPUT -j DROP\nCOMMIT\n").expect("text"));
}

#[test]
fn tables_are_in_the_order_of_their_hooks_and_chains_in_that_of_their_names() {
    let text = "*security\nCOMMIT\n*filter\n-N b\n-N a\n-N B\n-N _\nCOMMIT\n*nat\nCOMMIT\n*raw\nCOMMIT\n*mangle\nCOMMIT\n";
    let after = parse(V4, text).expect("text");
    assert_eq!(after.tables.iter().map(|t| t.name).collect::<Vec<_>>(), TableName::ALL);
    let chains = &after.table(TableName::Filter).expect("filter").chains;
    assert_eq!(chains.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["INPUT", "FORWARD", "OUTPUT", "B", "_", "a", "b"]);
}

#[test]
fn a_declared_chain_hides_the_target_of_its_name() {
    let after = parse(V4, "*filter\n:LOG - [0:0]\n-A INPUT -j LOG\n-A LOG -j ACCEPT\nCOMMIT\n").expect("text");
    assert_eq!(parse(V4, &plain(&after)), Ok(after));
}

#[test]
fn a_rule_that_does_not_compile_is_found_in_the_text() {
    let text = "*nat\nCOMMIT\n*filter\n# a comment\n-A INPUT -j ACCEPT\n-I INPUT -j REJECT --reject-with tcp-reset\nCOMMIT\n";
    let after = parse(V4, text).expect("text");
    let Err(e) = Program::compile(&after) else { panic!("tcp-reset without tcp") };
    let options = RestoreOptions::default();
    let line = locate(&Ruleset::new(V4), text, options, e.table, &e.chain, e.rule.expect("a rule"));
    assert_eq!(line, Some(6));
    assert_eq!(locate(&Ruleset::new(V4), text, options, e.table, &e.chain, 3), None);
    let added = locate(&after, "*filter\n-A INPUT -j DROP\nCOMMIT\n", NOFLUSH, TableName::Filter, "INPUT", 2);
    assert_eq!(added, None, "it was there before");
}

#[test]
fn comments_and_empty_lines_are_passed_over_at_the_start_of_a_line_only() {
    let text = "# one\n\n*filter\n\n# two\n-A INPUT -m comment --comment \"# three\"\nCOMMIT\n# the end";
    assert!(plain(&parse(V4, text).expect("text")).contains("--comment \"# three\"\n"));
}

#[test]
fn header_lines_carry_the_date_that_is_given() {
    let text = print(&parse(V4, "*raw\nCOMMIT\n").expect("text"), PrintOptions { counters: false, date: Some("a day") });
    assert_eq!(
        text,
        "# Generated by hibernet on a day\n*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n# Completed on a day\n"
    );
    assert!(parse(V4, &text).is_ok());
}
