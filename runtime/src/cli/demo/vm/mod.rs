//! `hibernet demo --vm`: a whole virtual machine is saved to disk with its network inside, both its processes end, and both come back.
//!
//! All of it is in a network namespace of its own: there we may repair TCP connections, whoever we are, and the machine's network sees nobody else.

mod files;
mod initramfs;
mod inside;
mod machine;
mod monitor;

pub(in crate::cli) use inside::machine;
pub(in crate::cli) use machine::leash;

use super::sandbox::{WORLD, rules};
use super::server::{Mark, Server, Verified};
use super::{SLEEP, STREAM, Show, mib, pass};
use crate::cli::print_json;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::namespaces;
use crate::sandbox::netlink::Netlink;
use crate::sys::process::{self, SignalFd};
use clap::{Args, ValueEnum};
use files::Files;
use machine::{Machine, Recipe};
use monitor::Monitor;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities};
use serde_json::json;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// TCP connections of the machine's program.
const CONNECTIONS: u64 = 4;
/// Every connection has to move by so much, both ways, after each step: an emulated machine is slow.
const MOVES: u64 = 32 << 10;
/// How long a machine may take to boot, and anything that its state has to go through.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long KVM is given for a boot, where emulation is another way.
const KVM_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes a second that the machine's state may move: as many as it can.
const BANDWIDTH: u64 = 1 << 40;

#[derive(Debug, Args)]
pub(super) struct VmOptions {
    /// A virtual machine in QEMU instead: saved to disk together with its network, both its processes gone, both back
    #[arg(long)]
    pub(super) vm: bool,
    /// With --vm: this QEMU, 10 or newer [default: qemu-system-x86_64]
    #[arg(long, value_name = "PROGRAM", requires = "vm")]
    qemu: Option<PathBuf>,
    /// With --vm: the machine's kernel [default: one that is installed]
    #[arg(long, value_name = "FILE", requires = "vm")]
    kernel: Option<PathBuf>,
    /// With --kernel: the directory with its drivers [default: where they are installed, /lib/modules/VERSION]
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// With --vm: what runs the machine's code [default: KVM if that works, else emulation]
    #[arg(long, value_name = "HOW", requires = "vm")]
    accel: Option<Accelerator>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Accelerator {
    /// The processor
    Kvm,
    /// Emulation, which works everywhere
    Tcg,
}

impl Accelerator {
    fn name(self) -> &'static str {
        if self == Accelerator::Kvm { "kvm" } else { "tcg" }
    }

    fn described(self) -> &'static str {
        if self == Accelerator::Kvm { "KVM" } else { "emulation" }
    }
}

/// The demo's files. They go with this.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Demo {
    show: Show,
    stop: SignalFd,
    server: Server,
    recipe: Recipe,
    machine: Option<Machine>,
}

pub(super) fn demo(options: &VmOptions, show: Show, stop: SignalFd) -> Result<u8, Failure> {
    let files = Files::find(options)?;
    own_network()?;
    let directory = Directory(std::env::temp_dir().join(format!("hibernet-demo-{}", std::process::id())));
    let fail = |e| Failure::os(Status::File, format_args!("cannot write in {}", directory.0.display()), e);
    DirBuilder::new().mode(0o700).create(&directory.0).map_err(fail)?;
    let server = Server::start(CONNECTIONS)?;
    let recipe = Recipe { files, directory: directory.0.clone(), accelerator: "tcg", connections: CONNECTIONS };
    std::fs::write(recipe.rules(), rules(server.addr.port())).map_err(fail)?;
    initramfs::write(&recipe.initramfs(), &recipe.files.kernel)?;
    let mut demo = Demo { show, stop, server, recipe, machine: None };
    let done = demo.steps(options.accel);
    // What was wrong with the data says more than what followed from it.
    demo.server.check().and(done)?;
    let Verified { from_guest, to_guest } = demo.server.verified();
    let Demo { show, .. } = demo;
    if show.json {
        return print_json(&json!({
            "verified": true,
            "connections": CONNECTIONS,
            "bytes_from_guest": from_guest,
            "bytes_to_guest": to_guest,
            "seconds": show.begun.elapsed().as_secs_f64(),
            "steps": show.steps,
        }));
    }
    crate::cli::print(&format!(
        "\nEvery byte was right: {} from the machine, {} to it; {CONNECTIONS} of {CONNECTIONS} connections ended in good order.\n",
        mib(from_guest),
        mib(to_guest)
    ))
}

