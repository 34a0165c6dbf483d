//! `hibernet restore`.

use super::helper::RepairOptions;
use super::{NetOptions, TargetArgs, print, print_json};
use crate::checkpoint::report::{Outcome, ThawReport};
use crate::checkpoint::{self, contents::Origin};
use crate::control::lifecycle::{Asking, Request, Restore, State};
use crate::control::registry::Registry;
use crate::sandbox::carry::RunningHelper;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::supervisor::{self, AttachRequest, RunRequest, Thawing};
use crate::sandbox::target::Target;
use crate::worker::{FlowPolicy, RestorePolicy};
use clap::Args;
use hibernet_snapshot::{GenerationId, Image};
use rustix::fs::{MemfdFlags, memfd_create};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest image that is read.
const MAX_IMAGE: u64 = 8 << 30;

pub(super) const HELP: &str = "\
Examples:
  hibernet restore web.img                        wake the sandbox that sleeps, from the image of its sleep
  hibernet restore web.img --name two -- bash     a new sandbox with the image's network; flows are reset
  hibernet restore vm.img --repair --packet tap0  another host that has taken the address over: the VM behind tap0, restored by its VMM,
                                                  goes on with its connections";

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The image; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    net: NetOptions,
    /// What becomes of flows: resume (those whose sockets are held), reset (none), clone (none: others go on from the same image)
    #[arg(long, value_name = "HOW", default_value = "resume", help_heading = "Restoring")]
    flows: FlowPolicy,
    /// Refuse an image that is not of this freeze, as `checkpoint` printed it
    #[arg(long, value_name = "GENERATION", value_parser = generation, help_heading = "Restoring")]
    token: Option<GenerationId>,
    /// Make the TCP sockets again that the image carries (`checkpoint --repair`); needs CAP_NET_ADMIN or a repair helper
    #[arg(long, help_heading = "Restoring")]
    repair: bool,
    #[command(flatten)]
    helper: RepairOptions,
    /// Let the time asleep age tracked connections
    #[arg(long, help_heading = "Restoring")]
    age_while_asleep: bool,
    /// As JSON
    #[arg(long, help_heading = "Restoring")]
    json: bool,
    /// Put this command into a new sandbox with the image's network, instead of waking the one that sleeps
    #[arg(last = true, conflicts_with = "TargetArgs")]
    command: Vec<OsString>,
}

fn generation(text: &str) -> Result<GenerationId, String> {
    let digits: Vec<_> = text.as_bytes().chunks(2).collect();
    let byte =
        |pair: &&[u8]| std::str::from_utf8(pair).ok().filter(|p| p.len() == 2).and_then(|p| u8::from_str_radix(p, 16).ok());
    let bytes: Option<Vec<u8>> = digits.iter().map(byte).collect();
    let bytes = bytes.and_then(|b| <[u8; 16]>::try_from(b).ok());
    bytes.map(GenerationId).ok_or_else(|| format!("'{text}' is no generation: 32 hexadecimal digits"))
}

/// Opens an image; a stream is read to its end first.
pub(super) fn open(path: &Path) -> Result<File, Failure> {
    let fail = |e: std::io::Error| Failure::os(Status::File, format_args!("cannot read {}", path.display()), e);
    if path.as_os_str() != "-" {
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.is_dir() {
            return Err(fail(std::io::ErrorKind::IsADirectory.into()));
        }
        return Ok(file);
    }
    let mut file: File = memfd_create("image", MemfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?.into();
    std::io::copy(&mut std::io::stdin().lock().take(MAX_IMAGE), &mut file).map_err(fail)?;
    Ok(file)
}

/// Reads an image.
pub(super) fn read(path: &Path, file: &mut File) -> Result<Image<'static>, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(Status::Image, format!("{}: {e}", path.display()));
    file.rewind().map_err(|e| fail(&e))?;
    Image::read(file, MAX_IMAGE, &checkpoint::known()).map_err(|e| fail(&e))
}

/// Options that would have no effect are refused.
fn check(args: &RestoreArgs) -> Result<(), Failure> {
    let usage = |message| Err(Failure::new(Status::Usage, message));
    if let Some(option) = args.net.given_of_the_network() {
        return usage(format!("{option} has no effect here: the image says it"));
    }
    match args.net.given_of_a_new_sandbox() {
        Some(option) if args.command.is_empty() && !args.target.is_given() => usage(format!(
            "{option} has no effect on a sandbox that sleeps; for a new sandbox with the image's network give a command behind `--`, or \
             --tap, --packet, --netns, --qemu, --vhost-user or --fd"
        )),
        _ => Ok(()),
    }
}

pub(super) fn restore(mut args: RestoreArgs) -> Result<u8, Failure> {
    check(&args)?;
    // Before anything is opened that could get the number of an inherited descriptor.
    let target = std::mem::take(&mut args.target).target()?;
    let mut file = open(&args.file)?;
    let image = read(&args.file, &mut file)?;
    let age = if args.age_while_asleep { asleep(&image) } else { Duration::ZERO };
    let policy = RestorePolicy { expected: args.token, flows: args.flows, age };
    if target.is_none() && args.command.is_empty() {
        return wake(&args, &file, &image, policy);
    }
    begin(args, target, file, &image, policy)
}

