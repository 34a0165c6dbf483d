//! The search for a port or identifier that nobody else uses.

use super::bind::{is_free, is_granted};
use super::mapping::Mapping;
use super::{Manip, Nat, NatRange, ports};
use crate::conntrack::{Conn, Proto, tcp::TcpState};

/// How many are tried in the first round; each further round tries half as many.
const ATTEMPTS: u32 = 128;
/// Rounds of fewer than this are not begun.
const LEAST: u32 = 16;
/// So many tries before the end of a round, a closed connection that is in the way is thrown out.
const HARDER: u32 = 32;

/// Tries ports from a start on, at most 128 of them, then half as many from a random one, and so on: bounded, however
/// full the range is. Leaves the last one in the mapping; says whether it is free.
pub(super) fn search(nat: &mut Nat<'_>, conn: &Conn, mapping: &mut Mapping, manip: Manip, range: &NatRange) -> bool {
    let Some(choice) = ports::choice(mapping, manip, range) else {
        return is_free(nat, conn, mapping);
    };
    let mut offset = match range.base {
        Some(base) => mapping.key(manip).unwrap_or(base).wrapping_sub(base),
        None if range.random || range.random_fully || manip == Manip::Source => nat.rng.u32() as u16,
        None => 0,
    };
    let opening = matches!(conn.proto, Proto::Tcp(t) if t.state == TcpState::SynSent);
    let mut attempts = choice.count.min(ATTEMPTS);
    loop {
        for left in (1..=attempts).rev() {
            // Below 2^16: the last one of the choice is a port.
            let key = u32::from(choice.first) + u32::from(offset) % choice.count;
            mapping.set_key(manip, key as u16);
            offset = offset.wrapping_add(1);
            let in_table = if opening && left <= HARDER {
                nat.table.taken_by_living(nat.now, conn, mapping.reply())
            } else {
                nat.table.taken(nat.now, conn, mapping.reply())
            };
            if !in_table && is_granted(nat, conn, mapping) {
                return true;
            }
        }
        if attempts >= choice.count || attempts < LEAST {
            return false;
        }
        attempts /= 2;
        offset = nat.rng.u32() as u16;
    }
}
