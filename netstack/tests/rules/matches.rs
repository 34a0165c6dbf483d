//! Each match: what fits, what does not, inverted, and at the edges.

mod header;
mod other;
mod tracking;
mod transport;

use crate::kit::*;
use hibernet_netstack::iptables::{Family::*, Hook::*, TableName::*, *};
use hibernet_netstack::skb::Skb;

/// Whether a packet meets a rule, in FORWARD of mangle, or in OUTPUT where the rule can be only there.
fn fits(r: Rule, skb: &Skb<'_>) -> bool {
    let family = if skb.is_v6() { V6 } else { V4 };
    let hook = if r.matches.iter().any(|m| matches!(m, Match::Owner { .. })) { Output } else { Forward };
    // The rule in a user's chain, where every test may be.
    let chains = vec![chain(hook.chain(), vec![rule(jump("U"))]), chain("U", vec![Rule { target: Target::None, ..r }])];
    let mut b = Bench::new(&ruleset(family, Mangle, chains));
    b.run(Mangle, hook, &mut skb.clone());
    b.counts("U")[0] == 1
}

fn with(proto: u8, m: Match) -> Rule {
    Rule { proto: is(proto), matches: vec![m], ..Rule::default() }
}

fn plain(m: Match) -> Rule {
    Rule { matches: vec![m], ..Rule::default() }
}

/// The test and its inversion say the contrary of each other.
fn both<T: Copy>(expected: bool, skb: &Skb<'_>, value: T, r: impl Fn(Inv<T>) -> Rule) {
    for not in [false, true] {
        let r = r(Inv { not, value });
        assert_eq!(fits(r.clone(), skb), expected != not, "{r:?} for {skb:?}");
    }
}
