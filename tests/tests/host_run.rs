//! `hibernet run` as a command: exit statuses, signals, terminal, mistakes, what it sets up, and that nothing is left of it.

use hibernet_tests::lab::{DNS4, DNS6, Done, GATEWAY4, GATEWAY6, GUEST4, GUEST6, HOST4, Lab, Place, Sandbox, wait_until};
use std::time::Duration;

/// Exit statuses of hibernet's own (`hibernet --help` lists them).
const USAGE: i32 = 2;
const NAMESPACES: i32 = 71;
const PORT: i32 = 73;
const RESOURCES: i32 = 74;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

#[test]
fn the_commands_exit_status_is_hibernets() {
    let Some(lab) = Lab::new(&[]) else { return };
    for (script, code) in
        [("true", 0), ("exit 1", 1), ("exit 77", 77), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill -INT $$", 130)]
    {
        let done = lab.in_sandbox(20, &[], script);
        assert_eq!(done.code, code, "{script}: {done}");
    }
}

#[test]
fn output_and_input_pass_through() {
    let Some(lab) = Lab::new(&[]) else { return };
    let done = lab.in_sandbox(20, &[], "echo out; echo err >&2");
    assert_eq!((done.ok(), done.stderr.as_str()), ("out", "err\n"));
    let bin = lab.binary();
    let done = lab.run_with(Place::Host, 20, &[&bin, "run", "--", "wc", "-c"], &[7; 100_000]);
    assert_eq!(done.ok(), "100000");
}

/// One line on standard error that has these words, and the status.
#[track_caller]
fn one_clear_line(done: &Done, code: i32, words: &[&str]) {
    assert_eq!(done.code, code, "{done}");
    assert_eq!(done.stderr.lines().count(), 1, "not one line: {done}");
    for word in words {
        assert!(done.stderr.contains(word), "{word:?} is not said: {done}");
    }
}

#[test]
fn mistakes_get_one_clear_line() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    one_clear_line(&lab.hibernet(20, &["run", "--", "/no/such/program"]), NOT_FOUND, &["/no/such/program"]);
    one_clear_line(&lab.hibernet(20, &["run", "--", "/etc/passwd"]), NOT_EXECUTABLE, &["/etc/passwd"]);

    let server = lab.serve_peer(Place::Host, "echo.py", &["tcp"], hibernet_tests::lab::Family::V4, 8080);
    one_clear_line(&lab.hibernet(20, &["run", "-p", "8080:80", "--", "true"]), PORT, &["8080"]);
    drop(server);

    let bin = lab.binary();
    let no_descriptors = lab.sh(Place::Host, 20, &format!("ulimit -n 6; exec {bin} run -- true"));
    one_clear_line(&no_descriptors, RESOURCES, &["descriptors"]);

    // Switched off in a user namespace of its own, so that the machine's setting is left alone.
    let inner = format!("echo 0 >/proc/sys/user/max_user_namespaces; exec {bin} run -- true");
    let switched_off = lab.run(Place::Host, 20, &["unshare", "-Urm", "bash", "-c", &inner]);
    one_clear_line(&switched_off, NAMESPACES, &["namespace"]);

    for (args, word) in [
        (&["run", "--no-such-option", "--", "true"][..], "no-such-option"),
        (&["run", "-p", "80:80/sctp", "--", "true"], "sctp"),
        (&["run", "-p", "90-80:80", "--", "true"], "90-80"),
        (&["run", "--mtu", "10", "--", "true"], "mtu"),
        (&["run", "--address", "10.0.2.999", "--", "true"], "10.0.2.999"),
        (&["run", "--no-ipv4", "--no-ipv6", "--", "true"], "no-ipv"),
    ] {
        let done = lab.hibernet(20, args);
        assert_eq!(done.code, USAGE, "{done}");
        assert!(done.stderr.contains(word), "{word:?} is not said: {done}");
    }
}

#[test]
fn signals_reach_the_command() {
    let Some(lab) = Lab::new(&[]) else { return };
    for (signal, code) in [("TERM", 5), ("INT", 6), ("HUP", 7), ("USR1", 8)] {
        let file = lab.path(&format!("trapped-{signal}"));
        let script = format!("trap 'echo got; exit {code}' {signal}; touch {file}; while :; do sleep 0.05; done");
        let mut run = lab.spawn_hibernet(&["run", "--", "bash", "-c", &script]);
        wait_until("the command runs", Duration::from_secs(20), || std::fs::exists(&file).unwrap_or(false));
        run.signal(signal);
        assert_eq!(run.wait(Duration::from_secs(10)), code, "{signal}: {}", run.output());
        assert_eq!(run.output().trim(), "got", "{signal}");
    }
}

#[test]
fn a_terminal_and_job_control_work() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let bin = lab.binary();
    let argv = lab.peer("terminal.py", &[&bin, "run", "--", "bash", "--norc", "-i"]);
    let done = lab.run(Place::Host, 60, &argv.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(done.ok().ends_with("status 3"), "{done}");
}

