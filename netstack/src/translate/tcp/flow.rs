//! State of one TCP flow.
//!
//! A flow joins two connections: the guest's, whose other end we play, and that of a host socket. Each direction has
//! its own events, which happen in their order but independently of the other direction, so that either side may
//! close first, half or whole:
//!
//! | host to guest | guest to host |
//! |---|---|
//! | bytes wait in the host socket (peeked, not consumed) until the guest acknowledges them | bytes go to the host socket at once; what it does not take is held |
//! | `FIN_FROM_HOST`: the peer's FIN was found behind the last byte | `FIN_FROM_GUEST`: the guest's FIN came in order |
//! | `FIN_SENT`: our FIN took its sequence number | `FIN_TO_HOST`: everything held was sent, then the socket's sending side shut down |
//! | `FIN_ACKED`: the guest acknowledged it | |
//!
//! The flow ends when `FIN_ACKED` and `FIN_TO_HOST` both stand, or by a reset from either side.

use super::hold::Hold;
use super::rtt::Rtt;
use crate::edge::{SockId, Token};
use crate::router::{Router, Via};
use crate::time::Time;
use crate::timers::Deadline;
use crate::tuple::Tuple;
use crate::wire::tcp::Seq;
use core::time::Duration;

/// Things that have happened to a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events(u32);

impl Events {
    /// The host opened the flow: we send the SYN.
    pub(super) const INBOUND: Events = Events(1);
    /// The host socket is connected.
    pub(super) const CONNECTED: Events = Events(1 << 1);
    /// Our SYN or SYN-ACK was sent.
    pub(super) const SYN_SENT: Events = Events(1 << 2);
    /// The guest acknowledged our SYN and we know its own.
    pub(super) const ESTABLISHED: Events = Events(1 << 3);
    /// The peer's FIN stands behind the last byte that was peeked.
    pub(super) const FIN_FROM_HOST: Events = Events(1 << 4);
    /// Our FIN was sent to the guest.
    pub(super) const FIN_SENT: Events = Events(1 << 5);
    /// The guest acknowledged our FIN.
    pub(super) const FIN_ACKED: Events = Events(1 << 6);
    /// The guest's FIN came in order.
    pub(super) const FIN_FROM_GUEST: Events = Events(1 << 7);
    /// The host socket's sending side was shut down.
    pub(super) const FIN_TO_HOST: Events = Events(1 << 8);
    /// The peer reset the connection; the guest gets what is left of the data, then RST.
    pub(super) const RESET_BY_HOST: Events = Events(1 << 9);
    /// The socket may have something to read: an event came since it last had nothing.
    pub(super) const READABLE: Events = Events(1 << 10);
    /// An acknowledgement is to be sent at the end of the batch.
    pub(super) const ACK_NOW: Events = Events(1 << 11);
    /// The flow is in the list of those to be settled at the end of the batch.
    pub(super) const UNSETTLED: Events = Events(1 << 12);
    /// The link took no more; the deadline for retransmission only means "try again".
    pub(super) const LINK_FULL: Events = Events(1 << 13);
    /// Counted as half-open.
    pub(super) const HALF_OPEN: Events = Events(1 << 14);
    /// The peer has closed its sending side: there is an end to be found behind what is in the socket.
    pub(super) const PEER_CLOSED: Events = Events(1 << 15);
    /// The link did not take what was to be sent again; it is tried once more when the link may take it.
    pub(super) const RESEND: Events = Events(1 << 16);
    /// Whoever opened the flow sent last, and waits for an answer.
    pub(super) const ASKED: Events = Events(1 << 17);

    /// The flow is in the list of those that wait for a link. Not saved, as that list is not.
    pub(super) const LISTED: Events = Events(1 << 18);
    /// What is held was not offered to the socket yet: more may come in the same batch. Not saved: it is offered before.
    pub(super) const GATHERED: Events = Events(1 << 19);

    /// All that are saved.
    const ALL: u32 = (1 << 18) - 1;

    /// Those that are saved, as a word.
    pub(super) const fn bits(self) -> u32 {
        self.0 & Self::ALL
    }

    /// From [`Events::bits`]; `None` if there are others among them.
    pub(super) const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::ALL == 0 { Some(Events(bits)) } else { None }
    }

    /// Whether all of `e` happened.
    pub(super) const fn has(self, e: Events) -> bool {
        self.0 & e.0 == e.0
    }

    /// Adds events.
    pub(super) fn add(&mut self, e: Events) {
        self.0 |= e.0;
    }

    /// Takes events away; returns whether they stood.
    pub(super) fn clear(&mut self, e: Events) -> bool {
        let had = self.has(e);
        self.0 &= !e.0;
        had
    }
}

