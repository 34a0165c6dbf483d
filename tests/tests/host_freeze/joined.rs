//! Joined sandboxes sleep and wake together: one image holds all their links.

use crate::kit::*;
use hibernet_tests::lab::{Family, Lab, Place, Sandbox};

const OTHER: &str = "other";

fn pair(lab: &Lab) -> (Sandbox<'_>, Sandbox<'_>) {
    let first = Sandbox::start(lab, &["--name", NAME]);
    let other = Sandbox::start(lab, &["--name", OTHER, "--join", NAME]);
    (first, other)
}

/// Connections between the two, and of the second with the world.
fn streams(lab: &Lab, first: &Sandbox<'_>, other: &Sandbox<'_>) -> Vec<Streams> {
    let program = env!("CARGO_BIN_EXE_streams");
    let mut all = Vec::new();
    for (family, port) in [(Family::V4, 7000), (Family::V6, 7001)] {
        let stop = Streams::stop_file(lab);
        let (option, text) = (format!("stop={stop}"), port.to_string());
        let options = [option.as_str(), "conns=3", "chunk=2000", "every=20"];
        let server = first.serve(port, &[&[program, "serve", family.any(), &text], &options[..]].concat());
        let client = other.spawn(&[&[program, "connect", family.guest(), &text], &options[..]].concat());
        let between = Streams::of(client, server, stop);
        between.wait_up(3);
        all.push(between);
        all.push(Streams::open(other, lab, family, Way::Out(port + 100), 3, &options[2..], &options[2..]));
    }
    all
}

fn works(s: &Sandbox<'_>, to: &str) {
    s.run(15, &["ping", "-c", "1", "-W", "5", to]).ok();
}

#[test]
fn joined_sandboxes_sleep_and_wake_together() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let (first, other) = pair(&lab);
    let all = streams(&lab, &first, &other);
    let file = lab.path("joined.img");
    for round in 0..3 {
        all.iter().for_each(|s| s.wait_moved(20_000));
        sleep(&first, &lab, &file, if round == 1 { &["--live"] } else { &[] });
        assert_ne!(other.run(10, &["ping", "-c", "1", "-W", "1", NAME]).code, 0, "nobody serves it");
        std::thread::sleep(std::time::Duration::from_millis(400));
        let (report, _) = wake(&lab, &file, &[]);
        all_resumed(&report, 6);
        all.iter().for_each(|s| s.wait_moved(20_000));
        works(&other, NAME);
        works(&first, OTHER);
    }
    // By the name of the one that joined it is the same network.
    let done = json(&lab.hibernet(30, &["upgrade", OTHER, "--json"]));
    all_resumed(&done["thawed"], 6);
    all.iter().for_each(|s| s.wait_moved(20_000));
    works(&first, OTHER);
    all.into_iter().for_each(Streams::end);
}

#[test]
fn who_leaves_asleep_is_not_there_on_waking() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let (first, mut other) = pair(&lab);
    let third = Sandbox::start(&lab, &["--name", "third", "--join", NAME]);
    let _server = lab.serve(Place::Remote, 7200, &["python3", "-m", "http.server", "--bind", "::", "7200"]);
    let _open = other.spawn(&["bash", "-c", &format!("exec 3<>/dev/tcp/{}/7200; sleep 1000", Family::V4.remote())]);
    hibernet_tests::lab::wait_until("the connection is there", SOON, || {
        json(&lab.hibernet(10, &["stats", NAME, "--json"]))["flows"]["tcp"] == 1
    });
    let file = lab.path("joined.img");
    sleep(&first, &lab, &file, &[]);
    other.supervisor.signal("TERM");
    other.supervisor.wait(SOON);
    let (report, _) = wake(&lab, &file, &[]);
    assert_eq!(outcomes(&report), [0, 1, 0], "{report:#}");
    works(&first, "third");
    assert_ne!(first.run(10, &["getent", "hosts", OTHER]).code, 0);
    // Its place is free.
    let again = Sandbox::start(&lab, &["--name", OTHER, "--join", NAME]);
    works(&first, OTHER);
    works(&again, "third");
    // Asleep, nobody joins.
    sleep(&first, &lab, &file, &[]);
    let refused = lab.hibernet(20, &["run", "--join", NAME, "--", "true"]);
    assert!(refused.code != 0 && refused.stderr.contains("asleep"), "{refused}");
    wake(&lab, &file, &[]);
    works(&third, OTHER);
}

#[test]
fn they_sleep_without_the_first_too() {
    let Some(lab) = Lab::new(&["ping"]) else { return };
    let (first, other) = pair(&lab);
    let third = Sandbox::start(&lab, &["--name", "third", "--join", NAME]);
    first.supervisor.signal("TERM");
    hibernet_tests::lab::wait_until("the first has left", SOON, || {
        let list = json(&lab.hibernet(10, &["list", "--json"]));
        list.as_array().expect("a list").iter().any(|e| e["name"] == NAME && e["ended"] == true)
    });
    works(&other, "third");
    let file = lab.path("joined.img");
    json(&lab.hibernet(60, &["checkpoint", OTHER, &file, "--json"]));
    assert_eq!(state(&lab), "asleep");
    wake(&lab, &file, &[]);
    works(&third, OTHER);
    json(&lab.hibernet(30, &["upgrade", OTHER, "--json"]));
    works(&other, "third");
    drop(third);
    drop(other);
}
