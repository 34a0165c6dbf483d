//! `LOG`: what a rule reports.

use super::{Hook, LogTarget};
use crate::skb::Skb;

/// Headers as bytes, for what a [`Skb`] does not keep: IP identification, options, the link header.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawHeaders<'a> {
    /// The Ethernet header of a packet that came over a link.
    pub link: &'a [u8],
    /// The IP header with its options or extension headers, as the packet came or will be sent.
    pub ip: &'a [u8],
}

/// A packet that met a LOG rule.
#[derive(Clone, Copy, Debug)]
pub struct LogEntry<'a> {
    /// Level, prefix, and what to show.
    pub target: &'a LogTarget,
    /// Where.
    pub hook: Hook,
    /// The packet, as it is there.
    pub skb: &'a Skb<'a>,
    /// More of its headers.
    pub raw: RawHeaders<'a>,
}

/// Takes what LOG rules report.
pub trait LogSink {
    /// One packet. Called on the way of packets: it must not block, and should limit how much it writes.
    fn log(&mut self, entry: &LogEntry<'_>);
}
