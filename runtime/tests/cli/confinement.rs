//! The worker is confined: as seen from outside, and as a confined process finds out.

use crate::kit::{Background, finish, hibernet, is_root, listed, run_sh, sandboxes_work, unique_name, wait_until};

#[test]
fn a_running_worker_has_nothing() {
    if !sandboxes_work("confined worker") {
        return;
    }
    let name = unique_name("confined");
    let run = Background::start(&mut run_sh(&["--name", &name], "exec sleep 1000"));
    let mut worker = 0;
    // The worker is entered when it is ready.
    wait_until("the worker runs", || {
        worker = listed(&name).map_or(0, |e| e["worker"].as_i64().unwrap());
        worker != 0
    });
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim_start_matches(':').trim().to_owned());
    assert_eq!(field("NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(field("Seccomp").as_deref(), Some("2"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set).as_deref(), Some("0000000000000000"), "{set}");
    }
    // It is the first process of a namespace of its own, so it can name no other.
    assert!(field("NSpid").unwrap().ends_with("\t1"), "{status}");
    if is_root() {
        let root = std::fs::read_dir(format!("/proc/{worker}/root/")).unwrap();
        assert_eq!(root.count(), 0, "the root is not empty");
        let mounts = std::fs::read_to_string(format!("/proc/{worker}/mounts")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.contains(" ro,"), "{mounts}");
        for ns in ["user", "mnt", "ipc", "uts", "pid"] {
            let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{ns}")).unwrap();
            assert_ne!(of(&worker.to_string()), of("self"), "{ns}");
        }
        let net = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).unwrap();
        assert_eq!(net(&worker.to_string()), net("self"));
        // No descriptor leads into a file system, but for standard error.
        for fd in std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap().flatten() {
            let to = std::fs::read_link(fd.path()).unwrap();
            let to = to.to_string_lossy();
            let harmless =
                ["/dev/net/tun", "/dev/null", "/null", "socket:", "pipe:", "anon_inode:"].iter().any(|p| to.starts_with(p));
            assert!(harmless || fd.file_name() == "2", "{to}");
        }
    }
    run.signal("-TERM");
    run.finish();
}

#[test]
fn what_a_confined_process_can_and_cannot_do() {
    if !sandboxes_work("confined process") {
        return;
    }
    let cases = [
        ("nothing", "done"),
        ("tcp-socket", "done"),
        ("ping-socket", "done"),
        ("open", "refused 13"),
        ("exec", "killed 31"),
        ("thread", "done"),
        ("fork", "killed 31"),
        ("unshare", "killed 31"),
        ("kill", "killed 31"),
        ("unix-socket", "killed 31"),
        ("raw-socket", "killed 31"),
        ("packet-socket", "killed 31"),
        ("netlink-socket", "killed 31"),
    ];
    for (what, outcome) in cases {
        let (code, out, err) = finish(&mut hibernet(&["confined-attempt", what]));
        assert_eq!((code, out.trim()), (0, outcome), "{what}: {err}");
    }
}
