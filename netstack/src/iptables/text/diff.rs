//! What two rulesets have not in common.

use super::print::{policy_name, print_rule};
use crate::iptables::{Chain, Family, Ruleset, Table, TableName};
use std::fmt::{self, Display};

/// Unchanged lines that are shown around a change.
const CONTEXT: usize = 3;
/// Longest edit script that is searched; beyond it the remaining lines count as replaced.
const MOST_EDITS: usize = 1_000;

/// The difference between two rulesets. Counters do not count. Printed as unified lines, by table and chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    text: String,
}

impl Difference {
    /// Whether both mean the same packet by packet: same chains, policies and rules in the same order. A table that is
    /// not there equals one that is empty and accepts.
    pub fn is_equal(&self) -> bool {
        self.text.is_empty()
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Compares two rulesets of one family; counters do not count. Lines that only `old` has begin with `-`, lines that only
/// `new` has with `+`.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Difference {
    let mut text = String::new();
    if old.family != new.family {
        text.push_str("-IPv4 and IPv6 rules cannot be compared\n");
    }
    for name in TableName::ALL {
        let (a, b) = (old.table(name), new.table(name));
        let empty = Table::new(name);
        let before = text.len();
        diff_table((old.family, a.unwrap_or(&empty)), (new.family, b.unwrap_or(&empty)), &mut text);
        if text.len() > before {
            text.insert_str(before, &format!("*{}\n", name.as_str()));
        }
    }
    Difference { text }
}

fn diff_table((old_family, old): (Family, &Table), (new_family, new): (Family, &Table), out: &mut String) {
    let find = |table: &'_ Table, name: &str| table.chains.iter().position(|c| c.name == name);
    for chain in &old.chains {
        let other = find(new, &chain.name).map(|i| &new.chains[i]);
        diff_chain((old_family, Some(chain)), (new_family, other), out);
    }
    for chain in new.chains.iter().filter(|c| find(old, &c.name).is_none()) {
        diff_chain((old_family, None), (new_family, Some(chain)), out);
    }
}

fn diff_chain(old: (Family, Option<&Chain>), new: (Family, Option<&Chain>), out: &mut String) {
    let (before, after) = (lines(old), lines(new));
    let edits = edits(&before, &after);
    if edits.iter().all(|e| matches!(e, Edit::Same(..))) {
        return;
    }
    let near = |at: usize| edits[at.saturating_sub(CONTEXT)..(at + CONTEXT + 1).min(edits.len())].iter().any(Edit::is_change);
    let mut gap = false;
    for (at, edit) in edits.iter().enumerate() {
        if !near(at) {
            gap = true;
            continue;
        }
        if std::mem::take(&mut gap) {
            out.push_str("@@\n");
        }
        let (mark, line) = match edit {
            Edit::Same(i, _) => (' ', &before[*i]),
            Edit::Old(i) => ('-', &before[*i]),
            Edit::New(j) => ('+', &after[*j]),
        };
        out.push(mark);
        out.push_str(line);
        out.push('\n');
    }
}

/// A chain as lines, without counters.
fn lines((family, chain): (Family, Option<&Chain>)) -> Vec<String> {
    let Some(chain) = chain else { return Vec::new() };
    let head = format!(":{} {}", chain.name, policy_name(chain.policy));
    let rule = |rule| {
        let mut line = String::new();
        print_rule(family, &chain.name, rule, &mut line);
        line
    };
    std::iter::once(head).chain(chain.rules.iter().map(rule)).collect()
}

/// A line of a difference, by its places in both texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Same(usize, usize),
    Old(usize),
    New(usize),
}

impl Edit {
    fn is_change(&self) -> bool {
        !matches!(self, Edit::Same(..))
    }
}

/// The shortest way from one text to the other (E. W. Myers, "An O(ND) difference algorithm and its variations"), or, if
/// that is longer than [`MOST_EDITS`], the removal of all that differs between common start and end.
fn edits(a: &[String], b: &[String]) -> Vec<Edit> {
    let start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let end = a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (inner_a, inner_b) = (&a[start..a.len() - end], &b[start..b.len() - end]);
    let mut out: Vec<Edit> = (0..start).map(|i| Edit::Same(i, i)).collect();
    match shortest(inner_a, inner_b) {
        Some(inner) => out.extend(inner.into_iter().map(|e| match e {
            Edit::Same(i, j) => Edit::Same(i + start, j + start),
            Edit::Old(i) => Edit::Old(i + start),
            Edit::New(j) => Edit::New(j + start),
        })),
        None => {
            out.extend((0..inner_a.len()).map(|i| Edit::Old(i + start)));
            out.extend((0..inner_b.len()).map(|j| Edit::New(j + start)));
        }
    }
    out.extend((0..end).map(|i| Edit::Same(a.len() - end + i, b.len() - end + i)));
    out
}

fn shortest(a: &[String], b: &[String]) -> Option<Vec<Edit>> {
    let most = (a.len() + b.len()).min(MOST_EDITS);
    // Furthest place in `a` on each diagonal; diagonal k is at `most + 1 + k`.
    let mut furthest = vec![0usize; 2 * most + 3];
    let mut history: Vec<Vec<usize>> = Vec::new();
    for d in 0..=most {
        let middle = most + 1;
        for k in (middle - d..=middle + d).step_by(2) {
            let down = k == middle - d || (k != middle + d && furthest[k - 1] < furthest[k + 1]);
            let mut x = if down { furthest[k + 1] } else { furthest[k - 1] + 1 };
            let Some(mut y) = (x + middle).checked_sub(k) else { continue };
            while x < a.len() && y < b.len() && a[x] == b[y] {
                (x, y) = (x + 1, y + 1);
            }
            furthest[k] = x;
            if x >= a.len() && y >= b.len() {
                return Some(way_back(a.len(), b.len(), &history));
            }
        }
        history.push(furthest[middle - d..=middle + d].to_vec());
    }
    None
}

/// The edits of the way that ends at the end of both texts; `history[d]` has diagonals -d to d after d edits.
fn way_back(mut x: usize, mut y: usize, history: &[Vec<usize>]) -> Vec<Edit> {
    let mut out = Vec::new();
    for (d, before) in history.iter().enumerate().rev() {
        // Before the last edit `d` edits had been made: diagonal k is at `k + d`.
        let at = |k: isize| usize::try_from(k + d as isize).ok().and_then(|i| before.get(i)).copied();
        let k = x as isize - y as isize;
        let (from_old, from_new) = (at(k - 1), at(k + 1));
        let down = match (from_old, from_new) {
            (Some(old), Some(new)) => old < new,
            (None, _) => true,
            (Some(_), None) => false,
        };
        let before_x = if down { from_new } else { from_old }.unwrap_or(0);
        let before_y = (before_x as isize - if down { k + 1 } else { k - 1 }).max(0) as usize;
        let (after_x, after_y) = if down { (before_x, before_y + 1) } else { (before_x + 1, before_y) };
        while x > after_x && y > after_y {
            (x, y) = (x - 1, y - 1);
            out.push(Edit::Same(x, y));
        }
        out.push(if down { Edit::New(before_y) } else { Edit::Old(before_x) });
        (x, y) = (before_x, before_y);
    }
    while x > 0 && y > 0 {
        (x, y) = (x - 1, y - 1);
        out.push(Edit::Same(x, y));
    }
    debug_assert_eq!((x, y), (0, 0));
    out.reverse();
    out
}
