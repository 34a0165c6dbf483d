//! Names of interfaces, resolved when rules are compiled.
//!
//! There are 257 interfaces (`tap0` … `tap255`, `host0`), and "none". Those that no rule tells apart form a class; a rule's
//! header test holds the classes that it admits as bits.

use super::{Iface, IfaceName, Inv};

/// Interfaces, and the absent one.
const COUNT: usize = 258;
/// Number of `host0`.
const HOST0: usize = 256;
/// Number of the absent interface.
const NONE: usize = 257;
/// Classes that fit into a header test.
const MAX_CLASSES: u8 = 32;

/// A set of interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IfaceSet([u64; 5]);

/// The names of all interfaces, by number. The absent one has an empty name: only `+` is a start of it.
#[derive(Debug)]
pub(super) struct IfaceNames(Vec<String>);

impl IfaceNames {
    pub(super) fn new() -> Self {
        IfaceNames((0..HOST0).map(|i| format!("tap{i}")).chain(["host0".into(), String::new()]).collect())
    }

    /// The interfaces that a test admits.
    pub(super) fn set(&self, test: &Inv<IfaceName>) -> IfaceSet {
        let t = &test.value;
        let mut set = IfaceSet::default();
        for (i, name) in self.0.iter().enumerate() {
            let fits = if t.prefix { name.starts_with(&t.name) } else { *name == t.name };
            set.0[i / 64] |= u64::from(fits != test.not) << (i % 64);
        }
        set
    }
}

impl IfaceSet {
    /// Whether an interface is in it.
    pub(super) fn has(&self, iface: Option<Iface>) -> bool {
        self.bit(number(iface))
    }

    fn bit(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 != 0
    }
}

fn number(iface: Option<Iface>) -> usize {
    match iface {
        Some(Iface::Link(l)) => l.0.into(),
        Some(Iface::Host0) => HOST0,
        None => NONE,
    }
}

/// Interfaces by class.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    class: [u8; COUNT],
    count: u8,
}

impl Default for Classes {
    fn default() -> Self {
        Classes { class: [0; COUNT], count: 1 }
    }
}

impl Classes {
    /// Splits the classes that are partly in a set, unless there would be too many.
    pub(super) fn admit(&mut self, set: &IfaceSet) {
        let mut next = self.clone();
        let mut inside = [false; MAX_CLASSES as usize];
        for i in (0..COUNT).filter(|i| set.bit(*i)) {
            inside[usize::from(self.class[i])] = true;
        }
        // The part of a class that is outside becomes a new one.
        let mut outside = [None; MAX_CLASSES as usize];
        for i in (0..COUNT).filter(|i| !set.bit(*i)) {
            let c = usize::from(self.class[i]);
            if inside[c] {
                if outside[c].is_none() && next.count == MAX_CLASSES {
                    return;
                }
                next.class[i] = *outside[c].get_or_insert_with(|| {
                    next.count += 1;
                    next.count - 1
                });
            }
        }
        *self = next;
    }

    /// The bits of a set; `None` if a class is partly in it.
    pub(super) fn exact(&self, set: &IfaceSet) -> Option<u32> {
        let bits = |inside| (0..COUNT).filter(|i| set.bit(*i) == inside).fold(0, |bits, i| bits | 1 << self.class[i]);
        Some(bits(true)).filter(|inside: &u32| inside & bits(false) == 0)
    }

    /// The bit of an interface.
    pub(super) fn of(&self, iface: Option<Iface>) -> u32 {
        1 << self.class[number(iface)]
    }
}
