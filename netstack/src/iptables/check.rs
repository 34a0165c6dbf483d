//! What can be wrong with rules that can be read: found when they are loaded, before one packet meets them.

mod graph;
mod rules;

pub(super) use graph::Graph;

use super::{Family, Hook, Ruleset, Table, TableName};

/// A ruleset was refused: where, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table}, chain {chain}{}: {fault}", .rule.map(|n| format!(", rule {n}")).unwrap_or_default())]
pub struct RuleError {
    /// Which table.
    pub table: TableName,
    /// Which chain.
    pub chain: String,
    /// Which of its rules, from 1; `None` if it is about the chain.
    pub rule: Option<usize>,
    /// What is wrong.
    pub fault: RuleFault,
}

impl RuleError {
    /// The exit status of `iptables-restore` for such an error: it looks for sets while it reads the text (2), and hands all else to the kernel (1).
    pub fn exit_code(&self) -> i32 {
        if matches!(self.fault, RuleFault::NoSet(_) | RuleFault::SetFamily(_)) { 2 } else { 1 }
    }
}

/// What can be wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleFault {
    /// The table is there twice.
    #[error("the table is given twice: merge both")]
    DuplicateTable,
    /// The chain is there twice.
    #[error("the chain is given twice: merge both")]
    DuplicateChain,
    /// The table has no built-in chain of that name, yet it has a policy; or one without.
    #[error(
        "only built-in chains have a policy, and each must have one; this table's are {}: give a user's chain `-` as policy",
        .0.iter().map(|h| h.chain()).collect::<Vec<_>>().join(", ")
    )]
    Policy(&'static [Hook]),
    /// Jump or goto to a chain that does not exist.
    #[error("there is no chain {0} in this table: declare it (`:{0} - [0:0]`), or correct the name")]
    NoChain(String),
    /// Jump or goto to a built-in chain.
    #[error("{0} is a built-in chain, which nothing can jump to: move its rules to a chain of your own")]
    BuiltIn(String),
    /// The chain calls itself.
    #[error("the chain leads back to itself ({0}): remove one of the jumps")]
    Loop(String),
    /// More rules than can be numbered.
    #[error("more than {} rules", u32::MAX)]
    TooMany,
    /// An address of the other family.
    #[error("an address of the other family: these are the rules of {}", family(*.0))]
    Family(Family),
    /// `-i` where no packet has an interface it came from.
    #[error("-i cannot be used in {0}, where it is not known: test -o, or use another chain")]
    InputThere(&'static str),
    /// `-o` where no packet has an interface it leaves through.
    #[error("-o cannot be used in {0}, where it is not known yet: test -i, or use another chain")]
    OutputThere(&'static str),
    /// `-f` in IPv6.
    #[error("-f is of IPv4: remove it (packets are reassembled before they meet a rule)")]
    Fragment6,
    /// The match needs another `-p`.
    #[error("match {0} needs {1}, not inverted: add it")]
    MatchProto(&'static str, &'static str),
    /// The match is not possible at a hook from which the chain is reached.
    #[error("match {name} works in {} only, but the rule is reached from {from}: move it", chains(.hooks))]
    MatchHook {
        /// Match.
        name: &'static str,
        /// Where it can be.
        hooks: &'static [Hook],
        /// Whence the rule is reached.
        from: &'static str,
    },
    /// An option has an impossible value.
    #[error("{0}: {1}")]
    Value(&'static str, &'static str),
    /// The target is of other tables.
    #[error("target {0} works in table {1} only: move the rule there")]
    TargetTable(&'static str, TableName),
    /// The target is not possible at a hook from which the chain is reached.
    #[error("target {name} works in {} only, but the rule is reached from {from}: move it", chains(.hooks))]
    TargetHook {
        /// Target.
        name: &'static str,
        /// Where it can be.
        hooks: &'static [Hook],
        /// Whence the rule is reached.
        from: &'static str,
    },
    /// The target needs another `-p`.
    #[error("target {0} needs {1}: add it")]
    TargetProto(&'static str, &'static str),
    /// A set that is not there.
    #[error("there is no set {0}: create it in the file of sets (--ipset), or correct the name")]
    NoSet(String),
    /// A set of the other family.
    #[error("the set {0} has addresses of the other family")]
    SetFamily(String),
    /// DROP in nat.
    #[error("the nat table sees only the first packet of a connection and is not for filtering: DROP in table filter")]
    NatDrop,
}

const fn family(f: Family) -> &'static str {
    match f {
        Family::V4 => "IPv4 (iptables)",
        Family::V6 => "IPv6 (ip6tables)",
    }
}

fn chains(hooks: &&'static [Hook]) -> String {
    hooks.iter().map(|h| h.chain()).collect::<Vec<_>>().join(", ")
}

/// A fault and its place.
fn at(table: &Table, chain: usize, rule: Option<usize>, fault: RuleFault) -> RuleError {
    let chain = table.chains.get(chain).map(|c| c.name.clone()).unwrap_or_default();
    RuleError { table: table.name, chain, rule: rule.map(|r| r + 1), fault }
}

/// Checks everything; gives the calls between chains, by table.
pub(super) fn check(rules: &Ruleset) -> Result<Vec<Graph>, RuleError> {
    let mut graphs = Vec::new();
    for (n, table) in rules.tables.iter().enumerate() {
        if rules.tables[..n].iter().any(|t| t.name == table.name) {
            return Err(at(table, 0, None, RuleFault::DuplicateTable));
        }
        let graph = Graph::new(table)?;
        for (c, chain) in table.chains.iter().enumerate() {
            let place = rules::Place { family: rules.family, table: table.name, own: graph.hook(c), from: graph.reached_from(c) };
            for (r, rule) in chain.rules.iter().enumerate() {
                rules::check(rule, &place).map_err(|fault| at(table, c, Some(r), fault))?;
            }
        }
        graphs.push(graph);
    }
    Ok(graphs)
}
