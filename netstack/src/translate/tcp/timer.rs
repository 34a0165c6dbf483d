//! What the passing of time does to a flow: RFC 6298 (retransmission), RFC 9293 sections 3.8.6.1 (probes) and 3.8.4 (keep-alive).

use super::flow::{Events, Flow};
use super::input::IDLE;
use super::{Cx, Fate};
use crate::edge::{Edge, SockError};
use crate::time::Time;
use core::time::Duration;

/// A guest that acknowledges nothing for so long is gone. Less would lose the connections of a guest that was paused.
const GUEST_GONE: Duration = Duration::from_secs(15 * 60);
/// But only if it was asked so often: while we are stopped ourselves, time passes too.
const GUEST_ASKED: u8 = 15;
/// A handshake with the guest that gets no answer is repeated so often: 1 + 2 + 4 + 8 + 16 + 32 seconds.
const HANDSHAKE_RETRIES: u8 = 5;
/// Interval and number of keep-alive probes (Linux's tcp_keepalive_intvl and tcp_keepalive_probes).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u8 = 9;

impl Flow {
    /// Does what is due.
    pub(super) fn expired<E: Edge>(&mut self, cx: &mut Cx<'_, E>) -> Fate {
        let now = cx.r.now;
        if self.ack_at <= now {
            self.ack_at = Time::NEVER;
            self.acknowledge_as_peer(cx);
        }
        if self.alive_at <= now {
            let fate = self.check_alive(cx);
            if fate != Fate::Keep {
                return fate;
            }
        }
        if self.resend_at <= now {
            self.resend_at = Time::NEVER;
            return self.resend_expired(cx);
        }
        Fate::Keep
    }

    fn resend_expired<E: Edge>(&mut self, cx: &mut Cx<'_, E>) -> Fate {
        let now = cx.r.now;
        let link_full = self.events.clear(Events::LINK_FULL);
        if link_full && self.events.has(Events::ESTABLISHED) {
            if self.in_flight() {
                self.resend_at = now + self.rtt.rto(self.backoff);
                // Once: a link that is full for long must not keep a guest that is gone from being found out.
                if self.events.clear(Events::RESEND) {
                    self.resend(cx);
                    self.events.clear(Events::RESEND);
                }
            }
            return Fate::Keep;
        }
        if !self.events.has(Events::ESTABLISHED) {
            if self.backoff >= HANDSHAKE_RETRIES {
                return Fate::ResetHost;
            }
            self.backoff += u8::from(!link_full);
            if self.events.has(Events::INBOUND) {
                // The deadline repeats it.
                let _ = self.send_syn(cx);
            } else {
                self.send_syn_ack(cx);
            }
            return Fate::Keep;
        }
        if self.backoff >= GUEST_ASKED && now.since(self.stalled_since) >= GUEST_GONE && now.since(self.heard) >= GUEST_GONE {
            return Fate::ResetBoth;
        }
        if !self.in_flight() && self.snd_wnd > 0 {
            return Fate::Keep;
        }
        self.backoff = self.backoff.saturating_add(1);
        self.resend_at = now + self.rtt.rto(self.backoff);
        if self.in_flight() {
            cx.r.stats.tcp_rto += 1;
            self.recover = Some(self.snd_nxt);
            self.dup_acks = 0;
            self.resend(cx);
        } else {
            cx.r.stats.tcp_window_probe += 1;
            self.probe(cx);
        }
        Fate::Keep
    }

    /// A flow that has been silent for long.
    fn check_alive<E: Edge>(&mut self, cx: &mut Cx<'_, E>) -> Fate {
        let now = cx.r.now;
        if !self.events.has(Events::ESTABLISHED) {
            return Fate::ConnectFailed(SockError::TimedOut);
        }
        let silent = now.since(self.heard);
        if silent < IDLE {
            self.alive_at = self.heard + IDLE;
            return Fate::Keep;
        }
        // What is in flight has its own deadline.
        if !self.in_flight() {
            if self.backoff >= KEEPALIVE_PROBES {
                return Fate::ResetBoth;
            }
            self.backoff += 1;
            self.probe(cx);
        }
        self.alive_at = now + KEEPALIVE_INTERVAL;
        Fate::Keep
    }
}
