//! `hibernet run`: the command's end, its surroundings, and what is left behind.

use crate::kit::{
    Background, finish, free_port, hibernet, is_root, links, lives, run_sh, sandboxes_work, unique_name, wait_until,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use vmm_sys_util::tempdir::TempDir;

#[test]
fn the_exit_status_is_that_of_the_command() {
    if !sandboxes_work("exit status") {
        return;
    }
    for (script, status) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let (code, out, err) = finish(&mut run_sh(&[], script));
        assert_eq!((code, out.as_str(), err.as_str()), (status, "", ""), "{script}");
    }
}

#[test]
fn programs_that_cannot_be_run() {
    if !sandboxes_work("programs that cannot be run") {
        return;
    }
    let cases = [
        ("/no/such/program", 127, "no such file"),
        ("nosuchprogram", 127, "not found in PATH"),
        ("/etc/passwd", 126, "permission denied"),
    ];
    for (program, status, says) in cases {
        let (code, out, err) = finish(&mut hibernet(&["run", "--", program]));
        assert_eq!((code, out.as_str()), (status, ""), "{program}: {err}");
        assert!(err.contains(says) && err.contains(program) && err.lines().count() == 1, "{err}");
    }
}

#[test]
fn signals_are_passed_on() {
    if !sandboxes_work("signals") {
        return;
    }
    for (signal, number) in [("-TERM", 15), ("-HUP", 1), ("-INT", 2), ("-USR1", 10), ("-USR2", 12)] {
        let dir = TempDir::new().unwrap();
        let ready = dir.as_path().join("ready");
        let script = format!("trap 'exit {}' {}; : >{}; while :; do sleep 0.05; done", 50 + number, number, ready.display());
        let run = Background::start(&mut run_sh(&[], &script));
        wait_until("the command runs", || ready.exists());
        run.signal(signal);
        assert_eq!(run.finish().0, 50 + number, "{signal}");
    }
}

#[test]
fn the_network_is_configured_before_the_command_runs() {
    if !sandboxes_work("configuration") {
        return;
    }
    for link in links() {
        let script = "cat /proc/net/route; cat /proc/net/if_inet6; cat /etc/resolv.conf; cat /proc/net/dev";
        let (code, out, err) = finish(&mut run_sh(&["--link", link, "--ifname", "net7"], script));
        assert_eq!(code, 0, "{err}");
        // 10.0.2.2 as the default route's gateway, in the kernel's notation.
        assert!(out.contains("net7\t00000000\t0202000A"), "{out}");
        assert!(out.contains("fd6869626e6574000000000000000015"), "{out}");
        assert!(out.contains("nameserver 10.0.2.3") && out.contains("nameserver fd68:6962:6e65:7400::3"), "{out}");
        // Nothing but loopback and the link: the far end of a packet link is not to be seen.
        let interfaces: Vec<&str> = out.lines().filter_map(|l| l.split_once(": ").map(|(n, _)| n.trim())).collect();
        assert_eq!(interfaces, ["lo", "net7"], "{out}");
    }
}

#[test]
fn options_change_the_network() {
    if !sandboxes_work("options") {
        return;
    }
    let options = ["--address", "172.20.0.9/16", "--gateway", "172.20.0.1", "--dns", "172.20.0.8", "--no-ipv6", "--mtu", "1400"];
    let (code, out, err) = finish(&mut run_sh(
        &options,
        "cat /proc/net/route /etc/resolv.conf /sys/class/net/eth0/mtu; cat /proc/net/fib_trie; cat /proc/net/if_inet6",
    ));
    // /sys shows the host's interfaces, so there may be no eth0 there; everything else must be found.
    assert!(code <= 1, "{err}");
    assert!(out.contains("eth0\t00000000\t010014AC"), "{out}");
    assert!(out.contains("nameserver 172.20.0.8") && !out.contains("nameserver fd"), "{out}");
    assert!(out.contains("172.20.0.9"), "{out}");
    assert!(!out.contains("eth0\n") || !out.lines().any(|l| l.starts_with("fe80") && l.ends_with("eth0")), "{out}");

    let (code, out, err) = finish(&mut run_sh(&["--dhcp"], "cat /proc/net/route; cat /proc/net/fib_trie"));
    assert_eq!(code, 0, "{err}");
    assert!(!out.contains("eth0") && !out.contains("10.0.2.15"), "{out}");

    let before = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let (code, out, err) = finish(&mut run_sh(&["--no-resolv-conf"], "cat /etc/resolv.conf"));
    assert_eq!((code, out), (0, before), "{err}");
}

