//! Matches that look at the packet alone, as values.

use super::{Inv, PortRange};
use crate::skb::Cast;
use core::net::Ipv6Addr;

/// First and last index of a security association.
pub type SpiRange = (u32, u32);

/// A test of one header field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FieldMatch {
    /// `pkttype`.
    Pkttype(Inv<Cast>),
    /// `ttl` (IPv4), `hl` (IPv6).
    HopLimit(HopTest),
    /// `length`: first and last; a range that runs backwards holds nothing.
    Length(Inv<(u16, u16)>),
    /// `tos`: value, mask.
    Tos(Inv<(u8, u8)>),
    /// `dscp`: at most 63.
    Dscp(Inv<u8>),
    /// `ecn`.
    Ecn(EcnMatch),
    /// `tcpmss`.
    TcpMss(Inv<(u16, u16)>),
    /// `esp`.
    Esp(Option<Inv<SpiRange>>),
    /// `ah` of IPv4, where it is a protocol.
    Ah(Option<Inv<SpiRange>>),
    /// `ipcomp`.
    Ipcomp(Option<Inv<SpiRange>>),
}

/// Which hop limits fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopTest {
    /// `--ttl-eq`.
    Is(u8),
    /// `! --ttl-eq`.
    IsNot(u8),
    /// `--ttl-lt`.
    Below(u8),
    /// `--ttl-gt`.
    Above(u8),
}

/// `ecn`; at least one of its tests is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EcnMatch {
    /// `--ecn-tcp-ece`, or inverted.
    pub ece: Option<bool>,
    /// `--ecn-tcp-cwr`, or inverted.
    pub cwr: Option<bool>,
    /// `--ecn-ip-ect`: 0 to 3.
    pub ect: Option<Inv<u8>>,
}

/// `sctp`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SctpMatch {
    /// `--sport`.
    pub sport: Option<Inv<PortRange>>,
    /// `--dport`.
    pub dport: Option<Inv<PortRange>>,
    /// `--chunk-types`.
    pub chunks: Option<Inv<SctpChunks>>,
}

/// Chunks that a packet must have.
#[derive(Clone, Debug, PartialEq)]
pub struct SctpChunks {
    /// How many of them.
    pub how: ChunkRule,
    /// Types, a bit each.
    pub types: [u64; 4],
    /// Type, mask, and flags that must be set of the mask; of different types.
    pub flags: Vec<(u8, u8, u8)>,
}

/// How chunks and a list of types must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkRule {
    /// Some chunk is of the list.
    Any,
    /// There is a chunk of each type of the list.
    All,
    /// Every chunk is of the list.
    Only,
}

impl SctpChunks {
    /// Whether a type is in the list.
    pub const fn has(&self, ty: u8) -> bool {
        self.types[(ty / 64) as usize] >> (ty % 64) & 1 != 0
    }

    /// Puts a type into the list.
    pub fn add(&mut self, ty: u8) {
        self.types[usize::from(ty / 64)] |= 1 << (ty % 64);
    }
}

/// `time`: all of it in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeMatch {
    /// `--datestart` and `--datestop`: seconds since 1970.
    pub dates: (u32, u32),
    /// `--timestart` and `--timestop`: seconds of the day; round over midnight if the second is less.
    pub day: (u32, u32),
    /// `--monthdays`: a bit each, from bit 1.
    pub monthdays: u32,
    /// `--weekdays`: a bit each, Monday is bit 1.
    pub weekdays: u8,
    /// `--contiguous`: the hours after midnight belong to the day before.
    pub contiguous: bool,
}

impl TimeMatch {
    /// Every day of a month.
    pub const ALL_MONTHDAYS: u32 = 0xffff_fffe;
    /// Every day of a week.
    pub const ALL_WEEKDAYS: u8 = 0xfe;
    /// The last second of a day.
    pub const LAST_SECOND: u32 = 86_399;
    /// The last date that can be said.
    pub const LAST_DATE: u32 = i32::MAX as u32;

    /// Always.
    pub const ALWAYS: TimeMatch = TimeMatch {
        dates: (0, Self::LAST_DATE),
        day: (0, Self::LAST_SECOND),
        monthdays: Self::ALL_MONTHDAYS,
        weekdays: Self::ALL_WEEKDAYS,
        contiguous: false,
    };
}

