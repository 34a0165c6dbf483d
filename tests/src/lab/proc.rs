//! Processes in a lab.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a finished program left.
#[derive(Debug)]
pub struct Done {
    /// The command line.
    pub command: String,
    /// Its exit status as a shell gives it: 128+n for signal n, 124 if it ran out of time.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Done {
    /// Panics unless the program succeeded; gives its standard output, without white space at the ends.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{self}");
        self.stdout.trim()
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {} after {:?}", self.command, self.code, self.took)?;
        write!(f, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// Exit status as a shell gives it.
pub(super) fn shell_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs a command to its end.
pub(super) fn run(mut command: Command, input: &[u8]) -> Done {
    let text = format!("{command:?}");
    let begin = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{text}: {e}"));
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input).ok());
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).ok();
        bytes
    });
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).ok();
    let status = child.wait().expect("waits");
    feeder.join().ok();
    let errors = errors.join().unwrap_or_default();
    Done {
        command: text,
        code: shell_code(status),
        stdout: String::from_utf8_lossy(&output).into(),
        stderr: String::from_utf8_lossy(&errors).into(),
        took: begin.elapsed(),
    }
}

/// A program in the background. Dropped, it is killed; if the test fails, its output is printed.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Proc {
    pub(super) fn spawn(mut command: Command, name: &str, log: PathBuf) -> Proc {
        let file = fs::File::create(&log).expect("log file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("log file")).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Proc { child, name: name.to_owned(), log }
    }

    /// What it has written so far, to standard output and error.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into()
    }

    /// PID of the program itself as the machine's own PID namespace numbers it (nsenter stands before it).
    pub fn pid(&self) -> u32 {
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            match descend(self.child.id()) {
                Some(pid) => return pid,
                None if Instant::now() > end => return self.child.id(),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Whether it is still running.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal (`TERM`, `INT`, …).
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs");
    }

    /// Waits for its end; its exit status as a shell gives it. Panics if it takes too long.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("waits") {
                return shell_code(status);
            }
            assert!(Instant::now() < end, "{} still runs after {limit:?}:\n{}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process and all its descendants.
pub(super) fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        all.extend(children(all[at]));
        at += 1;
    }
    all
}

/// PIDs of the children of a process.
fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .flat_map(|t| {
            fs::read_to_string(t.path().join("children"))
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|p| p.parse().ok())
        .collect()
}

/// The first descendant that is not nsenter.
fn descend(pid: u32) -> Option<u32> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if comm.trim() != "nsenter" {
        return Some(pid);
    }
    children(pid).first().and_then(|&c| descend(c))
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.running() {
            self.signal("KILL");
            self.child.kill().ok();
        }
        self.child.wait().ok();
        if std::thread::panicking() {
            let output = self.output();
            let tail = output.char_indices().rev().nth(8000).map_or(0, |(i, _)| i);
            eprintln!("--- output of {}\n{}", self.name, &output[tail..]);
        }
    }
}
