//! Look-ups in place of asking long chains rule by rule.
//!
//! The rules of a chain are grouped by shape: how many bits of either address and port they look at. Within a shape, those that want the same
//! bits are found by a hash of them. A packet is in one cell of each shape, so the rules that it can fit are in as many ascending lists as
//! there are shapes; these are gone through together, in the order of the rules, and each rule decides by its header test as always. So a
//! look-up only leaves out rules that cannot fit, and what rules do, in which order, is as without it.
//!
//! Ranges, and several ports in one rule, are in a few cells. A rule that wants nothing of addresses and ports is in the shape of no bits, whose list
//! every packet goes through. There are [`MAX_SHAPES`] shapes at most: rare ones are given up for coarser ones.

mod cells;
mod shape;
mod table;

pub(super) use cells::Wanted;

use super::head::{Head, Key};
use table::Table;

/// Shapes of a chain.
const MAX_SHAPES: usize = 16;
/// A shorter chain is asked rule by rule.
const MIN_RULES: usize = 48;
/// So many rules are asked one by one before the first look-up: most packets meet one of them, and chains that are returned to go on there.
const NEAR: usize = 16;

/// The header tests of a family, and look-ups for its long chains.
#[derive(Debug)]
pub(super) struct Rows<const N: usize> {
    heads: Vec<Head<N>>,
    chains: Vec<Chain<N>>,
}

/// The look-ups of one chain.
#[derive(Debug)]
struct Chain<const N: usize> {
    /// Number of its first rule.
    start: usize,
    /// Number of its end, which every packet fits.
    end: usize,
    tables: Vec<Table<N>>,
}

impl<const N: usize> Rows<N> {
    pub(super) const fn new() -> Self {
        Rows { heads: Vec::new(), chains: Vec::new() }
    }

    pub(super) fn heads(&self) -> &[Head<N>] {
        &self.heads
    }

    /// Appends a header test.
    pub(super) fn push(&mut self, head: Head<N>) {
        self.heads.push(head);
    }

    /// Makes look-ups for the chain whose rules are those from `start` on, without its end; what they want in the same order.
    pub(super) fn index(&mut self, start: usize, wanted: &[Wanted]) {
        if wanted.len() < MIN_RULES {
            return;
        }
        let tables = table::tables(start, wanted);
        // Not if every packet had to go through most of the rules anyway.
        let always: usize = tables.iter().filter(|t| t.is_of_all()).map(Table::len).sum();
        if 2 * always <= wanted.len() {
            self.chains.push(Chain { start, end: start + wanted.len(), tables });
        }
    }

    /// Bytes of the look-ups.
    pub(super) fn look_up_bytes(&self) -> usize {
        self.chains.iter().flat_map(|c| &c.tables).map(Table::bytes).sum()
    }

    /// The first rule from `at` on whose header test a packet fits, in the chain of `at`; `None` beyond all rules.
    #[inline]
    pub(super) fn next(&self, at: usize, key: &Key<N>, look_up: bool) -> Option<usize> {
        let rest = self.heads.get(at..)?;
        if !look_up || self.chains.is_empty() {
            return rest.iter().position(|h| h.fits(key)).map(|n| at + n);
        }
        let (near, far) = rest.split_at(rest.len().min(NEAR));
        if let Some(n) = near.iter().position(|h| h.fits(key)) {
            return Some(at + n);
        }
        let at = at + near.len();
        match self.chains.get(self.chains.partition_point(|c| c.end < at)).filter(|c| c.start <= at) {
            Some(chain) => Some(chain.next(&self.heads, at, key)),
            None => far.iter().position(|h| h.fits(key)).map(|n| at + n),
        }
    }
}

impl<const N: usize> Chain<N> {
    fn next(&self, heads: &[Head<N>], at: usize, key: &Key<N>) -> usize {
        let mut lists: [&[u32]; MAX_SHAPES] = [&[]; MAX_SHAPES];
        let mut n = 0;
        for table in &self.tables {
            let list = table.find(key);
            let list = &list[list.partition_point(|&r| (r as usize) < at)..];
            if let (false, Some(place)) = (list.is_empty(), lists.get_mut(n)) {
                *place = list;
                n += 1;
            }
        }
        let lists = &mut lists[..n];
        loop {
            let Some(first) = lists.iter_mut().min_by_key(|l| l.first().map_or(u32::MAX, |&r| r)) else { return self.end };
            let Some((&rule, rest)) = first.split_first() else { return self.end };
            *first = rest;
            if heads.get(rule as usize).is_some_and(|h| h.fits(key)) {
                return rule as usize;
            }
        }
    }
}
