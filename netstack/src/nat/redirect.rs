//! REDIRECT: the destination becomes the router itself.

use super::{Manip, Nat, NatRange, bind};
use crate::iptables::Hook;
use crate::skb::Skb;
use crate::verdict::DropReason;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Translates the destination of a new connection to our first address on the interface through which it came, or to
/// loopback if we made the packet; `range` gives ports and their options.
///
/// # Errors
/// [`DropReason::NatAddress`] if the interface has no address of this family; and those of [`bind()`].
pub fn redirect(nat: &mut Nat<'_>, skb: &mut Skb<'_>, hook: Hook, range: &NatRange) -> Result<(), DropReason> {
    let v6 = skb.is_v6();
    let addr = match (hook, skb.input) {
        (Hook::Output, _) if v6 => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        (Hook::Output, _) => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (_, Some(input)) => nat.addrs.first(input, v6),
        _ => None,
    };
    let addr = addr.ok_or(DropReason::NatAddress)?;
    bind(nat, skb, Manip::Destination, &NatRange { addrs: Some((addr, addr)), ..*range })
}
