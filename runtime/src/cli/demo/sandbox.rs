//! The demo's sandbox: `hibernet run` of the demo's program, and a directory with its rules and image.

use crate::control::registry::{Entry, Registry};
use crate::sandbox::failure::{Failure, Status};
use std::cell::RefCell;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// TCP connections of the program's.
pub(super) const CONNECTIONS: u64 = 8;
/// Where the program believes the server to be: an address of nobody's (RFC 5737).
pub(super) const WORLD: &str = "192.0.2.7:7";
/// What stands for the host's loopback in the sandbox; not the gateway, whose packets FORWARD does not see.
pub(super) const LOOPBACK: &str = "10.0.2.4";
/// How long the sandbox may take to end when it was told to.
const ENDING: Duration = Duration::from_secs(10);

/// A running sandbox. It ends with this.
#[derive(Debug)]
pub(super) struct Sandbox {
    name: String,
    registry: Registry,
    run: RefCell<Child>,
    /// The program ends when this is closed.
    alive: Option<ChildStdin>,
    directory: PathBuf,
}

/// What leads the program's connections to the server at this port, and drops all else.
pub(super) fn rules(port: u16) -> String {
    let (address, world_port) = WORLD.split_once(':').unwrap_or((WORLD, "7"));
    format!(
        "*nat\n\
         :PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
         -A PREROUTING -d {address}/32 -p tcp --dport {world_port} -j DNAT --to-destination {LOOPBACK}:{port}\n\
         COMMIT\n\
         *filter\n\
         :INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n\
         -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
         -A FORWARD -p tcp -m conntrack --ctstate NEW --ctorigdst {address} -j ACCEPT\n\
         COMMIT\n"
    )
}

impl Sandbox {
    /// Starts it; its program goes for the server at this port.
    pub(super) fn start(port: u16) -> Result<Sandbox, Failure> {
        let id = std::process::id();
        let registry = Registry::open()?;
        let directory = std::env::temp_dir().join(format!("hibernet-demo-{id}"));
        let fail = |e| Failure::os(Status::File, format_args!("cannot write in {}", directory.display()), e);
        DirBuilder::new().mode(0o700).create(&directory).map_err(fail)?;
        let written = std::fs::write(directory.join("rules"), rules(port)).map_err(fail);
        let started = written.and_then(|()| run(&format!("demo-{id}"), &directory));
        match started {
            Ok(mut child) => {
                let alive = child.stdin.take();
                Ok(Sandbox { name: format!("demo-{id}"), registry, run: RefCell::new(child), alive, directory })
            }
            Err(e) => {
                let _ = std::fs::remove_dir_all(&directory);
                Err(e)
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where its image goes.
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    /// What the registry knows of it.
    pub(super) fn entry(&self) -> Result<Entry, Failure> {
        self.registry.get(&self.name)
    }

    fn ended(&self) -> Option<u8> {
        self.run.borrow_mut().try_wait().ok().flatten().map(|s| s.code().map_or(1, |c| c as u8))
    }

    /// That it still runs; if not, it has said why.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.ended() {
            None | Some(0) => Ok(()),
            Some(status) => {
                Err(Failure::new(Status::Internal, format!("the demo's sandbox has ended with exit status {status}")))
            }
        }
    }

    /// Waits for the end of its program, which has done its work.
    pub(super) fn end(self) -> Result<(), Failure> {
        let end = Instant::now() + ENDING;
        while self.ended().is_none() {
            if Instant::now() > end {
                return Err(Failure::new(Status::Internal, "the demo's sandbox does not end"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.check()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.alive = None;
        let end = Instant::now() + ENDING;
        while self.ended().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let child = self.run.get_mut();
        // Does nothing to one that has ended.
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn run(name: &str, directory: &Path) -> Result<Child, Failure> {
    let this = "/proc/self/exe";
    Command::new(this)
        .args(["run", "--name", name, "--no-ipv6", "--log-level", "error", "--map-host-loopback", LOOPBACK, "--rules"])
        .arg(directory.join("rules"))
        .args(["--", this, "demo-guest", WORLD, &CONNECTIONS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| Failure::os(Status::Resources, "cannot start the demo's sandbox", e))
}
