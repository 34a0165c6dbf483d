//! `hibernet attach`.

use crate::kit::{Background, finish, hibernet, links, run_sh, sandboxes_work, unique_name, wait_until};
use std::process::Command;

fn has_default_route(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/net/route")).is_ok_and(|r| r.lines().any(|l| l.contains("\t00000000\t0202000A")))
}

/// A process in user and network namespaces of its own.
fn namespace() -> Background {
    let process = Background::start(Command::new("unshare").args(["-Urn", "sleep", "1000"]));
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let pid = process.pid();
    wait_until("the namespace is there", || {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|n| n != here)
            && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "sleep")
    });
    process
}

#[test]
fn the_namespace_of_a_process_is_served_until_it_ends() {
    if !sandboxes_work("attach to a process") {
        return;
    }
    for link in links() {
        let process = namespace();
        let pid = process.pid().to_string();
        let name = unique_name("attach");
        let attach = Background::start(&mut hibernet(&["attach", "--netns", &pid, "--link", link, "--name", &name]));
        wait_until("the namespace has a default route", || has_default_route(process.0.id()));
        let enter = ["-t", &pid, "-U", "--preserve-credentials", "-n", "ping", "-c", "1", "-W", "5", "10.0.2.2"];
        let (code, out, err) = finish(Command::new("nsenter").args(enter));
        assert_eq!(code, 0, "{link}: {out} {err}");
        let (code, _, err) = finish(&mut hibernet(&["exec", &name, "--", "true"]));
        assert!(code == 71 && err.contains("nsenter"), "{err}");
        drop(process);
        assert_eq!(attach.finish(), (0, String::new(), String::new()), "{link}");
    }
}

/// Everything about interfaces happens in a sandbox, where we may make them.
#[test]
fn interfaces_are_served_until_they_go() {
    if !sandboxes_work("attach to interfaces") || std::fs::File::open("/dev/net/tun").is_err() {
        return;
    }
    let hibernet = env!("CARGO_BIN_EXE_hibernet");
    let cases = [
        ("--tap t0", "ip tuntap add t0 mode tap", "ip link del t0"),
        ("--packet v0", "ip link add v0 type veth peer name v1; ip link set v1 up", "ip link del v0"),
        // The interface is served although it was down.
        ("--packet v0", "ip link add v0 type veth peer name v1", "ip link del v0"),
    ];
    for (target, make, unmake) in cases {
        let name = unique_name("if");
        let script = format!(
            "{make}; {hibernet} attach {target} --name {name} & p=$!; until {hibernet} stats {name} >/dev/null 2>&1; do kill -0 $p || exit 99; sleep 0.02; done; \
             {unmake}; wait $p"
        );
        let (code, out, err) = finish(&mut run_sh(&["--link", "packet"], &script));
        assert_eq!(code, 0, "{target}: {out} {err}");
    }
}

#[test]
fn a_signal_ends_it_and_takes_the_interface_away() {
    if !sandboxes_work("attach and signal") {
        return;
    }
    let process = namespace();
    let attach = Background::start(&mut hibernet(&["attach", "--netns", &process.pid().to_string()]));
    wait_until("the namespace has a default route", || has_default_route(process.0.id()));
    attach.signal("-TERM");
    assert_eq!(attach.finish(), (0, String::new(), String::new()));
    wait_until("the interface is gone", || {
        !std::fs::read_to_string(format!("/proc/{}/net/dev", process.pid())).unwrap().contains("eth0")
    });
}

/// A TAP's descriptor, and a datagram socket, handed over by number.
#[test]
fn a_descriptor_is_served() {
    if !sandboxes_work("attach to a descriptor") {
        return;
    }
    // ARP for the gateway is answered over whatever carries frames.
    let script = r#"
import os, socket, subprocess, sys
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
p = subprocess.Popen([sys.argv[1], "attach", "--fd", str(b.fileno()), "--mtu", "1500"], pass_fds=[b.fileno()])
b.close()
mac = bytes.fromhex("020000000001")
arp = b"\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + bytes([10, 0, 2, 15]) + bytes(6) + bytes([10, 0, 2, 2])
a.settimeout(20)
a.send(arp)
while True:
    f = a.recv(2000)
    if f[12:14] == b"\x08\x06" and f[20:22] == b"\x00\x02" and f[28:32] == bytes([10, 0, 2, 2]): break
a.close()
sys.exit(p.wait())
"#;
    let (code, out, err) = finish(Command::new("python3").args(["-c", script, env!("CARGO_BIN_EXE_hibernet")]));
    assert_eq!(code, 0, "{out} {err}");
}
