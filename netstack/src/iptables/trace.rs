//! Where a traced packet went: each rule that it met, and each end of a chain.

use super::log::{LogEntry, RawHeaders};
use super::{Hook, LogTarget, Rule, TableName, log_flags, text};
use crate::skb::Skb;
use core::fmt;

/// A traced packet met a rule, which has not acted yet, or the end of a chain. Displays as the kernel's line.
#[derive(Clone, Copy, Debug)]
pub struct TraceEntry<'a> {
    /// Table.
    pub table: TableName,
    /// Hook.
    pub hook: Hook,
    /// Chain.
    pub chain: &'a str,
    /// Number of the rule in it, from 1; that of its end is one more than there are rules.
    pub number: usize,
    /// What it met.
    pub step: TraceStep<'a>,
    /// The packet, as it is there.
    pub skb: &'a Skb<'a>,
    /// More of its headers.
    pub raw: RawHeaders<'a>,
}

/// What a traced packet met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TraceStep<'a> {
    /// A rule that it fits.
    Rule(&'a Rule),
    /// The end of a user's chain.
    Return,
    /// The end of a built-in chain.
    Policy(super::Policy),
}

impl TraceStep<'_> {
    /// The word for it in the line.
    pub const fn as_str(&self) -> &'static str {
        match self {
            TraceStep::Rule(_) => "rule",
            TraceStep::Return => "return",
            TraceStep::Policy(_) => "policy",
        }
    }
}

impl TraceEntry<'_> {
    /// The rule as `iptables-save` prints it; the policy of a built-in chain, nothing at the end of another.
    pub fn rule(&self) -> String {
        let mut out = String::new();
        match self.step {
            TraceStep::Rule(rule) => text::print_rule(self.family(), self.chain, rule, &mut out),
            TraceStep::Return => {}
            TraceStep::Policy(policy) => out = format!("-P {} {}", self.chain, policy.as_str()),
        }
        out
    }

    const fn family(&self) -> super::Family {
        if self.skb.is_v6() { super::Family::V6 } else { super::Family::V4 }
    }

    /// What a LOG line shows of the packet.
    pub fn packet(&self) -> String {
        self.line(String::new())
    }

    fn line(&self, prefix: String) -> String {
        let flags = log_flags::TCP_SEQUENCE | log_flags::TCP_OPTIONS | log_flags::IP_OPTIONS | log_flags::UID;
        let target = LogTarget { level: 4, prefix, flags };
        LogEntry { target: &target, hook: self.hook, skb: self.skb, raw: self.raw }.to_string()
    }
}

impl fmt::Display for TraceEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TraceEntry { table, chain, number, step, .. } = self;
        f.write_str(&self.line(format!("TRACE: {table}:{chain}:{}:{number} ", step.as_str())))
    }
}
