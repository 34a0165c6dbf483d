//! `CONNMARK`.

use crate::conntrack::{Conn, Track};
use crate::iptables::{Connmark, Env};
use crate::skb::Skb;

/// Carries marks between packet and connection (xt_connmark.c). Nothing happens to a packet without a connection.
pub(super) fn connmark(c: &Connmark, skb: &mut Skb<'_>, env: &Env<'_>) {
    let mut packet = skb.mark;
    let mut change = |conn: &mut Conn| match *c {
        Connmark::Set { value, mask } => conn.mark = (conn.mark & !mask) ^ value,
        Connmark::Save { nfmask, ctmask } => conn.mark = (conn.mark & !ctmask) ^ (packet & nfmask),
        Connmark::Restore { nfmask, ctmask } => packet = (packet & !nfmask) ^ (conn.mark & ctmask),
    };
    match &mut skb.track {
        Track::None | Track::Untracked => {}
        Track::Fresh { conn, .. } => change(conn),
        Track::Known { id, .. } => _ = env.ct.modify(*id, &mut change),
    }
    skb.mark = packet;
}