/// A TCP flow. Sequence numbers named `snd_*` are ours towards the guest, `rcv_*` the guest's.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) token: Token,
    /// Packets from the guest have this tuple, as translated: at a published port the source is the host's address.
    pub(super) tuple: Tuple,
    pub(super) sock: SockId,
    /// How segments reach the guest.
    pub(super) via: Via,
    pub(super) deadline: Deadline,
    pub(super) events: Events,

    /// First sequence number that the guest has not acknowledged.
    pub(super) snd_una: Seq,
    /// Next to send.
    pub(super) snd_nxt: Seq,
    /// The guest's window in bytes, and its scale.
    pub(super) snd_wnd: u32,
    pub(super) snd_scale: u8,
    /// Largest window that the guest ever offered.
    pub(super) snd_wnd_max: u32,
    /// Sequence number of the segment that set the window last (SND.WL1).
    pub(super) snd_wl1: Seq,
    /// Most bytes of data per segment to the guest.
    pub(super) mss: u16,
    /// Acknowledged by the guest but still in the host socket's queue.
    pub(super) unconsumed: u32,
    /// Memory in bytes that the host socket's queue may have taken since it was empty last; an estimate.
    pub(super) queued_since_empty: u32,
    /// Sequence number of our FIN, once `FIN_FROM_HOST`.
    pub(super) fin_seq: Seq,
    /// Duplicate acknowledgements in a row.
    pub(super) dup_acks: u8,
    /// While set, holes below it are being resent (RFC 6582).
    pub(super) recover: Option<Seq>,
    /// Retransmissions or probes in a row without an answer.
    pub(super) backoff: u8,
    pub(super) rtt: Rtt,
    /// Segment whose acknowledgement is being timed (Karn's algorithm: never one that was resent).
    pub(super) timing: Option<(Seq, Time)>,

    /// The guest's initial sequence number.
    pub(super) rcv_irs: Seq,
    /// Next expected.
    pub(super) rcv_nxt: Seq,
    /// Acknowledged to the guest.
    pub(super) rcv_acked: Seq,
    /// Right edge of the window offered to the guest; never moves back.
    pub(super) rcv_edge: Seq,
    /// The furthest right edge that the guest was told: up to a unit of the scale beyond `rcv_edge`, by rounding.
    pub(super) rcv_promised: Seq,
    /// Scale of our window.
    pub(super) rcv_scale: u8,
    /// Segments with data since the last acknowledgement.
    pub(super) rcv_segments: u8,
    /// Doublings of the interval at which the host socket is asked what the peer acknowledged.
    pub(super) ack_backoff: u8,
    /// What the host socket will surely still take, and `rcv_nxt` when it was asked.
    pub(super) space: u32,
    pub(super) asked_at: Seq,
    pub(super) hold: Option<Box<Hold>>,
    /// How many held bytes of this flow the total of all flows contains.
    pub(super) counted: u32,

    /// When an acknowledgement is due.
    pub(super) ack_at: Time,
    /// When to send again, or to probe a closed window.
    pub(super) resend_at: Time,
    /// When `unconsumed` is taken out of the queue at the latest.
    pub(super) consume_at: Time,
    /// When to look whether the flow is still alive.
    pub(super) alive_at: Time,
    /// Last segment from the guest.
    pub(super) heard: Time,
    /// Since when the guest has not acknowledged anything of what is in flight.
    pub(super) stalled_since: Time,
}

impl Flow {
    /// A flow in which nothing has happened yet.
    pub(super) fn new(token: Token, tuple: Tuple, sock: SockId, via: Via, iss: Seq, now: Time) -> Self {
        Flow {
            token,
            tuple,
            sock,
            via,
            deadline: Deadline::default(),
            events: Events::default(),
            snd_una: iss,
            snd_nxt: iss,
            snd_wnd: 0,
            snd_scale: 0,
            snd_wnd_max: 0,
            snd_wl1: Seq(0),
            mss: 536,
            unconsumed: 0,
            queued_since_empty: 0,
            fin_seq: iss,
            dup_acks: 0,
            recover: None,
            backoff: 0,
            rtt: Rtt::default(),
            timing: None,
            rcv_irs: Seq(0),
            rcv_nxt: Seq(0),
            rcv_acked: Seq(0),
            rcv_edge: Seq(0),
            rcv_promised: Seq(0),
            rcv_scale: 0,
            rcv_segments: 0,
            ack_backoff: 0,
            space: 0,
            asked_at: Seq(0),
            hold: None,
            counted: 0,
            ack_at: Time::NEVER,
            resend_at: Time::NEVER,
            consume_at: Time::NEVER,
            alive_at: Time::NEVER,
            heard: now,
            stalled_since: now,
        }
    }

    /// Bytes held in order for the host socket.
    pub(super) fn held(&self) -> u32 {
        self.hold.as_ref().map_or(0, |h| h.queue.len() as u32)
    }

    /// Bytes held beyond a gap.
    pub(super) fn held_out_of_order(&self) -> u32 {
        self.hold.as_ref().map_or(0, |h| h.out_of_order())
    }

    /// Whether something that the guest must acknowledge is in flight.
    pub(super) fn in_flight(&self) -> bool {
        self.snd_una != self.snd_nxt
    }

    /// Where the byte with this sequence number stands in the host socket's queue.
    pub(super) fn offset(&self, seq: Seq) -> u32 {
        seq.minus(self.snd_una) + self.unconsumed
    }

    /// Whether both directions are closed.
    pub(super) fn is_finished(&self) -> bool {
        self.events.has(Events::FIN_ACKED) && self.events.has(Events::FIN_TO_HOST)
    }

    /// Data moved, from the guest or to it.
    pub(super) fn moved(&mut self, r: &mut Router, from_guest: bool) {
        r.moved = r.now;
        if from_guest == self.events.has(Events::INBOUND) {
            self.events.clear(Events::ASKED);
        } else {
            self.events.add(Events::ASKED);
        }
    }

    /// Whether nothing is under way: both ends have all that was sent, and neither owes an answer.
    pub(super) fn is_quiet(&self) -> bool {
        let open = self.events.has(Events::ESTABLISHED) && !self.events.has(Events::ASKED);
        open && !self.in_flight() && self.hold.is_none() && self.rcv_acked == self.rcv_nxt
    }

    /// The earliest of the flow's deadlines, on a grid: most flows end before theirs, and the timer need not fire for each.
    pub(super) fn due(&self) -> Time {
        let ack = self.ack_at.round_up(Duration::from_millis(1));
        let resend = self.resend_at.round_up(Duration::from_millis(4));
        let consume = self.consume_at.round_up(Duration::from_millis(64));
        ack.min(resend).min(consume).min(self.alive_at.round_up(Duration::from_secs(1)))
    }
}
