//! What is said over a control socket: one request in a line of JSON, one answer in a document of JSON, then the end.
//!
//! Requests that could take long are answered in pages: a page looks at a bounded part of what there is and says where the next
//! one begins. The worker keeps nothing between two pages.

use super::which::Which;
use hibernet_netstack::admin;
use hibernet_netstack::iptables::{Family, TableName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 4 << 20;
/// Longest answer in bytes.
pub const MAX_ANSWER: usize = 16 << 20;

/// Address family of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RulesOf {
    /// IPv4: `iptables`.
    V4,
    /// IPv6: `ip6tables`.
    V6,
}

impl From<RulesOf> for Family {
    fn from(f: RulesOf) -> Family {
        match f {
            RulesOf::V4 => Family::V4,
            RulesOf::V6 => Family::V6,
        }
    }
}

/// A table of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TableOf {
    /// Before tracking.
    Raw,
    /// Changes packets.
    Mangle,
    /// Address translation.
    Nat,
    /// Lets pass or not.
    Filter,
    /// After filter.
    Security,
}

impl From<TableOf> for TableName {
    fn from(t: TableOf) -> TableName {
        match t {
            TableOf::Raw => TableName::Raw,
            TableOf::Mangle => TableName::Mangle,
            TableOf::Nat => TableName::Nat,
            TableOf::Filter => TableName::Filter,
            TableOf::Security => TableName::Security,
        }
    }
}

/// What becomes of flows when rules are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Recheck {
    /// The new rules judge later packets only.
    #[default]
    Keep,
    /// Every live flow is judged once, and reset if it is forbidden now.
    Cut,
}

impl From<Recheck> for admin::Recheck {
    fn from(r: Recheck) -> admin::Recheck {
        match r {
            Recheck::Keep => admin::Recheck::Keep,
            Recheck::Cut => admin::Recheck::Cut,
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All counters, as one object.
    Stats,
    /// The rules in force: a [`Rules`].
    RulesSave {
        /// Which family.
        family: RulesOf,
        /// Only this table.
        #[serde(default)]
        table: Option<TableOf>,
        /// With the counters of rules.
        #[serde(default)]
        counters: bool,
    },
    /// Other rules: a [`Restored`].
    RulesRestore(Restore),
    /// What a text of rules would change: [`Rules`] with the lines that go and come.
    RulesDiff {
        /// Which family.
        family: RulesOf,
        /// In the language of `iptables-restore`.
        text: String,
    },
    /// The sets in force, a page of lines at a time: a [`Page`] of text.
    SetsSave {
        /// Only this set.
        #[serde(default)]
        set: Option<String>,
        /// Where to go on: `next` of the page before, 0 at first.
        #[serde(default)]
        from: u64,
    },
    /// Tracked connections: a [`Page`] of them, as lines or objects by the form asked for.
    Conntrack(Box<Conntrack>),
    /// What connection tracking counted: a [`ConntrackStats`].
    ConntrackStats,
    /// Trace packets for some seconds, and what happened since this was asked the last time: a [`TracePage`].
    Trace(Box<Trace>),
}

/// A request to trace packets. Who asks again goes on with it, who does not has ended it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// Whoever asks: one at a time traces.
    pub id: u64,
    /// Which packets, beside those that TRACE rules mark.
    #[serde(default)]
    pub which: Option<TraceWhich>,
    /// No more.
    #[serde(default)]
    pub end: bool,
}

/// Which packets to trace: all that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceWhich {
    /// IPv6, or IPv4.
    pub v6: Option<bool>,
    /// Protocol, by name or number.
    pub proto: Option<String>,
    /// Source address, or a prefix.
    pub src: Option<String>,
    /// Destination address, or a prefix.
    pub dst: Option<String>,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// Either port.
    pub port: Option<u16>,
    /// Where it came in.
    pub input: Option<String>,
}

