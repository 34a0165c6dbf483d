//! Random rules and packets with the cache of verdicts, and asking rule by rule: nothing may differ.
//!
//! `HIBERNET_SHORTCUT_PACKETS` says how many packets (20,000), `HIBERNET_SHORTCUT_FIRST` from which seed on (0).

use hibernet_netstack::admin::Shortcuts;
use hibernet_tests::netfilter::{Ours, Summary, generate};

/// Packets of a case.
const CASE: u64 = 40;
/// Plays that are spent on making a case smaller.
const TRIES: usize = 120;

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

#[test]
fn what_comes_out_is_the_same_with_shortcuts_and_without() {
    let mut plain = Ours::with(Shortcuts { verdicts: false });
    let mut quick = Ours::default();
    let first = number("HIBERNET_SHORTCUT_FIRST", 0);
    let mut total = Summary::default();
    for seed in first..first + number("HIBERNET_SHORTCUT_PACKETS", 20_000).div_ceil(CASE) {
        match generate::case(seed, CASE, &mut plain, Some(&mut quick)) {
            Ok(done) => {
                total.sent += done.sent;
                total.seen += done.seen;
            }
            Err(d) => {
                let d = generate::minimise(d, TRIES, &mut plain, &mut quick);
                panic!("HIBERNET_SHORTCUT_FIRST={seed} plays it again; made smaller:\n{d}");
            }
        }
    }
    eprintln!("{} packets sent, {} came out", total.sent, total.seen);
    assert!(total.seen * 2 > total.sent, "too little came out: {total:?}");
}
