//! The names of guests: sandboxes that share a stack find each other by them.

use crate::router::Router;
use crate::wire::dns::{self, Message};
use core::net::IpAddr;

/// For how long an answer may be kept, in seconds: guests come and go.
const TTL: u32 = 5;

/// Query types.
const A: u16 = 1;
const AAAA: u16 = 28;
/// Query class "Internet".
const IN: u16 = 1;

/// What to answer to a query that asks for a guest's name: its address of the type, if it has one. `None` if the query asks
/// for something else, which resolvers may know.
pub(super) fn lookup(r: &Router, query: &[u8], start: &Message) -> Option<Option<IpAddr>> {
    if start.questions != 1 || start.flags & Message::OPCODE != 0 {
        return None;
    }
    let (name, kind, class) = dns::question(query, start)?;
    if class != IN {
        return None;
    }
    let mut text = [0; dns::MAX_NAME];
    let (v4, v6) = r.named(dns::name_text(name, &mut text)?)?;
    Some(match kind {
        A => v4.map(|c| c.guest.into()),
        AAAA => v6.map(|c| c.guest.into()),
        _ => None,
    })
}

/// The record of an answer.
pub(super) fn record(addr: Option<IpAddr>) -> Option<dns::Record> {
    addr.map(|addr| dns::Record { addr, ttl: TTL })
}
