//! Pause and resume, and the supervisor's socket.

use crate::control::Detached;
use crate::kit::{Background, finish, hibernet, listed, lives, run_sh, sandboxes_work, unique_name, wait_until};
use hibernet::control::registry::Registry;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// What a command that must succeed prints.
fn prints(args: &[&str]) -> String {
    let (code, out, err) = finish(&mut hibernet(args));
    assert_eq!((code, err.as_str()), (0, ""), "{args:?}: {out}");
    out
}

#[test]
fn what_comes_while_paused_waits() {
    if !sandboxes_work("pause") {
        return;
    }
    let host = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = host.local_addr().unwrap().port();
    let sandbox = Detached::start("pause", &["--map-host-loopback", "10.0.2.2"], &["sleep", "1000"]);
    let name = &sandbox.name;
    assert_eq!(listed(name).unwrap()["state"], "running");
    assert_eq!(prints(&["pause", name]), format!("{name} is paused\n"));
    assert_eq!(prints(&["pause", name]), format!("{name} is already paused\n"));
    let entry = listed(name).unwrap();
    assert!(entry["state"] == "paused" && entry["since"].as_u64().unwrap() > 1_700_000_000, "{entry}");
    assert!(prints(&["list"]).lines().any(|l| l.starts_with(name) && l.contains(" paused ")));
    // Requests are answered all the same.
    assert!(prints(&["stats", name]).contains("stack."));

    let url = format!("http://10.0.2.2:{port}/");
    let asking = Background::start(&mut hibernet(&["exec", name, "--", "curl", "-sS", "-m", "20", &url]));
    host.set_nonblocking(true).unwrap();
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        assert_eq!(host.accept().map(drop).unwrap_err().kind(), ErrorKind::WouldBlock);
        std::thread::sleep(Duration::from_millis(10));
    }
    let resumed: serde_json::Value = serde_json::from_str(&prints(&["resume", name, "--json"])).unwrap();
    assert_eq!(resumed, serde_json::json!({ "name": name, "state": "running", "changed": true }));
    host.set_nonblocking(false).unwrap();
    let (mut client, _) = host.accept().unwrap();
    assert!(client.read(&mut [0; 4096]).unwrap() > 0);
    client.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
    drop(client);
    assert_eq!(asking.finish(), (0, "hello".into(), String::new()));
    assert_eq!(prints(&["resume", name]), format!("{name} is already running\n"));
    assert_eq!(listed(name).unwrap()["state"], "running");
}

#[test]
fn who_may_not_ask_is_told_so() {
    if !sandboxes_work("pause refused") {
        return;
    }
    let (code, _, err) = finish(&mut hibernet(&["pause", "no-such-sandbox"]));
    assert!(code == 75 && err.contains("hibernet list"), "{err}");
    let sandbox = Detached::start("asked", &[], &["sleep", "1000"]);
    let own = env!("CARGO_BIN_EXE_hibernet");
    let (code, out, err) = finish(&mut hibernet(&["exec", &sandbox.name, "--", own, "pause", &sandbox.name]));
    assert!(code == 77 && out.is_empty() && err.contains("another network namespace"), "{code} {out} {err}");
    assert_eq!(listed(&sandbox.name).unwrap()["state"], "running");
}

/// What the supervisor of a sandbox says to these bytes.
fn said_to(name: &str, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(Registry::open().unwrap().lifecycle_socket(name)).unwrap();
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    // Who is refused in the middle of a long request finds the connection reset, after the answer.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn clients_that_misbehave_harm_nobody() {
    if !sandboxes_work("supervisor's clients") {
        return;
    }
    let sandbox = Detached::start("rude", &[], &["sleep", "1000"]);
    let name = &sandbox.name;
    let socket = Registry::open().unwrap().lifecycle_socket(name);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&socket.metadata().unwrap().permissions()) & 0o7777, 0o600);
    for request in [&b"\n"[..], b"nonsense\n", b"{\"request\":\"fly\"}\n", b"{\"request\":\"pause\",\"more\":1}\n", b"\xff\n"] {
        let answer = said_to(name, request);
        assert!(answer.starts_with(r#"{"error":{"kind":"request""#), "{request:?}: {answer}");
    }
    assert!(said_to(name, &vec![b'x'; 5 << 20]).starts_with(r#"{"error":{"kind":"request""#));
    assert_eq!(said_to(name, b"{\"request\":\"resume\"}\n"), "{\"ok\":{\"state\":\"running\",\"changed\":false}}\n");
    // As many as there may be that say nothing: they are sent away in time, and who comes later is served.
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(prints(&["pause", name]), format!("{name} is paused\n"));
    // One that asks and does not wait for the answer.
    UnixStream::connect(&socket).unwrap().write_all(b"{\"request\":\"resume\"}\n").unwrap();
    wait_until("the network goes on", || listed(name).unwrap()["state"] == "running");
    drop(silent);
    assert!(lives(sandbox.pid));
}

/// Neither process leaves the other, or the command, behind.
#[test]
fn the_end_of_either_process_while_paused() {
    if !sandboxes_work("ends while paused") {
        return;
    }
    let pids = |name: &str| {
        let e = listed(name).unwrap();
        ["pid", "worker"].map(|k| e[k].as_i64().unwrap() as i32)
    };
    let kill = |pid: i32| assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    let name = unique_name("worker-ends");
    let run = Background::start(&mut run_sh(&["--name", &name], "exec sleep 1000"));
    wait_until("it runs", || listed(&name).is_some_and(|e| e["worker"] != 0));
    prints(&["pause", &name]);
    kill(pids(&name)[1]);
    let (code, _, err) = run.finish();
    assert!(code == 76 && err.contains("ended unexpectedly (signal 9)"), "{code} {err}");

    let sandbox = Detached::start("supervisor-ends", &[], &["sleep", "1000"]);
    prints(&["pause", &sandbox.name]);
    let [supervisor, worker] = pids(&sandbox.name);
    kill(supervisor);
    wait_until("the worker has ended", || !lives(worker));
    assert!(listed(&sandbox.name).is_none());
    assert!(!Registry::open().unwrap().lifecycle_socket(&sandbox.name).exists());
}

#[test]
fn the_workers_command_is_not_for_people() {
    let (code, out, err) = finish(&mut hibernet(&["network-worker", "77"]));
    assert!(code == 2 && out.is_empty() && err.contains("for hibernet itself"), "{code} {err}");
    assert!(!prints(&["--help"]).contains("network-worker"));
}