/// `rpfilter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RpFilter {
    /// `--loose`: any interface will do.
    pub loose: bool,
    /// `--validmark`: the mark takes part in routing; here it never does.
    pub valid_mark: bool,
    /// `--accept-local`: sources that are ours, too.
    pub accept_local: bool,
    /// `--invert`.
    pub invert: bool,
}

/// `string`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StringMatch {
    /// `!`.
    pub not: bool,
    /// What is looked for: 1 to 128 bytes.
    pub pattern: Vec<u8>,
    /// `--algo kmp`, else `bm`: they find the same.
    pub kmp: bool,
    /// `--icase`.
    pub icase: bool,
    /// `--from` and `--to`: bytes of the IP packet between which all of it must stand.
    pub span: (u16, u16),
}

/// `u32`: one test of several, all of which must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct U32Test {
    /// Where reading starts, from the IP header on.
    pub start: u32,
    /// What is done to what is read, one after the other; at most 10.
    pub steps: Vec<U32Step>,
    /// First and last of values that fit; 1 to 10.
    pub values: Vec<(u32, u32)>,
}

/// A step of a `u32` test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum U32Step {
    /// `&`.
    And(u32),
    /// `<<`, less than 32.
    Left(u32),
    /// `>>`, less than 32.
    Right(u32),
    /// `@`: what there is so far moves the base, then reading starts at this.
    At(u32),
}

/// A test of an IPv6 extension header.
#[derive(Clone, Debug, PartialEq)]
pub enum ExtMatch {
    /// `ah`.
    Ah {
        /// `--ahspi`.
        spi: Option<Inv<SpiRange>>,
        /// `--ahlen`: bytes.
        len: Option<Inv<u32>>,
        /// `--ahres`: the reserved field is zero.
        reserved: bool,
    },
    /// `frag`. Packets are reassembled before they meet a rule, so none fits.
    Frag(FragMatch),
    /// `hbh`, `dst`.
    Options(OptionsMatch),
    /// `rt`.
    Route(RouteMatch),
    /// `ipv6header`: bits of [`header_bits`].
    Headers {
        /// `--header`.
        bits: Inv<u8>,
        /// `--soft`: others may be there.
        soft: bool,
    },
    /// `eui64`.
    Eui64,
    /// `mh --mh-type`: first and last.
    Mobility(Option<Inv<(u8, u8)>>),
}

/// Bits of `ipv6header`.
pub mod header_bits {
    /// An upper protocol.
    pub const PROTOCOL: u8 = 1;
    /// No next header.
    pub const NONE: u8 = 2;
    /// ESP.
    pub const ESP: u8 = 4;
    /// AH.
    pub const AH: u8 = 8;
    /// Destination options.
    pub const DEST: u8 = 16;
    /// Fragment.
    pub const FRAGMENT: u8 = 32;
    /// Routing.
    pub const ROUTE: u8 = 64;
    /// Hop-by-hop options.
    pub const HOP: u8 = 128;
}

/// `frag`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragMatch {
    /// `--fragid`.
    pub id: Option<Inv<(u32, u32)>>,
    /// `--fraglen`.
    pub len: Option<Inv<u32>>,
    /// `--fragres`.
    pub reserved: bool,
    /// `--fragfirst`.
    pub first: bool,
    /// `--fragmore` (`true`) or `--fraglast`.
    pub more: Option<bool>,
}

/// `hbh`, `dst`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptionsMatch {
    /// Destination options, not hop-by-hop ones.
    pub dest: bool,
    /// `--dst-len`: bytes of the header.
    pub len: Option<Inv<u32>>,
    /// `--dst-opts`: type, and length if it matters; in this order from the first on. At most 16.
    pub options: Vec<(u8, Option<u8>)>,
}

/// `rt`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// `--rt-type`.
    pub ty: Option<Inv<u32>>,
    /// `--rt-segsleft`.
    pub left: Option<Inv<(u32, u32)>>,
    /// `--rt-len`: bytes of the header.
    pub len: Option<Inv<u32>>,
    /// `--rt-0-res`: the reserved field is zero.
    pub reserved: bool,
    /// `--rt-0-addrs`: at most 16.
    pub addrs: Vec<Ipv6Addr>,
    /// `--rt-0-not-strict`: others may be between them.
    pub not_strict: bool,
}
