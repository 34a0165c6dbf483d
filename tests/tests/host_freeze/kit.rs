//! What the suites of this folder share: streams through a sandbox, its sleep and its wake.

use hibernet_tests::lab::{Done, Family, Lab, Place, Proc, Sandbox, wait_until};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const NAME: &str = "nap";
pub const SOON: Duration = Duration::from_secs(20);

/// How host sockets survive a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The supervisor keeps them.
    Hold,
    /// The image carries them.
    Repair,
}

impl Tier {
    pub const BOTH: [Tier; 2] = [Tier::Hold, Tier::Repair];

    /// As reports name it.
    pub fn name(self) -> &'static str {
        if self == Tier::Hold { "hold" } else { "repair" }
    }

    /// What `checkpoint` and `restore` are told.
    pub fn options(self) -> &'static [&'static str] {
        if self == Tier::Hold { &[] } else { &["--repair"] }
    }
}

pub fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// The last line of a program's output that begins with `word`, as numbers by name.
pub fn numbers(output: &str, word: &str) -> Option<HashMap<String, u64>> {
    // A line may be half written.
    let whole = &output[..output.rfind('\n').map_or(0, |i| i + 1)];
    let line = whole.lines().rev().find(|l| l.split(' ').next() == Some(word))?;
    line.split(' ').filter_map(|w| w.split_once('=')).map(|(k, v)| Some((k.to_owned(), v.parse().ok()?))).collect()
}

/// Both ends of connections through the sandbox, `streams` at each.
pub struct Streams {
    pub client: Proc,
    pub server: Proc,
    stop: String,
}

/// Who opens the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The guest, to a server in *remote* at this port.
    Out(u16),
    /// A client in *remote*, to this published port of the host, which is that port of the guest.
    In(u16, u16),
}

static STOPS: AtomicU32 = AtomicU32::new(0);

fn argv<'a>(words: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    [&[env!("CARGO_BIN_EXE_streams")], words, options].concat()
}

impl Streams {
    /// `count` connections; `client` and `server` are more options for the ends. Waits until all are open.
    pub fn open(s: &Sandbox<'_>, lab: &Lab, family: Family, way: Way, count: u32, client: &[&str], server: &[&str]) -> Streams {
        let (stop, conns) = (Streams::stop_file(lab), format!("conns={count}"));
        let stop_option = format!("stop={stop}");
        let common = [conns.as_str(), &stop_option];
        let (client, server) = ([&common, client].concat(), [&common, server].concat());
        let streams = match way {
            Way::Out(port) => {
                let text = port.to_string();
                let server = lab.serve(Place::Remote, port, &argv(&["serve", family.any(), &text], &server));
                let client = s.spawn(&argv(&["connect", family.remote(), &text], &client));
                Streams { client, server, stop }
            }
            Way::In(host, guest) => {
                let server = s.serve(guest, &argv(&["serve", family.any(), &guest.to_string()], &server));
                let client = lab.spawn(Place::Remote, &argv(&["connect", family.host(), &host.to_string()], &client));
                Streams { client, server, stop }
            }
        };
        streams.wait_up(count);
        streams
    }

