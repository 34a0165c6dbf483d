//! `hibernet rules`.

use super::print;
use crate::control::protocol::{Problem, ProblemKind};
use crate::control::rules;
use crate::sandbox::failure::{Failure, Status, complain};
use clap::{Args, Subcommand};
use hibernet_netstack::iptables::text::{self, PrintOptions};
use hibernet_netstack::iptables::{Family, Ruleset};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What to do with rules.
#[derive(Debug, Subcommand)]
pub(super) enum RulesCommand {
    /// Check a file of rules and print it in its canonical form; exit status 2 if it cannot be read, 1 if it makes no sense
    Check {
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

impl From<FamilyArg> for Family {
    fn from(f: FamilyArg) -> Family {
        if f.v6 { Family::V6 } else { Family::V4 }
    }
}

pub(super) fn rules(command: RulesCommand) -> Result<u8, Failure> {
    match command {
        RulesCommand::Check { family, file } => {
            let source = Source::read(file.as_deref())?;
            match source.rules(family.into()) {
                Ok(rules) => print(&text::print(&rules, PrintOptions { counters: false, date: None })),
                Err(p) => Ok(source.complain(&p)),
            }
        }
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

    /// The rules, if they can be read and make sense.
    pub(super) fn rules(&self, family: Family) -> Result<Ruleset, Problem> {
        rules::read(family, &self.text)
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
