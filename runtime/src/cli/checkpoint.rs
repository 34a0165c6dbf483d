//! `hibernet checkpoint`.

use super::helper::RepairOptions;
use super::{print, print_json};
use crate::checkpoint::file::Replacement;
use crate::checkpoint::report::{FlowTier, FreezeReport, Tier};
use crate::control::lifecycle::{Asking, Event, Request, Tiers, WakeExec};
use crate::sandbox::carry::RunningHelper;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::worker::{Mode, Prepare};
use clap::builder::RangedI64ValueParser;
use clap::{Args, value_parser};
use hibernet_netstack::image::LEVEL;
use rustix::fd::{AsFd, OwnedFd};
use rustix::termios::isatty;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct CheckpointArgs {
    /// The sandbox
    name: String,
    /// Where the image goes; `-` for standard output
    #[arg(required_unless_present = "dry_run")]
    file: Option<PathBuf>,
    /// Copy while traffic runs, so that the freeze is short however many connections there are
    #[arg(long)]
    live: bool,
    /// Let the network go on; flows of the image cannot be resumed then
    #[arg(long, conflicts_with_all = ["hold", "no_hold", "repair"])]
    leave_running: bool,
    /// Put the network to sleep and hold its sockets: connections are alive and go on with `restore` (the default)
    #[arg(long, conflicts_with_all = ["no_hold", "repair"])]
    hold: bool,
    /// Run this by `sh -c` as soon as anything comes for the sleeping network
    #[arg(long, value_name = "CMD", conflicts_with_all = ["leave_running", "no_hold", "repair", "dry_run"])]
    wake_exec: Option<String>,
    /// Put the network to sleep and its sockets into the image, for another process, namespace or boot that has the same addresses; needs
    /// CAP_NET_ADMIN or a repair helper
    #[arg(long, conflicts_with = "no_hold")]
    repair: bool,
    #[command(flatten)]
    helper: RepairOptions,
    /// Put the network to sleep and close its sockets: connections are reset
    #[arg(long)]
    no_hold: bool,
    /// Flows that must survive, `all` or N%; else nothing happens, with exit status 3
    #[arg(long, value_name = "all|N%", value_parser = percent)]
    require: Option<u8>,
    /// Write the image for an older hibernet, which reads images up to this level (`inspect` shows an image's level)
    #[arg(long, value_name = "LEVEL", value_parser = level(), conflicts_with = "dry_run")]
    compat: Option<u16>,
    /// Only say for each flow whether and how it would survive
    #[arg(long)]
    dry_run: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Show progress although standard error is no terminal
    #[arg(long)]
    progress: bool,
}

/// What `all` and N% mean.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    let wrong = || format!("'{text}' is neither `all` nor a percentage such as 90%");
    match text.strip_suffix('%') {
        None if text == "all" => Ok(100),
        Some(n) => n.parse().ok().filter(|n| *n <= 100).ok_or_else(wrong),
        None => Err(wrong()),
    }
}

/// Levels of images.
pub(super) fn level() -> RangedI64ValueParser<u16> {
    value_parser!(u16).range(1..=i64::from(LEVEL))
}

/// Where the image goes.
pub(super) enum Target {
    File(Box<Replacement>),
    Output(OwnedFd),
}

pub(super) fn checkpoint(args: &CheckpointArgs) -> Result<u8, Failure> {
    let mode = match (args.leave_running, args.no_hold, args.repair) {
        (true, ..) => Mode::GoOn,
        (_, true, _) => Mode::Drop,
        (.., true) => Mode::Repair,
        _ => Mode::Hold,
    };
    if args.dry_run {
        return dry_run(args, mode);
    }
    let path = args.file.clone().unwrap_or_default();
    let to_output = path.as_os_str() == "-";
    let image = (!to_output).then_some(path.as_path());
    let wake = args.wake_exec.as_ref().map(|command| wake_exec(command, image)).transpose()?;
    let target = if to_output {
        let out = std::io::stdout().as_fd().try_clone_to_owned();
        Target::Output(out.map_err(|e| Failure::os(Status::File, "cannot write to standard output", e))?)
    } else {
        Target::File(Box::new(Replacement::begin(&path).map_err(|e| Failure::new(Status::File, e.to_string()))?))
    };
    let summary = |flows: &[FlowTier]| {
        if !args.json {
            complain(format_args!("{}: {}", args.name, tally(flows)));
        }
    };
    let Tiers { flows } = Asking::new(&args.name, &Request::Tiers { mode }, &[])?.answer()?;
    summary(&flows);
    let (live, require) = (args.live, args.require.unwrap_or(0));
    let unlocked = args.repair && args.helper.carry().unlocked();
    let how = Prepare { mode, live, require, unlocked, name: String::new(), compat: args.compat };
    let mut fds = vec![match &target {
        Target::File(f) => f.as_fd(),
        Target::Output(f) => f.as_fd(),
    }];
    let helper = if args.repair { Some(args.helper.start()?) } else { None };
    fds.extend(helper.as_ref().map(RunningHelper::socket));
    let asking = Asking::new(&args.name, &Request::Checkpoint { how, wake }, &fds)?;
    let shown = args.progress || isatty(std::io::stderr());
    let report = see_through(asking, target, &mut |done, total| {
        if shown {
            show_progress(done, total);
        }
    })?;
    tell(args, mode, &report, to_output)
}

