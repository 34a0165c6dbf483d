//! MASQUERADE: the source becomes the address of the interface through which the packet leaves.

use super::bind::decide;
use super::{Manip, Nat, NatRange};
use crate::conntrack::{Dir, Status, Track};
use crate::skb::Skb;
use crate::verdict::DropReason;

/// Translates the source of a new connection to the primary address of its way out; `range` gives ports and their options.
/// A packet from 0.0.0.0 (of somebody who asks for his address) is left as it is.
///
/// # Errors
/// [`DropReason::NatAddress`] if the way out has no address of this family; and those of [`bind()`](super::bind()).
pub fn masquerade(nat: &mut Nat<'_>, skb: &mut Skb<'_>, range: &NatRange) -> Result<(), DropReason> {
    let Track::Fresh { conn, related: false, .. } = &skb.track else { return Ok(()) };
    let source = conn.tuples[Dir::Original as usize].src_ip();
    if source.is_ipv4() && source.is_unspecified() {
        return Ok(());
    }
    let out = skb.output.ok_or(DropReason::NatAddress)?;
    let addr = nat.addrs.primary(out, skb.is_v6()).ok_or(DropReason::NatAddress)?;
    // On `host0` the host's kernel takes the address by the route.
    decide(nat, skb, Manip::Source, &NatRange { addrs: Some((addr, addr)), ..*range }, Status::default())
}
