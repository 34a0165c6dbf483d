//! `hibernet demo`, as root and as an ordinary user.

use hibernet_tests::lab::{Lab, Place, guest_files, moving_qemu, wait_until};
use std::time::{Duration, Instant};

#[test]
fn the_demo_verifies_every_byte_in_time() {
    let Some(lab) = Lab::new(&[]) else { return };
    lab.own_temporary_files();
    let files = || lab.sh(Place::Host, 10, "ls -A /tmp").ok().to_owned();
    let (before, begun) = (files(), Instant::now());
    let done = lab.hibernet(30, &["demo"]);
    let text = done.ok();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for words in ["frozen within", "8 flows: 8 hold", "has ended", "8 flows resumed", "in place of", "Every byte was right"] {
        assert!(text.contains(words), "{words:?} is not said: {text}");
    }
    assert_eq!(files(), before);
    assert!(lab.processes().is_empty(), "{:?}", lab.processes());
}

/// Given up while its network sleeps: as at the end, nothing is left.
#[test]
fn the_demo_is_given_up() {
    let Some(lab) = Lab::new(&[]) else { return };
    lab.own_temporary_files();
    let files = || lab.sh(Place::Host, 10, "ls -A /tmp").ok().to_owned();
    let before = files();
    for (signal, step) in [("INT", "started"), ("TERM", "asleep")] {
        let mut demo = lab.spawn_hibernet(&["demo"]);
        wait_until(step, Duration::from_secs(20), || demo.output().contains(step));
        demo.signal(signal);
        let code = demo.wait(Duration::from_secs(20));
        assert!(code != 0 && demo.output().contains("given up"), "{code} {}", demo.output());
        assert_eq!(files(), before, "{step}");
        assert!(lab.processes().is_empty(), "{:?}", lab.processes());
    }
}

#[test]
fn the_demo_in_json() {
    let Some(lab) = Lab::new(&[]) else { return };
    let report: serde_json::Value = serde_json::from_str(lab.hibernet(30, &["demo", "--json"]).ok()).expect("JSON");
    assert!(report["verified"] == true && report["connections"] == 8, "{report}");
    assert!(report["bytes_from_guest"].as_u64() > Some(1 << 20) && report["bytes_to_guest"].as_u64() > Some(1 << 20), "{report}");
    let steps = report["steps"].as_array().expect("steps");
    let names: Vec<_> = steps.iter().map(|s| s["step"].as_str().expect("name")).collect();
    let expected = ["started", "streaming", "asleep", "awake", "streaming", "copied", "streaming", "upgraded", "streaming"];
    assert_eq!(names, expected);
    let asleep = &steps[2];
    assert!(asleep["freeze"]["connections"] == 8 && asleep["ended"] == steps[0]["worker"], "{asleep}");
    assert!(asleep["freeze"]["flows"].as_array().is_some_and(|f| f.iter().all(|f| f["tier"] == "hold")), "{asleep}");
    // What goes on has other workers.
    assert!(steps[3]["worker"] != steps[0]["worker"] && steps[7]["worker"] != steps[3]["worker"], "{report}");
}

#[test]
fn a_whole_machine_is_saved_and_comes_back() {
    let Some(lab) = Lab::new(&["busybox", "curl"]) else { return };
    let (Some(qemu), Some(guest)) = (moving_qemu(&lab), guest_files()) else { return };
    let files = || lab.sh(Place::Host, 10, "ls -d $TMPDIR/hibernet-demo-* || true").ok().to_owned();
    let path = |name: &str| guest.join(name).to_string_lossy().into_owned();
    let (kernel, modules) = (path("vmlinuz"), path("kernel/lib/modules"));
    let vm = ["demo", "--vm", "--qemu", &qemu, "--kernel", &kernel, "--modules", &modules];
    let done = lab.hibernet(300, &[&vm[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(done.ok()).expect("JSON");
    assert!(report["verified"] == true && report["connections"] == 4, "{report}");
    let steps = report["steps"].as_array().expect("steps");
    let names: Vec<_> = steps.iter().map(|s| s["step"].as_str().expect("name")).collect();
    assert_eq!(names, ["started", "streaming", "saved", "back", "streaming"]);
    let (started, saved, back) = (&steps[0], &steps[2], &steps[3]);
    // Both its processes have ended, and others are there.
    assert_eq!(saved["ended"], serde_json::json!([started["qemu"], started["attach"]]));
    assert!(back["qemu"] != started["qemu"] && back["attach"] != started["attach"], "{report}");
    assert!(saved["bytes"].as_u64() > Some(16 << 20), "the machine's memory is in the file: {saved}");
    assert!(steps[4]["bytes_from_guest"].as_u64() > Some(0) && steps[4]["bytes_to_guest"].as_u64() > Some(0), "{report}");
    assert_eq!(files(), "");
    assert!(lab.processes().is_empty(), "{:?}", lab.processes());

    // Killed, so that it can clean up nothing: its processes end.
    let mut demo = lab.spawn_hibernet(&vm);
    wait_until("it has booted", Duration::from_secs(120), || demo.output().contains("started"));
    demo.signal("KILL");
    demo.wait(Duration::from_secs(20));
    wait_until("its processes end", Duration::from_secs(20), || lab.processes().is_empty());
}

#[test]
fn what_a_machine_lacks_is_said() {
    let Some(lab) = Lab::new(&["bash"]) else { return };
    let old = lab.path("old-qemu");
    std::fs::write(&old, "#!/bin/sh\necho QEMU emulator version 9.2.1\n").expect("file");
    let new = lab.path("new-qemu");
    std::fs::write(&new, "#!/bin/sh\necho QEMU emulator version 10.1.0\n").expect("file");
    lab.sh(Place::Host, 5, &format!("chmod 755 {old} {new}")).ok();
    for (options, said) in [
        (&["--qemu", "/nonexistent"][..], "QEMU 10 or newer is needed: install it"),
        (&["--qemu", &old], "is 9.2.1, which cannot save a network with its machine"),
        (&["--qemu", &new, "--kernel", "/bin/sh"], "is no Linux kernel"),
        (&["--qemu", &new, "--kernel", "/nonexistent"], "cannot read the kernel /nonexistent"),
    ] {
        let done = lab.hibernet(10, &[&["demo", "--vm"], options].concat());
        assert!(done.code != 0 && done.stderr.contains(said), "{options:?}: {done}");
    }
}
