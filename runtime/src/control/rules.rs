//! Rules as text, and what is wrong with them: shared by commands, supervisor and worker.

use super::protocol::{Place, Problem, ProblemKind};
use hibernet_netstack::iptables::text::{self, ParseError, RestoreOptions};
use hibernet_netstack::iptables::{Family, Program, RuleError, Ruleset};

/// Longest text of rules in bytes: it fits into a request however much of it must be escaped.
pub const MAX_TEXT: usize = 2 << 20;

/// Reads a text of rules and checks that they make sense.
///
/// # Errors
///
/// [`ProblemKind::Syntax`] with the place, or [`ProblemKind::Meaning`].
pub fn read(family: Family, text: &str) -> Result<Ruleset, Problem> {
    let rules = text::parse(family, text).map_err(|e| parse_problem(&e))?;
    Program::compile(&rules).map_err(|e| rule_problem(&e))?;
    Ok(rules)
}

/// Carries out a text of rules on those that are there, and checks that the outcome makes sense.
///
/// # Errors
///
/// As [`read`].
pub(crate) fn restore(base: &Ruleset, text: &str, options: RestoreOptions) -> Result<Ruleset, Problem> {
    text::restore(base, text, options).map_err(|e| parse_problem(&e))
}

fn parse_problem(e: &ParseError) -> Problem {
    let kind = if e.exit_code() == 1 { ProblemKind::Meaning } else { ProblemKind::Syntax };
    // The place stands apart from the text.
    let text = e.to_string();
    let message = text.strip_prefix(&format!("line {}, column {}: ", e.line, e.column)).unwrap_or(&text).to_owned();
    Problem { kind, message, at: Some(Place { line: e.line, column: e.column }) }
}

/// What is wrong with rules that could be read.
pub(crate) fn rule_problem(e: &RuleError) -> Problem {
    Problem::new(ProblemKind::Meaning, e.to_string())
}
