//! What each protocol makes of a packet: steps on one [`Conn`], without a table.
//!
//! Checksums are not looked at here: the stack verified them, or its link vouches for them, before a packet is tracked.
//! (Linux does so in PREROUTING, and forwards the packets as INVALID; here they are dropped.)
//!
//! Of SCTP, DCCP and UDP-Lite only the addresses are tracked, as of protocols that are unknown.

use super::config::CtConfig;
use super::conn::{Conn, Dir, Proto, Status};
use super::{gre, icmp, tcp, udp};
use crate::packet::L4;
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::proto;
use core::time::Duration;

/// Why a packet is INVALID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Its transport header is not all there.
    #[error("truncated transport header")]
    Truncated,
    /// Flags that no TCP sends together.
    #[error("invalid TCP flag combination")]
    TcpFlags,
    /// A TCP segment with which no connection begins.
    #[error("no TCP connection begins so")]
    TcpStart,
    /// A TCP segment that has no place in the connection's state.
    #[error("TCP segment does not fit the state")]
    TcpState,
    /// A RST before what was acknowledged.
    #[error("RST below what was acknowledged")]
    TcpRst,
    /// Sequence number above the receiver's window.
    #[error("SEQ is over upper bound (over the window of the receiver)")]
    TcpSeqOver,
    /// Acknowledges what was not sent.
    #[error("ACK is over upper bound (ACKed data not seen yet)")]
    TcpAckOver,
    /// An ICMP type that is unknown, or with which no connection begins.
    #[error("ICMP type begins no connection")]
    IcmpType,
    /// An ICMP error that quotes no packet that could be read.
    #[error("ICMP error without a readable quote")]
    Quote,
}

/// What tracking is to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It belongs to a connection, or begins one.
    Packet,
    /// It belongs to what it quotes ([`icmp::quoted`]), and begins and refreshes nothing.
    IcmpError,
    /// It is UNTRACKED whatever the rules say: neighbour discovery and its like.
    Exempt,
}

/// How a packet of a known connection went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// It belongs to the connection, whose state and `expires` are brought up to date.
    Accept,
    /// It belongs to the connection, which it neither renews nor counts for.
    Aside,
    /// It is INVALID. The connection stays; its `expires` may have been brought forward.
    Invalid(Invalid),
    /// The connection is over and this packet begins another: remove it at once, and track the packet again.
    Repeat,
    /// It belongs to the connection, which is over with it: remove it when the packet is through.
    DeleteAccept,
}

/// Looks at a packet before its connection is looked for.
#[inline]
pub fn check(skb: &Skb<'_>) -> Result<Kind, Invalid> {
    match (skb.protocol, &skb.l4) {
        (proto::TCP, L4::Tcp(h, _)) => tcp::check(h, skb.l4_len).map(|()| Kind::Packet),
        (proto::UDP, L4::Udp(h)) if u32::from(h.len) <= skb.l4_len => Ok(Kind::Packet),
        (proto::ICMP | proto::ICMPV6, l4) => icmp::kind(l4),
        (proto::TCP | proto::UDP, _) => Err(Invalid::Truncated),
        _ => Ok(Kind::Packet),
    }
}

/// The state of a connection that begins with this packet, and how long it lives if nothing follows.
pub fn new(cfg: &CtConfig, now: Time, skb: &Skb<'_>) -> Result<(Proto, Duration), Invalid> {
    match (skb.protocol, &skb.l4) {
        (proto::TCP, L4::Tcp(h, o)) => {
            let (track, timeout) = tcp::begin(cfg, &tcp::Segment::new(h, o, skb))?;
            Ok((Proto::Tcp(track), timeout))
        }
        (proto::UDP, L4::Udp(_)) => Ok((Proto::Udp { stream_after: now + udp::STREAM_AFTER }, cfg.timeouts.udp)),
        (proto::ICMP | proto::ICMPV6, l4) => {
            icmp::begins(l4)?;
            Ok((Proto::Icmp, icmp::timeout(cfg, skb.is_v6())))
        }
        (proto::TCP | proto::UDP, _) => Err(Invalid::Truncated),
        (gre::PROTOCOL, _) => Ok((Proto::Generic, cfg.timeouts.gre)),
        _ => Ok((Proto::Generic, cfg.timeouts.generic)),
    }
}

/// A further packet of a connection, which passed [`check`], in the direction in which its tuple was found. Everything
/// that follows for the connection is done to `conn`, SEEN_REPLY, ASSURED and `expires` included.
#[inline]
pub fn packet(cfg: &CtConfig, now: Time, conn: &mut Conn, dir: Dir, skb: &Skb<'_>) -> Step {
    let timeout = match &mut conn.proto {
        Proto::Tcp(track) => {
            let L4::Tcp(h, o) = &skb.l4 else { return Step::Invalid(Invalid::Truncated) };
            let segment = tcp::Segment::new(h, o, skb);
            match tcp::packet(cfg, track, &mut conn.status, conn.expires.since(now), dir, &segment) {
                tcp::Outcome::Accept(timeout) => timeout,
                tcp::Outcome::Invalid { why, lower } => {
                    if let Some(timeout) = lower {
                        conn.expires = now + timeout;
                    }
                    return Step::Invalid(why);
                }
                tcp::Outcome::Repeat => return Step::Repeat,
                tcp::Outcome::DeleteAccept => {
                    // As Linux: rules see that it is a reply.
                    if dir == Dir::Reply {
                        conn.status.set(Status::SEEN_REPLY);
                    }
                    return Step::DeleteAccept;
                }
            }
        }
        Proto::Udp { stream_after } => Some(udp::datagram(cfg, now, &mut conn.status, *stream_after)),
        Proto::Icmp => Some(icmp::timeout(cfg, conn.tuples[0].v6)),
        Proto::Generic if conn.tuples[0].proto == gre::PROTOCOL => Some(gre::packet(cfg, &mut conn.status)),
        Proto::Generic => Some(cfg.timeouts.generic),
    };
    if dir == Dir::Reply {
        conn.status.set(Status::SEEN_REPLY);
    }
    match timeout {
        Some(timeout) => {
            conn.expires = now + timeout;
            Step::Accept
        }
        None => Step::Aside,
    }
}
