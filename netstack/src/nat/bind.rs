//! Deciding a connection's translation, once per end, while its first packet is on its way.

use super::mapping::Mapping;
use super::search::search;
use super::{Manip, Nat, NatRange, address, ports};
use crate::conntrack::{Addr, Conn, CtTuple, Dir, Status, Track};
use crate::skb::Skb;
use crate::verdict::DropReason;

/// Decides to what the source or destination of a new connection is translated: within `range`, and so that no other
/// connection's packets look the same (Linux's `nf_nat_setup_info`). The packet itself is changed by [`super::apply`].
///
/// Nothing happens to packets that are not the first of a connection, nor to an end that was decided before.
///
/// # Errors
/// [`DropReason::NatExhausted`] if a source must be translated and every port that was tried is taken; a destination
/// that clashes is left to the source, whose port may still change. [`DropReason::NatAddress`] if the range is of the other family.
pub fn bind(nat: &mut Nat<'_>, skb: &mut Skb<'_>, manip: Manip, range: &NatRange) -> Result<(), DropReason> {
    let mut given = Status::default();
    if manip == Manip::Source && range.addrs.is_some() {
        given.set(Status::SRC_ADDR_GIVEN);
    }
    decide(nat, skb, manip, range, given)
}

/// Decides that an end keeps its address, because no rule said otherwise. Its source port may still have to change.
///
/// # Errors
/// As [`bind`].
pub fn bind_null(nat: &mut Nat<'_>, skb: &mut Skb<'_>, manip: Manip) -> Result<(), DropReason> {
    let Track::Fresh { conn, related: false, .. } = &skb.track else { return Ok(()) };
    let addr = Mapping::of(conn).addr(manip).ip(conn.tuples[0].v6);
    decide(nat, skb, manip, &NatRange { addrs: Some((addr, addr)), ..NatRange::default() }, Status::default())
}

/// As [`bind`]; `given` is what the rule named besides ports.
pub(super) fn decide(
    nat: &mut Nat<'_>,
    skb: &mut Skb<'_>,
    manip: Manip,
    range: &NatRange,
    given: Status,
) -> Result<(), DropReason> {
    let v6 = skb.is_v6();
    let Track::Fresh { conn, related: false, .. } = &mut skb.track else { return Ok(()) };
    if conn.status.has(manip.done()) {
        return Ok(());
    }
    if range.addrs.is_some_and(|(first, last)| first.is_ipv6() != v6 || last.is_ipv6() != v6) {
        return Err(DropReason::NatAddress);
    }
    conn.status.set(given);
    if manip == Manip::Source && range.ports.is_some() && conn.tuples[0].has_ports() {
        conn.status.set(Status::SRC_PORT_GIVEN);
    }
    let before = Mapping::of(conn);
    let (mapping, free) = unique(nat, conn, manip, range);
    if manip == Manip::Source && !free {
        return Err(DropReason::NatExhausted);
    }
    if mapping != before {
        conn.tuples[Dir::Reply as usize] = *mapping.reply();
        conn.status.set(manip.translated());
    }
    conn.status.set(manip.done());
    Ok(())
}

/// Whether no other connection looks like the mapping, and the host gives it the port if it must.
pub(super) fn is_free(nat: &Nat<'_>, conn: &Conn, mapping: &Mapping) -> bool {
    !nat.table.taken(nat.now, conn, mapping.reply()) && is_granted(nat, conn, mapping)
}

/// The latter alone. Destinations are decided before sources, so nothing is given yet then.
pub(super) fn is_granted(nat: &Nat<'_>, conn: &Conn, mapping: &Mapping) -> bool {
    !conn.status.has(Status::SRC_PORT_GIVEN) || nat.addrs.grants(conn, mapping.reply())
}

/// The mapping, and whether it is known to be free or need not be.
fn unique(nat: &mut Nat<'_>, conn: &Conn, manip: Manip, range: &NatRange) -> (Mapping, bool) {
    let current = Mapping::of(conn);
    let keep = !range.random && !range.random_fully;
    if manip == Manip::Source && keep {
        if address::in_range(&current, range) && ports::in_range(&current, manip, range) {
            if is_free(nat, conn, &current) {
                return (current, true);
            }
        } else if let Some(mapping) = mapping_of_source(nat, conn, current, range)
            && is_free(nat, conn, &mapping)
        {
            return (mapping, true);
        }
    }
    let mut mapping = current;
    address::choose(&mut mapping, manip, range, conn.tuples[Dir::Original as usize].zone);
    if keep && range.base.is_none() && ports::in_range(&mapping, manip, range) {
        let free = is_free(nat, conn, &mapping);
        let single = range.ports.is_some_and(|(first, last)| first == last);
        if free || single {
            return (mapping, free);
        }
    }
    let free = search(nat, conn, &mut mapping, manip, range);
    (mapping, free)
}

/// What another connection of the same source is translated to, if the range allows that.
fn mapping_of_source(nat: &Nat<'_>, conn: &Conn, current: Mapping, range: &NatRange) -> Option<Mapping> {
    let mut found = None;
    let mut source: CtTuple = conn.tuples[Dir::Original as usize];
    if current.has_ident() {
        // Both ends have the identifier, so that translating the destination may have changed it.
        source.sport = current.key(Manip::Source).unwrap_or(source.sport);
    }
    nat.table.source_mapping(nat.now, &source, &mut |addr: Addr, key: u16| {
        let mut mapping = current;
        mapping.set_addr(Manip::Source, addr);
        mapping.set_key(Manip::Source, key);
        let fits = address::in_range(&mapping, range) && ports::in_range(&mapping, Manip::Source, range);
        if fits {
            found = Some(mapping);
        }
        fits
    });
    found
}