/// Waits for a checkpoint that was asked for, and says that its sockets may change hands when the image is safe.
pub(super) fn see_through(
    mut asking: Asking,
    target: Target,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<FreezeReport, Failure> {
    asking.be_patient();
    while let Some(event) = asking.event()? {
        match event {
            Event::Frozen(_) => {}
            Event::Progress(done, total) => progress(done, total),
            Event::Written(_) => {
                // Until the image is sure to last all can be taken back.
                finish(target)?;
                asking.say(&Request::Commit {}, &[])?;
                return asking.answer();
            }
            // Members of a network hear these.
            Event::Granted(_) | Event::Served(_) | Event::Asleep | Event::Awake => {}
        }
    }
    let report = asking.answer()?;
    finish(target)?;
    Ok(report)
}

/// A command that is to run here, though another process runs it.
fn wake_exec(command: &str, image: Option<&Path>) -> Result<WakeExec, Failure> {
    let fail = |e| Failure::os(Status::File, "cannot say where --wake-exec is to run", e);
    let text = |path: PathBuf| {
        path.into_os_string().into_string().map_err(|p| {
            Failure::new(Status::Usage, format!("--wake-exec cannot run where names are not UTF-8: {}", p.to_string_lossy()))
        })
    };
    Ok(WakeExec {
        command: command.to_owned(),
        directory: text(std::env::current_dir().map_err(fail)?)?,
        path: std::env::var("PATH").ok(),
        image: image.map(|i| text(std::path::absolute(i).map_err(fail)?)).transpose()?,
    })
}

fn finish(target: Target) -> Result<(), Failure> {
    match target {
        Target::File(f) => f.commit().map_err(|e| Failure::new(Status::File, e.to_string())),
        Target::Output(_) => Ok(()),
    }
}

fn show_progress(done: u64, total: u64) {
    let end = if done == total { "\n" } else { "" };
    // Nobody has to see it.
    let _ = write!(std::io::stderr(), "\r{} of {} KiB{end}", done >> 10, total >> 10);
}

fn tell(args: &CheckpointArgs, mode: Mode, report: &FreezeReport, to_output: bool) -> Result<u8, Failure> {
    if args.json {
        let text = serde_json::to_string_pretty(report).map_err(|e| Failure::new(Status::Internal, e.to_string()))?;
        // Standard output may be the image.
        return if to_output { writeln!(std::io::stderr(), "{text}").map(|()| 0).or(Ok(0)) } else { print(&(text + "\n")) };
    }
    let t = &report.times;
    let us = |ns: u64| ns / 1000;
    let state = match mode {
        Mode::GoOn => "runs on",
        Mode::Hold => "is asleep, its sockets are held",
        Mode::Repair => "is asleep, its sockets are in the image",
        Mode::Drop => "is asleep",
    };
    let text = format!(
        "{} {state}; frozen for {} us (settle {}, connections {}, stack {}, sockets {}); generation {}\n",
        args.name,
        us(t.total_ns()),
        us(t.quiesce_ns),
        us(t.connections_ns),
        us(t.stack_ns),
        us(t.sockets_ns),
        report.generation,
    );
    if to_output { write!(std::io::stderr(), "{text}").map(|()| 0).or(Ok(0)) } else { print(&text) }
}

/// How many flows take which tier.
pub(super) fn tally(flows: &[FlowTier]) -> String {
    let count = |tier| flows.iter().filter(|f| f.tier == tier).count();
    let parts = [Tier::Hold, Tier::Repair, Tier::Reset].map(|t| (t, count(t)));
    let parts: Vec<_> = parts.iter().filter(|(_, n)| *n > 0).map(|(t, n)| format!("{n} {t}")).collect();
    match flows.len() {
        0 => "no flows".into(),
        n => format!("{n} flows: {}", parts.join(", ")),
    }
}

fn dry_run(args: &CheckpointArgs, mode: Mode) -> Result<u8, Failure> {
    let tiers: Tiers = Asking::new(&args.name, &Request::Tiers { mode }, &[])?.answer()?;
    if args.json {
        return print_json(&json!({ "name": args.name, "flows": tiers.flows }));
    }
    let mut text = String::new();
    for f in &tiers.flows {
        let why = f.why.as_ref().map_or_else(String::new, |w| format!(": {w}"));
        text.push_str(&format!("{:<6} {}{why}\n", f.tier.to_string(), f.flow));
    }
    text.push_str(&format!("{}\n", tally(&tiers.flows)));
    print(&text)
}
