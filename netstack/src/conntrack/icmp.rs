//! ICMP and ICMPv6: queries are connections, errors belong to what they quote, and some kinds are never tracked.

use super::config::CtConfig;
use super::conn::{Conn, Dir};
use super::proto::{Invalid, Kind};
use super::quote::Quote;
use super::tuple::Addr;
use crate::packet::L4;
use crate::skb::Skb;
use core::time::Duration;

/// Highest type that Linux knows of ICMP; what is above is INVALID.
const MAX_V4_TYPE: u8 = 18;

/// The type that answers a type, or is answered by it.
pub(super) const fn counterpart(ty: u8, v6: bool) -> Option<u8> {
    Some(match (v6, ty) {
        // Echo, timestamp, information, address mask.
        (false, 8) => 0,
        (false, 0) => 8,
        (false, 13) => 14,
        (false, 14) => 13,
        (false, 15) => 16,
        (false, 16) => 15,
        (false, 17) => 18,
        (false, 18) => 17,
        // Echo, node information (RFC 4620).
        (true, 128) => 129,
        (true, 129) => 128,
        (true, 139) => 140,
        (true, 140) => 139,
        _ => return None,
    })
}

/// Whether a type asks, so that a connection may begin with it.
pub(super) const fn asks(ty: u8, v6: bool) -> bool {
    match v6 {
        false => matches!(ty, 8 | 13 | 15 | 17),
        true => matches!(ty, 128 | 139),
    }
}

/// What kind of message it is, for tracking.
pub(super) fn kind(l4: &L4) -> Result<Kind, Invalid> {
    match l4 {
        L4::Icmp(h) => match h.ty {
            // Unreachable, source quench, redirect, time exceeded, parameter problem.
            3 | 4 | 5 | 11 | 12 => Ok(Kind::IcmpError),
            0..=MAX_V4_TYPE => Ok(Kind::Packet),
            _ => Err(Invalid::IcmpType),
        },
        L4::Icmpv6(h) => match h.ty {
            0..128 => Ok(Kind::IcmpError),
            // Multicast listeners (RFC 2710, 3810), neighbour discovery (RFC 4861), multicast routers (RFC 4286).
            130..=136 | 143 | 151 | 152 => Ok(Kind::Exempt),
            _ => Ok(Kind::Packet),
        },
        _ => Err(Invalid::Truncated),
    }
}

pub(super) fn begins(l4: &L4) -> Result<(), Invalid> {
    match l4 {
        L4::Icmp(h) if asks(h.ty, false) => Ok(()),
        L4::Icmpv6(h) if asks(h.ty, true) => Ok(()),
        _ => Err(Invalid::IcmpType),
    }
}

pub(super) const fn timeout(cfg: &CtConfig, v6: bool) -> Duration {
    if v6 { cfg.timeouts.icmpv6 } else { cfg.timeouts.icmp }
}

/// Whether an ICMP error may be about a connection of which it quotes a packet: the error must go where packets of the
/// direction `dir` go, in which [`Quote::expected`] was found. Otherwise anyone could have any packet called RELATED.
pub fn concerns(skb: &Skb<'_>, conn: &Conn, dir: Dir) -> bool {
    conn.tuples[dir as usize].dst == Addr::from(skb.dst)
}

/// Reads what an ICMP error quotes; see [`Quote::of`].
pub fn quoted(skb: &Skb<'_>) -> Result<Quote, Invalid> {
    Quote::of(skb)
}
