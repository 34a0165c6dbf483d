//! NETMAP: one network becomes another, address by address.

use super::{Manip, Nat, NatRange, bind};
use crate::iptables::Net;
use crate::skb::Skb;
use crate::verdict::DropReason;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Translates the packet's source or destination to the address in `net` that has the same host bits.
///
/// # Errors
/// [`DropReason::NatAddress`] if the net is of the other family; and those of [`bind()`].
pub fn netmap(nat: &mut Nat<'_>, skb: &mut Skb<'_>, manip: Manip, net: &Net) -> Result<(), DropReason> {
    let addr = match manip {
        Manip::Source => skb.src,
        Manip::Destination => skb.dst,
    };
    let addr = match (addr, net.addr, net.mask) {
        (IpAddr::V4(addr), IpAddr::V4(to), IpAddr::V4(mask)) => {
            let mask = mask.to_bits();
            IpAddr::V4(Ipv4Addr::from_bits(to.to_bits() & mask | addr.to_bits() & !mask))
        }
        (IpAddr::V6(addr), IpAddr::V6(to), IpAddr::V6(mask)) => {
            let mask = mask.to_bits();
            IpAddr::V6(Ipv6Addr::from_bits(to.to_bits() & mask | addr.to_bits() & !mask))
        }
        _ => return Err(DropReason::NatAddress),
    };
    bind(nat, skb, manip, &NatRange { addrs: Some((addr, addr)), ..NatRange::default() })
}