/// Into a network namespace of our own, in which we, and what we start, may do what a host's administrator may in the host's.
fn own_network() -> Result<(), Failure> {
    let refused = |e| namespaces::refused("cannot make a network namespace for the demo", e);
    if process::unshare(libc::CLONE_NEWNET).is_err() {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        process::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET).map_err(refused)?;
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n"))
            .and_then(|()| std::fs::write("/proc/self/setgroups", "deny"))
            .and_then(|()| std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n")))
            .map_err(refused)?;
    }
    let net_admin = CapabilitySet::NET_ADMIN;
    let pass_on = || -> rustix::io::Result<()> {
        let now = capabilities(None)?;
        set_capabilities(None, CapabilitySets { inheritable: now.inheritable | net_admin, ..now })?;
        configure_capability_in_ambient_set(net_admin, true)
    };
    pass_on().map_err(|e| Failure::os(Status::Namespaces, "cannot pass on the right to repair connections", e))?;
    Netlink::open()
        .and_then(|mut n| n.set_up(1, None))
        .map_err(|e| Failure::os(Status::Link, "cannot set the demo's loopback up", e))
}

/// In which ways the machine can be run here, the fast one first.
fn accelerators(given: Option<Accelerator>) -> Vec<Accelerator> {
    match given {
        Some(a) => vec![a],
        None if File::options().read(true).write(true).open("/dev/kvm").is_ok() => vec![Accelerator::Kvm, Accelerator::Tcg],
        None => vec![Accelerator::Tcg],
    }
}

impl Demo {
    fn steps(&mut self, accelerator: Option<Accelerator>) -> Result<(), Failure> {
        self.boot(&accelerators(accelerator))?;
        self.stream()?;
        self.save()?;
        self.come_back()?;
        self.stream()?;
        self.server.stop();
        self.until(PATIENCE, "all connections have ended", |d| Ok(d.server.ended() as u64 == CONNECTIONS))?;
        self.until_off()
    }

    fn running(&mut self) -> Result<&mut Machine, Failure> {
        self.machine.as_mut().ok_or_else(|| Failure::new(Status::Internal, "there is no machine"))
    }

    /// Waits for what has to happen while the machine runs.
    fn until(
        &mut self,
        patience: Duration,
        what: &str,
        holds: impl Fn(&mut Self) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let end = Instant::now() + patience;
        while !holds(self)? {
            self.server.check()?;
            pass(&self.stop, Duration::from_millis(2))?;
            self.running()?.check()?;
            if Instant::now() > end {
                let (seconds, said) = (patience.as_secs(), self.running()?.said());
                return Err(Failure::new(Status::Internal, format!("in vain for {seconds} s: that {what}{said}")));
            }
        }
        Ok(())
    }

    fn start(&mut self, n: u32) -> Result<(), Failure> {
        let (end, stop) = (Instant::now() + KVM_PATIENCE, &self.stop);
        let wait = || match Instant::now() < end {
            true => pass(stop, Duration::from_millis(1)),
            false => Err(Failure::new(Status::Internal, "hibernet attach does not listen")),
        };
        self.machine = Some(Machine::start(&self.recipe, n, wait)?);
        Ok(())
    }

    fn boot(&mut self, ways: &[Accelerator]) -> Result<(), Failure> {
        let mut begun = Instant::now();
        let mut way = ways[0];
        for (i, &a) in ways.iter().enumerate() {
            (way, self.recipe.accelerator, begun) = (a, a.name(), Instant::now());
            let is_last = i + 1 == ways.len();
            self.start(1)?;
            let patience = if is_last { PATIENCE } else { KVM_PATIENCE };
            match self.until(
                patience,
                "the machine's connections are there",
                |d| Ok(d.server.connections() as u64 == CONNECTIONS),
            ) {
                Ok(()) => break,
                // Given up, or wrong data.
                Err(e) if is_last || self.server.connections() > 0 || self.running()?.check().is_ok() => return Err(e),
                Err(_) => self.machine = None,
            }
        }
        let (how, [qemu, attach]) = (way.described(), self.running()?.ids());
        let (version, kernel) = (&self.recipe.files.qemu_version, &self.recipe.files.kernel.version);
        let text = format!(
            "Linux {kernel} in QEMU {version} ({how}), process {qemu}, has booted within {:.1} s; process {attach} serves it; \
             {CONNECTIONS} TCP connections to {WORLD}, which DNAT leads to {}",
            begun.elapsed().as_secs_f64(),
            self.server.addr
        );
        let facts = json!({ "kernel": kernel, "qemu_version": version, "accelerator": way.name(), "qemu": qemu, "attach": attach, "server": self.server.addr });
        self.show.step("started", &text, facts)?;
        self.commands()
    }

    /// Shows how it was done.
    fn commands(&mut self) -> Result<(), Failure> {
        let commands = self.running()?.commands.clone();
        self.show.commands(&commands)
    }