/// Reaches a server of the host's loopback, which is mapped, over every kind of link and family.
#[test]
fn the_hosts_loopback_is_reached_where_it_is_mapped() {
    if !sandboxes_work("loopback") {
        return;
    }
    let server = |addr: SocketAddr| {
        let listener = TcpListener::bind(addr).unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut c in listener.incoming().flatten() {
                let _ = c.read(&mut [0; 1024]);
                let _ = c.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the host");
            }
        });
        at.port()
    };
    let v4 = server((Ipv4Addr::LOCALHOST, 0).into());
    let v6 = server("[::1]:0".parse().unwrap());
    let options = ["--map-host-loopback", "10.0.2.2", "--map-host-loopback", "fd68:6962:6e65:7400::2"];
    let script = format!("curl -sS -m 10 http://10.0.2.2:{v4}/ && curl -sS -m 10 'http://[fd68:6962:6e65:7400::2]:{v6}/'");
    for link in links() {
        let (code, out, err) = finish(&mut run_sh(&[&options[..], &["--link", link]].concat(), &script));
        assert_eq!((code, out.as_str()), (0, "from the hostfrom the host"), "{link}: {err}");
    }
    // Without the mapping nothing is reached, and that is known at once.
    let began = std::time::Instant::now();
    let (code, _, err) = finish(&mut run_sh(&[], &format!("curl -sS -m 10 http://10.0.2.2:{v4}/")));
    assert_ne!(code, 0, "{err}");
    assert!(began.elapsed().as_secs() < 5, "{err}");
}

