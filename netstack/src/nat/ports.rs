//! Which ports and identifiers a translation may choose from.

use super::mapping::Mapping;
use super::{Manip, NatRange};

/// Ports or identifiers, first and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) first: u16,
    /// 1..=65,536.
    pub(super) count: u32,
}

/// What the search may try; `None` if the port stays as it is: protocols without ports, and destinations for which no
/// ports were given.
///
/// Without given ports a source port stays in its class, which services may rely on: below 512 (rsh checked for those), the
/// other privileged ones from 600 on, and the rest. Identifiers know no classes.
pub(super) fn choice(mapping: &Mapping, manip: Manip, range: &NatRange) -> Option<Choice> {
    let key = mapping.key(manip)?;
    let (first, last) = match range.ports {
        Some((a, b)) => (a.min(b), a.max(b)),
        None if mapping.has_ident() => (0, u16::MAX),
        None if manip == Manip::Destination => return None,
        None => match key {
            0..512 => (1, 511),
            512..1024 => (600, 1023),
            _ => (1024, u16::MAX),
        },
    };
    Some(Choice { first, count: u32::from(last - first) + 1 })
}

/// Whether port or identifier are among those given, if any were. Protocols without are in every range.
pub(super) fn in_range(mapping: &Mapping, manip: Manip, range: &NatRange) -> bool {
    match (mapping.key(manip), range.ports) {
        (Some(key), Some((first, last))) => (first..=last).contains(&key),
        _ => true,
    }
}
