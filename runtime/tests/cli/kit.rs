//! What the tests share.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vmm_sys_util::tempdir::TempDir;

/// Says that something was not tested and why; a failure where nothing may be left out.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED: {test}: {why}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("HIBERNET_SKIP_LOG")
        && let Ok(mut f) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        writeln!(f, "{line}").ok();
    }
    assert!(std::env::var("HIBERNET_REQUIRE_ALL").as_deref() != Ok("1"), "{line}");
}

/// Whether sandboxes can be made here at all; if not, the test is skipped.
pub fn sandboxes_work(test: &str) -> bool {
    static WORK: OnceLock<Option<String>> = OnceLock::new();
    let why = WORK.get_or_init(|| {
        let out = Command::new(env!("CARGO_BIN_EXE_hibernet")).arg("doctor").output().unwrap();
        (!out.status.success()).then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    });
    if let Some(why) = why {
        skip(test, why);
    }
    why.is_none()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `hibernet` with arguments.
pub fn hibernet(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_hibernet"));
    c.args(args).stdin(Stdio::null());
    c
}

/// `hibernet run` of a shell script.
pub fn run_sh(options: &[&str], script: &str) -> Command {
    let mut c = hibernet(&["run"]);
    c.args(options).args(["--", "sh", "-c", script]);
    c
}

/// Kinds of links that can be made here.
pub fn links() -> Vec<&'static str> {
    let tap = finish(&mut hibernet(&["run", "--link", "tap", "--", "true"])).0 == 0;
    if tap { vec!["tap", "packet"] } else { vec!["packet"] }
}

/// Exit status (128 + signal if it was killed), standard output and standard error.
pub fn finish(c: &mut Command) -> (i32, String, String) {
    parts(c.output().unwrap())
}

pub fn parts(out: Output) -> (i32, String, String) {
    use std::os::unix::process::ExitStatusExt;
    let code = out.status.code().unwrap_or_else(|| 128 + out.status.signal().unwrap_or(0));
    (code, String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// A program in the background, killed when the test ends however it ends.
pub struct Background(pub Child);

impl Background {
    pub fn start(c: &mut Command) -> Background {
        Background(c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn finish(mut self) -> (i32, String, String) {
        use std::io::Read;
        let mut out = Vec::new();
        let mut err = Vec::new();
        self.0.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut err).unwrap();
        parts(Output { status: self.0.wait().unwrap(), stdout: out, stderr: err })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a condition holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: waited until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A name that no other sandbox has.
pub fn unique_name(hint: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}-{hint}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A TCP port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}

/// The running sandbox of this name, as `list --json` shows it.
pub fn listed(name: &str) -> Option<serde_json::Value> {
    let (code, out, err) = finish(&mut hibernet(&["list", "--json"]));
    assert_eq!(code, 0, "{err}");
    let all: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    all.into_iter().find(|s| s["name"] == name)
}

/// Whether a process lives (and is not merely unburied).
pub fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.rsplit_once(") ").unwrap().1.starts_with(['Z', 'X']))
}

/// An ordinary user with a copy of the binary that it can execute and a directory of its own. Not root, whoever runs the tests.
pub struct OrdinaryUser {
    dir: TempDir,
}

const NOBODY: u32 = 65534;

impl OrdinaryUser {
    pub fn new() -> OrdinaryUser {
        use std::os::unix::fs::{PermissionsExt, chown};
        let dir = TempDir::new_with_prefix("/tmp/hibernet-cli-test").unwrap();
        let binary = dir.as_path().join("hibernet");
        std::fs::copy(env!("CARGO_BIN_EXE_hibernet"), &binary).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = dir.as_path().join("runtime");
        std::fs::create_dir(&runtime).unwrap();
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::set_permissions(dir.as_path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            chown(&runtime, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        OrdinaryUser { dir }
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.as_path().join("runtime")
    }

    /// `hibernet` with arguments, as that user.
    pub fn hibernet(&self, args: &[&str]) -> Command {
        let mut c = Command::new(self.dir.as_path().join("hibernet"));
        c.args(args).stdin(Stdio::null()).current_dir("/").env("XDG_RUNTIME_DIR", self.runtime_dir());
        if is_root() {
            c.uid(NOBODY).gid(NOBODY);
        }
        c
    }
}
