//! Knows a guest that has forgotten what it sent.
//!
//! smoltcp 0.14 loses its retransmission timer when a window closes over what is in flight (it prefers the probe's), and in
//! LAST-ACK does not hear that the window opened again. Such a connection hangs for ever, whoever is at its other end. It is
//! told from a hang of ours by what is on the link: the stack acknowledges up to some byte and offers a window, and for
//! many of the longest time-outs the guest does not send that byte.

use core::time::Duration;
use hibernet_netstack::Time;
use hibernet_tests::wire::TcpSegment;
use hibernet_tests::wire::flags::FIN;
use std::collections::BTreeMap;

/// No flow that can end takes so long.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// For so long the link is watched; smoltcp's longest time-out is a minute.
const WATCH: Duration = Duration::from_secs(1200);

/// One connection, by the guest's port and the other's.
type Key = (u16, u16);

/// What was seen on the link since the patience ended.
#[derive(Debug)]
pub struct Forgotten {
    from: Time,
    /// The stack's last acknowledgement, and whether it always offered a window with it.
    offered: BTreeMap<Key, (u32, bool)>,
    /// What the guest sent, first numbers of segments with data or FIN.
    sent: BTreeMap<Key, Vec<u32>>,
}

impl Forgotten {
    pub fn new(start: Time) -> Self {
        Forgotten { from: start + PATIENCE, offered: BTreeMap::new(), sent: BTreeMap::new() }
    }

    /// Whether it is time to look at frames.
    pub fn watches(&self, now: Time) -> bool {
        now >= self.from
    }

    /// Whether it has been watched for long enough.
    pub fn knows(&self, now: Time) -> bool {
        now >= self.from + WATCH
    }

    /// A segment of the guest's. A keep-alive or probe has one byte and is no retransmission.
    pub fn guest_sent(&mut self, t: &TcpSegment) {
        if t.data.len() > 1 || t.flags & FIN != 0 {
            self.sent.entry((t.src_port, t.dst_port)).or_default().push(t.seq);
        }
    }

    /// A segment of the stack's.
    pub fn stack_sent(&mut self, t: &TcpSegment) {
        let open = t.window > 0;
        let offer = self.offered.entry((t.dst_port, t.src_port)).or_insert((t.ack, open));
        *offer = if offer.0 == t.ack { (t.ack, offer.1 && open) } else { (t.ack, open) };
    }

    /// Whether the guest has forgotten this connection's data.
    pub fn is(&self, key: Key) -> bool {
        let Some(&(ack, open)) = self.offered.get(&key) else { return false };
        open && self.sent.get(&key).is_none_or(|sent| !sent.contains(&ack))
    }
}
