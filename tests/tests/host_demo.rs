//! `hibernet demo`, as root and as an ordinary user.

use hibernet_tests::lab::{Lab, Place, wait_until};
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