/// For how long the network has slept, as far as the wall clock can tell.
fn asleep(image: &Image<'_>) -> Duration {
    Duration::from_nanos(crate::clock::wall().saturating_sub(image.inventory().header.created))
}

/// Has a sandbox go on that sleeps.
fn wake(args: &RestoreArgs, file: &File, image: &Image<'_>, policy: RestorePolicy) -> Result<u8, Failure> {
    let origin: Origin = image.state().unwrap_or_default();
    // What a damaged image says of its sandbox is no reason to look for one.
    let unfit = |failure: Failure| match image.check() {
        Ok(()) => failure,
        Err(e) => Failure::new(Status::Image, format!("{}: {e}", args.file.display())),
    };
    let name = match (&args.net.name, origin.name.is_empty()) {
        (Some(name), _) => name.clone(),
        (None, false) => origin.name,
        (None, true) => {
            return Err(unfit(Failure::new(
                Status::Usage,
                "the image does not say of which sandbox it is: give --name, or a command behind `--`",
            )));
        }
    };
    let entry = Registry::open()?.get(&name).map_err(|e| {
        unfit(Failure::new(
            e.status,
            format!("{e}; to put a new command into the image's network: restore {} -- COMMAND", args.file.display()),
        ))
    })?;
    if entry.state != State::Asleep {
        return Err(unfit(Failure::new(
            Status::State,
            format!(
                "the network of '{name}' is {}, not asleep; to put a new command into the image's network: restore {} -- COMMAND",
                entry.state,
                args.file.display()
            ),
        )));
    }
    let text = |path: &Option<PathBuf>| {
        let read = |p: &PathBuf| {
            std::fs::read_to_string(p).map_err(|e| Failure::os(Status::File, format_args!("cannot read {}", p.display()), e))
        };
        path.as_ref().map(read).transpose()
    };
    let helper = if args.repair { Some(args.helper.start()?) } else { None };
    let how = Restore {
        policy,
        rules4: text(&args.net.rules)?,
        rules6: text(&args.net.rules6)?,
        sets: text(&args.net.ipset)?,
        recheck: args.net.recheck,
        helper: helper.is_some(),
    };
    let mut fds = vec![file.as_fd()];
    fds.extend(helper.as_ref().map(RunningHelper::socket));
    let asking = Asking::new(&name, &Request::Restore(Box::new(how)), &fds)?;
    asking.be_patient();
    let report: ThawReport = asking.answer()?;
    if args.json { print_json(&report) } else { print(&outcomes(&name, &report)) }
}

/// A new sandbox, or a link that somebody else made, that goes on with the image's network.
fn begin(args: RestoreArgs, target: Option<Target>, file: File, image: &Image<'_>, policy: RestorePolicy) -> Result<u8, Failure> {
    args.net.check_queues(target.as_ref())?;
    let mut plan = args.net.plan()?;
    plan.carry = args.helper.carry();
    let fail = |e: &dyn std::fmt::Display| Failure::new(Status::Image, format!("{}: {e}", args.file.display()));
    image.check().map_err(|e| fail(&e))?;
    let saved = checkpoint::config_of(image).map_err(|e| fail(&e))?;
    let resolvers = std::mem::take(&mut plan.config.resolvers);
    let publish = std::mem::take(&mut plan.config.publish);
    plan.config = saved;
    plan.config.resolvers = resolvers;
    // Ports that are published anew take the place of the image's.
    if !publish.is_empty() {
        plan.config.publish = publish;
    }
    // That standard output or error is closed is not the new command's business.
    let told: fn(&ThawReport) = match args.json {
        true => |report| drop(print_json(report)),
        false => |report| outcomes("the network", report).lines().for_each(complain),
    };
    let running = if args.repair { Some(args.helper.start()?) } else { None };
    let helper = running.as_ref().map(|h| h.socket().try_clone_to_owned()).transpose();
    let helper = helper.map_err(|e| Failure::os(Status::Resources, "cannot hand a connection over", e))?;
    let thaw = Some(Thawing { image: file, policy, helper, told });
    match target {
        Some(target) => supervisor::attach(&AttachRequest { plan, target, thaw, pid_file: None, join: None }),
        None => supervisor::run(&RunRequest { plan, argv: args.command, resolv_conf: true, output: None, thaw, join: None }),
    }
}

/// A line for each flow, and one for all.
fn outcomes(name: &str, report: &ThawReport) -> String {
    let mut text = String::new();
    for f in &report.flows {
        let why = f.why.as_ref().map_or_else(String::new, |w| format!(": {w}"));
        text.push_str(&format!("{:<8} {}{why}\n", f.outcome.to_string(), f.flow));
    }
    let [resumed, reset, skipped] = [Outcome::Resumed, Outcome::Reset, Outcome::Skipped].map(|o| report.count(o));
    text.push_str(&format!(
        "{name} goes on after {} us: {} flows: {resumed} resumed, {reset} reset, {skipped} skipped; {} tracked connections\n",
        report.took_ns / 1000,
        report.flows.len(),
        report.connections
    ));
    text
}