    /// Lets data move for a time; all connections have to.
    fn stream(&mut self) -> Result<(), Failure> {
        let (mark, before) = (self.server.mark(), self.server.verified());
        pass(&self.stop, STREAM)?;
        self.until_past(&mark, MOVES)?;
        let now = self.server.verified();
        let (from, to) = (now.from_guest - before.from_guest, now.to_guest - before.to_guest);
        let text = format!("verified {} from the machine, {} to it", mib(from), mib(to));
        self.show.step("streaming", &text, json!({ "bytes_from_guest": from, "bytes_to_guest": to }))
    }

    fn until_past(&mut self, mark: &Mark, bytes: u64) -> Result<(), Failure> {
        self.until(PATIENCE, "every connection moves", |d| Ok(d.server.is_past(mark, bytes)))
    }

    fn monitor(&mut self) -> Result<Monitor, Failure> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(m) = self.running()?.monitor() {
                return Ok(m);
            }
            self.running()?.check()?;
            pass(&self.stop, Duration::from_millis(2))?;
            if Instant::now() > end {
                return Err(Failure::new(Status::Internal, "QEMU's monitor does not listen"));
            }
        }
    }

    /// The machine goes into a file, and its network with it.
    fn save(&mut self) -> Result<(), Failure> {
        let (begun, mut monitor, [qemu, attach]) = (Instant::now(), self.monitor()?, self.running()?.ids());
        let state = self.recipe.state();
        let uri = format!("file:{}", state.display());
        monitor.ask("migrate-set-parameters", &json!({ "max-bandwidth": BANDWIDTH }))?;
        monitor.ask("migrate", &json!({ "uri": uri }))?;
        let mut stood_still = 0;
        let end = begun + PATIENCE;
        loop {
            let now = monitor.ask("query-migrate", &json!({}))?;
            match now["status"].as_str() {
                Some("completed") => {
                    stood_still = now["downtime"].as_u64().unwrap_or(stood_still);
                    break;
                }
                Some("failed" | "cancelled") => {
                    let why = now["error-desc"].as_str().unwrap_or("for no reason that it says").to_owned();
                    return Err(Failure::new(Status::Internal, format!("QEMU could not save the machine: {why}")));
                }
                _ if Instant::now() > end => return Err(Failure::new(Status::Internal, "QEMU does not get the machine saved")),
                _ => {}
            }
            self.running()?.check()?;
            pass(&self.stop, Duration::from_millis(5))?;
        }
        // Its answer may be the end of the connection; that it ends is waited for.
        let _ = monitor.ask("quit", &json!({}));
        let end = Instant::now() + PATIENCE;
        while !self.running()?.has_ended()? {
            pass(&self.stop, Duration::from_millis(1))?;
            if Instant::now() > end {
                return Err(Failure::new(Status::Internal, "the machine's processes do not end"));
            }
        }
        let took = begun.elapsed();
        self.machine = None;
        let bytes = state.metadata().map_err(|e| Failure::os(Status::File, "cannot look at the machine's state", e))?.len();
        let text = format!(
            "machine and network are one file of {} within {:.1} s, of which it stood still for {stood_still} ms; processes {qemu} and {attach} have ended",
            mib(bytes),
            took.as_secs_f64()
        );
        self.show.step(
            "saved",
            &text,
            json!({ "bytes": bytes, "took_ms": took.as_millis() as u64, "stood_still_ms": stood_still, "ended": [qemu, attach] }),
        )?;
        self.show.commands(&[format!("(qemu) migrate {uri}"), "(qemu) quit".to_owned()])
    }

    /// Another QEMU and another hibernet go on with it.
    fn come_back(&mut self) -> Result<(), Failure> {
        pass(&self.stop, SLEEP)?;
        let (mark, begun) = (self.server.mark(), Instant::now());
        self.start(2)?;
        self.until_past(&mark, 1)?;
        let took = begun.elapsed();
        let [qemu, attach] = self.running()?.ids();
        let text = format!(
            "after {} s; processes {qemu} and {attach} go on with it: all {CONNECTIONS} connections move again, both ways, {} ms later",
            SLEEP.as_secs(),
            took.as_millis()
        );
        self.show.step("back", &text, json!({ "qemu": qemu, "attach": attach, "moved_after_ms": took.as_millis() as u64 }))?;
        self.commands()
    }

    /// Its program has ended, and so does the machine.
    fn until_off(&mut self) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        while !self.running()?.is_off() {
            pass(&self.stop, Duration::from_millis(2))?;
            if Instant::now() > end {
                let said = self.running()?.said();
                return Err(Failure::new(Status::Internal, format!("the machine does not switch itself off{said}")));
            }
        }
        Ok(())
    }
}
