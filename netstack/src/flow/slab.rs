//! Slots with generations.

/// A bounded array of slots. A slot that is given out again has another generation.
#[derive(Debug)]
pub struct Slab<T> {
    pub(super) slots: Vec<Slot<T>>,
    pub(super) free: Vec<u32>,
    pub(super) max: u32,
}

#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) generation: u32,
    pub(super) value: Option<T>,
}

/// Slots that a [`Token`](crate::edge::Token) can name: it has 28 bits for them.
const MAX_SLOTS: u32 = 1 << 28;
/// Generations go round behind this one: a [`Token`](crate::edge::Token) has 28 bits for them.
pub(super) const MAX_GENERATION: u32 = 0xfff_ffff;

impl<T> Slab<T> {
    /// An empty slab for at most `max` values.
    pub fn new(max: u32) -> Self {
        Slab { slots: Vec::new(), free: Vec::new(), max: max.min(MAX_SLOTS) }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no further value fits.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.max as usize
    }

    /// Slot and generation that the next value inserted will have; `None` if the slab is full.
    pub fn next(&self) -> Option<(u32, u32)> {
        match self.free.last() {
            Some(&i) => Some((i, self.slots[i as usize].generation)),
            None => (self.slots.len() < self.max as usize).then_some((self.slots.len() as u32, 0)),
        }
    }

    /// Puts a value into a free slot, made from its index and generation; `None` if the slab is full.
    pub fn insert(&mut self, make: impl FnOnce(u32, u32) -> T) -> Option<u32> {
        let index = match self.free.pop() {
            Some(i) => i,
            None if self.slots.len() < self.max as usize => {
                self.slots.push(Slot { generation: 0, value: None });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let slot = &mut self.slots[index as usize];
        slot.value = Some(make(index, slot.generation));
        Some(index)
    }

    /// Takes a value out.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & MAX_GENERATION;
        self.free.push(index);
        Some(value)
    }

    /// The value in a slot, whatever its generation.
    pub fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.value.as_ref()
    }

    /// The value in a slot, whatever its generation.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    /// The value in a slot if it is still of that generation.
    pub fn get_live(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != generation {
            return None;
        }
        slot.value.as_mut()
    }

    /// Slots that have values.
    pub fn occupied(&self) -> Vec<u32> {
        self.iter().map(|(i, _)| i).collect()
    }

    /// All values with their slots, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(i, s)| Some((i as u32, s.value.as_mut()?)))
    }

    /// All values with their slots.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, s)| Some((i as u32, s.value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_does_not_answer_to_its_old_generation() {
        let mut s = Slab::new(1);
        let mut generation = 0;
        let i = s
            .insert(|_, g| {
                generation = g;
                'a'
            })
            .unwrap();
        assert!(s.is_full() && s.insert(|_, _| 'b').is_none());
        assert_eq!(s.next(), None);
        assert_eq!(s.remove(i), Some('a'));
        assert_eq!(s.next(), Some((i, generation + 1)));
        assert_eq!(s.insert(|_, _| 'c'), Some(i));
        assert!(s.get_live(i, generation).is_none());
        assert_eq!(s.get(i), Some(&'c'));
    }
}
