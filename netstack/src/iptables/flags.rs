//! TCP flags that no rule tells apart.

/// Most tests that are looked at; with more of them, every combination of flags is a class of its own.
const MAX_TESTS: usize = 64;

/// Combinations of TCP flags by class: those of one class give the same answer to every test of a ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlagClasses(Box<[u8; 256]>);

impl FlagClasses {
    /// By tests: bits that are looked at, and what they must be.
    pub(super) fn of(tests: impl Iterator<Item = (u8, u8)>) -> Self {
        let mut distinct: Vec<(u8, u8)> = Vec::new();
        for test in tests {
            if distinct.len() > MAX_TESTS {
                break;
            }
            if !distinct.contains(&test) {
                distinct.push(test);
            }
        }
        let mut classes = [0; 256];
        if distinct.len() > MAX_TESTS {
            (0..=u8::MAX).zip(&mut classes).for_each(|(flags, class)| *class = flags);
        } else {
            distinct.iter().for_each(|&(mask, value)| split(&mut classes, |flags| flags & mask == value));
        }
        FlagClasses(Box::new(classes))
    }

    /// The class of a combination.
    #[inline]
    pub(super) fn class(&self, flags: u8) -> u8 {
        self.0[usize::from(flags)]
    }
}

/// Splits the classes of which a test admits a part: that becomes a class of its own.
fn split(classes: &mut [u8; 256], fits: impl Fn(u8) -> bool) {
    let mut next = classes.iter().max().map_or(0, |&last| u16::from(last) + 1);
    let mut parts = [[None; 2]; 256];
    for (flags, class) in (0..=u8::MAX).zip(classes) {
        let [inside, outside] = parts[usize::from(*class)];
        let part = &mut parts[usize::from(*class)][usize::from(!fits(flags))];
        *class = *part.get_or_insert_with(|| {
            // The first part that is met keeps the number.
            if inside.is_none() && outside.is_none() {
                return *class;
            }
            next += 1;
            (next - 1) as u8
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_of_one_class_if_and_only_if_no_test_tells_them_apart() {
        let sets: [&[(u8, u8)]; 5] =
            [&[], &[(0x17, 0x02)], &[(0x06, 0x02), (0x3f, 0), (0x3f, 0x29)], &[(0x03, 0x03), (0x10, 0x10), (0x04, 0)], &[(1, 2)]];
        for tests in sets {
            let classes = FlagClasses::of(tests.iter().copied());
            let answers = |flags: u8| tests.iter().map(move |&(mask, value)| flags & mask == value);
            for (a, b) in (0..=u8::MAX).flat_map(|a| (0..=u8::MAX).map(move |b| (a, b))) {
                assert_eq!(classes.class(a) == classes.class(b), answers(a).eq(answers(b)), "{tests:?} {a:#x} {b:#x}");
            }
        }
    }

    #[test]
    fn with_very_many_tests_every_combination_is_a_class() {
        let classes = FlagClasses::of((0..100).map(|n| (0xff, n)));
        assert!((0..=u8::MAX).all(|flags| classes.class(flags) == flags));
        let each = FlagClasses::of((0..8).map(|bit| (1 << bit, 1 << bit)));
        let mut all: Vec<u8> = (0..=u8::MAX).map(|flags| each.class(flags)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256, "eight tests can tell all apart");
    }
}
