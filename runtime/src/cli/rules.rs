//! `hibernet rules`: rules as files, and those of a running sandbox.

use super::{print, print_json};
use crate::control::client::Client;
use crate::control::protocol::{Problem, ProblemKind, Recheck, Request, Restore, Restored, Rules, RulesOf, TableOf};
use crate::control::rules;
use crate::sandbox::failure::{Failure, Status, complain};
use clap::{Args, Subcommand};
use hibernet_netstack::Time;
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::text::{self, PrintOptions};
use hibernet_netstack::iptables::{Chain, Policy, Rule, Ruleset};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What to do with rules.
#[derive(Debug, Subcommand)]
pub(super) enum RulesCommand {
    /// Check a file of rules and print it in its canonical form; exit status 2 if it cannot be read, 1 if it makes no sense
    Check {
        #[command(flatten)]
        family: FamilyArg,
        /// Sets that the rules name, in the form of `ipset save`
        #[arg(long, value_name = "FILE")]
        ipset: Option<PathBuf>,
        /// The file; standard input if it is `-` or missing
        file: Option<PathBuf>,
    },
    /// Print the rules of a running sandbox, as `iptables-save` does
    Save {
        /// The sandbox
        name: String,
        #[command(flatten)]
        family: FamilyArg,
        /// With the counters of rules
        #[arg(short, long)]
        counters: bool,
        /// Only this table
        #[arg(short, long, value_name = "TABLE")]
        table: Option<TableOf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace the rules of a running sandbox, all or none of them, as `iptables-restore` does; exit status as for `check`
    Restore {
        /// The sandbox
        name: String,
        #[command(flatten)]
        family: FamilyArg,
        /// Keep the rules that are there, and the sets if others are given
        #[arg(short, long)]
        noflush: bool,
        /// Sets in place of those that are there, in the form of `ipset save`, in force at the same time
        #[arg(long, value_name = "FILE")]
        ipset: Option<PathBuf>,
        /// Check against the sandbox, but change nothing
        #[arg(long)]
        test: bool,
        /// Take the counters of the file
        #[arg(short, long)]
        counters: bool,
        /// What becomes of live flows: keep (new rules judge later packets) or cut (judge each, reset those forbidden now)
        #[arg(long, value_name = "HOW")]
        recheck: Option<Recheck>,
        /// The file; standard input if it is `-` or missing
        file: Option<PathBuf>,
    },
    /// Show what `restore` of a file would change in a running sandbox; exit status 0 if nothing, 1 if something
    Diff {
        /// The sandbox
        name: String,
        #[command(flatten)]
        family: FamilyArg,
        /// The file; standard input if it is `-` or missing
        file: Option<PathBuf>,
    },
}

/// Which family the rules are of.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct FamilyArg {
    /// IPv6 rules, as of ip6tables
    #[arg(short = '6', long)]
    v6: bool,
}

impl From<FamilyArg> for RulesOf {
    fn from(f: FamilyArg) -> RulesOf {
        if f.v6 { RulesOf::V6 } else { RulesOf::V4 }
    }
}

pub(super) fn rules(command: RulesCommand) -> Result<u8, Failure> {
    match command {
        RulesCommand::Check { family, ipset, file } => {
            one_standard_input(ipset.as_deref(), file.as_deref())?;
            let sets = match ipset.as_deref().map(|p| Source::read(Some(p))).transpose()? {
                Some(source) => match source.sets() {
                    Ok(sets) => Some(sets),
                    Err(p) => return Ok(source.complain(&p)),
                },
                None => None,
            };
            let source = Source::read(file.as_deref())?;
            match source.rules(family.into(), sets.as_ref()) {
                Ok(rules) => print(&text::print(&rules, PrintOptions { counters: false, date: None })),
                Err(p) => Ok(source.complain(&p)),
            }
        }
        RulesCommand::Save { name, family, counters, table, json } => {
            let request = Request::RulesSave { family: family.into(), table, counters: counters || json };
            let Rules { text } = Client::new(&name)?.ask(&request)?;
            if json { print_json(&tree(&own(family.into(), &text)?)) } else { print(&text) }
        }
        RulesCommand::Restore { name, family, noflush, ipset, test, counters, recheck, file } => {
            let client = Client::new(&name)?;
            one_standard_input(ipset.as_deref(), file.as_deref())?;
            let sets = ipset.as_deref().map(|p| Source::read(Some(p))).transpose()?;
            let source = Source::read(file.as_deref())?;
            let (text, set_text) = (source.text.clone(), sets.as_ref().map(|s| s.text.clone()));
            let request = Restore { family: family.into(), text, sets: set_text, noflush, counters, test, recheck };
            match client.try_ask(&Request::RulesRestore(request))? {
                Ok(restored) => {
                    tell(&restored, family.into(), &name);
                    Ok(0)
                }
                Err(p) if p.is_about_rules() => Ok(sets.filter(|_| p.kind == ProblemKind::Sets).unwrap_or(source).complain(&p)),
                Err(p) => Err(client.failure(&p)),
            }
        }
        RulesCommand::Diff { name, family, file } => diff(&name, family.into(), file.as_deref()),
    }
}

