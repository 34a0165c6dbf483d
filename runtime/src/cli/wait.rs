//! `hibernet wait` and `hibernet idle`.

use super::values::duration;
use super::{print, print_json};
use crate::checkpoint::news::{Event, News};
use crate::control::lifecycle::{Asking, Idle, Request};
use crate::sandbox::failure::{Failure, Status};
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::time::Duration;

pub(super) const WAIT_HELP: &str = "\
What counts: data, an end or a reset of a connection, an answer to a datagram or a connect, a client of a published port. Not keep-alives, nor
answers to pings where these share a raw socket. What came before `wait` counts, as long as the network sleeps. Called for a network that
does not sleep, it waits until that sleeps and something comes.

Exit status: 0 something came, 4 nothing did in time, 75 the sandbox has ended, 79 its sockets are not held.";

pub(super) const IDLE_HELP: &str = "\
Example: sleep whenever nothing moved for half a minute, wake when something comes
  while hibernet idle web --after 30s; do hibernet checkpoint web web.img --wake-exec 'hibernet restore web.img'; done
While it is asleep or paused it is not idle: then it is waited until it is awake and idle.

Exit status: 0 it is idle, 4 it was not in time, 75 the sandbox has ended.";

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// The sandbox
    name: String,
    /// Only this: something for a flow, a client of a published TCP port, or a datagram to a published UDP port [default: any]
    #[arg(long = "for", value_name = "WHAT")]
    event: Option<Event>,
    /// How long at most; a number is seconds [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn wait(args: &WaitArgs) -> Result<u8, Failure> {
    let news: News = ask(&args.name, &Request::Wait { event: args.event }, args.timeout, "nothing came")?;
    if args.json {
        return print_json(&json!({ "name": args.name, "event": news.event, "subject": news.subject }));
    }
    print(&format!("{}: {}\n", news.event, news.subject))
}

#[derive(Debug, Args)]
pub(super) struct IdleArgs {
    /// The sandbox
    name: String,
    /// For how long nothing has to have moved, such as 30s, 500ms, 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    after: Duration,
    /// How long to wait for that at most [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn idle(args: &IdleArgs) -> Result<u8, Failure> {
    let after_ns = u64::try_from(args.after.as_nanos()).unwrap_or(u64::MAX);
    let idle: Idle = ask(&args.name, &Request::Idle { after_ns }, args.timeout, "it was not idle")?;
    if args.json {
        return print_json(&json!({ "name": args.name, "idle_ns": idle.idle_ns }));
    }
    print(&format!("{} has been idle for {:.1} s\n", args.name, idle.idle_ns as f64 / 1e9))
}

fn ask<T: DeserializeOwned>(name: &str, request: &Request, limit: Option<Duration>, what: &str) -> Result<T, Failure> {
    Asking::new(name, request, &[])?
        .answer_within(limit)?
        .ok_or_else(|| Failure::new(Status::TimedOut, format!("the sandbox '{name}': {what} in {:?}", limit.unwrap_or_default())))
}
