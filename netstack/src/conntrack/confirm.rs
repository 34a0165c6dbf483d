//! The second phase of an insert: a connection enters the table when its first packet has passed all hooks.

use super::acct::{self, Counts};
use super::bucket::{Locked, entry};
use super::conn::{Conn, ConnId, CtInfo, Dir, Status, Track};
use super::hash::Words;
use super::slot::Held;
use super::stats::bump;
use super::sync::Ordering::Relaxed;
use super::table::{Conntrack, Tables, is_live};
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::proto;
use crate::verdict::DropReason;
use core::time::Duration;

/// Connections that may share a bucket: at least so many, and a number less than [`CHAIN_SPREAD`] that differs from connection to
/// connection, so that nobody can tell where the limit is.
const CHAIN_LEAST: u32 = 50;
const CHAIN_SPREAD: u64 = 30;

/// How long a connection lives that clashed with another, and whose replies only are known.
const CLASH_TIMEOUT: Duration = Duration::from_secs(1);

/// What stands in the way of a connection.
enum Obstacle<'a> {
    /// One that timed out: it must go first.
    Stale(Held<'a>),
    /// A live one, which has the tuple of this direction.
    Taken(Held<'a>, Dir),
    /// Too many others in a bucket.
    Crowd(u32),
}

impl Conntrack {
    /// Puts a connection into the table that began without being tracked. Returns how a packet of it is tracked.
    ///
    /// # Errors
    /// As [`Conntrack::confirm`].
    pub fn adopt(&self, now: Time, mut conn: Conn) -> Result<Track, DropReason> {
        self.establish(now, &mut conn, Default::default())
    }

    /// Puts the connection of a first packet into the table, where others see it, if both its tuples are free. The packet's
    /// [`Track::Fresh`] becomes [`Track::Known`]. Nothing happens to other packets.
    ///
    /// If another packet of the same connection was faster, or one that goes against it, this packet joins the connection that is there. A UDP
    /// datagram whose original tuple only is taken gets a connection that its replies find, for a second
    /// ([`Status::NAT_CLASH`]). As Linux's `nf_ct_resolve_clash`.
    ///
    /// # Errors
    /// [`DropReason::ConntrackClash`] if another connection has one of the tuples, [`DropReason::ConntrackFull`] if the table is full and
    /// nothing can go, [`DropReason::ConntrackChain`] if too many connections share a bucket (a guest does not get there by itself:
    /// it does not know the key of the hash).
    pub fn confirm(&self, now: Time, skb: &mut Skb<'_>) -> Result<(), DropReason> {
        let Track::Fresh { conn, related: false, len } = &mut skb.track else { return Ok(()) };
        skb.track = self.establish(now, conn, acct::first(*len))?;
        Ok(())
    }

    fn establish(&self, now: Time, conn: &mut Conn, so_far: [Counts; 2]) -> Result<Track, DropReason> {
        conn.status.set(Status::CONFIRMED);
        let hash = conn.tuples.each_ref().map(|t| self.hash(t));
        self.reserve(now, hash[0] as u32)?;
        let t = self.allocate();
        let Some(index) = t.arena.take(hash[0] as u32) else {
            self.count.fetch_sub(1, Relaxed);
            bump(&self.counters.drop);
            return Err(DropReason::ConntrackFull);
        };
        t.arena.prefetch(index);
        let result = self.insert(now, t, index, conn, hash);
        if !matches!(result, Ok(Entered::Inserted(_))) {
            self.free(t, &[index]);
        }
        let entered = result?;
        if self.acct.is_on() {
            self.count_first(t, &entered, so_far);
        }
        match entered {
            Entered::Inserted(track) => {
                bump(&self.counters.insert);
                self.reaper.start(now);
                Ok(track)
            }
            Entered::Joined(track) => {
                bump(&self.counters.clash_resolve);
                Ok(track)
            }
        }
    }

    /// Counts what the first packet brought: for its connection, or the one that it joined.
    #[cold]
    fn count_first(&self, t: &Tables, entered: &Entered, so_far: [Counts; 2]) {
        let (Entered::Inserted(Track::Known { id, info, .. }) | Entered::Joined(Track::Known { id, info, .. })) = entered else {
            return;
        };
        let Some(held) = t.arena.hold_id(*id) else { return };
        match entered {
            Entered::Inserted(_) => self.acct.begin(*id, so_far),
            Entered::Joined(_) if so_far[0].packets > 0 => {
                self.acct.add(&held, info.dir(), so_far[0].bytes as u32);
            }
            Entered::Joined(_) => {}
        }
        t.arena.changed(&held);
    }

    fn insert(&self, now: Time, t: &Tables, index: u32, conn: &mut Conn, hash: [u64; 2]) -> Result<Entered, DropReason> {
        // What timed out and is in the way goes, one by one; then the buckets are looked at again.
        loop {
            let mut buckets = Pair::lock(self, t, hash);
            match buckets.obstacle(now, t, conn, hash) {
                None => return Ok(Entered::Inserted(self.enter(t, &mut buckets, index, conn, hash))),
                Some(Obstacle::Stale(held)) => {
                    drop(buckets);
                    self.expire(held);
                }
                Some(Obstacle::Crowd(bucket)) => {
                    drop(buckets);
                    if self.sweep(now, t, bucket, |_| false) == 0 {
                        bump(&self.counters.chaintoolong);
                        return Err(DropReason::ConntrackChain);
                    }
                }
                Some(Obstacle::Taken(mut winner, dir)) => {
                    if let Some(track) = join(t, &mut winner, conn) {
                        return Ok(Entered::Joined(track));
                    }
                    drop(winner);
                    if dir == Dir::Original && conn.tuples[0].proto == proto::UDP && !conn.status.has(Status::NAT_CLASH) {
                        conn.status.set(Status::NAT_CLASH);
                        conn.expires = now + CLASH_TIMEOUT;
                        continue;
                    }
                    bump(&self.counters.insert_failed);
                    return Err(DropReason::ConntrackClash);
                }
            }
        }
    }

    /// Puts a connection into its slot and its buckets, which are locked.
    fn enter(&self, t: &Tables, buckets: &mut Pair<'_>, index: u32, conn: &Conn, hash: [u64; 2]) -> Track {
        let translated = conn.status.has(Status::SRC_NAT);
        if translated {
            // Before a capture can see the connection.
            t.sources.number(index);
        }
        let id = t.arena.occupy(index, conn, hash.map(|h| h as u32));
        buckets.put(t, index, conn, hash);
        if translated {
            t.sources.insert(self.source_hash(&conn.tuples[0]), index);
        }
        Track::Known { id, info: CtInfo::New, status: conn.status }
    }
}

/// Why a connection of an image cannot be put into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Another one is in its slot.
    Slot,
    /// Another one has the tuple of this direction.
    Tuple(Dir),
}

