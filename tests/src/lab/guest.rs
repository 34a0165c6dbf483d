//! A virtual machine: QEMU with a packaged Debian kernel, busybox and curl.

use super::net::{Lab, Place};
use super::proc::Proc;
use super::skip;
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
}

/// Kernel and initial file system, built once. Says what is not tested if they cannot be had.
fn files() -> Option<PathBuf> {
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
        let dir = files()?;
        let known = dir.join("accelerator");
        let works = std::fs::read_to_string(&known).ok();
        let tried = ACCELERATORS.into_iter().filter(|a| works.as_ref().is_none_or(|w| w == a));
        let mut said = String::new();
        for accelerator in tried {
            match Guest::boot_with(lab, &dir, accelerator, network) {
                Ok(guest) => {
                    std::fs::write(&known, accelerator).expect("file");
                    return Some(guest);
                }
                Err(why) => said = why,
            }
        }
        panic!("the guest does not boot: {said}");
    }

    fn boot_with(lab: &Lab, dir: &Path, accelerator: &str, network: &[&str]) -> Result<Guest, String> {
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
        let mut argv =
            vec!["qemu-system-x86_64", "-accel", accelerator, "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none"];
        argv.extend(["-no-reboot", "-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0 quiet panic=-1"]);
        argv.extend(["-serial", "stdio", "-chardev", &line, "-serial", "chardev:line"]);
        argv.extend(network);
        let mut qemu = lab.spawn(Place::Host, &argv);
        let end = Instant::now() + BOOT;
        let mut failed = |stream: Option<&str>| {
            let output = qemu.output();
            let broken = !qemu.running() || output.contains("KVM internal error") || Instant::now() > end;
            broken.then(|| format!("{accelerator}: {} {output}", stream.unwrap_or_default()))
        };
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(s) => break s,
                Err(_) => match failed(None) {
                    Some(why) => return Err(why),
                    None => std::thread::sleep(Duration::from_millis(20)),
                },
            }
        };
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("time-out");
        let mut line = BufReader::new(stream);
        let mut said = Vec::new();
        while !said.ends_with(b"@@ ready\n") {
            if let (Err(_) | Ok(0), Some(why)) = (line.read_until(b'\n', &mut said), failed(None)) {
                return Err(why);
            }
        }
        Ok(Guest { qemu, line })
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
