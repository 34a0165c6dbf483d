//! The tables through which every packet goes.

mod check;
mod compile;
mod connlimit;
mod counters;
mod eval;
mod flags;
mod hashlimit;
mod head;
mod holds;
mod ifaces;
mod log;
mod lookup;
mod matches;
mod named;
mod program;
mod recent;
mod rule;
mod targets;
pub mod text;
mod trace;
mod trail;
mod verdicts;

pub use check::{RuleError, RuleFault};
pub use connlimit::ConnlimitState;
pub use counters::CounterSet;
pub use eval::{Bulk, Env, NoBulk, Outcome};
pub use hashlimit::{HashTable, HashTables, HashlimitState};
pub use log::{LogEntry, LogSink, RawHeaders};
pub use named::Named;
pub use program::Program;
pub use recent::{RecentAction, RecentMatch, RecentState, RecentTable, RecentTables};
pub use rule::*;
pub use trace::{TraceEntry, TraceStep};
pub(crate) use verdicts::{Known, Stage, Verdicts};

use crate::edge::LinkId;
use serde::{Deserialize, Serialize};

/// A place in a packet's way at which rules are asked, in the order of Linux's netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Received, before routing.
    PreRouting,
    /// For ourselves, after routing.
    Input,
    /// For somebody else, after routing.
    Forward,
    /// Made by ourselves.
    Output,
    /// About to leave.
    PostRouting,
}

impl Hook {
    /// All hooks, by their numbers in Linux.
    pub const ALL: [Hook; 5] = [Hook::PreRouting, Hook::Input, Hook::Forward, Hook::Output, Hook::PostRouting];

    /// The name of its chains.
    pub const fn chain(self) -> &'static str {
        match self {
            Hook::PreRouting => "PREROUTING",
            Hook::Input => "INPUT",
            Hook::Forward => "FORWARD",
            Hook::Output => "OUTPUT",
            Hook::PostRouting => "POSTROUTING",
        }
    }
}

/// An interface of the router: `tap0` … by the number of the link, `host0`, and `lo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Iface {
    /// A guest link.
    Link(LinkId),
    /// The uplink `host0`, behind which the host's sockets are.
    Host0,
    /// What the router sends to itself leaves and comes back by this one. No flow is behind it, so no image has it.
    #[serde(skip)]
    Lo,
}
