//! What tracking does with a packet: find its connection, or begin one.

use super::conn::{Conn, ConnId, CtInfo, Dir, Proto, Status, Track};
use super::proto::{self, Kind, Step};
use super::slot::Held;
use super::stats::bump;
use super::table::{Conntrack, Tables, is_live, is_pinned};
use super::tuple::CtTuple;
use super::{icmp, tuple};
use crate::skb::Skb;
use crate::time::Time;
use crate::verdict::DropReason;

/// What a packet met.
enum Met {
    /// Its connection.
    Known(Track),
    /// Its connection, which does not want it.
    Invalid,
    /// No connection: there is none, or it ended with this packet, which begins another.
    Nobody,
}

impl Conntrack {
    /// Finds out what a packet belongs to, at PREROUTING or OUTPUT, and sets `skb.track`: [`Track::Known`], [`Track::Fresh`] for the
    /// first packet of a connection, [`Track::None`] if it is INVALID, [`Track::Untracked`] if its kind never is tracked. Leaves packets
    /// alone that are [`Track::Untracked`] or known already. An error: the table is full, and the packet is to be dropped.
    pub fn track(&self, now: Time, skb: &mut Skb<'_>) -> Result<(), DropReason> {
        if skb.track != Track::None {
            return Ok(());
        }
        match proto::check(skb) {
            Ok(Kind::Packet) => {}
            Ok(Kind::Exempt) => {
                skb.track = Track::Untracked;
                return Ok(());
            }
            Ok(Kind::IcmpError) => {
                match self.related(now, skb) {
                    Some(track) => skb.track = track,
                    None => bump(&self.counters.invalid),
                }
                return Ok(());
            }
            Err(_) => {
                bump(&self.counters.invalid);
                return Ok(());
            }
        }
        let Some(tuple) = tuple::of(skb) else {
            bump(&self.counters.invalid);
            return Ok(());
        };
        let found = if skb.zones == [0, 0] { self.hold(now, &tuple) } else { self.hold_in_zones(now, skb.zones, tuple) };
        let met = match (self.tables(), found) {
            (Some(t), Some((held, dir))) => self.meet(now, t, held, dir, skb),
            _ => Met::Nobody,
        };
        match met {
            Met::Known(track) => skb.track = track,
            Met::Invalid => bump(&self.counters.invalid),
            Met::Nobody => return self.begin(now, skb, tuple),
        }
        Ok(())
    }

    /// As [`Conntrack::track`] for a packet whose connection and direction are known to its flow: no look-up. False if that connection
    /// is gone, or over with this packet; then the packet is to be tracked as any other.
    pub fn track_known(&self, now: Time, id: ConnId, dir: Dir, skb: &mut Skb<'_>) -> bool {
        if skb.track != Track::None {
            return true;
        }
        if !matches!(proto::check(skb), Ok(Kind::Packet)) {
            return false;
        }
        let Some(t) = self.tables() else { return false };
        let Some(held) = t.arena.hold_id(id).filter(|h| is_live(&h.conn, now)) else { return false };
        match self.meet(now, t, held, dir, skb) {
            Met::Known(track) => {
                skb.track = track;
                true
            }
            Met::Invalid => {
                bump(&self.counters.invalid);
                true
            }
            Met::Nobody => false,
        }
    }

    /// The connection that has this tuple: in the original direction in the zone that holds for that, or in the reply direction in the other.
    fn hold_in_zones(&self, now: Time, zones: [u16; 2], mut tuple: CtTuple) -> Option<(Held<'_>, Dir)> {
        for (zone, wanted) in zones.into_iter().zip([Dir::Original, Dir::Reply]) {
            tuple.zone = zone;
            if let Some((held, dir)) = self.hold(now, &tuple)
                && (dir == wanted || zones[0] == zones[1])
            {
                return Some((held, dir));
            }
        }
        None
    }