#[test]
fn nothing_is_left_behind() {
    let Some(lab) = Lab::new(&[]) else { return };
    lab.own_temporary_files();
    let state = |lab: &Lab| {
        let script = "ip -o link; ip -o addr; ip route; ip -6 route; ls -A /run /run/netns; cat /proc/mounts; cat /etc/resolv.conf; \
                      find /run/hibernet* -type s -o -type f 2>/dev/null; ls -A /tmp /var/tmp /dev/shm";
        lab.sh(Place::Host, 10, script).stdout.lines().filter(|l| *l != "hibernet").map(str::to_owned).collect::<Vec<_>>()
    };
    let before = state(&lab);
    let check = |lab: &Lab, what: &str| {
        wait_until(&format!("{what}: no process is left, but {:?} is", lab.processes()), Duration::from_secs(10), || {
            lab.processes().is_empty()
        });
        assert_eq!(state(lab), before, "{what}");
    };
    lab.in_sandbox(20, &["-p", "8080:80", "-p", "8080:80/udp"], "true").ok();
    check(&lab, "after an ordinary end");
    lab.in_sandbox(20, &["--link", "packet"], "sleep 1000 & exit 0").ok();
    // What the command left in the background is its own affair (as with any shell); its network is gone with hibernet.
    lab.sh(Place::Host, 5, "kill -KILL $(cat /proc/[0-9]*/stat | sed -n 's/^\\([0-9]*\\) (sleep).*/\\1/p')");
    check(&lab, "after an end with a process in the background");

    let mut sandbox = Sandbox::start(&lab, &["-p", "8080:80"]);
    sandbox.supervisor.signal("TERM");
    sandbox.supervisor.wait(Duration::from_secs(10));
    check(&lab, "after SIGTERM to the supervisor");

    let mut sandbox = Sandbox::start(&lab, &["-p", "8080:80"]);
    sandbox.supervisor.signal("KILL");
    sandbox.supervisor.wait(Duration::from_secs(10));
    // Worker and command go with it.
    wait_until("nothing runs after the supervisor", Duration::from_secs(10), || lab.processes().is_empty());
}

#[test]
fn the_sandbox_is_configured() {
    let Some(lab) = Lab::new(&["ip"]) else { return };
    let done = lab.in_sandbox(
        20,
        &[],
        "ip -o addr; ip route; ip -6 route; cat /etc/resolv.conf; cat /sys/class/net/eth0/mtu 2>/dev/null; ip -o link",
    );
    let out = done.ok();
    for want in [
        format!("inet {GUEST4}/24"),
        format!("inet6 {GUEST6}/64"),
        format!("default via {GATEWAY4} dev eth0"),
        format!("default via {GATEWAY6} dev eth0"),
        format!("nameserver {DNS4}"),
        format!("nameserver {DNS6}"),
        "inet 127.0.0.1/8".into(),
        "mtu 65520".into(),
    ] {
        assert!(out.contains(&want), "{want} is missing: {done}");
    }
    assert!(!out.contains("tentative"), "an address cannot be used yet: {done}");
    // The host's own resolver configuration is untouched.
    assert_eq!(lab.run(Place::Host, 5, &["cat", "/etc/resolv.conf"]).ok(), "nameserver 10.99.0.1");
}

#[test]
fn addresses_and_mtu_can_be_chosen() {
    let Some(lab) = Lab::new(&["ip"]) else { return };
    let options =
        ["--address", "192.168.7.9/28", "--gateway", "192.168.7.1", "--dns", "192.168.7.2", "--mtu", "1400", "--no-ipv6"];
    let done = lab.in_sandbox(20, &options, "ip -o addr; ip route; ip -6 route; cat /etc/resolv.conf; ip -o link show eth0");
    let out = done.ok();
    for want in ["inet 192.168.7.9/28", "default via 192.168.7.1 dev eth0", "nameserver 192.168.7.2", "mtu 1400"] {
        assert!(out.contains(want), "{want} is missing: {done}");
    }
    assert!(!out.contains("inet6 fd") && !out.contains("default via fd"), "IPv6 is not off: {done}");
    let done =
        lab.in_sandbox(20, &["--no-ipv4", "--address6", "fd00:7::9/64", "--ifname", "net7"], "ip -o addr; ip route; ip -6 route");
    let out = done.ok();
    assert!(out.contains("net7") && out.contains("inet6 fd00:7::9/64") && out.contains("default via fd00:7::2"), "{done}");
    assert!(!out.contains("inet 10."), "IPv4 is not off: {done}");
}

#[test]
fn both_links_work() {
    let Some(lab) = Lab::new(&["curl", "python3"]) else { return };
    let _server = lab.serve_peer(Place::Remote, "http_store.py", &["/etc"], hibernet_tests::lab::Family::V4, 8000);
    let fetch = "curl -sS --max-time 10 http://10.99.0.1:8000/hostname";
    let want = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let done = lab.in_sandbox(20, &["--link", "packet"], fetch);
    assert_eq!(done.ok(), want.trim());
    let tap = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok();
    let done = lab.in_sandbox(20, &["--link", "tap"], fetch);
    if tap {
        assert_eq!(done.ok(), want.trim());
    } else {
        one_clear_line(&done, 72, &["/dev/net/tun"]);
    }
    assert_eq!(lab.in_sandbox(20, &[], fetch).ok(), want.trim());
}

