//! Rules as text, and what is wrong with them: shared by commands, supervisor and worker.

use super::protocol::{Place, Problem, ProblemKind};
use hibernet_netstack::Time;
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::text::{self, ParseError, RestoreOptions};
use hibernet_netstack::iptables::{Family, Named, Program, RuleError, Ruleset};

/// Longest text of rules in bytes: it fits into a request however much of it must be escaped.
pub const MAX_TEXT: usize = 2 << 20;

/// Reads a text of rules and checks that they make sense, with the sets that they may name.
///
/// # Errors
///
/// [`ProblemKind::Syntax`] with the place, or [`ProblemKind::Meaning`].
pub fn read(family: Family, text: &str, sets: Option<&Sets>) -> Result<Ruleset, Problem> {
    let base = Ruleset::new(family);
    let rules = restore(&base, text, RestoreOptions::default())?;
    let named = named(sets);
    Program::compile_with(&rules, &named).map_err(|e| rule_problem(&e, &base, text, RestoreOptions::default()))?;
    Ok(rules)
}

fn named(sets: Option<&Sets>) -> Named {
    sets.map_or_else(Named::default, |s| Named::of(s.clone()))
}

/// Reads a text of sets, onto those that are there. Time-outs in it begin `now`.
///
/// # Errors
///
/// With the place; [`ProblemKind::Sets`], so that it is not looked for in a text of rules.
pub fn read_sets(base: &Sets, text: &str, now: Time) -> Result<Sets, Problem> {
    base.restore(text, now).map_err(|e| {
        let whole = e.to_string();
        let message = whole.strip_prefix(&format!("line {}, column {}: ", e.line, e.column)).unwrap_or(&whole).to_owned();
        Problem { kind: ProblemKind::Sets, message, at: Some(Place { line: e.line, column: e.column }) }
    })
}

/// Carries out a text of rules on those that are there.
///
/// # Errors
///
/// If it cannot be read, or asks for what cannot be; with the place.
pub(crate) fn restore(base: &Ruleset, text: &str, options: RestoreOptions) -> Result<Ruleset, Problem> {
    text::restore(base, text, options).map_err(|e| parse_problem(&e))
}

/// By the exit status of `iptables-restore`.
fn kind(exit_code: i32) -> ProblemKind {
    if exit_code == 1 { ProblemKind::Meaning } else { ProblemKind::Syntax }
}

fn parse_problem(e: &ParseError) -> Problem {
    // The place stands apart from the text.
    let text = e.to_string();
    let message = text.strip_prefix(&format!("line {}, column {}: ", e.line, e.column)).unwrap_or(&text).to_owned();
    Problem { kind: kind(e.exit_code()), message, at: Some(Place { line: e.line, column: e.column }) }
}

/// What is wrong with rules that could be read, and where in the text it came from.
fn rule_problem(e: &RuleError, base: &Ruleset, text: &str, options: RestoreOptions) -> Problem {
    let line = e.rule.and_then(|rule| text::locate(base, text, options, e.table, &e.chain, rule));
    Problem { at: line.map(|line| Place { line, column: 1 }), ..Problem::new(kind(e.exit_code()), e.to_string()) }
}

/// As [`rule_problem`], for rules to which chains of our own were added: those shift the numbers of rules.
pub(crate) fn refused(e: &RuleError, base: &Ruleset, text: &str, options: RestoreOptions, sets: &Sets) -> Problem {
    let own = || Problem::new(kind(e.exit_code()), e.to_string());
    match text::restore(base, text, options).map(|rules| Program::compile_with(&rules, &named(Some(sets)))) {
        Ok(Err(e)) => rule_problem(&e, base, text, options),
        _ => own(),
    }
}
