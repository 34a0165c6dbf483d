//! `hibernet list`.

use super::{print, print_json};
use crate::control::lifecycle::State;
use crate::control::registry::{Asleep, Entry, Registry};
use crate::sandbox::failure::Failure;
use serde::Serialize;
use std::fmt::Write as _;
use std::net::IpAddr;

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    pid: i32,
    worker: i32,
    command: &'a [String],
    interface: &'a str,
    addresses: &'a [IpAddr],
    publish: &'a [String],
    state: State,
    /// In seconds since 1970; 0 if it is in this state since its start.
    since: u64,
    uptime_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    asleep: Option<&'a Asleep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
}

impl<'a> From<&'a Entry> for Row<'a> {
    fn from(e: &'a Entry) -> Self {
        Row {
            name: &e.name,
            pid: e.pid,
            worker: e.worker,
            command: &e.command,
            interface: &e.interface,
            addresses: &e.addresses,
            publish: &e.publish,
            state: e.state,
            since: e.since,
            uptime_seconds: e.uptime().as_secs(),
            asleep: e.asleep.as_ref(),
            joined: e.joined.as_deref(),
            ended: e.ended,
        }
    }
}

pub(super) fn list(json: bool) -> Result<u8, Failure> {
    let entries = Registry::open()?.list()?;
    let rows: Vec<Row<'_>> = entries.iter().map(Row::from).collect();
    if json {
        return print_json(&rows);
    }
    print(&table(&rows))
}

fn table(rows: &[Row<'_>]) -> String {
    let mut cells = vec![["NAME", "PID", "STATE", "UPTIME", "ADDRESSES", "PUBLISHED", "COMMAND"].map(str::to_owned)];
    cells.extend(rows.iter().map(|r| {
        let addresses: Vec<String> = r.addresses.iter().map(IpAddr::to_string).collect();
        let command = match r.command.is_empty() {
            _ if r.ended => "(ended; serves those that joined it)".into(),
            true => "(attached)".into(),
            false => r.command.join(" "),
        };
        // What a program was called with may contain anything; a terminal gets only what prints.
        let command = command.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        [
            r.joined.map_or_else(|| r.name.to_owned(), |to| format!("{} (in {to})", r.name)),
            r.pid.to_string(),
            r.state.to_string(),
            uptime(r.uptime_seconds),
            addresses.join(","),
            r.publish.join(","),
            command,
        ]
    }));
    let widths: [usize; 7] = std::array::from_fn(|i| cells.iter().map(|c| c[i].chars().count()).max().unwrap_or(0));
    let mut out = String::new();
    for row in &cells {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn uptime(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes() {
        assert_eq!([uptime(59), uptime(61), uptime(3661), uptime(90_000)], ["59s", "1m01s", "1h01m", "1d01h"]);
    }

    #[test]
    fn a_terminal_gets_only_what_prints() {
        let command = ["a\u{1b}[31m".to_owned()];
        let row = Row {
            name: "n",
            pid: 1,
            worker: 2,
            command: &command,
            interface: "eth0",
            addresses: &[],
            publish: &[],
            state: State::Running,
            since: 0,
            uptime_seconds: 1,
            asleep: None,
            joined: None,
            ended: false,
        };
        assert!(!table(&[row]).contains('\u{1b}'));
    }
}
