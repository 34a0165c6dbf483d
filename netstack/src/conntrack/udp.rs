//! UDP: a datagram, an exchange, a stream.

use super::config::CtConfig;
use super::conn::Status;
use crate::time::Time;
use core::time::Duration;

/// After this time an exchange of datagrams is a stream.
pub(super) const STREAM_AFTER: Duration = Duration::from_secs(2);

/// A datagram of a connection: how long it lives on. One that was answered and still goes on after two seconds is a
/// stream, which lives longer and is ASSURED; before, it may be a single question with its answer.
pub(super) fn datagram(cfg: &CtConfig, now: Time, status: &mut Status, stream_after: Time) -> Duration {
    if !status.has(Status::SEEN_REPLY) || now <= stream_after {
        return cfg.timeouts.udp;
    }
    status.set(Status::ASSURED);
    cfg.timeouts.udp_stream
}
