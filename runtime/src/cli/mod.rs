//! The command line.

mod attempt;
mod checkpoint;
mod choices;
mod conntrack;
mod demo;
mod doctor;
mod drops;
mod exec;
mod helper;
mod inspect;
mod join;
mod lifecycle;
mod list;
mod options;
mod passt;
mod repair_helper;
mod restore;
mod rules;
mod sets;
mod stats;
mod trace;
pub(crate) mod values;
mod wait;

pub use options::NetOptions;

use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::plan::Plan;
use crate::sandbox::supervisor::{self, AttachRequest, RunRequest};
use crate::sandbox::target::Target;
use crate::sandbox::worker_process::{self, COMMAND};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The network of a sandbox or microVM, in user space and without root.
#[derive(Debug, Parser)]
#[command(name = "hibernet", version, about, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  hibernet run -- curl https://example.org/
  hibernet run -p 8080:80 -- nginx -g 'daemon off;'
  hibernet run --name web --detach -p 127.0.0.1:8000:8000 -- python3 -m http.server 8000
  hibernet exec web -- ss -tln
  hibernet run --name db --join web -- psql -h web     # beside it, on one network: FORWARD rules see tap0 and tap1
  hibernet attach --netns /run/netns/blue

Exit status:
  that of the command; 128+N if signal N ended it; 127 command not found; 126 not executable.
  Of hibernet's own: 2 usage, 70 internal error, 71 namespaces not allowed, 72 link, 73 port cannot be published,
  74 out of descriptors, processes or memory, 75 name taken or unknown, 76 network worker ended unexpectedly,
  77 a file cannot be read or written, 78 rules that cannot be read or make no sense, 79 not possible while the
  sandbox's network is paused or asleep, 80 an image that is damaged or cannot be restored, 3 what `checkpoint --require` or
  `--compat` asks for cannot be had, 4 what `wait` or `idle` waits for has not happened in time.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a sandbox with a network of its own
    #[command(after_help = AFTER_HELP)]
    Run(Box<RunArgs>),
    /// Serve a link or a network namespace that somebody else made, until it goes
    #[command(after_help = ATTACH_HELP)]
    Attach(Box<AttachArgs>),
    /// Serve QEMU, taking the options of passt
    #[command(after_help = passt::HELP)]
    Passt(Box<passt::PasstArgs>),
    /// List running sandboxes
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a sandbox's network stand still: what comes waits, nothing is lost
    Pause(lifecycle::NameArgs),
    /// Let a paused network go on
    Resume(lifecycle::NameArgs),
    /// Save a sandbox's network to a file: rules, connections, flows; put it to sleep, or let it go on
    #[command(after_help = CHECKPOINT_HELP)]
    Checkpoint(checkpoint::CheckpointArgs),
    /// Have a sleeping network go on from an image, or a new command, or a link that somebody else made
    #[command(after_help = restore::HELP)]
    Restore(Box<restore::RestoreArgs>),
    /// Replace the program that serves a sandbox's network by this one, without anybody noticing
    Upgrade(lifecycle::UpgradeArgs),
    /// Wait until something comes for a sleeping sandbox, and say what
    #[command(after_help = wait::WAIT_HELP)]
    Wait(wait::WaitArgs),
    /// Wait until a sandbox's network is idle: nothing but keep-alives has moved for some time, and no request is unanswered
    #[command(after_help = wait::IDLE_HELP)]
    Idle(wait::IdleArgs),
    /// Say what an image contains
    Inspect(inspect::InspectArgs),
    /// Run a command inside a running sandbox
    Exec {
        /// The sandbox
        name: String,
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Show the counters of a running sandbox's network
    Stats {
        /// The sandbox
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check rules, or print, replace or compare those of a running sandbox
    Rules {
        #[command(subcommand)]
        command: rules::RulesCommand,
    },
    /// Print the sets of a running sandbox that its rules name
    Sets {
        #[command(subcommand)]
        command: sets::SetsCommand,
    },
    /// List, count, delete or flush the tracked connections of a running sandbox, as conntrack(8) does
    #[command(after_help = conntrack::HELP)]
    Conntrack(Box<conntrack::ConntrackArgs>),
    /// Show why packets took their path: tables, rules, routes, drops
    #[command(after_help = trace::HELP)]
    Trace(Box<trace::TraceArgs>),
    /// Show why a running sandbox dropped packets, and how many
    Drops {
        /// The sandbox
        name: String,
        /// Reasons that never happened, too
        #[arg(long)]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show within seconds what hibernet is for: verified streams through a network that is frozen, stored, thawed and upgraded
    #[command(after_help = demo::HELP)]
    Demo(demo::DemoArgs),
    /// Be the program in the sandbox of the demo (for hibernet itself)
    #[command(hide = true)]
    DemoGuest(demo::DemoGuestArgs),
    /// Be the first process of the demo's virtual machine (for hibernet itself)
    #[command(hide = true)]
    DemoMachine(demo::DemoGuestArgs),
    /// Become a program that ends with the demo (for hibernet itself)
    #[command(hide = true)]
    DemoLeash {
        /// The demo's process
        parent: u32,
        /// The program and its arguments
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Be the network worker of the supervisor that executed this (for hibernet itself)
    #[command(hide = true, name = COMMAND)]
    NetworkWorker {
        /// Number of the channel's descriptor
        channel: i32,
    },
    /// Serve users who lack CAP_NET_ADMIN when their sandboxes' TCP connections go into an image
    #[command(after_help = repair_helper::HELP)]
    RepairHelper(repair_helper::RepairHelperArgs),
    /// What becomes of an attempt by a confined process (for tests)
    #[command(hide = true)]
    ConfinedAttempt {
        /// What is attempted
        what: attempt::What,
    },
    /// Say what this machine allows, and how to mend what it does not
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

const CHECKPOINT_HELP: &str = "\
Examples:
  hibernet checkpoint web web.img                    sleep: connections are held, `hibernet restore web.img` wakes it
  hibernet checkpoint web web.img --wake-exec 'hibernet restore web.img'
                                                     sleep until a byte, a client or a datagram comes; the command is run once, in
                                                     this directory, with HIBERNET_NAME, HIBERNET_IMAGE (its whole path) and HIBERNET_FLOW
                                                     (who woke it); if it fails, that is said and it is not run again before the next sleep
  hibernet checkpoint web - --live --leave-running | ssh store 'cat > web.img'
  hibernet checkpoint web web.img --require all      only if every flow survives; else exit status 3 and nothing happened
  hibernet checkpoint web web.img --compat 1         for a hibernet that reads images up to level 1; else exit status 3
  hibernet checkpoint web --dry-run                  which flows would survive, and how";

const ATTACH_HELP: &str = "\
Examples:
  hibernet attach --netns 4711 -p 8080:80         namespace of a process; ends with it
  hibernet attach --netns /run/netns/blue         namespace made by `ip netns add blue`; ends when that is deleted
  hibernet attach --packet tap0                   a TAP that a VMM such as Firecracker has opened
  hibernet attach --tap tap0                      a TAP that nobody has opened
  hibernet attach --packet tap1 --join vm1        a second VM in the network of the first, routed between them by its rules
  hibernet attach --qemu /run/vm1.sock            a VM, before or after it begins, and again when it or this begins anew:
      qemu-system-x86_64 ... -device virtio-net-pci,netdev=n \\
          -netdev stream,id=n,server=off,addr.type=unix,addr.path=/run/vm1.sock,reconnect-ms=100
  hibernet attach --vhost-user /run/vm1.sock      the same, several times faster; the VM's memory must be shared:
      qemu-system-x86_64 ... -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m -m 1G \\
          -chardev socket,id=c,path=/run/vm1.sock,reconnect-ms=100 -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n
  hibernet attach --qemu-dgram /run/vm1.sock      a VM whose monitor sends datagrams (QEMU, libkrun, vfkit):
      qemu-system-x86_64 ... -netdev dgram,id=n,local.type=unix,local.path=/run/q.sock,remote.type=unix,remote.path=/run/vm1.sock";

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    net: NetOptions,
    /// Join the network of this running sandbox: its rules and its network worker serve both, which reach each other by name
    #[arg(long, value_name = "NAME", help_heading = "Link")]
    join: Option<String>,
    /// Leave /etc/resolv.conf as it is
    #[arg(long, help_heading = "Addresses")]
    no_resolv_conf: bool,
    /// With --detach: append the command's output to FILE [default: it is thrown away]
    #[arg(long, value_name = "FILE", requires = "detach", help_heading = "Running")]
    output: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct AttachArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    net: NetOptions,
    /// Join the network of this running sandbox, with --tap, --packet or --netns: its rules and its network worker serve both, which reach each other
    #[arg(long, value_name = "NAME", conflicts_with_all = ["qemu", "vhost_user", "vhost_user_connect", "qemu_dgram", "qemu_connect", "fd"], help_heading = "Link")]
    join: Option<String>,
    #[command(flatten)]
    moving: helper::MoveOptions,
}

/// A link or namespace that somebody else made.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
struct TargetArgs {
    /// Take this TAP (its descriptor's side)
    #[arg(long, value_name = "IFNAME", value_parser = values::interface)]
    tap: Option<String>,
    /// Take this interface with a packet socket, such as a TAP whose descriptor a VMM holds
    #[arg(long, value_name = "IFNAME", value_parser = values::interface)]
    packet: Option<String>,
    /// Make an interface in this network namespace
    #[arg(long, value_name = "PATH|PID", value_parser = Target::netns)]
    netns: Option<Target>,
    /// Listen at this Unix socket for QEMU's `-netdev stream`
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Listen at this Unix socket for a vhost-user front end, such as QEMU
    #[arg(long, value_name = "PATH", group = "guest_memory")]
    vhost_user: Option<PathBuf>,
    /// Connect to this Unix socket, at which a vhost-user front end listens (`server=on`), and again whenever one does after it has gone
    #[arg(long, value_name = "PATH", group = "guest_memory")]
    vhost_user_connect: Option<PathBuf>,
    /// Take datagrams at this Unix socket, from QEMU's `-netdev dgram`, vfkit and the like, and answer to where they come from or to `remote`
    #[arg(long, value_name = "PATH[,remote=PATH]", value_parser = Target::datagrams)]
    qemu_dgram: Option<Target>,
    /// Connect to this Unix socket, at which QEMU's `-netdev stream` listens (`server=on`), until QEMU ends
    #[arg(long, value_name = "PATH")]
    qemu_connect: Option<PathBuf>,
    /// Take this inherited descriptor: of a TAP, a packet socket, a socket that carries a frame in each message, or one that speaks as `--qemu`
    #[arg(long, value_name = "N")]
    fd: Option<i32>,
}

impl TargetArgs {
    fn target(self) -> Result<Option<Target>, Failure> {
        let inherited = self.fd.map(Target::inherited).transpose()?;
        let named = self.tap.map(Target::Tap).or(self.packet.map(Target::Packet));
        let streams = self.qemu.map(|path| Target::Streams { path, one_off: false });
        let vhost_user = self.vhost_user.map(|path| Target::VhostUser { path, one_off: false });
        let vhost_user = vhost_user.or(self.vhost_user_connect.map(Target::VhostUserConnect));
        let monitor = streams.or(self.qemu_connect.map(Target::Stream)).or(vhost_user);
        Ok(named.or(self.netns).or(monitor).or(self.qemu_dgram).or(inherited))
    }

    fn is_given(&self) -> bool {
        let named = self.tap.is_some() || self.packet.is_some();
        let stream = self.qemu.is_some() || self.qemu_connect.is_some();
        let vhost_user = self.vhost_user.is_some() || self.vhost_user_connect.is_some();
        named || stream || vhost_user || self.qemu_dgram.is_some() || self.netns.is_some() || self.fd.is_some()
    }
}

/// The command line of this process. Under the name `passt` it takes that one's options.
fn arguments() -> Vec<OsString> {
    let mut all: Vec<OsString> = std::env::args_os().collect();
    if all.first().is_some_and(|name| Path::new(name).file_name() == Some("passt".as_ref())) {
        all.insert(1, "passt".into());
    }
    all
}

/// An error of the command line that has no use for clap's own exit.
fn usage_of(e: &clap::Error) -> Failure {
    let text = e.to_string();
    Failure::new(Status::Usage, text.strip_prefix("error: ").unwrap_or(&text).lines().next().unwrap_or_default())
}

/// Runs the command line of this process; its exit status.
pub fn main() -> ExitCode {
    let done = match Cli::parse_from(arguments()).command {
        Command::Run(args) => run(*args),
        Command::Attach(args) => attach(*args),
        Command::Passt(args) => passt::passt(&args),
        Command::List { json } => list::list(json),
        Command::Pause(args) => lifecycle::pause(&args),
        Command::Resume(args) => lifecycle::resume(&args),
        Command::Checkpoint(args) => checkpoint::checkpoint(&args),
        Command::Restore(args) => restore::restore(*args),
        Command::Upgrade(args) => lifecycle::upgrade(&args),
        Command::Wait(args) => wait::wait(&args),
        Command::Idle(args) => wait::idle(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::DemoGuest(args) => demo::guest(&args),
        Command::DemoMachine(args) => demo::machine(&args),
        Command::DemoLeash { parent, command } => demo::leash(parent, &command),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::NetworkWorker { channel } => worker_process::main(channel),
        Command::Exec { name, command } => exec::exec(&name, &command),
        Command::Stats { name, json } => stats::stats(&name, json),
        Command::Rules { command } => rules::rules(command),
        Command::Sets { command } => sets::sets(command),
        Command::Conntrack(args) => conntrack::conntrack(*args),
        Command::Trace(args) => trace::trace(&args),
        Command::Drops { name, all, json } => drops::drops(&name, all, json),
        Command::RepairHelper(args) => repair_helper::repair_helper(&args),
        Command::ConfinedAttempt { what } => attempt::attempt(what),
        Command::Doctor { json } => doctor::doctor(json),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            complain(&e);
            ExitCode::from(e.status as u8)
        }
    }
}

fn run(args: RunArgs) -> Result<u8, Failure> {
    let plan = args.net.plan()?;
    args.net.check_queues(None)?;
    if args.join.is_some() && plan.guest.workers > 1 {
        return Err(Failure::new(Status::Usage, "--workers: a sandbox that joins is served by the worker that is there"));
    }
    let join = args.join.map(|network| args.net.join(network, &plan)).transpose()?;
    let (resolv_conf, output) = (!args.no_resolv_conf, args.output);
    supervisor::run(&RunRequest { plan, argv: args.command, resolv_conf, output, thaw: None, join })
}

fn attach(args: AttachArgs) -> Result<u8, Failure> {
    let nothing = || {
        Failure::new(
            Status::Usage,
            "nothing to attach to: give --tap, --packet, --netns, --qemu, --qemu-dgram, --vhost-user, --vhost-user-connect or --fd",
        )
    };
    let target = args.target.target()?.ok_or_else(nothing)?;
    args.net.check_queues(Some(&target))?;
    let plan = Plan { carry: args.moving.carry(), ..args.net.plan()? };
    if args.join.is_some() && plan.guest.descriptors() > 1 {
        return Err(Failure::new(Status::Usage, "--queues, --workers: a link that joins has one"));
    }
    let join = args.join.map(|network| args.net.join(network, &plan)).transpose()?;
    supervisor::attach(&AttachRequest { plan, target, thaw: None, pid_file: None, join })
}

/// Prints to standard output. That nobody reads any more (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<u8, Failure> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::os(Status::File, "cannot write to standard output", e))
        }
        _ => Ok(0),
    }
}

/// As [`print`], in JSON.
fn print_json(value: &impl serde::Serialize) -> Result<u8, Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(Status::Internal, e.to_string()))?;
    text.push('\n');
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
