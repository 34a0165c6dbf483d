//! Rules as they are written: what the text says, in values. Compiled for evaluation elsewhere.

mod alter;
mod packet;
mod set;

pub use alter::{Alter, HopChange, LogTarget, NflogTarget, log_flags};
pub use packet::{
    ChunkRule, EcnMatch, ExtMatch, FieldMatch, FragMatch, HopTest, OptionsMatch, RouteMatch, RpFilter, SctpChunks, SctpMatch,
    SpiRange, StringMatch, TimeMatch, U32Step, U32Test, header_bits,
};
pub use set::{SetDirs, SetMatch, SetRef, SetTarget};

use super::recent::RecentMatch;
use crate::nat::NatRange;
use crate::wire::Mac;
use core::net::IpAddr;

/// Address family of a ruleset: `iptables` or `ip6tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The tables, in the order in which a hook asks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TableName {
    /// Before tracking.
    Raw,
    /// Changes packets.
    Mangle,
    /// Address translation: first packets of connections only.
    Nat,
    /// Lets pass or not.
    Filter,
    /// After filter.
    Security,
}

impl TableName {
    /// All tables, in the order of their hooks.
    pub const ALL: [TableName; 5] = [TableName::Raw, TableName::Mangle, TableName::Nat, TableName::Filter, TableName::Security];

    /// The name in rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            TableName::Raw => "raw",
            TableName::Mangle => "mangle",
            TableName::Nat => "nat",
            TableName::Filter => "filter",
            TableName::Security => "security",
        }
    }

    /// Its built-in chains, in the order in which they are printed.
    pub const fn built_in(self) -> &'static [&'static str] {
        match self {
            TableName::Raw => &["PREROUTING", "OUTPUT"],
            TableName::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            TableName::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            TableName::Filter | TableName::Security => &["INPUT", "FORWARD", "OUTPUT"],
        }
    }
}

/// The rules of one family.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruleset {
    /// Which family.
    pub family: Family,
    /// Tables, each name at most once. A table that is not there accepts everything.
    pub tables: Vec<Table>,
}

impl Ruleset {
    /// No table: everything is accepted.
    pub fn new(family: Family) -> Self {
        Self { family, tables: Vec::new() }
    }

    /// A table by its name.
    pub fn table(&self, name: TableName) -> Option<&Table> {
        self.tables.iter().find(|t| t.name == name)
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Chains: the built-in ones in the order of their hooks, then the user's own.
    pub chains: Vec<Chain>,
}

impl Table {
    /// A table with its built-in chains, which are empty and accept.
    pub fn new(name: TableName) -> Self {
        let chain = |name: &&str| Chain {
            name: (*name).to_owned(),
            policy: Some(Policy::Accept),
            counters: Counters::default(),
            rules: Vec::new(),
        };
        Self { name, chains: name.built_in().iter().map(chain).collect() }
    }
}

/// One chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// At most 28 bytes.
    pub name: String,
    /// What happens at the end of a built-in chain; `None` for a user's chain, which returns.
    pub policy: Option<Policy>,
    /// Packets that met the policy.
    pub counters: Counters,
    /// Rules in their order.
    pub rules: Vec<Rule>,
}

/// What happens at the end of a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Goes on.
    Accept,
    /// Ends.
    Drop,
}

impl Policy {
    /// The name in rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            Policy::Accept => "ACCEPT",
            Policy::Drop => "DROP",
        }
    }
}

/// How many packets and bytes met a rule or policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

/// A test that may be inverted by `!`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inv<T> {
    /// `!` was there.
    pub not: bool,
    /// What is tested for.
    pub value: T,
}

/// An address and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// Address; bits outside of the mask are zero.
    pub addr: IpAddr,
    /// Mask of the same family; need not be a prefix.
    pub mask: IpAddr,
}

