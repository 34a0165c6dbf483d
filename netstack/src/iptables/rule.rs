//! Rules as they are written: what the text says, in values. Compiled for evaluation elsewhere.

mod alter;
mod count;
mod level;
mod matches;
mod packet;
mod set;
mod target;

pub use alter::{Alter, HopChange, LogTarget, NflogTarget, log_flags};
pub use count::{ConnbytesMatch, ConnlimitMatch, CountDir, CountOf, HashlimitMatch, hashlimit_mode};
pub use matches::*;
pub use packet::{
    ChunkRule, EcnMatch, ExtMatch, FieldMatch, FragMatch, HopTest, OptionsMatch, RouteMatch, RpFilter, SctpChunks, SctpMatch,
    SpiRange, StringMatch, TimeMatch, U32Step, U32Test, header_bits,
};
pub use set::{SetDirs, SetMatch, SetRef, SetTarget};
pub use target::*;

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
