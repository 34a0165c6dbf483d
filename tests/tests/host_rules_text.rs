//! What we print of rules, given to the real tools.

#[path = "rules_text/generate.rs"]
mod generate;
#[path = "rules_text/packets.rs"]
mod packets;

use hibernet_netstack::iptables::text::{PrintOptions, parse, print};
use hibernet_netstack::iptables::{Family, Match};
use hibernet_tests::lab::{Lab, Place, skip};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::path::PathBuf;

const RESTORE: [&str; 2] = ["iptables-legacy-restore", "ip6tables-legacy-restore"];
const SAVE: [&str; 2] = ["iptables-legacy-save", "ip6tables-legacy-save"];

fn of(family: Family, names: [&'static str; 2]) -> &'static str {
    names[usize::from(family == Family::V6)]
}

/// A lab in which the kernel has the tables of both families.
fn lab() -> Option<Lab> {
    let lab = Lab::with_set_up("", &[RESTORE, SAVE].concat())?;
    for save in SAVE {
        let done = lab.run(Place::Host, 10, &[save, "-t", "filter"]);
        if done.code != 0 {
            skip(&format!("{save} does not work here: {}", done.stderr));
            return None;
        }
    }
    Some(lab)
}

/// Our text loads, and what the kernel then says of it is our text.
fn comes_back(lab: &Lab, family: Family, text: &str, what: &str) {
    let done = lab.run_with(Place::Host, 10, &[of(family, RESTORE), "-c"], text.as_bytes());
    assert_eq!(done.code, 0, "{what}: {}\n{text}", done.stderr);
    for table in text.split_inclusive("COMMIT\n") {
        let name = table.lines().next().and_then(|l| l.strip_prefix('*')).expect("a table");
        let done = lab.run(Place::Host, 10, &[of(family, SAVE), "-c", "-t", name]);
        let saved: String = done.ok().lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        assert_eq!(saved, table, "{what}");
    }
}

fn golden(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/rules").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn whole_texts_come_back_from_the_kernel_as_we_print_them() {
    let Some(lab) = lab() else { return };
    // In a user namespace the kernel does not know the users that some rules name.
    let all = [("commands4", false), ("docker4", false), ("docker6", false), ("host4", true), ("istio4", true), ("kube4", false)];
    for (name, users) in all {
        if users && !lab.is_root() {
            continue;
        }
        let family = if name.ends_with('6') { Family::V6 } else { Family::V4 };
        let rules = parse(family, &golden(&format!("{name}.rules"))).unwrap_or_else(|e| panic!("{name}: {e}"));
        comes_back(&lab, family, &print(&rules, PrintOptions { counters: true, date: None }), name);
    }
}

#[test]
fn single_rules_come_back_from_the_kernel_as_we_print_them() {
    let Some(lab) = lab() else { return };
    for (family, file) in [(Family::V4, "single4.txt"), (Family::V6, "single6.txt")] {
        for table in ["raw", "mangle", "nat", "filter"] {
            let loaded = |l: &&str| l.starts_with(&format!("{table}|")) && !l.contains("|!");
            let users = |l: &&str| lab.is_root() || !l.contains("owner");
            // What the tool prints of a rate below its smallest, and then does not read.
            let readable = |l: &&str| !l.contains("|-m hashlimit --hashlimit-above 0b/s");
            let text = golden(file);
            let rules: String = text
                .lines()
                .filter(loaded)
                .filter(users)
                .filter(readable)
                .map(|l| l.split('|').collect::<Vec<_>>())
                .map(|c| format!("-A {} {}\n", c[1], c[2]))
                .collect();
            let rules = parse(family, &format!("*{table}\n{rules}COMMIT\n")).unwrap_or_else(|e| panic!("{file}: {e}"));
            comes_back(&lab, family, &print(&rules, PrintOptions { counters: true, date: None }), file);
        }
    }
}

/// Bytes of a word that `iptables-restore` reads at most.
const MAX_WORD: usize = 1023;

/// How long a word of a match may be in its text, where that can be longer than the tool reads.
fn longest_word(m: &Match) -> usize {
    match m {
        Match::U32(tests) => tests.value.iter().map(|t| 14 + 13 * t.steps.len() + 22 * t.values.len()).sum(),
        _ => 0,
    }
}

/// The real tool takes every text that we print, whatever the rules (it reads and builds; the kernel is not asked). Rules
/// with several matches of a kind are left out: it gives the options of the last to a match of another kind in between that
/// has the same options (`-m mark … -m connmark … -m mark …`), whoever printed them. So are words that it prints itself and cannot read.
#[test]
fn any_rules_that_we_print_are_read_by_the_real_tool() {
    let Some(lab) = lab() else { return };
    let mut runner = TestRunner::deterministic();
    for _ in 0..150 {
        let mut rules = generate::ruleset().new_tree(&mut runner).expect("rules").current();
        for rule in rules.tables.iter_mut().flat_map(|t| &mut t.chains).flat_map(|c| &mut c.rules) {
            let kinds: Vec<_> = rule.matches.iter().map(std::mem::discriminant).collect();
            let mut place = 0..;
            rule.matches.retain(|m| {
                place.next().is_some_and(|i| !kinds[..i].contains(&std::mem::discriminant(m))) && longest_word(m) < MAX_WORD
            });
        }
        let text = print(&rules, PrintOptions { counters: true, date: Some("a day") });
        let done = lab.run_with(Place::Host, 10, &[of(rules.family, RESTORE), "--test", "-c"], text.as_bytes());
        assert_eq!(done.code, 0, "{}\n{text}", done.stderr);
    }
}
