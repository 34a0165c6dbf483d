//! Matches as values; those of a kind of their own are beside.

use super::{
    ConnbytesMatch, ConnlimitMatch, ExtMatch, FieldMatch, HashlimitMatch, Inv, Net, RpFilter, SctpMatch, SetMatch, StringMatch,
    TimeMatch, U32Test,
};
use crate::iptables::recent::RecentMatch;
use crate::wire::Mac;
use core::net::IpAddr;

/// First and last port.
pub type PortRange = (u16, u16);

/// A match extension with its options.
#[derive(Clone, Debug, PartialEq)]
pub enum Match {
    /// `tcp`.
    Tcp {
        /// `--sport`.
        sport: Option<Inv<PortRange>>,
        /// `--dport`.
        dport: Option<Inv<PortRange>>,
        /// `--tcp-flags MASK SET` or `--syn`.
        flags: Option<Inv<(u8, u8)>>,
        /// `--tcp-option KIND`.
        option: Option<Inv<u8>>,
    },
    /// `udp`.
    Udp {
        /// `--sport`.
        sport: Option<Inv<PortRange>>,
        /// `--dport`.
        dport: Option<Inv<PortRange>>,
    },
    /// `icmp` (IPv4) or `icmp6` (IPv6), by the family of the rule.
    Icmp(Option<Inv<IcmpType>>),
    /// `conntrack`.
    Conntrack(Box<CtMatch>),
    /// `state`: a set of [`CtMatch`]'s state bits.
    State(Inv<u16>),
    /// `comment`.
    Comment(String),
    /// `multiport`.
    Multiport {
        /// Which port.
        which: Ports,
        /// Single ports are ranges of one. At most 15 places, a range takes two.
        ports: Inv<Vec<PortRange>>,
    },
    /// `mark`: value, mask.
    Mark(Inv<(u32, u32)>),
    /// `connmark`: value, mask.
    Connmark(Inv<(u32, u32)>),
    /// `addrtype`.
    Addrtype {
        /// `--src-type`: set of `1 << AddrType`.
        src: Option<Inv<u16>>,
        /// `--dst-type`.
        dst: Option<Inv<u16>>,
        /// `--limit-iface-in`.
        limit_in: bool,
        /// `--limit-iface-out`.
        limit_out: bool,
    },
    /// `limit`.
    Limit {
        /// How many per unit; at least 1.
        rate: u32,
        /// Unit.
        unit: RateUnit,
        /// `--limit-burst`; at least 1.
        burst: u32,
    },
    /// `statistic`.
    Statistic(Statistic),
    /// `mac --mac-source`.
    Mac(Inv<Mac>),
    /// `iprange`: first and last address.
    Iprange {
        /// `--src-range`.
        src: Option<Inv<(IpAddr, IpAddr)>>,
        /// `--dst-range`.
        dst: Option<Inv<(IpAddr, IpAddr)>>,
    },
    /// `owner`: knows only our own packets.
    Owner {
        /// `--uid-owner`: first and last.
        uid: Option<Inv<(u32, u32)>>,
        /// `--gid-owner`.
        gid: Option<Inv<(u32, u32)>>,
        /// `--socket-exists`, `true`; inverted, `false`.
        socket: Option<bool>,
    },
    /// `pkttype`, `ttl`, `hl`, `length`, `tos`, `dscp`, `ecn`, `tcpmss`, `esp`, `ah`, `ipcomp`.
    Field(FieldMatch),
    /// `sctp`.
    Sctp(Box<SctpMatch>),
    /// `time`.
    Time(Box<TimeMatch>),
    /// `rpfilter`.
    Rpfilter(RpFilter),
    /// `string`.
    String(Box<StringMatch>),
    /// `u32`: 1 to 10 tests.
    U32(Inv<Vec<U32Test>>),
    /// `ah`, `frag`, `hbh`, `dst`, `rt`, `ipv6header`, `eui64`, `mh` of IPv6.
    Extension(Box<ExtMatch>),
    /// `set`.
    Set(Box<SetMatch>),
    /// `recent`.
    Recent(Box<RecentMatch>),
    /// `connbytes`.
    Connbytes(ConnbytesMatch),
    /// `connlimit`.
    Connlimit(ConnlimitMatch),
    /// `hashlimit`.
    Hashlimit(Box<HashlimitMatch>),
}

/// Which port `multiport` tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `--sports`.
    Source,
    /// `--dports`.
    Destination,
    /// `--ports`.
    Either,
}

/// An ICMP type with a range of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpType {
    /// Type; 255 for any (IPv4).
    pub ty: u8,
    /// First and last code.
    pub codes: (u8, u8),
}

/// Bits of connection state, as the kernel's `XT_CONNTRACK_STATE_*` numbers them.
pub mod ctstate {
    /// INVALID.
    pub const INVALID: u16 = 1 << 0;
    /// ESTABLISHED.
    pub const ESTABLISHED: u16 = 1 << 1;
    /// RELATED.
    pub const RELATED: u16 = 1 << 2;
    /// NEW.
    pub const NEW: u16 = 1 << 3;
    /// SNAT: a virtual state, the source was translated.
    pub const SNAT: u16 = 1 << 6;
    /// DNAT: a virtual state, the destination was translated.
    pub const DNAT: u16 = 1 << 7;
    /// UNTRACKED.
    pub const UNTRACKED: u16 = 1 << 8;
}

/// Bits of `--ctstatus`; 0 stands for NONE.
pub mod ctstatus {
    /// EXPECTED.
    pub const EXPECTED: u16 = 1 << 0;
    /// SEEN_REPLY.
    pub const SEEN_REPLY: u16 = 1 << 1;
    /// ASSURED.
    pub const ASSURED: u16 = 1 << 2;
    /// CONFIRMED.
    pub const CONFIRMED: u16 = 1 << 3;
}

/// `conntrack`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CtMatch {
    /// `--ctstate`: bits of [`ctstate`].
    pub state: Option<Inv<u16>>,
    /// `--ctproto`.
    pub proto: Option<Inv<u8>>,
    /// `--ctorigsrc`.
    pub orig_src: Option<Inv<Net>>,
    /// `--ctorigdst`.
    pub orig_dst: Option<Inv<Net>>,
    /// `--ctreplsrc`.
    pub repl_src: Option<Inv<Net>>,
    /// `--ctrepldst`.
    pub repl_dst: Option<Inv<Net>>,
    /// `--ctorigsrcport`.
    pub orig_sport: Option<Inv<PortRange>>,
    /// `--ctorigdstport`.
    pub orig_dport: Option<Inv<PortRange>>,
    /// `--ctreplsrcport`.
    pub repl_sport: Option<Inv<PortRange>>,
    /// `--ctrepldstport`.
    pub repl_dport: Option<Inv<PortRange>>,
    /// `--ctstatus`: bits of [`ctstatus`].
    pub status: Option<Inv<u16>>,
    /// `--ctexpire`: seconds.
    pub expire: Option<Inv<(u32, u32)>>,
    /// `--ctdir`: `true` for REPLY.
    pub reply: Option<bool>,
}

/// Unit of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateUnit {
    /// Per second.
    Second,
    /// Per minute.
    Minute,
    /// Per hour.
    Hour,
    /// Per day.
    Day,
}

/// `statistic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// `--mode random --probability P`, in units of 2^-31, at most 2^31.
    Random(Inv<u32>),
    /// `--mode nth --every N --packet P`.
    Nth {
        /// At least 1.
        every: u32,
        /// Less than `every`.
        packet: u32,
        /// `!`.
        not: bool,
    },
}
