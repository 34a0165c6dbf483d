//! Translating packets, from the tuples of their connection alone.

use super::{Manip, Table, inner};
use crate::conntrack::{Conn, CtTuple, Dir, Status, Track};
use crate::iptables::Hook;
use crate::packet::L4;
use crate::skb::Skb;
use crate::tuple::{Endpoint, Tuple, proto};
use crate::verdict::DropReason;

/// Type of an ICMP redirect.
const REDIRECT: u8 = 5;

/// Translates a packet as its connection says, in either direction: destinations at PREROUTING and OUTPUT, sources at INPUT and
/// POSTROUTING. An ICMP error about a connection is translated with the packet that it quotes. INVALID and UNTRACKED packets stay as they are.
///
/// # Errors
/// [`DropReason::ConntrackGone`] if the connection was deleted meanwhile. [`DropReason::Truncated`] for an ICMP error that quotes too
/// little of the packet, [`DropReason::IcmpUnhandled`] for an ICMP redirect about a translated connection, which would mean nothing to the receiver.
pub fn apply(table: &dyn Table, skb: &mut Skb<'_>, hook: Hook) -> Result<(), DropReason> {
    let Some(manip) = Manip::at(hook) else { return Ok(()) };
    let Some(info) = skb.track.info() else { return Ok(()) };
    let dir = info.dir();
    let tuples = match &skb.track {
        Track::Fresh { conn, .. } if concerns(conn.status, manip, dir) => conn.tuples,
        Track::Known { id, status, .. } if concerns(*status, manip, dir) => match table.tuples(*id) {
            Some(tuples) => tuples,
            None => return Err(DropReason::ConntrackGone),
        },
        Track::Fresh { conn: Conn { status, .. }, .. } | Track::Known { status, .. } => {
            return redirect_refused(skb, *status, info.is_related());
        }
        Track::None | Track::Untracked => return Ok(()),
    };
    // A reset that we send in place of a segment is related, too, and quotes nothing.
    if info.is_related() && matches!(skb.l4, L4::Icmp(_) | L4::Icmpv6(_)) {
        redirect_refused(skb, Status::SRC_NAT, true)?;
        if !inner::is_translatable(skb) {
            return Err(DropReason::Truncated);
        }
        quoted(skb, manip, dir, &tuples);
    }
    translate(skb, manip, &tuples[dir.other() as usize]);
    Ok(())
}

/// Whether the translation of a connection touches this end of packets of this direction.
const fn concerns(status: Status, manip: Manip, dir: Dir) -> bool {
    match (manip, dir) {
        (Manip::Source, Dir::Original) | (Manip::Destination, Dir::Reply) => status.has(Status::SRC_NAT),
        (Manip::Destination, Dir::Original) | (Manip::Source, Dir::Reply) => status.has(Status::DST_NAT),
    }
}

/// Makes an end look as the packets of the other direction, `other`, expect it.
fn translate(skb: &mut Skb<'_>, manip: Manip, other: &CtTuple) {
    match manip {
        Manip::Source => skb.src = other.dst_ip(),
        Manip::Destination => skb.dst = other.src_ip(),
    }
    match (other.proto, manip) {
        // Of an ICMP error about it.
        (protocol, _) if protocol != skb.protocol => {}
        (proto::TCP | proto::UDP, Manip::Source) => skb.sport = other.dport,
        (proto::TCP | proto::UDP, Manip::Destination) => skb.dport = other.sport,
        (proto::ICMP | proto::ICMPV6, _) if inner::has_ident(skb) => skb.sport = other.sport,
        _ => {}
    }
}

/// The quoted packet went the other way: what is translated for the error's source is its destination, and so on.
fn quoted(skb: &mut Skb<'_>, manip: Manip, dir: Dir, tuples: &[CtTuple; 2]) {
    let (mine, other) = (&tuples[dir as usize], &tuples[dir.other() as usize]);
    // As it was quoted: the inverse of what belongs to the error's own direction.
    let quoted = skb.quoted.get_or_insert_with(|| {
        let (sport, dport) = if mine.has_ports() { (mine.dport, mine.sport) } else { (mine.sport, 0) };
        Tuple { src: Endpoint::new(mine.dst_ip(), sport), dst: Endpoint::new(mine.src_ip(), dport), proto: mine.proto }
    });
    let ports = other.has_ports();
    match manip {
        Manip::Source => {
            quoted.dst.addr = other.dst_ip();
            if ports {
                quoted.dst.port = other.dport;
            }
        }
        Manip::Destination => {
            quoted.src.addr = other.src_ip();
            if ports {
                quoted.src.port = other.sport;
            }
        }
    }
    if !ports {
        quoted.src.port = other.sport;
    }
}

/// A redirect speaks of addresses that the receiver of a translated connection does not know.
fn redirect_refused(skb: &Skb<'_>, status: Status, related: bool) -> Result<(), DropReason> {
    let translated = status.has(Status::SRC_NAT) || status.has(Status::DST_NAT);
    match skb.l4 {
        L4::Icmp(h) if related && translated && h.ty == REDIRECT => Err(DropReason::IcmpUnhandled),
        _ => Ok(()),
    }
}
