//! A sandbox that stays while a test works in it.

use super::net::{Lab, Place};
use super::proc::{self, Done, Proc};
use super::wait_until;
use std::time::Duration;

/// `hibernet run` in the background, with a command that waits.
#[derive(Debug)]
pub struct Sandbox<'a> {
    lab: &'a Lab,
    /// The supervisor's process.
    pub supervisor: Proc,
    init: String,
}

impl<'a> Sandbox<'a> {
    /// Starts a sandbox and waits until its command runs.
    pub fn start(lab: &'a Lab, options: &[&str]) -> Sandbox<'a> {
        let file = lab.path(&format!("sandbox-{}", lab.unique()));
        let script = format!("echo $$ >{file}.new && mv {file}.new {file} && exec sleep 100000");
        let mut args = vec!["run"];
        args.extend_from_slice(options);
        args.extend_from_slice(&["--", "bash", "-c", &script]);
        let mut supervisor = lab.spawn_hibernet(&args);
        wait_until("the sandbox's command runs", Duration::from_secs(20), || {
            assert!(supervisor.running(), "hibernet ended early:\n{}", supervisor.output());
            std::fs::exists(&file).unwrap_or(false)
        });
        let init = std::fs::read_to_string(&file).expect("PID of the command").trim().to_owned();
        Sandbox { lab, supervisor, init }
    }

    fn argv<'b>(&'b self, argv: &[&'b str]) -> Vec<&'b str> {
        let mut all = vec!["nsenter", "-t", &self.init, "-U", "--preserve-credentials", "-n", "-m", "--"];
        all.extend_from_slice(argv);
        all
    }

    /// Runs a program in the sandbox to its end.
    pub fn run(&self, seconds: u32, argv: &[&str]) -> Done {
        self.lab.run(Place::Host, seconds, &self.argv(argv))
    }

    /// Runs a shell script in the sandbox to its end.
    pub fn sh(&self, seconds: u32, script: &str) -> Done {
        self.run(seconds, &["bash", "-c", script])
    }

    /// Starts a program in the sandbox in the background.
    pub fn spawn(&self, argv: &[&str]) -> Proc {
        self.lab.spawn(Place::Host, &self.argv(argv))
    }

    /// Starts a server in the sandbox and waits until it listens at a TCP port there.
    pub fn serve(&self, port: u16, argv: &[&str]) -> Proc {
        let mut server = self.spawn(argv);
        let end = format!(":{port:04X}");
        wait_until(&format!("{argv:?} listens at {port}"), Duration::from_secs(20), || {
            assert!(server.running(), "ended early:\n{}", server.output());
            let table = self.run(5, &["cat", "/proc/self/net/tcp", "/proc/self/net/tcp6"]).stdout;
            table.lines().any(|l| {
                let mut words = l.split_whitespace().skip(1);
                words.next().is_some_and(|a| a.ends_with(&end)) && words.nth(1) == Some("0A")
            })
        });
        server
    }

    /// PIDs of hibernet's own processes, supervisor first; the command and its children are not among them.
    fn own(&self) -> Vec<u32> {
        let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let exe = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let supervisor = self.supervisor.pid();
        proc::tree(supervisor).into_iter().filter(|p| name(p).contains("hibernet") || exe(p) == exe(&supervisor)).collect()
    }

    /// PID of the network worker, in the machine's own PID namespace.
    pub fn worker(&self) -> u32 {
        *self.own().last().expect("the supervisor runs")
    }

    /// PID of the network worker in the lab's PID namespace (it has one of its own below that).
    pub fn worker_inside(&self) -> u32 {
        let numbers = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("hibernet runs");
            let line = status.lines().find_map(|l| l.strip_prefix("NSpid:")).expect("NSpid").to_owned();
            line.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>()
        };
        numbers(self.worker())[numbers(self.supervisor.pid()).len() - 1]
    }

    /// Resident memory in KiB of hibernet's own processes: supervisor and worker, without the command. What they have of their program's file, which
    /// they share, counts once.
    pub fn resident_kib(&self) -> u64 {
        let status = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
        let kib = |s: &str, what: &str| {
            let line = s.lines().find_map(|l| l.strip_prefix(what))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let all: Vec<String> = self.own().iter().filter_map(status).collect();
        let file = all.iter().filter_map(|s| kib(s, "RssFile:")).max().unwrap_or(0);
        let own: u64 = all.iter().flat_map(|s| ["RssAnon:", "RssShmem:"].map(|w| kib(s, w).unwrap_or(0))).sum();
        own + file
    }
}

impl Drop for Sandbox<'_> {
    /// Ends it as a user would, so that its ports are free afterwards.
    fn drop(&mut self) {
        if self.supervisor.running() {
            self.supervisor.signal("TERM");
            let end = std::time::Instant::now() + Duration::from_secs(5);
            while self.supervisor.running() && std::time::Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
