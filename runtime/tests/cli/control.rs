//! Detached sandboxes: list, exec, stats, names.

use crate::kit::{finish, hibernet, listed, lives, sandboxes_work, unique_name, wait_until};
use vmm_sys_util::tempdir::TempDir;

/// A detached sandbox, ended with the test.
pub struct Detached {
    pub name: String,
    pub pid: i32,
}

impl Detached {
    pub fn start(hint: &str, options: &[&str], command: &[&str]) -> Detached {
        let name = unique_name(hint);
        let (code, out, err) = finish(hibernet(&["run", "--detach", "--name", &name]).args(options).arg("--").args(command));
        assert_eq!((code, out.trim(), err.as_str()), (0, name.as_str(), ""), "{err}");
        let pid = listed(&name).unwrap()["pid"].as_i64().unwrap() as i32;
        Detached { name, pid }
    }

    pub fn kill(&self, signal: &str) {
        let _ = std::process::Command::new("kill").args([signal, &self.pid.to_string()]).status();
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        self.kill("-TERM");
    }
}

#[test]
fn a_detached_sandbox_is_listed_and_entered() {
    if !sandboxes_work("detach") {
        return;
    }
    let port = crate::kit::free_port();
    let publish = format!("127.0.0.1:{port}:80/tcp");
    let sandbox = Detached::start("listed", &["-p", &publish, "--address", "10.1.2.3/24"], &["sleep", "1000"]);
    let entry = listed(&sandbox.name).unwrap();
    assert_eq!(entry["command"], serde_json::json!(["sleep", "1000"]));
    assert_eq!(entry["publish"], serde_json::json!([publish]));
    assert_eq!(entry["addresses"][0], "10.1.2.3");
    assert!(entry["uptime_seconds"].as_u64().unwrap() < 60);
    let (_, table, _) = finish(&mut hibernet(&["list"]));
    let line = table.lines().find(|l| l.starts_with(&sandbox.name)).unwrap();
    assert!(line.contains("10.1.2.3") && line.contains(&publish) && line.ends_with("sleep 1000"), "{table}");

    let dir = std::env::current_dir().unwrap();
    let script = "pwd; cat /proc/net/fib_trie /etc/resolv.conf; exit 9";
    let (code, out, err) = finish(&mut hibernet(&["exec", &sandbox.name, "--", "sh", "-c", script]));
    assert_eq!(code, 9, "{err}");
    assert!(out.starts_with(dir.to_str().unwrap()) && out.contains("10.1.2.3") && out.contains("nameserver 10.1.2.4"), "{out}");
    let (code, _, err) = finish(&mut hibernet(&["exec", &sandbox.name, "--", "nosuchprogram"]));
    assert_eq!(code, 127, "{err}");
    let (code, _, err) = finish(&mut hibernet(&["exec", &sandbox.name, "--", "sh", "-c", "kill -9 $$"]));
    assert_eq!(code, 137, "{err}");

    let (code, out, err) = finish(&mut hibernet(&["stats", &sandbox.name, "--json"]));
    assert_eq!(code, 0, "{err}");
    let stats: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(stats["stack"]["tx_frames"].as_u64().unwrap() > 0, "{out}");
    let (code, out, _) = finish(&mut hibernet(&["stats", &sandbox.name]));
    assert!(code == 0 && out.contains("stack.tx_frames "), "{out}");

    // From inside nobody can ask, so that nobody there can change anything.
    let own = env!("CARGO_BIN_EXE_hibernet");
    let (code, out, err) = finish(&mut hibernet(&["exec", &sandbox.name, "--", own, "stats", &sandbox.name]));
    assert!(code == 77 && out.is_empty() && err.contains("another network namespace"), "{code} {out} {err}");

    // What was executed inside ends with the sandbox.
    let mut inside = hibernet(&["exec", &sandbox.name, "--", "sleep", "1003"]).spawn().unwrap();
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    wait_until("it is in the sandbox", || std::fs::read_link(format!("/proc/{}/ns/net", inside.id())).is_ok_and(|n| n != here));
    sandbox.kill("-TERM");
    wait_until("the supervisor has ended", || !lives(sandbox.pid));
    assert!(!inside.wait().unwrap().success());
    assert!(listed(&sandbox.name).is_none());
}

#[test]
fn names_are_unique() {
    if !sandboxes_work("names") {
        return;
    }
    let sandbox = Detached::start("unique", &[], &["sleep", "1000"]);
    for detach in [&["--detach"][..], &[]] {
        let (code, out, err) = finish(hibernet(&["run", "--name", &sandbox.name]).args(detach).args(["--", "true"]));
        assert_eq!((code, out.as_str()), (75, ""), "{err}");
        assert!(err.contains(&sandbox.name) && err.contains("taken"), "{err}");
    }
    for args in [&["exec", "no-such-sandbox", "--", "true"][..], &["stats", "no-such-sandbox"]] {
        let (code, _, err) = finish(&mut hibernet(args));
        assert!(code == 75 && err.contains("hibernet list"), "{err}");
    }
    // A supervisor that was killed does not hold its name.
    sandbox.kill("-KILL");
    wait_until("the supervisor has ended", || !lives(sandbox.pid));
    let again = finish(&mut hibernet(&["run", "--name", &sandbox.name, "--", "true"]));
    assert_eq!(again.0, 0, "{}", again.2);
}

#[test]
fn a_detached_command_writes_where_it_was_told() {
    if !sandboxes_work("output") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let file = dir.as_path().join("out");
    let go = dir.as_path().join("go");
    let script = format!("echo out; echo err >&2; cat; until [ -e {} ]; do sleep 0.02; done; echo end", go.display());
    let command = ["sh", "-c", &script];
    let sandbox = Detached::start("output", &["--output", file.to_str().unwrap()], &command);
    std::fs::write(&go, "").unwrap();
    wait_until("it has ended", || !lives(sandbox.pid));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "out\nerr\nend\n");
}

/// What goes wrong while a detached sandbox is started is told by the command that started it.
#[test]
fn a_detached_start_that_fails_says_so() {
    if !sandboxes_work("detached failure") {
        return;
    }
    let name = unique_name("fails");
    let (code, out, err) = finish(&mut hibernet(&["run", "--detach", "--name", &name, "--", "nosuchprogram"]));
    assert_eq!((code, out.as_str()), (127, ""), "{err}");
    assert!(err.contains("nosuchprogram"), "{err}");
    assert!(listed(&name).is_none());
}

#[test]
fn doctor_agrees_with_run() {
    let (run, _, _) = finish(&mut hibernet(&["run", "--", "true"]));
    let (code, out, err) = finish(&mut hibernet(&["doctor", "--json"]));
    assert_eq!(code == 0, run == 0, "{out} {err}");
    let needs: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    for n in &needs {
        assert!(["ok", "degraded", "missing"].contains(&n["state"].as_str().unwrap()), "{n}");
        assert_eq!(n["state"] == "ok", n["fix"].is_null(), "{n}");
    }
    let (_, text, _) = finish(&mut hibernet(&["doctor"]));
    assert_eq!(text.lines().count(), needs.len() + 1, "{text}");
}
