//! The rules of one shape, by cell.

use super::MAX_SHAPES;
use super::cells::Wanted;
use super::shape::{Mask, Shape};
use crate::iptables::head::Key;
use std::collections::BTreeMap;

/// Cells of a rule, at most.
const MAX_CELLS: usize = 32;
/// Cells of the rules of a chain, at most; a chain of more rules has one for each.
const MAX_CELLS_OF_CHAIN: usize = 400_000;

/// Rules of a shape.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    shape: Shape,
    mask: Mask<N>,
    /// By hash of the cell, with open places, at most half of them taken. Cells of the same hash are taken for one.
    places: Box<[Place]>,
    /// Numbers of the rules, cell after cell, ascending in each.
    rules: Box<[u32]>,
}

/// The rules of a cell; free if there are none.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    hash: u32,
    first: u32,
    len: u32,
}

/// Tables for the rules of a chain, the first of which has this number.
pub(super) fn tables<const N: usize>(start: usize, wanted: &[Wanted]) -> Vec<Table<N>> {
    let most = (MAX_CELLS_OF_CHAIN / wanted.len().max(1)).clamp(1, MAX_CELLS);
    let shapes: Vec<Shape> = wanted.iter().map(|w| w.shape::<N>(most)).collect();
    let (chosen, shapes) = choose::<N>(shapes);
    let mut entries: Vec<Vec<(u32, u32)>> = vec![Vec::new(); chosen.len()];
    let masks: Vec<Mask<N>> = chosen.iter().map(|s| Mask::of(*s)).collect();
    for (n, (wanted, shape)) in wanted.iter().zip(&shapes).enumerate().filter(|(_, (w, _))| !w.is_never()) {
        let fits = |(s, _): &(&Shape, usize)| s.holds(*shape);
        // That of no bits is always among them.
        let best = chosen.iter().zip(0..).filter(fits).max_by_key(|(s, _)| s.bits());
        let Some((shape, at)) = best else { continue };
        wanted.cells::<N>(*shape, |sides| entries[at].push((masks[at].hash_of(sides), (start + n) as u32)));
    }
    let tables = chosen.into_iter().zip(masks).zip(entries);
    tables.filter(|(_, e)| !e.is_empty()).map(|((shape, mask), e)| Table::new(shape, mask, e)).collect()
}

/// The shapes to have tables for, and the rules' own. If there are too many, all are made coarser, and the most frequent ones chosen.
fn choose<const N: usize>(mut shapes: Vec<Shape>) -> (Vec<Shape>, Vec<Shape>) {
    if count(&shapes).len() >= MAX_SHAPES {
        shapes.iter_mut().for_each(|s| *s = s.coarser::<N>());
    }
    let mut counts: Vec<(Shape, usize)> = count(&shapes).into_iter().filter(|(s, _)| *s != Shape::ALL).collect();
    counts.sort_by_key(|&(_, n)| core::cmp::Reverse(n));
    let mut chosen: Vec<Shape> = counts.into_iter().map(|(s, _)| s).take(MAX_SHAPES - 1).collect();
    chosen.push(Shape::ALL);
    (chosen, shapes)
}

fn count(shapes: &[Shape]) -> BTreeMap<Shape, usize> {
    let mut counts = BTreeMap::new();
    shapes.iter().for_each(|&s| *counts.entry(s).or_insert(0) += 1);
    counts
}

impl<const N: usize> Table<N> {
    fn new(shape: Shape, mask: Mask<N>, mut entries: Vec<(u32, u32)>) -> Self {
        entries.sort_unstable();
        entries.dedup();
        let cells = entries.chunk_by(|a, b| a.0 == b.0).count();
        let mut places = vec![Place::default(); (2 * cells).next_power_of_two()];
        let last = places.len() - 1;
        let mut first = 0;
        for cell in entries.chunk_by(|a, b| a.0 == b.0) {
            let hash = cell[0].0;
            let mut at = hash as usize & last;
            while places[at].len != 0 {
                at = (at + 1) & last;
            }
            places[at] = Place { hash, first, len: cell.len() as u32 };
            first += cell.len() as u32;
        }
        Table { shape, mask, places: places.into(), rules: entries.into_iter().map(|(_, rule)| rule).collect() }
    }

    /// The rules that a packet may fit, ascending.
    #[inline]
    pub(super) fn find(&self, key: &Key<N>) -> &[u32] {
        let hash = self.mask.hash(key);
        let last = self.places.len() - 1;
        let mut at = hash as usize & last;
        loop {
            match self.places.get(at) {
                Some(p) if p.len != 0 && p.hash != hash => at = (at + 1) & last,
                Some(p) => return self.rules.get(p.first as usize..(p.first + p.len) as usize).unwrap_or_default(),
                None => return &[],
            }
        }
    }

    /// Whether every packet goes through its rules.
    pub(super) fn is_of_all(&self) -> bool {
        self.shape == Shape::ALL
    }

    pub(super) const fn len(&self) -> usize {
        self.rules.len()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.places) + size_of_val(&*self.rules)
    }
}
