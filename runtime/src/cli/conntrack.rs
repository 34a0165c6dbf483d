//! `hibernet conntrack`: the tracked connections of a running sandbox, in the way of conntrack(8).

use super::{print, print_json};
use crate::control::client::Client;
use crate::control::protocol::{Conntrack, ConntrackStats, Form, Page, Request};
use crate::control::which::Which;
use crate::sandbox::failure::{Failure, Status, complain};
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Write as _;

/// Said below the options.
pub(super) const HELP: &str = "\
Examples:
  hibernet conntrack web -L -p tcp --dport 443
  hibernet conntrack web -D -s 10.0.2.15 -p udp
  hibernet conntrack web -C";

#[derive(Debug, Args)]
pub(super) struct ConntrackArgs {
    /// The sandbox
    name: String,
    #[command(flatten)]
    command: CommandArgs,
    /// Form of lines: `extended` puts the network protocol in front
    #[arg(short, long, value_name = "FORM", conflicts_with = "json")]
    output: Option<Output>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// What to do; to list if nothing is said.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct CommandArgs {
    /// List connections [default]
    #[arg(short = 'L', long)]
    list: bool,
    /// Delete connections, and reset their flows on both sides
    #[arg(short = 'D', long)]
    delete: bool,
    /// The same with all of them
    #[arg(short = 'F', long)]
    flush: bool,
    /// Print how many there are
    #[arg(short = 'C', long)]
    count: bool,
    /// Print what tracking counted
    #[arg(short = 'S', long)]
    stats: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Extended,
}

pub(super) fn conntrack(args: ConntrackArgs) -> Result<u8, Failure> {
    let ConntrackArgs { name, command, output, json, which } = args;
    if (command.flush || command.count || command.stats) && which != Which::default() {
        return Err(Failure::new(Status::Usage, "only -L and -D can be about some connections and not all"));
    }
    let client = Client::new(&name)?;
    if command.count || command.stats {
        let stats: ConntrackStats = client.ask(&Request::ConntrackStats)?;
        return match (command.count, json) {
            (true, _) => print(&format!("{}\n", stats.count)),
            (false, true) => print_json(&stats),
            (false, false) => print(&line(&stats)),
        };
    }
    let form = match (json, output) {
        (true, _) => Form::Json,
        (false, Some(Output::Extended)) => Form::Extended,
        (false, None) => Form::Line,
    };
    let mut n = 0;
    let request = |form| Conntrack { which: which.clone(), form, delete: command.delete || command.flush, from: 0 };
    if command.flush {
        for_each_page(&client, request(Form::Line), |lines: Vec<String>| {
            n += lines.len();
            Ok(())
        })?;
    } else if json {
        let mut all = Vec::new();
        for_each_page(&client, request(form), |mut items: Vec<Value>| {
            all.append(&mut items);
            Ok(())
        })?;
        n = all.len();
        print_json(&all)?;
    } else {
        for_each_page(&client, request(form), |lines: Vec<String>| {
            n += lines.len();
            print(&lines.into_iter().map(|l| l + "\n").collect::<String>()).map(drop)
        })?;
    }
    let done = if command.delete || command.flush { "deleted" } else { "shown" };
    complain(format_args!("{n} flow entries have been {done}."));
    // As conntrack(8): nothing that fits is a failure to delete.
    Ok(u8::from(command.delete && n == 0))
}

/// Counters as a line of `conntrack -S`.
fn line(stats: &ConntrackStats) -> String {
    let mut line = format!("entries={}", stats.count);
    for (name, n) in &stats.counters {
        let _ = write!(line, " {name}={n}");
    }
    line + "\n"
}

/// Asks for one page after the other.
fn for_each_page<T: DeserializeOwned>(
    client: &Client,
    mut request: Conntrack,
    mut each: impl FnMut(Vec<T>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        let page: Page<T> = client.ask(&Request::Conntrack(Box::new(request.clone())))?;
        each(page.items)?;
        match page.next {
            Some(next) => request.from = next,
            None => return Ok(()),
        }
    }
}
