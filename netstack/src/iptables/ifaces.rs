//! Names of interfaces, resolved when rules are compiled.
//!
//! There are 258 interfaces (`tap0` … `tap255`, `host0`, `lo`), and "none". Those that no rule tells apart form a class; a rule's
//! header test holds the classes that it admits as bits.

use super::{Iface, IfaceName, Inv};

/// Interfaces, and the absent one.
const COUNT: usize = 259;
/// Number of `host0`.
const HOST0: usize = 256;
/// Number of `lo`.
const LO: usize = 257;
/// Number of the absent interface.
const NONE: usize = 258;
/// Classes that fit into a header test.
const MAX_CLASSES: u8 = 32;

/// Longest name.
const NAME_LEN: usize = 6;

/// The name of an interface, by its number.
fn name_of(i: usize, name: &mut [u8; NAME_LEN]) -> &[u8] {
    match i {
        NONE => &[],
        HOST0 => b"host0",
        LO => b"lo",
        _ => {
            *name = *b"tap000";
            let digits = 1 + usize::from(i > 9) + usize::from(i > 99);
            for (place, n) in name[3..3 + digits].iter_mut().rev().zip([i, i / 10, i / 100]) {
                *place = b'0' + (n % 10) as u8;
            }
            &name[..3 + digits]
        }
    }
}

/// A set of interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IfaceSet([u64; 5]);

impl IfaceSet {
    /// The interfaces that a test admits. The absent one has an empty name: only `+` is a start of it.
    pub(super) fn of(test: &Inv<IfaceName>) -> Self {
        let t = &test.value;
        let mut set = IfaceSet::default();
        for i in 0..COUNT {
            let mut name = [0; NAME_LEN];
            let name = name_of(i, &mut name);
            let fits = if t.prefix { name.starts_with(t.name.as_bytes()) } else { name == t.name.as_bytes() };
            set.0[i / 64] |= u64::from(fits != test.not) << (i % 64);
        }
        set
    }

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
        Some(Iface::Lo) => LO,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_has_its_name() {
        for i in 0..COUNT {
            let name = match i {
                HOST0 => "host0".to_owned(),
                LO => "lo".to_owned(),
                NONE => String::new(),
                _ => format!("tap{i}"),
            };
            assert_eq!(name_of(i, &mut [0; NAME_LEN]), name.as_bytes());
        }
    }
}