impl Conntrack {
    /// Puts a connection of an image into its slot and its buckets.
    pub(super) fn restore(&self, t: &Tables, id: ConnId, conn: &Conn, hash: [u64; 2]) -> Result<(), Refused> {
        let mut buckets = Pair::lock(self, t, hash);
        if let Some(dir) = directions(conn).iter().copied().find(|&dir| buckets.holder(t, conn, hash, dir).is_some()) {
            return Err(Refused::Tuple(dir));
        }
        if !t.arena.restore(id, conn, hash.map(|h| h as u32)) {
            return Err(Refused::Slot);
        }
        buckets.put(t, id.index, conn, hash);
        Ok(())
    }
}

enum Entered {
    Inserted(Track),
    Joined(Track),
}

/// The directions in which a connection is found.
fn directions(conn: &Conn) -> &'static [Dir] {
    if conn.status.has(Status::NAT_CLASH) { &[Dir::Reply] } else { &[Dir::Original, Dir::Reply] }
}

/// Whether a packet belongs to the connection that was faster, and how: its tuples are the same, or exactly reversed.
fn join(t: &Tables, winner: &mut Held<'_>, conn: &Conn) -> Option<Track> {
    let [original, reply] = &winner.conn.tuples;
    let info = match [original, reply] {
        [o, r] if *o == conn.tuples[0] && *r == conn.tuples[1] => CtInfo::New,
        [o, r] if *o == conn.tuples[1] && *r == conn.tuples[0] => {
            winner.conn.status.set(Status::SEEN_REPLY);
            t.arena.changed(winner);
            CtInfo::EstablishedReply
        }
        _ => return None,
    };
    Some(Track::Known { id: winner.id, info, status: winner.conn.status })
}

/// The two buckets of a connection, locked in the order of their index; they may be the same one.
struct Pair<'a> {
    index: [u32; 2],
    first: Locked<'a>,
    second: Option<Locked<'a>>,
}

impl<'a> Pair<'a> {
    fn lock(table: &Conntrack, t: &'a Tables, hash: [u64; 2]) -> Self {
        let index = hash.map(|h| table.bucket_of(h as u32));
        let [a, b] = index.map(|i| t.buckets.touch(i));
        a.prefetch();
        b.prefetch();
        match index[0].cmp(&index[1]) {
            core::cmp::Ordering::Equal => Pair { index, first: a.lock(), second: None },
            core::cmp::Ordering::Less => {
                let first = a.lock();
                Pair { index, first, second: Some(b.lock()) }
            }
            core::cmp::Ordering::Greater => {
                let first = b.lock();
                Pair { index, first, second: Some(a.lock()) }
            }
        }
    }

    /// The bucket of a direction.
    fn of(&mut self, dir: Dir) -> &mut Locked<'a> {
        let lower = self.index[dir as usize] <= self.index[dir.other() as usize];
        match &mut self.second {
            Some(second) if !lower => second,
            _ => &mut self.first,
        }
    }

    /// Puts the entries of a connection in.
    #[inline(always)]
    fn put(&mut self, t: &Tables, index: u32, conn: &Conn, hash: [u64; 2]) {
        // As Linux: of a connection with itself the reply is found.
        for &dir in directions(conn).iter().rev() {
            self.of(dir).insert(&t.arena, entry(index, dir as u32), hash[dir as usize] as u32);
        }
    }

    /// Which connection has the tuple of this direction.
    #[inline(always)]
    fn holder<'t>(&mut self, t: &'t Tables, conn: &Conn, hash: [u64; 2], dir: Dir) -> Option<Held<'t>> {
        let tuple = Words::of(&conn.tuples[dir as usize]);
        let wanted = hash[dir as usize] as u32;
        self.of(dir).walk(&t.arena, Some(wanted), |entry| t.has(entry, wanted, &tuple).map(|(held, _)| held))
    }

    fn obstacle<'t>(&mut self, now: Time, t: &'t Tables, conn: &Conn, hash: [u64; 2]) -> Option<Obstacle<'t>> {
        let index = self.index;
        directions(conn).iter().find_map(|&dir| {
            if let Some(held) = self.holder(t, conn, hash, dir) {
                let live = is_live(&held.conn, now);
                return Some(if live { Obstacle::Taken(held, dir) } else { Obstacle::Stale(held) });
            }
            let limit = CHAIN_LEAST + (((hash[0] >> 32) * CHAIN_SPREAD) >> 32) as u32;
            (self.of(dir).len(&t.arena) > limit).then_some(Obstacle::Crowd(index[dir as usize]))
        })
    }
}
