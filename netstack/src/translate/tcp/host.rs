//! Events at a flow's host socket, and the way of the guest's bytes into it.

use super::flow::{Events, Flow};
use super::{Cx, Fate, Shared};
use crate::edge::{Edge, Ready};
use crate::time::Time;

impl Flow {
    /// Something happened at the host socket.
    pub(super) fn host_ready<E: Edge>(&mut self, cx: &mut Cx<'_, E>, ready: Ready) -> Fate {
        if !self.events.has(Events::CONNECTED) {
            return self.connect_ended(cx, ready);
        }
        self.note_readable(ready);
        if ready.error && cx.edge.take_error(self.sock).is_some() {
            self.reset_by_host(cx);
            if !self.events.has(Events::ESTABLISHED) {
                return Fate::ResetGuest;
            }
        }
        // What is gathered, it is offered soon.
        if ready.writable && self.held() > 0 && !self.events.has(Events::GATHERED) {
            self.send_held(cx);
            self.ask_space(cx);
            if self.held() == 0 {
                // The guest may be waiting for room for a whole segment.
                self.events.add(Events::ACK_NOW);
            }
        }
        Fate::Keep
    }

    /// The host's connect came to an end.
    fn connect_ended<E: Edge>(&mut self, cx: &mut Cx<'_, E>, ready: Ready) -> Fate {
        if (ready.error || ready.peer_closed)
            && let Some(e) = cx.edge.take_error(self.sock)
        {
            return Fate::ConnectFailed(e);
        }
        self.note_readable(ready);
        if ready.writable || ready.readable {
            self.events.add(Events::CONNECTED);
            self.alive_at = Time::NEVER;
            self.send_syn_ack(cx);
        }
        Fate::Keep
    }

    fn note_readable(&mut self, ready: Ready) {
        if ready.readable || ready.peer_closed {
            self.events.add(Events::READABLE);
        }
        if ready.peer_closed {
            self.events.add(Events::PEER_CLOSED);
        }
    }

    /// Asks the socket how much it takes.
    pub(super) fn ask_space<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        self.space = cx.edge.tcp_space(self.sock);
        self.asked_at = self.rcv_nxt;
    }

    /// The peer reset the connection, or the host gave it up. What the guest has not had yet is still in the socket.
    pub(super) fn reset_by_host<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        self.events.add(Events::RESET_BY_HOST);
        self.events.add(Events::READABLE);
        self.events.add(Events::PEER_CLOSED);
        self.hold = None;
        self.events.clear(Events::GATHERED);
        self.recount(cx.shared);
    }

    /// Sends what is held or gathered to the host socket.
    pub(super) fn send_held<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        let gathered = self.events.clear(Events::GATHERED);
        while let Some(hold) = self.hold.as_mut().filter(|h| !h.queue.is_empty()) {
            let (front, _) = hold.queue.as_slices();
            let asked = front.len();
            match cx.edge.tcp_send_bytes(self.sock, front) {
                Ok(n) => {
                    hold.queue.drain(..n);
                    self.space = if n < asked { 0 } else { self.space.saturating_sub(n as u32) };
                    if n < asked {
                        break;
                    }
                }
                Err(_) => {
                    self.reset_by_host(cx);
                    return;
                }
            }
        }
        if gathered {
            cx.r.stats.tcp_held_bytes += u64::from(self.held());
        }
        if let Some(empty) = self.hold.take_if(|h| h.is_empty()) {
            cx.shared.keep_spare(empty);
        }
        self.recount(cx.shared);
    }

    /// Passes the guest's FIN on when everything before it was sent.
    pub(super) fn shut_down<E: Edge>(&mut self, cx: &mut Cx<'_, E>) {
        let due = self.events.has(Events::FIN_FROM_GUEST) && !self.events.has(Events::FIN_TO_HOST) && self.held() == 0;
        if due && !self.events.has(Events::RESET_BY_HOST) {
            match cx.edge.tcp_shutdown(self.sock) {
                Ok(()) => self.events.add(Events::FIN_TO_HOST),
                Err(_) => self.reset_by_host(cx),
            }
        }
    }

    /// Brings the total of held bytes up to date with this flow's.
    pub(super) fn recount(&mut self, shared: &mut Shared) {
        let now = self.held() + self.held_out_of_order();
        shared.held = shared.held + u64::from(now) - u64::from(self.counted);
        self.counted = now;
    }

    /// How many more bytes may be held.
    pub(super) fn hold_room(&self, shared: &Shared) -> u32 {
        let own = shared.limits.tcp_hold.saturating_sub(self.held() + self.held_out_of_order());
        let all = shared.limits.tcp_hold_total.saturating_sub(shared.held);
        own.min(u32::try_from(all).unwrap_or(u32::MAX))
    }
}
