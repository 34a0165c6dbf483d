//! What a sandbox costs: memory, wake-ups, descriptors, system calls, time to start. With the release build.

use hibernet_tests::lab::{Family, Lab, Place, Sandbox, wait_until};
use std::time::Duration;

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

#[test]
fn an_idle_sandbox_sleeps_and_is_small() {
    let Some(lab) = Lab::new(&[]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", sandbox.worker())).expect("the worker runs");
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).expect("a line").to_owned();
        line.split_whitespace().last().and_then(|n| n.parse::<u64>().ok()).expect("a number")
    };
    // The guest's kernel says hello for a while (multicast reports, solicitations).
    wait_until("five seconds pass without a wake-up", Duration::from_secs(60), || {
        let before = switches();
        std::thread::sleep(Duration::from_secs(5));
        switches() == before
    });
    let kib = sandbox.resident_kib();
    eprintln!("{kib} KiB resident");
    assert!(kib < 12 << 10, "{kib} KiB resident with no flow");
}

#[test]
fn a_sandbox_starts_soon() {
    let Some(lab) = Lab::new(&[]) else { return };
    // The quickest of some: others may use the machine.
    let best = |argv: &[&str]| {
        (0..10)
            .map(|_| {
                let d = lab.run(Place::Host, 10, argv);
                d.ok();
                d.took
            })
            .min()
            .expect("runs")
    };
    let bin = lab.binary();
    let (bare, with) = (best(&["true"]), best(&[&bin, "run", "--", "true"]));
    eprintln!("true: {bare:?}, in a sandbox: {with:?}");
    assert!(with.saturating_sub(bare) < Duration::from_millis(50), "{with:?} in a sandbox, {bare:?} without");
}

#[test]
fn a_thousand_published_ports_cost_little() {
    let Some(lab) = Lab::new(&["nc", "python3"]) else { return };
    let few = Sandbox::start(&lab, &["-p", "8080:8080"]).resident_kib();
    let sandbox = Sandbox::start(&lab, &["-p", "20000-20999:20000"]);
    let many = sandbox.resident_kib();
    eprintln!("{few} KiB resident with one port, {many} with a thousand");
    assert!(many < few + 2048, "{few} KiB resident with one port, {many} with a thousand");
    // All of them work, whatever the number of their descriptor.
    let server = sandbox.spawn(&strings(&lab.peer("echo.py", &["tcp", Family::V4.any(), "20000", "20500", "20999"])));
    wait_until("the servers are ready", Duration::from_secs(20), || server.output().contains("ready"));
    for port in ["20000", "20500", "20999"] {
        let done = lab.sh(Place::Remote, 10, &format!("printf hello | nc -N -w 5 10.99.0.2 {port}"));
        assert!(done.ok().starts_with(port) && done.ok().ends_with("hello"), "{done}");
    }
}

#[test]
fn system_calls_per_mebibyte() {
    let Some(lab) = Lab::new(&["strace", "curl", "python3"]) else { return };
    let file = lab.path("big");
    lab.run(Place::Remote, 60, &strings(&lab.peer("stream.py", &[&file, "104857600"]))).ok();
    let dir = lab.dir().to_string_lossy().into_owned();
    let _server = lab.serve_peer(Place::Remote, "http_store.py", &[&dir], Family::V4, 8000);
    let url = "http://10.99.0.1:8000/big";
    for (name, transfer) in [("down", format!("curl -sSf -o /dev/null {url}")), ("up", format!("curl -sSf -T {file} {url}"))] {
        let sandbox = Sandbox::start(&lab, &[]);
        let (worker, table) = (sandbox.worker_inside().to_string(), lab.path(name));
        let mut strace = lab.spawn(Place::Host, &["strace", "-f", "-c", "-o", &table, "-p", &worker]);
        wait_until("strace is attached", Duration::from_secs(10), || strace.output().contains("attached"));
        sandbox.sh(60, &transfer).ok();
        strace.signal("INT");
        strace.wait(Duration::from_secs(10));
        let text = std::fs::read_to_string(&table).expect("strace's table");
        let total = text.lines().find(|l| l.ends_with("total")).unwrap_or_else(|| panic!("no total in:\n{text}"));
        let calls: u64 = total.split_whitespace().nth(3).and_then(|n| n.parse().ok()).expect("a number of calls");
        eprintln!("{name}: {} system calls per MiB\n{text}", calls / 100);
        // A super-segment carries 64 KiB; read or peeked, sent, acknowledged, consumed.
        assert!(calls / 100 < 250, "{name}: {} system calls per MiB:\n{text}", calls / 100);
    }
}