/// What happened to traced packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePage {
    /// In the order in which it happened.
    pub steps: Vec<TraceEvent>,
    /// How much more there was.
    pub lost: u64,
}

/// Something that happened to a traced packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Number of the packet.
    pub packet: u32,
    /// What happened.
    pub step: TraceStep,
}

/// What happened to a traced packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase")]
pub enum TraceStep {
    /// It met a rule, before that acted, or the end of a chain.
    Rule {
        /// Table.
        table: String,
        /// Hook.
        hook: String,
        /// Chain.
        chain: String,
        /// Number of the rule in it, from 1.
        number: u64,
        /// `rule`, `return` or `policy`.
        kind: String,
        /// The rule, or the policy.
        rule: String,
        /// The packet, as LOG shows it.
        packet: String,
    },
    /// It is to leave by this interface, or is `local`: for the gateway.
    Route {
        /// Where to.
        to: String,
    },
    /// It has gone, or was dropped.
    End {
        /// Why it was dropped.
        dropped: Option<String>,
    },
}

/// A request for other rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Which family.
    pub family: RulesOf,
    /// In the language of `iptables-restore`.
    pub text: String,
    /// Keep the rules that are there.
    #[serde(default)]
    pub noflush: bool,
    /// Take the counters of the text.
    #[serde(default)]
    pub counters: bool,
    /// Sets that rules name, in the language of `ipset restore`: in place of those that are there, or with `noflush` carried out on them.
    #[serde(default)]
    pub sets: Option<String>,
    /// Check only.
    #[serde(default)]
    pub test: bool,
    /// What becomes of flows; as the sandbox was started if it does not say.
    #[serde(default)]
    pub recheck: Option<Recheck>,
}

/// Rules as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// In the form of `iptables-save`.
    pub text: String,
}

/// What became of flows when rules were replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Flows that are forbidden now, and were reset on both sides.
    pub cut: u64,
    /// The other family has no rules, and is dropped.
    pub other_dropped: bool,
}

/// A request for tracked connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conntrack {
    /// Which.
    #[serde(default)]
    pub which: Which,
    /// How they are written.
    #[serde(default)]
    pub form: Form,
    /// Delete them, and reset their flows on both sides; the answer says which.
    #[serde(default)]
    pub delete: bool,
    /// Where to go on: `next` of the page before, 0 at first.
    #[serde(default)]
    pub from: u64,
}

/// How a connection is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A line as of `conntrack -L`.
    #[default]
    Line,
    /// A line as of `conntrack -L -o extended`.
    Extended,
    /// An object.
    Json,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// What was found; may be nothing even if it is not the last page.
    pub items: Vec<T>,
    /// Where the next page begins; none after the last.
    pub next: Option<u64>,
}

/// What connection tracking counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackStats {
    /// Connections now.
    pub count: u64,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// It was done.
    Ok(T),
    /// It was not.
    Error(Problem),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of reason.
    pub kind: ProblemKind,
    /// One line.
    pub message: String,
    /// For rules that cannot be read: where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Place>,
}

impl Problem {
    /// One that is not about a place in a text.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Problem { kind, message: message.into(), at: None }
    }

    /// Whether it lies in a text of rules.
    pub fn is_about_rules(&self) -> bool {
        matches!(self.kind, ProblemKind::Syntax | ProblemKind::Meaning | ProblemKind::Sets)
    }
}

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The client may not ask.
    Denied,
    /// Too many ask at once; later it may work.
    Busy,
    /// It is no request.
    Request,
    /// Rules cannot be read.
    Syntax,
    /// Rules can be read but make no sense.
    Meaning,
    /// Sets cannot be read.
    Sets,
    /// Not in the state in which the sandbox is.
    State,
    /// What was required of a checkpoint cannot be met.
    Require,
    /// An image is of no use.
    Image,
    /// A file that the client has opened cannot be written.
    File,
    /// Something that should not happen.
    Internal,
}

/// A place in a text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Byte in the line.
    pub column: u32,
}
