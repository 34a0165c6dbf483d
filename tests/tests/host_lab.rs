//! The lab itself: its namespaces reach each other, and nothing is left of it.

use hibernet_tests::lab::{Family, Lab, Place, Proc, wait_until};
use std::time::Duration;

#[test]
fn namespaces_reach_each_other() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    for family in Family::BOTH {
        lab.run(Place::Host, 10, &["ping", family.flag(), "-c1", "-W5", family.remote()]).ok();
        lab.run(Place::Remote, 10, &["ping", family.flag(), "-c1", "-W5", family.host()]).ok();
    }
}

#[test]
fn what_a_lab_shows_does_not_change_by_itself() {
    let Some(lab) = Lab::new(&[]) else { return };
    for place in [Place::Host, Place::Remote] {
        let done = lab.sh(place, 5, "ip -o addr");
        assert!(done.ok().contains(" fe80:") && !done.ok().contains("tentative"), "{place:?}: {done}");
    }
    lab.own_temporary_files();
    let others = std::env::temp_dir().join(format!("hibernet-others-{}", std::process::id()));
    std::fs::write(&others, "").expect("a temporary file");
    let seen = lab.sh(Place::Host, 5, "ls -A /tmp");
    std::fs::remove_file(&others).ok();
    assert!(!seen.ok().contains("hibernet-others-"), "{seen}");
    // What belongs to the lab is shared with the test.
    std::fs::write(lab.path("ours"), "from outside").expect("a file");
    assert_eq!(lab.run(Place::Host, 5, &["cat", &lab.path("ours")]).ok(), "from outside");
}

#[test]
fn programs_are_run_and_killed() {
    let Some(lab) = Lab::new(&["sleep"]) else { return };
    assert_eq!(lab.sh(Place::Remote, 5, "exit 7").code, 7);
    assert_eq!(lab.sh(Place::Host, 5, "kill -KILL $$").code, 137);
    assert_eq!(lab.run(Place::Host, 1, &["sleep", "60"]).code, 124);
    assert_eq!(lab.run_with(Place::Host, 5, &["cat"], b"through").ok(), "through");
    let mut sleeper: Proc = lab.spawn(Place::Remote, &["sleep", "60"]);
    wait_until("it runs", Duration::from_secs(5), || lab.processes().iter().any(|p| p.contains("(sleep")));
    sleeper.signal("TERM");
    assert_eq!(sleeper.wait(Duration::from_secs(5)), 143);
    wait_until("nothing runs", Duration::from_secs(5), || lab.processes().is_empty());
    let orphan = lab.spawn(Place::Host, &["bash", "-c", "setsid sleep 1000 & echo $!"]);
    let dir = lab.dir().to_owned();
    wait_until("it has started", Duration::from_secs(5), || lab.processes().iter().any(|p| p.contains("(sleep")));
    drop(lab);
    drop(orphan);
    assert!(!dir.exists());
}
