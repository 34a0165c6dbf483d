//! `hibernet trace`: why packets took their path.

use super::print;
use crate::control::client::Client;
use crate::control::protocol::{Request, Trace, TraceEvent, TracePage, TraceStep, TraceWhich};
use crate::entropy;
use crate::sandbox::failure::{Failure, Status};
use clap::Args;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

pub(super) const HELP: &str = "\
Without a filter only packets are shown that TRACE rules mark (`-t raw -A PREROUTING -p icmp -j TRACE`). Of those that a filter fits, a
hundred a second are shown after a burst; how many steps were left out is said at the end. Nobody else can trace the network meanwhile.

Examples:
  hibernet trace web -p tcp --dport 443            why does this connection not come about?
  hibernet trace web -i tap1 -o tap0 -n 5          five packets from one sandbox to the one that it joined
  hibernet trace web --all --timeout 10 --json     everything for ten seconds, one JSON object a packet";

/// How often is asked for more.
const EVERY: Duration = Duration::from_millis(150);
/// Packets whose end has not come; more are shown without it.
const MAX_OPEN: usize = 512;

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// The sandbox
    name: String,
    /// Every packet
    #[arg(long)]
    all: bool,
    /// Only IPv4
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Protocol, by name or number
    #[arg(short, long)]
    proto: Option<String>,
    /// Source address, with the length of a prefix or without
    #[arg(short, long, value_name = "ADDR[/LEN]")]
    src: Option<String>,
    /// Destination address, likewise
    #[arg(short, long, value_name = "ADDR[/LEN]")]
    dst: Option<String>,
    /// Source port
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Destination port
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,
    /// Either port
    #[arg(long)]
    port: Option<u16>,
    /// Where it came in: tap0, tap1, ..., host0
    #[arg(short, long, value_name = "IFACE")]
    input: Option<String>,
    /// Where it is routed to
    #[arg(short, long, value_name = "IFACE")]
    output: Option<String>,
    /// End after so many packets
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = super::values::duration)]
    timeout: Option<Duration>,
    /// As JSON, one object a packet
    #[arg(long)]
    json: bool,
}

impl TraceArgs {
    fn which(&self) -> Option<TraceWhich> {
        let which = TraceWhich {
            v6: if self.ipv6 { Some(true) } else { self.ipv4.then_some(false) },
            proto: self.proto.clone(),
            src: self.src.clone(),
            dst: self.dst.clone(),
            sport: self.sport,
            dport: self.dport,
            port: self.port,
            input: self.input.clone(),
        };
        (self.all || self.output.is_some() || which != TraceWhich::default()).then_some(which)
    }
}

pub(super) fn trace(args: &TraceArgs) -> Result<u8, Failure> {
    let client = Client::new(&args.name)?;
    let seed = entropy::seed().map_err(|e| Failure::new(Status::Internal, format!("cannot get entropy: {e}")))?;
    let id = seed.iter().fold(0u64, |n, b| n.rotate_left(8) ^ u64::from(*b));
    let ask = |end| client.ask::<TracePage>(&Request::Trace(Box::new(Trace { id, which: args.which(), end })));
    let until = args.timeout.map(|t| Instant::now() + t);
    let mut shown = Shown { args, left: args.count, open: BTreeMap::new(), lost: 0 };
    let mut done = false;
    while !done {
        let page = ask(false)?;
        shown.lost += page.lost;
        done = shown.take(page.steps)? || until.is_some_and(|t| Instant::now() >= t);
        if !done {
            let rest = until.map_or(EVERY, |t| t.saturating_duration_since(Instant::now()).min(EVERY));
            std::thread::sleep(rest);
        }
    }
    ask(true)?;
    if shown.lost > 0 {
        crate::sandbox::failure::complain(format_args!("{} packets or steps came too fast and are not shown", shown.lost));
    }
    Ok(0)
}

/// Puts the steps of packets together and shows them.
struct Shown<'a> {
    args: &'a TraceArgs,
    /// How many packets are still to be shown.
    left: Option<u64>,
    open: BTreeMap<u32, Vec<TraceStep>>,
    lost: u64,
}

impl Shown<'_> {
    /// Takes what happened; whether all that is wanted was shown.
    fn take(&mut self, events: Vec<TraceEvent>) -> Result<bool, Failure> {
        for TraceEvent { packet, step } in events {
            let ends = matches!(step, TraceStep::End { .. });
            self.open.entry(packet).or_default().push(step);
            if ends && self.show(packet)? {
                return Ok(true);
            }
            if self.open.len() > MAX_OPEN
                && let Some((&oldest, _)) = self.open.first_key_value()
                && self.show(oldest)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn show(&mut self, packet: u32) -> Result<bool, Failure> {
        let Some(steps) = self.open.remove(&packet) else { return Ok(false) };
        if self.args.output.as_ref().is_some_and(|o| !leaves_by(&steps, o)) {
            return Ok(false);
        }
        let text = if self.args.json { json(packet, &steps)? } else { text(packet, &steps) };
        if print(&text)? != 0 {
            return Ok(true);
        }
        self.left = self.left.map(|n| n.saturating_sub(1));
        Ok(self.left == Some(0))
    }
}

fn leaves_by(steps: &[TraceStep], iface: &str) -> bool {
    steps.iter().any(|s| matches!(s, TraceStep::Route { to } if to == iface))
}

fn json(packet: u32, steps: &[TraceStep]) -> Result<String, Failure> {
    let object = serde_json::json!({ "packet": packet, "steps": steps });
    serde_json::to_string(&object).map(|t| t + "\n").map_err(|e| Failure::new(Status::Internal, e.to_string()))
}

fn text(packet: u32, steps: &[TraceStep]) -> String {
    let header = steps.iter().find_map(|s| if let TraceStep::Rule { packet, .. } = s { Some(packet.as_str()) } else { None });
    let mut out = format!("#{packet} {}\n", header.unwrap_or("(no table was asked)"));
    for step in steps {
        let _ = match step {
            TraceStep::Rule { table, chain, number, kind, rule, .. } => match kind.as_str() {
                "return" => writeln!(out, "    {table} {chain}: end of the chain, returns"),
                "policy" => writeln!(out, "    {table} {chain} policy: {rule}"),
                _ => writeln!(out, "    {table} {chain} {number}: {rule}"),
            },
            TraceStep::Route { to } if to == "local" => writeln!(out, "    routed to the gateway itself"),
            TraceStep::Route { to } => writeln!(out, "    routed to {to}"),
            TraceStep::End { dropped: None } => writeln!(out, "    passed"),
            TraceStep::End { dropped: Some(why) } => writeln!(out, "    dropped: {why}"),
        };
    }
    out
}
