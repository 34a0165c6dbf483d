//! `hibernet drops`.

use super::{print, print_json};
use crate::control::client::Client;
use crate::control::protocol::Request;
use crate::sandbox::failure::Failure;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The part of the counters that is about drops.
#[derive(Deserialize)]
struct Counted {
    drops: BTreeMap<String, u64>,
}

pub(super) fn drops(name: &str, all: bool, json: bool) -> Result<u8, Failure> {
    let Counted { drops } = Client::new(name)?.ask(&Request::Stats)?;
    let rows = sorted(drops, all);
    if json {
        return print_json(&rows.into_iter().collect::<serde_json::Map<_, _>>());
    }
    let mut out = String::new();
    for (why, n) in &rows {
        let _ = writeln!(out, "{n:>12}  {why}");
    }
    print(&out)
}

/// Most frequent first, those that never happened left out unless `all` are wanted.
fn sorted(drops: BTreeMap<String, u64>, all: bool) -> Vec<(String, serde_json::Value)> {
    let mut rows: Vec<(String, u64)> = drops.into_iter().filter(|(_, n)| all || *n > 0).collect();
    rows.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    rows.into_iter().map(|(why, n)| (why, n.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_come_first() {
        let drops = || BTreeMap::from([("a", 1), ("b", 0), ("c", 7), ("d", 1)].map(|(k, n)| (k.to_owned(), n)));
        let names = |all| sorted(drops(), all).into_iter().map(|(why, _)| why).collect::<Vec<_>>();
        assert_eq!(names(false), ["c", "a", "d"]);
        assert_eq!(names(true), ["c", "a", "d", "b"]);
    }
}