#[test]
fn a_published_port_leads_into_the_sandbox() {
    if !sandboxes_work("published port") {
        return;
    }
    let port = free_port();
    let server = "import socket\ns = socket.create_server(('0.0.0.0', 8000))\nwhile True:\n c, a = s.accept(); c.sendall(b'from the guest'); c.close()";
    let spec = format!("127.0.0.1:{port}:8000");
    let run = Background::start(hibernet(&["run", "-p", &spec, "--"]).args(["python3", "-c", server]));
    let mut answer = String::new();
    wait_until("the server in the sandbox answers", || {
        answer.clear();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok_and(|mut c| c.read_to_string(&mut answer).is_ok())
            && !answer.is_empty()
    });
    assert_eq!(answer, "from the guest");
    run.signal("-TERM");
    assert_eq!(run.finish().0, 143);
    wait_until("the port is free again", || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
}

/// Processes that outlive the command, however they got away, end with the sandbox; nothing else stays either.
#[test]
fn nothing_is_left_behind() {
    if !sandboxes_work("nothing left") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let pids = dir.as_path().join("pids");
    let script = format!(
        "sleep 1000 & echo $! >>{0}; (trap '' TERM; echo ready >>{0}; exec sleep 1001) & echo $! >>{0}; \
         setsid sh -c 'echo $$ >>{0}; exec sleep 1002' & while [ $(wc -l <{0}) -lt 4 ]; do sleep 0.01; done; readlink /proc/self/ns/net; exit 3",
        pids.display()
    );
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let name = unique_name("left");
    let (code, out, err) = finish(&mut run_sh(&["--name", &name], &script));
    assert_eq!(code, 3, "{err}");
    let text = std::fs::read_to_string(&pids).unwrap();
    let left: Vec<&str> = text.lines().filter(|l| l.parse().is_ok_and(lives)).collect();
    assert!(left.is_empty(), "still there: {left:?}");
    assert_eq!(std::fs::read_to_string("/proc/self/mounts").unwrap(), mounts);
    let net = out.trim();
    for p in std::fs::read_dir("/proc").unwrap().flatten() {
        let ns = std::fs::read_link(p.path().join("ns/net"));
        assert!(ns.is_err() || ns.unwrap().as_os_str() != net, "{:?} is still in the sandbox", p.path());
    }
    for registry in ["/run/hibernet".to_owned(), format!("/tmp/hibernet-{}", rustix::process::geteuid().as_raw())] {
        for f in std::fs::read_dir(registry).into_iter().flatten().flatten() {
            assert!(!f.file_name().to_string_lossy().contains(&name), "{:?} was left", f.path());
        }
    }
}

/// A supervisor that is killed takes worker and command with it.
#[test]
fn killing_the_supervisor_kills_all() {
    if !sandboxes_work("killed supervisor") {
        return;
    }
    let name = unique_name("killed");
    let dir = TempDir::new().unwrap();
    let file = dir.as_path().join("pid");
    let script = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 1000", file.display());
    let run = Background::start(&mut run_sh(&["--name", &name], &script));
    wait_until("the command runs", || file.exists());
    let command: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let worker = crate::kit::listed(&name).unwrap()["worker"].as_i64().unwrap() as i32;
    assert!(lives(command) && lives(worker));
    run.signal("-KILL");
    assert_eq!(run.finish().0, 137);
    wait_until("worker and command have ended", || !lives(command) && !lives(worker));
    assert!(crate::kit::listed(&name).is_none());
}

/// A worker that dies is told, the sandbox loses its link, and the exit status says so.
#[test]
fn a_dead_worker_ends_the_sandbox() {
    if !sandboxes_work("dead worker") {
        return;
    }
    let name = unique_name("worker");
    let dir = TempDir::new().unwrap();
    let (ready, seen) = (dir.as_path().join("ready"), dir.as_path().join("seen"));
    // The command is asked to end, and killed if it does not.
    let script =
        format!("trap 'cat /proc/net/dev >{}' TERM; : >{}; while :; do sleep 0.05; done", seen.display(), ready.display());
    let link = links()[0];
    let run = Background::start(&mut run_sh(&["--name", &name, "--link", link], &script));
    wait_until("the command runs", || ready.exists());
    let worker = crate::kit::listed(&name).unwrap()["worker"].as_i64().unwrap();
    assert!(std::process::Command::new("kill").args(["-KILL", &worker.to_string()]).status().unwrap().success());
    let (code, _, err) = run.finish();
    assert_eq!(code, 76, "{err}");
    assert!(err.contains("hibernet: the network worker ended unexpectedly (signal 9)"), "{err}");
    let interfaces = std::fs::read_to_string(&seen).unwrap();
    // A packet link goes with the namespace of its far end, which the kernel clears away when it finds the time.
    assert!(link != "tap" || !interfaces.contains("eth0"), "{interfaces}");
    assert!(crate::kit::listed(&name).is_none());
}

/// The command has the limits, signal dispositions and groups of hibernet's caller.
#[test]
fn the_command_inherits_what_it_should() {
    if !sandboxes_work("inheritance") {
        return;
    }
    let script = "ulimit -n; grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l";
    let limited = |with: &str| {
        let script = format!("ulimit -Sn 777; exec {with} sh -c \"{script}\"");
        finish(std::process::Command::new("sh").args(["-c", &script]).stdin(std::process::Stdio::null()))
    };
    let (code, out, err) = limited(&format!("{} run --", env!("CARGO_BIN_EXE_hibernet")));
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("777\n"), "{out}");
    assert_eq!(out, limited("").1);
}

/// As real root, every id of the host keeps its number, so that a server can change users.
#[test]
fn root_can_change_users_inside() {
    if !is_root() || !sandboxes_work("changing users") {
        return;
    }
    let (code, out, err) = finish(&mut run_sh(&[], "exec setpriv --reuid 65534 --regid 65534 --clear-groups id -u"));
    assert_eq!((code, out.trim()), (0, "65534"), "{err}");
}

#[test]
fn a_capture_can_be_read_by_tcpdump() {
    if !sandboxes_work("capture") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let file = dir.as_path().join("all.pcap");
    let path = file.to_str().unwrap();
    let (code, _, err) = finish(&mut run_sh(&["--pcap", path], "ping -c 1 -W 5 10.0.2.2 >/dev/null"));
    assert_eq!(code, 0, "{err}");
    let out = match std::process::Command::new("tcpdump").args(["-nr", path, "icmp"]).output() {
        Ok(out) => out,
        Err(_) => return crate::kit::skip("capture", "tcpdump is not installed"),
    };
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("echo request") && text.contains("echo reply"), "{out:?}");
}
