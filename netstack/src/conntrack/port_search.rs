//! What address translation asks of the table.

use super::conn::{Conn, ConnId, Dir, Proto, Status};
use super::stats::bump;
use super::table::{Conntrack, is_pinned};
use super::tcp::{TcpState, TcpTrack};
use super::tuple::{Addr, CtTuple};
use crate::nat;
use crate::time::Time;

impl nat::Table for Conntrack {
    fn taken(&self, now: Time, conn: &Conn, reply: &CtTuple) -> bool {
        self.hold(now, reply).is_some_and(|(held, _)| held.conn.tuples[0] != conn.tuples[0])
    }

    fn taken_by_living(&self, now: Time, conn: &Conn, reply: &CtTuple) -> bool {
        let Some((held, dir)) = self.hold(now, reply) else { return false };
        if held.conn.tuples[0] == conn.tuples[0] {
            return false;
        }
        if dir == Dir::Original || !may_go(&held.conn, conn) {
            return true;
        }
        bump(&self.counters.delete);
        self.vacate(held);
        false
    }

    fn source_mapping(&self, now: Time, orig: &CtTuple, fits: &mut dyn FnMut(Addr, u16) -> bool) {
        Conntrack::source_mapping(self, now, orig, fits);
    }

    fn tuples(&self, id: ConnId) -> Option<[CtTuple; 2]> {
        Some(self.tables()?.arena.hold_id(id)?.conn.tuples)
    }
}

/// Whether a TCP connection may give way to a new one that needs its port: it is over, its source is translated, and the new one's
/// sequence numbers are ahead of it, so that late segments of the old one are INVALID for the new (Linux's `nf_nat_used_tuple_harder`).
fn may_go(old: &Conn, new: &Conn) -> bool {
    let (Proto::Tcp(o), Proto::Tcp(n)) = (&old.proto, &new.proto) else { return false };
    let end = |t: &TcpTrack| t.sides[Dir::Original as usize].end;
    let over = matches!(o.state, TcpState::TimeWait | TcpState::Close);
    let ahead = (end(n).wrapping_sub(end(o)) as i32) > 0;
    over && ahead && old.status.has(Status::SRC_NAT) && !old.status.has(Status::NAT_CLASH) && !is_pinned(old)
}
