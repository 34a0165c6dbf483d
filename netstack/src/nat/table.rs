//! What translation asks of the table of connections.

use crate::conntrack::{Addr, Conn, ConnId, CtTuple};
use crate::time::Time;

/// The table of tracked connections, as far as translation needs it.
pub trait Table {
    /// Whether packets of another connection than `conn` look like `reply`. A connection with the same original tuple is
    /// the same one, of which another packet was faster.
    fn taken(&self, now: Time, conn: &Conn, reply: &CtTuple) -> bool;

    /// As [`Table::taken`], but throws the other one out if it is a TCP connection that is closed or waits (TIME_WAIT), whose source
    /// is translated, and whose sequence numbers the new one's are ahead of.
    fn taken_by_living(&self, now: Time, conn: &Conn, reply: &CtTuple) -> bool;

    /// Offers `fits` what other connections of the source of `orig` (address, port or identifier, protocol, zone) are translated to, the latest
    /// first, until it accepts one.
    fn source_mapping(&self, now: Time, orig: &CtTuple, fits: &mut dyn FnMut(Addr, u16) -> bool);

    /// The tuples of a connection; `None` if it is gone.
    fn tuples(&self, id: ConnId) -> Option<[CtTuple; 2]>;
}
