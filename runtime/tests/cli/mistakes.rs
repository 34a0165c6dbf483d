//! Mistakes get one line that says what to do, and an exit status of their own.

use crate::kit::{finish, free_port, hibernet, run_sh, sandboxes_work};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Fails with a status and one line that contains `says`.
fn fails(args: &[&str], status: i32, says: &str) {
    let (code, out, err) = finish(&mut hibernet(args));
    assert_eq!((code, out.as_str()), (status, ""), "{args:?}: {err}");
    assert!(err.contains(says), "{args:?}: {err}");
    if status != 2 {
        assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
    }
}

#[test]
fn wrong_options() {
    let run = |options: &[&'static str], says: &str| fails(&[&["run"], options, &["--", "true"]].concat(), 2, says);
    run(&["--no-such-option"], "--no-such-option");
    run(&["--mtu", "100"], "1280");
    run(&["--address", "10.0.0.300/24"], "10.0.0.300");
    run(&["--address", "10.0.0.0/24"], "the network's own");
    run(&["--address", "127.0.0.5/24"], "of that kind");
    run(&["--gateway", "10.0.3.1"], "guest's network 10.0.2.0/24");
    run(&["--gateway", "10.0.2.15"], "cannot both be 10.0.2.15");
    run(&["--dns", "10.0.2.15"], "cannot both be 10.0.2.15");
    run(&["--dns", "10.0.2.8", "--dns", "10.0.2.9"], "at most one");
    run(&["--no-ipv4", "--no-ipv6"], "--no-ipv6");
    run(&["--no-ipv4", "--dns", "10.0.2.3"], "switched off");
    run(&["--no-ipv6", "-p", "[::1]:80:80"], "switched off");
    run(&["--no-ipv6", "--map-host-loopback", "fd00::1"], "switched off");
    run(&["--map-host-loopback", "10.0.2.15"], "taken by the guest");
    run(&["-p", "80"], "guest's port is missing");
    run(&["-p", "8000:80/sctp"], "sctp");
    run(&["-p", "8000-8010:80", "-p", "127.0.0.1:8005:81"], "the same host port");
    run(&["--egress", "some"], "public");
    run(&["--name", "a/b"], "letters");
    run(&["--output", "x"], "--detach");
    run(&["--allow-host", "nonsense"], "ADDR:PORT");
    fails(&["run"], 2, "COMMAND");
    fails(&["attach"], 2, "--netns");
    fails(&["attach", "--tap", "a", "--packet", "b"], 2, "cannot be used with");
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    if !sandboxes_work("taken port") {
        return;
    }
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let holder = format!("process {}", std::process::id());
    fails(&["run", "-p", &format!("{port}:80"), "--", "true"], 73, &holder);
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = udp.local_addr().unwrap().port();
    fails(&["run", "-p", &format!("127.0.0.1:{port}:80/udp"), "--", "true"], 73, "the port is taken");
    fails(&["run", "-p", &format!("192.0.2.1:{}:80", free_port()), "--", "true"], 73, "does not have that address");
}

#[test]
fn files_that_cannot_be_written() {
    for option in ["--pcap", "--log-file"] {
        fails(&["run", option, "/no/such/directory/file", "--", "true"], 77, "/no/such/directory/file");
    }
}

#[test]
fn no_descriptors_left() {
    let script = "ulimit -n 8; exec \"$0\" run -- true";
    let (code, _, err) = finish(std::process::Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_hibernet")]));
    assert_eq!(code, 74, "{err}");
    assert!(err.contains("ulimit -n"), "{err}");
}

/// Inside a user namespace whose owner may make no more of them.
#[test]
fn user_namespaces_switched_off() {
    if !sandboxes_work("user namespaces off") {
        return;
    }
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$0\" run -- true";
    let mut c = std::process::Command::new("unshare");
    let (code, _, err) = finish(c.args(["-Ur", "sh", "-c", script, env!("CARGO_BIN_EXE_hibernet")]));
    assert_eq!(code, 71, "{err}");
    assert!(err.contains("user.max_user_namespaces"), "{err}");
}

#[test]
fn attach_to_what_is_not_there() {
    fails(&["attach", "--netns", "/run/netns/no-such-namespace"], 71, "/run/netns/no-such-namespace");
    fails(&["attach", "--netns", "2147483646"], 71, "no process 2147483646");
    fails(&["attach", "--netns", "nonsense"], 2, "neither a process id nor a path");
    fails(&["attach", "--fd", "77"], 72, "--fd 77");
    // In a namespace of its own, where the names are surely free.
    if sandboxes_work("attach to no interface") {
        for kind in ["--tap", "--packet"] {
            let script = format!("{} attach {kind} nosuch0", env!("CARGO_BIN_EXE_hibernet"));
            let (code, _, err) = finish(&mut run_sh(&[], &script));
            assert_eq!(code, 72, "{err}");
        }
    }
}

#[test]
fn help_tells_about_statuses_and_examples() {
    let (code, out, _) = finish(&mut hibernet(&["--help"]));
    assert_eq!(code, 0);
    for word in ["run", "attach", "list", "exec", "stats", "doctor", "Examples", "73 port"] {
        assert!(out.contains(word), "{word}");
    }
    assert!(!out.contains("confined-attempt"));
}
