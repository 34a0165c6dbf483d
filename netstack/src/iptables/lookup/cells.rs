//! What a rule wants of addresses and ports, and the cells of a shape that have it.

use super::shape::{SIDES, Shape, width};

/// Intervals of a side, at most: as many as `multiport` has ports.
const MAX_INTERVALS: usize = 15;

/// First and last value that a rule admits on a side.
type Interval = (u128, u128);

/// What a rule wants: intervals by side, none where it wants nothing.
#[derive(Clone, Debug, Default)]
pub(in crate::iptables) struct Wanted {
    sides: [Vec<Interval>; SIDES],
    /// No packet fits.
    never: bool,
}

impl Wanted {
    /// A rule that no packet fits.
    pub(in crate::iptables) fn nothing() -> Self {
        Wanted { never: true, ..Wanted::default() }
    }

    /// Wants a value of a side to be in one of some intervals. What was wanted before of this side stays if there was something, or if these are
    /// too many to be looked up.
    pub(in crate::iptables) fn want(&mut self, side: usize, intervals: impl Iterator<Item = Interval>) {
        let place = &mut self.sides[side];
        if place.is_empty() {
            place.extend(intervals.filter(|(first, last)| first <= last).take(MAX_INTERVALS + 1));
            if place.len() > MAX_INTERVALS {
                place.clear();
            }
        }
    }

    pub(super) const fn is_never(&self) -> bool {
        self.never
    }

    /// The finest shape in which the rule has no more than so many cells.
    pub(super) fn shape<const N: usize>(&self, most: usize) -> Shape {
        let mut shape = Shape(core::array::from_fn(|side| bits(&self.sides[side], width::<N>(side))));
        let cells = |shape: &Shape| -> usize {
            (0..SIDES).map(|side| count(&self.sides[side], shape.0[side], width::<N>(side))).product()
        };
        // The side with the most cells is given up first.
        while cells(&shape) > most.max(1) {
            let worst = (0..SIDES).max_by_key(|&side| count(&self.sides[side], shape.0[side], width::<N>(side)));
            worst.into_iter().for_each(|side| shape.0[side] = 0);
        }
        shape
    }

    /// Hands out a value of each cell that the rule has in a shape which [holds](Shape::holds) its own; some maybe twice.
    pub(super) fn cells<const N: usize>(&self, shape: Shape, mut f: impl FnMut(&[u128; SIDES])) {
        let ends = |side: usize| -> Vec<u128> {
            let bits = shape.0[side];
            let all = self.sides[side].iter().filter(|_| bits > 0).flat_map(|&(first, last)| [first, last]);
            let shift = width::<N>(side) - bits;
            let mut cells: Vec<u128> = all.map(|end| end >> shift << shift).collect();
            cells.sort_unstable();
            cells.dedup();
            if cells.is_empty() {
                cells.push(0);
            }
            cells
        };
        let [a, b, c, d] = core::array::from_fn(ends);
        for (&a, &b) in a.iter().flat_map(|a| b.iter().map(move |b| (a, b))) {
            for (&c, &d) in c.iter().flat_map(|c| d.iter().map(move |d| (c, d))) {
                f(&[a, b, c, d]);
            }
        }
    }
}

/// Leading bits by which every interval is in two cells at most, next to each other: cells are no smaller than the interval.
fn bits(intervals: &[Interval], width: u8) -> u8 {
    let of = |&(first, last): &Interval| width.saturating_sub((u128::BITS - (last - first).leading_zeros()) as u8);
    intervals.iter().map(of).min().unwrap_or(0)
}

/// Cells of a side, at most.
fn count(intervals: &[Interval], bits: u8, width: u8) -> usize {
    if bits == 0 {
        return 1;
    }
    let cells = |&(first, last): &Interval| 1 + usize::from(first >> (width - bits) != last >> (width - bits));
    intervals.iter().map(cells).sum::<usize>().max(1)
}
