//! The names of guests: sandboxes that share a stack find each other by them, and addresses have them.

use crate::router::Router;
use crate::wire::Writer;
use crate::wire::dns::{self, Data, Message, Record};

/// For how long an answer may be kept, in seconds: guests come and go.
const TTL: u32 = 5;

/// Appends the answer to a query that asks for a guest's name: its address of the type, or that there is none; and to one that asks for the name
/// of a guest's address, as programs do for whatever they show. Nothing is written, and `false` returned, if the query asks for something else, which resolvers may know.
pub(super) fn answer(r: &Router, query: &[u8], start: &Message, w: &mut Writer<'_>) -> bool {
    find(r, query, start).is_some_and(|found| {
        let record = found.map(|data| Record { data, ttl: TTL });
        dns::put_answer(query, start, record, w)
    })
}

fn find<'a>(r: &'a Router, query: &[u8], start: &Message) -> Option<Option<Data<'a>>> {
    if start.questions != 1 || start.flags & Message::OPCODE != 0 {
        return None;
    }
    let (name, kind, class) = dns::question(query, start)?;
    if class != dns::IN {
        return None;
    }
    let mut text = [0; dns::MAX_NAME];
    let text = dns::name_text(name, &mut text)?;
    if let Some(addr) = dns::reverse_address(text) {
        let name = r.name_of(addr)?;
        return Some((kind == dns::PTR).then_some(Data::Pointer(name)));
    }
    let (v4, v6) = r.named(text)?;
    Some(match kind {
        dns::A => v4.map(|c| Data::Address(c.guest.into())),
        dns::AAAA => v6.map(|c| Data::Address(c.guest.into())),
        _ => None,
    })
}
