//! Random rules and packets.

use super::number;
use hibernet_netstack::admin::Shortcuts;
use hibernet_tests::netfilter::{Difference, Ours, Summary, generate};

/// Packets of a case without changes, and of one with them.
const CASE: u64 = 40;
const LONG_CASE: u64 = 500;
/// Plays that are spent on making a case smaller.
const TRIES: usize = 120;

type Play = fn(u64, u64, &mut Ours, &mut Ours) -> Result<Summary, Box<Difference>>;

fn compare(case: u64, play: Play) {
    let mut plain = Ours::with(Shortcuts { verdicts: false, look_ups: false });
    let mut quick = Ours::default();
    let first = number("HIBERNET_SHORTCUT_FIRST", 0);
    let mut total = Summary::default();
    let mut kept = 0;
    for seed in first..first + number("HIBERNET_SHORTCUT_PACKETS", 20_000).div_ceil(case) {
        match play(seed, case, &mut plain, &mut quick) {
            Ok(done) => {
                total.sent += done.sent;
                total.seen += done.seen;
            }
            Err(d) => {
                let d = generate::minimise(d, TRIES, &mut plain, &mut quick);
                panic!("HIBERNET_SHORTCUT_FIRST={seed} plays it again; made smaller:\n{d}");
            }
        }
        kept += u64::from(quick.verdict_bytes() > 0);
        assert_eq!(plain.verdict_bytes(), 0);
    }
    eprintln!("{} packets sent, {} came out, the cache was used in {kept} cases", total.sent, total.seen);
    assert!(total.seen * 2 > total.sent, "too little came out: {total:?}");
    assert!(kept * 2 * case > total.sent, "the cache was hardly used: in {kept} cases");
}

#[test]
fn one_ruleset() {
    compare(CASE, |seed, packets, plain, quick| generate::case(seed, packets, plain, Some(quick)));
}

#[test]
fn rules_marks_and_addresses_change_and_images_are_restored() {
    compare(LONG_CASE, generate::changing);
}