#[test]
fn an_ordinary_user_needs_nothing() {
    let Some(lab) = Lab::new(&["curl", "python3", "setpriv"]) else { return };
    if !lab.is_root() {
        return; // All other tests are this test.
    }
    let _server = lab.serve_peer(Place::Remote, "http_store.py", &["/etc"], hibernet_tests::lab::Family::V4, 8000);
    let want = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    // Where an ordinary user may read it.
    let bin = lab.path("hibernet");
    std::fs::copy(lab.binary(), &bin).expect("copy of hibernet");
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let run = |args: &[&str]| {
        let mut argv = user.to_vec();
        argv.push(&bin);
        argv.extend_from_slice(args);
        lab.run(Place::Host, 30, &argv)
    };
    let fetch = ["curl", "-sS", "--max-time", "10", "http://10.99.0.1:8000/hostname"];
    let mut args = vec!["run", "--"];
    args.extend_from_slice(&fetch);
    assert_eq!(run(&args).ok(), want.trim());
    // A published port too.
    let mut server = {
        let mut argv = user.to_vec();
        let python = lab.peer("echo.py", &["tcp", "0.0.0.0", "7000"]);
        argv.extend_from_slice(&[&bin, "run", "-p", "7070:7000", "--"]);
        argv.extend(python.iter().map(String::as_str));
        lab.spawn(Place::Host, &argv)
    };
    lab.wait_listening(Place::Host, 7070, &mut server);
    wait_until("the server answers", Duration::from_secs(20), || {
        let answer = lab.sh(Place::Remote, 10, &format!("printf hello | nc -N -w 5 {HOST4} 7070")).stdout;
        answer.starts_with("7000 10.99.0.1 ") && answer.ends_with("hello")
    });
}

#[test]
fn a_capture_can_be_read() {
    let Some(lab) = Lab::new(&["curl", "python3", "tcpdump"]) else { return };
    let _server = lab.serve_peer(Place::Remote, "http_store.py", &["/etc"], hibernet_tests::lab::Family::V4, 8000);
    let file = lab.path("capture");
    lab.in_sandbox(20, &["--pcap", &file], "curl -sS --max-time 10 http://10.99.0.1:8000/hostname").ok();
    let read = lab.run(Place::Host, 10, &["tcpdump", "-Z", "root", "-nr", &file, "tcp"]);
    assert!(read.ok().contains(&format!("{GUEST4}.")) && read.stdout.contains("10.99.0.1.8000: Flags [S]"), "{read}");
    assert!(read.stdout.contains("10.99.0.1.8000 > ") && read.stdout.contains("Flags [S.]"), "{read}");
}

#[test]
fn sandboxes_can_be_listed_and_entered() {
    let Some(lab) = Lab::new(&["ip"]) else { return };
    let done = lab.hibernet(20, &["run", "--detach", "--name", "here", "--", "sleep", "1000"]);
    assert_eq!(done.ok(), "here", "{done}");
    assert!(lab.hibernet(10, &["list"]).ok().contains("here"));
    let inside = lab.hibernet(10, &["exec", "here", "--", "ip", "-o", "addr"]);
    assert!(inside.ok().contains(GUEST4), "{inside}");
    assert_eq!(lab.hibernet(10, &["exec", "here", "--", "bash", "-c", "exit 9"]).code, 9);
    let taken = lab.hibernet(10, &["run", "--name", "here", "--", "true"]);
    assert!(taken.code == 75 && taken.stderr.contains("here"), "{taken}");
    let unknown = lab.hibernet(10, &["exec", "elsewhere", "--", "true"]);
    assert!(unknown.code == 75 && unknown.stderr.contains("elsewhere"), "{unknown}");
    // It ends with its command.
    lab.hibernet(
        10,
        &["exec", "here", "--", "bash", "-c", "kill -TERM $(cat /proc/[0-9]*/stat | sed -n 's/^\\([0-9]*\\) (sleep).*/\\1/p')"],
    );
    wait_until("it is gone", Duration::from_secs(10), || !lab.hibernet(10, &["list"]).stdout.contains("here"));
}

#[test]
fn doctor_says_what_this_machine_allows() {
    let Some(lab) = Lab::new(&[]) else { return };
    let done = lab.hibernet(20, &["doctor"]);
    for word in ["namespaces", "TAP", "packet link", "ping sockets"] {
        assert!(done.ok().contains(word), "{word:?} is not said: {done}");
    }
}

#[test]
fn the_worker_is_confined() {
    let Some(lab) = Lab::new(&[]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    let worker = sandbox.worker();
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).expect("the worker runs");
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim().to_owned();
    assert_eq!(field("Seccomp"), "2", "no seccomp filter: {status}");
    assert_eq!(field("NoNewPrivs"), "1", "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}: {status}");
    }
    // Its file system is empty.
    let root = lab.run(Place::Host, 5, &["ls", "-A", &format!("/proc/{}/root/", sandbox.worker_inside())]);
    assert_eq!(root.stdout.trim(), "", "{root}");
}