    pub fn stop_file(lab: &Lab) -> String {
        lab.path(&format!("stop-{}", STOPS.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn of(client: Proc, server: Proc, stop: String) -> Streams {
        Streams { client, server, stop }
    }

    pub fn wait_up(&self, count: u32) {
        wait_until(&format!("{count} connections"), SOON, || {
            [&self.client, &self.server].iter().all(|p| at(p, "up") == u64::from(count))
        });
    }

    /// Waits until every connection has received `more` bytes at both ends.
    pub fn wait_moved(&self, more: u64) {
        let ends = [&self.client, &self.server];
        let from = ends.map(|p| at(p, "least"));
        wait_until("data move on every connection, both ways", Duration::from_secs(30), || {
            ends.iter().zip(from).all(|(p, from)| at(p, "least") >= from + more)
        });
    }

    /// As [`Streams::finish`], however much was sent.
    #[track_caller]
    pub fn end(self) {
        self.finish();
    }

    /// Ends it, and checks that both ends are of one mind. Bytes that client and server have sent.
    #[track_caller]
    pub fn finish(mut self) -> [u64; 2] {
        std::fs::write(&self.stop, "").expect("file");
        let codes = [self.client.wait(Duration::from_secs(60)), self.server.wait(Duration::from_secs(60))];
        let (client, server) = (self.client.output(), self.server.output());
        let wrong = |o: &str| o.lines().filter(|l| l.starts_with("WRONG")).take(5).collect::<Vec<_>>().join("\n");
        assert_eq!(codes, [0, 0], "client: {}\nserver: {}", wrong(&client), wrong(&server));
        let [client, server] = [client, server].map(|o| numbers(&o, "done").unwrap_or_else(|| panic!("no end: {o}")));
        for (sent, received) in [("sent", "received"), ("sent-mark", "received-mark")] {
            assert_eq!(client[sent], server[received], "client to server: {sent}");
            assert_eq!(server[sent], client[received], "server to client: {sent}");
        }
        [client["sent"], server["sent"]]
    }
}

/// A number of an end's last report.
pub fn at(p: &Proc, what: &str) -> u64 {
    let output = p.output();
    assert!(!output.contains("WRONG"), "{}", output.lines().find(|l| l.starts_with("WRONG")).unwrap_or_default());
    numbers(&output, "at").map_or(0, |n| n[what])
}

/// JSON on standard output of a command that must succeed.
#[track_caller]
pub fn json(done: &Done) -> Value {
    serde_json::from_str(done.ok()).unwrap_or_else(|e| panic!("{e}: {done}"))
}

/// State of the sandbox as `list` has it.
pub fn state(lab: &Lab) -> String {
    let list = json(&lab.hibernet(10, &["list", "--json"]));
    let entry = list.as_array().expect("a list").iter().find(|e| e["name"] == NAME);
    entry.map_or("none", |e| e["state"].as_str().expect("a state")).to_owned()
}

/// Puts the sandbox to sleep; what is reported. Its worker has ended then.
#[track_caller]
pub fn sleep(s: &Sandbox<'_>, lab: &Lab, file: &str, options: &[&str]) -> Value {
    let worker = s.worker();
    let report = json(&lab.hibernet(60, &[&["checkpoint", NAME, file, "--json"], options].concat()));
    assert_eq!(state(lab), "asleep");
    assert!(!std::path::Path::new(&format!("/proc/{worker}")).exists(), "the worker is still there");
    report
}

/// Wakes it; what is reported, how long the command took.
#[track_caller]
pub fn wake(lab: &Lab, file: &str, options: &[&str]) -> (Value, Duration) {
    let begin = Instant::now();
    let report = json(&lab.hibernet(60, &[&["restore", file, "--json"], options].concat()));
    let took = begin.elapsed();
    assert_eq!(state(lab), "running");
    (report, took)
}

/// How many flows came to which outcome: resumed, reset, skipped.
pub fn outcomes(report: &Value) -> [usize; 3] {
    let flows = report["flows"].as_array().expect("flows");
    ["resumed", "reset", "skipped"].map(|o| flows.iter().filter(|f| f["outcome"] == o).count())
}

/// All flows of a wake went on.
#[track_caller]
pub fn all_resumed(report: &Value, at_least: usize) {
    let [resumed, reset, skipped] = outcomes(report);
    assert!(resumed >= at_least && reset == 0 && skipped == 0, "{report:#}");
}

/// Microseconds of a freeze.
pub fn frozen_us(report: &Value) -> u64 {
    ["quiesce_ns", "connections_ns", "stack_ns", "sockets_ns"]
        .iter()
        .map(|k| report["times"][k].as_u64().expect("a time"))
        .sum::<u64>()
        / 1000
}