/// Two files cannot both be standard input.
fn one_standard_input(ipset: Option<&Path>, file: Option<&Path>) -> Result<(), Failure> {
    let stdin = |p: Option<&Path>| p == Some(Path::new("-"));
    if stdin(ipset) && (file.is_none() || stdin(file)) {
        return Err(Failure::new(Status::Usage, "rules and sets cannot both be read from standard input"));
    }
    Ok(())
}

/// Says what else happened when rules were replaced.
fn tell(restored: &Restored, family: RulesOf, name: &str) {
    if restored.cut > 0 {
        complain(format_args!("{} flows are forbidden now and were reset", restored.cut));
    }
    if restored.other_dropped {
        let (other, option) = if family == RulesOf::V4 { ("IPv6", " --v6") } else { ("IPv4", "") };
        complain(format_args!(
            "notice: {other} has no rules and is dropped; give it some with `hibernet rules restore {name}{option} FILE`"
        ));
    }
}

fn diff(name: &str, family: RulesOf, file: Option<&Path>) -> Result<u8, Failure> {
    let client = Client::new(name)?;
    let source = Source::read(file)?;
    match client.try_ask(&Request::RulesDiff { family, text: source.text.clone() })? {
        Ok(Rules { text }) => {
            print(&text)?;
            Ok(u8::from(!text.is_empty()))
        }
        Err(p) if p.is_about_rules() => {
            source.complain(&p);
            // As diff(1): 1 would say that they differ.
            Ok(Status::Usage as u8)
        }
        Err(p) => Err(client.failure(&p)),
    }
}

/// Rules that a worker wrote.
fn own(family: RulesOf, text: &str) -> Result<Ruleset, Failure> {
    let options = text::RestoreOptions { counters: true, ..Default::default() };
    text::restore(&Ruleset::new(family.into()), text, options)
        .map_err(|e| Failure::new(Status::Internal, format!("the sandbox's rules cannot be read: {e}")))
}

/// Rules as JSON: tables, chains, rules as text with counters.
fn tree(rules: &Ruleset) -> Value {
    let rule = |chain: &Chain| {
        let one = |r: &Rule| {
            let mut text = String::new();
            text::print_rule(rules.family, &chain.name, r, &mut text);
            json!({ "rule": text, "packets": r.counters.packets, "bytes": r.counters.bytes })
        };
        chain.rules.iter().map(one).collect::<Vec<_>>()
    };
    let chain = |c: &Chain| {
        json!({ "name": c.name, "policy": c.policy.map(policy), "packets": c.counters.packets,
                "bytes": c.counters.bytes, "rules": rule(c) })
    };
    let tables =
        rules.tables.iter().map(|t| json!({ "name": t.name.as_str(), "chains": t.chains.iter().map(chain).collect::<Vec<_>>() }));
    Value::Array(tables.collect())
}

fn policy(p: Policy) -> &'static str {
    match p {
        Policy::Accept => "ACCEPT",
        Policy::Drop => "DROP",
    }
}

/// A text of rules, and what to call it.
#[derive(Debug)]
pub(super) struct Source {
    label: String,
    text: String,
}

impl Source {
    /// Reads a file, or standard input.
    pub(super) fn read(path: Option<&Path>) -> Result<Source, Failure> {
        let path = path.filter(|p| *p != Path::new("-"));
        let label = path.map_or_else(|| "standard input".to_owned(), |p| p.display().to_string());
        let mut bytes = Vec::new();
        let limit = rules::MAX_TEXT as u64 + 1;
        let read = match path {
            Some(p) => std::fs::File::open(p).and_then(|f| f.take(limit).read_to_end(&mut bytes)),
            None => std::io::stdin().lock().take(limit).read_to_end(&mut bytes),
        };
        read.map_err(|e| Failure::os(Status::File, format_args!("cannot read {label}"), e))?;
        if bytes.len() > rules::MAX_TEXT {
            return Err(Failure::new(
                Status::File,
                format!("{label} has more than {} MiB; split or shorten it", rules::MAX_TEXT >> 20),
            ));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            let line = good.iter().filter(|b| **b == b'\n').count() + 1;
            let column = good.iter().rev().take_while(|b| **b != b'\n').count() + 1;
            Failure::new(Status::File, format!("{label}:{line}:{column}: not UTF-8 text; is this a file of rules?"))
        })?;
        Ok(Source { label, text })
    }

    /// The rules, if they can be read and make sense with these sets.
    pub(super) fn rules(&self, family: RulesOf, sets: Option<&Sets>) -> Result<Ruleset, Problem> {
        rules::read(family.into(), &self.text, sets)
    }

    /// The sets, if they can be read.
    pub(super) fn sets(&self) -> Result<Sets, Problem> {
        rules::read_sets(&Sets::default(), &self.text, Time::ZERO)
    }

    /// A problem with the text, as one line.
    pub(super) fn describe(&self, p: &Problem) -> String {
        match p.at {
            Some(at) => format!("{}:{}:{}: {}", self.label, at.line, at.column, p.message),
            None => format!("{}: {}", self.label, p.message),
        }
    }

    /// Says what is wrong with the text; the exit status of `iptables-restore` for it.
    fn complain(&self, p: &Problem) -> u8 {
        complain(self.describe(p));
        if p.kind == ProblemKind::Meaning { 1 } else { 2 }
    }
}
