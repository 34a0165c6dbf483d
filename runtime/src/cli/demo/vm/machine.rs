//! The demo's machine: QEMU, and the hibernet that serves it over vhost-user.

use super::files::Files;
use super::monitor::Monitor;
use crate::cli::demo::sandbox::{LOOPBACK, WORLD};
use crate::sandbox::failure::{Failure, Status};
use crate::sys::process::{self, SignalSet};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Memory of the machine in MiB.
const MEMORY: u32 = 256;
/// How long a process may take to end when it was told to.
const ENDING: Duration = Duration::from_secs(5);
/// Lines of a log that are shown.
const TAIL: usize = 8;

/// A process of the machine's.
#[derive(Debug)]
struct Process {
    what: &'static str,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it in the background, so that it ends with us.
    fn start(what: &'static str, command: &[String], log: PathBuf) -> Result<Process, Failure> {
        let fail = |e| Failure::os(Status::Resources, format_args!("cannot start {what}"), e);
        let output =
            File::create(&log).map_err(|e| Failure::os(Status::File, format_args!("cannot write {}", log.display()), e))?;
        let child = Command::new("/proc/self/exe")
            .args(["demo-leash", &std::process::id().to_string(), "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(fail)?)
            .stderr(output)
            // Keys at a terminal are for us.
            .process_group(0)
            .spawn()
            .map_err(fail)?;
        Ok(Process { what, child, log, ended: None })
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.ended = self.ended.or_else(|| self.child.try_wait().ok().flatten());
        self.ended
    }

    /// That it runs; if not, what it said in the end.
    fn check(&mut self) -> Result<(), Failure> {
        match self.has_ended() {
            None => Ok(()),
            Some(how) => Err(Failure::new(Status::Internal, format!("{} has ended ({how}){}", self.what, tail(&self.log)))),
        }
    }

    fn end(&mut self) {
        if let (None, Some(pid)) = (self.has_ended(), Pid::from_raw(self.id() as i32)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let end = Instant::now() + ENDING;
        while self.has_ended().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Does nothing to one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a text ends.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|l| format!("\n    {l}")).collect()
}

/// For `demo-leash`: becomes another program that ends with the process `parent`.
pub(in crate::cli) fn leash(parent: u32, command: &[OsString]) -> Result<u8, Failure> {
    let fail = |e| Failure::os(Status::Internal, "cannot be bound to the demo", e);
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|e| fail(e.into()))?;
    if getppid().is_none_or(|p| p.as_raw_nonzero().get() as u32 != parent) {
        return Err(Failure::new(Status::Internal, "the demo has ended"));
    }
    SignalSet::new(&[]).set().map_err(fail)?;
    let e = process::exec(command);
    let program = command.first().cloned().unwrap_or_default();
    Err(Failure::os(Status::NotExecutable, format_args!("cannot execute {}", program.display()), e))
}

/// What a machine is made of, each time.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) files: Files,
    /// The demo's own.
    pub(super) directory: PathBuf,
    /// `kvm` or `tcg`.
    pub(super) accelerator: &'static str,
    pub(super) connections: u64,
}

impl Recipe {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.path("initramfs")
    }

    /// Where the machine is saved.
    pub(super) fn state(&self) -> PathBuf {
        self.path("vm.state")
    }

    pub(super) fn rules(&self) -> PathBuf {
        self.path("rules")
    }

    fn attach(&self, socket: &str, name: &str, is_first: bool) -> Vec<String> {
        let mut words = vec!["/proc/self/exe".to_owned()];
        words.extend(["attach", "--vhost-user", socket, "--name", name, "--log-level", "error"].map(str::to_owned));
        if is_first {
            let rules = self.rules().display().to_string();
            words.extend(["--no-ipv6", "--map-host-loopback", LOOPBACK, "--rules", &rules].map(str::to_owned));
        }
        words
    }

