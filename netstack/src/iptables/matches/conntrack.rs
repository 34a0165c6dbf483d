//! `conntrack` and `state`.

use super::Memo;
use crate::conntrack::{Addr, Conn, CtInfo, Dir, Status, Track};
use crate::iptables::{CtMatch, Env, Inv, Net, PortRange, ctstate};
use crate::skb::Skb;
use core::net::IpAddr;
use core::time::Duration;

/// The states of a packet: exactly one of the real ones, and the virtual ones of translation.
pub(in crate::iptables) fn state_bits(track: &Track) -> u16 {
    let status = match track {
        Track::None => return ctstate::INVALID,
        Track::Untracked => return ctstate::UNTRACKED,
        Track::Fresh { conn, .. } => conn.status,
        Track::Known { status, .. } => *status,
    };
    let state = match track.info() {
        None => ctstate::INVALID,
        Some(CtInfo::New) => ctstate::NEW,
        Some(CtInfo::Established | CtInfo::EstablishedReply) => ctstate::ESTABLISHED,
        Some(CtInfo::Related | CtInfo::RelatedReply) => ctstate::RELATED,
    };
    let bit = |of: Status, state: u16| if status.has(of) { state } else { 0 };
    state | bit(Status::SRC_NAT, ctstate::SNAT) | bit(Status::DST_NAT, ctstate::DNAT)
}

/// `conntrack` (xt_conntrack.c, revision 3). Without a connection, a rule that asks for states is decided by them alone, and
/// another never fits.
pub(super) fn conntrack(m: &CtMatch, skb: &Skb<'_>, env: &Env<'_>, memo: &mut Memo) -> bool {
    if m.state.is_some_and(|s| (s.value & state_bits(&skb.track) != 0) == s.not) {
        return false;
    }
    let Some(info) = skb.track.info() else { return m.state.is_some() };
    if m.reply.is_some_and(|reply| reply != (info.dir() == Dir::Reply)) {
        return false;
    }
    if !asks_connection(m) {
        return true;
    }
    match memo.conn(skb, env) {
        Some(conn) => of_connection(m, conn, env, matches!(skb.track, Track::Fresh { .. })),
        None => m.state.is_some(),
    }
}

/// Whether more is asked than what the packet says.
pub(in crate::iptables) const fn asks_connection(m: &CtMatch) -> bool {
    m.proto.is_some()
        || m.orig_src.is_some()
        || m.orig_dst.is_some()
        || m.repl_src.is_some()
        || m.repl_dst.is_some()
        || m.orig_sport.is_some()
        || m.orig_dport.is_some()
        || m.repl_sport.is_some()
        || m.repl_dport.is_some()
        || m.status.is_some()
        || m.expire.is_some()
}

fn of_connection(m: &CtMatch, conn: &Conn, env: &Env<'_>, fresh: bool) -> bool {
    let [orig, repl] = &conn.tuples;
    let addr = |t: &Option<Inv<Net>>, a: Addr, v6| t.as_ref().is_none_or(|n| net(n, a.ip(v6)));
    let port = |t: &Option<Inv<PortRange>>, p| t.is_none_or(|r| (r.value.0 <= p && p <= r.value.1) != r.not);
    addr(&m.orig_src, orig.src, orig.v6)
        && addr(&m.orig_dst, orig.dst, orig.v6)
        && addr(&m.repl_src, repl.src, repl.v6)
        && addr(&m.repl_dst, repl.dst, repl.v6)
        && m.proto.is_none_or(|p| (p.value == orig.proto) != p.not)
        && port(&m.orig_sport, orig.sport)
        && port(&m.orig_dport, orig.dport)
        && port(&m.repl_sport, repl.sport)
        && port(&m.repl_dport, repl.dport)
        && m.status.is_none_or(|s| (s.value & conn.status.0 != 0) != s.not)
        && m.expire.is_none_or(|e| {
            // The time-out of a connection that is not in the table yet does not run: Linux reads it as 0.
            let left = if fresh { Duration::ZERO } else { conn.expires.since(env.now) };
            (u64::from(e.value.0) <= left.as_secs() && left.as_secs() <= e.value.1.into()) != e.not
        })
}

fn net(n: &Inv<Net>, a: IpAddr) -> bool {
    super::addr::net(n, a)
}
