//! A virtual machine: QEMU with a packaged Debian kernel, busybox, curl and socat.

use super::net::{Lab, Place};
use super::proc::Proc;
use super::{skip, skip_offline};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a boot may take: emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(120);

/// Ways to run it, the fast one first. That there is a /dev/kvm does not mean that it can run an ordinary kernel.
const ACCELERATORS: [&str; 2] = ["kvm", "tcg"];

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    /// QEMU's process.
    pub qemu: Proc,
    line: BufReader<UnixStream>,
    qmp: String,
}

/// A QEMU that can move the state of its network along: the one that is installed, if it is new enough, or one that is fetched. Says what is not tested
/// without; that it cannot be fetched is nobody's fault.
pub fn moving_qemu(lab: &Lab) -> Option<String> {
    let version = |program: &str| {
        let said = lab.run(Place::Host, 10, &[program, "--version"]).stdout;
        said.split("version ").nth(1)?.split('.').next()?.parse::<u32>().ok()
    };
    let installed = "qemu-system-x86_64";
    if version(installed).is_some_and(|v| v >= 10) {
        return Some(installed.into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = here.join("../target/qemu");
    let fetched = Command::new(here.join("guest/fetch-qemu.sh")).arg(&dir).output().expect("bash runs");
    if !fetched.status.success() {
        let said = String::from_utf8_lossy(&fetched.stderr).into_owned();
        let why = format!("no QEMU of version 10 or newer is here, nor can it be fetched: {}", said.trim());
        match fetched.status.code() {
            Some(3) => skip_offline(&why),
            _ => skip(&why),
        }
        return None;
    }
    Some(dir.canonicalize().ok()?.join("qemu").to_string_lossy().into_owned())
}

/// The directory with the guest's kernel (`vmlinuz`), its drivers (`kernel/lib/modules`) and initial file system (`initrd`), built once. Says what is not
/// tested if they cannot be had.
pub fn guest_files() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = here.join("../target/guest");
    let built = Command::new(here.join("guest/build.sh")).arg(&dir).output().expect("bash runs");
    if built.status.success() {
        return dir.canonicalize().ok();
    }
    skip(&format!("no guest can be built: {}", String::from_utf8_lossy(&built.stderr)));
    None
}

impl Guest {
    /// Boots a guest in the namespace *host*, with these arguments for its network. `None` if that is not possible here, which was said.
    pub fn boot(lab: &Lab, network: &[&str]) -> Option<Guest> {
        Guest::boot_in("qemu-system-x86_64", lab, network)
    }

    /// The same in another QEMU than the installed one.
    pub fn boot_in(program: &str, lab: &Lab, network: &[&str]) -> Option<Guest> {
        let dir = guest_files()?;
        let known = dir.join("accelerator");
        let works = std::fs::read_to_string(&known).ok();
        let tried = ACCELERATORS.into_iter().filter(|a| works.as_ref().is_none_or(|w| w == a));
        let mut said = String::new();
        for accelerator in tried {
            match Guest::boot_with(program, lab, &dir, accelerator, network) {
                Ok(guest) => {
                    std::fs::write(&known, accelerator).expect("file");
                    return Some(guest);
                }
                Err(why) => said = why,
            }
        }
        panic!("the guest does not boot: {said}");
    }

    /// The same machine, to which the state of one that was booted here will come ([`Guest::monitor`], `migrate-incoming`); until then it says nothing.
    pub fn await_state(program: &str, lab: &Lab, network: &[&str]) -> Guest {
        let dir = guest_files().expect("one was booted");
        let accelerator = std::fs::read_to_string(dir.join("accelerator")).expect("one was booted");
        let waiting = [network, &["-incoming", "defer"]].concat();
        Guest::start(program, lab, &dir, &accelerator, &waiting).expect("QEMU starts")
    }

    /// Asks QEMU's monitor (QMP): a command, and its arguments.
    pub fn monitor(&self, command: &str, arguments: &serde_json::Value) -> serde_json::Value {
        let stream = UnixStream::connect(&self.qmp).expect("QEMU's monitor listens");
        stream.set_read_timeout(Some(BOOT)).expect("time-out");
        let mut answers = BufReader::new(stream.try_clone().expect("socket")).lines();
        let mut answer = || loop {
            let line = answers.next().expect("QEMU's monitor answers").expect("QEMU's monitor answers");
            let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            // What happens besides is told too.
            if said.get("event").is_none() {
                break said;
            }
        };
        answer();
        for (command, arguments) in [("qmp_capabilities", &serde_json::json!({})), (command, arguments)] {
            // In one piece: one that quits listens no longer than to the end of that.
            let line = format!("{}\n", serde_json::json!({ "execute": command, "arguments": arguments }));
            (&stream).write_all(line.as_bytes()).expect("QEMU's monitor listens");
            let said = answer();
            if command != "qmp_capabilities" {
                return said.get("return").unwrap_or_else(|| panic!("{command}: {said}\n{}", self.qemu.output())).clone();
            }
        }
        unreachable!("the command was the last")
    }

    fn boot_with(program: &str, lab: &Lab, dir: &Path, accelerator: &str, network: &[&str]) -> Result<Guest, String> {
        let mut guest = Guest::start(program, lab, dir, accelerator, network)?;
        let end = Instant::now() + BOOT;
        let mut said = Vec::new();
        while !said.ends_with(b"@@ ready\n") {
            if let Err(_) | Ok(0) = guest.line.read_until(b'\n', &mut said) {
                guest.still_boots(accelerator, end)?;
            }
        }
        Ok(guest)
    }

    fn still_boots(&mut self, accelerator: &str, end: Instant) -> Result<(), String> {
        let output = self.qemu.output();
        let broken = !self.qemu.running() || output.contains("KVM internal error") || Instant::now() > end;
        if broken { Err(format!("{accelerator}: {output}")) } else { Ok(()) }
    }

    fn start(program: &str, lab: &Lab, dir: &Path, accelerator: &str, network: &[&str]) -> Result<Guest, String> {
        let socket = lab.path(&format!("line-{}", lab.unique()));
        // The lab's user may not be the one that built them.
        let [kernel, initrd] = ["vmlinuz", "initrd"].map(|name| {
            let copy = lab.path(name);
            if !Path::new(&copy).exists() {
                std::fs::copy(dir.join(name), &copy).expect("file");
            }
            copy
        });
        let line = format!("socket,id=line,path={socket},server=on,wait=off");
        let qmp = lab.path(&format!("qmp-{}", lab.unique()));
        let monitor = format!("unix:{qmp},server=on,wait=off");
        let mut argv = vec![program, "-accel", accelerator, "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none"];
        // Whoever can connect to the guest's line can also connect to the monitor.
        argv.extend(["-qmp", &monitor]);
        argv.extend(["-no-reboot", "-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0 quiet panic=-1"]);
        argv.extend(["-serial", "stdio", "-chardev", &line, "-serial", "chardev:line"]);
        argv.extend(network);
        let mut qemu = lab.spawn(Place::Host, &argv);
        let end = Instant::now() + BOOT;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(s) => break s,
                Err(_) if qemu.running() && Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                Err(e) => return Err(format!("{accelerator}: {e} {}", qemu.output())),
            }
        };
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("time-out");
        Ok(Guest { qemu, line: BufReader::new(stream), qmp })
    }

    /// Runs a command line of the guest's shell to its end; its exit status and what it printed.
    pub fn sh(&mut self, seconds: u64, command: &str) -> (i32, String) {
        let end = Instant::now() + Duration::from_secs(seconds);
        let command = command.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        self.line.get_mut().write_all(format!("{command}\n").as_bytes()).expect("the guest listens");
        let mut said = Vec::new();
        loop {
            let got = self.line.read_until(b'\n', &mut said);
            let text = String::from_utf8_lossy(&said);
            let last = text.rfind("@@ ").filter(|_| text.ends_with('\n'));
            if let Some(at) = last {
                return (text[at + 3..].trim().parse().expect("a status"), text[..at].to_owned());
            }
            let alive = got.as_ref().map_or(true, |n| *n > 0) && Instant::now() < end;
            assert!(alive, "`{command}` has no end after {seconds} s: {text}\n{}", self.qemu.output());
        }
    }

    /// As [`Guest::sh`], for a command that must succeed; what it printed.
    #[track_caller]
    pub fn ok(&mut self, seconds: u64, command: &str) -> String {
        let (status, text) = self.sh(seconds, command);
        assert_eq!(status, 0, "`{command}`: {text}");
        text
    }
}