/// An interface name, or the start of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfaceName {
    /// Name without the `+`, at most 15 bytes.
    pub name: String,
    /// It ended in `+`: every interface whose name starts so.
    pub prefix: bool,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// What it met so far.
    pub counters: Counters,
    /// `-s`.
    pub src: Option<Inv<Net>>,
    /// `-d`.
    pub dst: Option<Inv<Net>>,
    /// `-i`.
    pub input: Option<Inv<IfaceName>>,
    /// `-o`.
    pub output: Option<Inv<IfaceName>>,
    /// `-p`; a number that is not 0.
    pub proto: Option<Inv<u8>>,
    /// `-f`: second and further fragments (`true`), or `! -f`. Packets are reassembled before they meet a rule.
    pub fragment: Option<bool>,
    /// `-m` blocks in their order.
    pub matches: Vec<Match>,
    /// `-j` or `-g`.
    pub target: Target,
}

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

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Target {
    /// No `-j`: counts, and the next rule is asked.
    #[default]
    None,
    /// The packet goes on to the next table.
    Accept,
    /// It ends here.
    Drop,
    /// Back to the calling chain, or to the policy.
    Return,
    /// `-j` to a user's chain.
    Jump(String),
    /// `-g` to a user's chain: returns to where the present one would.
    Goto(String),
    /// Drops, and tells the sender.
    Reject(RejectWith),
    /// Logs, and goes on.
    Log(Box<LogTarget>),
    /// Translates the destination.
    Dnat(NatRange),
    /// Translates the source.
    Snat(NatRange),
    /// Translates the source to the address of the interface.
    Masquerade(NatRange),
    /// Translates the destination to ourselves.
    Redirect(NatRange),
    /// Maps one net to another, host bits kept; source or destination by the hook.
    Netmap(Net),
    /// `MARK`: `mark = (mark & !mask) ^ value`.
    Mark {
        /// Bits to flip.
        value: u32,
        /// Bits to clear before.
        mask: u32,
    },
    /// `CONNMARK`.
    Connmark(Connmark),
    /// `CT`, and `NOTRACK`.
    Ct(CtTarget),
    /// `TTL`, `HL`, `TOS`, `DSCP`, `TCPMSS`, `CHECKSUM`.
    Alter(Alter),
    /// `NFLOG`.
    Nflog(Box<NflogTarget>),
    /// `TRACE`: the packet's way is recorded from here on.
    Trace,
    /// `SET`.
    Set(Box<SetTarget>),
}

/// How `REJECT` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    /// IPv4: code of an ICMP destination-unreachable: 0 net, 1 host, 2 proto, 3 port, 9 net-prohibited, 10 host-prohibited, 13 admin-prohibited.
    Icmp(u8),
    /// IPv6: code of an ICMPv6 destination-unreachable: 0 no-route, 1 adm-prohibited, 3 addr, 4 port, 5 policy-fail, 6 reject-route.
    Icmp6(u8),
    /// TCP RST.
    TcpReset,
}

/// `CONNMARK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connmark {
    /// `--set-xmark value/mask`.
    Set {
        /// Bits to flip.
        value: u32,
        /// Bits to clear before.
        mask: u32,
    },
    /// `--save-mark`: connection's from packet's.
    Save {
        /// `--nfmask`.
        nfmask: u32,
        /// `--ctmask`.
        ctmask: u32,
    },
    /// `--restore-mark`: packet's from connection's.
    Restore {
        /// `--nfmask`.
        nfmask: u32,
        /// `--ctmask`.
        ctmask: u32,
    },
}

/// `CT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CtTarget {
    /// `--notrack`.
    pub notrack: bool,
    /// It is written `-j NOTRACK`, which means the same as `-j CT --notrack`.
    pub alias: bool,
    /// `--zone`, and in which directions it holds.
    pub zone: Option<(u16, ZoneDir)>,
}

/// Directions in which a zone holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneDir {
    /// `--zone`.
    Both,
    /// `--zone-orig`.
    Original,
    /// `--zone-reply`.
    Reply,
}