    /// A packet of a connection: takes it a step on.
    #[inline(always)]
    fn meet(&self, now: Time, t: &Tables, mut held: Held<'_>, dir: Dir, skb: &Skb<'_>) -> Met {
        let conn = &mut *held.conn;
        let (status, expires) = (conn.status, conn.expires);
        let step = proto::packet(&self.cfg, now, conn, dir, skb);
        if conn.status.has(Status::NAT_CLASH) {
            conn.expires = expires;
        }
        match step {
            // The flow lives, so this is a SYN that was late, or the flow will say what it thinks of it.
            Step::Repeat if is_pinned(conn) => {}
            Step::Repeat => {
                bump(&self.counters.delete);
                self.vacate(held);
                return Met::Nobody;
            }
            // Translation still needs it, until the packet is through.
            Step::DeleteAccept => {
                conn.status.set(Status::DYING);
            }
            Step::Accept | Step::Aside | Step::Invalid(_) => {}
        }
        let earlier = conn.expires < expires;
        let (id, before) = (held.id, status);
        let status = held.conn.status;
        let counts = matches!(step, Step::Accept | Step::DeleteAccept) && self.acct.add(&held, dir, skb.len);
        if held.is_watched() && (counts || status != before || is_worth_noting(&held.conn, expires)) {
            t.arena.changed(&held);
        }
        if earlier {
            t.arena.reap_by(&held, held.conn.expires);
        }
        drop(held);
        match step {
            Step::Invalid(_) => return Met::Invalid,
            Step::DeleteAccept => self.condemn(id),
            Step::Accept | Step::Aside | Step::Repeat => {}
        }
        Met::Known(Track::Known { id, info: info(dir, status), status })
    }

    /// Removes a connection when so many others were condemned that the packet which did it is through.
    fn condemn(&self, id: ConnId) {
        if let Some(old) = self.condemned.push(id) {
            self.remove(old);
        }
    }

    /// What an ICMP error is about; `None` if that is nothing we know.
    fn related(&self, now: Time, skb: &Skb<'_>) -> Option<Track> {
        let quote = icmp::quoted(skb).ok()?;
        let (held, dir) = self.hold_in_zones(now, skb.zones, quote.expected)?;
        let info = match dir {
            Dir::Original => CtInfo::Related,
            Dir::Reply => CtInfo::RelatedReply,
        };
        icmp::concerns(skb, &held.conn, dir).then_some(Track::Known { id: held.id, info, status: held.conn.status })
    }

    /// The first packet of a connection: made by value, in nobody's way before it is confirmed.
    fn begin(&self, now: Time, skb: &mut Skb<'_>, original: CtTuple) -> Result<(), DropReason> {
        let (Some(reply), Ok((proto, timeout))) = (tuple::invert(&original), proto::new(&self.cfg, now, skb)) else {
            bump(&self.counters.invalid);
            return Ok(());
        };
        self.make_room(now, &original)?;
        let [zone, reply_zone] = skb.zones;
        let tuples = [CtTuple { zone, ..original }, CtTuple { zone: reply_zone, ..reply }];
        let conn = Conn { tuples, status: Status::default(), mark: 0, expires: now + timeout, proto, flow: None };
        skb.track = Track::Fresh { conn, related: false, len: skb.len };
        Ok(())
    }
}

/// Whether a capture must hear of what a packet did to a connection besides its status. That it lives longer counts only when that
/// reaches another second: a capture's copy is never behind by more, and packets of a busy connection are noted once a second.
#[cold]
fn is_worth_noting(conn: &Conn, expires: Time) -> bool {
    let second = |t: Time| t.as_nanos() / 1_000_000_000;
    matches!(conn.proto, Proto::Tcp(_)) || second(conn.expires) != second(expires)
}

/// How a packet of a connection with this status belongs to it.
const fn info(dir: Dir, status: Status) -> CtInfo {
    match dir {
        Dir::Reply => CtInfo::EstablishedReply,
        Dir::Original if status.has(Status::SEEN_REPLY) => CtInfo::Established,
        Dir::Original => CtInfo::New,
    }
}
