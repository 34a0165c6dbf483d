//! Slots in the order of their last use.

const NONE: u32 = u32::MAX;

/// A list of slot numbers, the one used longest ago first. Every operation takes constant time.
#[derive(Debug)]
pub struct Lru {
    links: Vec<Link>,
    oldest: u32,
    youngest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    older: u32,
    younger: u32,
    listed: bool,
}

impl Default for Lru {
    fn default() -> Self {
        Lru { links: Vec::new(), oldest: NONE, youngest: NONE }
    }
}

impl Lru {
    /// Makes a slot the youngest, whether it was in the list or not.
    pub fn touch(&mut self, slot: u32) {
        if self.youngest == slot {
            return;
        }
        self.remove(slot);
        let at = slot as usize;
        if self.links.len() <= at {
            self.links.resize(at + 1, Link { older: NONE, younger: NONE, listed: false });
        }
        self.links[at] = Link { older: self.youngest, younger: NONE, listed: true };
        match self.links.get_mut(self.youngest as usize) {
            Some(before) => before.younger = slot,
            None => self.oldest = slot,
        }
        self.youngest = slot;
    }

    /// Takes a slot out, if it is in.
    pub fn remove(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        if !link.listed {
            return;
        }
        link.listed = false;
        let Link { older, younger, .. } = *link;
        match self.links.get_mut(older as usize) {
            Some(l) => l.younger = younger,
            None => self.oldest = younger,
        }
        match self.links.get_mut(younger as usize) {
            Some(l) => l.older = older,
            None => self.youngest = older,
        }
    }

    /// Whether a slot is in the list.
    pub fn contains(&self, slot: u32) -> bool {
        self.links.get(slot as usize).is_some_and(|l| l.listed)
    }

    /// All slots, the one used longest ago first.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        core::iter::successors(self.oldest(), |&slot| {
            self.links.get(slot as usize).map(|l| l.younger).filter(|&next| next != NONE)
        })
    }

    /// The slot used longest ago.
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_plain_list(ops in proptest::collection::vec((0u32..12, any::<bool>()), 0..200)) {
            let (mut lru, mut plain) = (Lru::default(), Vec::new());
            for (slot, touch) in ops {
                plain.retain(|&s| s != slot);
                if touch {
                    plain.push(slot);
                    lru.touch(slot);
                } else {
                    lru.remove(slot);
                }
                prop_assert_eq!(lru.oldest(), plain.first().copied());
                prop_assert_eq!(lru.iter().collect::<Vec<_>>(), plain.clone());
            }
            for slot in plain {
                prop_assert_eq!(lru.oldest(), Some(slot));
                lru.remove(slot);
            }
            prop_assert_eq!(lru.oldest(), None);
        }
    }
}
