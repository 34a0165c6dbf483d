//! What every worker does in a wake-up, the leader and its followers.

use super::FRAME_BUDGET;
use super::inbox::Inbox;
use crate::edge::RuntimeEdge;
use crate::link::RxBatch;
use crate::sock::SocketEvent;
use hibernet_netstack::edge::{HEAD_MAX, LinkId, RxFrame};
use hibernet_netstack::{Stack, Time};

/// Hands the frames of a batch to a stack; their number.
pub(super) fn receive_batch(stack: &mut Stack, edge: &mut RuntimeEdge, batch: &mut RxBatch, link: LinkId, now: Time) -> usize {
    let taken = batch.len();
    for r in batch.drain() {
        let mut head = [0; HEAD_MAX];
        let n = edge.slots.read(r.frame, &mut head);
        let frame = RxFrame { link, head: &head[..n], frame: r.frame, checksum: r.checksum, gso: r.gso };
        stack.receive(now, &frame, edge);
        edge.slots.give(r.slot);
    }
    taken
}

/// Hands on what happened at the host sockets; whether anything did. `events` is empty but for its memory.
pub(super) fn hand_out_events(stack: &mut Stack, edge: &mut RuntimeEdge, events: &mut Vec<SocketEvent>, now: Time) -> bool {
    edge.sockets.poll(&mut edge.slots, events);
    let any = !events.is_empty();
    for (id, ready) in events.drain(..) {
        // Earlier events of this batch may have closed the socket.
        if let Some(token) = edge.sockets.token(id) {
            stack.socket_ready(now, token, ready, edge);
        }
    }
    any
}

/// Takes the frames that others have for a worker, as many as a queue holds.
pub(super) fn receive_handed(stack: &mut Stack, edge: &mut RuntimeEdge, inbox: &Inbox, now: Time) {
    for _ in 0..FRAME_BUDGET {
        let Some(h) = inbox.take() else { break };
        // Without a slot it is lost, as a frame is for which a link finds none.
        if let Some(frame) = h.in_slot(&mut edge.slots) {
            let head = &h.bytes[..h.bytes.len().min(HEAD_MAX)];
            let rx = RxFrame { link: h.link, head, frame, checksum: h.checksum, gso: h.gso };
            stack.receive_handed(now, &rx, edge);
            edge.slots.give(frame.slot);
        }
        inbox.give_back(h);
    }
}
