//! Slabs as they are saved: slots keep their places and generations, so that tokens stay valid.

use super::{Lru, Slab};
use crate::state::{Invalid, invalid};
use serde::{Deserialize, Serialize};

/// A [`Slab`] whose values are saved as `S`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlabState<S> {
    /// Generation and value of every slot that was ever used.
    pub(crate) slots: Vec<(u32, Option<S>)>,
    /// Free slots; the last one is given out next.
    pub(crate) free: Vec<u32>,
}

impl<S> SlabState<S> {
    /// The values with their slots.
    pub(crate) fn values(&self) -> impl Iterator<Item = (u32, &S)> {
        self.slots.iter().enumerate().filter_map(|(i, (_, s))| Some((i as u32, s.as_ref()?)))
    }
}

impl<T> Slab<T> {
    /// The slab with each value as `save` makes it.
    pub(crate) fn save<S>(&self, save: impl Fn(&T) -> S) -> SlabState<S> {
        SlabState {
            slots: self.slots.iter().map(|s| (s.generation, s.value.as_ref().map(&save))).collect(),
            free: self.free.clone(),
        }
    }

    /// A slab as it was, for at most `max` values; `restore` makes a value from its slot, generation and state.
    pub(crate) fn restore<S>(
        state: SlabState<S>,
        max: u32,
        mut restore: impl FnMut(u32, u32, S) -> Result<T, Invalid>,
    ) -> Result<Self, Invalid> {
        let SlabState { slots, free } = state;
        if slots.len() > max as usize {
            return Err(invalid("more slots than there may be flows"));
        }
        let mut vacant = vec![false; slots.len()];
        for &i in &free {
            match (vacant.get_mut(i as usize), slots.get(i as usize)) {
                (Some(seen), Some((_, None))) if !*seen => *seen = true,
                _ => return Err(invalid("a free slot that is none")),
            }
        }
        let mut live = Vec::with_capacity(slots.len());
        for (i, (generation, value)) in slots.into_iter().enumerate() {
            if generation > super::slab::MAX_GENERATION || value.is_none() != vacant[i] {
                return Err(invalid("a slot that is neither free nor occupied"));
            }
            let value = value.map(|v| restore(i as u32, generation, v)).transpose()?;
            live.push(super::slab::Slot { generation, value });
        }
        Ok(Slab { slots: live, free, max })
    }
}

impl Lru {
    /// The slots in it, the one used longest ago first.
    pub(crate) fn save(&self) -> Vec<u32> {
        self.iter().collect()
    }

    /// A list as it was. `belongs` says whether a slot may be in it.
    pub(crate) fn restore(slots: &[u32], belongs: impl Fn(u32) -> bool) -> Result<Self, Invalid> {
        let mut lru = Lru::default();
        for &slot in slots {
            if !belongs(slot) || lru.contains(slot) {
                return Err(invalid("a flow that is listed by mistake among those that were not answered"));
            }
            lru.touch(slot);
        }
        Ok(lru)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slab() -> Slab<u32> {
        let mut slab = Slab::new(8);
        let slots: Vec<u32> = (0..5).filter_map(|n| slab.insert(|_, _| n * 10)).collect();
        slab.remove(slots[3]);
        slab.remove(slots[1]);
        slab
    }

    fn restore(state: SlabState<u32>, max: u32) -> Result<Slab<u32>, Invalid> {
        Slab::restore(state, max, |_, _, n| Ok(n))
    }

    #[test]
    fn slots_keep_their_places_and_are_given_out_in_the_same_order() {
        let mut slab = slab();
        let mut again = restore(slab.save(|n| *n), 8).unwrap();
        assert_eq!(again.save(|n| *n), slab.save(|n| *n));
        for _ in 0..5 {
            let next = |s: &mut Slab<u32>| s.insert(|index, generation| index * 100 + generation);
            let (a, b) = (next(&mut slab), next(&mut again));
            assert_eq!((a, a.and_then(|a| slab.get(a))), (b, b.and_then(|b| again.get(b))));
        }
        assert_eq!(again.insert(|_, _| 0), slab.insert(|_, _| 0));
    }

    #[test]
    fn slots_that_contradict_their_free_list_are_refused() {
        let state = slab().save(|n| *n);
        assert!(restore(state.clone(), 5).is_ok() && restore(state.clone(), 4).is_err());
        let refused = |forge: &dyn Fn(&mut SlabState<u32>)| {
            let mut state = state.clone();
            forge(&mut state);
            assert!(restore(state, 8).is_err());
        };
        refused(&|s| s.free.push(1));
        refused(&|s| s.free.push(0));
        refused(&|s| s.free.push(9));
        refused(&|s| s.free.truncate(1));
        refused(&|s| s.slots[0].1 = None);
        refused(&|s| s.slots[1].1 = Some(1));
        refused(&|s| s.slots[2].0 = super::super::slab::MAX_GENERATION + 1);
    }

    #[test]
    fn a_list_by_age_keeps_its_order_and_has_nobody_twice() {
        let mut lru = Lru::default();
        [4, 2, 7, 2].into_iter().for_each(|slot| lru.touch(slot));
        assert_eq!(lru.save(), [4, 7, 2]);
        assert_eq!(Lru::restore(&[4, 7, 2], |_| true).unwrap().save(), [4, 7, 2]);
        assert!(Lru::restore(&[4, 7, 4], |_| true).is_err());
        assert!(Lru::restore(&[4, 7], |slot| slot == 4).is_err());
    }
}
