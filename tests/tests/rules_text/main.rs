//! The language of rules: what is read, what is printed of it, what is refused and how.

mod corpus;
mod diff;
mod errors;
mod generate;
mod golden;
mod packets;
mod properties;
mod restore;

use hibernet_netstack::iptables::text::{PrintOptions, print};
use hibernet_netstack::iptables::{Family, Ruleset};

const V4: Family = Family::V4;
const V6: Family = Family::V6;

/// Canonical text without counters of rules.
fn plain(rules: &Ruleset) -> String {
    print(rules, PrintOptions::default())
}