    fn qemu(&self, socket: &str, monitor: &Path, console: &Path, is_first: bool) -> Vec<String> {
        let text = |p: &Path| p.display().to_string();
        let memory = format!("memory-backend-memfd,id=m,size={MEMORY}M,share=on");
        let append = format!("console=ttyS0 quiet panic=-1 -- demo-machine {WORLD} {}", self.connections);
        let mut words: Vec<String> = [
            text(&self.files.qemu).as_str(),
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-accel",
            self.accelerator,
            "-cpu",
            "max",
            "-m",
            &format!("{MEMORY}M"),
            "-object",
            &memory,
            "-machine",
            "pc,memory-backend=m",
            "-kernel",
            &text(&self.files.kernel.image),
            "-initrd",
            &text(&self.initramfs()),
            "-append",
            &append,
            "-chardev",
            &format!("socket,id=c,path={socket}"),
            "-netdev",
            "vhost-user,id=n,chardev=c",
            "-device",
            "virtio-net-pci,netdev=n",
            "-chardev",
            &format!("file,id=console,path={}", text(console)),
            "-serial",
            "chardev:console",
            "-qmp",
            &format!("unix:{},server=on,wait=off", text(monitor)),
        ]
        .map(str::to_owned)
        .into();
        if !is_first {
            words.extend(["-incoming".to_owned(), format!("file:{}", text(&self.state()))]);
        }
        words
    }
}

/// A machine that runs, or is about to.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Process,
    attach: Process,
    monitor: PathBuf,
    console: PathBuf,
    /// How both were started, for people.
    pub(super) commands: Vec<String>,
}

impl Machine {
    /// Starts number `n`: the first boots, the others begin where the one before was saved. `wait` is called until it says no.
    pub(super) fn start(recipe: &Recipe, n: u32, mut wait: impl FnMut() -> Result<(), Failure>) -> Result<Machine, Failure> {
        let path = |name: &str| recipe.path(&format!("{name}{n}"));
        let socket = recipe.path(&format!("vm{n}.sock"));
        let _ = fs::remove_file(&socket);
        let socket_text = socket.display().to_string();
        let attach_command = recipe.attach(&socket_text, &format!("demo-{}-{n}", std::process::id()), n == 1);
        let mut attach = Process::start("hibernet attach", &attach_command, path("attach.log"))?;
        while !socket.exists() {
            attach.check()?;
            wait()?;
        }
        let (monitor, console) = (path("monitor"), path("console"));
        let _ = fs::remove_file(&monitor);
        let qemu_command = recipe.qemu(&socket_text, &monitor, &console, n == 1);
        let qemu = Process::start("QEMU", &qemu_command, path("qemu.log"))?;
        let mut commands = vec![shown(&attach_command), shown(&qemu_command)];
        commands[0] = commands[0].replacen("/proc/self/exe", "hibernet", 1);
        Ok(Machine { qemu, attach, monitor, console, commands })
    }

    /// Process ids of QEMU and of its hibernet.
    pub(super) fn ids(&self) -> [u32; 2] {
        [self.qemu.id(), self.attach.id()]
    }

    /// QEMU's monitor, if it listens yet.
    pub(super) fn monitor(&self) -> Option<Monitor> {
        Monitor::connect(&self.monitor).ok()
    }

    /// That both its processes run, and that the processor can be relied on; if not, what was said.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        // It stays there, and does nothing more.
        if fs::read_to_string(&self.qemu.log).is_ok_and(|said| said.contains("KVM internal error")) {
            return Err(Failure::new(Status::Internal, "KVM cannot run this machine's kernel here"));
        }
        let console = self.console.clone();
        self.qemu.check().map_err(|e| Failure::new(e.status, format!("{}{}", e.message, tail(&console))))?;
        self.attach.check()
    }

    /// What the machine's kernel and its program have said last.
    pub(super) fn said(&self) -> String {
        tail(&self.console)
    }

    /// Whether both processes have ended by themselves.
    pub(super) fn has_ended(&mut self) -> Result<bool, Failure> {
        for p in [&mut self.qemu, &mut self.attach] {
            match p.has_ended() {
                None => return Ok(false),
                Some(how) if !how.success() => p.check()?,
                Some(_) => {}
            }
        }
        Ok(true)
    }

    /// Whether the machine has been switched off.
    pub(super) fn is_off(&mut self) -> bool {
        self.qemu.has_ended().is_some()
    }
}

/// A command line as one would type it.
fn shown(words: &[String]) -> String {
    let word = |w: &String| if w.contains([' ', '$', '&', ';', '*']) { format!("'{w}'") } else { w.clone() };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}
