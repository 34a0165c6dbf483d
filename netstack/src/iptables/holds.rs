//! For how long the answer of a test, or the work of a target, is the same.

/// For which packets a test gives the answer that it gave, or a target does what it did. Every test and target states it: the cache
/// of verdicts ([`super::verdicts`]) keeps what becomes of a connection's packets by it.
///
/// If in doubt it is [`Holds::Packet`], which is always right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// For all packets of a connection of TCP, UDP or ICMP queries that agree in direction, state, status, interfaces, packet mark and
    /// [flag class](super::flags::FlagClasses), while rules, sets, addresses and routes are as they are. So: what looks at nothing but
    /// these, addresses and ports, ICMP type and code, and does nothing but change the packet's mark.
    Connection,
    /// For those of them that came from the same MAC address.
    Mac,
    /// For those of them that find the same connection mark. What changes that mark is replayed only where it leaves it as it was.
    ConnMark,
    /// For this packet only: it looks at something that differs between packets (length, TTL, options, payload, time, counters, chance),
    /// changes more than the packet's mark, or must happen each time (a token taken, a line logged, a set changed).
    Packet,
}
