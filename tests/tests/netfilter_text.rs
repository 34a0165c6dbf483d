//! Texts of rules: what the kernel's tools print of random rules that they loaded, and what we print.

use hibernet_netstack::Time;
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::text::{PrintOptions, RestoreOptions, print, restore};
use hibernet_netstack::iptables::{Family, Named, Program, Ruleset};
use hibernet_tests::netfilter::{Kernel, Router, compare, generate, sets, tables, whole};

/// Our text of what a text of rules about these sets means.
fn ours(v6: bool, sets: &str, text: &str) -> String {
    let family = if v6 { Family::V6 } else { Family::V4 };
    let options = RestoreOptions { counters: true, noflush: false };
    let rules = restore(&Ruleset::new(family), text, options).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let named = Named::of(Sets::default().restore(sets, Time::ZERO).unwrap_or_else(|e| panic!("{e}\n{sets}")));
    let program = Program::compile_with(&rules, &named).unwrap_or_else(|e| panic!("{e}\n{text}"));
    print(&program.ruleset([]), PrintOptions { counters: true, date: None })
}

#[test]
fn random_rules_are_printed_as_the_kernels_tools_do() {
    let Some(mut kernel) = Kernel::new(0) else { return };
    for seed in 0..400 {
        let (v6, text) = generate::ruleset(seed);
        kernel.load(v6, &text, &[]);
        let (sets, text) = (sets(&text), whole(&text));
        let saved = kernel.rules();
        compare::rules(&tables(&saved), &tables(&ours(v6, &sets, &text))).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        // And what is saved means the same to us.
        compare::rules(&tables(&saved), &tables(&ours(v6, &sets, &saved))).unwrap_or_else(|e| panic!("seed {seed}, saved: {e}"));
    }
}
