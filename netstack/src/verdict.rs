//! What becomes of a packet, and why it was dropped.

/// Decision of a hook about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on.
    Accept,
    /// The packet ends here, for this reason.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a packet went no further. Every drop counts under exactly one reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// Name of the counter: lower case, underscores.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say.
    Truncated = "truncated",
    /// Not for our MAC address, nor broadcast or a multicast we listen to.
    NotOurMac = "not_our_mac",
    /// An EtherType that the stack does not speak.
    UnknownEthertype = "unknown_ethertype",
    /// A header field has an impossible value.
    Malformed = "malformed",
    /// The IPv4 header checksum is wrong.
    BadIpChecksum = "bad_ip_checksum",
    /// The TCP, UDP or ICMP checksum is wrong.
    BadL4Checksum = "bad_l4_checksum",
    /// The source address does not belong to the guest.
    SpoofedSource = "spoofed_source",
    /// The source is a multicast, broadcast or unspecified address.
    MartianSource = "martian_source",
    /// The destination cannot be routed (multicast, broadcast, unspecified, wrong family).
    NoRoute = "no_route",
    /// The safe reach forbids the destination; the guest was told so.
    ReachDenied = "reach_denied",
    /// TTL or hop limit ran out.
    TtlExceeded = "ttl_exceeded",
    /// Larger than the way out and not to be fragmented.
    TooBig = "too_big",
    /// More fragments or bytes wait for reassembly than is allowed.
    FragmentLimit = "fragment_limit",
    /// A fragment overlaps another or does not fit its datagram.
    FragmentBad = "fragment_bad",
    /// A datagram's fragments did not all come in time.
    FragmentTimeout = "fragment_timeout",
    /// Packet of an IP version that is switched off.
    FamilyDisabled = "family_disabled",
    /// IP protocol that cannot be translated.
    UnknownProtocol = "unknown_protocol",
    /// ICMP message that has no meaning here.
    IcmpUnhandled = "icmp_unhandled",
    /// Service on our own address that does not exist.
    NoService = "no_service",
    /// Limit on flows, half-open connections or memory.
    FlowLimit = "flow_limit",
    /// The host has no socket or buffer left.
    HostResources = "host_resources",
    /// The host refused the datagram (unreachable, no permission, too long).
    HostRefused = "host_refused",
    /// TCP segment outside of the window or in no state that takes it.
    TcpUnacceptable = "tcp_unacceptable",
    /// Bytes that had been received before.
    TcpDuplicate = "tcp_duplicate",
    /// Out-of-order segment for which no room is left.
    TcpReassemblyLimit = "tcp_reassembly_limit",
    /// More in-window bytes than the host socket and our hold take.
    TcpHoldLimit = "tcp_hold_limit",
    /// The link took no more frames.
    LinkFull = "link_full",
    /// The link is down.
    LinkDown = "link_down",
    /// No MAC address is known for the destination yet.
    Unresolved = "unresolved",
    /// An answer was held back by the ICMP rate limit.
    IcmpRateLimited = "icmp_rate_limited",
    /// Malformed DHCP message.
    BadDhcp = "bad_dhcp",
    /// Malformed DNS message, or one that answers no query.
    BadDns = "bad_dns",
    /// The DNS query is in flight already.
    DnsDuplicate = "dns_duplicate",
    /// Too many DNS queries wait for an answer.
    DnsLimit = "dns_limit",
    /// A rule said so (DROP).
    Rule = "rule",
    /// A rule said so, and the sender was told (REJECT).
    Rejected = "rejected",
    /// The policy of a chain.
    Policy = "policy",
    /// The table of tracked connections is full, and none of them can go.
    ConntrackFull = "conntrack_full",
    /// Another packet made the same connection first.
    ConntrackClash = "conntrack_clash",
    /// Too many connections share a bucket.
    ConntrackChain = "conntrack_chain",
    /// The connection was deleted while the packet was on its way, and with it what the packet is to be translated to.
    ConntrackGone = "conntrack_gone",
    /// Address translation found no free port or identifier.
    NatExhausted = "nat_exhausted",
    /// Address translation wanted an address that is not the host's, or an interface that has none.
    NatAddress = "nat_address",
    /// A rule led the packet to an address of the host's that is not open.
    NatDenied = "nat_denied",
    /// The packet belongs to another worker, whose queue is full.
    WorkerBusy = "worker_busy",
    /// The rules of this address family were not given.
    NoRules = "no_rules",
}
