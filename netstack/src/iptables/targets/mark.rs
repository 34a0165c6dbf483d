//! `CONNMARK`.

use crate::conntrack::Track;
use crate::iptables::{Connmark, Env};
use crate::skb::Skb;

/// Carries marks between packet and connection (xt_connmark.c). Nothing happens to a packet without a connection.
pub(super) fn connmark(c: &Connmark, skb: &mut Skb<'_>, env: &Env<'_>) {
    let mut packet = skb.mark;
    let mut change = |conn: &mut u32| match *c {
        Connmark::Set { value, mask } => *conn = (*conn & !mask) ^ value,
        Connmark::Save { nfmask, ctmask } => *conn = (*conn & !ctmask) ^ (packet & nfmask),
        Connmark::Restore { nfmask, ctmask } => packet = (packet & !nfmask) ^ (*conn & ctmask),
    };
    match &mut skb.track {
        Track::None | Track::Untracked => {}
        Track::Fresh { conn, .. } => change(&mut conn.mark),
        Track::Known { id, .. } => env.ct.update_mark(*id, &mut change),
    }
    skb.mark = packet;
}
